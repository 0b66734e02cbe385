"""The three products of `csr.py` on a GPU, in Triton; also under its interpreter (TRITON_INTERPRET=1) on a CPU.

One program computes one row of the sparse matrix, over all channels, and accumulates in float32, or in float64 where
the features are of that.
"""

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor


def matmul(indptr: Tensor, indices: Tensor, weights: Tensor, dense: Tensor) -> Tensor:
    """(M, C) of the dtype of `dense` (R, C)."""
    output = dense.new_empty(len(indptr) - 1, dense.shape[1])
    launch(_matmul, len(output), dense, indptr, indices, weights, dense.contiguous(), output)
    return output


def add_transposed_matmul(total: Tensor, indptr: Tensor, indices: Tensor, weights: Tensor, dense: Tensor) -> None:
    """Adds to the contiguous `total` (R, C) of float32 or float64, by atomics, in an order that may change."""
    assert total.is_contiguous()
    launch(_add_transposed_matmul, len(dense), dense, indptr, indices, weights, dense.contiguous(), total)


def sampled_matmul(indptr: Tensor, indices: Tensor, left: Tensor, right: Tensor) -> Tensor:
    """(T,) in the dtype that is accumulated in."""
    output = left.new_empty(len(indices), dtype=torch.float64 if left.dtype == torch.float64 else torch.float32)
    launch(_sampled_matmul, len(left), right, indptr, indices, left.contiguous(), right.contiguous(), output)
    return output


def launch(kernel: Any, programs: int, dense: Tensor, *arguments: Any) -> None:
    """Runs a kernel over the channels of `dense` (..., C), which accumulates in float32, or in float64 as `dense`."""
    channels = dense.shape[-1]
    if programs and channels:
        accumulate = tl.float64 if dense.dtype == torch.float64 else tl.float32
        with torch.cuda.device_of(dense):
            kernel[(programs,)](*arguments, channels, accumulate, triton.next_power_of_2(channels))


@triton.jit
def _matmul(indptr, indices, weights, dense, output, channels, DTYPE: tl.constexpr, BLOCK: tl.constexpr):
    row = tl.program_id(0).to(tl.int64)
    column = tl.arange(0, BLOCK)
    real = column < channels
    total = tl.zeros((BLOCK,), DTYPE)
    for entry in range(tl.load(indptr + row), tl.load(indptr + row + 1)):
        pixel = tl.load(indices + entry).to(tl.int64)
        values = tl.load(dense + pixel * channels + column, mask=real, other=0).to(DTYPE)
        total += tl.load(weights + entry).to(DTYPE) * values
    tl.store(output + row * channels + column, total, mask=real)


@triton.jit
def _add_transposed_matmul(indptr, indices, weights, dense, total, channels, DTYPE: tl.constexpr, BLOCK: tl.constexpr):
    row = tl.program_id(0).to(tl.int64)
    column = tl.arange(0, BLOCK)
    real = column < channels
    values = tl.load(dense + row * channels + column, mask=real, other=0).to(DTYPE)
    for entry in range(tl.load(indptr + row), tl.load(indptr + row + 1)):
        pixel = tl.load(indices + entry).to(tl.int64)
        tl.atomic_add(
            total + pixel * channels + column, tl.load(weights + entry).to(DTYPE) * values, mask=real, sem="relaxed"
        )


@triton.jit
def _sampled_matmul(indptr, indices, left, right, output, channels, DTYPE: tl.constexpr, BLOCK: tl.constexpr):
    row = tl.program_id(0).to(tl.int64)
    column = tl.arange(0, BLOCK)
    real = column < channels
    own = tl.load(left + row * channels + column, mask=real, other=0).to(DTYPE)
    for entry in range(tl.load(indptr + row), tl.load(indptr + row + 1)):
        pixel = tl.load(indices + entry).to(tl.int64)
        other = tl.load(right + pixel * channels + column, mask=real, other=0).to(DTYPE)
        tl.store(output + entry, tl.sum(own * other, axis=0))
