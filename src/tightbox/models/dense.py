"""What the dense detectors share: rows of raw outputs, and where the image ends in a padded batch."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from tightbox.structures import Targets


def rows(x: Tensor, anchors: int = 1) -> Tensor:
    """(B, A·D, H, W), the A `anchors` of a cell one after another, to (B, H·W·A, D)."""
    batch, channels, height, width = x.shape
    return x.permute(0, 2, 3, 1).reshape(batch, height * width * anchors, channels // anchors)


def inside_image(
    sizes: Sequence[tuple[int, int]], strides: Sequence[int], size: tuple[int, int], device: torch.device
) -> Tensor:
    """(N,) whether each cell of each level lies in the image, rounded up to 32 pixels, and not in the padding."""
    levels = []
    for (height, width), stride in zip(sizes, strides, strict=True):
        rows, columns = (-(-(-(-side // 32) * 32) // stride) for side in size)
        y = torch.arange(height, device=device) < rows
        x = torch.arange(width, device=device) < columns
        levels.append((y[:, None] & x).flatten())
    return torch.cat(levels)


def matched_objects(targets: Sequence[Targets], image: Tensor, index: Tensor) -> tuple[Tensor, Tensor]:
    """Boxes (P, 4) and labels (P,) of the objects `index` (P,) of the images `image` (P,), in ascending order."""
    boxes = torch.cat([target.boxes[index[image == i]] for i, target in enumerate(targets)])
    return boxes, torch.cat([target.labels[index[image == i]] for i, target in enumerate(targets)])
