"""The rules of suppression against plain-Python loops, reference values, and hand-made cases."""

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pytest
import torch

from tests.helpers.arithmetic import iou_of_two, random_boxes
from tests.helpers.references import slice_of
from tightbox.errors import UserError
from tightbox.structures import Candidates
from tightbox.suppress import greedy_nms, greedy_nms_together, iou_guided_nms, soft_nms, voted

pytestmark = pytest.mark.usefixtures("device")
NAMES = "boxes", "class_scores", "ious"


def reference(
    boxes: Sequence[Sequence[float]],
    scores: Sequence[Sequence[float]],
    iou_threshold: float,
    score_threshold: float,
    max_detections: int,
    class_agnostic: bool,
) -> list[tuple[int, int]]:
    """(row, label) of each detection, best first."""
    pairs = [(s, k, c) for k, row in enumerate(scores) for c, s in enumerate(row) if s > score_threshold]
    kept: list[tuple[int, int]] = []
    for _, k, c in sorted(pairs, reverse=True):
        rivals = [boxes[j] for j, d in kept if class_agnostic or c == d]
        if all(iou_of_two(boxes[k], rival) <= iou_threshold for rival in rivals):
            kept.append((k, c))
    return kept[:max_detections]


def random_candidates(count: int, classes: int, origin: float = 0.0) -> Candidates:
    boxes = random_boxes(count, origin)
    return Candidates(boxes, torch.rand(count, classes), ious=torch.rand(count, classes))


@pytest.mark.parametrize("class_agnostic", [False, True])
@pytest.mark.parametrize(
    ("count", "classes", "origin"),
    [
        (40, 3, 0.0),  # few boxes
        (40, 3, -108.0),  # unclipped: from far below zero to about zero
        (450, 3, 0.0),  # more than 1000 pairs, where torchvision changes its method
    ],
)
def test_equals_the_reference(count: int, classes: int, origin: float, class_agnostic: bool) -> None:
    candidates = random_candidates(count, classes, origin)
    scores = candidates.class_scores
    expected = reference(candidates.boxes.tolist(), scores.tolist(), 0.5, 0.1, 60, class_agnostic)
    found = greedy_nms(candidates, scores, 0.5, 0.1, 60, class_agnostic)
    rows, labels = torch.tensor(expected).unbind(1)
    assert torch.equal(found.labels, labels)
    assert torch.equal(found.boxes, candidates.boxes[rows])
    assert torch.equal(found.scores, scores[rows, labels])
    assert found.ious is not None
    assert candidates.ious is not None
    assert torch.equal(found.ious, candidates.ious[rows, labels])


@pytest.mark.parametrize("class_agnostic", [False, True])
def test_several_images_together_are_each_by_itself(class_agnostic: bool) -> None:
    images = [random_candidates(30, 2) for _ in range(3)]
    images[1] = replace(images[1], class_scores=torch.zeros(30, 2))  # nothing is in this one
    together = Candidates(*(torch.stack([getattr(image, name) for image in images]) for name in NAMES))
    limits = 0.5, 0.1, 20, class_agnostic
    found, counts = greedy_nms_together(together, together.class_scores, *limits)
    assert found.boxes.shape == (3, 20, 4)
    for ours, image in zip(found.of_images(counts), images, strict=True):
        expected = greedy_nms(image, image.class_scores, *limits)
        for name in ("boxes", "scores", "labels", "ious"):
            assert torch.equal(getattr(ours, name), getattr(expected, name)), name


def test_of_equal_scores_the_first_boxes_are_kept() -> None:
    """More of them than a processor sorts in one go, which is when sorting ceases to keep their order."""
    corner = torch.arange(3000)[:, None] * 10.0
    boxes = torch.cat([corner, corner, corner + 5, corner + 5], dim=1)
    candidates = Candidates(boxes, torch.full((3000, 1), 0.5))
    found = greedy_nms(candidates, candidates.class_scores, max_detections=50)
    assert found.boxes.equal(boxes[:50])


def test_ious_that_are_one_for_each_box_come_along() -> None:
    boxes = torch.tensor([[[0.0, 0, 4, 4], [9, 9, 10, 10]]])
    scores, ious = torch.tensor([[[0.2, 0.0], [0.0, 0.9]]]), torch.tensor([[0.3, 0.8]])
    found, counts = greedy_nms_together(Candidates(boxes, scores, ious), scores, 0.5, 0.1, 100)
    (only,) = found.of_images(counts)
    assert only.ious is not None
    assert only.ious.tolist() == pytest.approx([0.8, 0.3])
    assert only.labels.tolist() == [1, 0]


@pytest.mark.parametrize("case", [0, 1, 2])
def test_reference_values(case: int) -> None:
    golden = slice_of("nms_seed0")  # complete
    boxes, scores, labels = (golden[f"{case}/{name}"] for name in ("boxes", "scores", "labels"))
    keep = golden[f"{case}/keep"]
    # One row for each box, its score in the column of its label; the estimate carries the index through.
    by_class = torch.zeros(len(boxes), int(labels.max()) + 1).scatter(1, labels[:, None], scores[:, None])
    candidates = Candidates(boxes, by_class, ious=torch.arange(len(boxes)))
    found = greedy_nms(candidates, by_class, 0.6, score_threshold=0.0, max_detections=len(boxes))
    assert found.ious is not None
    assert torch.equal(found.ious, keep)
    assert torch.equal(found.labels, labels[keep])
    assert torch.equal(torch.cat([found.boxes, found.scores[:, None]], dim=1), golden[f"{case}/dets"])


def test_classes_far_apart_keep_their_accuracy() -> None:
    # IoU is 0.6001, then 0.5999, of a threshold of 0.6. Class offsets in float32 would put label 5000 at 5 million
    # pixels, where the numbers are 0.5 apart: the second box's side would be 60.0 both times.
    boxes = torch.tensor([[0.0, 0.0, 1000.0, 100.0], [0.0, 0.0, 1000.0, 60.01]])
    scores = torch.zeros(2, 5001)
    scores[:, 5000] = torch.tensor([0.9, 0.8])
    assert len(greedy_nms(Candidates(boxes, scores), scores, iou_threshold=0.6)) == 1
    boxes[1, 3] = 59.99
    assert len(greedy_nms(Candidates(boxes, scores), scores, iou_threshold=0.6)) == 2


def test_ranking_scores_decide_and_are_reported() -> None:
    boxes = torch.tensor([[0.0, 0.0, 10.0, 10.0], [0.0, 0.0, 10.0, 9.0]])
    candidates = Candidates(boxes, class_scores=torch.tensor([[0.9], [0.8]]), ious=torch.tensor([0.2, 0.9]))
    found = greedy_nms(candidates, scores=torch.tensor([[0.42], [0.85]]))
    assert found.boxes.tolist() == [[0, 0, 10, 9]]
    assert found.scores.tolist() == pytest.approx([0.85])
    assert found.ious is not None
    assert found.ious.tolist() == pytest.approx([0.9])


def test_one_box_may_be_two_classes() -> None:
    candidates = Candidates(torch.tensor([[0.0, 0.0, 10.0, 10.0]]), torch.tensor([[0.6, 0.7]]))
    found = greedy_nms(candidates, candidates.class_scores)
    assert found.labels.tolist() == [1, 0]
    assert found.ious is None
    assert greedy_nms(candidates, candidates.class_scores, class_agnostic=True).labels.tolist() == [1]


def test_thresholds_are_exclusive() -> None:
    # IoU is exactly 0.5, and so is the second score.
    boxes = torch.tensor([[0.0, 0.0, 4.0, 8.0], [0.0, 0.0, 4.0, 4.0]])
    scores = torch.tensor([[0.9], [0.5]])
    assert len(greedy_nms(Candidates(boxes, scores), scores, iou_threshold=0.5)) == 2
    assert len(greedy_nms(Candidates(boxes, scores), scores, iou_threshold=0.49)) == 1
    assert len(greedy_nms(Candidates(boxes, scores), scores, iou_threshold=0.5, score_threshold=0.5)) == 1


def test_boxes_without_area_and_nan_are_never_detected() -> None:
    boxes = torch.tensor(
        [
            [0.0, 0.0, 10.0, 10.0],  # the one good box, but its first score is NaN
            [20.0, 0.0, 20.0, 10.0],  # no width
            [20.0, 5.0, 30.0, 5.0],  # no height
            [30.0, 0.0, 20.0, 10.0],  # inverted
            [math.nan, 0.0, 20.0, 10.0],  # NaN
        ]
    )
    scores = torch.full((5, 2), 0.9)
    scores[0, 0] = math.nan
    found = greedy_nms(Candidates(boxes, scores), scores)
    assert found.boxes.tolist() == [[0, 0, 10, 10]]
    assert found.labels.tolist() == [1]


def test_one_pixel_is_enough() -> None:
    candidates = Candidates(torch.tensor([[5.0, 5.0, 6.0, 6.0]]), torch.tensor([[0.9]]))
    assert len(greedy_nms(candidates, candidates.class_scores)) == 1


@pytest.mark.parametrize("count", [0, 3])
def test_nothing_to_detect(count: int) -> None:
    candidates = Candidates(torch.zeros(count, 4), torch.zeros(count, 2), ious=torch.zeros(count))
    found = greedy_nms(candidates, candidates.class_scores)
    assert found.boxes.shape == (0, 4)
    assert found.labels.dtype == torch.int64
    assert found.ious is not None
    assert found.ious.shape == (0,)


def test_half_precision_gives_float32_detections() -> None:
    candidates = Candidates(torch.tensor([[0.0, 0.0, 10.0, 10.0]]).half(), torch.tensor([[0.5]]).half())
    found = greedy_nms(candidates, candidates.class_scores)
    assert (found.boxes.dtype, found.scores.dtype) == (torch.float32, torch.float32)


def soft_reference(
    boxes: Sequence[Sequence[float]],
    scores: Sequence[Sequence[float]],
    iou_threshold: float,
    score_threshold: float,
    class_agnostic: bool,
) -> Any:
    """(fallen score, row, label) of each detection by linear soft-NMS, best first."""
    pairs = {(k, c): s for k, row in enumerate(scores) for c, s in enumerate(row) if s > score_threshold}
    found = []
    while pairs:
        best = max(pairs, key=pairs.__getitem__)
        found.append((pairs.pop(best), *best))
        for k, c in pairs:
            overlap = iou_of_two(boxes[best[0]], boxes[k])
            if (class_agnostic or c == best[1]) and overlap >= iou_threshold:
                pairs[k, c] *= 1 - overlap
        pairs = {pair: s for pair, s in pairs.items() if s > score_threshold}
    return found


@pytest.mark.parametrize("class_agnostic", [False, True])
def test_soft_equals_the_reference(class_agnostic: bool) -> None:
    candidates = random_candidates(40, 3)
    scores = candidates.class_scores
    expected = soft_reference(candidates.boxes.tolist(), scores.tolist(), 0.4, 0.1, class_agnostic)[:30]
    found = soft_nms(candidates, scores, "linear", 0.4, 0.5, 0.1, 30, class_agnostic)
    rows, labels = (torch.tensor(column) for column in list(zip(*expected, strict=True))[1:])
    assert torch.equal(found.labels, labels)
    assert torch.equal(found.boxes, candidates.boxes[rows])
    assert found.ious is not None
    assert candidates.ious is not None
    assert torch.equal(found.ious, candidates.ious[rows, labels])
    assert found.scores.tolist() == pytest.approx([score for score, _, _ in expected], rel=1e-5)


def test_soft_gaussian_by_hand() -> None:
    # IoU is 50 / 100: the second score becomes 0.8 exp(-0.25 / 0.5), and the second class is left alone.
    boxes = torch.tensor([[0.0, 0.0, 10.0, 10.0], [0.0, 0.0, 10.0, 5.0]])
    scores = torch.tensor([[0.9, 0.0], [0.8, 0.3]])
    found = soft_nms(Candidates(boxes, scores), scores, "gaussian")
    assert found.scores.tolist() == pytest.approx([0.9, 0.8 * math.exp(-0.5), 0.3])
    assert found.labels.tolist() == [0, 0, 1]


def iou_guided_reference(
    boxes: Sequence[Sequence[float]],
    scores: Sequence[Sequence[float]],
    ious: Sequence[Sequence[float]],
    iou_threshold: float,
    score_threshold: float,
    class_agnostic: bool,
) -> Any:
    """(score, label, row, estimate) of each detection: Algorithm 1 of IoU-Net, then best scores first."""
    pairs = [(ious[k][c], s, k, c) for k, row in enumerate(scores) for c, s in enumerate(row) if s > score_threshold]
    pairs.sort(reverse=True)
    found = []
    while pairs:
        estimate, _, k, c = pairs[0]
        cluster = [
            pair
            for pair in pairs
            if (class_agnostic or pair[3] == c) and iou_of_two(boxes[k], boxes[pair[2]]) > iou_threshold
        ]
        pairs = [pair for pair in pairs if pair not in cluster]
        _, score, _, label = max(cluster, key=lambda pair: pair[1])
        found.append((score, label, k, estimate))
    return sorted(found, reverse=True)


@pytest.mark.parametrize("class_agnostic", [False, True])
@pytest.mark.parametrize("ious_of_classes", [False, True])
@pytest.mark.parametrize(("count", "origin"), [(40, -108.0), (450, 0.0)])
def test_iou_guided_equals_the_reference(
    count: int, origin: float, ious_of_classes: bool, class_agnostic: bool
) -> None:
    candidates = random_candidates(count, 3, origin)
    scores, ious = candidates.class_scores, candidates.ious
    if not ious_of_classes:
        assert ious is not None
        candidates = Candidates(candidates.boxes, scores, ious=ious[:, 0])
        assert ious is not None
        ious = ious[:, :1].expand(-1, 3)
    assert ious is not None
    columns = candidates.boxes.tolist(), scores.tolist(), ious.tolist()
    expected = iou_guided_reference(*columns, 0.5, 0.1, class_agnostic)[:60]
    found = iou_guided_nms(candidates, scores, 0.5, 0.1, 60, class_agnostic)
    scores, labels, rows, ious = (torch.tensor(column) for column in zip(*expected, strict=True))
    assert torch.equal(found.scores, scores)
    assert torch.equal(found.labels, labels)
    assert torch.equal(found.boxes, candidates.boxes[rows])
    assert found.ious is not None
    assert torch.equal(found.ious, ious)


def test_iou_guided_removes_background_first() -> None:
    # The second box has the best estimate, and a class score of background: it must not remove the first.
    boxes = torch.tensor([[0.0, 0.0, 10.0, 10.0], [0.0, 0.0, 10.0, 9.0]])
    candidates = Candidates(boxes, torch.tensor([[0.9], [0.04]]), ious=torch.tensor([0.6, 0.8]))
    found = iou_guided_nms(candidates, candidates.class_scores)
    assert found.boxes.tolist() == [[0, 0, 10, 10]]
    assert found.ious is not None
    assert found.ious.tolist() == pytest.approx([0.6])


def test_iou_guided_takes_equal_estimates_by_score() -> None:
    # One box, two classes, one estimate: where classes compete the better one is the label.
    candidates = Candidates(torch.tensor([[0.0, 0.0, 10.0, 10.0]]), torch.tensor([[0.2, 0.7]]), torch.tensor([0.5]))
    found = iou_guided_nms(candidates, candidates.class_scores, class_agnostic=True)
    assert found.labels.tolist() == [1]
    assert found.scores.tolist() == pytest.approx([0.7])


def test_iou_guided_never_detects_a_nan_estimate() -> None:
    boxes = torch.tensor([[0.0, 0.0, 10.0, 10.0], [0.0, 0.0, 10.0, 9.0]])
    candidates = Candidates(boxes, torch.tensor([[0.9], [0.8]]), ious=torch.tensor([math.nan, 0.8]))
    assert iou_guided_nms(candidates, candidates.class_scores).boxes.tolist() == [[0, 0, 10, 9]]


def test_iou_guided_needs_an_estimate() -> None:
    candidates = Candidates(torch.zeros(1, 4), torch.zeros(1, 2))
    with pytest.raises(UserError, match="predicts no IoU"):
        iou_guided_nms(candidates, candidates.class_scores)


RULES = [greedy_nms, soft_nms, iou_guided_nms]


@pytest.mark.parametrize("rule", RULES)
def test_every_rule_gives_nothing_for_nothing(rule: Any) -> None:
    candidates = Candidates(torch.zeros(0, 4), torch.zeros(0, 2), ious=torch.zeros(0, 2))
    found = rule(candidates, candidates.class_scores)
    assert (found.boxes.shape, found.scores.shape, found.ious.shape) == ((0, 4), (0,), (0,))
    assert found.labels.dtype == torch.int64


@pytest.mark.parametrize("rule", RULES)
def test_every_rule_wants_a_score_for_each_box(rule: Any) -> None:
    candidates = Candidates(torch.zeros(3, 4), torch.zeros(3, 2), ious=torch.zeros(3))
    with pytest.raises(UserError, match="2 boxes for 3 candidates"):
        rule(candidates, torch.zeros(2, 2))


@pytest.mark.parametrize("rule", RULES)
def test_every_rule_skips_boxes_without_area_and_nan(rule: Any) -> None:
    boxes = torch.tensor([[0.0, 0.0, 10.0, 10.0], [20.0, 0.0, 20.0, 10.0], [math.nan, 0.0, 10.0, 10.0]])
    scores = torch.tensor([[math.nan, 0.9], [0.9, 0.9], [0.9, 0.9]])
    found = rule(Candidates(boxes, scores, ious=torch.ones(3)), scores)
    assert (found.boxes.tolist(), found.labels.tolist()) == ([[0, 0, 10, 10]], [1])


# Score voting


def test_a_kept_box_moves_to_the_mean_of_those_around_it() -> None:
    boxes = torch.tensor([[0.0, 0, 10, 10], [0, 0, 10, 8], [0, 0, 10, 10], [30, 0, 40, 10], [0, 0, 10, 5]])
    scores = torch.tensor([[0.8, 0.0], [0.5, 0.0], [0.0, 0.9], [0.7, 0.0], [0.04, 0.0]])
    found = greedy_nms(Candidates(boxes, scores), scores, voting=True)
    # Of class 0, the second box (IoU 0.8) counts 0.25 · exp(−0.2²/0.025) = 0.05047, the first 0.64, and the last is
    # below the threshold: (0.64 · 10 + 0.05047 · 8) / 0.69047 = 9.8538. Class 1 and the far box have none around them.
    expected = torch.tensor([[0, 0, 10, 10], [0, 0, 10, 9.8538], [30, 0, 40, 10]])
    torch.testing.assert_close(found.boxes, expected, atol=1e-4, rtol=0)
    assert found.scores.tolist() == pytest.approx([0.9, 0.8, 0.7])
    assert found.labels.tolist() == [1, 0, 0]


@pytest.mark.parametrize("count", [0, 1, 30])
def test_voting_moves_boxes_and_nothing_else(count: int) -> None:
    candidates = random_candidates(count, 3)
    kept, moved = (greedy_nms(candidates, candidates.class_scores, voting=voting) for voting in (False, True))
    assert moved.scores.equal(kept.scores)
    assert moved.labels.equal(kept.labels)
    for box, score, label, new in zip(kept.boxes, kept.scores, kept.labels, moved.boxes, strict=True):
        weights = []
        for other, own in zip(candidates.boxes, candidates.class_scores[:, label], strict=True):
            overlap = iou_of_two(box.tolist(), other.tolist())
            near = math.exp(-((1 - overlap) ** 2) / 0.025) if own > 0.05 and overlap > 0 else 0.0
            weights.append(near * float(own) ** 2)
        assert max(weights) == pytest.approx(float(score) ** 2)
        columns = [sum(w * float(b) for w, b in zip(weights, side, strict=True)) for side in candidates.boxes.T]
        assert new.tolist() == pytest.approx([column / sum(weights) for column in columns], rel=1e-4, abs=1e-3)


def test_boxes_and_scores_that_are_not_numbers_do_not_vote() -> None:
    good = torch.tensor([[0.0, 0, 10, 10], [0, 0, 10, 9]])
    scores = torch.tensor([[0.8], [0.6], [0.9], [math.nan], [0.9]])
    bad = torch.tensor([[math.nan, 0, 10, 10], [0, 0, 10, 5], [-math.inf, 0, math.inf, 10]])
    boxes = voted(
        good[None, :1],
        torch.zeros(1, 1, dtype=torch.int64),
        Candidates(good[None], scores[None, :2]),
        scores[None, :2],
        0.05,
    )
    everything = Candidates(torch.cat([good, bad])[None], scores[None])
    assert voted(good[None, :1], torch.zeros(1, 1, dtype=torch.int64), everything, scores[None], 0.05).equal(boxes)
