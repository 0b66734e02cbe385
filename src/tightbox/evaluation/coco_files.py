"""Anyone's COCO ground truth and results: checked row by row, once, and turned into `GroundTruth` and `Predictions`."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from tightbox.data.coco import crowd_flag
from tightbox.errors import UserError
from tightbox.evaluation.figures import Floats, Ints
from tightbox.evaluation.inputs import GroundTruth, Predictions
from tightbox.evaluation.overlaps import overlapping_pairs
from tightbox.reading import LARGEST_NUMBER, naming, read_json, shown

Json = Mapping[str, Any]

ROUNDING = 1e-6  # float32 arithmetic ends this little outside [0, 1] at times


def read_ground_truth(path: Path) -> tuple[Any, GroundTruth]:
    """The content of a COCO file, as it is and as columns.

    Raises:
        UserError: as `ground_truth_from_coco`, naming the file.
    """
    content = read_json(path)
    with naming(path):
        return content, ground_truth_from_coco(content)


def read_predictions(path: Path, ground_truth: GroundTruth) -> Predictions:
    """The rows of a COCO result file as columns.

    Raises:
        UserError: as `predictions_from_coco`, naming the file.
    """
    rows = read_json(path)
    with naming(path):
        return predictions_from_coco(rows, ground_truth)


def ground_truth_from_coco(content: Any) -> GroundTruth:
    """The content of a COCO file as columns; classes may be without boxes.

    Args:
        content: an object with the lists `images`, `annotations` and `categories`.

    Raises:
        UserError: naming the first row that lacks a field, names an unknown id, or holds a number out of range.
    """
    if isinstance(content, list):
        raise UserError("the ground truth is a list, as results are; give the data set's annotation file instead")
    for key in ("images", "annotations", "categories"):
        if not isinstance(content, dict) or not isinstance(content.get(key), list):
            raise UserError(f"the ground truth has no list {key}; export it again as a COCO data set")
    image_ids, category_ids = (_ids(content[key], key) for key in ("images", "categories"))
    image_at = {image_id: i for i, image_id in enumerate(image_ids)}
    sizes, file_names = np.full((len(image_ids), 2), np.nan), [str(image_id) for image_id in image_ids]
    for row in content["images"]:
        width, height = row.get("width"), row.get("height")
        if _is_number(width) and _is_number(height):
            sizes[image_at[row["id"]]] = width, height
        file_names[image_at[row["id"]]] = str(row.get("file_name", row["id"]))
    rows = content["annotations"]
    images = _positions(rows, "annotation", "image_id", image_ids)
    labels = _positions(rows, "annotation", "category_id", category_ids)
    boxes, given = _boxes(rows, "annotation"), _numbers(rows, "annotation", "area")
    absent = np.array([row.get("area") is None for row in rows], dtype=np.bool_)
    areas = np.where(absent, boxes[:, 2:].prod(axis=1), given)
    _refuse_first(
        ~np.isfinite(areas),
        lambda i: f"annotation {i + 1} has the area {shown(rows[i].get('area'))}, which must be finite; correct it",
    )
    return GroundTruth(
        image_ids=image_ids,
        file_names=tuple(file_names),
        sizes=sizes,
        category_ids=category_ids,
        class_names=_class_names(content["categories"]),
        images=images,
        labels=labels,
        boxes=boxes,
        areas=areas,
        crowd=np.array([_is_crowd(row, number) for number, row in enumerate(rows, 1)], dtype=np.bool_),
    )


def predictions_from_coco(rows: Any, ground_truth: GroundTruth) -> Predictions:
    """The rows of a COCO result file as columns; there may be none.

    The field `iou` of a row is the predicted IoU of its box; null or absent where it makes none.

    Args:
        rows: a list of objects with `image_id`, `category_id`, `bbox` as [x, y, width, height], `score`.
        ground_truth: of the same images.

    Raises:
        UserError: as for `ground_truth_from_coco`; or if the boxes are corners [x1, y1, x2, y2].
    """
    if isinstance(rows, dict):
        keys = ", ".join(f"{key:.50}" for key in list(rows)[:5]) or "none"
        raise UserError(f"the results must be a list of detections, but are one object with the keys {keys}")
    if not isinstance(rows, list):
        raise UserError(f"the results must be a list of detections, but are {shown(rows)}")
    images = _positions(rows, "result", "image_id", ground_truth.image_ids)
    labels = _positions(rows, "result", "category_id", ground_truth.category_ids)
    if rows and "bbox" not in rows[0] and "segmentation" in rows[0]:
        raise UserError("result 1 has a segmentation but no bbox; only boxes are judged here, so write them too")
    boxes = _boxes(rows, "result")
    scores = _numbers(rows, "result", "score")
    _refuse_first(
        ~np.isfinite(scores) | (scores < -ROUNDING) | (scores > 1 + ROUNDING),
        lambda i: (
            f"result {i + 1} has the score {shown(rows[i].get('score'))}, but needs a number in [0, 1]; "
            "divide percentages by 100, apply a sigmoid to logits"
        ),
    )
    ious = _numbers(rows, "result", "iou")
    _refuse_first(
        (ious < -ROUNDING) | (ious > 1 + ROUNDING),
        lambda i: f"result {i + 1} has the iou {ious[i]:g}, but a predicted IoU lies in [0, 1]; correct or remove it",
    )
    predictions = Predictions(images, labels, boxes, scores.clip(0, 1), ious.clip(0, 1))
    _refuse_corners(ground_truth, predictions)
    return predictions


def from_coco(content: Any, rows: Any) -> tuple[GroundTruth, Predictions]:
    """Both, of the contents of a COCO file and of a COCO result file."""
    ground_truth = ground_truth_from_coco(content)
    return ground_truth, predictions_from_coco(rows, ground_truth)


def _ids(rows: Sequence[Any], key: str) -> tuple[int, ...]:
    try:
        ids = {row["id"] for row in rows}
        if not all(isinstance(number, (int, str)) and not isinstance(number, bool) for number in ids):
            raise TypeError(key)
        return tuple(sorted(ids))
    except (KeyError, TypeError) as error:
        raise UserError(f"the ground truth's {key} must be objects that each have a whole number as id") from error


def _class_names(categories: Sequence[Json]) -> tuple[str, ...]:
    """The name of each category, by ascending id; where two have the same, the id is added to the later one."""
    names = {}
    for category in categories:
        if not isinstance(category.get("name"), str):
            raise UserError(
                f"the category with the id {shown(category['id'])} has no name; add one to the ground truth"
            )
        names[category["id"]] = category["name"]
    unique: dict[str, None] = {}
    for number in sorted(names):
        unique[f"{names[number]} ({number})" if names[number] in unique else names[number]] = None
    return tuple(unique)


def _is_crowd(annotation: Json, number: int) -> bool:
    """Whether an annotation is of a crowd, the region that is neither object nor background."""
    crowd = crowd_flag(annotation)
    if crowd is None:
        raise UserError(
            f"annotation {number} has the iscrowd {shown(annotation['iscrowd'])}, which is neither 0 nor 1; "
            "write it as one of these numbers"
        )
    return crowd


def _positions(rows: Sequence[Any], kind: str, field: str, ids: Sequence[int]) -> Ints:
    """(N,) where the id in `field` of each row stands among the data set's."""
    position = {number: i for i, number in enumerate(ids)}
    at = np.empty(len(rows), dtype=np.int64)
    for i, row in enumerate(rows):
        try:
            number = row[field]
            if number is True or number is False:  # which Python takes for 1 and 0
                raise KeyError(number)
            at[i] = position[number]
        except (KeyError, TypeError) as error:
            if not isinstance(row, dict) or field not in row:
                raise UserError(
                    f"{kind} {i + 1} must be an object with the field {field}, but is {shown(row)}"
                ) from error
            example = f", whose ids are such as {shown(ids[0])}" if ids else ""
            raise UserError(
                f"{kind} {i + 1} has the {field} {shown(row[field])}, which the data set does not know{example}; "
                "check that the files belong together"
            ) from error
    return at


def _boxes(rows: Sequence[Any], kind: str) -> Floats:
    """(N, 4) the boxes, all finite and none of a negative width or height."""
    try:
        lists = [row["bbox"] for row in rows]
        if not set(map(type, chain.from_iterable(lists))) <= {int, float}:
            raise TypeError(kind)
        boxes = np.array(lists, dtype=np.float64).reshape(len(rows), 4)
    except (KeyError, TypeError, ValueError, OverflowError):  # some row is to blame, or its numbers are NumPy's
        boxes = np.array([_box_or_nan(row) for row in rows]).reshape(len(rows), 4)
    _refuse_first(
        ~(np.abs(boxes) < LARGEST_NUMBER).all(axis=1),
        lambda i: (
            f"{kind} {i + 1} must have a bbox [x, y, width, height] of finite numbers, but has "
            f"{shown(rows[i].get('bbox'))}"
        ),
    )
    _refuse_first(
        (boxes[:, 2:] < 0).any(axis=1),
        lambda i: (
            f"{kind} {i + 1} has the bbox {shown(rows[i]['bbox'])}, whose width or height is negative; correct it"
        ),
    )
    return boxes


def _box_or_nan(row: Json) -> Sequence[float]:
    try:
        x, y, width, height = row["bbox"]
        return list(map(float, (x, y, width, height))) if all(map(_is_number, (x, y, width, height))) else [np.nan] * 4
    except (KeyError, TypeError, ValueError, OverflowError):
        return [np.nan] * 4


def _is_number(value: object) -> bool:
    """Whether it is a number as JSON has them, or one of NumPy's; no text, and neither true nor false."""
    if not isinstance(value, (int, float, np.integer, np.floating)) or isinstance(value, bool):
        return False
    return not isinstance(value, int) or abs(value) < LARGEST_NUMBER


def _numbers(rows: Sequence[Json], kind: str, field: str) -> Floats:
    """(N,) a number of each row; NaN for null or none."""
    numbers = np.full(len(rows), np.nan)
    for i, row in enumerate(rows):
        if (value := row.get(field)) is not None:
            if not _is_number(value):
                raise UserError(f"{kind} {i + 1} must have a number as its {field}, but has {shown(value)}")
            numbers[i] = value
    return numbers


def _refuse_first(bad: ArrayLike, message: Callable[[int], str]) -> None:
    if np.any(bad):
        raise UserError(message(int(np.argmax(bad))))


def _refuse_corners(ground_truth: GroundTruth, predictions: Predictions) -> None:
    """Raise if the predictions make sense as corners only.

    True corners have x2 >= x1 and y2 >= y1 throughout, while few boxes are wider than they are far from the left
    edge; and they find the ground-truth boxes only if read as corners.
    """
    as_corners = predictions.boxes.copy()
    as_corners[:, 2:] -= predictions.boxes[:, :2]
    if not len(as_corners) or (as_corners[:, 2:] >= 0).all(axis=1).mean() < 0.99:
        return
    objects = int(ground_truth.positives.sum())
    met, met_as_corners = (
        _objects_met(ground_truth, predictions.images, boxes) for boxes in (predictions.boxes, as_corners)
    )
    if met_as_corners - met < max(3, 0.1 * objects):
        return
    ends, limits = predictions.boxes[:, :2] + predictions.boxes[:, 2:], ground_truth.sizes[predictions.images]
    outside = f", and {(ends > limits + 1).any(axis=1).mean():.0%} of them end outside their image as they are"
    raise UserError(
        "the results' boxes look like corners [x1, y1, x2, y2], but COCO has [x, y, width, height]: read as corners "
        f"they meet {met_as_corners / objects:.0%} of the ground-truth boxes instead of {met / objects:.0%}"
        f"{'' if np.isnan(limits).any() else outside}; write width and height instead of x2 and y2"
    )


def _objects_met(ground_truth: GroundTruth, images: Ints, boxes: Floats) -> int:
    """How many ground-truth boxes some detection, of whatever class, overlaps with an IoU of 0.5."""
    met = np.zeros(len(ground_truth.labels), dtype=bool)
    for _, target, overlap in overlapping_pairs(images, boxes, ground_truth):
        met[target[overlap >= 0.5]] = True
    return int((met & ~ground_truth.crowd).sum())
