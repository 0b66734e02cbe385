"""The IoU family of box losses: IoU, GIoU, DIoU and CIoU, element by element on `xyxy` boxes.

Every loss and its gradient is finite for any finite boxes: a box without area, or an inverted one, counts as empty.

UnitBox, https://arxiv.org/abs/1608.01471; GIoU, https://arxiv.org/abs/1902.09630;
DIoU and CIoU, https://arxiv.org/abs/1911.08287; CIoU's gate, https://arxiv.org/abs/2005.03572.
"""

import math
from typing import Literal

import torch
from torch import Tensor

from tightbox.boxes import at_least_float32, intersection_union
from tightbox.errors import UserError


def iou_loss(pred: Tensor, target: Tensor, kind: Literal["log", "linear"] = "log", eps: float = 1e-6) -> Tensor:
    """UnitBox's −ln IoU (its algorithm 1), or 1 − IoU, of each pair of boxes (...).

    The IoU is clamped to `eps`, so boxes that do not overlap cost −ln `eps` (13.8 by default) and get no gradient at
    all: nothing pulls them together. The other three losses do pull.

    Args:
        pred: (..., 4) predicted boxes.
        target: (..., 4) ground-truth boxes.
        kind: "log" for −ln IoU, "linear" for 1 − IoU.
        eps: least union, in square pixels, and least IoU.

    Raises:
        UserError: if `kind` is unknown.

    >>> pred, target = torch.tensor([0.0, 0.0, 4.0, 4.0]), torch.tensor([0.0, 0.0, 4.0, 8.0])
    >>> iou_loss(pred, target), iou_loss(pred, target, kind="linear")
    (tensor(0.6931), tensor(0.5000))
    """
    intersection, union = intersection_union(pred, target)
    iou = (intersection / union.clamp(min=eps)).clamp(min=eps)
    match kind:
        case "log":
            return -iou.log()
        case "linear":
            return 1 - iou
    raise UserError(f"kind is {kind!r}; choose 'log' or 'linear'")


def giou_loss(pred: Tensor, target: Tensor, eps: float = 1e-6) -> Tensor:
    """1 − GIoU, where GIoU = IoU − (|C| − |U|) / |C|, C the smallest box around both and U their union; in [0, 2].

    Arguments as of `iou_loss`, but `eps` is the least area of U and of C.

    >>> giou_loss(torch.tensor([0.0, 0.0, 4.0, 4.0]), torch.tensor([12.0, 0.0, 16.0, 4.0]))
    tensor(1.5000)
    """
    intersection, union = intersection_union(pred, target)
    union = union.clamp(min=eps)
    width, height = _enclosing_sides(pred, target).unbind(-1)
    enclosing = (width * height).clamp(min=eps)
    return 1 - intersection / union + (enclosing - union) / enclosing


def diou_loss(pred: Tensor, target: Tensor, eps: float = 1e-6) -> Tensor:
    """1 − IoU + d² / c², d the distance of the centres and c the diagonal of the smallest box around both; in [0, 2].

    Arguments as of `iou_loss`, but `eps` is added to the union and to c².

    >>> diou_loss(torch.tensor([0.0, 0.0, 4.0, 4.0]), torch.tensor([4.0, 0.0, 8.0, 4.0]))
    tensor(1.2000)
    """
    iou, distance = _iou_and_centre_distance(pred, target, eps)
    return 1 - iou + distance


def ciou_loss(pred: Tensor, target: Tensor, eps: float = 1e-6) -> Tensor:
    """The DIoU loss plus αv, v = (2/π · difference of the boxes' atan(w/h))² and α = v / (1 − IoU + v).

    α carries no gradient and is 0 up to an IoU of 0.5: the shape matters once the boxes overlap well. For identical
    boxes α is 0/0, which others return as NaN; here the loss and its gradient are 0.

    Arguments as of `iou_loss`, but `eps` is added to the union, to c² and to the heights, and is α's least denominator.

    >>> ciou_loss(torch.tensor([0.0, 0.0, 4.0, 4.0]), torch.tensor([0.0, 0.0, 4.0, 6.0]))
    tensor(0.3533)
    """
    iou, distance = _iou_and_centre_distance(pred, target, eps)
    v = (2 / math.pi * (_aspect_angle(target, eps) - _aspect_angle(pred, eps))) ** 2
    with torch.no_grad():
        alpha = torch.where(iou > 0.5, v / (1 - iou + v).clamp(min=eps), 0)
    return 1 - iou + distance + alpha * v


def _enclosing_sides(a: Tensor, b: Tensor) -> Tensor:
    """Width and height (..., 2) of the smallest box around each pair."""
    a, b = at_least_float32(a), at_least_float32(b)
    return (torch.maximum(a[..., 2:], b[..., 2:]) - torch.minimum(a[..., :2], b[..., :2])).clamp(min=0)


def _iou_and_centre_distance(a: Tensor, b: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    """IoU and d² / c² of DIoU, (...) each."""
    intersection, union = intersection_union(a, b)
    a, b = at_least_float32(a), at_least_float32(b)
    centre_offset = ((a[..., :2] + a[..., 2:]) - (b[..., :2] + b[..., 2:])) / 2
    diagonal = _enclosing_sides(a, b).square().sum(-1)
    return intersection / (union + eps), centre_offset.square().sum(-1) / (diagonal + eps)


def _aspect_angle(boxes: Tensor, eps: float) -> Tensor:
    """atan(w/h) (...) in radians; `atan2` stays differentiable where w/h would overflow."""
    boxes = at_least_float32(boxes)
    width, height = (boxes[..., 2:] - boxes[..., :2]).clamp(min=0).unbind(-1)
    return torch.atan2(width, height + eps)
