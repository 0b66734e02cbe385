"""Refinement of boxes by gradient ascent on their predicted IoU."""

from collections.abc import Callable

import torch
from torch import Tensor

from tightbox.boxes import at_least_float32, clip_boxes

PredictIoU = Callable[[Tensor, Tensor], Tensor]


def refine_boxes(
    boxes: Tensor,
    predict_iou: PredictIoU,
    steps: int = 5,
    step_size: float = 0.5,
    min_change: float = 0.001,
    max_drop: float = -0.01,
    roll_back: bool = False,
    size: tuple[int, int] | Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Algorithm 2 of IoU-Net (https://arxiv.org/abs/1807.11590): moves each box to where its predicted IoU is higher.

    A step adds λ · gradient, times the box's width for x and its height for y. A box stops for good after a step that
    changes its prediction by less than Ω1, or lowers it by more than −Ω2. The network runs at most `steps` + 1 times,
    each time on the boxes that still move. A step that leads to NaN, or turns a box inside out, is not taken, and the
    box stops. Only boxes get a gradient, no weights, and it works where gradients are switched off.

    Args:
        boxes: (K, 4).
        predict_iou: gives the IoUs (L,) in [0, 1], differentiable in boxes (L, 4), from these and their indices (L,)
            among the K. What it keeps from a forward pass under `torch.inference_mode` must be cloned before.
        steps: T, the most steps.
        step_size: λ.
        min_change: Ω1.
        max_drop: Ω2, not positive.
        roll_back: a last step that lowered the prediction is undone; the paper keeps it.
        size: (height, width) of the image that boxes are clipped to after each step, or (K, 2) of each box's own;
            without it they are not.

    Returns:
        The boxes (K, 4), detached, and their predicted IoUs (K,).

    >>> towards_ten = lambda boxes, index: 1 - (boxes - 10).abs().sum(dim=1) / 100
    >>> refine_boxes(torch.tensor([[0.0, 0.0, 8.0, 8.0]]), towards_ten, steps=1)
    (tensor([[0.0400, 0.0400, 8.0400, 8.0400]]), tensor([0.7616]))
    """
    with torch.inference_mode(False), torch.enable_grad():
        boxes = at_least_float32(boxes.detach()).clone()
        moving = torch.arange(len(boxes), device=boxes.device)
        limits = None if size is None else torch.as_tensor(size, device=boxes.device).expand(len(boxes), 2)
        if len(boxes) == 0:
            return boxes, boxes.new_zeros(0)
        ious, gradient = _value_and_gradient(predict_iou, boxes, moving, wanted=steps > 0)
        for step in range(steps):
            current = boxes[moving]
            moved = current + step_size * gradient * (current[:, 2:] - current[:, :2]).repeat(1, 2)
            if limits is not None:
                moved = clip_boxes(moved, limits[moving])
            possible = ious[moving].isfinite() & moved.isfinite().all(dim=1) & (moved[:, 2:] > moved[:, :2]).all(dim=1)
            moving, moved = moving[possible], moved[possible]
            if len(moving) == 0:
                break
            before = ious[moving]
            # This step's prediction after is the next one's before, so that one pass with a gradient serves both.
            after, gradient = _value_and_gradient(predict_iou, moved, moving, wanted=step + 1 < steps)
            goes_on = ((after - before).abs() >= min_change) & (after - before >= max_drop) & (step + 1 < steps)
            taken = after.isfinite()
            if roll_back:
                taken &= goes_on | (after >= before)
            boxes[moving[taken]], ious[moving[taken]] = moved[taken], after[taken]
            moving, gradient = moving[goes_on], gradient[goes_on]
    return boxes, ious


def _value_and_gradient(predict_iou: PredictIoU, boxes: Tensor, index: Tensor, wanted: bool) -> tuple[Tensor, Tensor]:
    """The predictions (L,) and their gradient (L, 4), which is 0 where it is not wanted."""
    if not wanted:
        with torch.no_grad():
            return predict_iou(boxes, index).to(boxes.dtype), torch.zeros_like(boxes)
    leaf = boxes.detach().requires_grad_()
    ious = predict_iou(leaf, index)
    (gradient,) = torch.autograd.grad(ious.sum(), leaf)
    return ious.detach().to(boxes.dtype), gradient
