"""A detector from the one file that tightbox exported."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, overload

import numpy as np
import onnxruntime
from numpy.typing import NDArray
from PIL import Image

from tightbox_runtime.errors import UserError
from tightbox_runtime.images import open_image, resize, to_rgb
from tightbox_runtime.structures import Detections

METADATA, FORMAT = "tightbox", 1
ImageLike = str | Path | Image.Image | np.ndarray


class Detector:
    """Detects in images with ONNX Runtime.

    Args:
        path: a file that `tightbox export --format onnx` wrote.
        providers: ONNX Runtime's, in order of preference; the processor if not given.

    Attributes:
        class_names: the classes, in the order of their labels.
        description: all that the file says of itself.

    Raises:
        UserError: if the file is missing, damaged or not one of tightbox.
    """

    def __init__(self, path: str | Path, providers: list[str] | None = None) -> None:
        path = Path(path)
        if not path.is_file():
            raise UserError(f"there is no file {path}; give one that `tightbox export --format onnx` wrote")
        options = onnxruntime.SessionOptions()
        options.log_severity_level = 4  # what is wrong with a file is said once, here
        try:
            self.session = onnxruntime.InferenceSession(path, options, providers=providers or ["CPUExecutionProvider"])
        except Exception as error:  # ONNX Runtime's exceptions have no class in common
            reason = " ".join(str(error).split())
            raise UserError(f"{path} cannot be loaded ({reason}); export the checkpoint again") from error
        self.description = _description(self.session.get_modelmeta().custom_metadata_map, path)
        self.class_names: tuple[str, ...] = tuple(self.description["class_names"])

    @overload
    def predict(self, images: ImageLike) -> Detections: ...

    @overload
    def predict(self, images: list[Any] | tuple[Any, ...]) -> list[Detections]: ...

    def predict(self, images: ImageLike | list[Any] | tuple[Any, ...]) -> Detections | list[Detections]:
        """Detections in an image, or in each of a list of images, in pixels of the originals.

        Args:
            images: a path, a PIL image or an (H, W, 3) uint8 RGB array, or a list of these.

        Raises:
            UserError: if an image cannot be read or has an unusable shape.
        """
        if isinstance(images, (list, tuple)):
            return [self._predict(image) for image in images]
        return self._predict(images)

    def _predict(self, image: ImageLike) -> Detections:
        pixels = _as_array(image)
        height, width = pixels.shape[:2]
        about = self.description["preprocessing"]
        scale = min(about["long_side"] / max(width, height), about["short_side"] / min(width, height))
        size = max(1, round(height * scale)), max(1, round(width * scale))
        boxes, scores, labels, ious, counts = self.session.run(
            ["boxes", "scores", "labels", "ious", "counts"],
            {"images": resize(pixels, *size)[None], "sizes": np.array([size], dtype=np.int64)},
        )
        kept = slice(0, int(counts[0]))
        back = np.array([width / size[1], height / size[0]] * 2, dtype=np.float32)
        limits = np.array([width, height] * 2, dtype=np.float32)
        return Detections(
            boxes=np.clip(boxes[0, kept] * back, 0, limits),
            scores=scores[0, kept],
            labels=labels[0, kept],
            ious=ious[0, kept] if self.description["predicts_iou"] else None,
        )


def _description(entries: dict[str, str], path: Path) -> dict[str, Any]:
    try:
        description: dict[str, Any] = json.loads(entries[METADATA])
        found = description["format"]
    except (KeyError, ValueError, TypeError) as error:
        raise UserError(
            f"{path} is an ONNX file, but not one of tightbox; give one that `tightbox export --format onnx` wrote"
        ) from error
    if found != FORMAT:
        raise UserError(f"{path} has format {found}; this tightbox-runtime reads {FORMAT}: upgrade tightbox-runtime")
    return description


def _as_array(image: ImageLike) -> NDArray[np.uint8]:
    """(H, W, 3) uint8 RGB."""
    if isinstance(image, (str, Path)):
        return open_image(Path(image))
    if isinstance(image, Image.Image):
        return np.asarray(to_rgb(image))
    if not isinstance(image, np.ndarray):
        raise UserError(f"cannot make an image of a {type(image).__name__}; give a path, PIL image or array")
    if image.ndim != 3 or image.shape[2] != 3 or image.dtype != np.uint8 or 0 in image.shape:
        raise UserError(f"an array must be (H, W, 3) uint8 RGB, not {image.shape} {image.dtype}")
    return image
