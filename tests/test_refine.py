"""Refinement against Algorithm 2 of the paper as loops, with analytic IoU "networks"."""

import math
from collections.abc import Callable
from itertools import pairwise
from typing import Any

import pytest
import torch
from torch import nn

from tightbox.boxes import iou
from tightbox.refine import refine_boxes

pytestmark = pytest.mark.usefixtures("device")

OMEGA_1, OMEGA_2 = 0.001, -0.01


def algorithm_2(
    boxes: Any,
    predict: Callable[[torch.Tensor, torch.Tensor], torch.Tensor],
    steps: int,
    step_size: float,
    roll_back: bool,
) -> tuple[torch.Tensor, torch.Tensor]:
    """(boxes, IoUs) by the paper's loop, one box and one evaluation at a time."""
    boxes, frozen = [box.clone() for box in boxes], set()
    for step in range(steps):
        for j in range(len(boxes)):
            if j in frozen:
                continue
            leaf = boxes[j][None].clone().requires_grad_()
            predict(leaf, torch.tensor([j])).sum().backward()
            previous = predict(boxes[j][None], torch.tensor([j])).item()
            width, height = (boxes[j][2:] - boxes[j][:2]).tolist()
            old = boxes[j]
            boxes[j] = old + step_size * leaf.grad[0] * torch.tensor([width, height, width, height], dtype=old.dtype)
            new = predict(boxes[j][None], torch.tensor([j])).item()
            if abs(previous - new) < OMEGA_1 or new - previous < OMEGA_2:
                frozen.add(j)
            if roll_back and new < previous and (j in frozen or step + 1 == steps):  # where it comes to rest
                boxes[j] = old
    return torch.stack(boxes), torch.cat([predict(b[None], torch.tensor([j])) for j, b in enumerate(boxes)])


class TrueIoU:
    """The perfect predictor: the IoU with each box's own target; it notes what it was asked."""

    def __init__(self, targets: torch.Tensor) -> None:
        self.targets = targets
        self.asked: list[tuple[torch.Tensor, torch.Tensor]] = []

    def __call__(self, boxes: torch.Tensor, index: torch.Tensor) -> torch.Tensor:
        self.asked.append((boxes.detach().clone(), index.clone()))
        return iou(boxes, self.targets[index])


def off_by_a_fifth(count: int, dtype: torch.dtype = torch.float64) -> tuple[torch.Tensor, torch.Tensor]:
    corner = torch.rand(count, 2, dtype=dtype) * 500
    targets = torch.cat([corner, corner + 20 + torch.rand(count, 2, dtype=dtype) * 100], dim=1)
    size = (targets[:, 2:] - targets[:, :2]).repeat(1, 2)
    return targets, targets + (torch.rand(count, 4, dtype=dtype) - 0.5) * 0.4 * size


@pytest.mark.parametrize("roll_back", [False, True])
@pytest.mark.parametrize(("steps", "step_size"), [(0, 0.5), (1, 0.5), (5, 0.5), (12, 0.2), (8, 0.01), (2, 3.0)])
def test_equals_algorithm_2(steps: int, step_size: float, roll_back: bool) -> None:
    targets, boxes = off_by_a_fifth(25)
    predict = TrueIoU(targets)
    found, ious = refine_boxes(boxes, predict, steps, step_size, OMEGA_1, OMEGA_2, roll_back)
    expected, expected_ious = algorithm_2(boxes, predict, steps, step_size, roll_back)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-9)
    torch.testing.assert_close(ious, expected_ious, rtol=0, atol=1e-12)


def test_predicted_iou_rises_at_every_step() -> None:
    targets, boxes = off_by_a_fifth(200)
    means = [refine_boxes(boxes, TrueIoU(targets), steps, roll_back=True)[1].mean().item() for steps in range(12)]
    assert all(after > before for before, after in pairwise(means))
    assert means[-1] - means[0] > 0.05


def test_step_by_hand() -> None:
    # A linear prediction with gradient (1, 2, 3, 4) / 100 for a box 20 wide and 10 high, λ = 0.5:
    # x moves by 0.5 · 20 · (0.01, 0.03) = (0.1, 0.3), y by 0.5 · 10 · (0.02, 0.04) = (0.1, 0.2).
    slope = torch.tensor([0.01, 0.02, 0.03, 0.04])
    boxes = torch.tensor([[10.0, 10.0, 30.0, 20.0]])
    found, ious = refine_boxes(boxes, lambda b, _: ((b - boxes) * slope).sum(dim=1), steps=1)
    torch.testing.assert_close(found, torch.tensor([[10.1, 10.1, 30.3, 20.2]]))
    assert ious.item() == pytest.approx(0.001 + 0.002 + 0.009 + 0.008, abs=1e-6)
    assert torch.equal(boxes, torch.tensor([[10.0, 10.0, 30.0, 20.0]]))


@pytest.mark.parametrize(("roll_back", "left"), [(False, 14.0), (True, 10.0)])
def test_a_step_too_far_freezes_there_or_rolls_back(roll_back: bool, left: float) -> None:
    # A peak at x0 = 11 with slope 0.4 for a box 20 wide: the step is 0.5 · 0.4 · 20 = 4, to x0 = 14, where the
    # prediction is 3 · 0.4 instead of 1 · 0.4 below the top.
    boxes = torch.tensor([[10.0, 0.0, 30.0, 20.0]])
    predict = lambda b, _: 1 - 0.4 * (b[:, 0] - 11).abs()  # noqa: E731
    found, ious = refine_boxes(boxes, predict, roll_back=roll_back)
    assert found[0].tolist() == pytest.approx([left, 0, 30, 20])
    assert ious.item() == pytest.approx(-0.2 if left == 14 else 0.6, abs=1e-6)


def test_frozen_boxes_are_neither_moved_nor_asked_again() -> None:
    # The first box's prediction cannot change; the second's rises by 0.05 for each pixel of x1, and each step moves it
    # by 0.5 · 0.05 · 15 pixels or more.
    boxes = torch.tensor([[0.0, 0.0, 10.0, 10.0], [20.0, 0.0, 35.0, 10.0]], dtype=torch.float64)
    slope = torch.tensor([0.0, 0.05], dtype=torch.float64)
    asked = []

    def predict(b: torch.Tensor, index: torch.Tensor) -> torch.Tensor:
        asked.append(index.tolist())
        return slope[index] * b[:, 2]

    found, _ = refine_boxes(boxes, predict, steps=4)
    assert asked == [[0, 1], [0, 1], [1], [1], [1]]  # one evaluation before the first step, one after each
    assert torch.equal(found[0], boxes[0])
    assert found[1, 2] > 35


def test_nobody_is_asked_once_all_are_frozen() -> None:
    predict = TrueIoU(torch.tensor([[0.0, 0.0, 10.0, 10.0]]))
    refine_boxes(torch.tensor([[50.0, 50.0, 60.0, 60.0]]), predict, steps=9)  # apart: IoU 0, gradient 0
    assert len(predict.asked) == 2


class Network(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(4, 1)

    def forward(self, boxes: torch.Tensor, index: torch.Tensor | None) -> torch.Tensor:
        predicted: torch.Tensor = self.layer(boxes / 100).sigmoid().squeeze(1)
        return predicted


@pytest.mark.parametrize("mode", [torch.enable_grad, torch.no_grad, torch.inference_mode])
def test_only_boxes_get_gradients_in_every_mode(mode: Callable[[], Any]) -> None:
    network = Network()
    with mode():
        boxes = torch.tensor([[10.0, 10.0, 30.0, 20.0]]) + 0
        found, ious = refine_boxes(boxes, network)
    assert not torch.equal(found, boxes)
    assert ious.item() == pytest.approx(network(found, None).item())
    assert all(weight.grad is None for weight in network.parameters())
    assert not found.requires_grad
    assert not ious.requires_grad


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_a_bad_gradient_freezes_one_box_alone(bad: float) -> None:
    boxes = torch.tensor([[0.0, 0.0, 10.0, 10.0]] * 2)

    def predict(b: torch.Tensor, index: torch.Tensor) -> torch.Tensor:
        b = b * 1
        if b.requires_grad:
            b.register_hook(lambda gradient: gradient.where(index[:, None] > 0, bad))
        return 0.05 * b[:, 2]

    found, ious = refine_boxes(boxes, predict)
    assert torch.equal(found[0], boxes[0])
    assert ious[0] == 0.5
    assert found[1, 2] > 10


def test_a_step_to_a_prediction_of_nan_is_undone() -> None:
    # The slope at x1 = 10 is 2 - 1 / (2 · 0.5^½) = 1.29, so the step is 0.5 · 1.29 · 10 = 6.5: beyond 10.5.
    boxes = torch.tensor([[0.0, 0.0, 10.0, 10.0]])
    found, ious = refine_boxes(boxes, lambda b, _: (10.5 - b[:, 2]).sqrt() + 2 * b[:, 2])
    assert torch.equal(found, boxes)
    assert ious.item() == pytest.approx(math.sqrt(0.5) + 20)


def test_a_step_that_turns_a_box_inside_out_is_not_taken() -> None:
    boxes = torch.tensor([[0.0, 0.0, 10.0, 10.0]])
    found, ious = refine_boxes(boxes, lambda b, _: 3 * b[:, 0])  # x0 would go to 0 + 0.5 · 3 · 10 = 15, beyond 10
    assert torch.equal(found, boxes)
    assert ious.item() == 0


def test_boxes_are_clipped_to_the_image() -> None:
    boxes = torch.tensor([[0.0, 0.0, 10.0, 10.0]])
    found, ious = refine_boxes(boxes, lambda b, _: b[:, 2] - b[:, 0], size=(20, 12))
    assert found.tolist() == [[0, 0, 12, 10]]
    assert ious.item() == 12


def test_boxes_are_clipped_each_to_its_own_image() -> None:
    boxes = torch.tensor([[0.0, 0.0, 10.0, 10.0]] * 2)
    found, _ = refine_boxes(boxes, lambda b, _: b[:, 2] - b[:, 0], size=torch.tensor([[20, 12], [20, 14]]))
    assert found.tolist() == [[0, 0, 12, 10], [0, 0, 14, 10]]


def test_nothing_to_refine() -> None:
    found, ious = refine_boxes(torch.zeros(0, 4), TrueIoU(torch.zeros(0, 4)))
    assert (found.shape, ious.shape) == ((0, 4), (0,))


def test_half_precision_boxes_are_refined_in_float32() -> None:
    targets, boxes = off_by_a_fifth(5)
    found, ious = refine_boxes(boxes.half(), TrueIoU(targets.half()))
    assert (found.dtype, ious.dtype) == (torch.float32, torch.float32)


def test_a_box_that_goes_on_is_clipped_to_its_own_image() -> None:
    # The first box stops at once, as its prediction does not change; the second grows to its own image's border.
    boxes = torch.tensor([[1.0, 1.0, 5.0, 5.0], [1.0, 1.0, 9.0, 9.0]])

    def wider(boxes: torch.Tensor, index: torch.Tensor) -> torch.Tensor:
        return torch.where(index == 1, (boxes[:, 2] - boxes[:, 0]) / 12, 0.5 + 0 * boxes[:, 0])

    found, _ = refine_boxes(boxes, wider, steps=5, size=torch.tensor([[6, 6], [12, 12]]))
    assert found[1, 2] > 9.5
