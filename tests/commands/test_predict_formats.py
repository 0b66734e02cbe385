from __future__ import annotations

import csv
import json
import os
import sys
from pathlib import Path

import pytest
from PIL import Image

from tests.helpers.commands import assert_one_sentence, status
from tests.helpers.data import plain_image
from tests.helpers.models import tiny_unitbox


def predict(checkpoint: Path, data: Path, out: Path, *options: str) -> int:
    return status(["predict", checkpoint, data / "images", "--out", out, "--score-threshold", "0", *options])


@pytest.mark.parametrize(
    ("kind", "files"),
    [
        ("coco", ["results.json"]),
        ("csv", ["results.csv"]),
        ("json", [f"{i}.json" for i in range(12)]),
        ("yolo", ["labels"]),
        ("labelstudio", ["labelstudio.json"]),
    ],
)
def test_only_results_without_images(checkpoint: Path, data: Path, tmp_path: Path, kind: str, files: list[str]) -> None:
    out = tmp_path / "out"
    assert predict(checkpoint, data, out, "--format", kind, "--no-images") == 0
    assert sorted(path.name for path in out.iterdir()) == sorted(files)


def test_classes_and_crops(checkpoint: Path, data: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    assert predict(checkpoint, data, out, "--classes", "dog", "--crops", "--format", "csv") == 0
    with (out / "results.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert {row["class"] for row in rows} == {"dog"}
    assert len(list((out / "crops" / "dog").glob("*.jpg"))) == len(rows) > 0
    assert [path.name for path in (out / "crops").iterdir()] == ["dog"]
    first = next(row for row in rows if row["file_name"].endswith("3.png"))
    with Image.open(out / "crops" / "dog" / "3_0.jpg") as cut:
        assert abs(cut.width - (float(first["x2"]) - float(first["x1"]))) < 2  # rounded outwards


def test_unknown_class(checkpoint: Path, data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert predict(checkpoint, data, tmp_path / "out", "--classes", "owl") == 2
    assert_one_sentence(capsys, "this detector has no class owl; choose from cat, dog")


def test_loosest(checkpoint: Path, data: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    assert predict(checkpoint, data, out, "--order", "loosest", "--no-images") == 0
    ious = [row["iou"] for row in json.loads((out / "results.json").read_text())]
    assert ious == sorted(ious)


def test_loosest_of_a_detector_without_estimate(data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    checkpoint = tiny_unitbox().save(tmp_path / "unitbox")
    assert predict(checkpoint, data, tmp_path / "out", "--order", "loosest", "--no-images") == 2
    assert_one_sentence(capsys, "predicts no IoU, so --order loosest has nothing to go by")


def test_no_source_takes_the_place_of_another(checkpoint: Path, tmp_path: Path) -> None:
    sources = [plain_image(tmp_path / name, 64, 48) for name in ("a/x.jpg", "a/x_jpg_2.jpg", "b/x.jpg", "b/x.png")]
    out = tmp_path / "out"
    assert status(["predict", checkpoint, *sources, "--out", out, "--format", "csv"]) == 0
    assert len(list(out.glob("*.jpg"))) == 4


def test_what_macos_leaves_and_folders_are_no_images(checkpoint: Path, tmp_path: Path) -> None:
    plain_image(tmp_path / "in" / "a.jpg", 64, 48)
    (tmp_path / "in" / "._a.jpg").write_bytes(b"Mac OS X")
    (tmp_path / "in" / "b.jpg").mkdir()
    assert status(["predict", checkpoint, tmp_path / "in", "--out", tmp_path / "out"]) == 0
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["a.jpg", "results.json"]


def test_no_labels_take_the_place_of_the_classes(
    checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    plain_image(tmp_path / "in" / "classes.png", 64, 48)
    assert predict_folder(checkpoint, tmp_path, "yolo") == 2
    assert_one_sentence(capsys, "would be classes.txt, which lists the classes; rename the file")
    assert predict_folder(checkpoint, tmp_path, "csv") == 0


def predict_folder(checkpoint: Path, folder: Path, kind: str) -> int:
    return status(["predict", checkpoint, folder / "in", "--out", folder / "out", "--format", kind])


@pytest.mark.skipif(sys.platform != "linux", reason="names of files are whole characters here")
@pytest.mark.parametrize("kind", ["coco", "csv", "json", "yolo", "labelstudio", "jsonl"])
@pytest.mark.parametrize("name", [os.fsdecode(b"\xff\xfe.png"), "あ" * 82 + ".png"])
def test_any_name_of_a_file(checkpoint: Path, tmp_path: Path, kind: str, name: str) -> None:
    """In Latin-1, or as long as a file system takes: 82 characters of three bytes and four more, of 255 bytes."""
    plain_image(tmp_path / "in" / "a.png", 64, 48).rename(tmp_path / "in" / name)
    assert predict_folder(checkpoint, tmp_path, kind) == 0


@pytest.mark.skipif(sys.platform != "linux", reason="names of files are whole characters here")
def test_parquet_takes_names_in_utf_8(checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("pyarrow", reason="needs the extra parquet")
    plain_image(tmp_path / "in" / "a.png", 64, 48).rename(tmp_path / "in" / os.fsdecode(b"\xff.png"))
    assert predict_folder(checkpoint, tmp_path, "parquet") == 2
    assert_one_sentence(capsys, "'\\udcff.png' is no UTF-8, as names in Parquet must be; rename the file, or give")
    assert not (tmp_path / "out").exists()


def test_a_side_that_jpeg_does_not_have(checkpoint: Path, tmp_path: Path) -> None:
    plain_image(tmp_path / "in" / "a.png", 70_000, 20)
    assert predict_folder(checkpoint, tmp_path, "csv") == 0
    with Image.open(tmp_path / "out" / "a.jpg") as drawn:
        assert drawn.width == 65_500
