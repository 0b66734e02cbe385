"""Test-time augmentation: a detector sees each image at several sizes and mirrored, and its detections are merged."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import torch
from torch import Tensor
from torchvision.transforms.v2 import functional as TF

from tightbox.errors import UserError
from tightbox.models import Detector
from tightbox.models.prediction import Prepared, detect_prepared
from tightbox.ops import soft_nms
from tightbox.options import Preprocess
from tightbox.structures import Detections, ImageBatch
from tightbox.suppress import box_voting

Merge = Literal["soft_linear", "vote", "vote_score", "vote_iou"]


@dataclass(frozen=True, kw_only=True)
class Views:
    """How each image is seen, and how what is found in the views becomes one.

    Args:
        scales: sizes of the views, relative to the detector's own.
        flip: also see each mirrored left-right.
        merge: linear soft-NMS, or the boxes of a cluster averaged: all alike, or weighed by score or predicted IoU.

    Raises:
        UserError: if a scale is no size.
    """

    scales: tuple[float, ...] = (1.0,)
    flip: bool = False
    merge: Merge = "soft_linear"

    def __post_init__(self) -> None:
        if not self.scales or not all(0 < scale < torch.inf for scale in self.scales):
            raise UserError(f"the scales of the views are {self.scales}; give one or more numbers above 0")

    def __call__(
        self, detect: Callable[[ImageBatch], list[Detections]], images: ImageBatch, options: Any
    ) -> list[Detections]:
        """Merged detections in each image.

        Args:
            detect: the detections in each image of a batch.
            images: of the size of the largest scale.
            options: the detector's, of which merging takes the thresholds.
        """
        found: list[list[Detections]] = [[] for _ in images.sizes]
        for scale in self.scales:
            for mirrored in (False, True)[: 1 + self.flip]:
                view = [
                    Prepared(_changed(pixels[:, :height, :width], scale / max(self.scales), mirrored), (height, width))
                    for pixels, (height, width) in zip(images.pixels, images.sizes, strict=True)
                ]
                for of_image, (image, seen) in zip(found, detect_prepared(detect, view, len(view)), strict=True):
                    of_image.append(_mirrored(seen, image.size[1]) if mirrored else seen)
        return [self.merged(of_image, options) for of_image in found]

    def merged(self, found: Sequence[Detections], options: Any) -> Detections:
        """One image's detections in all views as one, best first.

        Raises:
            UserError: if they are to be weighed by a predicted IoU that is not there.
        """
        every, most = joined(found), options.max_detections
        if self.merge == "soft_linear":
            limits = {"iou_threshold": options.nms_iou, "score_threshold": options.score_threshold}
            keep, fallen = soft_nms(every.boxes, every.scores, every.labels, max_kept=most, **limits)
            return replace(every[keep], scores=fallen)
        weights = {"vote": torch.ones_like(every.scores), "vote_score": every.scores, "vote_iou": every.ious}
        weight = weights[self.merge]
        if weight is None:
            raise UserError("this detector predicts no IoU to weigh boxes by; merge them by vote_score instead")
        return box_voting(every, weight, options.nms_iou)[:most]


def joined(parts: Sequence[Detections]) -> Detections:
    """The detections of all parts, one part after another; with predicted IoUs if every part has them."""
    ious = [part.ious for part in parts if part.ious is not None]
    boxes, scores, labels = (torch.cat([getattr(p, name) for p in parts]) for name in ("boxes", "scores", "labels"))
    return Detections(boxes, scores, labels, torch.cat(ious) if len(ious) == len(parts) else None)


def see(model: Detector, views: Views) -> None:
    """Let all that the model detects be merged from these views; it is not to be saved then."""
    own, largest = model.preprocess, max(views.scales)
    model.preprocess = Preprocess(long_side=round(own.long_side * largest), short_side=round(own.short_side * largest))
    model.views = views


def _changed(pixels: Tensor, factor: float, mirrored: bool) -> Tensor:
    size = [max(1, round(side * factor)) for side in pixels.shape[-2:]]
    resized: Tensor = TF.resize(pixels, size, antialias=True)
    return resized.flip(-1) if mirrored else resized


def _mirrored(found: Detections, width: int) -> Detections:
    left, top, right, bottom = found.boxes.unbind(1)
    return replace(found, boxes=torch.stack([width - right, top, width - left, bottom], dim=1))
