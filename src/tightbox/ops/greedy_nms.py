"""Greedy suppression within each class of each image, of all images of a batch together."""

import torch
from torch import Tensor
from torchvision.ops import batched_nms

from tightbox.ops.csr import uses_triton


def greedy_nms(
    boxes: Tensor, scores: Tensor, iou_threshold: float, most: int, class_agnostic: bool = False
) -> tuple[Tensor, Tensor]:
    """Which boxes are kept: the best, then the best that overlaps no kept one of its class, and so on.

    Args:
        boxes: (B, K, 4).
        scores: (B, K, C), −∞ where there is nothing to be kept.
        iou_threshold: a box is dropped if its IoU with a better one is above this.
        most: at most so many of each image are kept, the best ones.
        class_agnostic: let boxes drop those of other classes too.

    Returns:
        Places in K · C (B, `most`), best first, of equal ones the first, and how many of these are kept (B,); the
        others mean nothing. With Triton, no GPU is waited for.
    """
    places = torch.zeros(len(boxes), most, dtype=torch.int64, device=boxes.device)
    counts = torch.zeros(len(boxes), dtype=torch.int64, device=boxes.device)
    if scores.numel() == 0 or most == 0:
        return places, counts
    if uses_triton(boxes):
        from tightbox.ops import greedy_nms_triton

        greedy_nms_triton.keep(places, counts, boxes, scores, iou_threshold, class_agnostic)
        return places, counts
    image, row, label = (scores > -torch.inf).nonzero().unbind(1)
    group = image if class_agnostic else image * scores.shape[2] + label
    kept = nms_in_groups(boxes[image, row], scores[image, row, label], group, iou_threshold)
    kept = kept[image[kept].sort(stable=True).indices]  # image after image, and the best first within each
    image, place = image[kept], row[kept] * scores.shape[2] + label[kept]
    found = image.bincount(minlength=len(boxes))
    rank = torch.arange(len(image), device=image.device) - (found.cumsum(0) - found)[image]
    fits = rank < most
    places[image[fits], rank[fits]] = place[fits]
    return places, found.clamp(max=most)


def nms_in_groups(boxes: Tensor, scores: Tensor, group: Tensor, iou_threshold: float) -> Tensor:
    """Which of the boxes (N, 4) greedy suppression keeps in each group (N,), best first, of equal ones the first."""
    if len(boxes) == 0:
        return torch.zeros_like(group)
    # To keep the groups apart their boxes are moved apart. In float32 that would blur the 80th class of a 1333 px
    # image by 1/128 px; Apple's GPUs have no float64 and must bear it. The shift from zero is for unclipped boxes.
    wide = boxes if boxes.device.type == "mps" else boxes.double()
    # torchvision takes boxes of equal scores in whatever order; of their ranks no two are equal.
    order = scores.argsort(descending=True, stable=True)
    ranks = torch.arange(len(order), 0, -1, dtype=wide.dtype, device=wide.device)
    keep: Tensor = batched_nms((wide - wide.min())[order], ranks, group[order], iou_threshold)
    return order[keep]
