"""Soft non-maximum suppression: boxes that overlap a better one lose score instead of being removed."""

from typing import Literal

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from tightbox.boxes import at_least_float32, iou
from tightbox.errors import UserError


def soft_nms(
    boxes: Tensor,
    scores: Tensor,
    labels: Tensor | None = None,
    method: Literal["linear", "gaussian"] = "linear",
    iou_threshold: float = 0.3,
    sigma: float = 0.5,
    score_threshold: float = 0.001,
    max_kept: int | None = None,
) -> tuple[Tensor, Tensor]:
    """Keeps the best box, multiplies the others' scores by a factor that falls with their IoU with it, and so on.

    The factor is 1 − IoU from `iou_threshold` on and 1 below (linear), or exp(−IoU² / σ) (Gaussian): equations 2 and 3
    of Bodla et al. (https://arxiv.org/abs/1704.04503). Of equal scores the first in the input goes first.

    Args:
        boxes: (N, 4).
        scores: (N,).
        labels: (N,) int64 class of each; boxes of different classes leave each other alone. Without it there is one.
        method: how scores fall.
        iou_threshold: overlaps below this cost nothing; of the linear method only.
        sigma: the larger, the less an overlap costs; of the Gaussian method only.
        score_threshold: boxes whose score is not, or no longer, above this are removed.
        max_kept: only so many of the best are found, in as many steps. Left out, all are.

    Returns:
        Indices (M,) of the boxes left and their fallen scores (M,), highest first.

    Raises:
        UserError: if the lengths differ, or a number is out of range.

    >>> boxes = torch.tensor([[0.0, 0.0, 10.0, 10.0], [0.0, 0.0, 10.0, 5.0], [20.0, 0.0, 30.0, 10.0]])
    >>> soft_nms(boxes, torch.tensor([0.9, 0.8, 0.7]))
    (tensor([0, 2, 1]), tensor([0.9000, 0.7000, 0.4000]))
    """
    if len(scores) != len(boxes) or (labels is not None and len(labels) != len(boxes)):
        also = "" if labels is None else f" and {len(labels)} labels"
        raise UserError(f"soft-NMS: {len(scores)} scores{also} for {len(boxes)} boxes; it needs one for each")
    if method not in ("linear", "gaussian"):
        raise UserError(f"soft-NMS: the method is {method!r}; it must be linear or gaussian")
    if not 0 <= iou_threshold <= 1 or not sigma > 0 or not score_threshold >= 0:
        raise UserError("soft-NMS: iou_threshold must be in [0, 1], sigma above 0 and score_threshold at least 0")
    boxes, scores = at_least_float32(boxes), at_least_float32(scores)
    index = _by_class(scores > score_threshold, labels)
    grid = boxes[index]
    # One more, at index -1, for the places that are left over; scores of 0 are below every threshold.
    current = torch.cat([scores, scores.new_zeros(1)])[index]
    keep, kept_scores = [index.new_zeros(0)], [scores.new_zeros(0)]
    for _ in range(index.shape[1] if max_kept is None else min(max_kept, index.shape[1])):
        best = current.argmax(dim=1, keepdim=True)  # of each class
        best_score = current.gather(1, best)
        alive = best_score > score_threshold
        if not alive.any():
            break
        keep.append(index.gather(1, best)[alive])
        kept_scores.append(best_score[alive])
        overlap = iou(grid.gather(1, best[:, :, None].expand(-1, -1, 4)), grid)
        if method == "linear":
            current = torch.where(overlap >= iou_threshold, current * (1 - overlap), current)
        else:
            current = current * (-(overlap**2) / sigma).exp()
        current.scatter_(1, best, 0)
    found, order = torch.cat(keep).sort()
    decayed, by_score = torch.cat(kept_scores)[order].sort(descending=True, stable=True)
    return found[by_score][:max_kept], decayed[:max_kept]


def _by_class(chosen: Tensor, labels: Tensor | None) -> Tensor:
    """Indices of the chosen rows as a table with a line for each class, filled up with -1."""
    rows = chosen.nonzero().squeeze(1)
    if labels is None or len(rows) == 0:
        return rows[None]
    rows = rows[labels[rows].argsort(stable=True)]
    _, counts = labels[rows].unique_consecutive(return_counts=True)
    return pad_sequence(rows.split(counts.tolist()), batch_first=True, padding_value=-1)
