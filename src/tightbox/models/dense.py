"""What the dense detectors share: rows of raw outputs, and where the image ends in a padded batch."""

from collections.abc import Sequence
from itertools import accumulate
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tightbox.boxes import constant
from tightbox.ops.group_norm_relu import GroupNorm
from tightbox.structures import DIVISOR, Targets


def group_norm(channels: int) -> GroupNorm:
    """Over 32 groups, of at least two channels each."""
    return GroupNorm(min(32, channels // 2), channels)


def initialise(layer: Any, std: float = 0.01, bias: float = 0.0) -> None:
    """Weights from N(0, std), and this bias if the layer has one."""
    nn.init.normal_(layer.weight, std=std)
    if layer.bias is not None:
        nn.init.constant_(layer.bias, bias)


def rows(x: Tensor, anchors: int = 1) -> Tensor:
    """(B, A·D, H, W), the A `anchors` of a cell one after another, to (B, H·W·A, D)."""
    batch, channels, height, width = x.shape
    return x.permute(0, 2, 3, 1).reshape(batch, height * width * anchors, channels // anchors)


def inside_images(map_sizes: Sequence[tuple[int, int]], strides: Sequence[int], sizes: Tensor) -> Tensor:
    """(B, N) whether each cell of each level lies in each image, rounded up to 32 pixels, and not in the padding.

    Args:
        map_sizes: (height, width) of each level.
        strides: pixels between neighbouring cells of each level.
        sizes: (B, 2) true height and width of each image.
    """
    padded = (sizes + DIVISOR - 1) // DIVISOR * DIVISOR
    levels = []
    for (height, width), stride in zip(map_sizes, strides, strict=True):
        rows, columns = ((padded + stride - 1) // stride).unbind(1)
        y = torch.arange(height, device=sizes.device) < rows[:, None]
        x = torch.arange(width, device=sizes.device) < columns[:, None]
        levels.append((y[:, :, None] & x[:, None]).flatten(1))
    return torch.cat(levels, dim=1)


def best_of_each(values: Tensor, counts: Sequence[int], top_k: int) -> Tensor:
    """(B, K) places of the `top_k` highest values (B, N) of each level, whose `counts` of places follow one another.

    They ascend. What is not a number, which `topk` would take for the best, comes last.
    """
    places, start = [], 0
    for level in torch.where(values.isnan(), -torch.inf, values).split(list(counts), dim=1):
        places.append(start + level.topk(torch.sym_min(top_k, level.shape[1]), dim=1).indices)
        start += level.shape[1]
    return torch.cat(places, dim=1).sort(dim=1).values


def matched_objects(
    targets: Sequence[Targets], matched: Tensor, chosen: Tensor | slice = slice(None)
) -> tuple[Tensor, Tensor]:
    """Boxes (B, N, 4) and labels (B, N) of the objects `matched` (B, N); zeros where that is below 0.

    As many as there are points, and not as there are positives, whose number a GPU would have to be waited for; unless
    a mask (B, N) is given of those that are chosen.
    """
    starts = constant([0, *accumulate(len(target) for target in targets[:-1])], matched)[:, None]
    rows = torch.where(matched < 0, -1, matched + starts)[chosen]  # of all images' objects, and zeros as the last
    boxes = F.pad(torch.cat([target.boxes for target in targets]), (0, 0, 0, 1))
    return boxes[rows], F.pad(torch.cat([target.labels for target in targets]), (0, 1))[rows]
