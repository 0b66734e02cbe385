"""The two values that every evaluation takes: what is in the images, and what was predicted there."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Self

import numpy as np
from numpy.typing import NDArray

from tightbox.data.records import DetectionData
from tightbox.evaluation.figures import Bools, Columns, Floats, Ints

if TYPE_CHECKING:
    from tightbox.structures import Detections

_OF_BOXES = ("images", "labels", "boxes", "areas", "crowd")


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

    def __getitem__(self, which: Bools) -> Self:
        """The same images with some of the boxes, by a mask."""
        return replace(self, **{name: getattr(self, name)[which] for name in _OF_BOXES})

    @classmethod
    def from_data(cls, data: DetectionData) -> Self:
        """That of a data set that was read; the boxes are rounded to three decimals, as in a COCO file of it."""
        image_at, class_at = _ranks([record.image_id for record in data.records]), _ranks(data.category_ids)
        by_image, by_class = np.argsort(image_at), np.argsort(class_at)
        sizes = np.array([(record.width, record.height) for record in data.records], dtype=np.float64).reshape(-1, 2)
        return cls(
            image_ids=tuple(data.records[i].image_id for i in by_image),
            file_names=tuple(data.records[i].path.name for i in by_image),
            sizes=sizes[by_image],
            category_ids=tuple(data.category_ids[k] for k in by_class),
            class_names=tuple(data.class_names[k] for k in by_class),
            images=np.repeat(image_at, [len(record.labels) for record in data.records]),
            labels=class_at[_joined((record.labels for record in data.records), np.int64)],
            boxes=_as_xywh(record.boxes for record in data.records),
            areas=_joined((record.areas for record in data.records), np.float64),
            crowd=_joined((record.crowd for record in data.records), np.bool_),
        )


@dataclass(frozen=True, eq=False)
class Predictions(Columns):
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

    @classmethod
    def from_detections(cls, detections: Mapping[int, Detections], data: DetectionData) -> Self:
        """Those of a data set's records, by their index; boxes are rounded to three decimals, as in a result file."""
        image_at, class_at = _ranks([record.image_id for record in data.records]), _ranks(data.category_ids)
        found = list(detections.values())
        images = np.repeat(image_at[list(detections)], [len(each) for each in found])
        labels = class_at[_joined((each.labels for each in found), np.int64)]
        scores = _joined((each.scores for each in found), np.float64)
        ious = _joined((np.full(len(each), np.nan) if each.ious is None else each.ious for each in found), np.float64)
        return cls(images, labels, _as_xywh(each.boxes for each in found), scores, ious)


def _ranks(ids: Sequence[int]) -> Ints:
    """(N,) where each id stands among all of them in ascending order."""
    return np.argsort(np.argsort(np.array(ids, dtype=object)))


def _joined(parts: Iterable[Any], dtype: type[np.generic]) -> NDArray[Any]:
    """The rows of all parts, arrays or tensors, one part after another."""
    return np.concatenate([np.empty(0), *map(np.ravel, map(np.asarray, parts))]).astype(dtype)


def _as_xywh(corners: Iterable[Any]) -> Floats:
    """[x, y, width, height] of xyxy boxes; three decimals undo float32, whose 38.65 would come back as 38.65002."""
    boxes = _joined(corners, np.float64).reshape(-1, 4)
    boxes[:, 2:] -= boxes[:, :2]
    return np.round(boxes, 3)
