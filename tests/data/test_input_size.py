"""The size of images that a data set's objects need."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.helpers.data import plain_image
from tightbox.data.input_size import NEEDED, SIDES, input_size, input_size_of
from tightbox.data.records import DetectionData, ImageRecord


@pytest.mark.parametrize(
    ("side", "longest", "expected"),
    [
        (64, 640, 320),  # 64 · 320/640 = 32 px: just enough
        (63, 640, 384),  # 31.5 px at 320, 37.8 at 384
        (40, 640, 512),  # 20 at 320, 28 at 448, 32 at 512
        (8, 640, 640),  # 8 px at 640 is the most there is
        (8, 4000, 640),  # however large the images are
        (8, 500, 448),  # 512 px would only repeat pixels
        (8, 200, 320),
    ],
)
def test_the_first_size_at_which_the_median_object_has_32_pixels(side: float, longest: float, expected: int) -> None:
    boxes = np.array([[0, 0, 1, 1], [5, 5, 5 + side, 5 + side], [0, 0, 190, 190]], dtype=np.float64)
    images = np.full((3, 2), (longest, longest / 2))
    found = input_size(boxes, images)
    assert found.long_side == expected
    assert found.chosen == pytest.approx(side * expected / longest)
    assert found.at_first == pytest.approx(side * 320 / longest)


def test_the_side_of_an_oblong_box_is_the_root_of_its_area() -> None:
    # 20 · 80 = 40², and 40 · 320 / 400 = 32.
    assert input_size(np.array([[0.0, 0, 20, 80]]), np.array([[300.0, 400]])).long_side == 320


def test_sentences_say_when_it_is_not_enough() -> None:
    assert str(input_size(np.array([[0.0, 0, 50, 50]]), np.array([[500.0, 400]]))) == (
        "the median object is 32 px wide in images of 320 px"
    )
    assert str(input_size(np.array([[0.0, 0, 10, 10]]), np.array([[400.0, 400]]))) == (
        "the median object is 8 px wide in images of 320 px and 10 px in those of 384 px, "
        "and larger ones are not there or take long"
    )


def test_without_objects_images_stay_small() -> None:
    assert input_size(np.empty((0, 4)), np.empty((0, 2))).long_side == 320


@given(st.lists(st.tuples(st.floats(0, 4000), st.floats(0, 4000), st.integers(1, 4000)), min_size=1, max_size=9))
def test_no_smaller_size_would_do(rows: list[tuple[float, float, int]]) -> None:
    boxes = np.array([(0, 0, width, height) for width, height, _ in rows])
    found = input_size(boxes, np.array([(side, side) for _, _, side in rows], dtype=np.float64))
    assert found.long_side in SIDES
    for side in SIDES[: SIDES.index(found.long_side)]:
        assert found.at_first * side / SIDES[0] < NEEDED


def test_crowds_do_not_count(tmp_path: Path) -> None:
    plain_image(tmp_path / "0.png", width=640, height=640)
    boxes = np.array([[0, 0, 30, 30], [0, 0, 600, 600]], dtype=np.float32)
    record = ImageRecord(
        path=tmp_path / "0.png",
        image_id=1,
        width=640,
        height=640,
        boxes=boxes,
        labels=np.array([0, 0]),
        crowd=np.array([False, True]),
        areas=np.array([900, 360_000], dtype=np.float32),
    )
    data = DetectionData("made here", tmp_path, "train", ("cat",), (1,), (record, record))
    assert input_size_of(data).at_first == pytest.approx(15)
