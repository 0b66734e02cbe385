"""The boxes that IoU-Net learns from: true boxes moved at random, so that their IoUs are uniform."""

from __future__ import annotations

import torch
from torch import Tensor

from tightbox.boxes import at_least_float32, clip_boxes, iou
from tightbox.errors import UserError

FARTHEST = 2.0  # box sizes that a side may move; no direction needs as much to bring the IoU down to any positive `low`
HALVINGS = 30  # of the interval in which the right distance lies


def jitter_boxes(
    boxes: Tensor,
    per_box: int,
    size: tuple[int, int],
    *,
    low: float = 0.5,
    generator: torch.Generator | None = None,
) -> tuple[Tensor, Tensor]:
    """Boxes around true ones whose IoU with them, after clipping to the image, is uniform over [low, 1).

    The paper draws boxes until their IoU fits, which rejects 96 to 99 of a hundred. Here the IoU is drawn first, then a
    direction for the four sides, and the distance along it is found by bisection, with the clipping inside. Where the
    border of the image stops a direction from reaching the IoU, as for an object that fills the image, the opposite
    direction does.

    Args:
        boxes: (G, 4) true boxes in the image, each with an area.
        per_box: boxes made of each.
        size: (height, width) of the image.
        low: lowest IoU; the paper's 0.5, below which boxes are too varied to learn from.
        generator: of the random numbers; PyTorch's global one without it.

    Returns:
        Boxes (G · per_box, 4), those of one true box after another, and their IoUs (G · per_box,).

    Raises:
        UserError: if a box has no area in the image, or `low` is not in (0, 1).

    Jiang et al., "Acquisition of Localization Confidence for Accurate Object Detection", section 3.1.

    >>> boxes, ious = jitter_boxes(torch.tensor([[10.0, 10.0, 50.0, 40.0]]), per_box=200, size=(64, 64))
    >>> bool((ious >= 0.5).all()), boxes.shape
    (True, torch.Size([200, 4]))
    """
    if not 0 < low < 1:
        raise UserError(f"jitter_boxes: low is {low}; it must lie between 0 and 1")
    # In double, as the IoU of a box of thousands of pixels has to be met to a few decimals more than float32 has.
    truth = boxes.double().repeat_interleave(per_box, dim=0)
    clipped = clip_boxes(boxes.double(), size)
    if not bool((clipped[:, 2:] > clipped[:, :2]).all()):
        raise UserError("jitter_boxes: a true box has no area inside the image; leave such boxes out")
    sides = (truth[:, 2:] - truth[:, :2]).repeat(1, 2)
    goal = low + (1 - low) * torch.rand(len(truth), 1, generator=generator).to(truth)
    direction = (2 * torch.rand(len(truth), 4, generator=generator).to(truth) - 1) * sides
    # A direction of unit length in its largest coordinate, so that no side moves by less than all others say.
    direction = direction / (direction / sides).abs().amax(dim=1, keepdim=True).clamp(min=1e-6)

    def moved(distance: Tensor) -> Tensor:
        return clip_boxes(truth + distance * direction, size)

    too_short = iou(moved(truth.new_full((len(truth), 1), FARTHEST)), truth)[:, None] > goal
    direction = torch.where(too_short, -direction, direction)
    near, far = torch.zeros_like(goal), torch.full_like(goal, FARTHEST)
    for _ in range(HALVINGS):
        middle = (near + far) / 2
        inside = iou(moved(middle), truth)[:, None] >= goal
        near, far = torch.where(inside, middle, near), torch.where(inside, far, middle)
    jittered = at_least_float32(moved(near).to(boxes.dtype))
    return jittered, iou(jittered, at_least_float32(boxes).repeat_interleave(per_box, dim=0)).clamp(min=low)
