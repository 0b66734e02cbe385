"""Geometry of `xyxy` boxes: area, IoU, distance and delta coding, clipping, in float32 at least."""

import math
from typing import Any

import torch
from torch import Tensor


def at_least_float32(values: Tensor) -> Tensor:
    """The same values as float32, or as float64 if they are that already."""
    return values if values.dtype == torch.float64 else values.float()


def constant(values: Any, like: Tensor) -> Tensor:
    """Numbers as a tensor of the dtype of another and on its device, which, if it is a GPU, is not waited for."""
    return torch.tensor(values, dtype=like.dtype, device="cpu").to(like.device, non_blocking=True)


def area(boxes: Tensor) -> Tensor:
    """Area (...) of boxes (..., 4) in square pixels; 0 for an inverted box.

    >>> area(torch.tensor([[0.0, 0.0, 4.0, 3.0], [5.0, 5.0, 2.0, 9.0]]))
    tensor([12.,  0.])
    """
    boxes = at_least_float32(boxes)
    width, height = (boxes[..., 2:] - boxes[..., :2]).clamp(min=0).unbind(-1)
    return width * height


def intersection_union(a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
    """Areas (...) of the intersection and of the union of boxes `a` and `b`, (..., 4) each, which broadcast.

    >>> intersection_union(torch.tensor([0.0, 0.0, 4.0, 4.0]), torch.tensor([2.0, 0.0, 6.0, 4.0]))
    (tensor(8.), tensor(24.))
    """
    a, b = at_least_float32(a), at_least_float32(b)
    top_left = torch.maximum(a[..., :2], b[..., :2])
    bottom_right = torch.minimum(a[..., 2:], b[..., 2:])
    width, height = (bottom_right - top_left).clamp(min=0).unbind(-1)
    intersection = width * height
    return intersection, area(a) + area(b) - intersection


def iou(a: Tensor, b: Tensor) -> Tensor:
    """IoU (...) of each box of `a` with its box of `b`, (..., 4) each; 0, never NaN, where both have no area.

    >>> iou(torch.tensor([0.0, 0.0, 4.0, 4.0]), torch.tensor([2.0, 0.0, 6.0, 4.0]))
    tensor(0.3333)
    """
    intersection, union = intersection_union(a, b)
    return intersection / union.clamp(min=torch.finfo(union.dtype).tiny)


def pairwise_iou(a: Tensor, b: Tensor) -> Tensor:
    """IoU (..., N, M) of every box of `a` (..., N, 4) with every box of `b` (..., M, 4).

    >>> a = torch.tensor([[0.0, 0.0, 4.0, 4.0], [9.0, 9.0, 9.0, 9.0]])
    >>> pairwise_iou(a, a)
    tensor([[1., 0.],
            [0., 0.]])
    """
    # A coordinate at a time and in place: of millions of pairs, as few copies as can be are made.
    a, b = at_least_float32(a), at_least_float32(b)
    x1, y1, x2, y2 = (side[..., :, None] for side in a.mT.contiguous().unbind(-2))
    left, top, right, bottom = (side[..., None, :] for side in b.mT.contiguous().unbind(-2))
    width = torch.minimum(x2, right).sub_(torch.maximum(x1, left)).clamp_(min=0)
    height = torch.minimum(y2, bottom).sub_(torch.maximum(y1, top)).clamp_(min=0)
    intersection = width.mul_(height)
    union = (area(a)[..., :, None] + area(b)[..., None, :]).sub_(intersection)
    return intersection / union.clamp_(min=torch.finfo(union.dtype).tiny)


def decode_distances(points: Tensor, distances: Tensor) -> Tensor:
    """Boxes (..., 4) that reach `distances` (..., 4) to the left, top, right and bottom of `points` (..., 2).

    >>> decode_distances(torch.tensor([10.0, 20.0]), torch.tensor([1.0, 2.0, 3.0, 4.0]))
    tensor([ 9., 18., 13., 24.])
    """
    points, distances = at_least_float32(points), at_least_float32(distances)
    return torch.cat([points - distances[..., :2], points + distances[..., 2:]], dim=-1)


def encode_distances(points: Tensor, boxes: Tensor) -> Tensor:
    """Distances l, t, r, b (..., 4) from `points` (..., 2) to the sides of `boxes` (..., 4), which broadcast.

    A point is inside its box if all four are positive.

    >>> encode_distances(torch.tensor([10.0, 20.0]), torch.tensor([9.0, 18.0, 13.0, 24.0]))
    tensor([1., 2., 3., 4.])
    """
    points, boxes = at_least_float32(points), at_least_float32(boxes)
    return torch.cat([points - boxes[..., :2], boxes[..., 2:] - points], dim=-1)


def centerness(points: Tensor, boxes: Tensor) -> Tensor:
    """FCOS's centerness (...) of `points` (..., 2) in `boxes` (..., 4): 1 in the middle, 0 on the edge and outside.

    The square root of the shorter over the longer distance, across times down (https://arxiv.org/abs/1904.01355).

    >>> centerness(torch.tensor([2.0, 5.0]), torch.tensor([0.0, 0.0, 10.0, 10.0]))
    tensor(0.5000)
    """
    distances = encode_distances(points, boxes)
    across, down = distances[..., 0::2], distances[..., 1::2]
    shorter = across.amin(-1).clamp(min=0) * down.amin(-1).clamp(min=0)
    longer = across.amax(-1) * down.amax(-1)
    return (shorter / longer.clamp(min=torch.finfo(longer.dtype).tiny)).sqrt()


def clip_boxes(boxes: Tensor, size: tuple[int, int] | Tensor) -> Tensor:
    """Boxes (..., 4) with every side moved into an image of `size` (height, width), or (..., 2) for each of its own.

    >>> clip_boxes(torch.tensor([-3.0, 5.0, 40.0, 50.0]), (30, 20))
    tensor([ 0.,  5., 20., 30.])
    """
    boxes = at_least_float32(boxes)
    height_width = size.to(boxes, non_blocking=True) if isinstance(size, Tensor) else constant(size, boxes)
    width_height = height_width.flip(-1)
    return torch.minimum(boxes.clamp(min=0), torch.cat([width_height, width_height], dim=-1))


MAX_LOG_RATIO = math.log(1000 / 16)  # a box more than 62 times its anchor's size is a number gone wrong


def encode_deltas(anchors: Tensor, boxes: Tensor) -> Tensor:
    """R-CNN's dx, dy, dw, dh (..., 4) that turn `anchors` (..., 4) into `boxes` (..., 4).

    The centre moves by dx widths and dy heights of the anchor; width and height grow by exp(dw) and exp(dh).

    >>> encode_deltas(torch.tensor([0.0, 0.0, 10.0, 10.0]), torch.tensor([5.0, 0.0, 15.0, 10.0]))
    tensor([0.5000, 0.0000, 0.0000, 0.0000])
    """
    anchors, boxes = at_least_float32(anchors), at_least_float32(boxes)
    anchor_size, size = anchors[..., 2:] - anchors[..., :2], boxes[..., 2:] - boxes[..., :2]
    shift = (boxes[..., :2] + boxes[..., 2:] - anchors[..., :2] - anchors[..., 2:]) / 2
    return torch.cat([shift / anchor_size, (size / anchor_size).log()], dim=-1)


def decode_deltas(anchors: Tensor, deltas: Tensor) -> Tensor:
    """Boxes (..., 4) from `anchors` (..., 4) and R-CNN's dx, dy, dw, dh (..., 4), the inverse of `encode_deltas`.

    >>> decode_deltas(torch.tensor([0.0, 0.0, 10.0, 10.0]), torch.tensor([0.5, 0.0, 0.0, 0.0]))
    tensor([ 5.,  0., 15., 10.])
    """
    anchors, deltas = at_least_float32(anchors), at_least_float32(deltas)
    anchor_size = anchors[..., 2:] - anchors[..., :2]
    centre = (anchors[..., :2] + anchors[..., 2:]) / 2 + deltas[..., :2] * anchor_size
    half = anchor_size * deltas[..., 2:].clamp(max=MAX_LOG_RATIO).exp() / 2
    return torch.cat([centre - half, centre + half], dim=-1)
