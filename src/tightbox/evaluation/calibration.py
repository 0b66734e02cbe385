"""How far a score or a predicted IoU can be trusted, and maps that make the predicted IoU mean what it says."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Self

import numpy as np
from numpy.typing import ArrayLike

from tightbox.errors import UserError
from tightbox.evaluation.matching import Bools, Floats, Matches

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True)
class Reliability:
    """What was claimed against what came true, in bins of the claim; the bins are (edge, next edge], the first with 0.

    Attributes:
        edges: the B + 1 edges from 0 to 1.
        counts: how many claims fall into each bin.
        claimed: their mean, None in an empty bin.
        true: the mean of what came true, None in an empty bin.
    """

    edges: tuple[float, ...]
    counts: tuple[int, ...]
    claimed: tuple[float | None, ...]
    true: tuple[float | None, ...]

    @property
    def error(self) -> float | None:
        """Expected calibration error: the mean |claimed - true| of the bins, weighted by their counts."""
        return self._average(absolute=True)

    @property
    def bias(self) -> float | None:
        """The same with its sign: positive where the claims are too high."""
        return self._average(absolute=False)

    @property
    def worst(self) -> float | None:
        """Maximum calibration error: the largest |claimed - true| of any bin."""
        return max((abs(gap) for _, gap in self._gaps()), default=None)

    def _gaps(self) -> list[tuple[int, float]]:
        rows = zip(self.counts, self.claimed, self.true, strict=True)
        return [(n, claimed - true) for n, claimed, true in rows if claimed is not None and true is not None]

    def _average(self, *, absolute: bool) -> float | None:
        gaps = self._gaps()
        total = sum(n for n, _ in gaps)
        return sum(n * (abs(gap) if absolute else gap) for n, gap in gaps) / total if total else None


def reliability(claimed: ArrayLike, true: ArrayLike, bins: int = 20) -> Reliability:
    """The reliability table of claims in [0, 1] in bins of equal width; a pair is left out unless both are finite.

    Raises:
        UserError: if a claim lies outside [0, 1].
    """
    claimed, true = _complete_pairs(claimed, true)
    outside = claimed[(claimed < 0) | (claimed > 1)]
    if len(outside):
        raise UserError(f"calibration needs scores and predicted IoUs in [0, 1], but one is {outside[0]:g}")
    edges = np.linspace(0, 1, bins + 1)
    at = np.maximum(np.searchsorted(edges, claimed, side="left") - 1, 0)
    counts = np.bincount(at, minlength=bins)
    sums = (np.bincount(at, weights=values, minlength=bins) for values in (claimed, true))
    means = (tuple(float(s / n) if n else None for s, n in zip(sum_, counts, strict=True)) for sum_ in sums)
    return Reliability(tuple(edges.tolist()), tuple(counts.tolist()), *means)


@dataclass(frozen=True)
class LaEce:
    """The mean localisation-aware calibration error of the classes, and their reliability by category id.

    A class counts if it has ground-truth boxes and detections; None if no class has.
    """

    error: float | None
    per_class: dict[int, Reliability]


def localisation_aware_reliability(matches: Matches, iou_threshold: float, bins: int = 25) -> Reliability:
    """Scores of all classes against IoU for hits and 0 for false positives, the claim LaECE tests."""
    outcome = matches.at(iou_threshold)
    return reliability(matches.scores[~outcome.ignored], _earned(matches, iou_threshold)[~outcome.ignored], bins)


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
    counted = ~matches.at(iou_threshold).ignored
    earned = _earned(matches, iou_threshold)
    per_class = {}
    for label, (category, positives) in enumerate(
        zip(matches.truth.category_ids, matches.truth.positives.tolist(), strict=True)
    ):
        part = matches.of_class(label)
        kept = counted[part]
        if positives and kept.any():
            per_class[category] = reliability(matches.scores[part][kept], earned[part][kept], bins)
    errors = [table.error for table in per_class.values() if table.error is not None]
    return LaEce(float(np.mean(errors)) if errors else None, per_class)


def _earned(matches: Matches, iou_threshold: float) -> Floats:
    """(N,) the IoU of hits and 0 of others: its mean in a bin is precision × mean IoU of the hits."""
    outcome = matches.at(iou_threshold)
    return np.where(outcome.hit, outcome.ious, 0.0)


@dataclass(frozen=True)
class Correlation:
    """Pearson's and Spearman's coefficients and the number of pairs; None with fewer than 2 or all alike."""

    pearson: float | None
    spearman: float | None
    pairs: int


def correlation(estimates: ArrayLike, true_ious: ArrayLike, above: float = 0.5) -> Correlation:
    """How well the estimates track true IoUs greater than `above`; a pair is left out unless both are finite."""
    from scipy.stats import pearsonr, spearmanr  # takes seconds, which applying a map must not wait for

    estimates, true_ious = _complete_pairs(estimates, true_ious)
    estimates, true_ious = estimates[true_ious > above], true_ious[true_ious > above]
    if len(estimates) < 2 or np.ptp(estimates) == 0 or np.ptp(true_ious) == 0:
        return Correlation(None, None, len(estimates))
    return Correlation(
        float(pearsonr(estimates, true_ious).statistic),
        float(spearmanr(estimates, true_ious).statistic),
        len(estimates),
    )


def threshold_for_precision(
    scores: ArrayLike, true_ious: ArrayLike, precision: float = 0.95, at_iou: float = 0.75
) -> float | None:
    """The lowest score from which on at least this fraction of the detections has at least this true IoU.

    All detections with the threshold's score or more are counted; one with a NaN score is not, one with a NaN IoU is
    wrong. None if no threshold reaches the precision. It was chosen on these detections and flatters itself on them a
    little, the more the fewer they are.

    Args:
        scores: (N,) scores.
        true_ious: (N,) `Matches.best_iou`, or `Outcome.ious` if duplicates are to be wrong.
        precision: the fraction asked for.
        at_iou: the IoU a right detection has at least.
    """
    scores, true_ious = (np.asarray(values, dtype=np.float64) for values in (scores, true_ious))
    order = np.argsort(-scores, kind="stable")[: np.count_nonzero(~np.isnan(scores))]
    scores, good = scores[order], true_ious[order] >= at_iou
    ends = np.flatnonzero(np.diff(scores, append=-np.inf))
    # 19 of 20 are 95 per cent, whatever 0.95 × 20 is rounded to.
    enough = ends[np.cumsum(good)[ends] >= precision * (ends + 1) - 1e-9]
    return float(scores[enough[-1]]) if len(enough) else None


@dataclass(frozen=True)
class IouCalibration:
    """A rising map from a detector's raw estimate to the IoU to expect, linear between its knots.

    Beyond the first and last knot it keeps their value. NaN stays NaN.

    Attributes:
        estimates: the knots' raw estimates, ascending.
        ious: the knots' IoUs in [0, 1], not falling.
    """

    estimates: tuple[float, ...]
    ious: tuple[float, ...]

    def __post_init__(self) -> None:
        estimates, ious = np.array(self.estimates), np.array(self.ious)
        if (
            not len(estimates) == len(ious) > 0
            or not (np.isfinite(estimates).all() and np.isfinite(ious).all())
            or (np.diff(estimates) <= 0).any()
            or (np.diff(ious) < 0).any()
            or ious[0] < 0
            or ious[-1] > 1
        ):
            raise UserError(
                "an IoU calibration needs equally many rising estimates and IoUs, the IoUs in [0, 1]; calibrate again"
            )

    @classmethod
    def isotonic(cls, estimates: ArrayLike, true_ious: ArrayLike, *, minimum: int = 100, knots: int = 64) -> Self:
        """The rising map nearest to the pairs: isotonic regression, joined by lines through the middle of its steps.

        The pairs are averaged in at most `knots` groups of like estimates first, each of at least 10 pairs or so.

        Raises:
            UserError: if there are fewer than `minimum` pairs of finite numbers.
        """
        from scipy.optimize import isotonic_regression

        estimates, true_ious = _enough_pairs(estimates, true_ious, minimum)
        groups = max(1, min(knots, len(estimates) // 10))
        edges = np.unique(np.quantile(estimates, np.linspace(0, 1, groups + 1)[1:-1]))
        group = np.searchsorted(edges, estimates, side="right")  # equal estimates are never parted
        counts = np.bincount(group, minlength=len(edges) + 1)
        sums = [np.bincount(group, weights=values, minlength=len(counts)) for values in (estimates, true_ious)]
        at, iou = (total[counts > 0] / counts[counts > 0] for total in sums)
        counts = counts[counts > 0]
        fit = isotonic_regression(iou, weights=counts)
        steps = fit.blocks[:-1]
        middle = np.add.reduceat(at * counts, steps) / np.add.reduceat(counts, steps)
        return cls(tuple(middle.tolist()), tuple(np.clip(fit.x[steps], 0, 1).tolist()))

    @classmethod
    def temperature(cls, estimates: ArrayLike, true_ious: ArrayLike, *, minimum: int = 100, knots: int = 64) -> Self:
        """Temperature scaling of estimates in [0, 1]: sigmoid(logit / T), with T of the least cross-entropy.

        With one parameter it needs few pairs, but corrects only what T can. The map is tabulated at about `knots`.

        Raises:
            UserError: if there are fewer than `minimum` pairs of finite numbers.
        """
        from scipy.optimize import minimize_scalar
        from scipy.special import expit, logit

        estimates, true_ious = _enough_pairs(estimates, true_ious, minimum)
        logits = logit(np.clip(estimates, 1e-6, 1 - 1e-6))

        def cross_entropy(log_temperature: float) -> float:
            z = logits / np.exp(log_temperature)
            return float(np.mean(np.logaddexp(0, z) - true_ious * z))

        temperature = np.exp(minimize_scalar(cross_entropy, bounds=(-4, 4), method="bounded").x)
        # Half of the knots are evenly spread before the scaling and half after, so both ends of it are followed.
        half = np.linspace(-12, 12, knots // 2)
        at = np.unique(np.concatenate([[0.0, 1.0], expit(half), expit(half * temperature)]))
        return cls(tuple(at.tolist()), tuple(expit(logit(at) / temperature).tolist()))

    def __call__(self, estimates: ArrayLike) -> Floats:
        """The expected IoUs of an array of raw estimates."""
        x = np.asarray(estimates, dtype=np.float64)
        return np.where(np.isnan(x), np.nan, np.interp(x, self.estimates, self.ious))

    def of_tensor(self, estimates: Tensor) -> Tensor:
        """The expected IoUs of a tensor of raw estimates, of its shape, type and device."""
        import torch

        at, ious = (estimates.new_tensor(values, dtype=torch.float64) for values in (self.estimates, self.ious))
        slopes = torch.nn.functional.pad(ious.diff() / at.diff(), (0, 1))
        x = estimates.double().clamp(at[0], at[-1])
        left = (torch.searchsorted(at, x, right=True) - 1).clamp(0, len(at) - 1)
        return (ious[left] + slopes[left] * (x - at[left])).clamp(ious[0], ious[-1]).to(estimates.dtype)

    def to_json(self) -> dict[str, list[float]]:
        """The knots as lists, for a checkpoint's card."""
        return {"estimates": list(self.estimates), "ious": list(self.ious)}

    @classmethod
    def from_json(cls, content: Mapping[str, Any]) -> Self:
        """The map that `to_json` wrote.

        Raises:
            UserError: if the lists are not there or make no rising map.
        """
        try:
            lists: list[Sequence[float]] = [[float(v) for v in content[name]] for name in ("estimates", "ious")]
        except (KeyError, TypeError, ValueError) as error:
            raise UserError(
                "an IoU calibration needs the lists of numbers estimates and ious; calibrate again"
            ) from error
        return cls(*map(tuple, lists))


def _complete_pairs(first: ArrayLike, second: ArrayLike) -> tuple[Floats, Floats]:
    pair = np.asarray(first, dtype=np.float64).ravel(), np.asarray(second, dtype=np.float64).ravel()
    there: Bools = np.isfinite(pair[0]) & np.isfinite(pair[1])
    return pair[0][there], pair[1][there]


def _enough_pairs(estimates: ArrayLike, true_ious: ArrayLike, minimum: int) -> tuple[Floats, Floats]:
    estimates, true_ious = _complete_pairs(estimates, true_ious)
    if len(estimates) < minimum:
        raise UserError(
            f"calibration needs at least {minimum} detections with a predicted IoU, but there are {len(estimates)}; "
            "calibrate on more images"
        )
    return estimates, true_ious
