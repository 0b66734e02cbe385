"""COCO average precision: overall, at single IoU thresholds, by object size and by class."""

from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from faster_coco_eval import COCO, COCOeval_faster
from numpy.typing import NDArray

from tightbox.evaluation.figures import Floats, Ints, mean, percent, percents
from tightbox.evaluation.inputs import GroundTruth, Predictions

AREAS = ("all", "small", "medium", "large")  # COCO's sizes: up to 32², 96² and 1e5² pixels of object area


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


def evaluate(ground_truth: GroundTruth, predictions: Predictions, max_detections: int = 100) -> CocoMetrics:
    """COCO's figures.

    Args:
        ground_truth: what is in the images.
        predictions: what was found there.
        max_detections: how many boxes of one class count in an image, best scores first.
    """
    precision, recall = _precision_and_recall(ground_truth, predictions, max_detections)
    per_class: dict[str, ClassMetrics] = {}
    for k, (name, boxes) in enumerate(zip(ground_truth.class_names, ground_truth.positives.tolist(), strict=True)):
        p = precision[:, :, k, 0]  # [T, R]
        per_class[name] = ClassMetrics(mean(p), mean(p[0]), mean(p[5]), boxes)
    return CocoMetrics(
        ap=mean(precision[..., 0]),
        **{f"ap{50 + 5 * t}": mean(precision[t, ..., 0]) for t in (0, 2, 4, 5, 6, 8)},
        **{f"ap_{area}": mean(precision[..., a]) for a, area in enumerate(AREAS) if a > 0},
        ar=mean(recall[..., 0]),
        per_class=per_class,
    )


def _precision_and_recall(
    ground_truth: GroundTruth, predictions: Predictions, max_detections: int
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """faster-coco-eval's precision (T, R, K, A) and recall (T, K, A); NaN where there is no ground-truth box.

    T = 10 IoU thresholds, R = 101 recalls, K = categories, A = `AREAS`.
    """
    count = len(ground_truth.category_ids)
    precision, recall = np.full((10, 101, count, len(AREAS)), np.nan), np.full((10, count, len(AREAS)), np.nan)
    # The evaluator holds a table of all images by all classes; class by class, there are only images that have it.
    for label in np.flatnonzero(ground_truth.positives):
        objects, found = ground_truth.labels == label, predictions.labels == label
        images, position = np.unique(
            np.concatenate([ground_truth.images[objects], predictions.images[found]]), return_inverse=True
        )
        # It holds ids as float64, which has no place for all integers above 2^53: it gets positions instead. They
        # count from 1, as it takes a match with id 0 for no match.
        content = {"images": [{"id": i} for i in range(1, len(images) + 1)], "categories": [{"id": 1}]}
        at, xywh = np.split(position + 1, [objects.sum()]), predictions.boxes[found]
        areas, crowd = ground_truth.areas[objects], ground_truth.crowd[objects].astype(int)
        rows = _rows(at[0], ground_truth.boxes[objects], area=areas, iscrowd=crowd)
        results = _rows(at[1], xywh, area=xywh[:, 2:].prod(axis=1), score=predictions.scores[found])
        sets = [COCO(content | {"annotations": annotations}) for annotations in (rows, results)]
        evaluation = COCOeval_faster(*sets, "bbox", print_function=lambda *_: None)
        evaluation.params.maxDets = [max_detections]
        evaluation.evaluate()
        evaluation.accumulate()
        precision[:, :, label] = evaluation.eval["precision"][:, :, 0, :, 0]
        recall[:, label] = evaluation.eval["recall"][:, 0, :, 0]
    return np.where(precision > -1, precision, np.nan), np.where(recall > -1, recall, np.nan)


def _rows(images: Ints, boxes: Floats, **columns: NDArray[Any]) -> list[dict[str, Any]]:
    """The evaluator's own annotations, which it writes its marks into."""
    table = {
        "id": range(1, len(images) + 1),
        "image_id": images.tolist(),
        "category_id": [1] * len(images),
        "bbox": boxes.tolist(),
        "iscrowd": [0] * len(images),
    }
    table |= {name: column.tolist() for name, column in columns.items()}
    return [dict(zip(table, row, strict=True)) for row in zip(*table.values(), strict=True)]
