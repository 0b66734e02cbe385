from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.helpers.data import WIDER_FACES, wider_face
from tightbox.data.doctor import examine
from tightbox.data.layout import read_data, splits
from tightbox.errors import UserError


def test_faces_of_each_kind(tmp_path: Path) -> None:
    data = read_data(wider_face(tmp_path), "train")
    assert (data.class_names, data.layout) == (("face",), "WIDER FACE (wider_face_train_bbx_gt.txt)")
    first, empty, last = data.records
    assert first.path == tmp_path / "WIDER_train" / "images" / "0--Parade" / "a.jpg"
    assert [record.image_id for record in data.records] == [1, 2, 3]
    assert (first.width, first.height) == (40, 30)  # from the image
    assert first.boxes.tolist() == [[4, 3, 16, 17], [20, 10, 25, 16]]  # the face without height is gone
    assert first.crowd.tolist() == [False, True]  # the second is marked invalid
    assert empty.boxes.shape == (0, 4)
    assert last.boxes.tolist() == [[30, 20, 40, 25]]  # clipped at the border


def test_the_folder_is_recognised(tmp_path: Path) -> None:
    wider_face(tmp_path, val="1--Handshaking/v.jpg\n1\n1 2 3 4 0 0 0 0 0 0\n")
    assert splits(tmp_path) == ["train", "val"]
    assert read_data(tmp_path, "val").records[0].boxes.tolist() == [[1, 2, 4, 6]]
    assert len(read_data(tmp_path, "train").records) == 3


def test_a_missing_row_of_zeros_is_no_error(tmp_path: Path) -> None:
    text = "\ufeff0--Parade/a.jpg\r\n0\r\n\r\n0--Parade/b.jpg\r\n1\r\n1 2 3 4 0 0 0 0 0 0\r\n"
    records = read_data(wider_face(tmp_path, text), "train").records
    assert [len(record.boxes) for record in records] == [0, 1]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("0--P/a.jpg\n2\n1 2 3 4 0 0 0 0 0 0\n", r"gt\.txt:2: 0--P/a\.jpg should have 2 faces, but has 1 rows; .*cut"),
        ("0--P/a.jpg\n1\n1 2 3 4 0 0 0 0 0 0\n" * 2 + "1 2 3 4 0 0 0 0 0 0", r"gt\.txt:5: .* 1 faces, but has 2 rows"),
        ("0--P/a.jpg\n0\n1 2 3 4 0 0 0 0 0 0\n", r"gt\.txt:2: .* should have 0 faces, but has 1 rows"),
        ("0--P/a.jpg\n1\n1 2 3 4 0 0 0 0\n", r"gt\.txt:3: '1 2 3 4 0 0 0 0' is not a row of 10 numbers; correct"),
        ("0--P/a.jpg\n1\n1 2 nan 4 0 0 0 0 0 0\n", r"gt\.txt:3: '1 2 nan .*' is not a row of 10 numbers"),
        ("0--P/a.jpg\n1\n1 2 x 4 0 0 0 0 0 0\n", r"gt\.txt:3: '1 2 x"),
        ("0--P/a.jpg\n", r"gt\.txt:1: no number of faces follows 0--P/a\.jpg; .*cut off"),
        ("0--P/a.jpg\n-1\n", r"gt\.txt:1: no number of faces"),
        ("0--P/b.jpg\n0--P/a.jpg\n0\n", r"gt\.txt:1: no number of faces follows 0--P/b\.jpg"),
        ("1\n1 2 3 4 0 0 0 0 0 0\n0--P/a.jpg\n0\n", r"gt\.txt:1: '1' comes before the first image's name"),
        ("\n", r"train split of .*, WIDER FACE .*, has no images"),
    ],
)
def test_what_makes_no_sense_is_said_with_file_and_line(tmp_path: Path, text: str, message: str) -> None:
    wider_face(tmp_path, text)
    (tmp_path / "WIDER_train" / "images").mkdir(parents=True, exist_ok=True)
    with pytest.raises(UserError, match=message):
        read_data(tmp_path, "train")


def test_missing_images(tmp_path: Path) -> None:
    wider_face(tmp_path)
    (tmp_path / "WIDER_train" / "images" / "0--Parade" / "a.jpg").unlink()
    with pytest.raises(UserError, match=r"cannot read .*0--Parade/a\.jpg: there is no such file"):
        read_data(tmp_path, "train")
    (tmp_path / "WIDER_train").rename(tmp_path / "elsewhere")
    with pytest.raises(UserError, match=r"needs the folder of images .*WIDER_train/images, .* unpack WIDER_train\.zip"):
        read_data(tmp_path, "train")
    with pytest.raises(UserError, match="has no split 'val'; it has train"):
        read_data(tmp_path, "val")


def test_the_doctor_tells_of_invalid_empty_and_broken_faces(tmp_path: Path) -> None:
    broken = "2--Riot/c.jpg\n2\n1 2 3 4 0 0 0 0 0 0\n3--Riot/d.jpg\n1\n1 2\n4--Riot/e.jpg\n1\n1 2 3 4 0 0 0 0 0 0\n"
    report = examine(wider_face(tmp_path, WIDER_FACES + broken))
    messages = {finding.check: finding.message for finding in report.findings}
    assert messages["invalid-faces"] == "1 of 5 faces of the train split are marked invalid"
    assert "4 wide and 0 high, so it is left out" in messages["box-degenerate"]
    lists = [finding.message for finding in report.findings if finding.check == "face-list"]
    assert [message.split("gt.txt:")[1][:3] for message in lists] == ["13:", "17:"]  # one each, and e.jpg is read
    assert (report.splits[0].images, report.splits[0].boxes, report.splits[0].crowd) == (6, 5, 1)


row = st.tuples(*[st.integers(0, 15)] * 4, *[st.just(0)] * 3, st.integers(0, 1), *[st.just(0)] * 2)


@given(st.lists(st.lists(row, max_size=4), min_size=1, max_size=5))
def test_any_healthy_list_is_read_as_written(tmp_path_factory: pytest.TempPathFactory, images: list[Any]) -> None:
    text = ""
    for number, rows in enumerate(images):
        lines = rows or [(0,) * 10]
        text += f"0--Parade/{number}.jpg\n{len(rows)}\n" + "".join(f"{' '.join(map(str, r))} \n" for r in lines)
    data = read_data(wider_face(tmp_path_factory.mktemp("wider"), text), "train")
    solid = [[r for r in rows if r[2] and r[3]] for rows in images]
    found = [list(zip(r.boxes.tolist(), r.crowd.tolist(), strict=True)) for r in data.records]
    assert found == [[([x, y, x + w, y + h], bool(rest[3])) for x, y, w, h, *rest in rows] for rows in solid]
