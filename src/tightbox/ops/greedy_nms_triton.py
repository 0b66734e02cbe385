"""Greedy suppression on a GPU, in Triton; also under its interpreter (TRITON_INTERPRET=1) on a CPU.

One program goes through the boxes of one image, best first, and compares each with the kept ones alone, of which no
more than `most` are needed. So it ends early, and needs no table of all pairs.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor


def keep(
    places: Tensor, counts: Tensor, boxes: Tensor, scores: Tensor, iou_threshold: float, class_agnostic: bool
) -> None:
    """Fills `places` (B, most) and `counts` (B,); the other arguments are those of `greedy_nms`."""
    best, order = scores.flatten(1).sort(dim=1, descending=True, stable=True)
    counts.copy_((best > -torch.inf).sum(dim=1))
    threshold = torch.full((), iou_threshold, dtype=torch.float64, device=boxes.device)
    (batch, rows, classes), most = scores.shape, places.shape[1]
    block = triton.next_power_of_2(most)
    with torch.cuda.device_of(boxes):
        _keep[(batch,)](
            boxes.contiguous(), order, threshold, places, counts, rows, classes, most, class_agnostic, block,
            num_warps=max(1, min(8, block // 128)),
        )  # fmt: skip


@triton.jit
def _keep(boxes, order, threshold, places, counts, rows, classes, most, AGNOSTIC: tl.constexpr, BLOCK: tl.constexpr):
    image = tl.program_id(0).to(tl.int64)
    boxes += image * rows * 4
    order += image * rows * classes
    places += image * most
    limit, number = tl.load(threshold), tl.load(counts + image)
    slot = tl.arange(0, BLOCK)
    x1, y1, x2, y2 = (tl.zeros((BLOCK,), tl.float64),) * 4
    label = tl.zeros((BLOCK,), tl.int64)
    kept = tl.zeros((), tl.int32)
    i = tl.zeros((), tl.int64)
    while (i < number) & (kept < most):
        place = tl.load(order + i)
        box = boxes + place // classes * 4
        own = place % classes
        left, top = tl.load(box).to(tl.float64), tl.load(box + 1).to(tl.float64)
        right, bottom = tl.load(box + 2).to(tl.float64), tl.load(box + 3).to(tl.float64)
        width = tl.maximum(tl.minimum(x2, right) - tl.maximum(x1, left), 0.0)
        height = tl.maximum(tl.minimum(y2, bottom) - tl.maximum(y1, top), 0.0)
        union = (x2 - x1) * (y2 - y1) + (right - left) * (bottom - top) - width * height
        covered = (slot < kept) & (width * height / union > limit)
        if not AGNOSTIC:
            covered = covered & (label == own)
        free = tl.sum(covered.to(tl.int32), axis=0) == 0
        tl.store(places + kept, place, mask=free)
        here = free & (slot == kept)
        x1, y1 = tl.where(here, left, x1), tl.where(here, top, y1)
        x2, y2 = tl.where(here, right, x2), tl.where(here, bottom, y2)
        label = tl.where(here, own, label)
        kept += free.to(tl.int32)
        i += 1
    tl.store(counts + image, kept.to(tl.int64))
