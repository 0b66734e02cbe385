"""Everything that is one image is the same pixels, however it comes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from tests.helpers.models import same_detections, tiny_model
from tightbox.errors import UserError
from tightbox.models.prediction import as_pixels

RGB = np.random.default_rng(0).integers(0, 256, (5, 7, 3), dtype=np.uint8)
GREY = RGB[:, :, 0]
OPAQUE = np.concatenate([RGB, np.full((5, 7, 1), 255, np.uint8)], axis=2)


@pytest.mark.parametrize(
    ("image", "expected"),
    [
        (RGB, RGB),
        (RGB / 255, RGB),
        ((RGB / 255).astype(np.float32), RGB),
        (RGB.astype(np.uint16) * 257, RGB),  # 65535 = 257 * 255
        (RGB.astype(">u2") * 257, RGB),  # the bytes in the other order
        (RGB[::-1, ::-1], RGB[::-1, ::-1]),  # negative strides
        (GREY, np.stack([GREY] * 3, axis=2)),
        (GREY[:, :, None], np.stack([GREY] * 3, axis=2)),
        (GREY > 127, np.stack([(GREY > 127) * 255] * 3, axis=2)),
        (OPAQUE, RGB),
        (OPAQUE * np.array([1, 1, 1, 0], np.uint8), np.full_like(RGB, 255)),  # all transparent: white
        (Image.fromarray(RGB), RGB),
        (Image.fromarray(GREY), np.stack([GREY] * 3, axis=2)),
        (torch.from_numpy(RGB).permute(2, 0, 1), RGB),
        (torch.from_numpy(GREY), np.stack([GREY] * 3, axis=2)),
        (torch.from_numpy(OPAQUE).permute(2, 0, 1), RGB),
    ],
)
def test_any_kind_of_image_is_the_same_pixels(image: Any, expected: np.ndarray) -> None:
    pixels = as_pixels(image)
    assert pixels.dtype == torch.float32
    np.testing.assert_allclose(pixels.permute(1, 2, 0) * 255, expected, atol=1e-4)


@pytest.mark.parametrize("suffix", ["png", "bmp", "tiff", "gif", "webp", "ppm", "tga", "jp2", "avif"])
def test_formats_of_pillow(suffix: str, tmp_path: Path) -> None:
    Image.new("RGB", (16, 12), (255, 0, 0)).save(tmp_path / f"a.{suffix}")
    pixels = as_pixels(tmp_path / f"a.{suffix}")
    assert pixels.shape == (3, 12, 16)
    torch.testing.assert_close(pixels.mean((1, 2)), torch.tensor([1.0, 0.0, 0.0]), atol=0.02, rtol=0)


def test_what_would_run_a_program_is_not_opened(tmp_path: Path) -> None:
    Image.new("RGB", (16, 12)).save(tmp_path / "a.eps")
    with pytest.raises(UserError, match="not an image in a format"):
        as_pixels(tmp_path / "a.eps")


def test_a_bomb_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    Image.new("1", (200, 100)).save(tmp_path / "a.png")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 9_999)  # Pillow raises above twice as many
    with pytest.raises(UserError, match="too many pixels to open safely"):
        as_pixels(tmp_path / "a.png")


@pytest.mark.parametrize("size", [(1, 1), (1, 2000), (20000, 10)])
def test_extreme_shapes(size: tuple[int, int]) -> None:
    found = tiny_model(nms_iou=1.0).predict(Image.new("RGB", size))
    assert (found.boxes[:, 2] <= size[0]).all()
    assert (found.boxes[:, 3] <= size[1]).all()


def test_generators_are_read_as_they_go() -> None:
    model = tiny_model().eval()
    found = list(model.predict(image for image in (RGB, GREY)))
    assert same_detections(found[0], model.predict(RGB))
    assert same_detections(found[1], model.predict(GREY))
