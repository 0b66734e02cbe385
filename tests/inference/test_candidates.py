from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch

import tightbox
from tests.helpers.data import three_images
from tests.helpers.models import same_detections, tiny_model, tiny_retinanet
from tightbox.data.records import DetectionData
from tightbox.errors import UserError
from tightbox.inference import candidates as module
from tightbox.inference.candidates import (
    cache_candidates,
    iterate_assigned,
    iterate_candidates,
    read_candidates,
    select_all,
)
from tightbox.inference.detect import Loading, detect_data
from tightbox.models import Detector, create_model
from tightbox.structures import Candidates, Detections


def tiny(name: str) -> Detector:
    torch.manual_seed(0)
    return (tiny_model() if name == "vfnet" else tiny_retinanet(top_k=20)).eval()


@pytest.fixture
def data(tmp_path: Path) -> DetectionData:
    return three_images(tmp_path)


@pytest.fixture(params=["vfnet", "iou_aware_retinanet"])
def model(request: pytest.FixtureRequest) -> Detector:
    return tiny(request.param)


@pytest.fixture
def checkpoint(model: Detector, tmp_path: Path) -> Path:
    return model.save(tmp_path / "model")


def calls(model: Detector) -> list[int]:
    """One entry for every time the network runs, from now on."""
    found: list[int] = []
    model.register_forward_hook(lambda *_: found.append(1))
    return found


def _ious(found: Detections) -> torch.Tensor:
    assert found.ious is not None
    return found.ious


def same(found: dict[int, Detections], expected: dict[int, Detections]) -> bool:
    return list(found) == list(expected) and all(
        same_detections(a, expected[i]) and torch.equal(_ious(a), _ious(expected[i])) for i, a in found.items()
    )


def test_kept_candidates_give_the_detections_without_the_network(
    model: Detector, checkpoint: Path, data: DetectionData
) -> None:
    expected = detect_data(model, data)
    runs, steps = calls(model), list[tuple[int, int]]()
    folder = cache_candidates(model, checkpoint, data, progress=lambda *step: steps.append(step))
    assert (len(runs), steps) == (1, [(3, 3)])
    assert folder.parent == checkpoint / "candidates"
    assert cache_candidates(model, checkpoint, data) == folder
    assert same(select_all(read_candidates(folder), data, model.select), expected)
    assert len(runs) == 1
    again = tightbox.load(checkpoint)
    assert cache_candidates(again, checkpoint, data) == folder
    assert sorted(path.name for path in folder.iterdir()) == ["00000.safetensors", "index.json"]


def test_several_files_hold_what_one_would(
    model: Detector, checkpoint: Path, data: DetectionData, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "IMAGES_PER_FILE", 2)
    expected = detect_data(model, data, loading=Loading(1))
    folder = cache_candidates(model, checkpoint, data, loading=Loading(1))
    assert sorted(path.name for path in folder.glob("*.safetensors")) == ["00000.safetensors", "00001.safetensors"]
    assert same(select_all(read_candidates(folder), data, model.select), expected)


def _touch(path: Path) -> None:
    os.utime(path, ns=(1, 1))


def test_what_changes_the_candidates_changes_the_folder(model: Detector, checkpoint: Path, data: DetectionData) -> None:
    folders = {cache_candidates(model, checkpoint, data)}
    runs = calls(model)

    _touch(data.records[0].path)  # another image of the same name
    folders.add(cache_candidates(model, checkpoint, data))
    folders.add(cache_candidates(model, checkpoint, replace(data, records=data.records[:2])))
    model.options = replace(model.options, top_k=7)
    folders.add(cache_candidates(model, checkpoint, data))
    model.preprocess = replace(model.preprocess, long_side=96)
    folders.add(cache_candidates(model, checkpoint, data))
    model.backbone.options = replace(model.backbone.options, res2net_pool=False)
    folders.add(cache_candidates(model, checkpoint, data))
    assert all(folder.exists() for folder in folders)
    model.head.classes.bias.data += 1  # type: ignore[union-attr, operator]
    model.save(checkpoint)
    last = cache_candidates(model, checkpoint, data)
    folders.add(last)
    assert len(folders) == 7
    assert [folder for folder in folders if folder.exists()] == [last]  # of the old weights nothing is left
    assert len(runs) == 6


def test_a_run_that_was_cut_off_is_done_again(model: Detector, checkpoint: Path, data: DetectionData) -> None:
    folder = cache_candidates(model, checkpoint, data)
    (folder / "index.json").unlink()
    (folder / "00000.safetensors").write_bytes(b"half")
    (folder / "00007.safetensors").write_bytes(b"old")
    runs = calls(model)
    assert cache_candidates(model, checkpoint, data) == folder
    assert len(runs) == 1
    assert not (folder / "00007.safetensors").exists()
    assert same(select_all(read_candidates(folder), data, model.select), detect_data(model, data))


def test_an_image_that_cannot_be_read_leaves_no_index(model: Detector, checkpoint: Path, data: DetectionData) -> None:
    data.records[1].path.write_bytes(b"no image")
    with pytest.raises(UserError, match=r"1\.png"):
        cache_candidates(model, checkpoint, data)
    assert not list(checkpoint.rglob("index.json"))
    folder = cache_candidates(model, checkpoint, data, loading=Loading(skip_unreadable=True))
    assert [image.index for image in read_candidates(folder)] == [0, 1, 2]


def test_shared_numbers_are_stored_once(data: DetectionData, tmp_path: Path) -> None:
    """VFNet's class score is its IoU estimate, and is so when read again."""
    for name, count in (("vfnet", 0), ("iou_aware_retinanet", 1)):
        model = tiny(name)
        folder = cache_candidates(model, model.save(tmp_path / name), data)
        stored = safetensors.torch.load_file(folder / "00000.safetensors")
        assert len(stored["ious"]) == count * len(stored["boxes"])
        for image in read_candidates(folder):
            assert image.candidates.ious is not None
            assert (image.candidates.ious is image.candidates.class_scores) is (name == "vfnet")


def test_a_detector_without_estimates_stores_none(data: DetectionData, tmp_path: Path) -> None:
    model = tiny("iou_aware_retinanet")
    plain = create_model(
        "iou_aware_retinanet",
        class_names=["cat", "dog"],
        backbone=model.backbone,
        preprocess=model.preprocess,
        channels=32,
        iou_head=False,
    )
    folder = cache_candidates(plain, plain.save(tmp_path / "plain"), data)
    found = [image.candidates for image in read_candidates(folder)]
    assert len(found) == 3
    assert all(candidates.ious is None and candidates.centerness is None for candidates in found)


def test_every_field_comes_back(model: Detector, checkpoint: Path, data: DetectionData) -> None:
    folder = cache_candidates(model, checkpoint, data)
    read = {image.index: (image.candidates, image.size) for image in read_candidates(folder)}
    for image in iterate_candidates(model, data):
        candidates, size = read[image.index]
        assert size == image.size == (64, 64)
        for name, value in vars(image.candidates).items():
            found = getattr(candidates, name)
            assert (found is None) is (value is None), name
            assert value is None or found.equal(value), name


def test_an_image_without_candidates(checkpoint: Path, model: Detector, data: DetectionData) -> None:
    whole = model.candidates

    def some(images: Any) -> list[Candidates]:
        return [found[:0] if i == 1 else found for i, found in enumerate(whole(images))]

    model.candidates = some  # type: ignore[method-assign]
    counts = [len(image.candidates) for image in read_candidates(cache_candidates(model, checkpoint, data))]
    assert sorted(count > 0 for count in counts) == [False, True, True]


def test_assigned_candidates_know_their_objects(model: Detector, data: DetectionData) -> None:
    for image in iterate_assigned(model, data, loading=Loading(2)):
        record = data.records[image.index]
        assert image.targets.boxes.tolist() == record.boxes.tolist()
        assert len(image.matched) == len(image.candidates)
        assert set(image.matched.tolist()) - {-1} <= set(range(len(record.boxes)))
        assert (image.matched >= 0).any() == bool(len(record.boxes))


def test_detections_are_in_pixels_of_the_original(model: Detector, checkpoint: Path, data: DetectionData) -> None:
    """The network saw 64 pixels; an image twice as wide has boxes twice as wide."""
    folder = cache_candidates(model, checkpoint, data)
    seen = select_all(read_candidates(folder), data, model.select)
    wide = replace(data, records=tuple(replace(record, width=128) for record in data.records))
    for index, found in select_all(read_candidates(folder), wide, model.select).items():
        torch.testing.assert_close(found.boxes, seen[index].boxes * torch.tensor([2.0, 1.0, 2.0, 1.0]))
