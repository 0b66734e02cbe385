"""From anything a person has to a detector's input, and its detections back in pixels of the original."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import TypeVar

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

ImageLike = str | Path | Image.Image | np.ndarray | Tensor
Detect = Callable[[ImageBatch], list[Detections]]


@dataclass(frozen=True, eq=False)
class Prepared:
    """One image as the network takes it.

    Attributes:
        pixels: (3, h, w) resized for the model.
        size: (height, width) of the original.
    """

    pixels: Tensor
    size: tuple[int, int]


P = TypeVar("P", bound=Prepared)


def predict_images(
    detect: Detect, images: Iterable[ImageLike], preprocess: Preprocess, batch_size: int
) -> Iterator[Detections]:
    """Detections of each image, in its own pixels, in their order.

    Only images that are padded to the same height and width are batched: what lies beyond an image's own padding would
    change its features a little, and with them its boxes.

    Args:
        detect: gives the detections in each image of a batch.
        images: anything that `as_pixels` takes; the next ones are decoded and resized meanwhile.
        preprocess: how they are resized.
        batch_size: most images of a batch.
    """
    prepared = in_background(lambda image: prepare(as_pixels(image), preprocess), images, ahead=batch_size)
    for _, found in detect_prepared(detect, prepared, batch_size):
        yield found


def prepare(pixels: Tensor, preprocess: Preprocess) -> Prepared:
    """Pixels (3, H, W) in [0, 1] as the network takes them."""
    return Prepared(resize(pixels, preprocess), (pixels.shape[-2], pixels.shape[-1]))


def detect_prepared(detect: Detect, prepared: Iterable[P], batch_size: int) -> Iterator[tuple[P, Detections]]:
    """Each prepared image with its detections, in pixels of the original, in their order.

    Args:
        detect: gives the detections in each image of a batch.
        prepared: the images; twice as many as a batch takes are held at a time.
        batch_size: most images of a batch.
    """
    images = iter(prepared)
    # Among twice as many images as a batch takes, there are some of like shape in most folders.
    while chunk := list(islice(images, 2 * batch_size)):
        by_shape: dict[torch.Size, list[int]] = defaultdict(list)
        for number, image in enumerate(chunk):
            by_shape[ImageBatch.of([image.pixels]).pixels.shape].append(number)
        found: dict[int, Detections] = {}
        for numbers in by_shape.values():
            for start in range(0, len(numbers), batch_size):
                batch = numbers[start : start + batch_size]
                found |= zip(batch, detect(ImageBatch.of([chunk[i].pixels for i in batch])), strict=True)
        for number, image in enumerate(chunk):
            yield image, found[number].resized((image.pixels.shape[-2], image.pixels.shape[-1]), image.size)


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
