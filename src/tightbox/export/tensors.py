"""A detector as one pure function: pixels in; boxes, scores, labels and predicted IoUs out, a fixed number of them."""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tightbox.export.candidates import BatchCandidates, batch_candidates
from tightbox.export.suppression import SUPPRESSED, suppress
from tightbox.models import Detector

DIVISOR = 32  # the network's input is padded to a multiple of it


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
        candidates = batch_candidates(self.detector, self._normalise(images, sizes), sizes)
        return self._select(candidates)

    def _normalise(self, images: Tensor, sizes: Tensor) -> Tensor:
        """Pixels by the backbone's statistics, 0 outside the images, padded to whole cells."""
        height, width = images.shape[-2:]
        y, x = (torch.arange(side, device=images.device) for side in (height, width))
        inside = (y < sizes[:, :1])[:, None, :, None] & (x < sizes[:, 1:])[:, None, None]
        backbone = self.detector.backbone
        pixels = torch.where(inside, (images - backbone.mean) / backbone.std, 0)
        return F.pad(pixels, (0, -width % DIVISOR, 0, -height % DIVISOR))

    def _select(self, candidates: BatchCandidates) -> PaddedDetections:
        options = self.detector.options
        boxes, scores = candidates.boxes, candidates.scores
        most, number = options.max_detections, boxes.shape[1]
        kept = suppress(boxes, scores, options.nms_iou, options.score_threshold, most).flatten(1)
        # Rows are added so that there are as many to choose from as are wanted, however small the image.
        best, places = F.pad(kept, (0, most), value=SUPPRESSED).topk(most, dim=1)
        found = best > SUPPRESSED
        places = places.clamp(max=kept.shape[1] - 1)
        labels = places // number
        rows = places - labels * number
        ious = torch.full_like(best, torch.nan)
        if candidates.ious is not None:
            by_class = candidates.ious.dim() == 3
            ious = candidates.ious.flatten(1).gather(1, places if by_class else rows)
            if self.detector.calibration is not None:
                ious = self.detector.calibration.ious.of_tensor(ious)
            ious = torch.where(found, ious, torch.nan)
        return PaddedDetections(
            boxes=torch.where(found[..., None], boxes.gather(1, rows[..., None].expand(-1, -1, 4)), 0),
            scores=torch.where(found, best, 0),
            labels=torch.where(found, labels, -1),
            ious=ious,
            counts=found.sum(dim=1),
        )
