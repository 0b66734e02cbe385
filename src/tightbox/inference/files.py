"""A detector over any number of image files, a few at a time; what cannot be read is a result like any other."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from PIL import Image

from tightbox.background import in_background
from tightbox.errors import UserError
from tightbox.images import UnreadableImage, open_image
from tightbox.models import Detector, load
from tightbox.models.prediction import Prepared, as_pixels, detect_prepared, prepare
from tightbox.structures import Detections

DECODERS = 2  # threads that decode ahead


@dataclass(frozen=True)
class Selection:
    """Which detections are reported.

    Attributes:
        threshold: those with at least this score.
        min_iou: those with at least this predicted IoU; None for all.
        labels: those of these classes; None for all.
        margins: their outer and inner boxes too, where the detector has them.
    """

    threshold: float
    min_iou: float | None = None
    labels: tuple[int, ...] | None = None
    margins: bool = False

    def __call__(self, found: Detections) -> Detections:
        """The chosen ones, in their order.

        Raises:
            UserError: if a predicted IoU is asked of a detector that makes none.
        """
        found = found[found.scores >= self.threshold]
        if self.min_iou is not None:
            found = found.tighter_than(self.min_iou)
        if self.labels is not None:
            found = found[torch.isin(found.labels, torch.tensor(self.labels))]
        return found if self.margins else replace(found, outer=None, inner=None)


def labels_of(names: Iterable[str], class_names: Iterable[str]) -> tuple[int, ...]:
    """The labels of classes by their names.

    Raises:
        UserError: if a name is none of the classes.
    """
    label_of = {name: label for label, name in enumerate(class_names)}
    unknown = [name for name in names if name not in label_of]
    if unknown:
        raise UserError(f"this detector has no class {', '.join(unknown)}; choose from {', '.join(label_of)}")
    return tuple(label_of[name] for name in names)


def load_on(checkpoint: str, threshold: float, device: str) -> Detector:
    """The detector, ready to report boxes from a score on, on its device; "auto" takes a GPU if there is one.

    Raises:
        UserError: if there is no checkpoint.
    """
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    model = load(checkpoint).to(device).eval()
    model.options = replace(model.options, score_threshold=min(threshold, model.options.score_threshold))
    return model


@dataclass(frozen=True, eq=False)
class FileResult:
    """What is in one image file.

    Attributes:
        path: the file.
        found: the detections, in its own pixels; nothing if it cannot be read.
        size: its (height, width); (0, 0) if it cannot be read.
        image: the opened image, if it was asked for.
        error: why it cannot be read, or None.
    """

    path: Path
    found: Detections
    size: tuple[int, int]
    image: Image.Image | None = None
    error: UnreadableImage | None = None


@dataclass(frozen=True, eq=False)
class _File(Prepared):
    path: Path
    image: Image.Image | None = None
    error: UnreadableImage | None = None


def detect_files(
    model: Detector, paths: Iterable[Path], *, batch_size: int = 8, workers: int = DECODERS, keep_images: bool = False
) -> Iterator[FileResult]:
    """What the detector finds in each file, in their order; only a few batches are in memory at a time.

    Args:
        model: on its device; put into evaluation mode.
        paths: image files.
        batch_size: images that the network sees together.
        workers: threads that decode and resize the next images meanwhile.
        keep_images: whether results carry the opened images.
    """
    model.eval()

    def open_file(path: Path) -> _File:
        try:  # an exception would end the work on all others
            image = open_image(path)
        except UnreadableImage as error:
            return _File(None, (0, 0), path, error=error)
        ready = prepare(as_pixels(image), model.preprocess)
        return _File(ready.pixels, ready.size, path, image if keep_images else None)

    opened = in_background(open_file, paths, ahead=2 * batch_size, workers=workers)
    for file, found in detect_prepared(model.detect_here, opened, batch_size):
        yield FileResult(file.path, found, file.size, file.image, file.error)
