from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.helpers.data import one_image_coco, plain_image, voc_image, voc_object
from tests.helpers.references import DATA_ROOTS, real_data
from tightbox.data.layout import read_data, splits
from tightbox.errors import UserError


def yolo(root: Path, images: str, labels: str) -> None:
    (root / images).mkdir(parents=True)
    (root / labels).mkdir(parents=True)
    plain_image(root / images / "a.png")
    (root / labels / "a.txt").write_text("0 .5 .5 1 1")
    (root / "data.yaml").write_text("names: [cat]")


@pytest.mark.parametrize(
    ("annotations", "images"),
    [
        ("val.json", "images"),
        ("val.json", "val"),  # in a folder named like the split
        ("val.json", ""),  # beside the file
        ("val.json", "images/val"),
        ("valid.json", "images"),
        ("annotations/val.json", "val"),
        ("annotations/instances_val2017.json", "val2017"),  # as downloaded
        ("annotations/instances_val2014.json", "images/val2014"),
        ("annotations/instances_val.json", "val"),
        ("valid/_annotations.coco.json", "valid"),  # Roboflow
    ],
)
def test_coco_layouts(tmp_path: Path, annotations: str, images: str) -> None:
    one_image_coco(tmp_path / annotations, tmp_path / images / "a.png")
    data = read_data(str(tmp_path), "val")
    assert data.records[0].path == tmp_path / images / "a.png"
    assert data.records[0].boxes.tolist() == [[0, 0, 4, 4]]
    assert (data.layout, data.root, data.split) == (f"COCO ({annotations})", tmp_path, "val")
    assert splits(tmp_path) == ["val"]


def test_the_latest_year_of_coco_is_taken(tmp_path: Path) -> None:
    for year in (2014, 2017):
        one_image_coco(tmp_path / "annotations" / f"instances_val{year}.json", tmp_path / f"val{year}" / "a.png")
    (tmp_path / "annotations" / "instances_valminusminival2014.json").write_text("{}")
    assert read_data(tmp_path, "val").layout == "COCO (annotations/instances_val2017.json)"


def test_folder_of_images_is_found_though_the_first_is_missing(tmp_path: Path) -> None:
    one_image_coco(tmp_path / "val.json", tmp_path / "val" / "a.png")
    content = json.loads((tmp_path / "val.json").read_text())
    content["images"].insert(0, {"id": 9, "file_name": "gone.png", "width": 40, "height": 30})
    (tmp_path / "val.json").write_text(json.dumps(content))
    with pytest.raises(UserError, match=r"needs the image .*/val/gone\.png, which does not exist"):
        read_data(tmp_path, "val")


def test_yolo_and_voc_layouts(tmp_path: Path) -> None:
    yolo(tmp_path / "yolo", "images/val", "labels/val")
    yolo(tmp_path / "roboflow", "valid/images", "valid/labels")
    voc_image(tmp_path / "voc" / "VOCdevkit" / "VOC2012", "a", voc_object("cat", (1, 1, 4, 4)), ("val",))
    for name, layout in (("yolo", "YOLO"), ("roboflow", "YOLO"), ("voc", "Pascal VOC")):
        data = read_data(tmp_path / name, "val")
        assert data.layout.startswith(layout)
        assert data.class_names == ("cat",)
        assert len(data.records[0].boxes) == 1
        assert splits(tmp_path / name) == ["val"]


def test_one_layout_serves_all_splits(tmp_path: Path) -> None:
    # A COCO set with a folder of images to predict on, which looks like a YOLO split.
    one_image_coco(tmp_path / "train.json", tmp_path / "images" / "train" / "a.png")
    one_image_coco(tmp_path / "val.json", tmp_path / "images" / "val" / "a.png")
    (tmp_path / "images" / "test").mkdir()
    assert splits(tmp_path) == ["train", "val"]


def test_what_is_not_there_is_said(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"the data folder .*none does not exist; check the path"):
        read_data(tmp_path / "none", "train")
    with pytest.raises(UserError, match=r"no data set was recognised in .*; looked for COCO .*Pascal VOC .*YOLO"):
        read_data(tmp_path, "train")
    one_image_coco(tmp_path / "train.json", tmp_path / "images" / "a.png")
    one_image_coco(tmp_path / "valid.json", tmp_path / "images" / "a.png")
    with pytest.raises(UserError, match=r"has no split 'test'; it has train, val: choose one of these or add test"):
        read_data(tmp_path, "test")


def test_missing_images_are_said_at_once(tmp_path: Path) -> None:
    one_image_coco(tmp_path / "annotations" / "instances_val2017.json", tmp_path / "val2017" / "a.png")
    shutil.rmtree(tmp_path / "val2017")
    with pytest.raises(UserError, match=r"needs the folder of images .*/val2017, which does not exist"):
        read_data(tmp_path, "val")


def test_coco_mini_as_the_real_coco_2017(tmp_path: Path) -> None:
    source = real_data(DATA_ROOTS[0], "coco-mini", tmp_path / "source")
    (tmp_path / "annotations").mkdir()
    for split in ("train", "val"):
        shutil.copy(source / f"{split}.json", tmp_path / "annotations" / f"instances_{split}2017.json")
        (tmp_path / f"{split}2017").symlink_to(source / "images")
    train, val = read_data(tmp_path, "train"), read_data(tmp_path, "val")
    assert (len(val.records), sum(len(record.boxes) for record in val.records)) == (52, 388)
    assert val.records[0].path == tmp_path / "val2017" / "000000000285.jpg"
    assert val.layout == "COCO (annotations/instances_val2017.json)"
    assert val.with_classes(train.class_names).category_ids == train.category_ids


def test_reading_needs_neither_torch_nor_rich() -> None:
    modules = "tightbox.data.layout, tightbox.data.doctor, tightbox.images"
    check = f"import sys, {modules}; print([m for m in ('torch', 'rich', 'yaml') if m in sys.modules])"
    assert subprocess.run([sys.executable, "-c", check], capture_output=True, text=True).stdout.strip() == "[]"
