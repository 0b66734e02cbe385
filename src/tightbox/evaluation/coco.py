"""COCO average precision: overall, at single IoU thresholds, by object size and by class."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from faster_coco_eval import COCO, COCOeval_faster
from numpy.typing import NDArray

from tightbox.errors import UserError

Json = Mapping[str, Any]
AREAS = ("all", "small", "medium", "large")  # COCO's sizes: up to 32², 96² and 1e5² pixels of object area


@dataclass(frozen=True)
class ClassMetrics:
    """AP of one class and the number of its true boxes, crowds not counted; None where there is no such box."""

    ap: float | None
    ap50: float | None
    ap75: float | None
    boxes: int


@dataclass(frozen=True)
class CocoMetrics:
    """COCO's figures, each in [0, 1], or None where the truth has no box that could tell.

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
            lines.append(f"{name:{width}} {_percent(row.ap)} {_percent(row.ap50)} {_percent(row.ap75)} {row.boxes:7d}")
        rest = ("ap60", "ap70", "ap80", "ap90", "ap_small", "ap_medium", "ap_large", "ar")
        lines.append("  ".join(f"{name} {_percent(getattr(self, name)).strip()}" for name in rest))
        return "\n".join(lines)


def evaluate(ground_truth: Json, results: Sequence[Json], max_detections: int = 100) -> CocoMetrics:
    """COCO's figures for `results` on the data set `ground_truth`; neither is changed.

    Args:
        ground_truth: the content of a COCO file: `images`, `annotations` and `categories`.
        results: rows of a COCO result file: `image_id`, `category_id`, `bbox` as [x, y, width, height], `score`.
        max_detections: how many boxes of one class count in an image, best scores first.

    Raises:
        UserError: if a row lacks a field, names an unknown image or category, or holds a number that is not finite.
    """
    names = {category["id"]: category["name"] for category in ground_truth["categories"]}
    ids = {"image_id": sorted({image["id"] for image in ground_truth["images"]}), "category_id": sorted(names)}
    known = {field: frozenset(values) for field, values in ids.items()}
    truth = [_row(row, i, known, is_result=False) for i, row in enumerate(ground_truth["annotations"], 1)]
    found = [_row(row, i, known, is_result=True) for i, row in enumerate(results, 1)]
    precision, recall = _precision_and_recall(ids, truth, found, max_detections)

    counts = Counter(row["category_id"] for row in truth if not row["iscrowd"])
    per_class: dict[str, ClassMetrics] = {}
    for k, (category, name) in enumerate(sorted(names.items())):
        p = precision[:, :, k, 0]  # [T, R]
        unique = name if name not in per_class else f"{name} ({category})"
        per_class[unique] = ClassMetrics(_mean(p), _mean(p[0]), _mean(p[5]), counts[category])
    return CocoMetrics(
        ap=_mean(precision[..., 0]),
        **{f"ap{50 + 5 * t}": _mean(precision[t, ..., 0]) for t in (0, 2, 4, 5, 6, 8)},
        **{f"ap_{area}": _mean(precision[..., a]) for a, area in enumerate(AREAS) if a > 0},
        ar=_mean(recall[..., 0]),
        per_class=per_class,
    )


def _row(row: Json, number: int, known: Mapping[str, Collection[int]], *, is_result: bool) -> dict[str, Any]:
    """A checked copy of one annotation or result, for the evaluator to write its marks into."""
    kind = "result" if is_result else "annotation"
    try:
        ids = {field: row[field] for field in known}
        x, y, width, height = map(float, row["bbox"])
        score = float(row["score"]) if is_result else 1.0
        area = width * height if is_result else float(row.get("area", width * height))
    except (KeyError, TypeError, ValueError) as error:
        fields = "image_id, category_id, a bbox of four numbers" + (" and a score" if is_result else "")
        raise UserError(f"{kind} {number} must have {fields}, but has {dict(row)}") from error
    for field, value in ids.items():
        if value not in known[field]:
            raise UserError(f"{kind} {number} has {field} {value!r}, which the data set does not know")
    if not all(map(math.isfinite, (x, y, width, height, score, area))):
        raise UserError(f"{kind} {number} has bbox {row['bbox']} and score {score}: all of them must be finite numbers")
    crowd = 0 if is_result else int(row.get("iscrowd", 0))
    # Ids count from 1, as the evaluator takes a match with id 0 for no match.
    return ids | {"id": number, "bbox": [x, y, width, height], "area": area, "score": score, "iscrowd": crowd}


def _precision_and_recall(
    ids: Mapping[str, list[int]], truth: Sequence[Json], found: Sequence[Json], max_detections: int
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """faster-coco-eval's precision (T, R, K, A) and recall (T, K, A); -1 where there is no true box.

    T = 10 IoU thresholds, R = 101 recalls, K = categories, A = `AREAS`.
    """
    content = {"images": [{"id": i} for i in ids["image_id"]], "categories": [{"id": i} for i in ids["category_id"]]}
    sets = [COCO(content | {"annotations": rows}) for rows in (truth, found)]
    evaluation = COCOeval_faster(*sets, "bbox", print_function=lambda *_: None)
    evaluation.params.maxDets = [max_detections]
    evaluation.evaluate()
    evaluation.accumulate()
    return evaluation.eval["precision"][..., 0], evaluation.eval["recall"][..., 0]


def _mean(values: NDArray[np.float64]) -> float | None:
    """The mean of the entries that are there, not COCO's -1."""
    there = values[values > -1]
    return float(there.mean()) if there.size else None


def _percent(value: float | None) -> str:
    return "    -" if value is None else f"{100 * value:5.1f}"
