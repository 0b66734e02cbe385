"""Ranking scores."""

import math

import pytest
import torch

from tightbox.errors import UserError
from tightbox.rank import by_centerness, by_class_score, by_power
from tightbox.structures import Candidates

SCORES = torch.tensor([[0.9, 0.0, 0.4], [0.25, 1.0, 0.1]])
IOUS = torch.tensor([0.4, 0.0])


def candidates(**estimates):
    return Candidates(torch.zeros(2, 4), SCORES, **estimates)


def test_class_score_is_left_alone():
    assert torch.equal(by_class_score(candidates(ious=IOUS)), SCORES)


@pytest.mark.parametrize(
    ("alpha", "row", "column", "expected"),
    [
        (0.5, 0, 0, 0.6),  # sqrt(0.9 · 0.4)
        (0.25, 0, 0, 0.9**0.25 * 0.4**0.75),  # the IoU weighs more
        (0.5, 0, 1, 0.0),  # no class score
        (0.5, 1, 1, 0.0),  # no IoU
        (0.0, 0, 1, 0.4),  # the IoU alone: 0⁰ is 1
        (1.0, 1, 0, 0.25),  # the class score alone: 0⁰ is 1
    ],
)
def test_power_by_hand(alpha, row, column, expected):
    assert by_power(candidates(ious=IOUS), alpha)[row, column].item() == pytest.approx(expected)


def test_power_with_an_estimate_of_each_class():
    ious = torch.tensor([[0.4, 0.9, 0.1], [1.0, 0.25, 0.9]])
    found = by_power(candidates(ious=ious))
    expected = [
        [math.sqrt(p * u) for p, u in zip(*r, strict=True)] for r in zip(SCORES.tolist(), ious.tolist(), strict=True)
    ]
    torch.testing.assert_close(found, torch.tensor(expected))


def test_alpha_of_one_is_exactly_the_class_score():
    estimates = torch.tensor([math.nan, -3.0])
    assert torch.equal(by_power(candidates(ious=estimates), alpha=1.0), SCORES)


def test_an_estimate_under_zero_counts_as_zero():
    assert by_power(candidates(ious=torch.tensor([-0.1, -5.0]))).tolist() == [[0.0] * 3] * 2


def test_half_precision_is_computed_in_float32():
    half = Candidates(torch.zeros(2, 4), SCORES.half(), ious=IOUS.half(), centerness=IOUS.half())
    assert {f(half).dtype for f in (by_class_score, by_power, by_centerness)} == {torch.float32}


@pytest.mark.parametrize("alpha", [-0.1, 1.1, math.nan])
def test_alpha_out_of_range(alpha):
    with pytest.raises(UserError, match="alpha"):
        by_power(candidates(ious=IOUS), alpha)


def test_centerness_multiplies():
    found = by_centerness(candidates(centerness=torch.tensor([0.5, 0.0])))
    torch.testing.assert_close(found, torch.tensor([[0.45, 0.0, 0.2], [0.0, 0.0, 0.0]]))


@pytest.mark.parametrize("rank", [by_power, by_centerness])
def test_a_missing_estimate_is_said_so(rank):
    with pytest.raises(UserError, match="predicts no"):
        rank(candidates())


@pytest.mark.parametrize("rank", [by_class_score, by_power, by_centerness])
def test_no_candidates(rank):
    empty = Candidates(torch.zeros(0, 4), torch.zeros(0, 3), ious=torch.zeros(0), centerness=torch.zeros(0))
    assert rank(empty).shape == (0, 3)
