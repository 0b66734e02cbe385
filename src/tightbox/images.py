"""Opening any image a person may have as upright 8-bit RGB."""

import io
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import ExifTags, Image, UnidentifiedImageError

from tightbox.errors import UserError
from tightbox.files import atomic_path

IMAGE_SUFFIXES = frozenset({".jpg", ".jpeg", ".png", ".bmp", ".webp", ".tif", ".tiff", ".gif", ".avif", ".jp2"})
# Pillow hands these to an interpreter of programs, or to whatever handler another library has registered.
_UNSAFE = frozenset({"EPS", "WMF", "GRIB", "BUFR", "HDF5"})

_JPEG_SIDE = 65_500  # pixels, as many as JPEG's library writes

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


class UnreadableImage(UserError):
    """An image that is missing, cut off, or in no known format; `reason` says which."""

    def __init__(self, path: Path, reason: str) -> None:
        super().__init__(f"cannot read {path}: {reason}; replace the file or leave it out")
        self.reason = reason


class ImageHeader(NamedTuple):
    """What an image's header says: upright (width, height), Pillow's mode, and the EXIF orientation (1 is upright)."""

    size: tuple[int, int]
    mode: str
    orientation: int


def read_header(path: Path) -> ImageHeader:
    """The header of an image, without decoding it.

    Raises:
        UnreadableImage: if there is no such file or it is no image.
    """
    with _reading(path), Image.open(path) as image:
        # A PNG may keep its EXIF behind the pixels, and asking for it would decode them.
        hidden = image.format == "PNG" and "exif" not in image.info
        orientation = 1 if hidden else _orientation(image)
        width, height = image.size
        # Pillow reports, and loads, a TIFF already turned.
        turned = orientation >= 5 and image.format != "TIFF"
        return ImageHeader((height, width) if turned else (width, height), image.mode, orientation)


def image_size(path: Path) -> tuple[int, int]:
    """(width, height) of an image once upright, from its header alone.

    Raises:
        UnreadableImage: if there is no such file or it is no image.
    """
    return read_header(path).size


def open_image(path: Path, size: tuple[int, int] | None = None) -> Image.Image:
    """The image as RGB, fully loaded and turned upright as its EXIF orientation says.

    Args:
        path: a file in any format Pillow reads.
        size: (width, height) that the annotation gives. If only the image as stored has this size, its boxes were
            drawn on the stored pixels, and the image is left unturned.

    Raises:
        UnreadableImage: if the file is missing, cut off or no image.
        UserError: if the image has another size than `size`, turned or not.
    """
    with _reading(path), Image.open(path) as image:
        if image.format in _UNSAFE:
            raise UnidentifiedImageError
        stored, upright = _stored_and_upright(image)
    if size is None or size == upright.size:
        return upright
    if size == stored.size:
        return stored
    differs = f"the annotation says {size[0]}x{size[1]} but the image {path} is {upright.width}x{upright.height}"
    advice = "correct the width and height in the annotation, or restore the image that the boxes were drawn on"
    raise UserError(f"{differs}; {advice}")


def decode(image: Image.Image) -> Image.Image:
    """An image that Pillow has opened as RGB, fully loaded and turned upright as its EXIF orientation says.

    Raises:
        Exception: whatever Pillow's decoders raise if it is cut off or damaged.
    """
    return _stored_and_upright(image)[1]


def _stored_and_upright(image: Image.Image) -> tuple[Image.Image, Image.Image]:
    image.load()
    turn = _TURNS.get(_orientation(image))
    stored = to_rgb(image)
    return stored, stored if turn is None else stored.transpose(turn)


def to_rgb(image: Image.Image) -> Image.Image:
    """Any Pillow image as 8-bit RGB: transparency on white, 16 bits by their upper 8, floats from min..max."""
    if image.mode == "F" or image.mode.startswith("I"):
        return Image.fromarray(_to_bytes(np.asarray(image))).convert("RGB")
    if image.has_transparency_data:
        rgba = image.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", rgba.size, "white"), rgba).convert("RGB")
    return image.convert("RGB")


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


def _orientation(image: Image.Image) -> int:
    return int(image.getexif().get(ExifTags.Base.Orientation) or 1)


@contextmanager
def _reading(path: Path) -> Iterator[None]:
    try:
        yield
    except FileNotFoundError as error:
        raise UnreadableImage(path, "there is no such file") from error
    except UnidentifiedImageError as error:
        raise UnreadableImage(path, "it is not an image in a format that Pillow knows") from error
    except Image.DecompressionBombError as error:
        raise UnreadableImage(path, f"it has too many pixels to open safely ({error})") from error
    except Exception as error:  # Pillow's decoders raise whatever their parsers met
        raise UnreadableImage(path, str(error) or type(error).__name__) from error


def write_image(path: Path, image: Image.Image) -> None:
    """The image as PNG where `path` ends so, else as JPEG, which has to be smaller if it is huge; whole or not at all.

    Raises:
        UserError: if the disk refuses.
    """
    whole = io.BytesIO()  # Pillow, writing itself, takes no notice of a disk that takes half of a file
    if path.suffix == ".png":
        image.save(whole, format="PNG")
    else:
        if max(image.size) > _JPEG_SIDE:
            image = image.copy()
            image.thumbnail((_JPEG_SIDE, _JPEG_SIDE))
        image.save(whole, format="JPEG", quality=92)
    with atomic_path(path) as temporary:
        temporary.write_bytes(whole.getbuffer())
