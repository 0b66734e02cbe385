"""FCOS: a point learns the smallest object around it whose size suits the point's level.

FCOS, https://arxiv.org/abs/1904.01355, sections 3.1 and 3.2; centre sampling is from https://arxiv.org/abs/2006.09214.
"""

import torch
from torch import Tensor

from tightbox.assigners.assignment import BACKGROUND, Assignment
from tightbox.boxes import area, at_least_float32, encode_distances
from tightbox.structures import Targets


def fcos_assign(
    points: Tensor, point_strides: Tensor, regress_ranges: Tensor, targets: Targets, center_radius: float | None = None
) -> Assignment:
    """Which ground-truth box each point learns; `targets.ignore` plays no part.

    Args:
        points: (N, 2) x, y in pixels; FCOS has them in the middle of their cells.
        point_strides: (N,) stride of each point's level.
        regress_ranges: (N, 2) least and greatest distance, in pixels, that a point may have to its farthest side.
        targets: the objects of one image.
        center_radius: take only points within this many strides of the box's centre, both ways, and inside the box
            (1.5 in the literature); None takes every point inside the box.

    >>> points, strides = torch.tensor([[4.0, 4.0], [12.0, 4.0], [28.0, 4.0]]), torch.full((3,), 8.0)
    >>> targets = Targets.of(torch.tensor([[0.0, 0.0, 20.0, 8.0], [8.0, 0.0, 18.0, 8.0]]), torch.tensor([0, 0]))
    >>> fcos_assign(points, strides, torch.tensor([[-1.0, 64.0]]).expand(3, 2), targets).matched
    tensor([ 0,  1, -1])
    """
    if len(targets) == 0:
        return Assignment(torch.full((len(points),), BACKGROUND, dtype=torch.int64, device=points.device))
    gt_boxes = at_least_float32(targets.boxes)
    distances = encode_distances(points[:, None], gt_boxes)  # (N, G, 4)
    inside = distances.amin(dim=-1) > 0
    if center_radius is not None:
        offsets = points[:, None] - (gt_boxes[:, :2] + gt_boxes[:, 2:]) / 2  # (N, G, 2)
        inside &= offsets.abs().amax(dim=-1) < center_radius * point_strides[:, None]
    farthest = distances.amax(dim=-1)
    in_range = (farthest >= regress_ranges[:, :1]) & (farthest <= regress_ranges[:, 1:])
    smallest, matched = torch.where(inside & in_range, area(gt_boxes), torch.inf).min(dim=1)
    return Assignment(torch.where(smallest.isinf(), BACKGROUND, matched))
