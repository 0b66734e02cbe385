"""The kernels of `group_norm_relu.py`, in Triton; also under its interpreter (TRITON_INTERPRET=1) on a CPU.

Maps are tables (B, H, W, C). A program has a tile of `ROWS` pixels of an image, with all channels; the channels of a
group are neighbours. Statistics are (B, 2, groups): the mean, and one over the standard deviation.
"""

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

TILE = 8192  # numbers


def statistics(table: Tensor, groups: int, epsilon: float) -> Tensor:
    """Of each image and group, from those of the tiles, so that no digits are lost in large sums."""
    batch, rows, tile = _sizes(table)
    sums = table.new_empty(batch, triton.cdiv(rows, tile), 2, groups, dtype=torch.float32)
    result = table.new_empty(batch, 2, groups, dtype=torch.float32)
    _launch(_tile_statistics, table, groups, sums)
    with torch.cuda.device_of(table):
        _combine[(batch,)](sums, result, rows, sums.shape[1], epsilon, groups, table.shape[3] // groups, tile, 32)
    return result


def normalised(table: Tensor, statistics: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """The output, of the table's dtype."""
    output = torch.empty_like(table)
    _launch(_normalise, table, statistics.shape[2], statistics, weight, bias, output)
    return output


def gradients(
    gradient: Tensor, table: Tensor, statistics: Tensor, weight: Tensor, bias: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Those of the table, the weight and the bias."""
    batch, rows, tile = _sizes(table)
    channels, groups = table.shape[3], statistics.shape[2]
    tiles = table.new_empty(batch, triton.cdiv(rows, tile), 2, channels, dtype=torch.float32)
    _launch(_sum_gradients, table, groups, statistics, weight, bias, gradient, tiles)
    sums = tiles.sum(dim=1)  # (B, 2, C): of the gradient, and of its product with the normalised input
    terms = (sums * weight).unflatten(2, (groups, -1)).mean(dim=3) / rows
    to_table = torch.empty_like(table)
    _launch(_to_input, table, groups, statistics, weight, bias, gradient, terms, to_table)
    to_bias, to_weight = sums.sum(dim=0)
    return to_table, to_weight.to(weight.dtype), to_bias.to(bias.dtype)


def _sizes(table: Tensor) -> tuple[int, int, int]:
    """Images, pixels of each, and pixels of a tile."""
    batch, height, width, channels = table.shape
    return batch, height * width, max(1, TILE // channels)


def _launch(kernel: Any, table: Tensor, groups: int, *tensors: Tensor) -> None:
    batch, rows, tile = _sizes(table)
    with torch.cuda.device_of(table):
        kernel[(triton.cdiv(rows, tile), batch)](
            table, *tensors, rows, groups, table.shape[3] // groups, tile, num_warps=8
        )


@triton.jit
def _tile(table, rows, GROUPS: tl.constexpr, WIDTH: tl.constexpr, ROWS: tl.constexpr):
    """This program's tile in float32, where it is, and which rows of it are some."""
    row = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    channel = tl.arange(0, GROUPS * WIDTH)
    place = (tl.program_id(1).to(tl.int64) * rows + row)[:, None] * (GROUPS * WIDTH) + channel[None, :]
    real = (row < rows)[:, None]
    return tl.load(table + place, mask=real, other=0).to(tl.float32), place, real


@triton.jit
def _of_channels(statistics, weight, bias, GROUPS: tl.constexpr, WIDTH: tl.constexpr):
    """Mean, one over the standard deviation, weight and bias of each channel, as a row."""
    channel = tl.arange(0, GROUPS * WIDTH)
    own = statistics + tl.program_id(1) * 2 * GROUPS + channel // WIDTH
    mean, scale = tl.load(own), tl.load(own + GROUPS)
    return mean[None, :], scale[None, :], tl.load(weight + channel)[None, :], tl.load(bias + channel)[None, :]


@triton.jit
def _tile_statistics(table, sums, rows, GROUPS: tl.constexpr, WIDTH: tl.constexpr, ROWS: tl.constexpr):
    values, _, real = _tile(table, rows, GROUPS, WIDTH, ROWS)
    total = tl.sum(tl.reshape(tl.sum(values, axis=0), (GROUPS, WIDTH)), axis=1)
    count = tl.minimum(ROWS, rows - tl.program_id(0) * ROWS) * WIDTH
    mean = tl.reshape(tl.broadcast_to((total / count)[:, None], (GROUPS, WIDTH)), (GROUPS * WIDTH,))
    off = tl.where(real, values - mean[None, :], 0.0)
    squares = tl.sum(tl.reshape(tl.sum(off * off, axis=0), (GROUPS, WIDTH)), axis=1)
    own = sums + (tl.program_id(1) * tl.num_programs(0) + tl.program_id(0)) * 2 * GROUPS + tl.arange(0, GROUPS)
    tl.store(own, total)
    tl.store(own + GROUPS, squares)


@triton.jit
def _combine(
    sums, statistics, rows, tiles, epsilon,
    GROUPS: tl.constexpr, WIDTH: tl.constexpr, ROWS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    group = tl.arange(0, GROUPS)
    own = sums + tl.program_id(0) * tiles * 2 * GROUPS + group[None, :]
    total = tl.zeros((GROUPS,), tl.float32)
    for start in range(0, tiles, BLOCK):
        tile = start + tl.arange(0, BLOCK)
        total += tl.sum(tl.load(own + tile[:, None] * 2 * GROUPS, mask=(tile < tiles)[:, None], other=0), axis=0)
    mean = total / (rows * WIDTH)
    squares = tl.zeros((GROUPS,), tl.float32)
    for start in range(0, tiles, BLOCK):
        tile = start + tl.arange(0, BLOCK)
        real = (tile < tiles)[:, None]
        count = tl.where(real, tl.minimum(ROWS, rows - tile * ROWS)[:, None] * WIDTH, 1).to(tl.float32)
        place = own + tile[:, None] * 2 * GROUPS
        off = tl.load(place, mask=real, other=0) / count - mean[None, :]
        within = tl.load(place + GROUPS, mask=real, other=0)
        squares += tl.sum(tl.where(real, within + count * off * off, 0.0), axis=0)
    result = statistics + tl.program_id(0) * 2 * GROUPS + group
    tl.store(result, mean)
    tl.store(result + GROUPS, tl.rsqrt(squares / (rows * WIDTH) + epsilon))


@triton.jit
def _normalise(
    table, statistics, weight, bias, output, rows, GROUPS: tl.constexpr, WIDTH: tl.constexpr, ROWS: tl.constexpr
):
    values, place, real = _tile(table, rows, GROUPS, WIDTH, ROWS)
    mean, scale, factor, shift = _of_channels(statistics, weight, bias, GROUPS, WIDTH)
    result = (values - mean) * scale * factor + shift
    tl.store(output + place, tl.where(result < 0, 0.0, result), mask=real)  # so that NaN stays NaN


@triton.jit
def _sum_gradients(
    table, statistics, weight, bias, gradient, tiles, rows,
    GROUPS: tl.constexpr, WIDTH: tl.constexpr, ROWS: tl.constexpr,
):  # fmt: skip
    values, place, real = _tile(table, rows, GROUPS, WIDTH, ROWS)
    mean, scale, factor, shift = _of_channels(statistics, weight, bias, GROUPS, WIDTH)
    normal = (values - mean) * scale
    given = tl.load(gradient + place, mask=real, other=0).to(tl.float32)
    given = tl.where(normal * factor + shift > 0, given, 0.0)
    own = tiles + (tl.program_id(1) * tl.num_programs(0) + tl.program_id(0)).to(tl.int64) * 2 * GROUPS * WIDTH
    channel = tl.arange(0, GROUPS * WIDTH)
    tl.store(own + channel, tl.sum(given, axis=0))
    tl.store(own + GROUPS * WIDTH + channel, tl.sum(given * normal, axis=0))


@triton.jit
def _to_input(
    table, statistics, weight, bias, gradient, terms, output, rows,
    GROUPS: tl.constexpr, WIDTH: tl.constexpr, ROWS: tl.constexpr,
):  # fmt: skip
    values, place, real = _tile(table, rows, GROUPS, WIDTH, ROWS)
    mean, scale, factor, shift = _of_channels(statistics, weight, bias, GROUPS, WIDTH)
    normal = (values - mean) * scale
    given = tl.load(gradient + place, mask=real, other=0).to(tl.float32)
    given = tl.where(normal * factor + shift > 0, given, 0.0)
    own = terms + tl.program_id(1) * 2 * GROUPS + tl.arange(0, GROUPS * WIDTH) // WIDTH
    first, second = tl.load(own)[None, :], tl.load(own + GROUPS)[None, :]
    tl.store(output + place, scale * (given * factor - first - normal * second), mask=real)
