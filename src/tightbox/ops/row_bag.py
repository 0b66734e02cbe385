"""Sampling as weighted bags of rows: every output row is a sparse weighted sum of the rows of a feature table."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Any, cast

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn.functional import embedding_bag, pad


@dataclass(frozen=True, eq=False)
class Bags:
    """Which rows of a table are read for which bag: bag m has the reads `starts[m]:starts[m + 1]`.

    Attributes:
        indices: (T,) int32, the row of each read; every index must be a row of the table.
        starts: (M + 1,) int32, not decreasing, from 0 to T; a bag may be empty.
    """

    indices: Tensor
    starts: Tensor

    @classmethod
    def of_sizes(cls, indices: Tensor, sizes: Tensor) -> Bags:
        """The bags that take `sizes` (M,) reads each, one after another."""
        return cls(indices, pad(sizes.cumsum(0, dtype=torch.int32), (1, 0)))

    @cached_property
    def bag_of_read(self) -> Tensor:
        """(T,) int32: the bag each read belongs to."""
        sizes = self.starts.diff()
        bags = torch.arange(len(sizes), dtype=torch.int32, device=sizes.device)
        return bags.repeat_interleave(sizes, output_size=len(self.indices))

    @cached_property
    def transposed(self) -> tuple[slice, Tensor, Bags]:
        """The reads grouped by row: the rows from first to last, the order of the reads, and their bags."""
        rows, order = self.indices.sort()
        first, end = (int(rows[0]), int(rows[-1]) + 1) if len(rows) else (0, 0)
        bags = self.bag_of_read.index_select(0, order)
        return slice(first, end), order, Bags.of_sizes(bags, (rows - first).bincount())


def row_bag(rows: Tensor, bags: Bags, weights: Tensor) -> Tensor:
    """Weighted sum of the rows in each bag, differentiable once in rows and weights.

    Args:
        rows: (R, C), float32 or float64; fast when contiguous.
        bags: M bags of T reads in all.
        weights: (T,), one for each read, of the dtype of `rows`.

    Returns:
        (M, C); zero for an empty bag.
    """
    return cast(Tensor, _RowBag.apply(rows, bags, weights))


def bag_sum(rows: Tensor, bags: Bags, weights: Tensor) -> Tensor:
    """`row_bag` without bookkeeping for gradients."""
    # Tensors that require a gradient send PyTorch down a slower path, even where gradients are switched off.
    return embedding_bag(
        bags.indices,
        rows.detach(),
        bags.starts,
        mode="sum",
        per_sample_weights=weights.detach(),
        include_last_offset=True,
    )


def add_rows_gradient(total: Tensor, gradient: Tensor, bags: Bags, weights: Tensor) -> None:
    """Adds to `total` (R, C) the gradient of the rows for the bags' `gradient` (M, C): the transposed bags."""
    touched, order, transposed = bags.transposed
    total[touched] += bag_sum(gradient, transposed, weights.index_select(0, order))


def weights_gradient(gradient: Tensor, rows: Tensor, bags: Bags) -> Tensor:
    """The gradient (T,) of the weights: each read's row times the `gradient` (M, C) of its bag, over all channels."""
    # embedding_bag's own gradient; reached through autograd it would also repeat the forward pass.
    backward = torch.ops.aten._embedding_bag_per_sample_weights_backward
    return cast(Tensor, backward(gradient, rows, bags.indices, bags.starts[:-1], bags.bag_of_read, 0))  # 0: mode "sum"


class _RowBag(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, rows: Tensor, bags: Bags, weights: Tensor) -> Tensor:
        ctx.save_for_backward(rows, weights)
        ctx.bags = bags
        return bag_sum(rows, bags, weights)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, None, Tensor | None]:
        rows, weights = ctx.saved_tensors
        gradient = gradient.contiguous()
        to_rows = to_weights = None
        if ctx.needs_input_grad[0]:
            to_rows = torch.zeros_like(rows)
            add_rows_gradient(to_rows, gradient, ctx.bags, weights)
        if ctx.needs_input_grad[2]:
            to_weights = weights_gradient(gradient, rows, ctx.bags)
        return to_rows, None, to_weights
