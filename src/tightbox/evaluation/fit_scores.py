"""Calibrating scores after training, class by class: the published baselines, Platt scaling and isotonic regression.

Kuzucu et al., "On Calibration of Object Detectors: Pitfalls, Evaluation and Baselines", ECCV 2024: both are fitted to
the IoU of each box with its object, 0 for a wrong one, and beat calibration at training time.
"""

from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
from numpy.typing import ArrayLike
from scipy.optimize import isotonic_regression, minimize
from scipy.special import expit, logit

from tightbox.calibration import IouCalibration
from tightbox.evaluation.figures import Floats
from tightbox.evaluation.inputs import Predictions
from tightbox.evaluation.matching import Matches

Baseline = Literal["none", "platt", "isotonic"]


@dataclass(frozen=True)
class PlattScaling:
    """sigmoid(scale · logit(score) + shift)."""

    scale: float
    shift: float

    def __call__(self, scores: ArrayLike) -> Floats:
        """The calibrated scores."""
        return np.asarray(expit(self.scale * _logits(scores) + self.shift))


@dataclass(frozen=True)
class ScoreMaps:
    """One map for each label, None for a class whose scores stay as they are."""

    maps: tuple[PlattScaling | IouCalibration | None, ...]

    def __call__(self, predictions: Predictions) -> Predictions:
        """The predictions with calibrated scores."""
        scores = predictions.scores.copy()
        for label, each in enumerate(self.maps):
            if each is not None:
                of_class = predictions.labels == label
                scores[of_class] = each(scores[of_class])
        return replace(predictions, scores=scores.clip(0, 1))


def fit_scores(matches: Matches, baseline: Baseline, iou_threshold: float = 0.0) -> ScoreMaps:
    """The maps of all classes; `matches` are matched at `iou_threshold` at least."""
    if baseline == "none":
        return ScoreMaps((None,) * len(matches.ground_truth.category_ids))
    fit = fit_platt if baseline == "platt" else fit_steps
    earned = matches.at(iou_threshold).earned
    return ScoreMaps(
        tuple(
            fit(matches.scores[counted], earned[counted]) if positives and len(counted) else None
            for _, positives, counted in matches.counted(iou_threshold)
        )
    )


def fit_platt(scores: ArrayLike, wanted: ArrayLike) -> PlattScaling:
    """The scale and shift of the least cross-entropy with targets in [0, 1]."""
    logits, targets = _logits(scores), np.asarray(wanted, dtype=np.float64)

    def loss(parameters: Floats) -> tuple[float, Floats]:
        z = parameters[0] * logits + parameters[1]
        slope = expit(z) - targets
        value = float(np.mean(np.logaddexp(0, z) - targets * z))
        return value, np.array([np.mean(slope * logits), np.mean(slope)])

    best = minimize(loss, np.array([1.0, 0.0]), jac=True, method="L-BFGS-B", bounds=[(0, 100), (-100, 100)])
    return PlattScaling(float(best.x[0]), float(best.x[1]))


def fit_steps(scores: ArrayLike, wanted: ArrayLike) -> IouCalibration:
    """Isotonic regression with all its steps: the rising ones of least squares; equal scores count as one."""
    at, which, counts = np.unique(np.asarray(scores, dtype=np.float64), return_inverse=True, return_counts=True)
    means = np.bincount(which, weights=np.asarray(wanted, dtype=np.float64)) / counts
    values = isotonic_regression(means, weights=counts).x
    return IouCalibration(tuple(at.tolist()), tuple(np.clip(values, 0, 1).tolist()))


def _logits(scores: ArrayLike) -> Floats:
    edge = float(np.finfo(np.float64).eps)
    return np.asarray(logit(np.clip(np.asarray(scores, dtype=np.float64), edge, 1 - edge)))
