"""The two values that every evaluation takes: what is in the images, and what was predicted there."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Self

import numpy as np
from numpy.typing import NDArray

from tightbox.data.records import DetectionData
from tightbox.evaluation.figures import Bools, Floats, Ints

if TYPE_CHECKING:
    from tightbox.structures import Detections


@dataclass(frozen=True, eq=False)
class GroundTruth:
    """The ground-truth boxes of a data set as columns, in the order of its annotations.

    Whoever makes one has checked it: every number is finite, and every position is one. `coco_files` does so for files
    of any tool.

    Attributes:
        image_ids: the data set's own ids, ascending; `images` holds positions in it.
        file_names: the name of each image's file; its id as text where the data set does not say.
        sizes: (I, 2) width and height of each image, NaN where the data set does not say.
        category_ids: the data set's own ids, ascending; `labels` holds positions in it.
        class_names: the name of each, all different.
        images: (G,) image of each box.
        labels: (G,) class of each.
        boxes: (G, 4) as [x, y, width, height].
        areas: (G,) pixels that COCO's size classes go by: the mask's where the data set gives it.
        crowd: (G,) regions that are neither object nor background.
    """

    image_ids: tuple[int, ...]
    file_names: tuple[str, ...]
    sizes: Floats
    category_ids: tuple[int, ...]
    class_names: tuple[str, ...]
    images: Ints
    labels: Ints
    boxes: Floats
    areas: Floats
    crowd: Bools

    @property
    def positives(self) -> Ints:
        """(K,) how many boxes of each class there are to find, crowds not counted."""
        return np.bincount(self.labels[~self.crowd], minlength=len(self.category_ids))

    @classmethod
    def from_data(cls, data: DetectionData) -> Self:
        """That of a data set that was read; the boxes are rounded to three decimals, as in a COCO file of it."""
        image_at, class_at = _ranks([record.image_id for record in data.records]), _ranks(data.category_ids)
        by_image, by_class = np.argsort(image_at), np.argsort(class_at)
        counts = [len(record.labels) for record in data.records]
        sizes = np.array([(record.width, record.height) for record in data.records], dtype=np.float64).reshape(-1, 2)
        return cls(
            image_ids=tuple(data.records[i].image_id for i in by_image),
            file_names=tuple(data.records[i].path.name for i in by_image),
            sizes=sizes[by_image],
            category_ids=tuple(data.category_ids[k] for k in by_class),
            class_names=tuple(data.class_names[k] for k in by_class),
            images=np.repeat(image_at, counts),
            labels=class_at[_column(data, "labels", np.int64)],
            boxes=_as_xywh(_column(data, "boxes", np.float64, 4)),
            areas=_column(data, "areas", np.float64),
            crowd=_column(data, "crowd", np.bool_),
        )


@dataclass(frozen=True, eq=False)
class Predictions:
    """Detections as columns, in the order of the result file; checked as `GroundTruth` is.

    Attributes:
        images: (N,) positions in `GroundTruth.image_ids`.
        labels: (N,) positions in `GroundTruth.category_ids`.
        boxes: (N, 4) as [x, y, width, height].
        scores: (N,) what they are ranked by, in [0, 1].
        ious: (N,) the predicted IoU of each box, in [0, 1]; NaN where it makes none.
    """

    images: Ints
    labels: Ints
    boxes: Floats
    scores: Floats
    ious: Floats

    def __len__(self) -> int:
        return len(self.scores)

    @classmethod
    def from_detections(cls, detections: Mapping[int, Detections], data: DetectionData) -> Self:
        """Those of a data set's records, by their index; boxes are rounded to three decimals, as in a result file."""
        image_at, class_at = _ranks([record.image_id for record in data.records]), _ranks(data.category_ids)
        found = [detections[index] for index in detections]
        labels = np.concatenate([np.empty(0, np.int64), *(each.labels.numpy() for each in found)])
        return cls(
            images=np.repeat(image_at[list(detections)], [len(each) for each in found]),
            labels=class_at[labels],
            boxes=_as_xywh(np.concatenate([np.empty((0, 4)), *(each.boxes.numpy() for each in found)])),
            scores=np.concatenate([np.empty(0), *(each.scores.numpy() for each in found)]),
            ious=np.concatenate(
                [np.empty(0), *(np.full(len(e), np.nan) if e.ious is None else e.ious.numpy() for e in found)]
            ),
        )


def _ranks(ids: Sequence[int]) -> Ints:
    """(N,) where each id stands among all of them in ascending order."""
    ranks = np.empty(len(ids), dtype=np.int64)
    ranks[np.array(sorted(range(len(ids)), key=ids.__getitem__), dtype=np.int64)] = np.arange(len(ids))
    return ranks


def _column(data: DetectionData, field: str, dtype: type[np.generic], width: int | None = None) -> NDArray[Any]:
    """One field of all records, one record after another."""
    empty = np.empty(0 if width is None else (0, width), dtype)
    return np.concatenate([empty, *(getattr(record, field) for record in data.records)]).astype(dtype)


def _as_xywh(corners: NDArray[Any]) -> Floats:
    """[x, y, width, height] of xyxy boxes; three decimals undo float32, whose 38.65 would come back as 38.65002."""
    boxes = corners.astype(np.float64)
    boxes[:, 2:] -= boxes[:, :2]
    rounded: Floats = boxes.round(3)
    return rounded
