"""COCO average precision: overall, at single IoU thresholds, by object size and by class."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from faster_coco_eval import COCO, COCOeval_faster
from numpy.typing import NDArray

from tightbox.errors import UserError
from tightbox.evaluation.results import Json, is_crowd

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
        UserError: if a row lacks a field, names an unknown image or category, or holds a number that is not finite; or
            if a category has no name.
    """
    names = _names(ground_truth["categories"])
    # The evaluator holds ids as float64, which has no place for all integers above 2^53: it gets positions instead.
    known = {"image_id": _positions(row["id"] for row in ground_truth["images"]), "category_id": _positions(names)}
    truth = [_row(row, i, known, is_result=False) for i, row in enumerate(ground_truth["annotations"], 1)]
    found = [_row(row, i, known, is_result=True) for i, row in enumerate(results, 1)]
    precision, recall = _precision_and_recall(known, truth, found, max_detections)

    counts = Counter(row["category_id"] for row in truth if not row["iscrowd"])
    per_class: dict[str, ClassMetrics] = {}
    for k, (category, name) in enumerate(names.items()):
        p = precision[:, :, k, 0]  # [T, R]
        unique = name if name not in per_class else f"{name} ({category})"
        per_class[unique] = ClassMetrics(_mean(p), _mean(p[0]), _mean(p[5]), counts[k + 1])
    return CocoMetrics(
        ap=_mean(precision[..., 0]),
        **{f"ap{50 + 5 * t}": _mean(precision[t, ..., 0]) for t in (0, 2, 4, 5, 6, 8)},
        **{f"ap_{area}": _mean(precision[..., a]) for a, area in enumerate(AREAS) if a > 0},
        ar=_mean(recall[..., 0]),
        per_class=per_class,
    )


def _names(categories: Sequence[Json]) -> dict[int, str]:
    """The name of each category, by ascending id."""
    for category in categories:
        if not isinstance(category.get("name"), str):
            raise UserError(f"the category with the id {category['id']!r:.50} has no name; add one to the ground truth")
    return {category["id"]: category["name"] for category in sorted(categories, key=lambda row: row["id"])}


def _positions(ids: Iterable[int]) -> dict[int, int]:
    """Where each id stands among all of them, ascending and counted from 1."""
    return {number: position for position, number in enumerate(sorted(set(ids)), 1)}


def _row(row: Json, number: int, known: Mapping[str, Mapping[int, int]], *, is_result: bool) -> dict[str, Any]:
    """A checked copy of one annotation or result, with positions for ids, for the evaluator to write its marks into."""
    kind, field = ("result", "score") if is_result else ("annotation", "area")
    try:
        at = {name: positions.get(row[name]) for name, positions in known.items()}
        x, y, width, height = map(float, row["bbox"])
        given: Any = row["score"] if is_result else row.get("area")
        value = width * height if given is None and not is_result else float(given)
    except (KeyError, TypeError, ValueError, OverflowError) as error:
        needed = "image_id, category_id, a bbox of four numbers and a number as " + field
        raise UserError(f"{kind} {number} must have {needed}, but has {dict(row)!r:.300}") from error
    for name, position in at.items():
        if position is None:
            fix = "check that the results are of this data set" if is_result else "correct or remove it"
            raise UserError(f"{kind} {number} has {name} {row[name]!r:.50}, which the data set does not know; {fix}")
    if not all(map(math.isfinite, (x, y, width, height, value))):
        raise UserError(
            f"{kind} {number} has bbox {row['bbox']} and {field} {value}, which must be finite numbers; correct them"
        )
    # Ids count from 1, as the evaluator takes a match with id 0 for no match.
    copy = at | {"id": number, "bbox": [x, y, width, height]}
    if is_result:
        return copy | {"area": width * height, "score": value, "iscrowd": 0}
    return copy | {"area": value, "iscrowd": int(is_crowd(row, number))}


def _precision_and_recall(
    known: Mapping[str, Mapping[int, int]], truth: Sequence[Json], found: Sequence[Json], max_detections: int
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """faster-coco-eval's precision (T, R, K, A) and recall (T, K, A); -1 where there is no ground-truth box.

    T = 10 IoU thresholds, R = 101 recalls, K = categories, A = `AREAS`.
    """
    images, categories = ([{"id": i} for i in known[field].values()] for field in ("image_id", "category_id"))
    content = {"images": images, "categories": categories}
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
