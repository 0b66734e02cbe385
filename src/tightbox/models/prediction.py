"""From anything a person has to a detector's input, and its detections back in pixels of the original."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torchvision.transforms.v2 import functional as TF

from tightbox.background import in_background
from tightbox.errors import UserError
from tightbox.images import open_image, to_rgb
from tightbox.options import Preprocess
from tightbox.structures import Detections, ImageBatch

if TYPE_CHECKING:
    from tightbox.models.detector import Detector

ImageLike = str | Path | Image.Image | np.ndarray | Tensor


def predict_images(model: Detector, images: Iterable[ImageLike], *, batch_size: int) -> Iterator[Detections]:
    """Detections of each image, in its own pixels, in their order.

    Only images that are padded to the same height and width are batched: what lies beyond an image's own padding would
    change its features a little, and with them its boxes.
    """

    def prepare(image: ImageLike) -> tuple[Tensor, tuple[int, int]]:
        pixels = as_pixels(image)
        return resize(pixels, model.preprocess), (pixels.shape[-2], pixels.shape[-1])

    prepared = in_background(prepare, images, ahead=batch_size)
    # Among twice as many images as a batch takes, there are some of like shape in most folders.
    while chunk := list(islice(prepared, 2 * batch_size)):
        yield from _predict_chunk(model, *zip(*chunk, strict=True), batch_size=batch_size)


def _predict_chunk(
    model: Detector, resized: Sequence[Tensor], sizes: Sequence[tuple[int, int]], *, batch_size: int
) -> list[Detections]:
    """Detections of images that are resized already, in images of the original (height, width) `sizes`."""
    by_shape: dict[torch.Size, list[int]] = defaultdict(list)
    for number, pixels in enumerate(resized):
        by_shape[ImageBatch.of([pixels]).pixels.shape].append(number)
    found: dict[int, Detections] = {}
    training = model.training
    model.eval()
    try:
        for numbers in by_shape.values():
            for start in range(0, len(numbers), batch_size):
                batch = numbers[start : start + batch_size]
                detections = model.detect(ImageBatch.of([resized[i] for i in batch]).to(model.device))
                found |= dict(zip(batch, detections, strict=True))
    finally:
        model.train(training)
    return [
        found[i].to("cpu").resized((pixels.shape[-2], pixels.shape[-1]), size)
        for i, (pixels, size) in enumerate(zip(resized, sizes, strict=True))
    ]


def as_pixels(image: ImageLike) -> Tensor:
    """A (3, H, W) float tensor in [0, 1] from a path, PIL image, array or tensor.

    Raises:
        UserError: if it is none of these, or has an unusable shape.
    """
    if isinstance(image, (str, Path)):
        image = open_image(Path(image))
    if isinstance(image, Image.Image):
        image = np.asarray(to_rgb(image))
    if isinstance(image, np.ndarray):
        if image.ndim != 3 or image.shape[2] != 3 or image.dtype != np.uint8:
            raise UserError(f"an array must be (H, W, 3) uint8 RGB, not {image.shape} {image.dtype}")
        image = torch.from_numpy(np.array(image)).permute(2, 0, 1)
    if not isinstance(image, Tensor):
        raise UserError(f"cannot make an image of a {type(image).__name__}; give a path, PIL image, array or tensor")
    if image.ndim != 3 or image.shape[0] != 3 or 0 in image.shape:
        raise UserError(f"an image tensor must be (3, H, W), not {tuple(image.shape)}")
    if not image.is_floating_point() and image.dtype != torch.uint8:
        raise UserError(f"an image tensor must be uint8, or float in [0, 1], not {image.dtype}")
    return image.float() if image.is_floating_point() else image.float() / 255


def resize(pixels: Tensor, preprocess: Preprocess) -> Tensor:
    """Pixels (3, H, W) resized into the model's size, keeping their shape."""
    height, width = pixels.shape[-2:]
    scale = preprocess.scale(width, height)
    size = [max(1, round(height * scale)), max(1, round(width * scale))]
    resized: Tensor = TF.resize(pixels, size, antialias=True)
    return resized
