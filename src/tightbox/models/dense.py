"""What the dense detectors share: rows of raw outputs, and where the image ends in a padded batch."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
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


def matched_objects(targets: Sequence[Targets], matched: Tensor) -> tuple[Tensor, Tensor]:
    """Boxes (B, N, 4) and labels (B, N) of the objects `matched` (B, N); zeros where that is below 0.

    As many as there are points, and not as there are positives, whose number a GPU would have to be waited for.
    """
    objects = [(F.pad(target.boxes, (0, 0, 0, 1)), F.pad(target.labels, (0, 1))) for target in targets]
    indices = [torch.where(row < 0, len(target), row) for row, target in zip(matched, targets, strict=True)]
    boxes, labels = zip(*((b[i], c[i]) for (b, c), i in zip(objects, indices, strict=True)), strict=True)
    return torch.stack(boxes), torch.stack(labels)
