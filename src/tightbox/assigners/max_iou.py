"""Assignment by overlap: an anchor learns the object it overlaps most, if it overlaps it enough.

Faster R-CNN (https://arxiv.org/abs/1506.01497) with RetinaNet's thresholds (https://arxiv.org/abs/1708.02002).
"""

import torch
from torch import Tensor

from tightbox.assigners.assignment import BACKGROUND, IGNORED, Assignment
from tightbox.boxes import area, at_least_float32, intersection_union, pairwise_iou
from tightbox.errors import UserError
from tightbox.structures import Targets


def max_iou(
    anchors: Tensor,
    targets: Targets,
    positive: float = 0.5,
    negative: float = 0.4,
    low_quality: bool = True,
    ignore_iof: float | None = None,
    valid: Tensor | None = None,
) -> Assignment:
    """Which ground-truth box each anchor learns.

    Args:
        anchors: (N, 4) anchors.
        targets: the objects of one image.
        positive: an anchor learns the ground-truth box of highest IoU if that is at least this ...
        negative: ... is background if it is below this, and is ignored in between.
        low_quality: each ground-truth box also has the anchors that overlap it most, all of them if several are equal,
            however little that is, unless it is nothing. Of several that so claim an anchor the last one has it.
        ignore_iof: background anchors of which more than this fraction lies in one region of `targets.ignore` are
            ignored; None leaves the regions out of it.
        valid: (N,) bool; False for an anchor in the padding, which is ignored.

    Raises:
        UserError: if the thresholds are not 0 <= negative <= positive <= 1.

    >>> anchors = torch.tensor([[0.0, 0.0, 8.0, 8.0], [8.0, 0.0, 16.0, 8.0], [0.0, 0.0, 16.0, 16.0]])
    >>> targets = Targets.of(torch.tensor([[7.0, 0.0, 15.0, 8.0]]), torch.tensor([0]))
    >>> max_iou(anchors, targets)
    Assignment(matched=tensor([-1,  0, -1]), ious=tensor([0.0000, 0.7778, 0.0000]))
    """
    if not 0 <= negative <= positive <= 1:
        raise UserError(f"max_iou needs 0 <= negative <= positive <= 1, not negative {negative}, positive {positive}")
    anchors, gt_boxes = at_least_float32(anchors), at_least_float32(targets.boxes)
    usable = torch.ones(len(anchors), dtype=torch.bool, device=anchors.device) if valid is None else valid
    matched = torch.full_like(usable, BACKGROUND, dtype=torch.int64)
    ious = anchors.new_zeros(len(anchors))
    if len(gt_boxes) > 0 and len(anchors) > 0:
        overlaps = pairwise_iou(anchors, gt_boxes) * usable[:, None]  # (N, G)
        best, gt_index = overlaps.max(dim=1)
        matched = matched.masked_fill(best >= negative, IGNORED)
        matched = torch.where((best >= positive) & (best > 0), gt_index, matched)
        if low_quality:
            highest = overlaps.amax(dim=0)
            claims = (overlaps == highest) & (highest > 0)
            order = torch.arange(len(gt_boxes), device=anchors.device)
            claimed = torch.where(claims, order, BACKGROUND).amax(dim=1)
            matched = torch.where(claimed >= 0, claimed, matched)
        ious = overlaps.gather(1, matched.clamp(min=0)[:, None]).squeeze(1) * (matched >= 0)
    if ignore_iof is not None:
        intersections, _ = intersection_union(anchors[:, None], targets.ignore)  # (N, I)
        inside = (intersections > ignore_iof * area(anchors)[:, None]).any(dim=1)
        matched = matched.masked_fill(inside & (matched == BACKGROUND), IGNORED)
    return Assignment(matched.masked_fill(~usable, IGNORED), ious)
