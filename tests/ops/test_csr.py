from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from tightbox.ops.csr import CSRPattern

pytestmark = pytest.mark.usefixtures("device")


class Matmul(torch.autograd.Function):
    """`CSRPattern.matmul` with the gradients that the ops make of the other two products."""

    @staticmethod
    def forward(ctx: Any, pattern: CSRPattern, weights: Tensor, dense: Tensor) -> Tensor:
        ctx.save_for_backward(weights, dense)
        ctx.pattern = pattern
        return pattern.matmul(weights, dense)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[None, Tensor, Tensor]:
        weights, dense = ctx.saved_tensors
        gradient = gradient.contiguous()
        to_dense = torch.zeros_like(dense)
        ctx.pattern.add_transposed_matmul(to_dense, weights, gradient)
        return None, ctx.pattern.sampled_matmul(gradient, dense), to_dense


def make_pattern(*rows: list[int]) -> CSRPattern:
    indices = torch.tensor([column for row in rows for column in row], dtype=torch.int32)
    return CSRPattern.of_counts(torch.tensor([len(row) for row in rows], dtype=torch.int32), indices)


def test_product_by_hand() -> None:
    dense = torch.tensor([[1.0, 10.0], [2.0, 20.0], [3.0, 30.0]])
    weights = torch.tensor([1.0, 2.0, 0.5, -1.0])
    # 1·row0 + 2·row2; nothing; 0.5·row1 − 1·row1
    expected = torch.tensor([[7.0, 70.0], [0.0, 0.0], [-1.0, -10.0]])
    torch.testing.assert_close(make_pattern([0, 2], [], [1, 1]).matmul(weights, dense), expected)


def test_transposed_by_hand() -> None:
    # Entries 0 to 5 stand in columns 4, 2, 2, 1, 4, 2 of rows 0, 0, 0, 2, 3, 3. By column, from 1 to 4:
    # column 1 has entry 3, column 2 has 1, 2 and 5, column 3 none and column 4 has 0 and 4.
    columns, order, transposed = make_pattern([4, 2, 2], [], [1], [4, 2]).csc
    assert columns == slice(1, 5)
    assert transposed.indptr.tolist() == [0, 1, 4, 4, 6]
    assert [sorted(order[start:end].tolist()) for start, end in ((0, 1), (1, 4), (4, 6))] == [[3], [1, 2, 5], [0, 4]]
    assert transposed.indices.tolist() == torch.tensor([0, 0, 0, 2, 3, 3])[order].tolist()


def test_entries_of_rows_by_hand() -> None:
    # Rows 0, 2 and 3 have the entries 0 to 2, 3, and 4 and 5; row 1 has none. Row 3 is asked for twice.
    listed, entries = make_pattern([4, 2, 2], [], [1], [4, 2]).entries_of(torch.tensor([3, 1, 0, 3], dtype=torch.int32))
    assert listed.tolist() == [0, 0, 2, 2, 2, 3, 3]
    assert entries.tolist() == [4, 5, 0, 1, 2, 4, 5]


def test_gradients_in_double() -> None:
    # Column 0 and the last have no entry, column 2 has several in one row and in several rows, one row is empty.
    pattern = make_pattern([1, 2, 2], [], [3], [2, 1])
    dense = torch.randn(5, 3, dtype=torch.double, requires_grad=True)
    weights = torch.randn(6, dtype=torch.double, requires_grad=True)
    assert torch.autograd.gradcheck(lambda d, w: Matmul.apply(pattern, w, d), (dense, weights))


def test_no_entries_at_all() -> None:
    dense, weights = torch.randn(3, 2, requires_grad=True), torch.randn(0, requires_grad=True)
    output = Matmul.apply(make_pattern([], []), weights, dense)
    assert torch.equal(output, torch.zeros(2, 2))
    output.sum().backward()
    assert dense.grad is not None
    assert not dense.grad.any()


def test_no_rows_at_all() -> None:
    dense = torch.randn(3, 2, requires_grad=True)
    output = Matmul.apply(make_pattern(), torch.randn(0), dense)
    assert output.shape == (0, 2)
    output.sum().backward()
    assert dense.grad is not None
    assert not dense.grad.any()
