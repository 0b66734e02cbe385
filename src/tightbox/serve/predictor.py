"""What the server needs of a detector, so that anything which finds boxes can be served."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from PIL import Image

from tightbox.models import Detector
from tightbox.structures import Detections


class Predictor(Protocol):
    """Finds objects in images.

    Attributes:
        system: its name, for people.
        class_names: the classes, in the order of their labels.
        calibrated: whether its predicted IoUs are; None if it predicts none.
        score_threshold: it reports no box with a lower score.
    """

    system: str
    class_names: tuple[str, ...]
    calibrated: bool | None
    score_threshold: float

    def predict(self, images: Sequence[Image.Image]) -> list[Detections]:
        """Detections in each image, in its own pixels, on the CPU; called from one thread at a time."""
        ...


class CheckpointPredictor:
    """A detector of this package."""

    def __init__(self, model: Detector) -> None:
        self._model = model.eval()
        self.system = model.name
        self.class_names = model.class_names
        self.score_threshold = float(model.options.score_threshold)
        # Whether a system predicts IoUs depends on its options too, and so is asked of its own output.
        without = self.predict([Image.new("RGB", (64, 64))])[0].ious is None
        self.calibrated = None if without else model.calibration is not None

    def predict(self, images: Sequence[Image.Image]) -> list[Detections]:
        """Detections in each image, which the network sees together as far as their shapes allow."""
        return self._model.predict(list(images), batch_size=len(images))
