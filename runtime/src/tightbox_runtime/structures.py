"""What a detector found in one image."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True, eq=False)
class Detections:
    """The boxes of one image, best first, as `tightbox.structures.Detections` has them.

    Attributes:
        boxes: (N, 4) float32 x1, y1, x2, y2 in pixels of the image.
        scores: (N,) float32 what they are ranked by.
        labels: (N,) int64 class of each.
        ious: (N,) float32 predicted IoU of each box with its object; None if the detector predicts none.
    """

    boxes: NDArray[np.float32]
    scores: NDArray[np.float32]
    labels: NDArray[np.int64]
    ious: NDArray[np.float32] | None = None

    def __len__(self) -> int:
        return len(self.boxes)

    def __getitem__(self, keep: NDArray[Any] | slice) -> Detections:
        """The detections selected by a boolean mask, an index array or a slice."""
        ious = None if self.ious is None else self.ious[keep]
        return Detections(self.boxes[keep], self.scores[keep], self.labels[keep], ious)
