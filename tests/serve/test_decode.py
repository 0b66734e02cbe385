"""What a stranger may send."""

from __future__ import annotations

import io
import struct
import zlib
from contextlib import suppress

import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from tests.helpers.serving import image_bytes
from tightbox.serve.decode import Refusal, decode_bytes

MOST = 10_000.0


def status(data: bytes, most: float = MOST) -> int:
    with pytest.raises(Refusal) as refusal:
        decode_bytes(data, most)
    return refusal.value.status_code


def png_header(width: int, height: int) -> bytes:
    """A PNG that claims a size and has next to no pixels."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"\0")) + chunk(b"IEND", b"")


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "BMP"])
def test_accepted_formats(kind: str) -> None:
    image = decode_bytes(image_bytes((20, 10), kind), MOST)
    assert image.mode == "RGB"
    assert image.size == (20, 10)


@pytest.mark.parametrize("kind", ["GIF", "TIFF", "PPM", "ICO", "PDF"])
def test_other_formats_are_refused_though_pillow_reads_them(kind: str) -> None:
    assert status(image_bytes((32, 32), kind)) == 415


def test_images_are_turned_upright() -> None:
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned by 90 degrees
    assert decode_bytes(image_bytes((20, 10), "JPEG", exif=exif), MOST).size == (10, 20)


def test_transparency_is_on_white() -> None:
    file = io.BytesIO()
    Image.new("RGBA", (2, 2), (0, 0, 0, 0)).save(file, "PNG")
    assert decode_bytes(file.getvalue(), MOST).getpixel((0, 0)) == (255, 255, 255)


def test_nothing_is_refused() -> None:
    assert status(b"") == 400


def test_the_limit_is_met_exactly() -> None:
    assert decode_bytes(image_bytes((100, 100)), MOST).size == (100, 100)
    assert status(image_bytes((101, 100))) == 422


@pytest.mark.parametrize("size", [(60_000, 60_000), (2**31 - 1, 2**31 - 1), (12_000, 12_000)])
def test_bombs_are_refused_by_their_header(size: tuple[int, int]) -> None:
    # 12,000 squared is where Pillow itself would warn only, and 60,000 squared where it raises.
    assert status(png_header(*size)) == 422


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "BMP"])
def test_cut_off_images_are_refused(kind: str) -> None:
    whole = image_bytes((64, 48), kind)
    most = len(whole) * 3 // 4  # all pixels can be there without the last bytes, which are checksums
    for length in range(1, most, max(1, len(whole) // 50)):
        assert status(whole[:length]) in (415, 422), length


@given(st.binary(max_size=300))
def test_noise_is_refused(data: bytes) -> None:
    assert status(data) in (400, 415, 422)


@given(st.sampled_from(["JPEG", "PNG", "WEBP", "BMP"]), st.integers(0, 10_000), st.binary(min_size=1, max_size=8))
def test_damage_gives_an_image_or_a_refusal(kind: str, at: int, damage: bytes) -> None:
    whole = image_bytes((16, 12), kind)
    at %= len(whole)
    damaged = whole[:at] + damage + whole[at + len(damage) :]
    with suppress(Refusal):  # and nothing else is raised
        image = decode_bytes(damaged, MOST)
        assert image.width * image.height <= MOST
