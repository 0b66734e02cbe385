"""AP from a matching, overall, by class and by object size: a fraction of a second for half a million detections."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise

import numpy as np

from tightbox.calibration import IOUS
from tightbox.evaluation.coco import AREAS, CocoMetrics
from tightbox.evaluation.figures import Bools, Floats, Ints, difference, mean
from tightbox.evaluation.matching import Matches

RECALLS = np.linspace(0, 1, 101)
SIZES = AREAS[1:]
CURVE = (50, 60, 70, 75, 80, 90)  # IoU thresholds, in per cent, of the AP curves
AREA_LIMITS = (32.0**2, 96.0**2)  # pixels, of COCO's small and medium objects at most


@dataclass(frozen=True)
class AveragePrecision:
    """COCO AP, and what it is made of; None where no ground-truth box could tell.

    Attributes:
        ap: over the IoU thresholds 0.50 to 0.95.
        by_iou: at single ones, by `CURVE` as text.
        by_size: by `SIZES`.
        by_class: by class name.
    """

    ap: float | None
    by_iou: dict[str, float | None]
    by_size: dict[str, float | None]
    by_class: dict[str, float | None]

    @classmethod
    def of_coco(cls, metrics: CocoMetrics) -> AveragePrecision:
        """The evaluator's own figures."""
        return cls(
            metrics.ap,
            {str(iou): getattr(metrics, f"ap{iou}") for iou in CURVE},
            {size: getattr(metrics, f"ap_{size}") for size in SIZES},
            {name: row.ap for name, row in metrics.per_class.items()},
        )

    def minus(self, other: AveragePrecision) -> AveragePrecision:
        """What this has more."""
        parts = (self.by_iou, other.by_iou), (self.by_size, other.by_size), (self.by_class, other.by_class)
        differences = ({key: difference(ap, theirs.get(key)) for key, ap in ours.items()} for ours, theirs in parts)
        return AveragePrecision(difference(self.ap, other.ap), *differences)


def size_index(areas: Floats) -> Ints:
    """(N,) position in `SIZES` of objects of these areas in pixels."""
    return np.searchsorted(AREA_LIMITS, areas)


def average_precisions(matches: Matches, asked_for: Bools | None = None) -> AveragePrecision:
    """COCO's AP, with one difference: the sizes are judged on the matching of all sizes together.

    So a detection that could have had an object of the right size may be given to one of another, which COCO prevents.
    AP over all sizes is COCO's.

    Args:
        matches: matched at all IoUs from 0.50 to 0.95.
        asked_for: (G,) which ground-truth boxes there are to find; all of them but crowds by default.
    """
    ground_truth = matches.ground_truth
    names = ground_truth.class_names
    wanted = ~ground_truth.crowd if asked_for is None else asked_for & ~ground_truth.crowd
    gt_sizes, own_sizes = size_index(ground_truth.areas), size_index(matches.boxes[:, 2:].prod(axis=1))
    matched_sizes = np.append(gt_sizes, -1)  # the last is for detections without a ground-truth box
    table = np.empty((1 + len(SIZES), len(IOUS), len(names)))
    for group in range(len(table)):
        size = group - 1
        counted = wanted if size < 0 else wanted & (gt_sizes == size)
        positives = np.bincount(ground_truth.labels[counted], minlength=len(names))
        for level, iou in enumerate(IOUS):
            outcome = matches.at(iou)
            kept = ~outcome.ignored
            if size >= 0:
                kept &= np.where(outcome.hit, matched_sizes[outcome.matched], own_sizes) == size
            table[group, level] = class_average_precisions(matches.labels[kept], outcome.hit[kept], positives)
    return AveragePrecision(
        ap=mean(table[0]),
        by_iou={str(iou): mean(table[0, IOUS.index(iou / 100)]) for iou in CURVE},
        by_size={size: mean(table[1 + i]) for i, size in enumerate(SIZES)},
        by_class={name: mean(table[0, :, k]) for k, name in enumerate(names)},
    )


def class_average_precisions(labels: Ints, hit: Bools, positives: Ints) -> Floats:
    """(K,) COCO's AP at 101 recalls of each class; NaN where there is no ground-truth box.

    Args:
        labels: (N,) classes of detections in the order of class and falling score.
        hit: (N,) which are true positives.
        positives: (K,) how many boxes of each class there are to find.
    """
    starts = np.searchsorted(labels, np.arange(len(positives) + 1))
    parts = (hit[start:stop] for start, stop in pairwise(starts))
    return np.array([_average_precision(part, n) for part, n in zip(parts, positives.tolist(), strict=True)])


def _average_precision(hit: Bools, positives: int) -> float:
    """That of one class, its detections by falling score."""
    if not positives:
        return float("nan")
    hits = np.cumsum(hit)
    precision = hits / np.arange(1, len(hit) + 1)
    envelope = np.append(np.maximum.accumulate(precision[::-1])[::-1], 0.0)
    return float(envelope[np.searchsorted(hits / positives, RECALLS)].mean())
