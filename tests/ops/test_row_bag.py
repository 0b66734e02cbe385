from __future__ import annotations

import torch

from tightbox.ops.row_bag import Bags, row_bag


def make_bags(*bags: list[int]) -> Bags:
    indices = torch.tensor([row for bag in bags for row in bag], dtype=torch.int32)
    return Bags.of_sizes(indices, torch.tensor([len(bag) for bag in bags], dtype=torch.int32))


def test_sums_by_hand() -> None:
    rows = torch.tensor([[1.0, 10.0], [2.0, 20.0], [3.0, 30.0]])
    weights = torch.tensor([1.0, 2.0, 0.5, -1.0])
    # 1·row0 + 2·row2; nothing; 0.5·row1 − 1·row1
    expected = torch.tensor([[7.0, 70.0], [0.0, 0.0], [-1.0, -10.0]])
    torch.testing.assert_close(row_bag(rows, make_bags([0, 2], [], [1, 1]), weights), expected)


def test_gradients_in_double() -> None:
    # Row 0 and the last row are never read, row 2 is read by several bags, one bag is empty.
    bags = make_bags([1, 2, 2], [], [3], [2, 1])
    rows = torch.randn(5, 3, dtype=torch.double, requires_grad=True)
    weights = torch.randn(6, dtype=torch.double, requires_grad=True)
    assert torch.autograd.gradcheck(lambda r, w: row_bag(r, bags, w), (rows, weights))


def test_gradient_of_one_input_alone() -> None:
    bags = make_bags([0, 1], [1])
    rows, weights = torch.randn(2, 4), torch.randn(3)
    for leaf in (rows, weights):
        leaf.requires_grad_()
        row_bag(rows, bags, weights).sum().backward()
        assert leaf.grad is not None
        leaf.requires_grad_(False)


def test_no_reads_at_all() -> None:
    rows, weights = torch.randn(3, 2, requires_grad=True), torch.randn(0, requires_grad=True)
    output = row_bag(rows, make_bags([], []), weights)
    assert torch.equal(output, torch.zeros(2, 2))
    output.sum().backward()
    assert rows.grad is not None
    assert not rows.grad.any()


def test_no_bags_at_all() -> None:
    rows = torch.randn(3, 2, requires_grad=True)
    output = row_bag(rows, make_bags(), torch.randn(0))
    assert output.shape == (0, 2)
    output.sum().backward()
    assert rows.grad is not None
    assert not rows.grad.any()
