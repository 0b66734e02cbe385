"""Products with a sparse matrix, for operations whose every output is a weighted sum of a few pixels.

The sparse matrix (M, R) has a row for each output, a column for each pixel and is in CSR: row m has the entries
`indptr[m]:indptr[m + 1]`, and entry t stands in column `indices[t]` with the value `weights[t]`. It is multiplied with
the dense (R, C) table of the pixels' features.

Products accumulate in float32 at least, whatever the features' dtype, and are rounded to that once.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from functools import cache, cached_property
from importlib.util import find_spec
from typing import cast

import torch
from torch import Tensor
from torch.nn.functional import embedding_bag, pad


@cache
def _triton() -> tuple[bool, bool]:
    """Whether triton is installed, and whether it interprets kernels, which it then does on a CPU."""
    return find_spec("triton") is not None, os.environ.get("TRITON_INTERPRET") == "1"


def uses_triton(tensor: Tensor) -> bool:
    """Whether Triton's kernels compute with such a tensor: on an NVIDIA or AMD GPU, where triton is installed."""
    installed, interprets = _triton()
    return installed and (tensor.is_cuda or (interprets and tensor.device.type == "cpu"))


@dataclass(frozen=True, eq=False)
class CSRPattern:
    """Where a sparse matrix (M, R) has its T entries. Their weights (T,) are given to each product.

    Apart, because weights have a dtype and gradients, and several operations share a pattern and its transposition.

    Attributes:
        indptr: (M + 1,) int32, not decreasing, from 0 to T; a row may be empty.
        indices: (T,) int32, 0 to R − 1, in any order within a row; entries of the same place add up.
    """

    indptr: Tensor
    indices: Tensor

    @classmethod
    def of_counts(cls, counts: Tensor, indices: Tensor) -> CSRPattern:
        """The pattern whose rows have `counts` (M,) entries each."""
        return cls(pad(counts.cumsum(0, dtype=torch.int32), (1, 0)), indices)

    @classmethod
    def of_ranges(cls, first: Tensor, counts: Tensor) -> CSRPattern:
        """The pattern whose row m has entries in `counts[m]` successive columns from `first[m]` on, int32 (M,) both."""
        _, columns = _ranges(first, counts)
        return cls.of_counts(counts, columns)

    @cached_property
    def counts(self) -> Tensor:
        """(M,) int32: the number of entries of each row."""
        return self.indptr.diff()

    @cached_property
    def row_of_entry(self) -> Tensor:
        """(T,) int32: the row of each entry."""
        rows = torch.arange(len(self.indptr) - 1, dtype=torch.int32, device=self.indptr.device)
        return rows.repeat_interleave(self.counts, output_size=len(self.indices))

    @cached_property
    def csc(self) -> tuple[slice, Tensor, CSRPattern]:
        """The entries sorted by column (CSC), as CSR of the transposed matrix.

        These are the S columns from the first to the last that has an entry, the order (T,) of the entries, which is
        that of their weights too, and their pattern (S, M). Other columns are left out because a few boxes of a large
        batch touch few of its pixels.
        """
        columns, order = self.indices.sort()
        first, end = (int(columns[0]), int(columns[-1]) + 1) if len(columns) else (0, 0)
        rows = self.row_of_entry.index_select(0, order)
        return slice(first, end), order, CSRPattern.of_counts((columns - first).bincount(), rows)

    def entries_of(self, rows: Tensor) -> tuple[Tensor, Tensor]:
        """All entries of `rows` (L,) int32, in that order: for which of the L each is listed, and its number."""
        return _ranges(self.indptr.index_select(0, rows), self.counts.index_select(0, rows))

    def matmul(self, weights: Tensor, dense: Tensor) -> Tensor:
        """(M, C): the matrix times `dense` (R, C), of its dtype, fast where it is contiguous."""
        if uses_triton(dense):
            from tightbox.ops import csr_triton  # here, as importing Triton takes time and needs it to be installed

            return csr_triton.matmul(self.indptr, self.indices, weights, dense)
        # embedding_bag is this product, and fast on a CPU. Tensors that require a gradient send it down a slower path,
        # even where gradients are switched off. It takes weights of the features' dtype only.
        dense, values = dense.detach(), weights.detach().to(dense.dtype)
        return embedding_bag(
            self.indices, dense, self.indptr, mode="sum", per_sample_weights=values, include_last_offset=True
        )

    def add_transposed_matmul(self, total: Tensor, weights: Tensor, dense: Tensor) -> None:
        """Adds the transposed matrix times `dense` (M, C) to `total` (R, C): from outputs' to pixels' gradients.

        `total` is of float32 or float64.
        """
        if uses_triton(dense):
            from tightbox.ops import csr_triton

            csr_triton.add_transposed_matmul(total, self.indptr, self.indices, weights, dense)
        else:
            columns, order, transposed = self.csc
            total[columns] += transposed.matmul(weights.index_select(0, order), dense)

    def sampled_matmul(self, left: Tensor, right: Tensor) -> Tensor:
        """(T,): `left` (M, C) times `right` (R, C) transposed, at the entries alone: the gradient of the weights.

        For that, `left` is the outputs' gradient and `right` what `matmul` was given.
        """
        if uses_triton(left):
            from tightbox.ops import csr_triton

            return csr_triton.sampled_matmul(self.indptr, self.indices, left, right)
        # embedding_bag's own gradient; reached through autograd it would also repeat the forward pass.
        backward = torch.ops.aten._embedding_bag_per_sample_weights_backward
        return cast(Tensor, backward(left, right, self.indices, self.indptr[:-1], self.row_of_entry, 0))  # 0: "sum"


def _ranges(first: Tensor, counts: Tensor) -> tuple[Tensor, Tensor]:
    """Lists `counts[m]` successive numbers from `first[m]` on for each of M ranges, one after another, in int32.

    Returns:
        Which range each number belongs to, and the number: (T,) each.

    >>> first, counts = torch.tensor([5, 0, 7], dtype=torch.int32), torch.tensor([2, 0, 3], dtype=torch.int32)
    >>> [part.tolist() for part in _ranges(first, counts)]
    [[0, 0, 2, 2, 2], [5, 6, 7, 8, 9]]
    """
    ranges = torch.arange(len(counts), dtype=torch.int32, device=counts.device).repeat_interleave(counts)
    # In the list, 0, 1, 2, ..., a range starts where the ones before it end; it is shifted from there to its first.
    shifts = first - (counts.cumsum(0, dtype=torch.int32) - counts)
    return ranges, shifts.index_select(0, ranges) + torch.arange(len(ranges), dtype=torch.int32, device=counts.device)
