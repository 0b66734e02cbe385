"""UnitBox's targets against a pixel-by-pixel reference and hand-made cases."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from tests.helpers.models import targets_of
from tests.helpers.one_image import pixel_regions
from tightbox import assigners
from tightbox.assigners import BACKGROUND, IGNORED
from tightbox.boxes import decode_distances
from tightbox.structures import Targets

pytestmark = pytest.mark.usefixtures("device")

SIZE = (12, 16)


def lies_on(x: int, y: int, box: Sequence[float], shape: str, scale: float = 1.0) -> bool:
    """Whether the pixel (x, y) lies on the object, or its middle part, one pixel at a time."""
    x1, y1, x2, y2 = box
    w, h = scale * (x2 - x1), scale * (y2 - y1)
    dx, dy = x + 0.5 - (x1 + x2) / 2, y + 0.5 - (y1 + y2) / 2
    if x == (x1 + x2) / 2 // 1 and y == (y1 + y2) / 2 // 1:
        return True
    if shape == "box":
        return abs(dx) <= w / 2 and abs(dy) <= h / 2
    # (dx / (w/2))² + (dy / (h/2))² ≤ 1 without a division by 0.
    return w * h > 0 and (2 * dx * h) ** 2 + (2 * dy * w) ** 2 <= (w * h) ** 2


def reference(
    boxes: Sequence[tuple[float, ...]],
    labels: list[int],
    ignore: Sequence[tuple[float, ...]],
    shape: str,
    scale: float,
) -> tuple[torch.Tensor, torch.Tensor]:
    confidence = torch.zeros(2, *SIZE)
    matched = torch.full(SIZE, BACKGROUND)
    for y in range(SIZE[0]):
        for x in range(SIZE[1]):
            if any(lies_on(x, y, region, "box") for region in ignore):
                matched[y, x] = IGNORED
            least = float("inf")
            for g, (box, label) in enumerate(zip(boxes, labels, strict=True)):
                if lies_on(x, y, box, shape, scale):
                    confidence[label, y, x] = 1
                    matched[y, x] = max(int(matched[y, x]), BACKGROUND)
                size = (box[2] - box[0]) * (box[3] - box[1])
                if lies_on(x, y, box, shape) and size < least:
                    least, matched[y, x] = size, g
    return confidence, matched


# Eighths of a pixel: sums, differences and halves are exact in float32.
corner_and_size = st.tuples(st.integers(0, 120), st.integers(0, 88), st.integers(1, 70), st.integers(1, 70))
boxes_inside = st.lists(
    corner_and_size.map(lambda b: (b[0] / 8, b[1] / 8, min(b[0] + b[2], 128) / 8, min(b[1] + b[3], 96) / 8)), max_size=5
)
shapes = st.sampled_from(["ellipse", "box"])


@given(
    boxes_inside,
    st.lists(st.integers(0, 1), min_size=5, max_size=5),
    boxes_inside,
    shapes,
    st.sampled_from([1.0, 0.5, 0.25]),
)
def test_equals_the_reference(
    boxes: Sequence[tuple[float, ...]],
    labels: list[int],
    ignore: Sequence[tuple[float, ...]],
    shape: Any,
    scale: float,
) -> None:
    labels = labels[: len(boxes)]
    targets = targets_of(*boxes, labels=labels, ignore=ignore)
    maps = pixel_regions(SIZE, targets, classes=2, shape=shape, scale=scale)
    confidence, matched = reference(boxes, labels, ignore, shape, scale)
    assert torch.equal(maps.confidence, confidence)
    assert torch.equal(maps.matched, matched)
    positive = maps.matched >= 0
    y, x = positive.nonzero().unbind(1)
    rebuilt = decode_distances(torch.stack([x, y], 1) + 0.5, maps.distances[:, y, x].T)
    assert torch.equal(rebuilt, targets.boxes[maps.matched[y, x]])
    assert (maps.distances[:, ~positive] == 0).all()


def test_by_hand() -> None:
    # Box 5x3 from (2, 1): its centre is (4.5, 2.5) and the radii 2.5 and 1.5. In the row of the centre every pixel is
    # in; one row up dy = 1, so |dx| ≤ 2.5·√(1 − 1/2.25) = 1.86: three pixels.
    maps = pixel_regions((5, 9), targets_of((2, 1, 7, 4)))
    assert maps.confidence[0].int().tolist() == [
        [0, 0, 0, 0, 0, 0, 0, 0, 0],
        [0, 0, 0, 1, 1, 1, 0, 0, 0],
        [0, 0, 1, 1, 1, 1, 1, 0, 0],
        [0, 0, 0, 1, 1, 1, 0, 0, 0],
        [0, 0, 0, 0, 0, 0, 0, 0, 0],
    ]
    assert maps.distances[:, 2, 3].tolist() == [1.5, 1.5, 3.5, 1.5]  # l, t, r, b from (3.5, 2.5)
    assert torch.equal(maps.matched >= 0, maps.confidence[0] == 1)
    full = pixel_regions((5, 9), targets_of((2, 1, 7, 4)), shape="box")
    assert full.confidence[0, 1:4, 2:7].all()
    assert full.confidence.sum() == 15


def test_the_smaller_wins_and_of_equals_the_first() -> None:
    maps = pixel_regions(SIZE, targets_of((4, 4, 8, 8), (0, 0, 12, 12), (4, 4, 8, 8)), shape="box")
    assert (maps.matched[4:8, 4:8] == 0).all()
    assert (maps.matched == 1).sum() == 144 - 16
    assert maps.confidence[0, :12, :12].all()


def test_a_pixel_is_positive_for_every_class_on_it() -> None:
    maps = pixel_regions(SIZE, targets_of((0, 0, 12, 12), (4, 4, 8, 8), labels=[0, 1]), classes=2, shape="box")
    assert maps.confidence.sum(dim=(1, 2)).tolist() == [144, 16]
    assert (maps.matched[4:8, 4:8] == 1).all()


@pytest.mark.parametrize(
    ("box", "x", "y"),
    [
        ((5, 3, 6, 4), 5, 3),  # one pixel
        ((5.6, 3.7, 5.9, 3.8), 5, 3),  # less than one, beside its centre
        ((5.8, 3.2, 6.4, 3.4), 6, 3),  # on two pixels; the centre is 6.1
        ((0, 0, 0.1, 0.1), 0, 0),  # in the corner
        ((15.9, 11.9, 16, 12), 15, 11),  # in the other
    ],
)
@pytest.mark.parametrize("shape", ["ellipse", "box"])
def test_the_smallest_objects_have_a_pixel(box: tuple[float, ...], x: int, y: int, shape: Any) -> None:
    targets = targets_of((0, 0, 16, 12), box)
    maps = pixel_regions(SIZE, targets, shape=shape)
    assert (maps.matched == 1).nonzero().tolist() == [[y, x]]
    assert maps.confidence[0, y, x] == 1
    rebuilt = decode_distances(torch.tensor([x + 0.5, y + 0.5]), maps.distances[:, y, x])
    torch.testing.assert_close(rebuilt, targets.boxes[1], rtol=0, atol=1e-6)


def test_ignored_regions_give_way_to_objects() -> None:
    maps = pixel_regions(SIZE, targets_of((4, 4, 8, 8), ignore=[(6, 0, 16, 12)]))
    on_object = maps.confidence[0] == 1
    assert (maps.matched[on_object] == 0).all()
    expected = torch.zeros(SIZE, dtype=torch.bool)
    expected[:, 6:] = True
    assert torch.equal(maps.matched == IGNORED, expected & ~on_object)


def test_the_confident_region_may_be_the_middle_of_what_learns_the_box() -> None:
    # Two boxes that touch: whole, their regions are one; halved, they are 2 wide around x = 4 and 8, with a gap.
    maps = pixel_regions((6, 12), targets_of((2, 1, 6, 5), (6, 1, 10, 5)), shape="box", scale=0.5)
    assert maps.confidence[0, 2].int().tolist() == [0, 0, 0, 1, 1, 0, 0, 1, 1, 0, 0, 0]
    assert maps.confidence.sum() == 8
    assert maps.matched[1].tolist() == [-1, -1, 0, 0, 0, 0, 1, 1, 1, 1, -1, -1]


def test_no_objects_and_objects_off_the_map() -> None:
    for targets in (Targets.of(torch.zeros(0, 4), torch.zeros(0)), targets_of((20, 0, 24, 4), (-9, -9, -2, -2))):
        maps = pixel_regions(SIZE, targets)
        assert maps.confidence.shape == (1, *SIZE)
        assert maps.distances.shape == (4, *SIZE)
        assert not maps.confidence.any()
        assert (maps.matched == BACKGROUND).all()


def test_an_object_partly_off_the_map_keeps_its_whole_box() -> None:
    maps = pixel_regions(SIZE, targets_of((-4, 2, 4, 6)), shape="box")
    assert maps.distances[:, 3, 0].tolist() == [4.5, 1.5, 3.5, 2.5]


@given(st.lists(st.tuples(boxes_inside, boxes_inside), min_size=1, max_size=4), shapes)
def test_a_batch_equals_its_images(images: Sequence[Any], shape: Any) -> None:
    targets = [targets_of(*boxes, ignore=ignore) for boxes, ignore in images]
    confidence, matched = assigners.pixel_regions(SIZE, targets, shape=shape, scale=0.5)
    for i, target in enumerate(targets):
        alone = pixel_regions(SIZE, target, shape=shape, scale=0.5)
        assert confidence[i].equal(alone.confidence)
        assert matched[i].equal(alone.matched)
