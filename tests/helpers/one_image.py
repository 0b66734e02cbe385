"""The assigners, which take a batch, for one image."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from tightbox import assigners
from tightbox.boxes import encode_distances
from tightbox.structures import Targets


def atss(
    anchors: Tensor,
    level_sizes: Sequence[int],
    targets: Targets,
    topk: int = 9,
    ignore_iof: float | None = None,
    valid: Tensor | None = None,
) -> Tensor:
    valid = None if valid is None else valid[None]
    return assigners.atss(anchors, level_sizes, [targets], topk, ignore_iof, valid)[0]


def max_iou(anchors: Tensor, targets: Targets, *numbers: Any, valid: Tensor | None = None, **options: Any) -> Tensor:
    options["valid"] = None if valid is None else valid[None]
    return assigners.max_iou(anchors, [targets], *numbers, **options)[0]


def fcos_assign(
    points: Tensor, strides: Tensor, ranges: Tensor, targets: Targets, center_radius: float | None = None
) -> Tensor:
    return assigners.fcos_assign(points, strides, ranges, [targets], center_radius)[0]


@dataclass
class PixelMaps:
    """Confidence (C, H, W), distances (4, H, W) to the sides of the object that a pixel learns, and its index."""

    confidence: Tensor
    distances: Tensor
    matched: Tensor


def pixel_regions(size: tuple[int, int], targets: Targets, *arguments: Any, **options: Any) -> PixelMaps:
    (confidence,), (matched,) = assigners.pixel_regions(size, [targets], *arguments, **options)
    distances = confidence.new_zeros(4, *size)
    y, x = (matched >= 0).nonzero().unbind(1)
    points = torch.stack([x, y], dim=1) + 0.5
    distances[:, y, x] = encode_distances(points.to(confidence), targets.boxes[matched[y, x]]).T
    return PixelMaps(confidence, distances, matched)
