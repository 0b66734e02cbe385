"""Anyone's COCO ground truth and results, checked row by row and turned into columns."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from tightbox.data.coco import crowd_flag
from tightbox.errors import UserError
from tightbox.evaluation.matching import Floats, Found, Ints, Truth, overlapping_pairs

Json = Mapping[str, Any]

LARGEST = 1e15  # refuses NaN and infinity too
ROUNDING = 1e-6  # float32 arithmetic ends this little outside [0, 1] at times


def read_json(path: Path) -> Any:
    """The content of a JSON file of ground truth or results.

    Raises:
        UserError: if it cannot be read, or is no JSON.
    """
    try:
        content = path.read_bytes()
        return json.loads(content)
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror}; check the path and its permissions") from error
    except ValueError as error:  # no JSON, or no text
        if not content.strip():
            raise UserError(f"{path} is empty; results without any detection are written as []") from error
        raise UserError(f"{path} is not valid JSON: {error}; it may be cut off, write or copy it again") from error


def to_columns(ground_truth: Any, results: Any) -> tuple[Truth, Found]:
    """The contents of a COCO file and of a COCO result file as columns.

    Results may be empty and classes may be without truth. The field `iou` of a result is the detector's own estimate of
    its box's IoU; null or absent where it makes none.

    Args:
        ground_truth: an object with the lists `images`, `annotations` and `categories`.
        results: a list of objects with `image_id`, `category_id`, `bbox` as [x, y, width, height], `score`.

    Raises:
        UserError: naming the first row that lacks a field, names an unknown id, or holds a number out of range; or if
            the results' boxes are corners [x1, y1, x2, y2].
    """
    truth = _truth(ground_truth)
    found = _found(results, truth)
    _refuse_corners(truth, found)
    return truth, found


def _truth(ground_truth: Any) -> Truth:
    if isinstance(ground_truth, list):
        raise UserError("the ground truth is a list, as results are; give the data set's annotation file instead")
    for key in ("images", "annotations", "categories"):
        if not isinstance(ground_truth, dict) or not isinstance(ground_truth.get(key), list):
            raise UserError(f"the ground truth has no list {key}; export it again as a COCO data set")
    image_ids, category_ids = (_ids(ground_truth[key], key) for key in ("images", "categories"))
    at = {image_id: i for i, image_id in enumerate(image_ids)}
    sizes = np.full((len(image_ids), 2), np.nan)
    for row in ground_truth["images"]:
        width, height = row.get("width"), row.get("height")
        if isinstance(width, (int, float)) and isinstance(height, (int, float)):
            sizes[at[row["id"]]] = width, height
    rows = ground_truth["annotations"]
    return Truth(
        image_ids=image_ids,
        category_ids=category_ids,
        sizes=sizes,
        images=_positions(rows, "annotation", "image_id", image_ids),
        labels=_positions(rows, "annotation", "category_id", category_ids),
        boxes=_boxes(rows, "annotation"),
        crowd=np.array([is_crowd(row, number) for number, row in enumerate(rows, 1)], dtype=np.bool_),
    )


def is_crowd(annotation: Json, number: int) -> bool:
    """Whether an annotation is of a crowd, the region that is neither object nor background.

    Raises:
        UserError: naming the annotation by its number, if its `iscrowd` is neither 0 nor 1.
    """
    crowd = crowd_flag(annotation)
    if crowd is None:
        raise UserError(
            f"annotation {number} has the iscrowd {annotation['iscrowd']!r:.50}, which is neither 0 nor 1; "
            "write it as one of these numbers"
        )
    return crowd


def _found(results: Any, truth: Truth) -> Found:
    if isinstance(results, dict):
        keys = ", ".join(list(results)[:5]) or "none"
        raise UserError(f"the results must be a list of detections, but are one object with the keys {keys}")
    if not isinstance(results, list):
        raise UserError(f"the results must be a list of detections, but are {results!r:.50}")
    images = _positions(results, "result", "image_id", truth.image_ids)
    labels = _positions(results, "result", "category_id", truth.category_ids)
    if results and "bbox" not in results[0] and "segmentation" in results[0]:
        raise UserError("result 1 has a segmentation but no bbox; only boxes are judged here, so write them too")
    boxes = _boxes(results, "result")
    scores = _numbers(results, "result", "score")
    _refuse_first(
        ~np.isfinite(scores) | (scores < -ROUNDING) | (scores > 1 + ROUNDING),
        lambda i: (
            f"result {i + 1} has the score {results[i].get('score')!r:.50}, but needs a number in [0, 1]; "
            "divide percentages by 100, apply a sigmoid to logits"
        ),
    )
    ious = _numbers(results, "result", "iou")
    _refuse_first(
        (ious < -ROUNDING) | (ious > 1 + ROUNDING),
        lambda i: f"result {i + 1} has the iou {ious[i]:g}, but a predicted IoU lies in [0, 1]; correct or remove it",
    )
    return Found(images, labels, boxes, scores.clip(0, 1), ious.clip(0, 1))


def _ids(rows: Sequence[Any], key: str) -> tuple[int, ...]:
    try:
        return tuple(sorted({row["id"] for row in rows}))
    except (KeyError, TypeError) as error:
        raise UserError(f"the ground truth's {key} must be objects that each have a whole number as id") from error


def _positions(rows: Sequence[Any], kind: str, field: str, ids: Sequence[int]) -> Ints:
    """(N,) where the id in `field` of each row stands among the data set's."""
    position = {number: i for i, number in enumerate(ids)}
    at = np.empty(len(rows), dtype=np.int64)
    for i, row in enumerate(rows):
        try:
            at[i] = position[row[field]]
        except (KeyError, TypeError) as error:
            if not isinstance(row, dict) or field not in row:
                raise UserError(
                    f"{kind} {i + 1} must be an object with the field {field}, but is {row!r:.200}"
                ) from error
            example = f", whose ids are such as {ids[0]!r}" if ids else ""
            raise UserError(
                f"{kind} {i + 1} has the {field} {row[field]!r:.50}, which the data set does not know{example}; "
                "check that the files belong together"
            ) from error
    return at


def _boxes(rows: Sequence[Any], kind: str) -> Floats:
    """(N, 4) the boxes, all finite."""
    try:
        boxes = np.array([row["bbox"] for row in rows], dtype=np.float64).reshape(len(rows), 4)
    except (KeyError, TypeError, ValueError, OverflowError):  # some row is to blame: find out which
        boxes = np.array([_box_or_nan(row) for row in rows])
    _refuse_first(
        ~(np.abs(boxes) < LARGEST).all(axis=1),
        lambda i: (
            f"{kind} {i + 1} must have a bbox [x, y, width, height] of finite numbers, but has "
            f"{rows[i].get('bbox')!r:.100}"
        ),
    )
    return boxes


def _box_or_nan(row: Json) -> Sequence[float]:
    try:
        x, y, width, height = map(float, row["bbox"])
    except (KeyError, TypeError, ValueError, OverflowError):
        return [np.nan] * 4
    return [x, y, width, height]


def _numbers(rows: Sequence[Json], kind: str, field: str) -> Floats:
    """(N,) a number of each row; NaN for null or none."""
    numbers = np.full(len(rows), np.nan)
    for i, row in enumerate(rows):
        if (value := row.get(field)) is not None:
            try:
                numbers[i] = value
            except (TypeError, ValueError, OverflowError) as error:
                raise UserError(f"{kind} {i + 1} must have a number as its {field}, but has {value!r:.100}") from error
    return numbers


def _refuse_first(bad: ArrayLike, message: Callable[[int], str]) -> None:
    if np.any(bad):
        raise UserError(message(int(np.argmax(bad))))


def _refuse_corners(truth: Truth, found: Found) -> None:
    """Raise if the detections make sense as corners only.

    True corners have x2 >= x1 and y2 >= y1 throughout, while few boxes are wider than they are far from the left
    edge; and they find the ground-truth boxes only if read as corners.
    """
    as_corners = found.boxes.copy()
    as_corners[:, 2:] -= found.boxes[:, :2]
    if not len(as_corners) or (as_corners[:, 2:] >= 0).all(axis=1).mean() < 0.99:
        return
    objects = int(truth.positives.sum())
    met, met_as_corners = _objects_met(truth, found.images, found.boxes), _objects_met(truth, found.images, as_corners)
    if met_as_corners - met < max(3, 0.1 * objects):
        return
    ends, limits = found.boxes[:, :2] + found.boxes[:, 2:], truth.sizes[found.images]
    outside = f", and {(ends > limits + 1).any(axis=1).mean():.0%} of them end outside their image as they are"
    raise UserError(
        "the results' boxes look like corners [x1, y1, x2, y2], but COCO has [x, y, width, height]: read as corners "
        f"they meet {met_as_corners / objects:.0%} of the ground-truth boxes instead of {met / objects:.0%}"
        f"{'' if np.isnan(limits).any() else outside}; write width and height instead of x2 and y2"
    )


def _objects_met(truth: Truth, images: Ints, boxes: Floats) -> int:
    """How many ground-truth boxes some detection, of whatever class, overlaps with an IoU of 0.5."""
    met = np.zeros(len(truth.labels), dtype=bool)
    for _, target, overlap in overlapping_pairs(images, boxes, truth):
        met[target[overlap >= 0.5]] = True
    return int((met & ~truth.crowd).sum())
