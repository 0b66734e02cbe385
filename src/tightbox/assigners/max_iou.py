"""Assignment by overlap: an anchor learns the object it overlaps most, if it overlaps it enough.

Faster R-CNN (https://arxiv.org/abs/1506.01497) with RetinaNet's thresholds (https://arxiv.org/abs/1708.02002).
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from tightbox.assigners.assignment import BACKGROUND, IGNORED, in_parts, in_regions, padded_boxes
from tightbox.boxes import at_least_float32, constant, pairwise_iou
from tightbox.errors import UserError
from tightbox.structures import Targets


def max_iou(
    anchors: Tensor,
    targets: Sequence[Targets],
    positive: float = 0.5,
    negative: float = 0.4,
    low_quality: bool = True,
    ignore_iof: float | None = None,
    valid: Tensor | None = None,
) -> Tensor:
    """Which ground-truth box each anchor learns in each of B images.

    Args:
        anchors: (N, 4) anchors of all images, or (B, N, 4) of each its own.
        targets: the objects of each image.
        positive: an anchor learns the ground-truth box of highest IoU if that is at least this ...
        negative: ... is background if it is below this, and is ignored in between.
        low_quality: each ground-truth box also has the anchors that overlap it most, all of them if several are equal,
            however little that is, unless it is nothing. Of several that so claim an anchor the last one has it.
        ignore_iof: background anchors of which more than this fraction lies in one region of `targets.ignore` are
            ignored; None leaves the regions out of it.
        valid: (B, N) bool; False for an anchor in the padding, which is ignored.

    Returns:
        (B, N) int64 index of the image's ground-truth box that each learns, `BACKGROUND` (-1) or `IGNORED` (-2).

    Raises:
        UserError: if the thresholds are not 0 <= negative <= positive <= 1.

    >>> anchors = torch.tensor([[0.0, 0.0, 8.0, 8.0], [8.0, 0.0, 16.0, 8.0], [0.0, 0.0, 16.0, 16.0]])
    >>> targets = Targets.of(torch.tensor([[7.0, 0.0, 15.0, 8.0]]), torch.tensor([0]))
    >>> max_iou(anchors, [targets])
    tensor([[-1,  0, -1]])
    """
    if not 0 <= negative <= positive <= 1:
        raise UserError(f"max_iou needs 0 <= negative <= positive <= 1, not negative {negative}, positive {positive}")
    every_anchor = at_least_float32(anchors).expand(len(targets), -1, -1)
    every_valid = torch.ones_like(every_anchor[..., 0], dtype=torch.bool) if valid is None else valid

    def assign(part: slice) -> Tensor:
        anchors, usable = every_anchor[part], every_valid[part]
        gt_boxes = padded_boxes(targets[part])  # (B, G, 4); the overlap of padding is 0, by which it gets no anchor
        matched = torch.full_like(usable, BACKGROUND, dtype=torch.int64)
        if gt_boxes.numel() > 0 and usable.numel() > 0:
            overlaps = pairwise_iou(gt_boxes, anchors) * usable[:, None]  # (B, G, N)
            best, gt_index = overlaps.max(dim=1)
            objects = constant([[len(image) > 0] for image in targets[part]], usable)
            matched = matched.masked_fill((best >= negative) & objects, IGNORED)
            matched = torch.where((best >= positive) & (best > 0), gt_index, matched)
            if low_quality:
                highest = overlaps.amax(dim=2, keepdim=True)
                claims = overlaps == torch.where(highest > 0, highest, torch.inf)
                order = torch.arange(overlaps.shape[1], dtype=torch.int32, device=anchors.device)[:, None]
                claimed = torch.where(claims, order, BACKGROUND).amax(dim=1)
                matched = torch.where(claimed >= 0, claimed, matched)
        inside = in_regions(anchors, targets[part], ignore_iof)
        if inside is not None:
            matched = matched.masked_fill(inside & (matched == BACKGROUND), IGNORED)
        return matched.masked_fill(~usable, IGNORED)

    return in_parts(assign, targets, every_anchor.shape[1])
