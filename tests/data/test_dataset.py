from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader

from tests.helpers.data import noise_image
from tightbox.data.dataset import DetectionDataset, EpochBatches, collate, evaluation_loader
from tightbox.data.records import DetectionData, ImageRecord
from tightbox.data.transforms import Sample, TrainTransform
from tightbox.errors import UserError
from tightbox.images import open_image
from tightbox.options import AugmentOptions, Preprocess

PREPROCESS = Preprocess(long_side=64, short_side=48)
EVERYTHING = AugmentOptions(vertical_flip=0.5, crop=0.5, mosaic=0.5, color=0.5)


def data_of(folder: Path, count: int, sizes: Sequence[tuple[int, int]] = ((40, 30),)) -> DetectionData:
    """Images of noise, each with an object and a crowd region."""
    records = []
    for i in range(count):
        width, height = sizes[i % len(sizes)]
        path = noise_image(folder / f"{i}.png", width, height, seed=i)
        boxes = np.array([[0, 0, width / 2, height], [width / 2, 0, width, height]], np.float32)
        crowd, areas = np.array([False, True]), np.full(2, 600, np.float32)
        records.append(ImageRecord(path, 100 + i, width, height, boxes, np.array([i % 2, 1]), crowd, areas))
    return DetectionData("test", folder, "train", ("cat", "dog"), (5, 9), tuple(records))


def dataset(data: DetectionData, **options: object) -> DetectionDataset:
    transform = TrainTransform(EVERYTHING, PREPROCESS)
    return DetectionDataset(data, PREPROCESS, **({"transform": transform, "epochs": 10} | options))  # type: ignore[arg-type]


def test_pixels_are_a_function_of_seed_epoch_and_index(tmp_path: Path) -> None:
    data = data_of(tmp_path, 5)
    first = dataset(data, seed=3)
    expected = {(e, i): first[e, i] for e in (0, 1) for i in range(5)}
    torch.manual_seed(99)
    np.random.seed(99)  # noqa: NPY002
    random.seed(99)
    second = dataset(data, seed=3)
    for (epoch, index), (image, targets, number) in reversed(expected.items()):
        again, again_targets, _ = second[epoch, index]
        assert number == index
        assert again.equal(image)
        assert again_targets.boxes.equal(targets.boxes)
    assert not all(expected[0, i][0].equal(expected[1, i][0]) for i in range(5))
    other_seed = dataset(data, seed=4)
    assert not all(expected[0, i][0].equal(other_seed[0, i][0]) for i in range(5))


def test_a_transform_is_told_the_part_of_the_training_that_is_over(tmp_path: Path) -> None:
    seen: list[float] = []

    def transform(load: Callable[[int], Sample], index: int, count: int, progress: float) -> Sample:
        seen.append(progress)
        return load(index)

    samples = dataset(data_of(tmp_path, 2), transform=transform, epochs=4)
    for epoch in range(4):
        _ = samples[epoch, 0]
    assert seen == [0, 0.25, 0.5, 0.75]


def test_the_global_generator_is_left_alone(tmp_path: Path) -> None:
    before = torch.get_rng_state()
    dataset(data_of(tmp_path, 2))[0, 0]
    assert torch.get_rng_state().equal(before)


@pytest.mark.parametrize("workers", [2])
def test_workers_do_not_change_the_batches(tmp_path: Path, workers: int) -> None:
    data = data_of(tmp_path, 6)
    runs = []
    for count in (0, workers):
        batches = EpochBatches(6, 2, seed=1)
        loader = DataLoader(dataset(data), batch_sampler=batches, collate_fn=collate, num_workers=count)
        runs.append(list(loader))
    assert len(runs[0]) == 3
    for (a, a_targets, a_indices), (b, b_targets, b_indices) in zip(*runs, strict=True):
        assert a_indices == b_indices
        assert a.pixels.equal(b.pixels)
        assert a.sizes == b.sizes
        assert all(x.boxes.equal(y.boxes) for x, y in zip(a_targets, b_targets, strict=True))


def test_evaluation_resizes_and_keeps_crowds_apart(tmp_path: Path) -> None:
    plain = dataset(data_of(tmp_path, 2), transform=None)
    image, targets, index = plain[7, 1]
    assert index == 1
    assert image.shape == (3, 48, 64)  # 40x30 times 1.6
    assert image.dtype == torch.uint8
    assert targets.boxes.tolist() == [[0, 0, 32, 48]]
    assert targets.labels.tolist() == [1]
    assert targets.ignore.tolist() == [[32, 0, 64, 48]]


def test_batches_go_through_every_sample_once_in_an_order_of_their_own() -> None:
    batches = EpochBatches(7, 3, seed=5)
    epochs = []
    for batches.epoch in (0, 1):
        given = list(batches)
        assert len(given) == len(batches) == 2  # the seventh sample makes no batch
        assert all(len(batch) == 3 and {epoch for epoch, *_ in batch} == {batches.epoch} for batch in given)
        epochs.append([index for batch in given for _, index, *_ in batch])
        assert len(set(epochs[-1])) == 6
        assert list(batches) == given
    assert epochs[0] != epochs[1]
    assert [i for batch in EpochBatches(7, 3, seed=6) for _, i, *_ in batch] != epochs[0]
    assert sorted(i for batch in EpochBatches(6, 3, seed=6) for _, i, *_ in batch) == list(range(6))


def test_a_resumed_epoch_is_the_tail_of_the_whole_one() -> None:
    batches = EpochBatches(20, 4, seed=0)
    batches.epoch = 3
    whole = list(batches)
    for start in range(6):
        batches.start = start
        assert list(batches) == whole[start:]


def test_fewer_samples_than_a_batch_make_one() -> None:
    batches = EpochBatches(3, 8, seed=0)
    assert len(batches) == 1
    assert sorted(i for _, i, *_ in next(iter(batches))) == [0, 1, 2]


def test_the_cache_stops_at_its_limit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """1 MiB is 1 048 576 bytes; 40x30 pixels take 3 600 and 700x499 take 1 047 900: only one of the two fits."""
    opened: list[str] = []
    import tightbox.data.dataset as module

    real = open_image
    monkeypatch.setattr(module, "open_image", lambda path, size: opened.append(path.name) or real(path, size))  # type: ignore[func-returns-value]
    data = data_of(tmp_path, 4, sizes=[(40, 30), (700, 499), (700, 499), (40, 30)])
    cached = dataset(data, transform=None, cache_mb=1)
    first = [cached[0, i][0] for i in range(4)]
    second = [cached[1, i][0] for i in range(4)]
    assert opened == ["0.png", "1.png", "2.png", "3.png", "1.png", "2.png"]
    assert all(a.equal(b) for a, b in zip(first, second, strict=True))
    opened.clear()
    uncached = dataset(data, transform=None, cache_mb=0)
    _ = uncached[0, 0], uncached[0, 0]
    assert opened == ["0.png", "0.png"]


def damage(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:200])


def test_an_unreadable_image_is_named_with_the_way_out(tmp_path: Path) -> None:
    data = data_of(tmp_path, 3)
    damage(tmp_path / "1.png")
    with pytest.raises(UserError, match=r"1\.png: .*--skip-unreadable true") as caught:
        dataset(data)[0, 1]
    assert "\n" not in str(caught.value)


def test_unreadable_images_are_passed_over_and_named_once(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data = data_of(tmp_path, 4)
    damage(tmp_path / "1.png")
    (tmp_path / "2.png").unlink()
    still = TrainTransform(AugmentOptions(flip=0, scale_min=1, scale_max=1, color=0), Preprocess())
    skipping = dataset(data, transform=still, skip_unreadable=True)
    image, targets, _ = skipping[0, 1]
    assert image.equal(skipping[0, 3][0])  # the next one that can be read,
    assert targets.labels.equal(skipping[0, 3][1].labels)  # with its own objects
    _ = skipping[1, 1]
    assert skipping.skipped == {1, 2}
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 2
    assert "1.png" in lines[0]
    assert "2.png: there is no such file" in lines[1]


def test_any_number_of_unreadable_images_in_a_row(tmp_path: Path) -> None:
    """As of a data set that is half downloaded: more than Python's calls may be nested."""
    (record, _) = data_of(tmp_path, 2).records
    missing = replace(record, path=tmp_path / "nowhere.png")
    data = replace(data_of(tmp_path, 2), records=(missing,) * 1500 + (record,))
    skipping = dataset(data, skip_unreadable=True)
    _ = skipping[0, 0]
    assert len(skipping.skipped) == 1500


def test_an_unreadable_image_is_grey_in_evaluation(tmp_path: Path) -> None:
    data = data_of(tmp_path, 2)
    damage(tmp_path / "1.png")
    skipping = dataset(data, transform=None, skip_unreadable=True)
    image, targets, index = skipping[0, 1]
    assert image.unique().tolist() == [114]
    assert index == 1
    assert len(targets) == (~data.records[1].crowd).sum()  # objects that now count as missed


def test_not_one_readable_image(tmp_path: Path) -> None:
    data = data_of(tmp_path, 2)
    for i in range(2):
        damage(tmp_path / f"{i}.png")
    with pytest.raises(UserError, match="not one image of the train split"):
        dataset(data, skip_unreadable=True)[0, 0]


@pytest.mark.parametrize(("indices", "batch_size"), [(range(7), 3), ([4, 1, 6], 2), ([], 2), (range(7), 100)])
def test_evaluation_loader_gives_every_sample_once(tmp_path: Path, indices: Sequence[int], batch_size: int) -> None:
    sizes = [(40, 30), (30, 40), (64, 20)]
    loader = evaluation_loader(dataset(data_of(tmp_path, 7, sizes), transform=None), indices, batch_size, workers=0)
    batches = list(loader)
    given = [index for _, _, numbers in batches for index in numbers]
    assert sorted(given) == sorted(indices)
    assert len(batches) == -(-len(indices) // batch_size)
    shapes = [sizes[index % 3] for index in given]
    assert shapes == sorted(shapes, key=lambda size: size[0] / size[1])  # like shapes go together
    for images, targets, numbers in batches:
        assert len(images) == len(targets) == len(numbers)
