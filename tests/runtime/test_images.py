from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import EpsImagePlugin, Image
from torchvision.transforms.v2 import functional as TF

from tightbox import images
from tightbox_runtime import UserError
from tightbox_runtime.images import open_image, resize, to_rgb

side = st.integers(1, 90)


@given(side, side, side, side, st.integers(0, 2**32 - 1))
def test_resizes_as_pytorch_does(height: int, width: int, new_height: int, new_width: int, seed: int) -> None:
    image = np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)
    expected = TF.resize(torch.from_numpy(image).permute(2, 0, 1) / 255, [new_height, new_width], antialias=True)
    resized = torch.from_numpy(resize(image, new_height, new_width))
    torch.testing.assert_close(resized, expected, rtol=0, atol=1e-5)  # 1/255 is 0.004


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGB", "RGBA", "CMYK", "I", "I;16", "F"])
def test_colours_are_those_of_the_package(mode: str) -> None:
    values = np.arange(60, dtype=np.uint8).reshape(4, 5, 3) * 4
    wide = (values[..., 0].astype(np.float32) * 1000).astype({"I": np.int32, "I;16": np.uint16}.get(mode, np.float32))
    image = Image.fromarray(wide) if mode in ("I", "I;16", "F") else Image.fromarray(values).convert(mode)
    assert np.array_equal(np.asarray(to_rgb(image)), np.asarray(images.to_rgb(image)))


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("suffix", ["png", "jpg", "tif"])
def test_is_turned_as_by_the_package(tmp_path: Path, orientation: int, suffix: str) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (4, 7, 3), dtype=np.uint8)
    exif = Image.Exif()
    exif[0x0112] = orientation
    path = tmp_path / f"image.{suffix}"
    Image.fromarray(pixels).save(path, exif=exif)
    assert np.array_equal(open_image(path), np.asarray(images.open_image(path)))


def test_unreadable_images_are_one_sentence(tmp_path: Path) -> None:
    (tmp_path / "text.jpg").write_text("no image")
    Image.fromarray(np.zeros((40, 40, 3), np.uint8)).save(tmp_path / "whole.png")
    (tmp_path / "cut.png").write_bytes((tmp_path / "whole.png").read_bytes()[:60])
    for name, reason in (("text.jpg", "not an image"), ("absent.jpg", "there is no such file"), ("cut.png", "cut.png")):
        with pytest.raises(UserError, match=reason):
            open_image(tmp_path / name)


@pytest.mark.parametrize("read", [open_image, images.open_image])
def test_a_program_is_not_run(read: Callable[[Path], object], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An EPS file is one, for which Pillow starts an interpreter."""
    started: list[object] = []
    monkeypatch.setattr(EpsImagePlugin, "Ghostscript", lambda *given, **_: started.append(given))
    path = tmp_path / "image.png"
    path.write_bytes(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EndComments\nshowpage\n")
    with pytest.raises(Exception, match="not an image in a format"):
        read(path)
    assert not started
