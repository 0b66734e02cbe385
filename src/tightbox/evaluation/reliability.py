"""How reliable a score or a predicted IoU is: what it predicts against what is actually there."""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike

from tightbox.errors import UserError
from tightbox.evaluation.figures import Bools, Floats, difference, mean
from tightbox.evaluation.matching import Matches


@dataclass(frozen=True)
class Reliability:
    """What was predicted against what is there, in bins (edge, next edge] of the prediction, the first one with 0.

    Attributes:
        edges: the B + 1 edges from 0 to 1.
        counts: how many predictions fall into each bin.
        predicted: their mean, None in an empty bin.
        actual: the mean of what was there, None in an empty bin.
    """

    edges: tuple[float, ...]
    counts: tuple[int, ...]
    predicted: tuple[float | None, ...]
    actual: tuple[float | None, ...]

    @property
    def error(self) -> float | None:
        """Expected calibration error: the mean |predicted - actual| of the bins, weighted by their counts."""
        return self._average(abs)

    @property
    def bias(self) -> float | None:
        """The same with its sign: positive where the predictions are too high."""
        return self._average(float)

    @property
    def worst(self) -> float | None:
        """Maximum calibration error: the largest |predicted - actual| of any bin."""
        return max((abs(gap) for _, gap in self._gaps()), default=None)

    def _gaps(self) -> list[tuple[int, float]]:
        rows = zip(self.counts, self.predicted, self.actual, strict=True)
        return [(n, gap) for n, predicted, actual in rows if (gap := difference(predicted, actual)) is not None]

    def _average(self, part: Callable[[float], float]) -> float | None:
        gaps = self._gaps()
        total = sum(n for n, _ in gaps)
        return sum(n * part(gap) for n, gap in gaps) / total if total else None


def reliability(predicted: ArrayLike, actual: ArrayLike, bins: int = 20) -> Reliability:
    """The reliability table of predictions in [0, 1] in bins of equal width; a pair is left out unless both are finite.

    Raises:
        UserError: if a prediction lies outside [0, 1].
    """
    predicted, actual = finite_pairs(predicted, actual)
    outside = predicted[(predicted < 0) | (predicted > 1)]
    if len(outside):
        raise UserError(f"calibration needs scores and predicted IoUs in [0, 1], but one is {outside[0]:g}")
    edges = np.linspace(0, 1, bins + 1)
    at = np.maximum(np.searchsorted(edges, predicted, side="left") - 1, 0)
    counts = np.bincount(at, minlength=bins)
    sums = (np.bincount(at, weights=values, minlength=bins) for values in (predicted, actual))
    means = (tuple(float(s / n) if n else None for s, n in zip(sum_, counts, strict=True)) for sum_ in sums)
    return Reliability(tuple(edges.tolist()), tuple(counts.tolist()), *means)


@dataclass(frozen=True)
class LaEce:
    """The mean localisation-aware calibration error of the classes, and their reliability by category id.

    A class counts if it has ground-truth boxes and detections; None if no class has.
    """

    error: float | None
    per_class: dict[int, Reliability]


def laece(matches: Matches, iou_threshold: float = 0.1, bins: int = 25) -> LaEce:
    """Localisation-aware expected calibration error: |mean score - precision × mean IoU of the hits| over score bins.

    Oksuz et al., "Towards Building Self-Aware Object Detectors via Reliable Uncertainty Quantification and
    Calibration", CVPR 2023, with τ = 0.1; Kuzucu et al., "On Calibration of Object Detectors: Pitfalls,
    Evaluation and Baselines", ECCV 2024, argue for τ = 0. Both use 25 bins.

    Args:
        matches: matched at `iou_threshold` at least.
        iou_threshold: τ, the IoU from which a detection counts as right.
        bins: bins of equal width, of each class for itself.
    """
    earned = matches.at(iou_threshold).earned
    per_class = {
        category: reliability(matches.scores[counted], earned[counted], bins)
        for category, positives, counted in matches.counted(iou_threshold)
        if positives and len(counted)
    }
    return LaEce(mean(table.error for table in per_class.values()), per_class)


@dataclass(frozen=True)
class Correlation:
    """Pearson's and Spearman's coefficients and the number of pairs; None with fewer than 2 or all alike."""

    pearson: float | None
    spearman: float | None
    pairs: int


def correlation(predicted: ArrayLike, true_ious: ArrayLike, above: float = 0.5) -> Correlation:
    """How well predictions track true IoUs greater than `above`; a pair is left out unless both are finite."""
    from scipy.stats import rankdata

    predicted, true_ious = finite_pairs(predicted, true_ious)
    predicted, true_ious = predicted[true_ious > above], true_ious[true_ious > above]
    if len(predicted) < 2 or np.ptp(predicted) == 0 or np.ptp(true_ious) == 0:
        return Correlation(None, None, len(predicted))
    ranks = rankdata(predicted), rankdata(true_ious)
    pearson, spearman = (float(np.corrcoef(*pair)[0, 1]) for pair in ((predicted, true_ious), ranks))
    return Correlation(pearson, spearman, len(predicted))


def finite_pairs(first: ArrayLike, second: ArrayLike) -> tuple[Floats, Floats]:
    """Both as flat arrays, without the places where either is not finite."""
    pair = np.asarray(first, dtype=np.float64).ravel(), np.asarray(second, dtype=np.float64).ravel()
    there: Bools = np.isfinite(pair[0]) & np.isfinite(pair[1])
    return pair[0][there], pair[1][there]
