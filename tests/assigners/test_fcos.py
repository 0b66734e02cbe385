"""FCOS's assignment against a plain-Python reference and hand-made cases."""

import math
from collections.abc import Sequence

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from tests.helpers.models import targets_of
from tests.helpers.one_image import fcos_assign
from tightbox import assigners
from tightbox.assigners import BACKGROUND, assignment, level_points, per_point
from tightbox.structures import Targets

pytestmark = pytest.mark.usefixtures("device")

SIZES, STRIDES = [(8, 8), (4, 4)], [8, 16]
POINTS = level_points(SIZES, STRIDES, offset=0.5)
POINT_STRIDES = per_point(torch.tensor(STRIDES), SIZES)
RANGES = per_point(torch.tensor([[-1.0, 20.0], [20.0, math.inf]]), SIZES)
side = st.integers(0, 64)


def assign(targets: Targets, center_radius: float | None = None) -> torch.Tensor:
    return fcos_assign(POINTS, POINT_STRIDES, RANGES, targets, center_radius)


def reference(truths: Sequence[Sequence[float]], center_radius: float | None) -> list[int]:
    """One point and one object at a time."""
    matched = []
    for (x, y), stride, (least, most) in zip(POINTS.tolist(), POINT_STRIDES.tolist(), RANGES.tolist(), strict=True):
        smallest, learns = math.inf, BACKGROUND
        for g, (x1, y1, x2, y2) in enumerate(truths):
            inside = x1 < x < x2 and y1 < y < y2
            if center_radius is not None:
                reach = center_radius * stride
                inside = inside and abs(x - (x1 + x2) / 2) < reach and abs(y - (y1 + y2) / 2) < reach
            farthest = max(x - x1, y - y1, x2 - x, y2 - y)
            area = (x2 - x1) * (y2 - y1)
            if inside and least <= farthest <= most and area < smallest:
                smallest, learns = area, g
        matched.append(learns)
    return matched


@given(
    st.lists(st.tuples(side, side, side, side), max_size=5, unique_by=lambda b: (b[2] - b[0]) * (b[3] - b[1])),
    st.sampled_from([None, 0.5, 1.5]),
)
def test_equals_the_reference(boxes: Sequence[Sequence[float]], center_radius: float | None) -> None:
    # Distinct areas: which of two equally small objects a point learns is not defined.
    targets = Targets.of(torch.tensor(boxes), torch.zeros(len(boxes)))
    assert assign(targets, center_radius).tolist() == reference(boxes, center_radius)


def test_the_smaller_of_nested_objects_wins() -> None:
    matched = assign(targets_of((0, 0, 32, 32), (8, 8, 24, 24)))[:64].reshape(8, 8)
    # The points at 12 and 20 are inside both boxes and at most 32 - 12 = 20 from any side: both suit the level.
    assert (matched[1:3, 1:3] == 1).all()
    # From 4 the outer box's right side is 28 away, out of the level's range.
    assert (matched[0] == BACKGROUND).all()


@pytest.mark.parametrize(
    ("radius", "expected"),
    [
        (None, [0, 1, 2, 3, 4, 5, 6, 7]),  # every point of the row
        (1.5, [3, 4]),  # |x - 32| < 12: of 4, 12, 20, 28, 36, 44, ... two
        (2.0, [2, 3, 4, 5]),  # |x - 32| < 16
    ],
)
def test_centre_sampling_counts_in_strides(radius: float | None, expected: list[int]) -> None:
    ranges = torch.tensor([[-1.0, math.inf]]).expand(len(POINTS), 2)
    targets = targets_of((0, 24, 64, 40))
    matched = fcos_assign(POINTS, POINT_STRIDES, ranges, targets, radius)
    row = matched[:64].reshape(8, 8)[3]  # y = 28
    assert row.ge(0).nonzero().squeeze(1).tolist() == expected


def test_centre_region_is_clipped_to_the_box() -> None:
    # 1.5 strides of 8 reach 12 px around (32, 32), but the box only 6: points at 28 and 36 are inside, 20 is not.
    row = assign(targets_of((26, 26, 38, 38)), center_radius=1.5)[:64].reshape(8, 8)[3]
    assert row.tolist() == [-1, -1, -1, 0, 0, -1, -1, -1]


def test_a_point_on_the_border_is_outside() -> None:
    assert (assign(targets_of((4, 4, 11, 11))) == BACKGROUND).all()
    assert assign(targets_of((3, 3, 11, 11)))[0] == 0


def test_no_objects() -> None:
    matched = assign(Targets.of(torch.zeros(0, 4), torch.zeros(0)))
    assert matched.dtype == torch.int64
    assert (matched == BACKGROUND).all()
    assert matched.shape == (80,)


@given(
    st.lists(st.lists(st.tuples(side, side, side, side), max_size=4), min_size=1, max_size=4),
    st.sampled_from([None, 1.5]),
    st.sampled_from([0, 700, 2**25]),
)
def test_a_batch_equals_its_images(
    images: list[list[tuple[int, ...]]], center_radius: float | None, at_once: int
) -> None:
    targets = [Targets.of(torch.tensor(boxes), torch.zeros(len(boxes))) for boxes in images]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(assignment, "PAIRS_AT_ONCE", at_once)
        together = assigners.fcos_assign(POINTS, POINT_STRIDES, RANGES, targets, center_radius)
    assert together.equal(torch.stack([assign(target, center_radius) for target in targets]))
