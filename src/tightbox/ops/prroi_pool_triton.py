"""PrRoI pooling and its gradients on a GPU, in Triton; also under its interpreter (TRITON_INTERPRET=1) on a CPU.

One program computes one bin over all channels. It finds the pixels under the bin and their weights by itself, so that
no list of them has to be made, whose length the CPU would wait for. Arguments are those of the operators in
`prroi_pool.py`; a box that is not finite, or of no image, pools NaN and gives no gradient.
"""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor


def pool(features: Tensor, y_edges: Tensor, x_edges: Tensor, images: Tensor) -> Tensor:
    """(K, rows, columns, C) of the features' dtype."""
    output = features.new_empty(len(y_edges), y_edges.shape[1] - 1, x_edges.shape[1] - 1, features.shape[1])
    _launch(_pool, (output,), features, y_edges, x_edges, images)
    return output


def features_gradient(gradient: Tensor, features: Tensor, y_edges: Tensor, x_edges: Tensor, images: Tensor) -> Tensor:
    """(N, C, H, W), added up by atomics in float32 at least: the order of the additions may change."""
    total = torch.zeros_like(
        features.permute(0, 2, 3, 1), dtype=_sum_dtype(features), memory_format=torch.contiguous_format
    )
    _launch(_add_to_features, (gradient.contiguous(), total), features, y_edges, x_edges, images)
    return total.permute(0, 3, 1, 2).to(features.dtype)


def edges_gradient(
    gradient: Tensor, features: Tensor, y_edges: Tensor, x_edges: Tensor, images: Tensor
) -> tuple[Tensor, Tensor]:
    """Those of the edges along y and along x."""
    to_y, to_x = torch.zeros_like(y_edges), torch.zeros_like(x_edges)
    _launch(_add_to_edges, (gradient.contiguous(), to_y, to_x), features, y_edges, x_edges, images)
    return to_y, to_x


def _sum_dtype(features: Tensor) -> torch.dtype:
    return torch.float64 if features.dtype == torch.float64 else torch.float32


def _launch(
    kernel: Any, own: tuple[Tensor, ...], features: Tensor, y_edges: Tensor, x_edges: Tensor, images: Tensor
) -> None:
    batch, channels, height, width = features.shape
    usable = y_edges.isfinite().all(1) & x_edges.isfinite().all(1) & (images >= 0) & (images < batch)
    usable &= images == images.floor()
    rows, columns = y_edges.shape[1] - 1, x_edges.shape[1] - 1
    if len(images):
        with torch.cuda.device_of(features):
            kernel[(len(images) * rows * columns,)](
                *own,
                features.permute(0, 2, 3, 1).contiguous(),
                y_edges.contiguous(),
                x_edges.contiguous(),
                torch.where(usable, images, -1).int(),
                height,
                width,
                channels,
                rows,
                columns,
                tl.float64 if features.dtype == torch.float64 else tl.float32,
                triton.next_power_of_2(channels),
            )


@triton.jit
def _integral(t):  # type: ignore[no-untyped-def]
    """Of the hat max(0, 1 − |t|), from 0 to t."""
    t = tl.minimum(tl.maximum(t, -1.0), 1.0)
    return t * (1 - tl.abs(t) / 2)


@triton.jit
def _weight(start, end, pixel):  # type: ignore[no-untyped-def]
    """The mean of the pixel's hat from `start` to `end`."""
    return (_integral(end - pixel) - _integral(start - pixel)) / (end - start)


@triton.jit
def _hat(t):  # type: ignore[no-untyped-def]
    return tl.maximum(1 - tl.abs(t), 0.0)


@triton.jit
def _axis(edges, box, number, bins, size, image, DTYPE: tl.constexpr):  # type: ignore[no-untyped-def]
    """Start and end of a bin along one axis, and of the pixels under it: none under a bin without length."""
    start = tl.load(edges + box * (bins + 1) + number)
    end = tl.load(edges + box * (bins + 1) + number + 1)
    first = tl.minimum(tl.maximum(tl.floor(start), 0.0), size).to(tl.int32)
    stop = tl.minimum(tl.maximum(tl.ceil(end) + 1, 0.0), size).to(tl.int32)
    return start.to(DTYPE), end.to(DTYPE), first, tl.where((end > start) & (image >= 0), stop, first)


@triton.jit
def _bin(y_edges, x_edges, images, height, width, rows, columns, DTYPE: tl.constexpr):  # type: ignore[no-untyped-def]
    """The box of this program's bin, the bin's row and column, its image, and what `_axis` says along y and x."""
    number = tl.program_id(0).to(tl.int64)
    box, row, column = number // (rows * columns), number // columns % rows, number % columns
    image = tl.load(images + box).to(tl.int64)
    y1, y2, top, bottom = _axis(y_edges, box, row, rows, height, image, DTYPE)
    x1, x2, left, right = _axis(x_edges, box, column, columns, width, image, DTYPE)
    return number, box, row, column, image, y1, y2, top, bottom, x1, x2, left, right


@triton.jit
def _pool(  # type: ignore[no-untyped-def]
    output,
    table,
    y_edges,
    x_edges,
    images,
    height,
    width,
    channels,
    rows,
    columns,
    DTYPE: tl.constexpr,
    BLOCK: tl.constexpr,
):
    number, _, _, _, image, y1, y2, top, bottom, x1, x2, left, right = _bin(
        y_edges, x_edges, images, height, width, rows, columns, DTYPE
    )
    channel = tl.arange(0, BLOCK)
    real = channel < channels
    total = tl.zeros((BLOCK,), DTYPE) + tl.where(image >= 0, 0.0, float("nan"))
    for y in range(top, bottom):
        y_weight = _weight(y1, y2, y)
        for x in range(left, right):
            pixel = (image * height + y) * width + x
            values = tl.load(table + pixel * channels + channel, mask=real, other=0).to(DTYPE)
            total += y_weight * _weight(x1, x2, x) * values
    tl.store(output + number * channels + channel, total, mask=real)


@triton.jit
def _add_to_features(  # type: ignore[no-untyped-def]
    gradient,
    total,
    table,
    y_edges,
    x_edges,
    images,
    height,
    width,
    channels,
    rows,
    columns,
    DTYPE: tl.constexpr,
    BLOCK: tl.constexpr,
):
    number, _, _, _, image, y1, y2, top, bottom, x1, x2, left, right = _bin(
        y_edges, x_edges, images, height, width, rows, columns, DTYPE
    )
    channel = tl.arange(0, BLOCK)
    real = channel < channels
    own = tl.load(gradient + number * channels + channel, mask=real, other=0).to(DTYPE)
    for y in range(top, bottom):
        y_weight = _weight(y1, y2, y)
        for x in range(left, right):
            pixel = (image * height + y) * width + x
            tl.atomic_add(total + pixel * channels + channel, y_weight * _weight(x1, x2, x) * own, mask=real)


@triton.jit
def _add_to_edges(  # type: ignore[no-untyped-def]
    gradient,
    to_y,
    to_x,
    table,
    y_edges,
    x_edges,
    images,
    height,
    width,
    channels,
    rows,
    columns,
    DTYPE: tl.constexpr,
    BLOCK: tl.constexpr,
):
    number, box, row, column, image, y1, y2, top, bottom, x1, x2, left, right = _bin(
        y_edges, x_edges, images, height, width, rows, columns, DTYPE
    )
    channel = tl.arange(0, BLOCK)
    real = channel < channels
    own = tl.load(gradient + number * channels + channel, mask=real, other=0).to(DTYPE)
    to_y1, to_y2, to_x1, to_x2 = y1 * 0, y1 * 0, y1 * 0, y1 * 0
    for y in range(top, bottom):
        y_weight = _weight(y1, y2, y)
        of_row = y1 * 0
        for x in range(left, right):
            pixel = (image * height + y) * width + x
            values = tl.load(table + pixel * channels + channel, mask=real, other=0).to(DTYPE)
            to_weight, x_weight = tl.sum(own * values, axis=0), _weight(x1, x2, x)
            # A weight is an integral from start to end over their distance, and one along y times one along x.
            of_row += to_weight * x_weight
            to_x1 += to_weight * y_weight * (x_weight - _hat(x1 - x))
            to_x2 += to_weight * y_weight * (_hat(x2 - x) - x_weight)
        to_y1 += of_row * (y_weight - _hat(y1 - y))
        to_y2 += of_row * (_hat(y2 - y) - y_weight)
    if (bottom > top) & (right > left):
        tl.atomic_add(to_y + box * (rows + 1) + row, to_y1 / (y2 - y1))
        tl.atomic_add(to_y + box * (rows + 1) + row + 1, to_y2 / (y2 - y1))
        tl.atomic_add(to_x + box * (columns + 1) + column, to_x1 / (x2 - x1))
        tl.atomic_add(to_x + box * (columns + 1) + column + 1, to_x2 / (x2 - x1))
