"""FCOS: a point learns the smallest object around it whose size suits the point's level.

FCOS, https://arxiv.org/abs/1904.01355, sections 3.1 and 3.2; centre sampling is from https://arxiv.org/abs/2006.09214.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from tightbox.assigners.assignment import BACKGROUND, in_parts, padded_boxes
from tightbox.boxes import area, encode_distances
from tightbox.structures import Targets


def fcos_assign(
    points: Tensor, strides: Tensor, ranges: Tensor, targets: Sequence[Targets], center_radius: float | None = None
) -> Tensor:
    """Which ground-truth box each point learns in each of B images; `targets.ignore` plays no part.

    Args:
        points: (N, 2) x, y in pixels; FCOS has them in the middle of their cells.
        strides: (N,) stride of each point's level.
        ranges: (N, 2) least and greatest distance, in pixels, that a point may have to its farthest side.
        targets: the objects of each image.
        center_radius: take only points within this many strides of the box's centre, both ways, and inside the box
            (1.5 in the literature); None takes every point inside the box.

    Returns:
        (B, N) int64 index of the image's ground-truth box that each learns, or `BACKGROUND` (-1).

    >>> points, strides = torch.tensor([[4.0, 4.0], [12.0, 4.0], [28.0, 4.0]]), torch.full((3,), 8.0)
    >>> targets = Targets.of(torch.tensor([[0.0, 0.0, 20.0, 8.0], [8.0, 0.0, 18.0, 8.0]]), torch.tensor([0, 0]))
    >>> fcos_assign(points, strides, torch.tensor([[-1.0, 64.0]]).expand(3, 2), [targets])
    tensor([[ 0,  1, -1]])
    """

    def assign(part: slice) -> Tensor:
        gt_boxes = padded_boxes(targets[part])[:, None]  # (B, 1, G, 4)
        if gt_boxes.numel() == 0:
            return strides.new_full((len(gt_boxes), len(points)), BACKGROUND, dtype=torch.int64)
        distances = encode_distances(points[:, None], gt_boxes)  # (B, N, G, 4)
        learns = distances.amin(dim=-1) > 0
        if center_radius is not None:
            offsets = points[:, None] - (gt_boxes[..., :2] + gt_boxes[..., 2:]) / 2  # (B, N, G, 2)
            learns &= offsets.abs().amax(dim=-1) < center_radius * strides[:, None]
        farthest = distances.amax(dim=-1)
        learns &= (farthest >= ranges[:, :1]) & (farthest <= ranges[:, 1:])
        smallest, matched = torch.where(learns, area(gt_boxes), torch.inf).min(dim=2)
        return torch.where(smallest.isinf(), BACKGROUND, matched)

    return in_parts(assign, targets, len(points))
