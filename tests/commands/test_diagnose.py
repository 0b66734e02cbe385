"""`tightbox diagnose`, `tightbox calibrate`, and what `tightbox predict` does with it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.helpers.commands import status
from tests.helpers.data import plain_image
from tests.helpers.models import tiny_model, tiny_unitbox
from tests.helpers.results import example
from tightbox.calibration import Calibration, IouCalibration
from tightbox.checkpoint import save_calibration

HALVES = Calibration(IouCalibration((0.0, 1.0), (0.0, 0.5)), ((0.25,) * 50 + (None,),) * 10, {"split": "val"})


def test_diagnose_a_checkpoint(
    checkpoint: Path, data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    assert status(["diagnose", str(checkpoint), "--data", str(data), "--out", str(out)]) == 0
    content = json.loads((out / "diagnosis.json").read_text())
    assert content["from_candidates"]
    assert content["title"].endswith("/model on val of data")
    assert content["lost"]["suppression"] is not None
    page = (out / "diagnosis.html").read_text(encoding="utf-8")
    assert "data:image/jpeg;base64," in page
    assert "diagnosis.html" in capsys.readouterr().out


def test_diagnose_a_result_file(tmp_path: Path) -> None:
    ground_truth, results = example()
    (tmp_path / "gt.json").write_text(json.dumps(ground_truth))
    (tmp_path / "dt.json").write_text(json.dumps(results))
    files = ["--gt", str(tmp_path / "gt.json"), "--dt", str(tmp_path / "dt.json")]
    assert status(["diagnose", *files, "--out", str(tmp_path / "plain")]) == 0
    page = (tmp_path / "plain" / "diagnosis.html").read_text(encoding="utf-8")
    assert "data:image/jpeg;base64," not in page
    assert "boxes are shown as outlines" in page

    for row in ground_truth["images"]:
        plain_image(tmp_path / "images" / row["file_name"], 640, 480)
    images = ["--images", str(tmp_path / "images")]
    assert status(["diagnose", *files, *images, "--out", str(tmp_path / "shown")]) == 0
    assert "data:image/jpeg;base64," in (tmp_path / "shown" / "diagnosis.html").read_text(encoding="utf-8")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "either a checkpoint and --data"),
        (["x", "--gt", "g", "--dt", "d"], "either a checkpoint and --data"),
        (["--gt", "no.json", "--dt", "no.json"], "cannot read no.json"),
        (["x", "--data", "d", "--images", "i"], "--images belongs to --gt"),
        (["x", "--data", "no_such_folder"], "no_such_folder"),
    ],
)
def test_mistakes_of_diagnose(
    arguments: list[str],
    message: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    assert status(["diagnose", *arguments]) == 2
    assert message in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


def test_calibrate(checkpoint: Path, data: Path, capsys: pytest.CaptureFixture[str]) -> None:
    weights = (checkpoint / "weights.safetensors").read_bytes()
    assert status(["calibrate", str(checkpoint), "--data", str(data), "--method", "temperature"]) == 0
    first = json.loads((checkpoint / "card.json").read_text())["calibration"]
    assert first["about"] == {"method": "temperature", "detections": 120, "split": "val", "images": 6}
    assert (checkpoint / "weights.safetensors").read_bytes() == weights
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines if " before " in line or " after " in line] == [
        "val",
        "val",
        "val,",  # cross-validated
        "test",
        "test",
    ]
    # A second time it learns from the raw predicted IoUs again.
    assert status(["calibrate", str(checkpoint), "--data", str(data), "--method", "temperature"]) == 0
    assert json.loads((checkpoint / "card.json").read_text())["calibration"] == first


def test_what_cannot_be_calibrated(data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    without = tiny_model(varifocal=False, centerness=True, star=False, refine=False).save(tmp_path / "without")
    card = (without / "card.json").read_bytes()
    assert status(["calibrate", str(without), "--data", str(data)]) == 2
    assert "predicts no IoU" in capsys.readouterr().err
    assert status(["calibrate", str(without), "--data", str(data), "--report-split", "val"]) == 2
    assert "the split it learns from" in capsys.readouterr().err
    assert (without / "card.json").read_bytes() == card


def predicted(checkpoint: Path, data: Path, out: Path, *options: str) -> list[dict[str, float]]:
    assert status(["predict", str(checkpoint), str(data / "images"), "--out", str(out), *options]) == 0
    rows: list[dict[str, float]] = json.loads((out / "results.json").read_text())
    return rows


def test_predict_by_predicted_iou(
    checkpoint: Path, data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    every = predicted(checkpoint, data, tmp_path / "a", "--score-threshold", "0")
    middle = sorted(row["iou"] for row in every)[len(every) // 2]
    some = predicted(checkpoint, data, tmp_path / "b", "--score-threshold", "0", "--min-iou", str(middle))
    assert [row["iou"] for row in some] == [row["iou"] for row in every if row["iou"] >= middle]
    assert 0 < len(some) < len(every)
    assert "was not calibrated" in capsys.readouterr().err
    save_calibration(HALVES, checkpoint)
    halved = predicted(checkpoint, data, tmp_path / "c", "--score-threshold", "0", "--min-iou", str(middle / 2))
    assert len(halved) == pytest.approx(len(some), abs=1)  # one may lie on the threshold
    assert max(row["iou"] for row in halved) == pytest.approx(max(row["iou"] for row in some) / 2)
    assert "was not calibrated" not in capsys.readouterr().err


def test_without_predicted_ious_there_is_no_least_one(
    data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    unitbox = tiny_unitbox(class_names=["cat", "dog"]).save(tmp_path / "unitbox")
    options = ["--out", str(tmp_path / "out"), "--min-iou", "0.5"]
    assert status(["predict", str(unitbox), str(data / "images"), *options]) == 2
    error = capsys.readouterr().err
    assert "predicts no IoU" in error
    assert "calibrate" not in error


def test_predict_by_precision(checkpoint: Path, data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    save_calibration(HALVES, checkpoint)
    chosen = predicted(checkpoint, data, tmp_path / "a", "--precision", "0.9", "--at-iou", "0.75")
    assert "score threshold 0.250 for precision 0.9 at IoU 0.75" in capsys.readouterr().out
    assert chosen == predicted(checkpoint, data, tmp_path / "b", "--score-threshold", "0.25")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--precision", "1.0"], "no score threshold reaches the precision 1"),
        (["--precision", "0.9", "--score-threshold", "0.5"], "leave out --score-threshold"),
        (["--at-iou", "0.9"], "--precision 0.95"),
        (["--precision", "0.9", "--at-iou", "0.1"], "the IoU is 0.1"),
        (["--min-iou", "1.5"], "min-iou"),
    ],
)
def test_mistakes_of_predict(
    options: list[str],
    message: str,
    checkpoint: Path,
    data: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    save_calibration(HALVES, checkpoint)
    assert status(["predict", str(checkpoint), str(data / "images"), "--out", str(tmp_path / "out"), *options]) == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_precision_needs_a_calibration(
    checkpoint: Path, data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    options = ["--out", str(tmp_path / "out"), "--precision", "0.9"]
    assert status(["predict", str(checkpoint), str(data / "images"), *options]) == 2
    assert "tightbox calibrate" in capsys.readouterr().err
