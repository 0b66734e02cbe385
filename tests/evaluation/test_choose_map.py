from __future__ import annotations

import numpy as np
import pytest

from tightbox.evaluation.choose_map import choose_of_pairs
from tightbox.evaluation.fit_calibration import fit_linear


def pairs(count: int, images: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Predictions that are right on average, off by 0.1 for a box and by 0.1 for all boxes of an image."""
    rng = np.random.default_rng(seed)
    of_image = rng.integers(0, images, count)
    raw = rng.uniform(0.2, 0.9, count)
    off = rng.normal(0, 0.1, images)[of_image] + rng.normal(0, 0.1, count)
    return raw, np.clip(raw + off, 0, 1), of_image


def test_with_few_images_most_choices_are_no_change() -> None:
    chosen = [choose_of_pairs(*pairs(300, 10, seed)).method for seed in range(30)]
    assert chosen.count("none") > 20


@pytest.mark.parametrize("power", [0.4, 3.0])
def test_what_is_wrong_is_put_right(power: float) -> None:
    rng = np.random.default_rng(0)
    raw = rng.uniform(0.1, 1, 3000)
    true_ious = np.clip(raw**power + rng.normal(0, 0.03, 3000), 0, 1)
    choice = choose_of_pairs(raw, true_ious, np.arange(3000) // 10)
    assert choice.method == "isotonic"
    # The noise's variance is 0.0009; no change leaves the mean of (raw^power - raw)² as well, which is far more.
    assert choice.squared_error("isotonic") < 0.0012 < choice.squared_error("none") / 5


def test_a_line_is_enough_for_a_line() -> None:
    rng = np.random.default_rng(0)
    raw = rng.uniform(0, 1, 2000)
    choice = choose_of_pairs(raw, 0.2 + 0.5 * raw + rng.normal(0, 0.05, 2000), np.arange(2000) // 10)
    assert choice.method == "linear"


@pytest.mark.parametrize(("count", "images"), [(0, 1), (200, 1), (200, 4), (10, 10)])
def test_too_few_to_judge(count: int, images: int) -> None:
    assert choose_of_pairs(*pairs(count, images)).method == "none"


def test_linear_by_hand() -> None:
    # Through (0, -0.5) and (1, 1.5): 2 x - 0.5, cut off at 0.25 and at 0.75.
    raw = np.linspace(0, 1, 101)
    fit = fit_linear(raw, 2 * raw - 0.5, minimum=1)
    np.testing.assert_allclose(fit([0, 0.25, 0.3, 0.5, 0.75, 1]), [0, 0, 0.1, 0.5, 1, 1], atol=1e-12)
    level = fit_linear(raw, 1 - raw, minimum=1)
    np.testing.assert_allclose(level([0, 1]), [0.5, 0.5])
    np.testing.assert_allclose(fit_linear([0.3] * 5, [0.6] * 5, minimum=1)([0.3]), [0.6])
