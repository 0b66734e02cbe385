"""From anything a person has to a detector's input, and its detections back in pixels of the original."""

from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor
from torchvision.transforms.v2 import functional as TF

from tightbox.background import in_background
from tightbox.errors import UserError
from tightbox.images import open_image, to_rgb
from tightbox.options import Preprocess
from tightbox.structures import Detections, ImageBatch, padded

ImageLike = str | Path | Image.Image | np.ndarray | Tensor
NOTHING = Detections(torch.zeros(0, 4), torch.zeros(0), torch.zeros(0, dtype=torch.int64))
_OVERSHOOT = 0.1  # what resampling may leave outside [0, 1]
Detect = Callable[[ImageBatch], list[Detections]]


@dataclass(frozen=True, eq=False)
class Prepared:
    """One image as the network takes it.

    Attributes:
        pixels: (3, h, w) resized for the model; None of what could not be read.
        size: (height, width) of the original.
    """

    pixels: Tensor | None
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
    height, width = pixels.shape[-2:]
    scale = preprocess.scale(width, height)
    size = [max(1, round(height * scale)), max(1, round(width * scale))]
    return Prepared(TF.resize(pixels, size, antialias=True), (height, width))


def detect_prepared(detect: Detect, prepared: Iterable[P], batch_size: int) -> Iterator[tuple[P, Detections]]:
    """Each prepared image with its detections, in pixels of the original, in their order; none without pixels.

    Args:
        detect: gives the detections in each image of a batch.
        prepared: the images; twice as many as a batch takes are held at a time.
        batch_size: most images of a batch.
    """
    waiting = iter(prepared)
    # Among twice as many images as a batch takes, there are some of like shape in most folders.
    while chunk := list(islice(waiting, 2 * batch_size)):
        by_shape: dict[tuple[int, int], list[tuple[P, Tensor]]] = defaultdict(list)
        for image in chunk:
            if image.pixels is not None:
                height, width = image.pixels.shape[-2:]
                by_shape[padded(height), padded(width)].append((image, image.pixels))
        found: dict[P, Detections] = {}
        for alike in by_shape.values():
            for start in range(0, len(alike), batch_size):
                images, pixels = zip(*alike[start : start + batch_size], strict=True)
                batch = ImageBatch.of(pixels)
                for image, size, detections in zip(images, batch.sizes, detect(batch), strict=True):
                    found[image] = detections.resized(size, image.size)
        for image in chunk:
            yield image, found.get(image, NOTHING)


def as_pixels(image: ImageLike) -> Tensor:
    """A (3, H, W) float tensor in [0, 1] from a path, PIL image, array or tensor; transparency lies on white.

    Raises:
        UserError: if it is none of these, has an unusable shape, or pixels that are NaN, infinite or out of range.
    """
    if isinstance(image, (str, Path)):
        image = open_image(Path(image))
    if isinstance(image, Image.Image):
        try:
            image = np.asarray(to_rgb(image))
        except Exception as error:  # a file that is opened only now, and Pillow's decoders raise anything
            raise UserError(f"the image cannot be decoded ({error}); open it anew or leave it out") from error
    if isinstance(image, np.ndarray):
        image = _from_array(image)
    if not isinstance(image, Tensor):
        raise UserError(f"cannot make an image of a {type(image).__name__}; give a path, PIL image, array or tensor")
    if image.ndim == 2:
        image = image[None]
    if image.ndim != 3 or image.shape[0] not in (1, 3, 4) or 0 in image.shape:
        raise UserError(f"an image tensor must be (3, H, W), or (1 or 4, H, W), not {tuple(image.shape)}")
    pixels = _in_range(image)
    if len(pixels) == 4:
        pixels = pixels[:3] * pixels[3] + (1 - pixels[3])
    return pixels.expand(3, -1, -1)


def _from_array(array: NDArray[Any]) -> Tensor:
    """(C, H, W) of an array (H, W) or (H, W, C)."""
    if array.ndim == 2:
        array = array[:, :, None]
    if array.ndim != 3 or array.shape[2] not in (1, 3, 4):
        raise UserError(f"an array must be (H, W, 3), (H, W) or (H, W, 4), not {array.shape}")
    if array.dtype.kind == "f":
        array = array.astype(np.float32)  # PyTorch has none of NumPy's longer ones
    elif array.dtype not in (np.uint8, np.uint16, np.bool_):
        raise UserError(f"an array must be of uint8, uint16, bool, or floats in [0, 1], not of {array.dtype}")
    return torch.from_numpy(np.ascontiguousarray(array.astype(array.dtype.newbyteorder("=")))).permute(2, 0, 1)


def _in_range(image: Tensor) -> Tensor:
    """The values as floats in [0, 1]."""
    if image.is_floating_point():
        low, high = image.aminmax()
        if not -_OVERSHOOT <= float(low) <= float(high) <= 1 + _OVERSHOOT:
            raise UserError(
                f"the pixels of an image reach from {float(low):.3g} to {float(high):.3g}; floats must be in [0, 1]: "
                "divide by 255, and give no normalised ones"
            )
        return image.float()
    if image.dtype == torch.bool:
        return image.float()
    if image.dtype not in (torch.uint8, torch.uint16):
        raise UserError(f"an image tensor must be uint8, uint16, bool, or float in [0, 1], not {image.dtype}")
    return image.float() / (255 if image.dtype == torch.uint8 else 65535)
