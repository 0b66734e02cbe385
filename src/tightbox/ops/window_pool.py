"""Precise RoI pooling for exported files: for each box dense matrices over the few pixels that it covers.

`prroi_pool` is a sparse matrix, which no file format has. The weights of the pixels are separable, so that over the
window of a map that a box covers they are two small dense matrices, one along y and one along x.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import cast

import torch
from torch import Tensor

from tightbox.boxes import area


def window_pool(levels: Sequence[Tensor], boxes: Tensor, level: Tensor, images: Tensor, bins: int) -> Tensor:
    """(K, C, bins, bins): `prroi_pool` of each box from a level of its own.

    Args:
        levels: maps (B, C, h, w).
        boxes: (K, 4) finite, in pixels of their levels.
        level: (K,) index of each box's level.
        images: (K,) index of each box's image.
        bins: along each axis.
    """
    # One table with a row for each pixel of all levels and images.
    table = torch.cat([features.permute(0, 2, 3, 1).flatten(0, 2) for features in levels])
    heights, widths = (_numbers([x.shape[axis] for x in levels], level)[level] for axis in (2, 3))
    pixels = [x.shape[0] * x.shape[2] * x.shape[3] for x in levels]
    starts = _numbers([sum(pixels[:i]) for i in range(len(levels))], level)[level] + images * heights * widths

    near, far = boxes[:, :2].flip(1), boxes[:, 2:].flip(1)  # (K, 2), y and x
    edges = near[..., None] + (far - near)[..., None] * torch.arange(bins + 1, device=boxes.device) / bins
    limits = torch.stack([heights, widths], dim=1)
    first = torch.minimum(near.floor().clamp(min=0).long(), limits - 1)
    last = torch.maximum(torch.minimum(far.ceil().long() + 1, limits), first + 1)  # a pixel at least; exclusive
    windows = torch.cat([torch.stack([first, last], dim=2).flatten(1), starts[:, None], widths[:, None]], dim=1)

    of_bin = area(boxes) / bins**2  # not .prod(), by which OpenVINO 2026.4 would multiply instead of dividing
    scale = torch.where(of_bin > 0, 1 / of_bin, 0)
    integrals = cast(Tensor, integrate_windows(table, edges, windows))
    return (integrals * scale[:, None, None, None]).permute(0, 3, 1, 2)


def _numbers(values: Sequence[int], like: Tensor) -> Tensor:
    """The values, which may be symbols of an exporter, as integers on a device."""
    return torch.cat([torch.full((1,), value, dtype=torch.int64, device=like.device) for value in values])


@torch.library.custom_op("tightbox::integrate_windows", mutates_args=())
def integrate_windows(table: Tensor, edges: Tensor, windows: Tensor) -> Tensor:
    """(K, bins, bins, C) integrals of the interpolated features over the bins of each box.

    In an ONNX file this is one Loop; here it is the slow, obvious form.

    Args:
        table: (R, C) features, a row for each pixel, the rows of a map one after another.
        edges: (K, 2, bins + 1), where the bins of each box meet along y and along x, in pixels of its map.
        windows: (K, 6) of each box the first pixel along y and the one after its last, the same along x, the row of the
            table with pixel (0, 0) of its map, and the map's width.
    """
    pooled = table.new_empty(len(edges), edges.shape[2] - 1, edges.shape[2] - 1, table.shape[1])
    for box, (top, bottom, left, right, start, width) in enumerate(windows.tolist()):
        y, x = torch.arange(top, bottom, device=table.device), torch.arange(left, right, device=table.device)
        of_y, of_x = _integrals(edges[box, 0], y), _integrals(edges[box, 1], x)
        features = table[start + y[:, None] * width + x]  # (h, w, C)
        pooled[box] = torch.einsum("ih,jw,hwc->ijc", of_y, of_x, features)
    return pooled


@integrate_windows.register_fake
def _(table: Tensor, edges: Tensor, windows: Tensor) -> Tensor:
    return table.new_empty(edges.shape[0], edges.shape[2] - 1, edges.shape[2] - 1, table.shape[1])


def _integrals(edges: Tensor, pixels: Tensor) -> Tensor:
    """(bins, P) integral over each bin of the hat function max(0, 1 − |t − p|) of each pixel p."""
    t = (edges[:, None] - pixels).clamp(-1, 1)
    return (t * (1 - t.abs() / 2)).diff(dim=0)
