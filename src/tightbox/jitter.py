"""Boxes around true ones whose IoU is known, to learn the prediction of IoU from."""

import torch
from torch import Tensor

from tightbox.boxes import clip_boxes, iou

HALVINGS = 14  # leave an IoU at most about 1e-4 above the one drawn


def jitter_boxes(
    boxes: Tensor, sizes: Tensor, generator: torch.Generator | None = None, low: float = 0.5
) -> tuple[Tensor, Tensor]:
    """For each ground-truth box a random one whose IoU with it is uniform over [low, 1), whatever its shape and place.

    IoU-Net (https://arxiv.org/abs/1807.11590, section 3.1) learns from such boxes instead of proposals. There they are
    drawn until the IoU fits, here none is thrown away: the IoU is drawn first, then for each side how fast it moves,
    out or in; how far they go is then found by bisection.

    A GPU is not waited for, as nothing is checked: a box without area keeps its place, and has the IoU 0 or NaN.

    Args:
        boxes: (N, 4) ground-truth boxes; what lies outside the image is cut off first.
        sizes: (N, 2) height and width of each box's image, which no jittered box leaves, or (2,) of the one of all.
        generator: source of randomness, on the boxes' device; PyTorch's own without it.
        low: lowest IoU, in (0, 1).

    Returns:
        Jittered boxes (N, 4) and their IoUs (N,).

    >>> jittered, ious = jitter_boxes(torch.tensor([[10.0, 10.0, 50.0, 30.0]]).expand(100, 4), torch.tensor([64, 64]))
    >>> jittered.shape, bool((ious >= 0.5).all())
    (torch.Size([100, 4]), True)
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
