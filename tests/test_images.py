from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tightbox.errors import UserError
from tightbox.images import UnreadableImage, image_size, open_image, read_header, to_rgb


def corners(orientation: int, path: Path) -> Path:
    """A 3x2 PNG whose stored pixels are red first, with the EXIF orientation given."""
    pixels = np.zeros((2, 3, 3), np.uint8)
    pixels[0, 0] = (255, 0, 0)
    exif = Image.Exif()
    exif[0x0112] = orientation
    Image.fromarray(pixels).save(path, exif=exif)
    return path


@pytest.mark.parametrize(
    ("orientation", "red", "size"),  # where the stored top left pixel (x, y) belongs, by the EXIF standard
    [
        (1, (0, 0), (3, 2)),  # row 0 is the top, column 0 the left
        (2, (2, 0), (3, 2)),  # top, right
        (3, (2, 1), (3, 2)),  # bottom, right
        (4, (0, 1), (3, 2)),  # bottom, left
        (5, (0, 0), (2, 3)),  # left, top
        (6, (1, 0), (2, 3)),  # right, top
        (7, (1, 2), (2, 3)),  # right, bottom
        (8, (0, 2), (2, 3)),  # left, bottom
    ],
)
@pytest.mark.parametrize("suffix", ["png", "tif"])
def test_exif_orientation_is_applied(
    tmp_path: Path, orientation: int, red: tuple[int, int], size: tuple[int, int], suffix: str
) -> None:
    path = corners(orientation, tmp_path / f"a.{suffix}")
    image = open_image(path)
    assert image.size == size
    assert image.getpixel(red) == (255, 0, 0)
    assert image_size(path) == size
    assert open_image(path, size).size == size


def test_orientation_is_ignored_when_boxes_were_drawn_on_the_stored_pixels(tmp_path: Path) -> None:
    image = open_image(corners(6, tmp_path / "a.png"), (3, 2))
    assert image.size == (3, 2)
    assert image.getpixel((0, 0)) == (255, 0, 0)


def test_another_size_than_annotated_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"annotation says 7x5 but the image .*a\.png is 2x3; correct"):
        open_image(corners(6, tmp_path / "a.png"), (7, 5))
    with pytest.raises(UserError, match=r"says 2x3 but .* is 3x2"):  # no orientation allows the turned size
        open_image(corners(1, tmp_path / "b.png"), (2, 3))


@pytest.mark.parametrize("suffix", ["png", "tif"])
def test_16_bit_grey_keeps_its_range(tmp_path: Path, suffix: str) -> None:
    Image.fromarray(np.array([[0, 256, 0x1234, 0xFFFF]], np.uint16)).save(tmp_path / f"a.{suffix}")
    image = np.asarray(open_image(tmp_path / f"a.{suffix}"))
    assert image[0, :, 0].tolist() == [0, 1, 0x12, 255]
    assert (image == image[..., :1]).all()


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ([0, 7, 255], [0, 7, 255]),  # 8-bit values in 32 bits stay
        ([0, 4095, 65535], [0, 15, 255]),  # 16-bit values: >> 8
        ([0, 256, 300], [0, 1, 1]),  # 16-bit values that are dark stay dark
        ([0, 1 << 19, (1 << 20) - 1], [0, 128, 255]),  # 20 bits: >> 12
        ([-256, 0, 65279], [0, 1, 255]),  # signed: shifted to start at 0, then >> 8
    ],
)
def test_32_bit_grey(values: list[int], expected: list[int]) -> None:
    rgb = to_rgb(Image.fromarray(np.array([values], np.int32)))
    assert np.asarray(rgb)[0, :, 0].tolist() == expected


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ([-1.0, 0.0, 1.0], [0, 128, 255]),  # 127.5 rounds to even
        ([3.0, 3.0, 3.0], [0, 0, 0]),  # constant: no range to stretch
        ([0.0, np.nan, 1.0], [0, 0, 255]),  # nan as the darkest
        ([np.inf, 0.0, 2.0], [255, 0, 255]),  # infinity as the brightest finite
        ([np.nan, np.nan, np.nan], [0, 0, 0]),  # nothing known
    ],
)
def test_float_tiff_is_stretched(tmp_path: Path, values: list[float], expected: list[int]) -> None:
    Image.fromarray(np.array([values], np.float32)).save(tmp_path / "f.tif")
    assert np.asarray(open_image(tmp_path / "f.tif"))[0, :, 0].tolist() == expected


@pytest.mark.parametrize(
    ("image", "expected"),
    [
        (Image.new("RGBA", (1, 1), (255, 0, 0, 0)), (255, 255, 255)),  # transparent shows white
        (Image.new("RGBA", (1, 1), (255, 0, 0, 255)), (255, 0, 0)),  # opaque
        (Image.new("RGBA", (1, 1), (0, 0, 0, 51)), (204, 204, 204)),  # a fifth of black over white: 255 * 4/5
        (Image.new("LA", (1, 1), (0, 51)), (204, 204, 204)),  # the same in grey
        (Image.new("L", (1, 1), 9), (9, 9, 9)),  # grey
        (Image.new("1", (1, 1), 1), (255, 255, 255)),  # one bit
        (Image.new("CMYK", (1, 1), (0, 255, 255, 0)), (255, 0, 0)),  # magenta and yellow ink make red
        (Image.new("RGB", (1, 1), (1, 2, 3)).convert("P", palette=Image.Palette.ADAPTIVE), (1, 2, 3)),  # palette
    ],
)
def test_modes_become_rgb(image: Image.Image, expected: tuple[int, int, int]) -> None:
    rgb = to_rgb(image)
    assert rgb.mode == "RGB"
    assert rgb.getpixel((0, 0)) == expected


def test_palette_with_a_transparent_entry_shows_white(tmp_path: Path) -> None:
    image = Image.new("P", (2, 1), 0)
    image.putpalette([255, 0, 0, 0, 0, 255])
    image.putpixel((1, 0), 1)
    image.save(tmp_path / "p.png", transparency=0)
    opened = open_image(tmp_path / "p.png")
    assert [opened.getpixel((x, 0)) for x in (0, 1)] == [(255, 255, 255), (0, 0, 255)]


def test_truncated_image_names_file_and_reason(tmp_path: Path) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8)
    Image.fromarray(noise).save(tmp_path / "whole.jpg")
    (tmp_path / "cut.jpg").write_bytes((tmp_path / "whole.jpg").read_bytes()[:2000])
    with pytest.raises(UnreadableImage, match=r"cut\.jpg: .*truncated.*; replace"):
        open_image(tmp_path / "cut.jpg")


@pytest.mark.parametrize("content", [b"", b"not an image", b"\x89PNG\r\n\x1a\n\x00\x00"])
def test_no_image(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "a.png").write_bytes(content)
    for function in (open_image, image_size):
        with pytest.raises(UnreadableImage, match=r"cannot read .*a\.png"):
            function(tmp_path / "a.png")


def test_missing_image(tmp_path: Path) -> None:
    with pytest.raises(UnreadableImage, match="there is no such file") as caught:
        open_image(tmp_path / "a.png")
    assert caught.value.reason == "there is no such file"


def test_decompression_bomb(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    Image.new("L", (10, 10)).save(tmp_path / "a.png")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 10)
    with pytest.raises(UnreadableImage, match="too many pixels"):
        open_image(tmp_path / "a.png")


def test_header_needs_no_pixels(tmp_path: Path) -> None:
    corners(6, tmp_path / "a.png")
    # The EXIF lies before the pixels, so everything after the IDAT chunk's start may be missing.
    content = (tmp_path / "a.png").read_bytes()
    (tmp_path / "a.png").write_bytes(content[: content.index(b"IDAT") + 6])
    assert read_header(tmp_path / "a.png") == ((2, 3), "RGB", 6)
