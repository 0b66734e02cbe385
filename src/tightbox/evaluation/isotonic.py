"""What the maps by isotonic regression share: groups of like values, and the middle of each step."""

import numpy as np

from tightbox.evaluation.figures import Floats, Ints


def like_groups(values: Floats, most: int) -> Ints:
    """(N,) a number from 0 on for each group of like values, at most so many; equal values are never parted."""
    edges = np.unique(np.quantile(values, np.linspace(0, 1, max(1, most) + 1)[1:-1]))
    groups: Ints = np.unique(np.searchsorted(edges, values, side="right"), return_inverse=True)[1]
    return groups


def monotone_steps(at: Floats, heights: Floats, counts: Ints, *, rising: bool = True) -> tuple[Floats, Floats]:
    """The nearest heights that never fall (or rise): where the middle of each step lies, and its height.

    Args:
        at: (G,) where each group lies, ascending.
        heights: (G,) of each.
        counts: (G,) how many values each is the mean of.
        rising: whether heights may rise only; they may fall only otherwise.
    """
    from scipy.optimize import isotonic_regression

    fit = isotonic_regression(heights, weights=counts, increasing=rising)
    steps = fit.blocks[:-1]
    return np.add.reduceat(at * counts, steps) / np.add.reduceat(counts, steps), fit.x[steps]
