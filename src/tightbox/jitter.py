"""Boxes around true ones whose IoU is known, to learn the prediction of IoU from."""

import torch
from torch import Tensor

from tightbox.boxes import clip_boxes, iou
from tightbox.errors import UserError

HALVINGS = 14  # leave an IoU at most about 1e-4 above the one drawn


def jitter_boxes(
    boxes: Tensor, per_box: int, size: tuple[int, int], generator: torch.Generator | None = None, low: float = 0.5
) -> tuple[Tensor, Tensor]:
    """Random boxes whose IoU with their ground-truth box is uniform over [low, 1), whatever its shape and place.

    IoU-Net (https://arxiv.org/abs/1807.11590, section 3.1) learns from such boxes instead of proposals. There they are
    drawn until the IoU fits, here none is thrown away: the IoU is drawn first, then for each side how fast it moves,
    out or in; how far they go is then found by bisection.

    Args:
        boxes: (G, 4) ground-truth boxes; what lies outside the image is cut off first.
        per_box: how many to draw for each.
        size: (height, width) of the image, which no jittered box leaves.
        generator: source of randomness, on the boxes' device; PyTorch's own without it.
        low: lowest IoU, in (0, 1).

    Returns:
        Jittered boxes (G · per_box, 4), those of the first ground-truth box first, and their IoUs (G · per_box,).

    Raises:
        UserError: if `low` is out of range, or a box has no area inside the image.

    >>> jittered, ious = jitter_boxes(torch.tensor([[10.0, 10.0, 50.0, 30.0]]), 100, size=(64, 64))
    >>> jittered.shape, bool((ious >= 0.5).all())
    (torch.Size([100, 4]), True)
    """
    if not 0 < low < 1:
        raise UserError(f"jitter_boxes: the lowest IoU is {low}; it must lie between 0 and 1")
    boxes = clip_boxes(boxes, size)
    empty = ~(boxes[:, 2:] > boxes[:, :2]).all(dim=1)
    if empty.any():
        raise UserError(f"jitter_boxes: box {int(empty.nonzero()[0])} has no area inside the image; leave it out")
    return jittered_each(boxes.repeat_interleave(per_box, dim=0), boxes.new_tensor(size), generator, low)


def jittered_each(
    boxes: Tensor, sizes: Tensor, generator: torch.Generator | None = None, low: float = 0.5
) -> tuple[Tensor, Tensor]:
    """The same, one for each box (N, 4) and in an image of its own of `sizes` (N, 2), or in one of (2,).

    A GPU is not waited for, as nothing is checked: a box without area keeps its place, and has the IoU 0 or NaN.
    """
    boxes = clip_boxes(boxes, sizes)
    sizes = sizes.to(boxes)

    def draw(*shape: int) -> Tensor:
        return torch.rand(shape, generator=generator, dtype=boxes.dtype, device=boxes.device)

    wanted = low + (1 - low) * draw(len(boxes))
    speed = 2 * draw(len(boxes), 4) - 1
    speed = speed / speed.abs().amax(dim=1, keepdim=True) * (boxes[:, 2:] - boxes[:, :2]).repeat(1, 2)

    def move(distance: Tensor) -> tuple[Tensor, Tensor]:
        moved = clip_boxes(boxes + distance[:, None] * speed, sizes)
        return moved, iou(moved, boxes)

    # The fastest side moves by the box's whole size over a distance of 1. Moving in, it brings the IoU to 0; out, to
    # 1/2 or less, and to `low` a little farther, unless the image's border stops it: then the other way is in.
    near, far = torch.zeros_like(wanted), torch.full_like(wanted, max(1.0, 1 / low - 1))
    speed = torch.where((move(far)[1] > wanted)[:, None], -speed, speed)
    for _ in range(HALVINGS):
        middle = (near + far) / 2
        enough = move(middle)[1] >= wanted
        near, far = torch.where(enough, middle, near), torch.where(enough, far, middle)
    return move(near)
