from __future__ import annotations

import math
import warnings

import numpy as np
import pytest

from tightbox.evaluation.figures import difference, mean, number, percent, percents


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ([1.0, None, 2.0, math.nan], 1.5),  # what is not known has no part
        (np.array([[0.0, 1.0], [np.nan, 0.5]]), 0.5),  # of any shape
        ([], None),
        ([None, math.nan], None),
        (np.empty((0, 3)), None),
    ],
)
def test_means(values: list[float | None], expected: float | None) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # NumPy warns of the mean of nothing
        assert mean(values) == expected


def test_numbers_and_differences() -> None:
    assert number(math.nan) is None
    assert number(np.float64(0.25)) == 0.25
    assert difference(0.75, 0.5) == 0.25
    assert difference(None, 0.5) is difference(0.5, None) is None


@pytest.mark.parametrize(
    ("value", "width", "text"),
    [(0.1234, 5, " 12.3"), (1.0, 5, "100.0"), (None, 5, "    -"), (0.0, 0, "0.0"), (None, 0, "-"), (-0.05, 5, " -5.0")],
)
def test_per_cent(value: float | None, width: int, text: str) -> None:
    assert percent(value, width) == text


def test_columns_of_a_table() -> None:
    assert percents((0.5, None)) == " 50.0     -"
