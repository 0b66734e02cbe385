"""What passes between the parts: `ImageBatch` and `Targets` in, `Candidates` in the middle, `Detections` out.

Boxes are `xyxy`, float, in pixels of the image they belong to: (0, 0, 4, 4) is 4 wide. Labels are 0-based.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields, replace
from functools import partial
from typing import TYPE_CHECKING, Any, Self

import torch
from torch import Tensor

from tightbox.boxes import clip_boxes
from tightbox.errors import UserError, import_extra

if TYPE_CHECKING:
    import supervision


DIVISOR = 32  # the sides of a network's input are multiples of it


def padded(side: int, divisor: int = DIVISOR) -> int:
    """A side rounded up to a multiple of the divisor.

    >>> padded(33)
    64
    """
    return -(-side // divisor) * divisor


def moved(values: Tensor, device: torch.device | str) -> Tensor:
    """The values on another device. Only what comes to a CPU is waited for, as it may be read at once."""
    return values.to(device, non_blocking=torch.device(device).type != "cpu")


class _Tensors:
    """Moving and counting, shared by the three frozen dataclasses of tensors."""

    def to(self, device: torch.device | str) -> Self:
        """The same values on another device; from pinned memory, a GPU fetches them while the CPU goes on."""
        return self.each(lambda value: moved(value, device))

    def pin_memory(self) -> Self:
        """The same values in pinned memory; a DataLoader that pins calls it."""
        return self.each(Tensor.pin_memory)

    def each(self, change: Callable[[Tensor], Tensor]) -> Self:
        """The same with `change` made to every tensor; two fields that share one share it still."""
        values = {f.name: getattr(self, f.name) for f in fields(self)}  # type: ignore[arg-type]
        changed = {id(value): change(value) for value in values.values() if isinstance(value, Tensor)}
        return type(self)(**{name: changed.get(id(value), value) for name, value in values.items()})

    def __len__(self) -> int:
        return len(self.boxes)  # type: ignore[attr-defined]


@dataclass(frozen=True, eq=False)
class ImageBatch(_Tensors):
    """Images of different sizes as one tensor.

    Attributes:
        pixels: (B, 3, H, W) RGB in [0, 1], each image at the top left, zeros below and to the right of it.
        sizes: the true (height, width) of each image.
    """

    pixels: Tensor
    sizes: tuple[tuple[int, int], ...]

    @classmethod
    def of(cls, images: Sequence[Tensor], divisor: int = DIVISOR) -> ImageBatch:
        """A batch from (3, h, w) tensors (float in [0, 1], or uint8), H and W rounded up to the divisor.

        Raises:
            ValueError: if there is no image, or one is not (3, h, w).
        """
        if len(images) == 0:
            raise ValueError("a batch needs at least one image")
        for i, image in enumerate(images):
            if image.ndim != 3 or image.shape[0] != 3 or 0 in image.shape:
                raise ValueError(f"image {i} of the batch has shape {tuple(image.shape)}; expected (3, height, width)")
        sizes = tuple((image.shape[1], image.shape[2]) for image in images)
        height, width = (padded(max(side), divisor) for side in zip(*sizes, strict=True))
        dtype = images[0].dtype if images[0].is_floating_point() else torch.float32
        pixels = torch.zeros(len(images), 3, height, width, dtype=dtype, device=images[0].device)
        for slot, image in zip(pixels, images, strict=True):
            slot[:, : image.shape[1], : image.shape[2]] = image if image.is_floating_point() else image / 255
        return cls(pixels, sizes)

    def __len__(self) -> int:
        return len(self.sizes)


@dataclass(frozen=True, eq=False)
class Targets(_Tensors):
    """What is in one image, for training.

    Attributes:
        boxes: (G, 4) ground-truth boxes.
        labels: (G,) int64 class of each.
        ignore: (I, 4) regions that are neither object nor background, such as COCO's crowds.
    """

    boxes: Tensor
    labels: Tensor
    ignore: Tensor

    @classmethod
    def of(cls, boxes: Tensor, labels: Tensor, ignore: Tensor | None = None) -> Targets:
        """Targets from tensors of any float dtype; without `ignore` there are no such regions."""
        boxes = boxes.reshape(-1, 4).float()
        ignore = boxes.new_zeros(0, 4) if ignore is None else ignore.reshape(-1, 4).float()
        return cls(boxes, labels.reshape(-1).long(), ignore)


@dataclass(frozen=True, eq=False)
class Candidates(_Tensors):
    """Every box a detector would consider in one image, before any ranking: the seam of the package.

    Attributes:
        boxes: (K, 4) decoded boxes, clipped to the image.
        class_scores: (K, C) probability-like score of each class.
        ious: (K,) or (K, C) the detector's own estimate of each box's IoU with its object; None if it makes none.
        centerness: (K,) FCOS's centerness, a stand-in for localisation quality that is no IoU; None if absent.
        levels: (K,) int64 pyramid level each came from, of which only so many are suppressed together; None if absent.
        points: (K, 2) x, y of the location that each was predicted at; None where boxes do not belong to locations.

    Those of B images that have equally many are one such object too, with the images as the first axis of every tensor.
    """

    boxes: Tensor
    class_scores: Tensor
    ious: Tensor | None = None
    centerness: Tensor | None = None
    levels: Tensor | None = None
    points: Tensor | None = None

    def __getitem__(self, keep: Tensor | slice | int) -> Candidates:
        """The candidates selected by a boolean mask, an index tensor or a slice; of several images, those of one."""
        return self.each(lambda value: value[keep])

    def take(self, rows: Tensor) -> Candidates:
        """Of B images together, of each the candidates `rows` (B, K)."""
        return self.each(lambda value: take(value, rows))


@dataclass(frozen=True, eq=False)
class Detections(_Tensors):
    """The final boxes of one image, best first.

    Attributes:
        boxes: (N, 4) boxes.
        scores: (N,) what they are ranked by.
        labels: (N,) int64 class of each.
        ious: (N,) predicted IoU of each box with its object, that to expect if the detector is calibrated; None if the
            detector makes no estimate.
        outer: (N, 4) boxes that hold the whole object with the coverage that the detector was calibrated for; None if
            it was calibrated for none.
        inner: (N, 4) boxes that lie in the object with this coverage; likewise. One without area promises nothing.
    """

    boxes: Tensor
    scores: Tensor
    labels: Tensor
    ious: Tensor | None = None
    outer: Tensor | None = None
    inner: Tensor | None = None

    def __getitem__(self, keep: Tensor | slice) -> Detections:
        """The detections selected by a boolean mask, an index tensor or a slice."""
        return self.each(lambda value: value[keep])

    def of_images(self, counts: Tensor) -> list[Detections]:
        """Where the tensors have the images as their first axis: the first `counts` (B,) detections of each."""
        images = [self.each(partial(torch.select, dim=0, index=i)) for i in range(len(counts))]
        return [found[:count] for found, count in zip(images, counts.tolist(), strict=True)]

    def tighter_than(self, iou: float) -> Detections:
        """Those with at least this predicted IoU.

        Raises:
            UserError: if the detector predicts no IoU.
        """
        if self.ious is None:
            raise UserError("this detector predicts no IoU, so it cannot choose boxes; choose them by their score")
        return self[self.ious >= iou]

    def resized(self, size: tuple[int, int], new_size: tuple[int, int]) -> Detections:
        """The same in the image resized from (height, width) `size` to `new_size`, clipped to it."""
        scale = self.boxes.new_tensor([new_size[1] / size[1], new_size[0] / size[0]] * 2)
        moved = {name: clip_boxes(boxes * scale, new_size) for name, boxes in self._kinds_of_boxes().items()}
        return replace(self, **moved)

    def _kinds_of_boxes(self) -> dict[str, Tensor]:
        """The boxes, and those that a calibration made of them, by the names of their fields."""
        return {name: boxes for name in ("boxes", "outer", "inner") if (boxes := getattr(self, name)) is not None}

    def to_coco(self, image_id: int, category_ids: Sequence[int] | None = None) -> list[dict[str, Any]]:
        """Rows of a COCO result file: `bbox` is [x, y, width, height], and `iou` the predicted IoU where there is one.

        So are `outer_bbox` and `inner_bbox`, where the detector was calibrated for a coverage.

        Args:
            image_id: the image's id in the data set.
            category_ids: the data set's own id of each label; without it, the label itself.
        """
        ids = self.labels.tolist() if category_ids is None else [category_ids[i] for i in self.labels.tolist()]
        boxes = {name: _as_xywh(boxes) for name, boxes in self._kinds_of_boxes().items()}
        columns: dict[str, list[Any]] = {"image_id": [image_id] * len(self), "category_id": ids}
        columns |= {"bbox": boxes.pop("boxes"), "score": self.scores.tolist()}
        if self.ious is not None:
            columns["iou"] = self.ious.tolist()
        columns |= {f"{name}_bbox": column for name, column in boxes.items()}
        return [dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True)]

    def to_supervision(self, class_names: Sequence[str] | None = None) -> supervision.Detections:
        """The same as `supervision.Detections`, the predicted IoUs in `data["iou"]` (needs the extra `viz`)."""
        labels = self.labels.cpu().numpy()
        data: dict[str, Any] = {} if self.ious is None else {"iou": self.ious.detach().cpu().numpy()}
        data |= {name: boxes.detach().cpu().numpy() for name, boxes in self._kinds_of_boxes().items()}
        if class_names is not None:
            data["class_name"] = [class_names[i] for i in labels]
        boxes, scores = data.pop("boxes").reshape(-1, 4), self.scores.detach().cpu().numpy()
        return import_extra("supervision", "viz").Detections(xyxy=boxes, confidence=scores, class_id=labels, data=data)


def take(values: Tensor, rows: Tensor) -> Tensor:
    """Of each of B images the rows (B, K) of its values, (B, N) or (B, N, D): (B, K) or (B, K, D)."""
    if values.dim() == 2:
        return values.gather(1, rows)
    return values.gather(1, rows[..., None].expand(-1, -1, values.shape[2]))


def _as_xywh(boxes: Tensor) -> list[list[float]]:
    """[x, y, width, height] of each box, rounded to three decimals."""
    corners = boxes.detach().cpu().double()
    rows = torch.cat([corners[:, :2], corners[:, 2:] - corners[:, :2]], dim=1).tolist()
    return [[round(value, 3) for value in row] for row in rows]
