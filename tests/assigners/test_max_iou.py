"""Max-IoU assignment against loops over anchors and objects, and hand-made cases."""

import math
from collections.abc import Sequence

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from tests.helpers.arithmetic import area, intersection, iou_of_two
from tests.helpers.models import exact_targets
from tests.helpers.one_image import max_iou
from tightbox import assigners
from tightbox.assigners import BACKGROUND, IGNORED, assignment
from tightbox.errors import UserError
from tightbox.structures import Targets

pytestmark = pytest.mark.usefixtures("device")

# Few whole coordinates, so that boxes are often equal, without area or inverted, and IoUs tie or meet a threshold.
coordinate = st.integers(0, 6).map(float)
box = st.tuples(coordinate, coordinate, coordinate, coordinate)
boxes = st.lists(box, max_size=6)


def reference(
    anchors: Sequence[Sequence[float]],
    truths: Sequence[Sequence[float]],
    regions: Sequence[Sequence[float]],
    usable: list[bool],
    positive: float,
    negative: float,
    low_quality: bool,
    ignore_iof: float | None,
) -> list[int]:
    """The rules one after another, for one anchor after another."""
    overlaps = [[iou_of_two(a, t) if fine else 0.0 for t in truths] for a, fine in zip(anchors, usable, strict=True)]
    matched = []
    for row in overlaps:
        best = max(row, default=-1.0)
        if best >= positive and best > 0:
            matched.append(row.index(best))
        else:
            matched.append(IGNORED if best >= negative else BACKGROUND)
    if low_quality:
        for g in range(len(truths)):  # a later object takes an anchor from an earlier one
            highest = max((row[g] for row in overlaps), default=0.0)
            for n, row in enumerate(overlaps):
                if row[g] == highest > 0:
                    matched[n] = g
    for n, a in enumerate(anchors):
        left_out = ignore_iof is not None and any(intersection(a, region) > ignore_iof * area(a) for region in regions)
        if left_out and matched[n] == BACKGROUND:
            matched[n] = IGNORED
        if not usable[n]:
            matched[n] = IGNORED
    return matched


def tensor(rows: Sequence[Sequence[float]]) -> torch.Tensor:
    return torch.tensor(rows, dtype=torch.float64).reshape(-1, 4)


def in_double(truths: Sequence[Sequence[float]], regions: Sequence[Sequence[float]] = ()) -> Targets:
    return exact_targets(tensor(truths), tensor(regions))


@given(
    boxes,
    boxes,
    boxes,
    st.lists(st.booleans(), min_size=6, max_size=6),
    st.sampled_from([(0.5, 0.4), (0.5, 0.5), (1.0, 0.0), (0.25, 0.0), (0.0, 0.0), (1.0, 1.0)]),
    st.booleans(),
    st.sampled_from([None, 0.0, 0.5]),
)
def test_equals_loops(
    anchors: Sequence[Sequence[float]],
    truths: Sequence[Sequence[float]],
    regions: Sequence[Sequence[float]],
    valid: list[bool],
    thresholds: tuple[float, float],
    low_quality: bool,
    ignore_iof: float | None,
) -> None:
    valid = valid[: len(anchors)]
    arguments = (*thresholds, low_quality, ignore_iof)
    found = max_iou(tensor(anchors), in_double(truths, regions), *arguments, valid=torch.tensor(valid).bool())
    matched = reference(anchors, truths, regions, valid, *arguments)
    assert found.tolist() == matched
    assert found.dtype == torch.int64


@given(boxes, boxes)
def test_without_a_mask_every_anchor_counts(
    anchors: Sequence[Sequence[float]], truths: Sequence[Sequence[float]]
) -> None:
    everywhere = torch.ones(len(anchors), dtype=torch.bool)
    unmasked = max_iou(tensor(anchors), in_double(truths))
    assert unmasked.equal(max_iou(tensor(anchors), in_double(truths), valid=everywhere))


@pytest.mark.parametrize(
    ("right", "matched"),
    [
        (10.0, 0),  # the object itself
        (5.0, 0),  # IoU 50 / 100 is enough
        (4.9, IGNORED),  # 0.49 is neither
        (4.0, IGNORED),  # 0.4 still
        (3.9, BACKGROUND),  # 0.39
        (0.0, BACKGROUND),  # no area
    ],
)
def test_half_is_positive_and_under_two_fifths_is_background(right: float, matched: int) -> None:
    anchor = tensor([(0, 0, right, 10)])
    found = max_iou(anchor, in_double([(0, 0, 10, 10)]), low_quality=False)
    assert found.tolist() == [matched]


def test_an_object_claims_all_anchors_that_overlap_it_most() -> None:
    # 10x10 at 0 .. 10, and anchors that share 2, 2 and 1 of its columns: IoU 20 / 180 twice, and 10 / 190.
    anchors = tensor([(8, 0, 18, 10), (-8, 0, 2, 10), (9, 0, 19, 10)])
    found = max_iou(anchors, in_double([(0, 0, 10, 10)]))
    assert found.tolist() == [0, 0, BACKGROUND]
    assert max_iou(anchors, in_double([(0, 0, 10, 10)]), low_quality=False).tolist() == [BACKGROUND] * 3


def test_an_object_that_overlaps_nothing_claims_nothing() -> None:
    """All its IoUs are equal, and highest, at 0."""
    anchors = tensor([(0, 0, 10, 10), (20, 0, 30, 10)])
    found = max_iou(anchors, in_double([(50, 50, 60, 60), (5, 5, 5, 5), (0, 0, 10, 10)]))
    assert found.tolist() == [2, BACKGROUND]


def test_the_object_of_highest_iou_has_the_anchor_unless_another_claims_it() -> None:
    # The anchor has IoU 0.9 with the first object and 0.6 with the second, which no other anchor overlaps.
    anchors = tensor([(0, 0, 10, 10), (0, 0, 9, 10)])
    truths = [(0, 0, 9, 10), (4, 0, 10, 10)]
    assert max_iou(anchors[:1], in_double(truths), low_quality=False).tolist() == [0]
    # The second anchor is the first object itself. Its IoU with the second object is 50 / 100, the first's 60 / 100.
    assert max_iou(anchors, in_double(truths)).tolist() == [1, 0]
    # Alone it is the best anchor of both: the last has it.
    found = max_iou(anchors[:1], in_double(truths))
    assert found.tolist() == [1]
    assert max_iou(anchors[:1], in_double(truths[::-1])).tolist() == [1]


def test_equal_overlaps_without_claims_go_to_the_first() -> None:
    anchor = tensor([(0, 0, 10, 8)])
    twins = [(0, 0, 10, 10), (0, 0, 10, 10)]
    assert max_iou(anchor, in_double(twins), low_quality=False).tolist() == [0]
    assert max_iou(anchor, in_double(twins)).tolist() == [1]


def test_regions_leave_out_only_background() -> None:
    # The region covers the first two anchors whole and half of the third; the second learns the object in it.
    anchors = tensor([(0, 0, 8, 8), (10, 0, 18, 8), (16, 20, 24, 28)])
    targets = in_double([(10, 0, 18, 8)], regions=[(0, 0, 20, 40)])
    assert max_iou(anchors, targets).tolist() == [BACKGROUND, 0, BACKGROUND]
    assert max_iou(anchors, targets, ignore_iof=0.5).tolist() == [IGNORED, 0, BACKGROUND]
    assert max_iou(anchors, targets, ignore_iof=0.4).tolist() == [IGNORED, 0, IGNORED]


def test_an_anchor_in_the_padding_neither_learns_nor_stands_in_the_way() -> None:
    # The first anchor would be the object's best. Without it the second is, at IoU 20 / 180.
    anchors = tensor([(0, 0, 10, 10), (8, 0, 18, 10)])
    found = max_iou(anchors, in_double([(0, 0, 10, 10)]), valid=torch.tensor([False, True]))
    assert found.tolist() == [IGNORED, 0]


@pytest.mark.parametrize(("anchors", "truths"), [(0, 0), (0, 2), (3, 0)])
def test_nothing_to_assign(anchors: int, truths: int) -> None:
    found = max_iou(tensor([(0, 0, 8, 8)] * anchors), in_double([(0, 0, 9, 9)] * truths), ignore_iof=0.5)
    assert found.tolist() == [BACKGROUND] * anchors
    assert found.dtype == torch.int64


@pytest.mark.parametrize(
    ("positive", "negative"),
    [
        (0.4, 0.5),  # out of order
        (1.1, 0.4),
        (0.5, -0.1),
        (math.nan, 0.4),
        (0.5, math.nan),
    ],
)
def test_thresholds_that_make_no_sense(positive: float, negative: float) -> None:
    with pytest.raises(UserError, match="0 <= negative <= positive <= 1"):
        max_iou(tensor([(0, 0, 8, 8)]), in_double([]), positive, negative)


def test_half_precision_overlaps_are_computed_in_float32() -> None:
    # Areas of 90000 are beyond float16.
    anchor = torch.tensor([[0.0, 0.0, 300.0, 300.0]]).half()
    found = max_iou(anchor, Targets.of(anchor, torch.tensor([0])))
    assert found.tolist() == [0]


@given(
    st.lists(st.tuples(boxes, boxes), min_size=1, max_size=4),
    st.lists(box, min_size=3, max_size=3),
    st.lists(st.booleans(), min_size=12, max_size=12),
    st.sampled_from([(0.5, 0.4), (0.25, 0.0), (0.0, 0.0)]),
    st.sampled_from([None, 0.5]),
    st.sampled_from([0, 20, 2**25]),
)
def test_a_batch_equals_its_images(
    images: list[tuple[list[tuple[float, ...]], list[tuple[float, ...]]]],
    anchors: list[tuple[float, ...]],
    valid: list[bool],
    thresholds: tuple[float, float],
    ignore_iof: float | None,
    at_once: int,
) -> None:
    """With one set of anchors, with one for each image, in one part and in several."""
    targets = [in_double(truths, regions) for truths, regions in images]
    usable = torch.tensor(valid).view(4, 3)[: len(images)]
    own = torch.stack([tensor(anchors).roll(i, dims=0) for i in range(len(images))])
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(assignment, "PAIRS_AT_ONCE", at_once)
        for given_anchors, of_each in ((tensor(anchors), [tensor(anchors)] * len(images)), (own, list(own))):
            together = assigners.max_iou(given_anchors, targets, *thresholds, True, ignore_iof, usable)
            for i, (target, of_image) in enumerate(zip(targets, of_each, strict=True)):
                alone = max_iou(of_image, target, *thresholds, True, ignore_iof, valid=usable[i])
                assert together[i].equal(alone)
                truths, regions = images[i]
                expected = reference(
                    of_image.tolist(), truths, regions, usable[i].tolist(), *thresholds, True, ignore_iof
                )
                assert alone.tolist() == expected
