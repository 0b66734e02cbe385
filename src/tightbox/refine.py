"""Boxes moved uphill on their predicted IoU: IoU-Net's optimisation-based refinement."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from tightbox.boxes import at_least_float32

PredictIoU = Callable[[Tensor], Tensor]


def refine_boxes(
    boxes: Tensor,
    predict_iou: PredictIoU,
    *,
    steps: int = 5,
    step_size: float = 0.5,
    min_change: float = 0.001,
    max_drop: float = 0.01,
    roll_back: bool = False,
) -> tuple[Tensor, Tensor]:
    """Gradient ascent on the predicted IoU, box by box (algorithm 2); weights get no gradient.

    A step moves a box by `step_size` times the gradient, whose x parts are multiplied by the box's width and whose y
    parts by its height. A box rests once a step changes its predicted IoU by less than `min_change` (Ω1) or lowers it
    by more than `max_drop` (−Ω2): literally where that step has put it, or with `roll_back` where it was before, if the
    step lowered its predicted IoU. A box that a step would turn inside out, or whose gradient is NaN, rests unmoved.

    Args:
        boxes: (K, 4).
        predict_iou: gives the predicted IoU (K,) in [0, 1], differentiable, of such boxes.
        steps: most steps (T).
        step_size: λ.
        min_change: Ω1.
        max_drop: −Ω2, a positive number.
        roll_back: take back the step after which a box rests if it was for the worse.

    Returns:
        The moved boxes (K, 4) and their predicted IoU (K,).

    Jiang et al., "Acquisition of Localization Confidence for Accurate Object Detection", algorithm 2.
    """
    boxes = at_least_float32(boxes.detach())
    resting = torch.zeros(len(boxes), dtype=torch.bool, device=boxes.device)
    ious, gradient = _value_and_gradient(boxes, predict_iou, steps > 0)
    for step in range(steps):
        size = (boxes[:, 2:] - boxes[:, :2]).repeat(1, 2)
        moved = boxes + step_size * gradient * size
        resting = resting | ~(moved[:, 2:] > moved[:, :2]).all(dim=1)
        moved = torch.where(resting[:, None], boxes, moved)
        # The next step's gradient comes with the value of this one: one pass of the head a step.
        new_ious, gradient = _value_and_gradient(moved, predict_iou, step + 1 < steps)
        new_ious = torch.where(resting, ious, new_ious)
        ends = ((new_ious - ious).abs() < min_change) | (new_ious - ious < -max_drop)
        worse = roll_back & ends & (new_ious < ious)
        boxes = torch.where(worse[:, None], boxes, moved)
        ious = torch.where(worse, ious, new_ious)
        resting = resting | ends
        if bool(resting.all()):
            break
    return boxes, ious


def _value_and_gradient(boxes: Tensor, predict_iou: PredictIoU, needed: bool) -> tuple[Tensor, Tensor]:
    if not needed or len(boxes) == 0:
        with torch.no_grad():
            return predict_iou(boxes).to(boxes.dtype), torch.zeros_like(boxes)
    with torch.enable_grad():
        boxes = boxes.clone().requires_grad_()
        ious = predict_iou(boxes)
        (gradient,) = torch.autograd.grad(ious.sum(), boxes)
    return ious.detach().to(boxes.dtype), gradient
