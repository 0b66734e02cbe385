"""A detector as one pure function: pixels in; boxes, scores, labels and predicted IoUs out, a fixed number of them."""

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tightbox.boxes import at_least_float32, iou
from tightbox.models import Detector, IoUNet
from tightbox.structures import Candidates, take
from tightbox.suppress import suppress, voted


class PaddedDetections(NamedTuple):
    """The detections of B images, best first, each with room for M of them.

    Attributes:
        boxes: (B, M, 4) in pixels of the given images; 0 beyond the count.
        scores: (B, M); 0 beyond the count.
        labels: (B, M) int64; -1 beyond the count.
        ious: (B, M) predicted IoU, calibrated if the detector is; NaN beyond the count, and everywhere if the detector
            predicts none.
        counts: (B,) int64 detections of each image.
    """

    boxes: Tensor
    scores: Tensor
    labels: Tensor
    ious: Tensor
    counts: Tensor


class TensorDetector(nn.Module):
    """What a detector's `detect` does, without loops over images and without shapes that depend on data.

    So it can be exported and compiled, and is given batches of any size. UnitBox is read densely: its boxes are those
    of `select(candidates(images))`.

    Args:
        detector: whose weights it shares.
    """

    def __init__(self, detector: Detector) -> None:
        super().__init__()
        self.detector = detector
        self.eval()

    def forward(self, images: Tensor, sizes: Tensor) -> PaddedDetections:
        """Detections in a batch.

        Args:
            images: (B, 3, H, W) RGB in [0, 1], each image at the top left; what lies outside does not count.
            sizes: (B, 2) int64 true height and width of each image.
        """
        return self.detect(self.detector.normalised(images, sizes), sizes)

    def detect(self, pixels: Tensor, sizes: Tensor) -> PaddedDetections:
        """The same from what the detector's `normalised` gave."""
        detector, options = self.detector, self.detector.options
        candidates = detector.best_candidates(pixels, sizes)
        scores = at_least_float32(detector.rank(candidates))
        has_area = (candidates.boxes[..., 2:] > candidates.boxes[..., :2]).all(dim=2, keepdim=True)
        scores = torch.where(has_area & (scores > options.score_threshold), scores, 0).mT
        if detector.suppression == "iou_guided":
            return self._padded(candidates, guided_by_iou(candidates, scores, options.nms_iou, options.top_k))
        limits = options.nms_iou, options.score_threshold, options.max_detections
        found = self._padded(candidates, suppress(candidates.boxes, scores, *limits))
        if detector.suppression != "voting":
            return found
        labels = found.labels.clamp(min=0)
        return found._replace(boxes=voted(found.boxes, labels, candidates, scores.mT, options.score_threshold))

    def _padded(self, candidates: Candidates, kept: Tensor) -> PaddedDetections:
        """The best of the scores (B, C, N) above the threshold, with what belongs to them."""
        options, number = self.detector.options, kept.shape[2]
        most, kept = options.max_detections, kept.flatten(1)
        # Rows are added so that there are as many to choose from as are wanted, however small the image.
        best, places = F.pad(kept, (0, most)).topk(most, dim=1)
        found = best > options.score_threshold
        places = places.clamp(max=kept.shape[1] - 1)
        labels = places // number
        rows = places - labels * number
        ious = torch.full_like(best, torch.nan)
        if candidates.ious is not None:
            by_class = candidates.ious.dim() == 3
            ious = candidates.ious.mT.flatten(1).gather(1, places) if by_class else take(candidates.ious, rows)
            ious = torch.where(found, ious, torch.nan)
        if isinstance(self.detector, IoUNet) and options.rank_by_iou and self.detector.iou_head is not None:
            best, order = torch.where(found, best * ious, -1).sort(dim=1, descending=True)
            labels, rows, ious = (take(column, order) for column in (labels, rows, ious))
        if self.detector.calibration is not None:
            ious = self.detector.calibration.ious.of_tensor(ious)
        return PaddedDetections(
            boxes=torch.where(found[..., None], take(candidates.boxes, rows), 0),
            scores=torch.where(found, best, 0),
            labels=torch.where(found, labels, -1),
            ious=ious,
            counts=found.sum(dim=1),
        )


def guided_by_iou(candidates: Candidates, scores: Tensor, iou_threshold: float, most: int) -> Tensor:
    """The clusters' scores (B, C, N) of the boxes that IoU-guided suppression keeps, and 0 in place of all others.

    The rule of `tightbox.suppress.iou_guided_nms` in fixed shapes.

    Args:
        candidates: N of each of B images, each with a score in one class only, the best first.
        scores: (B, C, N) above the threshold, or 0.
        iou_threshold: a box is dropped if its IoU with a better localised one of its class is above this.
        most: no image has more candidates.
    """
    boxes, ious = candidates.boxes, candidates.ious
    assert ious is not None
    number = boxes.shape[1]
    own = (scores > 0) & ~ious.isnan()[:, None]
    kept = suppress(boxes, torch.where(own, ious[:, None], -1), iou_threshold, -1, most).amax(dim=1)  # (B, N)
    # The kept boxes in order of their IoU, so that the first one that covers a box has removed it.
    best, order = kept.sort(dim=1, descending=True)
    labels, top = scores.argmax(dim=1), scores.amax(dim=1)
    first, second = take(boxes, order)[:, :, None], boxes[:, None]
    covers = (iou(first, second) > iou_threshold) & (take(labels, order)[:, :, None] == labels[:, None])
    itself = order[:, :, None] == torch.arange(number, device=order.device)
    covers = (covers | itself) & (best > -1)[:, :, None] & own.any(dim=1)[:, None]
    remover = covers.int().argmax(dim=1)  # (B, N) places in `order`
    top = torch.where(covers.any(dim=1), top, 0)
    clusters = torch.zeros_like(top).scatter_reduce(1, remover, top, "amax")
    clusters = torch.where(best > -1, clusters, 0)
    of_box = torch.zeros_like(top).scatter(1, order, clusters)
    return torch.where(scores > 0, of_box[:, None], 0)
