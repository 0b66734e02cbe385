from __future__ import annotations

import base64
import io
import json
from functools import partial
from pathlib import Path

import pytest
from PIL import Image

from tests.helpers.data import plain_image
from tightbox.diagnosis.crops import MAX_SIZE, crop_images, find_images, view_of
from tightbox.diagnosis.numbers import Card, CardBox, CardImage
from tightbox.errors import UserError

GROUND_TRUTH = {"images": [{"id": 1, "file_name": "a.jpg"}, {"id": 2, "file_name": "b.jpg"}]}


def card(box: tuple[float, float, float, float], width: float | None = 640, height: float | None = 480) -> Card:
    return Card("miss", CardImage(1, "a.jpg", width, height), "cat", "small", 1.0, CardBox(box, "cat"), None, None, "")


image = partial(plain_image, width=640, height=480, color=(10, 200, 30))


@pytest.mark.parametrize(
    ("place", "annotations"),
    [
        ("a.jpg", "val.json"),
        ("images/a.jpg", "val.json"),
        ("images/val/a.jpg", "val.json"),
        ("val2017/a.jpg", "annotations/instances_val2017.json"),
        ("images/a.jpg", "annotations/val.json"),
    ],
)
def test_the_usual_folders(tmp_path: Path, place: str, annotations: str) -> None:
    image(tmp_path / place)
    found = find_images(GROUND_TRUTH, tmp_path / annotations, None)
    assert found[1] == tmp_path / place
    assert found[1].is_file()


def test_images_elsewhere(tmp_path: Path) -> None:
    assert find_images(GROUND_TRUTH, tmp_path / "val.json", None) == {}
    image(tmp_path / "else" / "b.jpg")
    assert find_images(GROUND_TRUTH, tmp_path / "val.json", tmp_path / "else")[2].is_file()
    with pytest.raises(UserError, match=r"none of the images of .* such as a\.jpg"):
        find_images(GROUND_TRUTH, tmp_path / "val.json", tmp_path)


@pytest.mark.parametrize(
    ("box", "expected"),
    [
        # A margin of 0.35 each way makes 200 by 100 into 340 by 170, and four to three makes it 255 high.
        ((200, 200, 200, 100), (130, 122.5, 340, 255)),
        # At the corner it is moved inside.
        ((0, 0, 200, 100), (0, 0, 340, 255)),
        # A point is shown with 48 pixels around.
        ((300, 300, 0, 0), (268, 276, 64, 48)),
        # More than the image there is not.
        ((0, 0, 640, 480), (0, 0, 640, 480)),
    ],
)
def test_view(box: tuple[float, float, float, float], expected: tuple[float, float, float, float]) -> None:
    assert view_of(card(box)) == pytest.approx(expected)


def test_a_crop_shows_its_part(tmp_path: Path) -> None:
    image = Image.new("RGB", (640, 480), "white")
    image.paste("red", (200, 200, 400, 300))
    image.save(tmp_path / "a.png")
    crop = crop_images([card((200, 200, 200, 100))], {1: tmp_path / "a.png"})[0]
    assert crop.source is not None
    shown = Image.open(io.BytesIO(base64.b64decode(crop.source.split(",")[1])))
    assert shown.format == "JPEG"
    assert shown.size == (340, 255)
    red, white = shown.getpixel((170, 127)), shown.getpixel((10, 10))
    assert isinstance(red, tuple)
    assert isinstance(white, tuple)
    assert red[0] > 200
    assert red[1] < 60
    assert min(white) > 240


def test_large_parts_are_reduced(tmp_path: Path) -> None:
    big = image(tmp_path / "a.jpg", width=4000, height=3000)
    crop = crop_images([card((0, 0, 4000, 3000), 4000, 3000)], {1: big})[0]
    assert crop.source is not None
    assert Image.open(io.BytesIO(base64.b64decode(crop.source.split(",")[1]))).size == MAX_SIZE


def test_unavailable_images_are_outlines(tmp_path: Path) -> None:
    (tmp_path / "cut.jpg").write_bytes(image(tmp_path / "a.jpg").read_bytes()[:100])
    other_size = image(tmp_path / "small.jpg", width=10, height=10)
    for found in ({}, {1: tmp_path / "no.jpg"}, {1: tmp_path / "cut.jpg"}, {1: other_size}):
        assert crop_images([card((0, 0, 100, 100))], found)[0].source is None


def test_sizes_may_be_unknown(tmp_path: Path) -> None:
    image(tmp_path / "a.jpg")
    crop = crop_images([card((600, 400, 100, 100), None, None)], {1: tmp_path / "a.jpg"})[0]
    assert crop.source is not None
    json.dumps(crop.view)


def test_progress_counts_every_card(tmp_path: Path) -> None:
    steps: list[tuple[int, int]] = []
    crop_images([card((0, 0, 9, 9))] * 3, {}, lambda done, total: steps.append((done, total)))
    assert steps == [(1, 3), (2, 3), (3, 3)]
