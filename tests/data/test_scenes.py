from __future__ import annotations

import json
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tightbox.data import scenes
from tightbox.data.scenes import CLASS_NAMES, render_scene, write_scenes
from tightbox.errors import UserError

SEEDS = range(60)


def slow_tight_box(mask: np.ndarray) -> tuple[int, int, int, int]:
    """Pixel by pixel: the smallest box with every true pixel inside, pixel (x, y) being the square to (x+1, y+1)."""
    pixels = [(x, y) for y, row in enumerate(mask.tolist()) for x, shows in enumerate(row) if shows]
    xs, ys = zip(*pixels, strict=True)
    return min(xs), min(ys), max(xs) + 1, max(ys) + 1


def test_boxes_are_tight_around_what_shows() -> None:
    for seed in range(12):
        image, boxes, labels, masks = scenes._render(seed, (160, 128))
        assert image.size == (160, 128)
        assert masks.shape == (len(boxes), 128, 160)
        assert len(labels) == len(boxes)
        assert not (masks.sum(0) > 1).any()  # no pixel has two owners
        for box, mask in zip(boxes.tolist(), masks, strict=True):
            assert tuple(box) == slow_tight_box(mask)


def test_values_have_the_promised_types_and_ranges() -> None:
    for seed in SEEDS:
        image, boxes, labels = render_scene(seed, (192, 128))
        assert image.mode == "RGB"
        assert boxes.dtype == np.float32
        assert boxes.shape == (len(labels), 4)
        assert labels.dtype == np.int64
        assert set(labels.tolist()) <= set(range(len(CLASS_NAMES)))
        assert (boxes[:, :2] >= 0).all()
        assert (boxes[:, 2:] <= (192, 128)).all()
        assert (boxes[:, 2:] > boxes[:, :2]).all()


def test_the_same_seed_gives_the_same_scene_and_another_seed_another() -> None:
    first, again, other = render_scene(5), render_scene(5), render_scene(6)
    assert first[0].tobytes() == again[0].tobytes()
    assert first[1].tolist() == again[1].tolist()
    assert first[2].tolist() == again[2].tolist()
    assert first[0].tobytes() != other[0].tobytes()


def test_scenes_are_varied() -> None:
    rendered = [render_scene(seed) for seed in range(200)]
    counts = [len(labels) for _, _, labels in rendered]
    assert 2 <= counts.count(0) <= 25  # some empty, about one in twenty
    assert max(counts) >= 15  # some crowded
    classes = Counter(np.concatenate([labels for _, _, labels in rendered]).tolist())
    assert min(classes.values()) > 0.1 * classes.total()
    boxes = np.concatenate([boxes for _, boxes, _ in rendered])
    sides = (boxes[:, 2:] - boxes[:, :2]).max(1)
    assert sides.max() <= 200
    assert [bool(((sides >= low) & (sides < high)).any()) for low, high in ((8, 20), (20, 60), (60, 201))] == [True] * 3


def test_a_rectangle_covers_the_pixels_it_should() -> None:
    # Corners (10, 20) and (14.25, 22.75): 4 whole columns and a quarter, 2 whole rows and three quarters. With 3 x 3
    # subpixels of side 1/3, whose middles are at 1/6, 1/2 and 5/6, the quarter holds 1 and the three quarters 2 of 3.
    corners = np.array([[0.0, 0.0], [4.25, 0.0], [4.25, 2.75], [0.0, 2.75]])
    alpha, (x, y) = scenes._rasterise([corners], (10.0, 20.0))
    covered = alpha >= 128
    assert slow_tight_box(covered) == (10 - x, 20 - y, 14 - x, 23 - y)
    assert (alpha[20 - y : 22 - y, 10 - x : 14 - x] == 255).all()
    assert alpha[21 - y, 14 - x] == pytest.approx(255 / 3, abs=1)
    assert alpha[22 - y, 11 - x] == pytest.approx(255 * 2 / 3, abs=1)
    assert covered.sum() == 12  # 4 columns, 3 rows


def square(side: int, x: int, y: int) -> scenes.Coverage:
    return np.full((side, side), 255, np.uint8), (x, y)


def canvas() -> scenes._Canvas:
    return scenes._Canvas(np.zeros((64, 64, 3), np.float32))


def texture(side: int) -> scenes.Floats:
    return np.full((side, side, 3), 200.0, np.float32)


def test_a_later_object_takes_pixels_from_an_earlier_one() -> None:
    scene = canvas()
    scene.paint(square(10, 0, 0), texture(10), 0)
    scene.paint(square(10, 7, 0), texture(10), 1)
    assert scene.labels == [-1, 0, 1]
    assert slow_tight_box(scene.owner == 1) == (0, 0, 7, 10)
    assert slow_tight_box(scene.owner == 2) == (7, 0, 17, 10)


@pytest.mark.parametrize(
    ("shift", "painted"),
    [
        (7, True),  # hides 30 of 100 pixels, 70 % remain
        (5, False),  # hides 50, half would remain: less than 60 %
        (0, False),  # hides all
    ],
)
@pytest.mark.parametrize("label", [1, None])
def test_nothing_hides_too_much_of_an_object(shift: int, painted: bool, label: int | None) -> None:
    scene = canvas()
    scene.paint(square(10, 0, 0), texture(10), 0)
    scene.paint(square(10, shift, 0), 0 * texture(10), label)
    assert (scene.pixels[5, shift, 0] == 0) == painted
    assert (scene.owner == 1).sum() == (10 * shift if painted else 100)


@pytest.mark.parametrize(
    ("x", "kept"),
    [
        (-3, 70),  # 7 of 10 columns inside
        (-5, 0),  # 5 of 10: left out
        (57, 70),  # 7 columns at the right edge
        (-30, 0),  # wholly outside
        (90, 0),  # wholly outside at the other side
    ],
)
def test_objects_cut_by_the_edge(x: int, kept: int) -> None:
    scene = canvas()
    scene.paint(square(10, x, 20), texture(10), 0)
    assert (scene.owner == 1).sum() == kept


def test_every_object_shows_enough(monkeypatch: pytest.MonkeyPatch) -> None:
    canvases: list[scenes._Canvas] = []

    class Recorded(scenes._Canvas):
        def __init__(self, pixels: scenes.Floats) -> None:
            super().__init__(pixels)
            canvases.append(self)

    monkeypatch.setattr(scenes, "_Canvas", Recorded)
    for seed in SEEDS:
        _, _, _, masks = scenes._render(seed, (128, 128))
        showing = masks.sum((1, 2))
        assert (showing >= canvases[-1].needed[1:]).all()
        assert canvases[-1].showing[1:].tolist() == showing.tolist()


def test_write_scenes_is_a_coco_data_set(tmp_path: Path) -> None:
    steps: list[tuple[int, int]] = []
    paths = write_scenes(tmp_path, {"train": 5, "val": 2}, 3, (96, 64), lambda done, total: steps.append((done, total)))

    assert paths == {"train": tmp_path / "train.json", "val": tmp_path / "val.json"}
    assert steps == [(i, 7) for i in range(1, 8)]
    content = json.loads(paths["train"].read_text())
    assert [category["name"] for category in content["categories"]] == list(CLASS_NAMES)
    assert [image["id"] for image in content["images"]] == [1, 2, 3, 4, 5]
    for row in content["images"]:
        with Image.open(tmp_path / "images" / row["file_name"]) as image:
            assert image.size == (row["width"], row["height"]) == (96, 64)
    ids = [row["id"] for row in content["annotations"]]
    assert ids == list(range(1, len(ids) + 1))
    for row in content["annotations"]:
        x, y, width, height = row["bbox"]
        assert 0 <= x < x + width <= 96
        assert 0 <= y < y + height <= 64
        assert row["area"] == width * height
        assert 1 <= row["category_id"] <= len(CLASS_NAMES)


def test_the_same_seed_writes_the_same_bytes_and_more_scenes_begin_with_the_fewer(tmp_path: Path) -> None:
    for name, splits, seed in (("a", {"train": 3}, 0), ("b", {"val": 1, "train": 4}, 0), ("c", {"train": 3}, 1)):
        write_scenes(tmp_path / name, splits, seed, (64, 64))
    a, b, c = ([(tmp_path / n / f"images/train_{i:05d}.jpg").read_bytes() for i in (1, 2, 3)] for n in "abc")
    assert a == b
    assert a != c
    annotations = [json.loads((tmp_path / n / "train.json").read_text())["annotations"] for n in "ab"]
    assert annotations[0] == annotations[1][: len(annotations[0])]
    assert (tmp_path / "b/images/val_00001.jpg").read_bytes() not in b  # the splits differ


def test_too_small_a_scene_is_refused() -> None:
    with pytest.raises(UserError, match="at least 64 x 64"):
        render_scene(0, (63, 300))


def test_a_folder_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="cannot write"):
        write_scenes(tmp_path / "file", {"train": 1}, size=(64, 64))
    assert not (tmp_path / "file.json").exists()
