"""IoU-guided suppression against Algorithm 1 of the paper as loops."""

import math
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torchvision.ops import nms

from tightbox.errors import UserError
from tightbox.ops import iou_guided_nms

pytestmark = pytest.mark.usefixtures("device")


def iou_in_own_precision(a: Any, b: Any) -> Any:
    """One pair in the arrays' own precision."""
    zero = a.dtype.type(0)
    overlap = [max(zero, min(a[i + 2], b[i + 2]) - max(a[i], b[i])) for i in (0, 1)]
    intersection = overlap[0] * overlap[1]
    areas = [(box[2] - box[0]) * (box[3] - box[1]) for box in (a, b)]
    union = areas[0] + areas[1] - intersection
    return intersection / union if union != 0 else 0.0


def algorithm_1(boxes: Any, scores: Any, ious: Any, threshold: float) -> Any:
    """(index, cluster score) in the order of the paper: descending predicted IoU, the first of equals first."""
    remaining, kept = list(range(len(boxes))), []
    while remaining:
        best = max(remaining, key=lambda i: (ious[i], -i))
        remaining.remove(best)
        score = scores[best]
        for j in list(remaining):
            if float(iou_in_own_precision(boxes[best], boxes[j])) > threshold:
                score = max(score, scores[j])
                remaining.remove(j)
        kept.append((best, score))
    return kept


def reference(boxes: torch.Tensor, scores: torch.Tensor, ious: torch.Tensor, threshold: float) -> Any:
    """Algorithm 1, then by descending cluster score."""
    kept = algorithm_1(boxes.cpu().numpy(), scores.tolist(), ious.tolist(), threshold)
    return sorted(kept, key=lambda pair: -pair[1])


def scattered_boxes(count: int, spread: float = 100.0, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    corner = torch.rand(count, 2, dtype=dtype) * spread
    return torch.cat([corner, corner + 4 + torch.rand(count, 2, dtype=dtype) ** 2 * 60], dim=1)


def assert_equals_reference(boxes: torch.Tensor, scores: torch.Tensor, ious: torch.Tensor, threshold: float) -> None:
    keep, clusters = iou_guided_nms(boxes, scores, ious, threshold)
    expected = reference(boxes, scores, ious, threshold)
    assert list(zip(keep.tolist(), clusters.tolist(), strict=True)) == expected


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("threshold", [0.0, 0.02, 0.3, 0.5, 0.9, 1.0])
def test_equals_algorithm_1_on_scattered_boxes(threshold: float, dtype: torch.dtype) -> None:
    boxes = scattered_boxes(150, dtype=dtype)
    assert_equals_reference(boxes, torch.rand(150), torch.rand(150), threshold)


@pytest.mark.parametrize("spread", [5.0, 100.0])
def test_several_blocks_of_rows(spread: float) -> None:
    boxes = scattered_boxes(1000, spread=spread)  # some 30 and 550 stay, and so the blocks have some 700 and 110 rows
    assert_equals_reference(boxes, torch.rand(1000), torch.rand(1000), 0.4)


def test_boxes_far_from_the_origin() -> None:
    # At 100000 numbers are 1/128 apart and twice the middle is rounded too.
    boxes = scattered_boxes(150, spread=30.0) / 4 + 1e5
    assert_equals_reference(boxes, torch.rand(150), torch.rand(150), 0.5)


@settings(deadline=None, max_examples=150)
@given(st.data())
def test_equals_algorithm_1_on_tied_input(data: st.DataObject) -> None:
    # Few distinct coordinates, scores and thresholds: equal IoUs, IoUs equal to the threshold, boxes without area and
    # inverted ones all occur.
    count = data.draw(st.integers(0, 14))
    small = st.integers(0, 5)
    boxes = data.draw(st.lists(st.tuples(small, small, small, small), min_size=count, max_size=count))
    level = st.lists(st.sampled_from([0.25, 0.5, 0.75]), min_size=count, max_size=count)
    tensor = torch.tensor(boxes, dtype=torch.float32).reshape(-1, 4)
    scores, ious = torch.tensor(data.draw(level)), torch.tensor(data.draw(level))
    assert_equals_reference(tensor, scores, ious, data.draw(st.sampled_from([0.0, 0.25, 1 / 3, 0.5, 0.6, 1.0])))


@pytest.mark.parametrize(
    ("threshold", "kept"),
    [
        (0.6, 1),  # 3 / 5 in float32 is 0.60000002, above 0.6 in float64: removed, and in the cluster
        (float(np.float32(3) / np.float32(5)), 2),  # equal is not above
    ],
)
def test_threshold_is_compared_as_nms_does(threshold: float, kept: Any) -> None:
    boxes = torch.tensor([[0.0, 0.0, 5.0, 1.0], [0.0, 0.0, 3.0, 1.0]])
    keep, clusters = iou_guided_nms(boxes, torch.tensor([0.1, 0.2]), torch.tensor([0.9, 0.8]), threshold)
    assert len(keep) == kept
    assert clusters[0].item() == pytest.approx(0.2)
    if boxes.device.type == "cpu":  # on a GPU it rounds the threshold
        assert len(nms(boxes, torch.tensor([0.9, 0.8]), threshold)) == kept


def test_a_removed_box_counts_for_its_first_cover_only() -> None:
    # B overlaps A and C by 8 / 12 each; A and C by 6 / 14 only. B has the best class score, and A the best IoU.
    boxes = torch.tensor([[0.0, 0.0, 10.0, 1.0], [2.0, 0.0, 12.0, 1.0], [4.0, 0.0, 14.0, 1.0]])
    scores, ious = torch.tensor([0.5, 0.9, 0.6]), torch.tensor([0.8, 0.1, 0.7])
    keep, clusters = iou_guided_nms(boxes, scores, ious, 0.5)
    assert keep.tolist() == [0, 2]
    assert clusters.tolist() == pytest.approx([0.9, 0.6])


def test_is_greedy_nms_where_the_iou_is_the_class_score() -> None:
    boxes, scores = scattered_boxes(300), torch.rand(300)
    keep, clusters = iou_guided_nms(boxes, scores, scores, 0.5)
    assert torch.equal(keep, nms(boxes, scores, 0.5))
    assert torch.equal(clusters, scores[keep])


def test_nan_infinite_and_inverted_boxes_stay_and_cover_nothing() -> None:
    inf, nan = math.inf, math.nan
    boxes = torch.tensor(
        [
            [0.0, 0.0, 10.0, 10.0],  # covers the next one
            [0.0, 0.0, 10.0, 9.0],
            [-inf, -inf, inf, inf],
            [nan, 0.0, 10.0, 10.0],
            [0.0, 0.0, 10.0, nan],
            [10.0, 0.0, 0.0, 10.0],
            [10.0, 10.0, 0.0, 0.0],
            [5.0, 5.0, 5.0, 5.0],
        ]
    )
    keep, clusters = iou_guided_nms(boxes, torch.linspace(0.1, 0.8, 8), torch.linspace(0.8, 0.1, 8), 0.5)
    assert sorted(keep.tolist()) == [0, 2, 3, 4, 5, 6, 7]
    assert clusters[keep == 0].item() == pytest.approx(0.2)


@pytest.mark.parametrize("apart", [1, 40])  # neighbouring labels do not meet either
@pytest.mark.parametrize("count", [60, 1500])  # torchvision changes its method at 1000
def test_batched_equals_each_class_by_itself(count: int, apart: int) -> None:
    boxes, scores = scattered_boxes(count), torch.rand(count)
    ious, labels = (torch.rand(count) * 20).round() / 20, torch.randint(7, (count,)) * apart
    keep, clusters = iou_guided_nms(boxes, scores, ious, 0.5, labels)
    expected = []
    for label in labels.unique():
        rows = (labels == label).nonzero().squeeze(1)
        kept = algorithm_1(boxes[rows].double().cpu().numpy(), scores[rows].tolist(), ious[rows].tolist(), 0.5)
        expected += [(rows[i].item(), score) for i, score in kept]
    expected.sort(key=lambda pair: (-pair[1], -ious[pair[0]].item(), pair[0]))
    assert list(zip(keep.tolist(), clusters.tolist(), strict=True)) == expected


def test_nothing_in_nothing_out() -> None:
    none = torch.zeros(0)
    for keep, clusters in (
        iou_guided_nms(torch.zeros(0, 4), none, none, 0.5),
        iou_guided_nms(torch.zeros(0, 4), none, none, 0.5, none.long()),
    ):
        assert (keep.shape, keep.dtype, clusters.shape) == ((0,), torch.int64, (0,))


def test_half_precision_boxes_and_scores() -> None:
    boxes = torch.tensor([[0.0, 0.0, 300.0, 300.0], [0.0, 0.0, 300.0, 290.0]]).half()  # areas beyond float16
    keep, clusters = iou_guided_nms(boxes, torch.tensor([0.5, 0.75]).half(), torch.tensor([0.5, 0.25]).half(), 0.5)
    assert (keep.tolist(), clusters.tolist()) == ([0], [0.75])


@pytest.mark.parametrize(
    ("lengths", "threshold", "message"),
    [
        ((3, 2, 3, 3), 0.5, "3 boxes, 2 scores and 3 predicted IoUs"),  # a score is missing
        ((3, 3, 4, 3), 0.5, "3 boxes, 3 scores and 4 predicted IoUs"),  # an IoU too many
        ((3, 3, 3, 1), 0.5, "1 labels for 3 boxes"),  # labels are missing
        ((3, 3, 3, 3), 1.5, "threshold is 1.5"),  # out of range
        ((3, 3, 3, 3), math.nan, "threshold is nan"),  # no number
    ],
)
def test_wrong_input_is_named(lengths: tuple[int, ...], threshold: float, message: str) -> None:
    boxes, scores, ious, labels = (torch.zeros(n) for n in lengths)
    with pytest.raises(UserError, match=message):
        iou_guided_nms(boxes[:, None].expand(-1, 4), scores, ious, threshold, labels.long())
