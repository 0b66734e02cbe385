"""Any image as upright 8-bit RGB, and resized as PyTorch resizes: the same pixels as tightbox has."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import ExifTags, Image, UnidentifiedImageError

from tightbox_runtime.errors import UserError

# Pillow hands these to an interpreter of programs, or to whatever handler another library has registered.
_UNSAFE = frozenset({"EPS", "WMF", "GRIB", "BUFR", "HDF5"})
# How to turn the stored pixels upright, by the value of the EXIF orientation tag.
_TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


def open_image(path: Path) -> NDArray[np.uint8]:
    """(H, W, 3) RGB of an image file, turned upright as its EXIF orientation says.

    Raises:
        UserError: if the file is missing, cut off or no image.
    """
    try:
        with Image.open(path) as image:
            if image.format in _UNSAFE:
                raise UnidentifiedImageError
            image.load()
            turn = _TURNS.get(int(image.getexif().get(ExifTags.Base.Orientation) or 1))
            rgb = to_rgb(image)
        return np.asarray(rgb if turn is None else rgb.transpose(turn))
    except FileNotFoundError as error:
        raise _unreadable(path, "there is no such file") from error
    except UnidentifiedImageError as error:
        raise _unreadable(path, "it is not an image in a format that Pillow knows") from error
    except Exception as error:  # Pillow's decoders raise whatever their parsers met
        raise _unreadable(path, str(error) or type(error).__name__) from error


def _unreadable(path: Path, reason: str) -> UserError:
    return UserError(f"cannot read {path}: {reason}; replace the file or leave it out")


def to_rgb(image: Image.Image) -> Image.Image:
    """Any Pillow image as 8-bit RGB: transparency on white, 16 bits by their upper 8, floats from min..max."""
    if image.mode == "F" or image.mode.startswith("I"):
        return Image.fromarray(_to_bytes(np.asarray(image))).convert("RGB")
    if image.has_transparency_data:
        rgba = image.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", rgba.size, "white"), rgba).convert("RGB")
    return image.convert("RGB")


def resize(image: NDArray[np.uint8], height: int, width: int) -> NDArray[np.float32]:
    """(3, height, width) in [0, 1] of an (H, W, 3) image, linearly interpolated with antialiasing.

    Pillow weighs the pixels under a triangle as wide as the reduction, which is what PyTorch calls antialiasing; on
    single channels of floats neither rounds.
    """
    channels = (image[..., i].astype(np.float32) / 255 for i in range(3))
    if image.shape[:2] == (height, width):
        return np.stack(list(channels))
    resized = [Image.fromarray(channel).resize((width, height), Image.Resampling.BILINEAR) for channel in channels]
    return np.stack([np.asarray(channel) for channel in resized])


def _to_bytes(values: NDArray[Any]) -> NDArray[np.uint8]:
    """(H, W) grey of 16 bits, 32 bits or floats as 8 bits, without Pillow's clipping at 255."""
    if values.dtype.kind == "f":
        finite = values[np.isfinite(values)].astype(np.float64)
        low, high = (finite.min(), finite.max()) if finite.size else (0.0, 0.0)
        known = np.nan_to_num(values.astype(np.float64), nan=low, posinf=high, neginf=low)
        return ((known - low) * (255 / (high - low) if high > low else 0)).round().astype(np.uint8)
    if values.dtype.itemsize == 2:
        return (values >> 8).astype(np.uint8)
    positive = values.astype(np.int64) - min(int(values.min()), 0)
    bits = int(positive.max()).bit_length()
    # A 32-bit image usually holds 8-bit or 16-bit values; only beyond those does the shift follow the content.
    return (positive >> (0 if bits <= 8 else max(8, bits - 8))).astype(np.uint8)
