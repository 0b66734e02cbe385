from __future__ import annotations

from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image, ImageColor

from tightbox import draw
from tightbox.draw import CROWDED, INK, PALETTE, PAPER, draw_detections, image_grid
from tightbox.errors import UserError
from tightbox.structures import Detections, Targets

NAMES = ["fish", "crab", "a class with quite a long name"]
GREY = (120, 121, 122)


def grey(width: int = 160, height: int = 160) -> Image.Image:
    return Image.new("RGB", (width, height), GREY)


def draw_boxes(
    image: Image.Image, boxes: Any, labels: Any, class_names: list[str], scores: Any = None, ious: Any = None
) -> Image.Image:
    found = SimpleNamespace(boxes=boxes, labels=labels, scores=scores, ious=ious, outer=None, inner=None)
    return draw_detections(image, found, class_names)


def pixels(image: Image.Image) -> np.ndarray:
    return np.asarray(image)


def test_the_line_encloses_the_box_and_leaves_its_inside_alone() -> None:
    # At 160 x 160 the line is 1 pixel wide. The box covers columns 40..79 and rows 60..99, so the line runs through
    # columns 39 and 80, rows 59 and 100, and the rim around it through 38 and 81, 58 and 101.
    drawn = pixels(draw_boxes(grey(), [[40, 60, 80, 100]], [0], NAMES))
    colour, rim = ImageColor.getrgb(PALETTE[0]), ImageColor.getrgb(INK)
    assert (drawn[60:100, 40:80] == GREY).all()
    assert [tuple(drawn[y, x]) for y, x in ((80, 39), (80, 80), (100, 60))] == [colour] * 3
    assert [tuple(drawn[y, x]) for y, x in ((80, 38), (80, 81), (101, 60))] == [rim] * 3
    assert (drawn[102:] == GREY).all()


def test_the_image_given_stays_as_it_was() -> None:
    image = grey()
    draw_boxes(image, [[10, 10, 90, 90]], [1], NAMES, [0.5])
    assert (pixels(image) == GREY).all()


@pytest.mark.parametrize("mode", ["L", "RGBA", "P", "1"])
def test_any_kind_of_image(mode: str) -> None:
    drawn = draw_boxes(grey().convert(mode), [[10, 10, 90, 90]], [1], NAMES)
    assert (drawn.mode, drawn.size) == ("RGB", (160, 160))


@pytest.mark.parametrize(
    ("name", "scores", "ious", "expected"),
    [
        ("fish", None, None, ["fish"]),  # truth
        ("fish", [0.826], None, ["fish", "0.83"]),  # a detector without estimate
        ("fish", [0.83], [0.71], ["fish", "0.83", "IoU 0.71"]),  # with one
        ("fish", [0.834], [0.826], ["fish", "0.83"]),  # that reads like the score
        (None, [0.83], None, ["0.83"]),  # crowded
        (None, None, None, []),  # crowded truth
    ],
)
def test_words(name: str | None, scores: Any, ious: Any, expected: list[str]) -> None:
    assert draw._words(0, name, scores, ious) == expected


def linear(channel: int) -> float:
    return channel / 255 / 12.92 if channel <= 10 else ((channel / 255 + 0.055) / 1.055) ** 2.4


@pytest.mark.parametrize("colour", PALETTE)
def test_text_on_every_plate_meets_wcag_aa(colour: str) -> None:
    """WCAG 2: the contrast (lighter + 0.05) / (darker + 0.05) of relative luminances is at least 4.5."""
    lights = [
        np.dot([linear(c) for c in ImageColor.getrgb(name)[:3]], [0.2126, 0.7152, 0.0722])
        for name in (colour, draw._ink_on(colour))
    ]
    assert (max(lights) + 0.05) / (min(lights) + 0.05) >= 4.5


corner = st.integers(0, 200)


@given(corners=st.tuples(corner, corner, corner, corner), size=st.tuples(st.integers(1, 200), st.integers(1, 120)))
def test_plates_stay_inside_the_image(corners: tuple[int, ...], size: tuple[int, int]) -> None:
    box = np.array([*np.minimum(corners[:2], corners[2:]), *np.maximum(corners[:2], corners[2:])])
    (x, y), _ = draw._place(*size, box, box[None], np.zeros((0, 4), int), (200, 200))
    assert 0 <= x <= x + size[0] <= 200
    assert 0 <= y <= y + size[1] <= 200


def test_a_plate_avoids_other_boxes_and_plates() -> None:
    box, nothing = np.array([50, 50, 80, 80]), np.zeros((0, 4), int)
    above = np.array([[45, 30, 90, 45]])
    below = np.array([[40, 80, 90, 100]])
    limits = (200, 200)
    assert draw._place(20, 10, box, box[None], nothing, limits) == ((50, 40), 0)
    assert draw._place(20, 10, box, np.stack([box, above[0]]), nothing, limits) == ((50, 80), 0)
    assert draw._place(20, 10, box, np.stack([box, above[0]]), below, limits) == ((80, 50), 0)


def test_a_box_around_it_does_not_drive_a_plate_away() -> None:
    box, around = np.array([50, 50, 80, 80]), np.array([0, 0, 200, 200])
    assert draw._place(20, 10, box, np.stack([box, around]), np.zeros((0, 4), int), (200, 200)) == ((50, 40), 0)


def test_tags_too_wide_for_the_image_are_shortened() -> None:
    # 40 x 40 pixels hold no long name, and 10-pixel letters fit a short one only.
    box = [[5, 20, 35, 35]]
    bare = draw_boxes(grey(40, 40), box, [2], NAMES)
    short = draw_boxes(grey(40, 40), box, [0], NAMES, [0.9])
    assert (pixels(bare)[:18] == GREY).all()
    assert (pixels(short)[:18] != GREY).any()


def many(n: int) -> tuple[np.ndarray, np.ndarray]:
    lefts = 30.0 * np.arange(n)
    return np.stack([lefts, 0 * lefts + 30, lefts + 20, 0 * lefts + 50], 1), np.arange(n) % 2


@pytest.mark.parametrize(("n", "has_legend"), [(CROWDED - 1, False), (CROWDED, True)])
def test_crowded_images_get_a_legend_below(n: int, has_legend: bool) -> None:
    image = grey(30 * n, 80)
    drawn = draw_boxes(image, *many(n), NAMES, np.full(n, 0.5))
    assert drawn.width == image.width
    assert (drawn.height > image.height) == has_legend
    legend = {tuple(p) for p in pixels(drawn)[80:].reshape(-1, 3).tolist()}
    assert (ImageColor.getrgb(PALETTE[0]) in legend) == has_legend
    assert ImageColor.getrgb(PALETTE[2]) not in legend  # no box of the third class


def test_a_long_legend_takes_more_lines() -> None:
    labels, names = np.arange(CROWDED), [f"class number {i}" for i in range(CROWDED)]
    boxes = np.tile([10.0, 10.0, 30.0, 30.0], (CROWDED, 1))
    narrow, wide = draw_boxes(grey(200, 60), boxes, labels, names), draw_boxes(grey(2000, 60), boxes, labels, names)
    assert narrow.height > wide.height


@pytest.mark.parametrize(
    "boxes",
    [
        np.zeros((0, 4)),  # none
        [[float("nan"), 0, 5, 5]],  # not a number
        [[0, 0, float("inf"), 5]],  # endless
    ],
)
def test_nothing_to_draw_leaves_the_image(boxes: Any) -> None:
    assert (pixels(draw_boxes(grey(), boxes, [0] * len(boxes), NAMES, [0.5] * len(boxes))) == GREY).all()


@pytest.mark.parametrize(
    "box",
    [
        [-50, -50, 400, 400],  # larger than the image
        [300, 300, 400, 400],  # beyond it
        [50, 50, 20, 20],  # turned inside out
        [50, 50, 50, 50],  # a point
    ],
)
@pytest.mark.parametrize("size", [(160, 160), (1, 1), (3, 200)])
def test_odd_boxes_and_tiny_images_do_not_fail(box: list[float], size: tuple[int, int]) -> None:
    assert draw_boxes(grey(*size), [box], [0], NAMES, [0.5], [0.7]).size == size


def test_tensors_arrays_and_lists_draw_the_same() -> None:
    boxes, labels, scores, ious = [[20.0, 30.0, 90.0, 120.0]], [1], [0.5], [0.75]
    tensors = [torch.tensor(v, requires_grad=v is not labels) for v in (boxes, labels, scores, ious)]
    arrays = [np.array(v) for v in (boxes, labels, scores, ious)]
    expected = draw_boxes(grey(), boxes, labels, NAMES, scores, ious)
    assert draw_boxes(grey(), tensors[0], tensors[1], NAMES, tensors[2], tensors[3]) == expected
    assert draw_boxes(grey(), arrays[0], arrays[1], NAMES, arrays[2], arrays[3]) == expected


@pytest.mark.parametrize("label", [3, -1])
def test_a_label_without_name_is_named(label: int) -> None:
    with pytest.raises(UserError, match=f"label {label}, but there are names for 3"):
        draw_boxes(grey(), [[0, 0, 5, 5]], [label], NAMES)


@dataclass
class Plain:
    boxes: Any
    labels: Any


def test_grid_puts_truth_left_of_prediction_and_enlarges() -> None:
    # Two images of 64 x 32 at width 128: 4 columns of 128. gap = max(8, 128 // 32) = 8, header = 24. Columns start at
    # 8, 8 + 136, then 16 further to the right: 296, 432; the grid is 432 + 128 + 8 = 568 wide and 24 + 64 + 8 high.
    truth = Targets.of(torch.tensor([[10.0, 10.0, 30.0, 28.0]]), torch.tensor([0]))
    found = Detections(
        torch.tensor([[40.0, 10.0, 60.0, 28.0]]), torch.tensor([0.9]), torch.tensor([1]), torch.tensor([0.8])
    )
    grid = image_grid([(grey(64, 32), truth, found)] * 2, NAMES, width=128)

    assert grid.size == (568, 96)
    shown = pixels(grid)
    for left, colour, other in ((8, 0, 1), (144, 1, 0), (296, 0, 1), (432, 1, 0)):
        cell = {tuple(p) for p in shown[24:88, left : left + 128].reshape(-1, 3).tolist()}
        assert ImageColor.getrgb(PALETTE[colour]) in cell
        assert ImageColor.getrgb(PALETTE[other]) not in cell
    # The truth (10, 10, 30, 28) is doubled to (20, 20, 60, 56): the line, 1 pixel wide, is at column 19 and row 40.
    assert tuple(shown[24 + 40, 8 + 19]) == ImageColor.getrgb(PALETTE[0])
    assert tuple(shown[24 + 40, 8 + 20]) == GREY
    assert (shown[:24] != ImageColor.getrgb(PAPER)).any()  # captions
    assert (shown[88:] == ImageColor.getrgb(PAPER)).all()


def test_grid_of_different_shapes_and_of_plain_arrays() -> None:
    nothing = Plain(np.zeros((0, 4)), np.zeros(0, int))
    rows = [(grey(100, 50), nothing, nothing), (grey(50, 100), nothing, nothing), (grey(20, 20), nothing, nothing)]
    # pairs of 64-wide cells, one pair a band: heights 32, 128 and 64, a gap of 8 below each, a header of 24
    assert image_grid(rows, NAMES, pairs=1, width=64).height == 24 + 32 + 128 + 64 + 3 * 8


def test_crowded_grid_has_one_legend() -> None:
    crowd = Plain(*many(CROWDED))
    nothing = Plain(np.zeros((0, 4)), np.zeros(0, int))
    image = grey(30 * CROWDED, 80)
    plain = image_grid([(image, nothing, nothing)], NAMES)
    assert image_grid([(image, nothing, crowd)], NAMES).height > plain.height


def test_grid_of_nothing_is_refused() -> None:
    with pytest.raises(UserError, match="no image"):
        image_grid([], NAMES)
