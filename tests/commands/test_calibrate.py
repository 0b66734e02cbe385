"""`tightbox calibrate` with promises, on checkpoints and result files, and what `tightbox predict` does with them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

import tightbox
from tests.helpers.commands import assert_one_sentence, status
from tests.helpers.data import plain_image
from tests.helpers.models import tiny_model
from tightbox.calibration import Calibration, IouCalibration
from tightbox.checkpoint import read_weights, save_calibration, weights_digest
from tightbox.errors import UserError
from tightbox.models import load
from tightbox.promises import Margins, MissBound

BY_SIZE = Margins(0.9, "size", (0.1,) * 4, (), (), (), {})
PROMISES = Calibration(
    IouCalibration((0.0, 1.0), (0.0, 1.0)),
    ((0.25,) * 51,) * 10,
    {"split": "val"},
    outer=BY_SIZE,
    inner=BY_SIZE,
    misses=MissBound(0.1, 0.1, 0.5, 0.25, 100, 4),
)


def files(folder: Path, count: int = 300, seed: int = 0, iou: bool = True) -> tuple[Path, Path]:
    """One object in each image, alternately a cat and a dog, and one box that its score says the tightness of."""
    rng = np.random.default_rng(seed)
    images, truth, rows = [], [], []
    for i in range(count):
        trust = float(rng.uniform(0.5, 1))
        box = rng.uniform(50, 150, 4)
        moved = box + 0.2 * (1.02 - trust) * np.tile(box[2:], 2) * rng.normal(size=4)
        images.append({"id": i + 1, "width": 400, "height": 400})
        truth.append({"id": i + 1, "image_id": i + 1, "category_id": 1 + i % 2, "bbox": box.tolist()})
        row = {"image_id": i + 1, "category_id": 1 + i % 2, "bbox": moved.tolist(), "score": trust, "made_by": "x"}
        rows.append(row | ({"iou": trust**2} if iou else {}))
    content = {
        "images": images,
        "annotations": truth,
        "categories": [{"id": 1, "name": "cat"}, {"id": 2, "name": "dog"}],
    }
    gt, dt = folder / f"gt{seed}.json", folder / f"dt{seed}.json"
    gt.write_text(json.dumps(content))
    dt.write_text(json.dumps(rows))
    return gt, dt


@pytest.mark.parametrize("iou", [True, False])
def test_result_files(iou: bool, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    gt, dt = files(tmp_path, iou=iou)
    new_gt, new = files(tmp_path, seed=1, iou=iou)
    given = ["calibrate", "--gt", gt, "--dt", dt, "--out", tmp_path / "out.json", "--apply-to", new]
    assert status([*given, "--coverage", "0.9", "--inner", "--per-class", "--miss", "0.1"]) == 0
    printed = capsys.readouterr().out
    assert "outer boxes for a coverage of 0.9" in printed
    assert "at most 0.1 of the objects are missed" in printed
    rows = json.loads((tmp_path / "out.json").read_text())
    raw, truth = json.loads(new.read_text()), json.loads(new_gt.read_text())["annotations"]
    assert [row["raw_score"] for row in rows] == [row["score"] for row in raw]
    assert all(row["made_by"] == "x" for row in rows)
    assert ("raw_iou" in rows[0]) == iou
    held = [holds(row["outer_bbox"], box["bbox"]) for row, box in zip(rows, truth, strict=True)]
    within = [holds(box["bbox"], row["inner_bbox"]) for row, box in zip(rows, truth, strict=True)]
    # 75 scores of each class and 300 new boxes: 0.9 with a standard deviation of some 0.03.
    assert 0.8 < np.mean(held) < 0.99
    assert 0.8 < np.mean(within) < 0.99
    learned = json.loads((tmp_path / "out.calibration.json").read_text())
    assert learned["by_score"] is not iou
    assert learned["outer"]["coverage"] == 0.9
    assert len(learned["outer"]["classes"]) == 2
    assert learned["misses"]["threshold"] == pytest.approx(0.55, abs=0.04)  # scores are uniform in [0.5, 1]


def holds(outer: list[float], inner: list[float]) -> bool:
    return (
        outer[0] <= inner[0] + 0.01
        and outer[1] <= inner[1] + 0.01
        and outer[0] + outer[2] >= inner[0] + inner[2] - 0.01
        and outer[1] + outer[3] >= inner[1] + inner[3] - 0.01
    )


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--coverage", "0"], "--coverage is 0; it must be more than 0 and less than 1"),
        (["--coverage", "1"], "--coverage is 1"),
        (["--coverage", "0.999"], "at least 999 images with matched boxes"),
        (["--miss", "0.001"], "takes at least 2302 objects"),  # 0.999^2302 = 0.09994 and 0.999^2301 = 0.10004
        (["--miss", "2"], "--miss is 2"),
        (["--delta", "0.1"], "--delta belongs to --miss"),
        (["--inner"], "--inner belongs to --coverage"),
        (["--per-class"], "--per-class belongs to --coverage"),
        (["--margins", "size"], "--margins belongs to --coverage"),
        (["--method", "isotonic"], "--method belongs to a checkpoint"),
    ],
)
def test_mistakes_with_result_files(
    options: list[str], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    gt, dt = files(tmp_path)
    assert status(["calibrate", "--gt", gt, "--dt", dt, "--out", tmp_path / "out.json", *options]) == 2
    assert_one_sentence(capsys, message)
    assert not (tmp_path / "out.json").exists()


def test_out_is_needed_and_no_input(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    gt, dt = files(tmp_path)
    assert status(["calibrate", "--gt", gt, "--dt", dt]) == 2
    assert_one_sentence(capsys, "--out is missing")
    assert status(["calibrate", "--gt", gt, "--dt", dt, "--out", dt]) == 2
    assert_one_sentence(capsys, "would be overwritten")
    assert status(["calibrate", "m", "--data", "d", "--out", "x"]) == 2
    assert_one_sentence(capsys, "--out belongs to --gt and --dt")
    assert status(["calibrate", "m", "--data", "d", "--margins", "pixels", "--coverage", "0.9"]) == 2
    assert_one_sentence(capsys, "margins in pixels would not hold")


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        (5, "must be a list of detections, but are 5"),
        ([{"image_id": [1]}], "result 1 has the image_id [1]"),
        ([{"image_id": 1, "category_id": 1, "bbox": [1, 2, 3, -4], "score": 0.5}], "width or height is negative"),
    ],
)
def test_results_of_other_images_are_checked(
    rows: object, message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    gt, dt = files(tmp_path)
    (tmp_path / "new.json").write_text(json.dumps(rows))
    out = tmp_path / "out.json"
    assert status(["calibrate", "--gt", gt, "--dt", dt, "--out", out, "--apply-to", tmp_path / "new.json"]) == 2
    assert_one_sentence(capsys, message)
    assert not out.exists()


def test_other_images_may_be_more_and_of_any_ids(tmp_path: Path) -> None:
    """Boxes that would be corners among the images that were learned from; of these nothing is known."""
    gt, dt = files(tmp_path, count=100)
    rows = [
        {
            "image_id": 1000 + i if i % 2 else f"new {i}",
            "category_id": 1,
            "bbox": [9, 9, 90, 90],
            "score": 0.5,
            "iou": 0.5,
        }
        for i in range(200)
    ]
    (tmp_path / "new.json").write_text(json.dumps(rows))
    out = tmp_path / "out.json"
    assert status(["calibrate", "--gt", gt, "--dt", dt, "--out", out, "--apply-to", tmp_path / "new.json"]) == 0
    assert [row["image_id"] for row in json.loads(out.read_text())] == [row["image_id"] for row in rows]


def test_what_is_beside_the_result_is_no_input(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    gt, dt = files(tmp_path)
    dt = dt.rename(tmp_path / "new.calibration.json")
    assert status(["calibrate", "--gt", gt, "--dt", dt, "--out", tmp_path / "new.json"]) == 2
    assert_one_sentence(capsys, "would be overwritten")


def test_the_threshold_of_misses_is_one_of_raw_scores(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    gt, dt = files(tmp_path)
    out = tmp_path / "out.json"
    assert status(["calibrate", "--gt", gt, "--dt", dt, "--out", out, "--miss", "0.2"]) == 0
    bound = json.loads((tmp_path / "out.calibration.json").read_text())["misses"]
    assert f"\nraw_score threshold {bound['threshold']!r}: at most 0.2" in capsys.readouterr().out
    below = [row for row in json.loads(out.read_text()) if row["raw_score"] < bound["threshold"]]
    assert len(below) <= bound["missed"]


# Checkpoints


def test_a_calibration_is_of_all_classes(checkpoint: Path, data: Path, capsys: pytest.CaptureFixture[str]) -> None:
    card = (checkpoint / "card.json").read_bytes()
    assert status(["calibrate", checkpoint, "--data", data, "--classes", "dog"]) == 2
    assert_one_sentence(capsys, "--classes leaves out cat, which the detector finds as well")
    assert (checkpoint / "card.json").read_bytes() == card


def test_a_calibration_is_of_its_options(checkpoint: Path, data: Path) -> None:
    assert status(["calibrate", checkpoint, "--data", data]) == 0
    card = json.loads((checkpoint / "card.json").read_text())
    card["options"]["nms_iou"] = 0.3
    (checkpoint / "card.json").write_text(json.dumps(card))
    with pytest.raises(UserError, match="was calibrated for other settings than it has now"):
        load(checkpoint)
    load(checkpoint, calibrated=False)


def test_several_views_are_promised_nothing(
    checkpoint: Path, data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    save_calibration(PROMISES, checkpoint)
    given = ["predict", checkpoint, data / "images", "--out", tmp_path / "out", "--flip"]
    for promise in (["--coverage", "0.9"], ["--miss", "0.1"], ["--precision", "0.9"]):
        assert status([*given, *promise]) == 2
        assert_one_sentence(capsys, f"{promise[0]} was learned from single views; leave out --scales and --flip")


def test_a_split_that_cannot_be_reported_on_leaves_the_card(
    checkpoint: Path, data: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    content = json.loads((data / "test.json").read_text())
    content["categories"].append({"id": 9, "name": "owl"})
    content["annotations"][0]["category_id"] = 9
    (data / "test.json").write_text(json.dumps(content))
    card = (checkpoint / "card.json").read_bytes()
    assert status(["calibrate", checkpoint, "--data", data]) == 2
    assert_one_sentence(capsys, "has objects of classes that were not trained: owl")
    assert (checkpoint / "card.json").read_bytes() == card


def test_too_few_boxes_for_a_checkpoint(checkpoint: Path, data: Path, capsys: pytest.CaptureFixture[str]) -> None:
    card = (checkpoint / "card.json").read_bytes()
    assert status(["calibrate", checkpoint, "--data", data, "--coverage", "0.99"]) == 2
    assert "at least 99 images with matched boxes" in capsys.readouterr().err
    assert (checkpoint / "card.json").read_bytes() == card


def test_predict_draws_and_writes_outer_and_inner_boxes(
    checkpoint: Path, data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    save_calibration(PROMISES, checkpoint)
    image = plain_image(tmp_path / "in" / "a.png", 64, 48)
    given = ["predict", str(checkpoint), str(image), "--score-threshold", "0"]
    assert status([*given, "--out", str(tmp_path / "plain")]) == 0
    assert status([*given, "--out", str(tmp_path / "drawn"), "--coverage", "0.9"]) == 0
    plain, drawn = (json.loads((tmp_path / name / "results.json").read_text()) for name in ("plain", "drawn"))
    assert "outer_bbox" not in plain[0]
    for row in drawn:
        x, y, width, height = row["bbox"]
        expected = [max(x - 0.1 * width, 0), max(y - 0.1 * height, 0)]
        expected += [min(x + 1.1 * width, 64) - expected[0], min(y + 1.1 * height, 48) - expected[1]]
        assert row["outer_bbox"] == pytest.approx(expected, abs=0.01)
        assert row["inner_bbox"] == pytest.approx(
            [x + 0.1 * width, y + 0.1 * height, 0.8 * width, 0.8 * height], abs=0.01
        )
    pixels = [np.asarray(Image.open(tmp_path / name / "a.jpg")) for name in ("plain", "drawn")]
    assert (pixels[0] != pixels[1]).any()
    assert status([*given, "--out", str(tmp_path / "x"), "--coverage", "0.8"]) == 2
    assert "for 0.9 only" in capsys.readouterr().err


def test_predict_by_misses(checkpoint: Path, data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    given = ["predict", str(checkpoint), str(data / "images"), "--out"]
    assert status([*given, str(tmp_path / "a"), "--miss", "0.1"]) == 2
    assert "nothing is known for --miss" in capsys.readouterr().err
    save_calibration(PROMISES, checkpoint)
    assert status([*given, str(tmp_path / "a"), "--miss", "0.1"]) == 0
    assert "score threshold 0.250" in capsys.readouterr().out
    assert status([*given, str(tmp_path / "b"), "--score-threshold", "0.25"]) == 0
    assert (tmp_path / "a" / "results.json").read_bytes() == (tmp_path / "b" / "results.json").read_bytes()
    assert status([*given, str(tmp_path / "c"), "--miss", "0.2"]) == 2
    assert "for 0.1 only" in capsys.readouterr().err
    assert status([*given, str(tmp_path / "c"), "--miss", "0.1", "--precision", "0.9"]) == 2
    assert "leave out --miss" in capsys.readouterr().err


def test_promises_go_into_the_card_and_come_back(checkpoint: Path, tmp_path: Path) -> None:
    digest = weights_digest(read_weights(checkpoint))
    with_digest = Calibration.from_json(PROMISES.to_json() | {"weights": digest})
    save_calibration(with_digest, checkpoint)
    model = tightbox.load(checkpoint)
    assert model.calibration == with_digest
    found = model.predict(np.zeros((48, 64, 3), np.uint8))
    assert found.outer is not None
    assert found.inner is not None
    assert found.outer.shape == found.inner.shape == found.boxes.shape
    assert (found.outer[:, :2] <= found.boxes[:, :2]).all()
    first = found[:3].outer
    assert first is not None
    assert first.shape == (3, 4)
    assert tightbox.load(model.save(tmp_path / "again")).calibration == with_digest


def test_a_card_of_other_weights(checkpoint: Path, data: Path, tmp_path: Path) -> None:
    save_calibration(Calibration.from_json(PROMISES.to_json() | {"weights": "0" * 64}), checkpoint)
    with pytest.raises(UserError, match="calibrated for other weights"):
        tightbox.load(checkpoint)
    assert tightbox.load(checkpoint, calibrated=False).calibration is None
    assert status(["calibrate", checkpoint, "--data", data]) == 0  # which sets it right
    calibration = tightbox.load(checkpoint).calibration
    assert calibration is not None
    assert calibration.weights == weights_digest(read_weights(checkpoint))
    assert calibration.outer is None


def test_the_digest_knows_values_names_and_types() -> None:
    tensors = tiny_model().state_dict()
    name = next(iter(tensors))
    changed = [tensors | {name: tensors[name] + 1}, tensors | {name: tensors[name].double()}]
    changed.append({("x" + n if n == name else n): v for n, v in tensors.items()})
    assert len({weights_digest(each) for each in (tensors, *changed)}) == 4
    assert weights_digest(dict(reversed(tensors.items()))) == weights_digest(tensors)


def test_nothing_is_made_worse_silently(checkpoint: Path, data: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Six images of noise teach nothing: by default predicted IoUs stay, and whoever insists is told."""
    assert status(["calibrate", checkpoint, "--data", data]) == 0
    output = capsys.readouterr()
    about: dict[str, Any] = json.loads((checkpoint / "card.json").read_text())["calibration"]["about"]
    assert about["method"] in ("none", "linear", "temperature", "isotonic")
    assert "on images it did not learn from" in output.out
    assert "cross-validated" in output.out


def test_the_page_says_what_is_promised_and_kept(checkpoint: Path, data: Path, tmp_path: Path) -> None:
    save_calibration(PROMISES, checkpoint)
    assert status(["diagnose", checkpoint, "--data", data, "--out", tmp_path / "out"]) == 0
    notes = json.loads((tmp_path / "out" / "diagnosis.json").read_text())["notes"]
    promise = next(note for note in notes if note.startswith("Outer boxes hold"))
    assert "a probability of 90%" in promise
    assert "in images like those of val" in promise
    page = (tmp_path / "out" / "diagnosis.html").read_text(encoding="utf-8")
    assert "does not hold where images differ" in page
