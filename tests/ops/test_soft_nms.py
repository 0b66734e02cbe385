"""Soft suppression against the paper's algorithm as loops."""

import math
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.helpers.arithmetic import iou_of_two, random_boxes
from tightbox.errors import UserError
from tightbox.ops import soft_nms

pytestmark = pytest.mark.usefixtures("device")


def algorithm(boxes: Any, scores: Any, method: str, iou_threshold: float, sigma: float, score_threshold: float) -> Any:
    """(index, fallen score), best first, the first of equals first."""
    scores = {i: s for i, s in enumerate(scores) if s > score_threshold}
    kept = []
    while scores:
        best = max(scores, key=lambda i: (scores[i], -i))
        kept.append((best, scores.pop(best)))
        for i in list(scores):
            overlap = iou_of_two(boxes[best], boxes[i])
            if method == "gaussian":
                scores[i] *= math.exp(-(overlap**2) / sigma)
            elif overlap >= iou_threshold:
                scores[i] *= 1 - overlap
            if scores[i] <= score_threshold:
                del scores[i]
    return kept


def assert_kept(found: tuple[torch.Tensor, torch.Tensor], expected: Any) -> None:
    assert found[0].tolist() == [index for index, _ in expected]
    assert found[1].tolist() == pytest.approx([score for _, score in expected], rel=1e-9)


@pytest.mark.parametrize("method", ["linear", "gaussian"])
@pytest.mark.parametrize(("iou_threshold", "sigma", "score_threshold"), [(0.3, 0.5, 0.001), (0.0, 0.1, 0.2), (1, 2, 0)])
def test_equals_the_loops(method: Any, iou_threshold: float, sigma: float, score_threshold: float) -> None:
    boxes, scores = random_boxes(120, dtype=torch.float64), torch.rand(120, dtype=torch.float64)
    numbers: dict[str, Any] = {"iou_threshold": iou_threshold, "sigma": sigma, "score_threshold": score_threshold}
    found = soft_nms(boxes, scores, method=method, **numbers)
    assert_kept(found, algorithm(boxes.tolist(), scores.tolist(), method, **numbers))


@settings(deadline=None, max_examples=100)
@given(st.data())
def test_equals_the_loops_on_tied_input(data: st.DataObject) -> None:
    count = data.draw(st.integers(0, 10))
    small = st.integers(0, 4)
    boxes = data.draw(st.lists(st.tuples(small, small, small, small), min_size=count, max_size=count))
    scores = data.draw(st.lists(st.sampled_from([0.0, 0.25, 0.5]), min_size=count, max_size=count))
    found = soft_nms(
        torch.tensor(boxes, dtype=torch.float64).reshape(-1, 4),
        torch.tensor(scores, dtype=torch.float64),
        iou_threshold=0.5,
    )
    assert_kept(found, algorithm(boxes, scores, "linear", 0.5, 0.5, 0.001))


def test_falls_by_hand() -> None:
    # IoU of the first with the second is 50 / 100; the third touches nobody.
    boxes = torch.tensor([[0.0, 0.0, 10.0, 10.0], [0.0, 0.0, 10.0, 5.0], [20.0, 0.0, 30.0, 10.0]])
    scores = torch.tensor([0.9, 0.8, 0.3])
    keep, decayed = soft_nms(boxes, scores, iou_threshold=0.5)  # from the threshold on
    assert keep.tolist() == [0, 1, 2]
    assert decayed.tolist() == pytest.approx([0.9, 0.4, 0.3])
    assert soft_nms(boxes, scores, iou_threshold=0.51)[1].tolist() == pytest.approx([0.9, 0.8, 0.3])
    _, decayed = soft_nms(boxes, scores, method="gaussian", sigma=0.25)
    assert decayed.tolist() == pytest.approx([0.9, 0.3, 0.8 * math.exp(-1)])


def test_equal_scores_go_in_order() -> None:
    boxes = torch.tensor([[20.0 * i, 0.0, 20.0 * i + 10, 10.0] for i in range(40)])
    keep, _ = soft_nms(boxes, torch.full((40,), 0.5))
    assert keep.tolist() == list(range(40))


@pytest.mark.parametrize("method", ["linear", "gaussian"])
def test_classes_leave_each_other_alone(method: Any) -> None:
    boxes, scores = random_boxes(90, dtype=torch.float64), torch.rand(90, dtype=torch.float64)
    labels = torch.randint(4, (90,)) * 30
    expected = []
    for label in labels.unique():
        rows = (labels == label).nonzero().squeeze(1)
        kept = algorithm(boxes[rows].tolist(), scores[rows].tolist(), method, 0.3, 0.5, 0.05)
        expected += [(rows[i].item(), score) for i, score in kept]
    expected.sort(key=lambda pair: -pair[1])
    assert_kept(soft_nms(boxes, scores, labels, method=method, score_threshold=0.05), expected)


@pytest.mark.parametrize("labels", [None, torch.arange(90) % 3])
def test_the_best_few_are_the_first_of_all(labels: torch.Tensor | None) -> None:
    boxes, scores = random_boxes(90, dtype=torch.float64), torch.rand(90)
    labels = None if labels is None else labels.to(boxes.device)
    keep, decayed = soft_nms(boxes, scores, labels)
    few, few_decayed = soft_nms(boxes, scores, labels, max_kept=7)
    assert torch.equal(few, keep[:7])
    assert torch.equal(few_decayed, decayed[:7])


def test_input_is_left_as_it_was() -> None:
    boxes, scores = torch.tensor([[0.0, 0.0, 10.0, 10.0]] * 2), torch.tensor([0.9, 0.8])
    soft_nms(boxes, scores)
    assert scores.tolist() == pytest.approx([0.9, 0.8])


@pytest.mark.parametrize("labels", [None, torch.zeros(0, dtype=torch.int64)])
def test_nothing_in_nothing_out(labels: torch.Tensor | None) -> None:
    labels = None if labels is None else labels.to(torch.get_default_device())
    keep, decayed = soft_nms(torch.zeros(0, 4), torch.zeros(0), labels)
    assert (keep.shape, keep.dtype, decayed.shape) == ((0,), torch.int64, (0,))


def test_scores_that_are_nan_or_low_are_removed() -> None:
    boxes = torch.tensor([[20.0 * i, 0.0, 20.0 * i + 10, 10.0] for i in range(3)])
    keep, _ = soft_nms(boxes, torch.tensor([math.nan, 0.1, 0.2]), score_threshold=0.1)
    assert keep.tolist() == [2]


@pytest.mark.parametrize(
    ("scores", "labels", "numbers", "message"),
    [
        (2, None, {}, "2 scores for 3 boxes"),  # a score is missing
        (3, 4, {}, "3 scores and 4 labels for 3 boxes"),  # a label too many
        (3, None, {"sigma": 0.0}, "sigma above 0"),  # division by zero
        (3, None, {"iou_threshold": 2.0}, r"iou_threshold must be in \[0, 1\]"),  # out of range
    ],
)
def test_wrong_input_is_named(scores: Any, labels: Any, numbers: dict[str, Any], message: str) -> None:
    labels = None if labels is None else torch.zeros(labels, dtype=torch.int64)
    with pytest.raises(UserError, match=message):
        soft_nms(torch.zeros(3, 4), torch.zeros(scores), labels, **numbers)
