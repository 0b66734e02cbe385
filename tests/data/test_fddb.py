from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.helpers.data import fddb
from tightbox.data.faces import ellipse_box, read_ellipses, read_fddb
from tightbox.data.layout import read_data, splits
from tightbox.errors import UserError

# As in the file that is downloaded: two spaces before the last column.
FIRST = """2002/08/11/big/img_591
1
10.500000 6.250000 0.000000 30.000000 20.000000  1
2002/08/26/big/img_265
2
8.000000 4.000000 1.570796 10.000000 15.000000  1
5.000000 5.000000 -1.476417 38.000000 10.000000  1
"""
SECOND = "2003/01/02/big/img_7\n0\n2003/01/02/big/img_8\n1\n3.0 2.0 0.5 9.0 9.0  1\n"


def test_boxes_of_the_ellipses(tmp_path: Path) -> None:
    data = read_fddb(fddb(tmp_path, FIRST))
    assert (data.layout, data.class_names) == ("FDDB (FDDB-fold-01-ellipseList.txt)", ("face",))
    first, second = data.records
    assert first.path == tmp_path / "originalPics" / "2002" / "08" / "11" / "big" / "img_591.jpg"
    assert (first.width, first.height) == (60, 40)
    assert first.boxes.tolist() == [[19.5, 13.75, 40.5, 26.25]]  # 30 ± 10.5, 20 ± 6.25
    assert first.areas.tolist() == pytest.approx([math.pi * 10.5 * 6.25])
    # The major axis of the first is upright: 10 ± 4, 15 ± 8; the other is a circle, whose angle says nothing.
    assert np.allclose(second.boxes, [[6, 7, 14, 23], [33, 5, 43, 15]], atol=1e-4)


def test_the_ellipses_are_kept(tmp_path: Path) -> None:
    first, second, third, fourth = read_ellipses(fddb(tmp_path, FIRST, SECOND))
    assert first.tolist() == [[10.5, 6.25, 0, 30, 20]]
    assert second.shape == (2, 5)
    assert third.shape == (0, 5)
    assert fourth.tolist() == [[3, 2, 0.5, 9, 9]]
    assert len(read_ellipses(tmp_path, "fold-02")) == 2


@given(st.floats(0.1, 50), st.floats(0.1, 50), st.floats(-7, 7), st.floats(-9, 9), st.floats(-9, 9))
def test_the_box_touches_the_ellipse_on_all_sides(a: float, b: float, angle: float, x: float, y: float) -> None:
    # The ellipse's points for many parameters: the extremes of N evenly spaced ones fall short of the true ones by at
    # most 1 - cos(π/N), here 1e-6 of a radius.
    t = np.linspace(0, 2 * math.pi, 2222)
    u, v = a * np.cos(t), b * np.sin(t)
    xs, ys = x + u * math.cos(angle) - v * math.sin(angle), y + u * math.sin(angle) + v * math.cos(angle)
    expected = (xs.min(), ys.min(), xs.max(), ys.max())
    assert ellipse_box(a, b, angle, x, y) == pytest.approx(expected, abs=2e-4)


def test_the_folder_is_recognised_and_has_folds(tmp_path: Path) -> None:
    fddb(tmp_path, FIRST, SECOND)
    assert splits(tmp_path) == ["val", "test"]
    for split in ("val", "test"):
        data = read_data(tmp_path, split)
        assert [record.path.stem for record in data.records] == ["img_591", "img_265", "img_7", "img_8"]
        assert [record.image_id for record in data.records] == [1, 2, 3, 4]
    assert read_data(tmp_path, "test").layout == "FDDB (2 folds)"
    assert [record.path.stem for record in read_data(tmp_path, "fold-02").records] == ["img_7", "img_8"]
    with pytest.raises(UserError, match="has no split 'fold-03'; it has val, test"):
        read_data(tmp_path, "fold-03")
    with pytest.raises(UserError, match="has no FDDB split 'train'"):
        read_ellipses(tmp_path, "train")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (FIRST.replace("2\n8.0", "3\n8.0"), r"fold-01-ellipseList\.txt:5: 2002/08/26/big/img_265 should have 3 faces"),
        (FIRST[:-20], r"ellipseList\.txt:7: '5\.0.* 38\.' is not a row of 6 numbers"),
        (FIRST.replace("10.500000", "inf"), r"ellipseList\.txt:3: 'inf .*' is not a row of 6 numbers"),
        (FIRST.replace("\n1\n", "\none\n"), r"ellipseList\.txt:1: no number of faces follows 2002/08/11/big/img_591"),
        (FIRST[: FIRST.index("2002/08/26")], r"fold-01\.txt:2: 2002/08/26/big/img_265 is not what FDDB-fold-01-ell"),
        (FIRST + SECOND, r"fold-01\.txt:3: the end is not what FDDB-fold-01-ellipseList\.txt has there"),
    ],
)
def test_what_makes_no_sense_is_said_with_file_and_line(tmp_path: Path, text: str, message: str) -> None:
    fddb(tmp_path, FIRST)
    (tmp_path / "FDDB-folds" / "FDDB-fold-01-ellipseList.txt").write_text(text)
    for read in (read_fddb, read_ellipses):
        with pytest.raises(UserError, match=message):
            read(tmp_path)


def test_a_list_without_its_names_is_enough(tmp_path: Path) -> None:
    fddb(tmp_path, FIRST)
    (tmp_path / "FDDB-folds" / "FDDB-fold-01.txt").unlink()
    assert len(read_fddb(tmp_path).records) == 2


def test_missing_images(tmp_path: Path) -> None:
    fddb(tmp_path, FIRST)
    (tmp_path / "originalPics").rename(tmp_path / "elsewhere")
    with pytest.raises(UserError, match=r"needs the folder of images .*originalPics, .* unpack originalPics\.tar\.gz"):
        read_fddb(tmp_path)
