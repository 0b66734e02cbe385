"""Anyone's COCO ground truth and results: checked row by row, once, and turned into `GroundTruth` and `Predictions`."""

from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from tightbox.data.coco import crowd_flag
from tightbox.errors import UserError
from tightbox.evaluation.figures import Bools, Floats, Ints
from tightbox.evaluation.inputs import GroundTruth, Predictions
from tightbox.evaluation.matching import overlapping_pairs
from tightbox.reading import LARGEST_NUMBER, naming, read_json, shown

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
    annotations = _Rows("annotation", content["annotations"])
    images = annotations.positions("image_id", image_ids)
    labels = annotations.positions("category_id", category_ids)
    boxes, given = annotations.boxes(), annotations.column("area")
    areas = np.where([area is None for area in given], boxes[:, 2:].prod(axis=1), annotations.numbers("area"))
    annotations.refuse(~np.isfinite(areas), given, "has the area", ", which must be finite; correct it")
    crowd = [crowd_flag(row) for row in content["annotations"]]
    neither = ", which is neither 0 nor 1; write it as one of these numbers"
    annotations.refuse([flag is None for flag in crowd], annotations.column("iscrowd"), "has the iscrowd", neither)
    of_data_set = image_ids, tuple(file_names), sizes, category_ids, _class_names(content["categories"])
    return GroundTruth(*of_data_set, images, labels, boxes, areas, np.array(crowd, dtype=np.bool_))


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
    results = _Rows("result", rows)
    images = results.positions("image_id", ground_truth.image_ids)
    labels = results.positions("category_id", ground_truth.category_ids)
    if rows and "bbox" not in rows[0] and "segmentation" in rows[0]:
        raise UserError("result 1 has a segmentation but no bbox; only boxes are judged here, so write them too")
    boxes, scores, ious = results.boxes(), results.numbers("score"), results.numbers("iou")
    way_out = ", but needs a number in [0, 1]; divide percentages by 100, apply a sigmoid to logits"
    results.refuse(np.isnan(scores) | _outside(scores), results.column("score"), "has the score", way_out)
    way_out = ", but a predicted IoU lies in [0, 1]; correct or remove it"
    results.refuse(_outside(ious), results.column("iou"), "has the iou", way_out)
    predictions = Predictions(images, labels, boxes, scores.clip(0, 1), ious.clip(0, 1))
    _refuse_corners(ground_truth, predictions)
    return predictions


def from_coco(content: Any, rows: Any) -> tuple[GroundTruth, Predictions]:
    """Both, of the contents of a COCO file and of a COCO result file."""
    ground_truth = ground_truth_from_coco(content)
    return ground_truth, predictions_from_coco(rows, ground_truth)


def of_other_images(ground_truth: GroundTruth, rows: Any) -> GroundTruth:
    """The classes of a ground truth for results of images of which nothing is known but their ids in these rows."""
    given = [row.get("image_id") for row in rows if isinstance(row, dict)] if isinstance(rows, list) else []
    ids: tuple[Any, ...] = tuple(dict.fromkeys(each for each in given if isinstance(each, (int, float, str))))
    none = ground_truth[np.zeros(len(ground_truth.labels), dtype=bool)]
    return replace(none, image_ids=ids, file_names=tuple(map(str, ids)), sizes=np.full((len(ids), 2), np.nan))


def _ids(rows: Sequence[Any], key: str) -> tuple[int, ...]:
    try:
        ids = {row["id"] for row in rows}
        if not all(isinstance(each, (int, str)) and not isinstance(each, bool) for each in ids):
            raise TypeError(key)
        return tuple(sorted(ids))
    except (KeyError, TypeError) as error:
        raise UserError(f"the ground truth's {key} must be objects that each have a whole number as id") from error


def _class_names(categories: Sequence[Mapping[str, Any]]) -> tuple[str, ...]:
    """The name of each category, by ascending id; where two have the same, the id is added to the later one."""
    names = {}
    for category in categories:
        if not isinstance(category.get("name"), str):
            number = shown(category["id"])
            raise UserError(f"the category with the id {number} has no name; add one to the ground truth")
        names[category["id"]] = category["name"]
    unique: dict[str, None] = {}
    for number, name in sorted(names.items()):
        while name in unique:
            name += f" ({number})"
        unique[name] = None
    return tuple(unique)


@dataclass(frozen=True)
class _Rows:
    """The rows of one list in a file as columns; a sentence about a row names it, counted from 1."""

    kind: str
    rows: Sequence[Any]

    def refuse(self, bad: ArrayLike, values: Sequence[Any], before: str, after: str = "") -> None:
        """Raise about the first of the bad rows, with its value between both parts of the sentence."""
        if np.any(bad):
            i = int(np.argmax(bad))
            raise UserError(f"{self.kind} {i + 1} {before} {shown(values[i])}{after}")

    def column(self, field: str) -> list[Any]:
        """What the rows have there, None where they have nothing."""
        return [row.get(field) for row in self.rows]

    def positions(self, field: str, ids: Sequence[int]) -> Ints:
        """(N,) where the id in this field of each row stands among the data set's."""
        without = [not isinstance(row, dict) or field not in row for row in self.rows]
        self.refuse(without, self.rows, f"must be an object with the field {field}, but is")
        position: dict[object, int] = {number: i for i, number in enumerate(ids)}
        values = self.column(field)
        at = [position.get(value, -1) if isinstance(value, Hashable) else -1 for value in values]
        # Python takes True and False for 1 and 0.
        unknown = [i < 0 or isinstance(value, bool) for i, value in zip(at, values, strict=True)]
        example = f", whose ids are such as {shown(ids[0])}" if ids else ""
        after = f", which the data set does not know{example}; check that the files belong together"
        self.refuse(unknown, values, f"has the {field}", after)
        return np.array(at, dtype=np.int64)

    def boxes(self) -> Floats:
        """(N, 4) the boxes, all finite and none of a negative width or height."""
        lists = self.column("bbox")
        try:
            if not set(map(type, chain.from_iterable(lists))) <= {int, float}:
                raise TypeError
            boxes = np.array(lists, dtype=np.float64).reshape(len(lists), 4)
        except (TypeError, ValueError, OverflowError):  # some row is to blame, or its numbers are NumPy's
            whole = [box if _is_box(box) else [np.nan] * 4 for box in lists]
            boxes = np.array(whole, dtype=np.float64).reshape(len(lists), 4)
        too_large = ~(np.abs(boxes) < LARGEST_NUMBER).all(axis=1)
        self.refuse(too_large, lists, "must have a bbox [x, y, width, height] of finite numbers, but has")
        negative = (boxes[:, 2:] < 0).any(axis=1)
        self.refuse(negative, lists, "has the bbox", ", whose width or height is negative; correct it")
        return boxes

    def numbers(self, field: str) -> Floats:
        """(N,) a number of each row; NaN for null or none."""
        values = self.column(field)
        others = [value is not None and not _is_number(value) for value in values]
        self.refuse(others, values, f"must have a number as its {field}, but has")
        return np.array(values, dtype=np.float64)


def _is_box(value: object) -> bool:
    return isinstance(value, (Sequence, np.ndarray)) and len(value) == 4 and all(map(_is_number, value))


def _is_number(value: object) -> bool:
    """Whether it is a number as JSON has them, or one of NumPy's; no text, and neither true nor false."""
    numeric = isinstance(value, (int, float, np.integer, np.floating)) and not isinstance(value, bool)
    return numeric and (not isinstance(value, int) or abs(value) < LARGEST_NUMBER)


def _outside(values: Floats) -> Bools:
    """(N,) those that are not in [0, 1]; NaN is none of them."""
    return (values < -ROUNDING) | (values > 1 + ROUNDING)


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
    met = _objects_met(ground_truth, predictions.images, predictions.boxes)
    met_as_corners = _objects_met(ground_truth, predictions.images, as_corners)
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
