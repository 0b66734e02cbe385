from __future__ import annotations

from functools import partial
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.helpers.data import plain_image
from tightbox.data.layout import read_data
from tightbox.data.yolo import parse_line
from tightbox.errors import UserError

image = partial(plain_image, width=40, height=20)


def text(path: Path, content: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(content)


def usual(root: Path, labels: str = "1 0.5 0.5 0.25 0.5\n", names: str | None = "names: [cat, dog]\n") -> Path:
    image(root / "images" / "train" / "b.png")
    image(root / "images" / "train" / "a.JPG")
    text(root / "labels" / "train" / "b.txt", labels)
    if names is not None:
        text(root / "data.yaml", names)
    return root


def test_reads_boxes_in_pixels(tmp_path: Path) -> None:
    data = read_data(usual(tmp_path), "train")
    assert (data.class_names, data.category_ids) == (("cat", "dog"), (0, 1))
    first, second = data.records  # by path; a.JPG has no label file, hence no objects
    assert (first.path.name, first.image_id, len(first.boxes)) == ("a.JPG", 1, 0)
    assert (second.path.name, second.image_id, second.width, second.height) == ("b.png", 2, 40, 20)
    # centre (20, 10), 10 wide, 10 high
    assert second.boxes.tolist() == [[15, 5, 25, 15]]
    assert second.labels.tolist() == [1]


@pytest.mark.parametrize(
    "names",
    [
        "names: [cat, dog]",
        "names: {0: cat, 1: dog}",
        "names:\n  1: dog\n  0: cat\nnc: 2",  # any order of the numbers
    ],
)
def test_names_of_data_yaml(tmp_path: Path, names: str) -> None:
    assert read_data(usual(tmp_path, names=names), "train").class_names == ("cat", "dog")


@pytest.mark.parametrize("place", ["classes.txt", "labels/classes.txt"])
def test_names_of_classes_txt(tmp_path: Path, place: str) -> None:
    usual(tmp_path, names=None)
    text(tmp_path / place, "\ufeffcat\ndog\n\n")  # as Windows editors save it
    assert read_data(tmp_path, "train").class_names == ("cat", "dog")


@pytest.mark.parametrize("names", [None, "names: {1: cat, 2: dog}", "train: images/train", "names:"])
def test_without_names_the_message_says_what_to_write(tmp_path: Path, names: str | None) -> None:
    with pytest.raises(UserError, match=r"write data\.yaml there with a line such as names: \[cat, dog\], or classes"):
        read_data(usual(tmp_path, names=names), "train")


@pytest.mark.parametrize(
    ("entry", "folder"),
    [
        ("train: images/one", "images/one"),
        ("train: ../one/images", "one/images"),  # Roboflow: relative to a folder that is not there
        ("path: /left/over/elsewhere\ntrain: images/one", "images/one"),
        ("path: sub\ntrain: images/one", "sub/images/one"),
        ("train: [images/one]", "images/one"),
        ("train: one", "one"),  # no folder called images: labels lie beside
    ],
)
def test_paths_of_data_yaml(tmp_path: Path, entry: str, folder: str) -> None:
    image(tmp_path / folder / "a.png")
    text(tmp_path / folder.replace("images", "labels") / "a.txt", "0 .5 .5 1 1")
    text(tmp_path / "data.yaml", f"names: [cat]\n{entry}\n")
    data = read_data(tmp_path, "train")
    assert [record.boxes.tolist() for record in data.records] == [[[0, 0, 40, 20]]]


def test_list_of_images(tmp_path: Path) -> None:
    usual(tmp_path)
    text(tmp_path / "train.txt", "./images/train/b.png\n")
    text(tmp_path / "data.yaml", "names: [cat, dog]\ntrain: train.txt\n")
    assert [record.path.name for record in read_data(tmp_path, "train").records] == ["b.png"]


@pytest.mark.parametrize("folder", ["images/val", "images/valid", "val/images", "valid/images", "validation/images"])
def test_val_by_any_name(tmp_path: Path, folder: str) -> None:
    image(tmp_path / folder / "a.png")
    text(tmp_path / folder.replace("images", "labels") / "a.txt", "0 .5 .5 1 1")
    text(tmp_path / "classes.txt", "cat")
    assert len(read_data(tmp_path, "val").records[0].boxes) == 1


def test_relative_root_and_images_in_folders_below(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    usual(tmp_path)
    image(tmp_path / "images" / "train" / "day" / "c.webp")
    text(tmp_path / "labels" / "train" / "day" / "c.txt", "0 .5 .5 1 1")
    (tmp_path / "images" / "train" / "._c.webp").write_bytes(b"what macOS leaves behind")
    monkeypatch.chdir(tmp_path)
    data = read_data(Path(), "train")
    assert [(record.path.name, len(record.boxes)) for record in data.records] == [
        ("a.JPG", 0),
        ("b.png", 1),
        ("c.webp", 1),
    ]


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("0 0.5 0.5 1 1", (0, (0, 0, 1, 1))),
        ("1.0 0.25 0.5 0.5 0.5", (1, (0, 0.25, 0.5, 0.75))),  # some exports write the class as a float
        ("0 0 0 0.5 0 0.5 0.25", (0, (0, 0, 0.5, 0.25))),  # triangle
        ("0 0.1 0.2 0.3 0.2 0.3 0.4 0.1 0.4", (0, (0.1, 0.2, 0.3, 0.4))),  # four corners of a turned box
        ("0 1.0005 0.5 0.1 0.1", (0, (0.9505, 0.45, 1.0505, 0.55))),  # rounding outside by less than 1e-3
    ],
)
def test_lines(line: str, expected: tuple[int, tuple[float, ...]]) -> None:
    label, box = parse_line(line, 2)
    assert label == expected[0]
    assert box == pytest.approx(expected[1])


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("1 0.5 0.5 0.1", r"4 numbers are neither a box \(5\) nor a polygon"),
        ("1 0.5 0.5 0.1 0.1 0.9", "6 numbers are neither"),  # a confidence at the end: predictions, not labels
        ("1 .1 .1 .2 .2 .3 .3 .4", "8 numbers are neither"),
        ("cat 0.5 0.5 0.1 0.1", "'cat 0.5 0.5 0.1 0.1' is not a row of numbers"),
        ("2 0.5 0.5 0.1 0.1", r"class 2 is not in 0\.\.1"),
        ("-1 0.5 0.5 0.1 0.1", "class -1 is not in"),
        ("0.5 0.5 0.5 0.1 0.1", "class 0.5 is not in"),
        ("nan 0.5 0.5 0.1 0.1", "class nan is not in"),
        ("1 20 10 5 5", "20 is not a fraction of the image's size"),  # pixels
        ("1 1.002 0.5 0.1 0.1", "1.002 is not a fraction"),
        ("1 0.5 0.5 -0.1 0.1", "-0.1 is not a fraction"),
        ("1 0.5 nan 0.1 0.1", "nan is not a fraction"),
        ("1 0.5 0.5 inf 0.1", "inf is not a fraction"),
    ],
)
def test_bad_lines_name_file_and_line(tmp_path: Path, line: str, message: str) -> None:
    usual(tmp_path, labels=f"0 0.5 0.5 0.1 0.1\n\n{line}\n")
    with pytest.raises(UserError, match=rf"b\.txt:3: .*{message}"):
        read_data(tmp_path, "train")


def test_no_label_file_at_all_is_refused(tmp_path: Path) -> None:
    usual(tmp_path)
    (tmp_path / "labels" / "train" / "b.txt").unlink()
    with pytest.raises(UserError, match=r"none of the 2 images .* has a label file; .*labels/train/a\.txt"):
        read_data(tmp_path, "train")


@pytest.mark.parametrize(
    ("yaml", "message"),
    [
        ("names: [cat\ntrain: x", r"data\.yaml:2 is not valid YAML"),
        ("names: [cat, cat]", "more than one class with 'cat'"),
        ("names: [cat, '']", "gives an empty name to category id 1; give every class a name"),
        ("names: {0: ' ', 1: dog}", "gives an empty name to category id 0"),
    ],
)
def test_bad_yaml(tmp_path: Path, yaml: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        read_data(usual(tmp_path, names=yaml), "train")


def test_unreadable_image_missing_split_and_empty_split(tmp_path: Path) -> None:
    usual(tmp_path)
    with pytest.raises(UserError, match=r"has no split 'test'; it has train"):
        read_data(tmp_path, "test")
    (tmp_path / "images" / "val").mkdir()
    with pytest.raises(UserError, match=r"the val split .* has no images"):
        read_data(tmp_path, "val")
    (tmp_path / "images" / "train" / "a.JPG").write_bytes(b"cut")
    with pytest.raises(UserError, match=r"cannot read .*a\.JPG"):
        read_data(tmp_path, "train")


UNIT = st.floats(0, 1)


@given(label=st.integers(0, 79), x1=UNIT, x2=UNIT, y1=UNIT, y2=UNIT)
def test_written_boxes_come_back(label: int, x1: float, x2: float, y1: float, y2: float) -> None:
    x1, x2, y1, y2 = min(x1, x2), max(x1, x2), min(y1, y2), max(y1, y2)
    line = f"{label} {(x1 + x2) / 2!r} {(y1 + y2) / 2!r} {x2 - x1!r} {y2 - y1!r}"
    got, box = parse_line(line, 80)
    assert got == label
    assert box == pytest.approx((x1, y1, x2, y2), abs=1e-12)
    polygon = f"{label} {x1!r} {y1!r} {x2!r} {y1!r} {x2!r} {y2!r} {x1!r} {y2!r}"
    assert parse_line(polygon, 80) == (label, (x1, y1, x2, y2))


@given(st.text(alphabet="0123456789.-+e nai", max_size=40))
def test_any_line_is_read_or_refused(line: str) -> None:
    try:
        label, (x1, y1, x2, y2) = parse_line(line, 3)
    except ValueError:
        return
    assert label in range(3)
    assert x1 <= x2 + 2e-3
    assert y1 <= y2 + 2e-3
    assert min(x1, y1) >= -1.01
    assert max(x2, y2) <= 2.01
