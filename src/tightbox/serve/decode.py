"""From the bytes that a stranger sent to an image, or a refusal; limits are checked before anything is decoded."""

import io
import warnings

from PIL import Image, UnidentifiedImageError
from starlette.exceptions import HTTPException

from tightbox.images import decode

# Only these decoders of Pillow ever see the bytes; a photo with a second view in it (MPO) is opened as a JPEG.
FORMATS = ("JPEG", "PNG", "WEBP", "BMP")
ACCEPTED = "JPEG, PNG, WebP and BMP images are accepted"


class Refusal(HTTPException):
    """A request that is not served, with one sentence that holds nothing of the server's own.

    Args:
        status: of the answer.
        sentence: what is wrong, and what to do.
        retry_after: seconds after which to try again, where that may help.
    """

    def __init__(self, status: int, sentence: str, retry_after: int | None = None) -> None:
        super().__init__(status, sentence, None if retry_after is None else {"Retry-After": str(retry_after)})


def decode_bytes(data: bytes, max_pixels: float) -> Image.Image:
    """The upright RGB image in `data`.

    Args:
        data: a whole file.
        max_pixels: more are refused from the header alone.

    Raises:
        Refusal: 400 if there is nothing, 415 if it is in none of `FORMATS`, 422 if it is too large or damaged.
    """
    if not data:
        raise Refusal(400, "the body is empty; send the bytes of an image")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Pillow's about sizes; the check is below
        try:
            with Image.open(io.BytesIO(data), formats=FORMATS) as image:
                check_size(image.width, image.height, max_pixels)
                return decode(image)
        except Refusal:
            raise
        except UnidentifiedImageError as error:
            raise Refusal(415, f"the body is no image that can be read; {ACCEPTED}") from error
        except Image.DecompressionBombError as error:
            raise too_large(max_pixels) from error
        except Exception as error:  # Pillow's decoders raise whatever their parsers met
            raise Refusal(422, "the image is cut off or damaged; send the whole file") from error


def check_size(width: int, height: int, max_pixels: float) -> None:
    """Refuse images of no or too many pixels.

    Raises:
        Refusal: 422.
    """
    if width < 1 or height < 1:
        raise Refusal(422, "the image has no pixels")
    if width * height > max_pixels:
        raise too_large(max_pixels)


def too_large(max_pixels: float) -> Refusal:
    """The refusal of an image with too many pixels."""
    return Refusal(422, f"the image has more than {max_pixels / 1e6:g} megapixels, the most accepted; send it smaller")
