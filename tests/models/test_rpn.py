from __future__ import annotations

import pytest
import torch
from torch import Tensor

from tests.helpers.models import proposals
from tightbox.assigners import BACKGROUND, IGNORED
from tightbox.boxes import area, encode_deltas, iou, pairwise_iou
from tightbox.models.rpn import RPN, RPNOutput, sample
from tightbox.structures import Targets

pytestmark = pytest.mark.usefixtures("device")

SIZE = (64, 96)
SIZES = torch.tensor([SIZE])


@pytest.fixture
def rpn() -> RPN:
    torch.manual_seed(0)
    return RPN(8, 8.0, ignore_crowds=False)


def output(rpn: RPN, batch: int = 1) -> RPNOutput:
    result: RPNOutput = rpn([torch.randn(batch, 8, -(-SIZE[0] // s), -(-SIZE[1] // s)) for s in (4, 8, 16, 32, 64)])
    return result


def test_three_anchors_of_equal_area_around_the_middle_of_each_cell(rpn: RPN) -> None:
    anchors = output(rpn).anchors
    # Cells: 16x24 + 8x12 + 4x6 + 2x3 + 1x2 = 512.
    assert anchors.shape == (3 * 512, 4)
    first = anchors[:3]
    torch.testing.assert_close((first[:, :2] + first[:, 2:]) / 2, torch.full((3, 2), 2.0))
    torch.testing.assert_close(area(first), torch.full((3,), 32.0**2))
    width, height = (first[:, 2:] - first[:, :2]).unbind(1)
    torch.testing.assert_close(height / width, torch.tensor([0.5, 1.0, 2.0]))
    torch.testing.assert_close(anchors[-2], torch.tensor([96.0 - 256, 32 - 256, 96 + 256, 32 + 256]))  # stride 64


def told(rpn: RPN, boxes: Tensor) -> RPNOutput:
    """What the network would say that has learnt these boxes: the nearest anchors find them, others say nothing."""
    silent = output(rpn)
    best = pairwise_iou(silent.anchors, boxes).argmax(dim=0)
    logits = torch.full_like(silent.logits, -9.0)
    logits[0, best] = torch.arange(9.0, 9.0 - len(boxes), -1)
    deltas = torch.zeros_like(silent.deltas)
    deltas[0, best] = encode_deltas(silent.anchors[best], boxes)
    return RPNOutput(silent.anchors, logits, deltas, silent.map_sizes)


def test_proposals_are_the_best_boxes_clipped_to_the_image_and_apart(rpn: RPN) -> None:
    boxes = torch.tensor([[10.0, 10.0, 40.0, 44.0], [60.0, 20.0, 90.0, 60.0], [70.0, -20.0, 120.0, 30.0]])
    (found,) = proposals(rpn, told(rpn, boxes), SIZES, 50)
    torch.testing.assert_close(found[:2], boxes[:2], atol=1e-3, rtol=0)
    torch.testing.assert_close(found[2], torch.tensor([70.0, 0.0, 96.0, 30.0]), atol=1e-3, rtol=0)
    assert len(found) <= 50
    assert (found >= 0).all()
    assert (found[:, 2] <= SIZE[1]).all()
    assert (found[:, 3] <= SIZE[0]).all()
    assert len(proposals(rpn, told(rpn, boxes), SIZES, 2)[0]) == 2


def test_nothing_is_proposed_from_the_padding(rpn: RPN) -> None:
    raw = output(rpn)
    # In an image of 32x32 the anchors of the cells beyond are passed over, though they are all it is sure of.
    centres = (raw.anchors[:, :2] + raw.anchors[:, 2:]) / 2
    beyond = (centres > 32).any(dim=1)
    sure = RPNOutput(raw.anchors, torch.where(beyond, 9.0, -9.0)[None], raw.deltas * 0, raw.map_sizes)
    (found,) = proposals(rpn, sure, torch.tensor([[32, 32]]), 1)
    inside = raw.anchors[~beyond].clamp(0, 32)
    assert (found[:, None] == inside).all(dim=2).any(dim=1).all()


def test_loss_is_small_for_the_network_that_knows_and_its_box_term_sees_positives_only(rpn: RPN) -> None:
    boxes = torch.tensor([[10.0, 10.0, 42.0, 42.0]])
    target = Targets.of(boxes, torch.tensor([0]))
    knows = told(rpn, boxes)
    positive = iou(knows.anchors, boxes) >= 0.7
    logits = torch.where(positive, 20.0, -20.0)[None]
    deltas = encode_deltas(knows.anchors, boxes.expand(len(knows.anchors), 4))[None].clone()
    deltas[0, ~positive] = 100.0
    right = RPNOutput(knows.anchors, logits, deltas, knows.map_sizes)
    assert positive.any()
    assert [round(v.item(), 4) for v in rpn.loss(right, SIZES, [target])] == [0.0, 0.0]
    wrong = RPNOutput(knows.anchors, -logits, deltas + 1, knows.map_sizes)
    assert all(value > 0.01 for value in rpn.loss(wrong, SIZES, [target]))


def test_a_image_without_objects_is_all_background(rpn: RPN) -> None:
    nothing = Targets.of(torch.zeros(0, 4), torch.zeros(0))
    raw = output(rpn)
    certain = RPNOutput(raw.anchors, torch.zeros_like(raw.logits), raw.deltas, raw.map_sizes)
    objectness, box = rpn.loss(certain, SIZES, [nothing])
    assert objectness.item() == pytest.approx(0.6931, abs=1e-4)  # ln 2 for each anchor of the sample
    assert box.item() == 0


@pytest.mark.parametrize(
    ("positives", "negatives", "drawn"),
    [
        (10, 100, (5, 15)),  # a quarter of twenty, and the rest
        (2, 100, (2, 18)),  # background takes the room that objects leave
        (10, 3, (5, 3)),
        (0, 0, (0, 0)),
    ],
)
def test_sample(positives: int, negatives: int, drawn: tuple[int, int]) -> None:
    matched = torch.cat([torch.arange(positives), torch.full((negatives,), BACKGROUND), torch.full((7,), IGNORED)])
    matched = matched[torch.randperm(len(matched))]
    chosen, learns = sample(torch.stack([matched, matched.flip(0)]), 20, 0.25)
    assert chosen.shape == learns.shape == (2, 20 if len(matched) > 20 else len(matched))
    for of_image, rows, what in zip((matched, matched.flip(0)), chosen, learns, strict=True):
        assert ((what >= 0).sum(), (what == BACKGROUND).sum()) == drawn
        assert (what[: drawn[0]] >= 0).all()
        assert what[what != IGNORED].equal(of_image[rows][what != IGNORED])
        assert len(rows.unique()) == len(rows)


def test_every_sample_is_as_likely_as_any_other() -> None:
    """One of three objects and two of three of the background: 3 · 3 = 9 samples.

    Pearson's χ² of n draws is Σ (count − n/9)² / (n/9); with 8 degrees of freedom it passes 26.1 once in a thousand.
    """
    torch.manual_seed(0)
    n = 9000
    matched = torch.tensor([BACKGROUND, 4, BACKGROUND, 0, IGNORED, 2, BACKGROUND]).repeat(n, 1)
    chosen, learns = sample(matched, 3, 0.4)
    assert ((learns >= 0).sum(1) == 1).all()
    assert ((learns == BACKGROUND).sum(1) == 2).all()
    places = torch.zeros(n, 7).scatter(1, chosen, 1)
    counts = places.unique(dim=0, return_counts=True)[1]
    assert len(counts) == 9
    assert ((counts - n / 9) ** 2 / (n / 9)).sum() < 26.1


def test_equal_boxes_of_two_levels_are_both_proposed() -> None:
    sizes = [(16, 16), (8, 8), (4, 4), (2, 2), (1, 1)]
    rpn = RPN(32, 8.0, False)
    anchors = rpn._anchors(sizes, torch.device("cpu"))
    logits, deltas = torch.full((1, len(anchors)), -5.0), torch.zeros(1, len(anchors), 4)
    box = torch.tensor([10.0, 10.0, 40.0, 40.0])
    for place in (0, 16 * 16 * 3):  # the first anchors of the first two levels
        logits[0, place] = 5.0
        deltas[0, place] = encode_deltas(anchors[place], box)
    boxes, _ = rpn.proposals(RPNOutput(anchors, logits, deltas, sizes), torch.tensor([[64, 64]]), 2)
    torch.testing.assert_close(boxes[0], box.expand(2, 4), atol=1e-3, rtol=0)
