"""What the server needs of a detector, so that anything which finds boxes can be served; and checkpoints as such."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from PIL import Image

from tightbox.models import Detector
from tightbox.models.prediction import Detect, Prepared, as_pixels, detect_prepared, prepare
from tightbox.options import Preprocess
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

    def prepare(self, image: Image.Image) -> Any:
        """What `predict` takes of an image; called in several threads, while `predict` works on others."""

    def predict(self, prepared: Sequence[Any]) -> list[Detections]:
        """Detections in each image, in its own pixels, on the CPU; called from one thread at a time."""


@dataclass(eq=False, kw_only=True)
class NetworkPredictor:
    """A network that sees together what is alike in shape.

    Attributes:
        detect: gives the detections in each image of a batch, on the CPU.
        preprocess: how images are resized for it.
        system: as in `Predictor`, and so are the others.
    """

    detect: Detect
    preprocess: Preprocess
    system: str
    class_names: tuple[str, ...]
    calibrated: bool | None
    score_threshold: float

    def prepare(self, image: Image.Image) -> Prepared:
        """The resized image."""
        return prepare(as_pixels(image), self.preprocess)

    def predict(self, prepared: Sequence[Prepared]) -> list[Detections]:
        """Detections in each image."""
        return [found for _, found in detect_prepared(self.detect, prepared, len(prepared))]


def of_checkpoint(model: Detector) -> NetworkPredictor:
    """A detector of this package, on its device."""
    model.eval()

    # Whether a system predicts IoUs depends on its options too, and so is asked of its own output.
    without = model.predict(Image.new("RGB", (64, 64))).ious is None
    return NetworkPredictor(
        detect=model.detect_here,
        preprocess=model.preprocess,
        system=model.name,
        class_names=model.class_names,
        calibrated=None if without else model.calibration is not None,
        score_threshold=float(model.options.score_threshold),
    )
