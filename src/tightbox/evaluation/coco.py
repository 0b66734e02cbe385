"""COCO average precision: overall, at single IoU thresholds, by object size and by class."""

from dataclasses import asdict, dataclass
from itertools import pairwise
from typing import Any, Self

import numpy as np

from tightbox.calibration import IOUS
from tightbox.evaluation.figures import Bools, Floats, Ints, difference, mean, number, percent, percents
from tightbox.evaluation.inputs import GroundTruth, Predictions
from tightbox.evaluation.matching import Matches, match

AREAS = {"small": (0.0, 32.0**2), "medium": (32.0**2, 96.0**2), "large": (96.0**2, 1e10)}  # COCO's sizes, in pixels
SIZES = tuple(AREAS)
CURVE = (50, 60, 70, 75, 80, 90)  # IoU thresholds, in per cent, of the AP curves
RECALLS = np.linspace(0, 1, 101)


@dataclass(frozen=True)
class ClassMetrics:
    """AP of one class and the number of its ground-truth boxes, crowds not counted; None where there is no such box."""

    ap: float | None
    ap50: float | None
    ap75: float | None
    boxes: int


@dataclass(frozen=True)
class CocoMetrics:
    """COCO's figures, each in [0, 1], or None where there is no ground-truth box that could tell.

    Attributes:
        ap: mean over the IoU thresholds 0.50, 0.55, ..., 0.95, the classes and 101 recalls.
        ap50: AP at IoU 0.50; likewise `ap60` to `ap90`.
        ap_small: AP over objects of at most 32² pixels; `ap_medium` to 96², `ap_large` above.
        ar: mean over thresholds and classes of the recall reached with `max_detections` boxes in an image.
        per_class: the same by class name, in the order of their category ids.
    """

    ap: float | None
    ap50: float | None
    ap60: float | None
    ap70: float | None
    ap75: float | None
    ap80: float | None
    ap90: float | None
    ap_small: float | None
    ap_medium: float | None
    ap_large: float | None
    ar: float | None
    per_class: dict[str, ClassMetrics]

    def to_dict(self) -> dict[str, Any]:
        """Plain dictionaries and numbers, fit for JSON."""
        return asdict(self)

    def table(self) -> str:
        """The figures in per cent as aligned text: one row over all classes, then one for each class."""
        width = max(len(name) for name in ("all classes", *self.per_class))
        boxes = sum(row.boxes for row in self.per_class.values())
        rows = {"all classes": ClassMetrics(self.ap, self.ap50, self.ap75, boxes)} | self.per_class
        lines = [f"{'':{width}}    AP  AP50  AP75   boxes"]
        for name, row in rows.items():
            lines.append(f"{name:{width}} {percents((row.ap, row.ap50, row.ap75))} {row.boxes:7d}")
        rest = ("ap60", "ap70", "ap80", "ap90", "ap_small", "ap_medium", "ap_large", "ar")
        lines.append("  ".join(f"{name} {percent(getattr(self, name), width=0)}" for name in rest))
        return "\n".join(lines)


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
    def of_coco(cls, metrics: CocoMetrics) -> Self:
        """The evaluator's own figures."""
        by_iou = {str(iou): getattr(metrics, f"ap{iou}") for iou in CURVE}
        by_size = {size: getattr(metrics, f"ap_{size}") for size in SIZES}
        return cls(metrics.ap, by_iou, by_size, {name: row.ap for name, row in metrics.per_class.items()})

    def minus(self, other: Self) -> Self:
        """What this has more."""
        parts = (self.by_iou, other.by_iou), (self.by_size, other.by_size), (self.by_class, other.by_class)
        differences = ({key: difference(ap, theirs.get(key)) for key, ap in ours.items()} for ours, theirs in parts)
        return type(self)(difference(self.ap, other.ap), *differences)


def evaluate(ground_truth: GroundTruth, predictions: Predictions, max_detections: int = 100) -> CocoMetrics:
    """COCO's figures.

    Args:
        ground_truth: what is in the images.
        predictions: what was found there.
        max_detections: how many boxes of one class count in an image, best scores first.
    """
    matches = match(ground_truth, predictions, IOUS, max_detections)
    ap, there = _average_precisions(matches), matches.positives > 0
    at_iou = {f"ap{50 + 5 * t}": mean(ap[t]) for t in (0, 2, 4, 5, 6, 8)}
    sizes = ((name, match(ground_truth, predictions, IOUS, max_detections, areas)) for name, areas in AREAS.items())
    of_size = {f"ap_{name}": mean(_average_precisions(of_this)) for name, of_this in sizes}
    found = [np.bincount(matches.labels[outcome.hit], minlength=len(there)) for outcome in matches.outcomes]
    recall = mean(np.array(found)[:, there] / matches.positives[there])
    rows = zip(ground_truth.class_names, ap.T, matches.positives.tolist(), strict=True)
    per_class = {name: ClassMetrics(mean(aps), number(aps[0]), number(aps[5]), boxes) for name, aps, boxes in rows}
    return CocoMetrics(ap=mean(ap), **at_iou, **of_size, ar=recall, per_class=per_class)


def size_index(areas: Floats) -> Ints:
    """(N,) position in `SIZES` of objects of these areas in pixels."""
    return np.searchsorted([largest for _, largest in AREAS.values()][:-1], areas)


def _average_precisions(matches: Matches) -> Floats:
    """(T, K) that of each IoU threshold and class; NaN where there is no ground-truth box."""
    kept = [(outcome.hit[~outcome.ignored], matches.labels[~outcome.ignored]) for outcome in matches.outcomes]
    return np.array([class_average_precisions(labels, hit, matches.positives) for hit, labels in kept])


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
