"""IoU-guided non-maximum suppression: the best localised box stays, with the best class score it suppresses."""

import math

import torch
from torch import Tensor
from torch.nn.functional import pad
from torchvision.ops import nms

from tightbox.boxes import at_least_float32
from tightbox.errors import UserError
from tightbox.ops.greedy_nms import nms_in_groups


def iou_guided_nms(
    boxes: Tensor, scores: Tensor, ious: Tensor, iou_threshold: float, labels: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """Algorithm 1 of IoU-Net (https://arxiv.org/abs/1807.11590).

    The box of highest predicted IoU stays and removes the remaining ones that overlap it, and so on. What remains and
    what it removed is a cluster, scored by the best class score in it. Of equal predicted IoUs the first in the input
    goes first. Boxes without area neither remove nor are removed.

    With labels it computes in float64 where the device has it, since the classes are kept apart by moving their boxes
    apart.

    Args:
        boxes: (N, 4).
        scores: (N,) class scores. Background belongs removed before: it may have a high predicted IoU.
        ious: (N,) predicted IoUs; they only order the boxes.
        iou_threshold: a box is removed if its IoU with a kept one is above this.
        labels: (N,) int64 class of each; boxes of different classes never meet. Without it there is one.

    Returns:
        Indices (M,) of the kept boxes and their clusters' scores (M,), by descending cluster score, then predicted IoU.

    Raises:
        UserError: if the lengths differ, or the threshold is outside [0, 1].

    >>> boxes = torch.tensor([[0.0, 0.0, 10.0, 10.0], [0.0, 0.0, 10.0, 9.0], [20.0, 0.0, 30.0, 10.0]])
    >>> scores, ious = torch.tensor([0.9, 0.6, 0.7]), torch.tensor([0.7, 0.8, 0.5])
    >>> iou_guided_nms(boxes, scores, ious, iou_threshold=0.5)
    (tensor([1, 2]), tensor([0.9000, 0.7000]))
    >>> iou_guided_nms(boxes, scores, ious, iou_threshold=0.5, labels=torch.tensor([0, 1, 0]))
    (tensor([0, 2, 1]), tensor([0.9000, 0.7000, 0.6000]))
    """
    number = len(boxes)
    if not number == len(scores) == len(ious):
        counts = f"{number} boxes, {len(scores)} scores and {len(ious)} predicted IoUs"
        raise UserError(f"IoU-guided NMS: {counts}; it needs one of each for every box")
    if labels is not None and len(labels) != number:
        raise UserError(f"IoU-guided NMS: {len(labels)} labels for {number} boxes; it needs one for each")
    if not 0 <= iou_threshold <= 1:
        raise UserError(f"IoU-guided NMS: the threshold is {iou_threshold}; it must be in [0, 1]")
    boxes = at_least_float32(boxes)
    if labels is None or number == 0:
        # On a GPU, `nms` rounds the threshold to float32, perhaps up.
        keep = nms(boxes, ious.to(boxes.dtype), _rounded_down(iou_threshold, boxes.dtype))
    else:
        keep = nms_in_groups(boxes, ious, labels, iou_threshold)
        boxes = boxes if boxes.device.type == "mps" else boxes.double()
        boxes = boxes - boxes.min()
        boxes = boxes + (labels * (boxes.max() + 1))[:, None]
    # The kept boxes are given in order of predicted IoU, and sorted by the best score that each one's cluster has.
    removed = torch.ones(number, dtype=torch.bool, device=boxes.device)
    removed[keep] = False
    rest = removed.nonzero().squeeze(1)
    clusters = pad(scores[keep], (0, 1))  # the last is for a box that `nms` removed by another device's rounding
    clusters.scatter_reduce_(0, _first_cover(boxes, keep, rest, iou_threshold), scores[rest], "amax")
    order = clusters[:-1].argsort(descending=True, stable=True)
    return keep[order], clusters[order]


def _first_cover(boxes: Tensor, keep: Tensor, rest: Tensor, iou_threshold: float) -> Tensor:
    """For each box of `rest` the first position in `keep` whose box overlaps it; len(keep) if none does."""
    corners = torch.cat([boxes[:, :2], -boxes[:, 2:]], dim=1).T  # negated, so that one maximum intersects two boxes
    middle, width = boxes[:, 0] + boxes[:, 2], boxes[:, 2] - boxes[:, 0]  # twice the middle
    area = width * (boxes[:, 3] - boxes[:, 1])

    kept_middle, by_middle = middle[keep].sort()
    kept = keep[by_middle]
    kept_corners, kept_area = corners[:, kept, None], area[kept, None]
    from_last = (len(keep) - by_middle).to(boxes.dtype)[:, None]  # largest for the first, 0 is left for none
    row_middle, order = middle[rest].sort()
    rows = rest[order]
    row_corners, row_area = corners[:, None, rows], area[rows]

    # IoU > t needs IoU > t of the extents in x alone, and so middles at most (1 - t) / 2t of either width apart. In
    # order of the middles, only a few kept boxes are near a chunk of rows. 1 % and the second term are for rounding.
    t = 0.99 * iou_threshold
    reach = width[rows] * ((1 - t) / t if t > 0 else math.inf) + row_middle.abs() * (4 * torch.finfo(boxes.dtype).eps)
    # Many rows share the fixed cost of PyTorch's calls, few have few kept boxes near all of them. Measured on a CPU.
    size = max(64, int(128 * math.sqrt(len(rows) / max(1, len(keep)))))
    padding = (0, -len(rows) % size)
    low = pad(row_middle - reach, padding, value=math.inf).view(-1, size).amin(dim=1)
    high = pad(row_middle + reach, padding, value=-math.inf).view(-1, size).amax(dim=1)
    starts = torch.searchsorted(kept_middle, low).tolist()
    ends = torch.searchsorted(kept_middle, high, right=True).tolist()

    limit = _rounded_down(iou_threshold, boxes.dtype)
    found = torch.zeros_like(row_area)
    for number, (start, end) in enumerate(zip(starts, ends, strict=True)):
        if start == end:
            continue
        near, chunk = slice(start, end), slice(number * size, (number + 1) * size)
        sides = torch.maximum(kept_corners[:, near], row_corners[:, :, chunk])
        negative_sides = (sides[:2] + sides[2:]).clamp_(max=0)
        intersection = negative_sides[0].mul_(negative_sides[1])
        union = (kept_area[near] + row_area[chunk]).sub_(intersection)
        covers = intersection.div_(union).gt_(limit)
        found[chunk] = covers.mul_(from_last[near]).amax(dim=0)
    first = torch.empty_like(rest)
    first[order] = len(keep) - found.long()
    return first


def _rounded_down(value: float, dtype: torch.dtype) -> float:
    """The largest number of `dtype` that is at most `value`: `nms` compares with the float64 threshold itself."""
    nearest = torch.tensor(value, dtype=dtype)
    rounded = nearest if nearest.item() <= value else torch.nextafter(nearest, nearest.new_tensor(-math.inf))
    return rounded.item()
