"""PrRoI pooling and its gradients on a GPU, in Triton; also under its interpreter (TRITON_INTERPRET=1) on a CPU.

One program computes one bin over all channels, and the weights of the pixels under it by itself, so that no list of
them has to be made, whose length the CPU would wait for. Arguments are those of the operators in `prroi_pool.py`; a box
that is not finite, or of no image, pools NaN and gives no gradient.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor
from torch.nn.functional import pad

from tightbox.ops.csr_triton import launch


def pool(features: Tensor, y_edges: Tensor, x_edges: Tensor, images: Tensor) -> Tensor:
    """(K, rows, columns, C) of the features' dtype."""
    usable, spans, pixels = _bins(features, y_edges, x_edges, images)
    output = features.new_empty(*spans.shape[:3], features.shape[1])
    table, width = _table(features), features.shape[3]
    launch(_pool, spans.numel() // 4, table, spans, pixels, table, output, width)
    return output.masked_fill_(~usable[:, None, None, None], torch.nan)


def features_gradient(gradient: Tensor, features: Tensor, y_edges: Tensor, x_edges: Tensor, images: Tensor) -> Tensor:
    """(N, C, H, W), added up by atomics in float32 at least: the order of the additions may change."""
    _, spans, pixels = _bins(features, y_edges, x_edges, images)
    total = torch.zeros_like(_table(features), dtype=torch.promote_types(features.dtype, torch.float32))
    launch(_add_to_features, spans.numel() // 4, total, spans, pixels, gradient.contiguous(), total, features.shape[3])
    return total.permute(0, 3, 1, 2).to(features.dtype)


def edges_gradient(
    gradient: Tensor, features: Tensor, y_edges: Tensor, x_edges: Tensor, images: Tensor
) -> tuple[Tensor, Tensor]:
    """Those of the edges along y and along x."""
    _, spans, pixels = _bins(features, y_edges, x_edges, images)
    to_spans = torch.empty_like(spans)
    table, width = _table(features), features.shape[3]
    launch(_to_spans, spans.numel() // 4, table, spans, pixels, table, gradient.contiguous(), to_spans, width)
    y1, y2, x1, x2 = to_spans.unbind(-1)
    return pad(y1.sum(2), (0, 1)) + pad(y2.sum(2), (1, 0)), pad(x1.sum(1), (0, 1)) + pad(x2.sum(1), (1, 0))


def _table(features: Tensor) -> Tensor:
    return features.permute(0, 2, 3, 1).contiguous()


def _bins(features: Tensor, y_edges: Tensor, x_edges: Tensor, images: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Of each box whether it can be pooled (K,), and of each bin where it lies.

    Its start and end along y and along x (K, rows, columns, 4), and (K, rows, columns, 5) int64: the place of its
    image in the table, and the first of the pixels under it and the one after the last, along y and along x.
    """
    batch, _, height, width = features.shape
    usable = y_edges.isfinite().all(1) & x_edges.isfinite().all(1) & (images >= 0) & (images < batch)
    usable &= images == images.floor()
    parts = (y_edges[:, :-1, None], y_edges[:, 1:, None], x_edges[:, None, :-1], x_edges[:, None, 1:])
    y1, y2, x1, x2 = torch.broadcast_tensors(*parts)
    ranges = [torch.where(usable, images, 0).long()[:, None, None].expand_as(y1) * height * width]
    for start, end, size in ((y1, y2, height), (x1, x2, width)):
        stop = torch.where((end > start) & usable[:, None, None], end.ceil() + 1, 0)
        ranges += [edge.nan_to_num().clamp(0, size).long() for edge in (start.floor(), stop)]
    return usable, torch.stack([y1, y2, x1, x2], dim=-1), torch.stack(ranges, dim=-1)


@triton.jit
def _integral(t):
    """Of the hat max(0, 1 − |t|), from 0 to t."""
    t = tl.minimum(tl.maximum(t, -1.0), 1.0)
    return t * (1 - tl.abs(t) / 2)


@triton.jit
def _weight(start, end, pixel):
    """The mean of the pixel's hat from `start` to `end`."""
    return (_integral(end - pixel) - _integral(start - pixel)) / (end - start)


@triton.jit
def _hat(t):
    return tl.maximum(1 - tl.abs(t), 0.0)


@triton.jit
def _at(row, count: tl.constexpr, number: tl.constexpr):
    """One of the `count` numbers of this program's bin."""
    return tl.load(row + tl.program_id(0).to(tl.int64) * count + number)


@triton.jit
def _bin(spans, pixels, DTYPE: tl.constexpr):
    y1, y2, x1, x2 = _at(spans, 4, 0), _at(spans, 4, 1), _at(spans, 4, 2), _at(spans, 4, 3)
    top, bottom, left, right = _at(pixels, 5, 1), _at(pixels, 5, 2), _at(pixels, 5, 3), _at(pixels, 5, 4)
    return y1.to(DTYPE), y2.to(DTYPE), x1.to(DTYPE), x2.to(DTYPE), top, bottom, left, right


@triton.jit
def _pool(spans, pixels, table, output, width, channels, DTYPE: tl.constexpr, BLOCK: tl.constexpr):
    y1, y2, x1, x2, top, bottom, left, right = _bin(spans, pixels, DTYPE)
    channel = tl.arange(0, BLOCK)
    total = tl.zeros((BLOCK,), DTYPE)
    for y in range(top, bottom):
        for x in range(left, right):
            pixel = table + (_at(pixels, 5, 0) + y * width + x) * channels
            values = tl.load(pixel + channel, mask=channel < channels, other=0).to(DTYPE)
            total += _weight(y1, y2, y) * _weight(x1, x2, x) * values
    tl.store(output + tl.program_id(0).to(tl.int64) * channels + channel, total, mask=channel < channels)


@triton.jit
def _add_to_features(spans, pixels, gradient, total, width, channels, DTYPE: tl.constexpr, BLOCK: tl.constexpr):
    y1, y2, x1, x2, top, bottom, left, right = _bin(spans, pixels, DTYPE)
    channel = tl.arange(0, BLOCK)
    own = gradient + tl.program_id(0).to(tl.int64) * channels
    values = tl.load(own + channel, mask=channel < channels, other=0).to(DTYPE)
    for y in range(top, bottom):
        for x in range(left, right):
            pixel = total + (_at(pixels, 5, 0) + y * width + x) * channels
            part = _weight(y1, y2, y) * _weight(x1, x2, x) * values
            tl.atomic_add(pixel + channel, part, mask=channel < channels, sem="relaxed")


@triton.jit
def _to_spans(spans, pixels, table, gradient, output, width, channels, DTYPE: tl.constexpr, BLOCK: tl.constexpr):
    y1, y2, x1, x2, top, bottom, left, right = _bin(spans, pixels, DTYPE)
    channel = tl.arange(0, BLOCK)
    own = gradient + tl.program_id(0).to(tl.int64) * channels
    to_output = tl.load(own + channel, mask=channel < channels, other=0).to(DTYPE)
    number = tl.arange(0, 4)  # of y1, y2, x1, x2
    total = tl.zeros((4,), DTYPE)
    for y in range(top, bottom):
        for x in range(left, right):
            pixel = table + (_at(pixels, 5, 0) + y * width + x) * channels
            values = tl.load(pixel + channel, mask=channel < channels, other=0).to(DTYPE)
            to_weight, along_y, along_x = tl.sum(to_output * values, axis=0), _weight(y1, y2, y), _weight(x1, x2, x)
            # A weight is the product of those along y and x, each the integral of a hat over the length from start to
            # end; so to the start it has the derivative (weight − hat) / length, and to the end the opposite one.
            to_y, to_x = to_weight * along_x / (y2 - y1), to_weight * along_y / (x2 - x1)
            total += tl.where(number == 0, to_y * (along_y - _hat(y1 - y)), 0.0)
            total += tl.where(number == 1, to_y * (_hat(y2 - y) - along_y), 0.0)
            total += tl.where(number == 2, to_x * (along_x - _hat(x1 - x)), 0.0)
            total += tl.where(number == 3, to_x * (_hat(x2 - x) - along_x), 0.0)
    tl.store(output + tl.program_id(0).to(tl.int64) * 4 + number, total)
