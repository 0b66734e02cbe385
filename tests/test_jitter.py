"""Jittered boxes: their IoU is uniform, for every shape and place of the ground-truth box."""

import math
from typing import Any

import pytest
import torch

from tightbox.boxes import iou
from tightbox.jitter import jitter_boxes

SIZE = (600, 800)
SHAPES = {
    "ordinary": (100.0, 100.0, 260.0, 220.0),
    "wide": (100.0, 300.0, 700.0, 310.0),
    "tall": (400.0, 10.0, 404.0, 590.0),
    "one pixel": (300.0, 300.0, 301.0, 301.0),
    "a tenth of a pixel, far from zero": (790.0, 590.0, 790.1, 590.1),
    "in a corner": (0.0, 0.0, 50.0, 80.0),
    "in the other corner": (760.0, 500.0, 800.0, 600.0),
    "from side to side": (0.0, 200.0, 800.0, 300.0),
    "the whole image": (0.0, 0.0, 800.0, 600.0),
}


def drawn(
    boxes: torch.Tensor, per_box: int, generator: torch.Generator | None = None, low: float = 0.5
) -> tuple[torch.Tensor, torch.Tensor]:
    return jitter_boxes(boxes.repeat_interleave(per_box, dim=0), torch.tensor(SIZE), generator, low)


def chi_square(ious: torch.Tensor, low: float, bins: int = 25) -> float:
    counts = torch.histc(ious.double(), bins, low, 1.0)
    expected = len(ious) / bins
    return ((counts - expected) ** 2 / expected).sum().item()


@pytest.mark.parametrize("low", [0.5, 0.2])
@pytest.mark.parametrize("shape", SHAPES)
def test_iou_is_uniform(shape: str, low: float) -> None:
    box = torch.tensor([SHAPES[shape]])
    _, ious = drawn(box, 20000, torch.Generator().manual_seed(1), low)
    assert ious.min() >= low
    assert ious.max() <= 1
    # 24 degrees of freedom: a uniform sample stays below 51.2 but for one time in a thousand.
    assert chi_square(ious, low) < 51.2


def test_ious_are_those_of_the_boxes_returned() -> None:
    boxes = torch.tensor(list(SHAPES.values()))
    jittered, ious = drawn(boxes, 50)
    assert torch.equal(ious, iou(jittered, boxes.repeat_interleave(50, dim=0)))


def test_boxes_stay_in_the_image_and_keep_their_area() -> None:
    jittered, _ = drawn(torch.tensor(list(SHAPES.values())), 500)
    assert (jittered >= 0).all()
    assert (jittered[:, 0::2] <= 800).all()
    assert (jittered[:, 1::2] <= 600).all()
    assert (jittered[:, 2:] > jittered[:, :2]).all()


def test_every_side_moves_out_and_in() -> None:
    box = torch.tensor([SHAPES["ordinary"]])
    jittered, _ = drawn(box, 4000)
    outwards = (jittered > box).float().mean(dim=0)
    torch.testing.assert_close(outwards, torch.full((4,), 0.5), atol=0.05, rtol=0)  # six standard deviations


def test_a_box_across_the_border_is_cut_first() -> None:
    boxes = torch.tensor([[-50.0, 100.0, 50.0, 200.0]])
    jittered, ious = drawn(boxes, 100)
    assert torch.equal(ious, iou(jittered, torch.tensor([[0.0, 100.0, 50.0, 200.0]])))
    assert ious.min() >= 0.5


def test_the_seed_decides() -> None:
    boxes = torch.tensor(list(SHAPES.values()))
    first, second, other = (drawn(boxes, 5, torch.Generator().manual_seed(s))[0] for s in (3, 3, 4))
    assert torch.equal(first, second)
    assert not torch.equal(first, other)


@pytest.mark.parametrize(("count", "per_box"), [(0, 5), (3, 0)])
def test_nothing_to_draw(count: int, per_box: int) -> None:
    jittered, ious = drawn(torch.tensor([[0.0, 0.0, 9.0, 9.0]]).expand(count, 4), per_box)
    assert (jittered.shape, ious.shape) == ((0, 4), (0,))


@pytest.mark.parametrize(
    "box",
    [
        (5.0, 5.0, 5.0, 9.0),  # no width
        (9.0, 5.0, 5.0, 9.0),  # inverted
        (900.0, 5.0, 950.0, 9.0),  # outside the image
        (math.nan, 5.0, 9.0, 9.0),  # NaN
    ],
)
def test_a_box_without_area_has_no_iou(box: Any) -> None:
    _, ious = drawn(torch.tensor([(0.0, 0.0, 9.0, 9.0), box]), 5)
    assert (ious[:5] >= 0.5).all()
    assert not (ious[5:] > 0).any()


def test_the_sides_move_by_different_amounts() -> None:
    sizes = torch.tensor([160.0, 120.0, 160.0, 120.0])
    box = torch.tensor([[100.0, 100.0, 260.0, 220.0]])
    moved = (drawn(box, 4000)[0].cpu() - box.cpu()).abs() / sizes.cpu()
    moved = moved[moved.amax(dim=1) > 1e-3]
    relative = moved / moved.amax(dim=1, keepdim=True)
    # The side that moves most is any of the four, the others are even over [0, 1]: (1 + 3 / 2) / 4 on average.
    assert relative.mean().item() == pytest.approx(0.625, abs=0.03)
