"""Calibration measures of detectors as published, beside LaECE (`reliability.laece`).

Each says in one number how far the scores are from what they should mean; what that is differs:

* D-ECE: the precision at IoU 0.5, of all classes together, in 10 bins (Küppers et al., CVPR workshops 2020; of the
  score alone, as Kuzucu et al. report it).
* LaECE₀ and LaACE₀: the IoU with the object, whatever it is (τ = 0), of each class for itself: in 25 bins, or box by
  box (Kuzucu et al., "On Calibration of Object Detectors: Pitfalls, Evaluation and Baselines", ECCV 2024).
* OCE: the class of each object, told by all boxes on it; a missed object counts as an error of 1 (Park et al.,
  "Quantifying the Reliability of Predictions in Detection Transformers", 2024, arXiv 2412.01782).
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
from numpy.typing import ArrayLike
from scipy.optimize import isotonic_regression, minimize
from scipy.special import expit, logit

from tightbox.calibration import IouCalibration
from tightbox.evaluation.figures import Floats, mean
from tightbox.evaluation.inputs import GroundTruth, Predictions
from tightbox.evaluation.lrp import LrpReport, lrp, optimal_lrp
from tightbox.evaluation.matching import Matches, match, overlapping_pairs
from tightbox.evaluation.reliability import laece, reliability

Baseline = Literal["none", "platt", "isotonic"]
Results = tuple[GroundTruth, Predictions]

OCE_IOUS = (0.5, 0.75)


@dataclass(frozen=True)
class CalibrationMeasures:
    """All of them for one set of detections; None where nothing can tell.

    Attributes:
        d_ece: D-ECE at IoU 0.5.
        laece: LaECE at τ = 0.1.
        laece0: LaECE₀.
        laace0: LaACE₀.
        oce: OCE, mean of the IoUs 0.5 and 0.75.
    """

    d_ece: float | None
    laece: float | None
    laece0: float | None
    laace0: float | None
    oce: float | None


def calibration_measures(ground_truth: GroundTruth, predictions: Predictions) -> CalibrationMeasures:
    """Every measure of some detections.

    At τ = 0 a box that touches no object is wrong here. The published evaluator lets it take a free object of its class
    in the image with an IoU of 0, so that a later box on that object counts as wrong: the two differ there.
    """
    matches = match(ground_truth, predictions, (0.0, 0.1, 0.5))
    laece01, laece0 = laece(matches, 0.1).error, laece(matches, 0.0).error
    return CalibrationMeasures(d_ece(matches), laece01, laece0, laace(matches, 0.0), oce(ground_truth, predictions))


def d_ece(matches: Matches, iou_threshold: float = 0.5, bins: int = 10) -> float | None:
    """|mean score - precision| over score bins of all classes together; None without detections.

    Detections of classes without ground truth do not count, as in the published evaluator.
    """
    outcome = matches.at(iou_threshold)
    counted = ~outcome.ignored & (matches.ground_truth.positives > 0)[matches.labels]
    return reliability(matches.scores[counted], outcome.hit[counted].astype(np.float64), bins).error


def laace(matches: Matches, iou_threshold: float = 0.0) -> float | None:
    """Mean over the classes of the mean |score - IoU| of their boxes, the IoU of wrong ones being 0.

    That is LaECE with a bin for every box. A class counts if it has ground-truth boxes and detections.
    """
    off = np.abs(matches.scores - matches.at(iou_threshold).earned)
    classes = matches.counted(iou_threshold)
    return mean(float(off[counted].mean()) for _, positives, counted in classes if positives and len(counted))


def oce(ground_truth: GroundTruth, predictions: Predictions) -> float | None:
    """Mean over objects and the IoUs 0.5 and 0.75 of Σ over classes of (1 for the object's class, else 0, - p̄)².

    p̄ is the mean over all boxes of any class with at least this IoU of their class scores. Of detections only the
    score of their own class is known; those of others count as 0. Crowds are no objects. None without objects.
    """
    objects = np.arange(len(ground_truth.labels))
    counts = np.zeros((len(OCE_IOUS), len(objects)))
    sums = np.zeros((*counts.shape, len(ground_truth.category_ids)))
    for box, target, iou in overlapping_pairs(predictions.images, predictions.boxes, ground_truth):
        level, pair = np.nonzero(iou >= np.array(OCE_IOUS)[:, None])
        box, target = box[pair], target[pair]
        np.add.at(sums, (level, target, predictions.labels[box]), predictions.scores[box])
        np.add.at(counts, (level, target), 1)
    told = sums / np.maximum(counts, 1)[..., None]
    told[:, objects, ground_truth.labels] -= 1
    errors = np.where(counts > 0, (told**2).sum(axis=-1), 1.0)
    return mean(errors[:, ~ground_truth.crowd])


@dataclass(frozen=True)
class PlattScaling:
    """sigmoid(scale · logit(score) + shift)."""

    scale: float
    shift: float

    def __call__(self, scores: ArrayLike) -> Floats:
        """The calibrated scores."""
        return np.asarray(expit(self.scale * _logits(scores) + self.shift))


ScoreMap = PlattScaling | IouCalibration


def fit_scores(matches: Matches, baseline: Baseline, iou_threshold: float = 0.0) -> tuple[ScoreMap | None, ...]:
    """A map of the scores of each class, None where they stay as they are; `matches` are matched at `iou_threshold`.

    Kuzucu et al. fit both baselines to the IoU of each box with its object, 0 for a wrong one, and find that they beat
    calibration at training time.
    """
    fit = {"none": None, "platt": fit_platt, "isotonic": fit_steps}[baseline]
    earned = matches.at(iou_threshold).earned
    return tuple(
        fit(matches.scores[counted], earned[counted]) if fit and positives and len(counted) else None
        for _, positives, counted in matches.counted(iou_threshold)
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


@dataclass(frozen=True)
class ThresholdedProtocol:
    """Accuracy and calibration of the boxes that would be used, those above each class's best threshold.

    Attributes:
        thresholds: by category id, chosen on the held-out images; None for a class of which nothing is right there.
        lrp: LRP of what is left.
        measures: calibration measures of what is left.
    """

    thresholds: dict[int, float | None]
    lrp: LrpReport
    measures: CalibrationMeasures


def thresholded_protocol(
    held_out: Results, test: Results, baseline: Baseline = "none", iou_threshold: float = 0.0
) -> ThresholdedProtocol:
    """Kuzucu et al.'s protocol: choose thresholds by LRP, fit scores above them, choose again, and judge the rest.

    Args:
        held_out: images that thresholds and maps are chosen on; of the same classes as the test images.
        test: images that are judged.
        baseline: how the scores of each class are calibrated.
        iou_threshold: τ of the matching, 0 in the paper.
    """
    known, learned = held_out
    first = _best_thresholds(known, learned, iou_threshold)
    kept = learned[learned.scores >= first[learned.labels]]
    maps = fit_scores(match(known, kept, (iou_threshold,)), baseline, iou_threshold)
    second = _best_thresholds(known, _mapped(kept, maps), iou_threshold)
    left = _mapped(test[1][test[1].scores >= first[test[1].labels]], maps)
    left = left[left.scores >= second[left.labels]]
    matches = match(test[0], left, (iou_threshold,))
    thresholds = dict(zip(known.category_ids, (None if np.isinf(v) else float(v) for v in second), strict=True))
    measures = calibration_measures(test[0], left)
    return ThresholdedProtocol(thresholds, lrp(matches, iou_threshold=iou_threshold), measures)


def _mapped(predictions: Predictions, maps: Sequence[ScoreMap | None]) -> Predictions:
    """The predictions with the scores of each class as its map has them."""
    scores = predictions.scores.copy()
    for label, each in enumerate(maps):
        if each is not None:
            of_class = predictions.labels == label
            scores[of_class] = each(scores[of_class])
    return replace(predictions, scores=scores.clip(0, 1))


def _best_thresholds(ground_truth: GroundTruth, predictions: Predictions, iou_threshold: float) -> Floats:
    """(K,) the score threshold of least LRP of each class, infinite where nothing is right."""
    report = optimal_lrp(match(ground_truth, predictions, (iou_threshold,)), iou_threshold)
    return np.array([np.inf if row.threshold is None else row.threshold for row in report.per_class.values()])


def _logits(scores: ArrayLike) -> Floats:
    edge = float(np.finfo(np.float64).eps)
    return np.asarray(logit(np.clip(np.asarray(scores, dtype=np.float64), edge, 1 - edge)))
