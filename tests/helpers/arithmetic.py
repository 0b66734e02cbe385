"""Pieces of slow references in plain Python, one pair of boxes or one number at a time."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import numpy as np
import torch
from numpy.typing import ArrayLike
from torch import Tensor

Box = Sequence[float]


def area(box: Box) -> float:
    """Of an inverted box, 0."""
    return max(0.0, box[2] - box[0]) * max(0.0, box[3] - box[1])


def intersection(a: Box, b: Box) -> float:
    """The area that two boxes share."""
    return area([max(a[0], b[0]), max(a[1], b[1]), min(a[2], b[2]), min(a[3], b[3])])


def iou_of_two(a: Box, b: Box) -> float:
    """0, if neither has an area."""
    shared = intersection(a, b)
    union = area(a) + area(b) - shared
    return shared / union if union > 0 else 0.0


def sigmoid(x: float) -> float:
    return 1 / (1 + math.exp(-x))


def random_boxes(count: int, origin: float = 0.0, dtype: torch.dtype = torch.float32) -> Tensor:
    """(count, 4): corners within 60 pixels of the origin, sides between 10 and 50, so that many overlap."""
    corner = torch.rand(count, 2, dtype=dtype) * 60 + origin
    return torch.cat([corner, corner + 10 + torch.rand(count, 2, dtype=dtype) * 40], dim=1)


def value_and_gradient(loss: Callable[[Tensor, Tensor], Tensor], pred: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
    """The loss of each row, and the gradient of their sum for the prediction."""
    pred = pred.clone().requires_grad_()
    value = loss(pred, target)
    (gradient,) = torch.autograd.grad(value.sum(), pred)
    return value.detach(), gradient


def threshold_for_precision(
    scores: ArrayLike, true_ious: ArrayLike, precision: float = 0.95, at_iou: float = 0.75
) -> float | None:
    """The lowest score from which on at least this fraction of the detections has at least this true IoU.

    All detections with the threshold's score or more are counted; one with a NaN score is not, one with a NaN IoU is
    wrong. None if no threshold reaches the precision. It was chosen on these detections and flatters itself on them a
    little, the more the fewer they are.

    Args:
        scores: (N,) scores.
        true_ious: (N,) `Matches.best_iou`, or `Outcome.ious` if duplicates are to be wrong.
        precision: the fraction asked for.
        at_iou: the IoU a right detection has at least.
    """
    scores, true_ious = (np.asarray(values, dtype=np.float64) for values in (scores, true_ious))
    order = np.argsort(-scores, kind="stable")[: np.count_nonzero(~np.isnan(scores))]
    scores, good = scores[order], true_ious[order] >= at_iou
    ends = np.flatnonzero(np.diff(scores, append=-np.inf))
    # 19 of 20 are 95 per cent, whatever 0.95 × 20 is rounded to.
    enough = ends[np.cumsum(good)[ends] >= precision * (ends + 1) - 1e-9]
    return float(scores[enough[-1]]) if len(enough) else None
