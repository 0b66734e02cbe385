from __future__ import annotations

import csv
import json
from pathlib import Path

import pytest
from PIL import Image

from tests.helpers.commands import assert_one_sentence, status
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
