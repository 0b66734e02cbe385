"""Localisation Recall Precision: one error for loose, false and missing boxes, and the score threshold it is least at.

Oksuz et al., "Localization Recall Precision (LRP): A New Performance Metric for Object Detection", ECCV 2018, and "One
Metric to Measure them All", TPAMI 2021.
"""

from dataclasses import dataclass

import numpy as np

from tightbox.evaluation.figures import mean
from tightbox.evaluation.matching import Matches


@dataclass(frozen=True)
class Lrp:
    """The LRP error and its components, each in [0, 1] and better when less; None where nothing can tell.

    Attributes:
        error: LRP, the average error of a match: (Σ (1 - IoU) / (1 - τ) over hits + false + missed) / (their number).
        localisation: mean 1 - IoU of the hits, not divided by 1 - τ; None without hits.
        false_positives: fraction of the detections that are false: 1 - precision; None without detections, and in the
            optimum also without hits, where no threshold is better than another.
        false_negatives: fraction of the ground-truth boxes that are missed: 1 - recall.
        threshold: the detections with at least this score were counted; None in a mean, or where none of them is right.
    """

    error: float | None
    localisation: float | None
    false_positives: float | None
    false_negatives: float | None
    threshold: float | None = None


@dataclass(frozen=True)
class LrpReport:
    """The mean over the classes that have ground-truth boxes, and each class by its category id.

    A component is averaged over the classes that have it: one without hits has no localisation error.
    """

    mean: Lrp
    per_class: dict[int, Lrp]


def optimal_lrp(matches: Matches, iou_threshold: float = 0.5) -> LrpReport:
    """Optimal LRP: the least LRP error over all score thresholds, of each class for itself.

    Of equally good thresholds the highest is named. A class of which nothing was found has an error of 1.

    Args:
        matches: matched at `iou_threshold` at least.
        iou_threshold: τ, the IoU from which a detection counts as right.
    """
    return lrp(matches, None, iou_threshold)


def lrp(matches: Matches, score_threshold: float | None = 0.0, iou_threshold: float = 0.5) -> LrpReport:
    """LRP of the detections with at least `score_threshold`, None for the best; the rest as for `optimal_lrp`."""
    outcome = matches.at(iou_threshold)
    per_class = {}
    for category, positives, counted in matches.counted(iou_threshold):
        scores, hit = matches.scores[counted], outcome.hit[counted]
        hits = np.cumsum(hit)
        loose = np.cumsum(np.where(hit, 1 - outcome.ious[counted], 0.0))
        # A threshold takes all detections of one score or none: only the last of equal scores ends a choice.
        ends = np.flatnonzero(np.diff(scores, append=-np.inf))
        if score_threshold is not None:
            ends = ends[scores[ends] >= score_threshold][-1:]
        together = np.maximum(ends + 1 - hits[ends] + positives, 1)
        error = (loose[ends] / (1 - iou_threshold) + ends + 1 - 2 * hits[ends] + positives) / together
        if not positives:
            per_class[category] = Lrp(None, None, None, None)
        elif not len(ends) or (score_threshold is None and not hits[-1]):
            per_class[category] = Lrp(1.0, None, None, 1.0)
        else:
            end = int(ends[np.argmin(error)])
            found = int(hits[end])
            localisation = float(loose[end]) / found if found else None
            false, missed = 1 - found / (end + 1), 1 - found / positives
            threshold = float(scores[end]) if score_threshold is None else score_threshold
            per_class[category] = Lrp(float(error.min()), localisation, false, missed, threshold)
    columns = ("error", "localisation", "false_positives", "false_negatives")
    means = {name: mean(getattr(row, name) for row in per_class.values()) for name in columns}
    return LrpReport(Lrp(**means), per_class)
