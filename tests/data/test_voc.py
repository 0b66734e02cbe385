from __future__ import annotations

from pathlib import Path

import pytest

from tests.helpers.data import voc_image, voc_object
from tightbox.data.layout import read_data
from tightbox.errors import UserError


def one(root: Path, objects: str, **options: str) -> Path:
    voc_image(root, "000001", objects, ("train",), **options)
    return root


def devkit(root: Path, test: bool = True) -> Path:
    """VOC2007 and VOC2012 with an image each on train and val, and VOC2007's test if wanted."""
    for year in ("VOC2007", "VOC2012"):
        voc_image(root / year, f"{year}_t", voc_object("dog", (1, 1, 4, 4)), ("train", "trainval"))
        voc_image(root / year, f"{year}_v", voc_object("cat", (1, 1, 4, 4)), ("val", "trainval"))
    (root / "VOC2012" / "ImageSets" / "Main" / "test.txt").write_text("2008_000001\n")  # as published: a list alone
    if test:
        voc_image(root / "VOC2007", "VOC2007_x", voc_object("aeroplane", (1, 1, 4, 4)), ("test",))
    return root


def test_coordinates_count_from_one_and_include_the_last_pixel(tmp_path: Path) -> None:
    data = read_data(one(tmp_path, voc_object("cat", (1, 1, 4, 4)) + voc_object("cat", (40, 30, 40, 30))), "train")
    record = data.records[0]
    # Pixels 1..4 span (0, 4); the last pixel alone is the unit square in the corner.
    assert record.boxes.tolist() == [[0, 0, 4, 4], [39, 29, 40, 30]]
    assert record.areas.tolist() == [16, 1]
    assert (record.image_id, record.width, record.height) == (1, 40, 30)


def test_difficult_objects_are_crowd(tmp_path: Path) -> None:
    objects = voc_object("cat", (1, 1, 4, 4), "<difficult>1</difficult>") + voc_object(
        "dog", (1, 1, 4, 4), "<difficult>0</difficult>"
    )
    record = read_data(one(tmp_path, objects), "train").records[0]
    assert record.crowd.tolist() == [True, False]


def test_parts_of_people_are_no_objects(tmp_path: Path) -> None:
    part = "<part><name>head</name><bndbox><xmin>1</xmin><ymin>1</ymin><xmax>2</xmax><ymax>2</ymax></bndbox></part>"
    data = read_data(one(tmp_path, voc_object("person", (1.0, 2.5, 4, 4), part)), "train")
    assert data.class_names == ("person",)
    assert data.records[0].boxes.tolist() == [[0, 1.5, 4, 4]]


@pytest.mark.parametrize("size", ["", "<size><width>0</width><height>0</height></size>"])
def test_size_comes_from_the_image_where_the_annotation_has_none(tmp_path: Path, size: str) -> None:
    record = read_data(one(tmp_path, voc_object("cat", (1, 1, 99, 99)), size=size), "train").records[0]
    assert (record.width, record.height) == (40, 30)
    assert record.boxes.tolist() == [[0, 0, 40, 30]]


def test_images_of_another_suffix(tmp_path: Path) -> None:
    data = read_data(one(tmp_path, "", suffix="PNG"), "train")
    assert data.records[0].path.name == "000001.PNG"
    assert data.records[0].boxes.shape == (0, 4)


@pytest.mark.parametrize("place", ["", "VOCdevkit"])
def test_splits_of_both_years_are_those_of_the_papers(tmp_path: Path, place: str) -> None:
    devkit(tmp_path / place)
    names = {split: [r.path.stem for r in read_data(tmp_path, split).records] for split in ("train", "val", "test")}
    assert names["train"] == ["VOC2007_t", "VOC2007_v", "VOC2012_t", "VOC2012_v"]
    assert names["val"] == names["test"] == ["VOC2007_x"]
    assert read_data(tmp_path, "train").class_names == ("aeroplane", "cat", "dog")  # the test's class too
    assert read_data(tmp_path, "train").layout == "Pascal VOC (VOC2007 trainval, VOC2012 trainval)"


def test_without_the_test_images_val_is_not_trained_on(tmp_path: Path) -> None:
    devkit(tmp_path, test=False)
    assert [r.path.stem for r in read_data(tmp_path, "train").records] == ["VOC2007_t", "VOC2012_t"]
    assert [r.path.stem for r in read_data(tmp_path, "val").records] == ["VOC2007_v", "VOC2012_v"]
    with pytest.raises(UserError, match=r"has no split 'test'; it has train, val"):
        read_data(tmp_path, "test")


def test_one_year(tmp_path: Path) -> None:
    devkit(tmp_path)
    assert [r.path.stem for r in read_data(tmp_path / "VOC2012", "train").records] == ["VOC2012_t"]
    assert [r.path.stem for r in read_data(tmp_path / "VOC2012", "val").records] == ["VOC2012_v"]


@pytest.mark.parametrize(
    ("objects", "message"),
    [
        ("<object><name>cat</name>", r"000001\.xml is not valid XML at line 4, column \d+; it may be cut off"),
        (voc_object("cat", (1, 1, "x", 4)), r"object 1 \(cat\) in .*000001\.xml has the bndbox 1, 1, x, 4; give"),
        (voc_object("cat", (1, 1, "nan", 4)), "bndbox 1, 1, nan, 4"),
        (voc_object("cat", (1, 1, "", 4)), "bndbox 1, 1, , 4"),
        (voc_object("", (1, 1, 2, 4)), r"object 1 \(without a name\)"),
        ("<object><name>cat</name></object>", r"object 1 \(cat\)"),
    ],
)
def test_bad_annotations(tmp_path: Path, objects: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        read_data(one(tmp_path, objects), "train")


def test_missing_files(tmp_path: Path) -> None:
    one(tmp_path, voc_object("cat", (1, 1, 4, 4)))
    (tmp_path / "JPEGImages" / "000001.jpg").unlink()
    with pytest.raises(UserError, match=r"the image .*JPEGImages/000001\.jpg, which does not exist"):
        read_data(tmp_path, "train")
    (tmp_path / "Annotations" / "000001.xml").unlink()
    with pytest.raises(UserError, match=r"train\.txt lists 000001, but there is no .*000001\.xml"):
        read_data(tmp_path, "train")
