"""Ranking scores."""

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from tightbox.errors import UserError
from tightbox.rank import best_of_levels, by_centerness, by_class_score, by_power
from tightbox.structures import Candidates

pytestmark = pytest.mark.usefixtures("device")

SCORES = torch.tensor([[0.9, 0.0, 0.4], [0.25, 1.0, 0.1]])
IOUS = torch.tensor([0.4, 0.0])


def candidates(**estimates: Any) -> Candidates:
    return Candidates(torch.zeros(2, 4), SCORES, **estimates)


def test_class_score_is_left_alone() -> None:
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
def test_power_by_hand(alpha: float, row: int, column: int, expected: Any) -> None:
    assert by_power(candidates(ious=IOUS), alpha)[row, column].item() == pytest.approx(expected)


def test_power_with_an_estimate_of_each_class() -> None:
    ious = torch.tensor([[0.4, 0.9, 0.1], [1.0, 0.25, 0.9]])
    found = by_power(candidates(ious=ious))
    expected = [
        [math.sqrt(p * u) for p, u in zip(*r, strict=True)] for r in zip(SCORES.tolist(), ious.tolist(), strict=True)
    ]
    torch.testing.assert_close(found, torch.tensor(expected))


def test_alpha_of_one_is_exactly_the_class_score() -> None:
    estimates = torch.tensor([math.nan, -3.0])
    assert torch.equal(by_power(candidates(ious=estimates), alpha=1.0), SCORES)


def test_an_estimate_under_zero_counts_as_zero() -> None:
    assert by_power(candidates(ious=torch.tensor([-0.1, -5.0]))).tolist() == [[0.0] * 3] * 2


def test_half_precision_is_computed_in_float32() -> None:
    half = Candidates(torch.zeros(2, 4), SCORES.half(), ious=IOUS.half(), centerness=IOUS.half())
    assert {f(half).dtype for f in (by_class_score, by_power, by_centerness)} == {torch.float32}


@pytest.mark.parametrize("alpha", [-0.1, 1.1, math.nan])
def test_alpha_out_of_range(alpha: float) -> None:
    with pytest.raises(UserError, match="alpha"):
        by_power(candidates(ious=IOUS), alpha)


def test_centerness_multiplies() -> None:
    found = by_centerness(candidates(centerness=torch.tensor([0.5, 0.0])))
    torch.testing.assert_close(found, torch.tensor([[0.45, 0.0, 0.2], [0.0, 0.0, 0.0]]))


@pytest.mark.parametrize("rank", [by_power, by_centerness])
def test_a_missing_estimate_is_said_so(rank: Callable[[Candidates], torch.Tensor]) -> None:
    with pytest.raises(UserError, match="predicts no"):
        rank(candidates())


@pytest.mark.parametrize("rank", [by_class_score, by_power, by_centerness])
def test_no_candidates(rank: Callable[[Candidates], torch.Tensor]) -> None:
    empty = Candidates(torch.zeros(0, 4), torch.zeros(0, 3), ious=torch.zeros(0), centerness=torch.zeros(0))
    assert rank(empty).shape == (0, 3)


@given(st.floats(0, 1), st.lists(st.tuples(st.floats(0, 1), st.floats(0, 1)), max_size=5))
def test_power_lies_between_its_factors(alpha: float, pairs: list[tuple[float, float]]) -> None:
    p, u = torch.tensor(pairs, dtype=torch.float64).reshape(-1, 2).unbind(1)
    found = by_power(Candidates(torch.zeros(len(p), 4), p[:, None], ious=u), alpha)[:, 0]
    assert ((found >= torch.minimum(p, u) * (1 - 1e-12)) & (found <= torch.maximum(p, u) * (1 + 1e-12))).all()


def cut(scores: Any, levels: Any, top_k: int) -> list[int]:
    """Rows that stay, level by level, the best first."""
    kept = []
    for level in sorted(set(levels)):
        rows = [i for i, own in enumerate(levels) if own == level]
        kept += sorted(rows, key=lambda i: -max(scores[i]))[:top_k]
    return sorted(kept)


# Scores differ from row to row, so that the best are known.
row_scores = st.lists(st.tuples(st.integers(0, 1000), st.integers(0, 2)), max_size=8, unique_by=lambda pair: pair[0])


@given(row_scores, st.integers(1, 4))
def test_the_best_of_each_level_stay_in_their_order(rows: list[tuple[int, int]], top_k: int) -> None:
    values, levels = [value for value, _ in rows], [level for _, level in rows]
    scores = torch.tensor([[value / 2, value] for value in values]).reshape(-1, 2)
    boxes = torch.arange(len(rows)).float()[:, None].expand(-1, 4)
    of = Candidates(boxes, scores, levels=torch.tensor(levels, dtype=torch.int64))
    found, kept = best_of_levels(of, scores, top_k)
    expected = cut(scores.tolist(), levels, top_k)
    assert found.boxes[:, 0].tolist() == expected
    assert kept.equal(scores[expected])
    assert of.levels is not None


def test_candidates_without_levels_are_one_level() -> None:
    found, kept = best_of_levels(candidates(ious=IOUS), SCORES, 1)
    # The second row's best score, 1, beats the first row's 0.9.
    assert kept.equal(SCORES[1:])
    assert found.ious is not None
    assert found.ious.equal(IOUS[1:])
    assert found.levels is None


def test_the_given_scores_decide_not_the_class_scores() -> None:
    _, kept = best_of_levels(candidates(), SCORES.flip(0), 1)
    assert kept.equal(SCORES[1:])


def test_of_equals_only_so_many_stay() -> None:
    scores = torch.ones(5, 2)
    levels = torch.tensor([0, 0, 0, 1, 1])
    found, _ = best_of_levels(Candidates(torch.zeros(5, 4), scores, levels=levels), scores, 2)
    assert found.levels is not None
    assert found.levels.tolist() == [0, 0, 1, 1]


@pytest.mark.parametrize(
    ("count", "classes"),
    [
        (0, 3),  # no candidates
        (3, 0),  # no classes
        (0, 0),
    ],
)
def test_nothing_to_cut(count: int, classes: int) -> None:
    scores = torch.zeros(count, classes)
    of = Candidates(torch.zeros(count, 4), scores, levels=torch.zeros(count, dtype=torch.int64))
    found, kept = best_of_levels(of, scores, 10)
    assert len(found) == count
    assert kept.shape == (count, classes)


def test_nan_takes_no_place_from_a_number() -> None:
    scores = torch.tensor([[math.nan], [0.5], [0.2], [0.7]])
    found, kept = best_of_levels(Candidates(torch.zeros(4, 4), scores), scores, 2)
    assert kept.flatten().tolist() == pytest.approx([0.5, 0.7])
    assert len(found) == 2


@pytest.mark.parametrize("alpha", [-0.001, 1.001, math.inf])
def test_alpha_just_out_of_range(alpha: float) -> None:
    with pytest.raises(UserError, match=r"alpha is .*; it must lie in \[0, 1\]"):
        by_power(candidates(ious=IOUS), alpha)
