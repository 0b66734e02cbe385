"""Ranking and suppression as options of `tightbox eval`, and `tightbox oracle`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from torch import nn

from tests.helpers.commands import assert_one_sentence, status
from tests.helpers.data import three_images
from tests.helpers.models import tiny_model, tiny_retinanet
from tightbox.calibration import Calibration, IouCalibration
from tightbox.models import Detector, IoUAwareRetinaNet
from tightbox.promises import Margins


def detector(**options: Any) -> Detector:
    """Scores and IoUs differ from anchor to anchor."""
    model = tiny_retinanet(**({"top_k": 20} | options))
    assert model.head.classes.bias is not None
    nn.init.zeros_(model.head.classes.bias)
    for layer in (model.head.classes, model.head.iou):
        if layer is not None:
            nn.init.normal_(layer.weight, std=0.3)
    return model


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    return detector().save(tmp_path / "model")


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """A COCO folder with three images of which two have objects."""
    root = tmp_path / "data"
    (root / "images").mkdir(parents=True)
    truth = three_images(root / "images").to_coco()
    for name in ("train.json", "val.json"):
        (root / name).write_text(json.dumps(truth))
    return root


def results(checkpoint: Path, data: Path, out: Path, *rules: str) -> list[dict[str, Any]]:
    assert status(["eval", checkpoint, "--data", data, "--out", out, *rules]) == 0
    found: list[dict[str, Any]] = json.loads((out / "results.json").read_text())
    assert found
    return found


@pytest.mark.parametrize(
    ("rules", "alpha"),
    [
        (["--rank", "power", "--alpha", "0.3"], 0.3),
        (["--rank", "power"], 0.5),
        (["--rank", "class"], 1.0),
        (["--rank", "iou"], 0.0),
        (["--rank", "own", "--nms-iou", "0.5"], 0.5),  # the detector's own threshold
    ],
)
def test_a_rule_gives_what_a_detector_with_that_rule_gives(
    data: Path, checkpoint: Path, tmp_path: Path, rules: list[str], alpha: float
) -> None:
    same = detector(alpha=alpha).save(tmp_path / "same")
    assert results(checkpoint, data, tmp_path / "a", *rules) == results(same, data, tmp_path / "b")
    assert len(list(checkpoint.glob("candidates/*/index.json"))) == 1


@pytest.mark.parametrize(
    ("rules", "held"),
    [([], True), (["--nms-iou", "0.4"], False), (["--flip"], False)],
    ids=["own", "another threshold", "views"],
)
def test_outer_boxes_are_of_the_rules_that_their_margins_were_learned_from(
    data: Path, tmp_path: Path, rules: list[str], held: bool
) -> None:
    model = detector()
    margins = Margins(0.9, "size", (0.1,) * 4, (), (), (), {})
    halved, thresholds = IouCalibration((0.0, 1.0), (0.0, 0.5)), ((0.25,) * 51,) * 10
    model.calibration = Calibration(halved, thresholds, {}, outer=margins, inner=margins)
    found = results(model.save(tmp_path / "model"), data, tmp_path / "out", *rules)
    assert {"outer_bbox" in row for row in found} == {held}
    assert all(row["iou"] <= 0.5 for row in found)  # calibrated in any case


def test_thresholds(data: Path, checkpoint: Path, tmp_path: Path) -> None:
    """As of a detector with these options, and different from the detector's own."""
    same = detector(nms_iou=0.2, score_threshold=0.5).save(tmp_path / "same")
    found = results(checkpoint, data, tmp_path / "a", "--nms-iou", "0.2", "--score-threshold", "0.5")
    assert found == results(same, data, tmp_path / "b")
    assert min(row["score"] for row in found) > 0.5
    assert found != results(checkpoint, data, tmp_path / "c")


def test_class_agnostic(data: Path, checkpoint: Path, tmp_path: Path) -> None:
    rules = ("--nms-iou", "0", "--class-agnostic")
    found = results(checkpoint, data, tmp_path / "a", *rules)
    for image in {row["image_id"] for row in found}:
        boxes = [row["bbox"] for row in found if row["image_id"] == image]
        for i, (x, y, w, h) in enumerate(boxes):
            for left, top, width, height in boxes[:i]:
                across = min(x + w, left + width) - max(x, left)
                down = min(y + h, top + height) - max(y, top)
                assert min(across, down) <= 0.002  # coordinates are rounded to 0.001


def test_a_sweep_runs_the_network_once(
    data: Path, checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    runs: list[int] = []
    forward = IoUAwareRetinaNet.forward

    def counted(*args: Any) -> Any:
        runs.append(1)
        return forward(*args)

    monkeypatch.setattr(IoUAwareRetinaNet, "forward", counted)
    arguments = ("eval", checkpoint, "--data", data, "--alpha-sweep", "--out", tmp_path / "out")
    assert status([*arguments]) == 0
    assert status([*arguments]) == 0
    assert len(runs) == 1
    rows = json.loads((tmp_path / "out" / "alpha_sweep.json").read_text())
    assert [row["alpha"] for row in rows] == pytest.approx([i / 10 for i in range(11)])
    table = [line.split() for line in capsys.readouterr().out.splitlines() if line.startswith("  0.3")]
    assert table == [["0.3", *(f"{100 * rows[3][name]:.1f}" for name in ("ap", "ap50", "ap75", "ap90"))]] * 2
    assert (
        status(["eval", checkpoint, "--data", data, "--rank", "power", "--alpha", "0.3", "--out", tmp_path / "b"]) == 0
    )
    metrics = json.loads((tmp_path / "b" / "metrics.json").read_text())
    assert {"alpha": rows[3]["alpha"]} | metrics == rows[3]
    assert len(runs) == 1


@pytest.mark.parametrize("rule", ["greedy", "voting", "soft_linear", "soft_gaussian", "iou_guided"])
def test_suppression_rules(data: Path, checkpoint: Path, tmp_path: Path, rule: str) -> None:
    found = results(checkpoint, data, tmp_path / "a", "--suppress", rule, "--nms-iou", "0.1")
    own = results(checkpoint, data, tmp_path / "b", "--nms-iou", "0.1")
    assert (found == own) is (rule == "greedy")
    assert max(sum(row["image_id"] == image for row in found) for image in (10, 11, 12)) <= 20


def test_the_width_of_soft_suppression_matters(data: Path, checkpoint: Path, tmp_path: Path) -> None:
    wide, narrow = (
        results(checkpoint, data, tmp_path / sigma, "--suppress", "soft_gaussian", "--sigma", sigma)
        for sigma in ("5", "0.1")
    )
    # Wider is softer: the boxes' scores fall less.
    assert sum(row["score"] for row in wide) > sum(row["score"] for row in narrow)


def test_unreadable_images_are_passed_over_if_told(
    data: Path, checkpoint: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (data / "images" / "1.png").unlink()
    arguments = ("eval", checkpoint, "--data", data, "--rank", "class")
    assert status([*arguments]) == 2
    assert "1.png" in capsys.readouterr().err
    assert status([*arguments, "--skip-unreadable", "true"]) == 0


@pytest.mark.parametrize(
    ("rules", "parts"),
    [
        (["--rank", "power", "--alpha", "1.5"], ["--alpha"]),
        (["--rank", "power", "--alpha", "-0.1"], ["--alpha"]),
        (["--rank", "power", "--alpha", "nan"], ["--alpha"]),
        (["--alpha", "0.3"], ["--alpha is the weight of the class score in --rank power: give that too"]),
        (["--rank", "class", "--alpha", "0.3"], ["--rank power"]),
        (["--rank", "best"], ["--rank", "power"]),
        (["--suppress", "hard"], ["--suppress", "greedy"]),
        (["--nms-iou", "1.1"], ["--nms-iou"]),
        (["--score-threshold", "-1"], ["--score-threshold"]),
    ],
)
def test_mistakes_are_one_sentence(
    data: Path, checkpoint: Path, capsys: pytest.CaptureFixture[str], rules: list[str], parts: list[str]
) -> None:
    assert status(["eval", checkpoint, "--data", data, *rules]) == 2
    assert_one_sentence(capsys, *parts)
    assert not (checkpoint / "candidates").exists()


@pytest.mark.parametrize("rules", [["--rank", "power"], ["--rank", "iou"], ["--alpha-sweep"]])
def test_a_detector_without_estimates_says_so(
    data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], rules: list[str]
) -> None:
    plain = detector(iou_head=False).save(tmp_path / "plain")
    assert status(["eval", plain, "--data", data, *rules]) == 2
    assert "this detector predicts no IoU; rank by its class score instead" in capsys.readouterr().err


def test_vfnet_is_ranked_by_these_rules_too(data: Path, tmp_path: Path) -> None:
    """Its estimate is its class score, so that p^α·p^(1−α) is p."""
    checkpoint = tiny_model().save(tmp_path / "vfnet")
    own = results(checkpoint, data, tmp_path / "a")
    for number, rule in enumerate(("class", "iou")):
        assert results(checkpoint, data, tmp_path / str(number), "--rank", rule) == own


# The oracle


def test_oracle_of_a_detector(data: Path, checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "out"
    assert status(["oracle", checkpoint, "--data", data, "--out", out]) == 0
    study = json.loads((out / "oracle.json").read_text())
    names = [variant["name"] for variant in study["variants"]]
    assert names[0] == "as predicted"
    assert names[-1] == "class score := true IoU"
    assert len(names) == 6
    assert study["variants"][1]["alone"] is None
    ideal, now = study["variants"][-1]["alone"]["ap"], study["variants"][0]["with_estimate"]["ap"]
    assert study["lost_to_ranking"] == pytest.approx(ideal - now)
    assert ideal > now
    assert (out / "ladder.png").read_bytes().startswith(b"\x89PNG")
    shown = capsys.readouterr().out
    assert all(name in shown for name in names)
    assert f"AP lost to ranking: {100 * (ideal - now):.1f}" in shown
    assert "Final boxes only" not in shown


def test_oracle_of_a_result_file(data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    truth = json.loads((data / "val.json").read_text())
    keys = ("image_id", "category_id", "bbox")
    rows = [{k: annotation[k] for k in keys} | {"score": 0.5} for annotation in truth["annotations"]]
    (tmp_path / "results.json").write_text(json.dumps(rows))
    out = tmp_path / "out"
    assert status(["oracle", "--gt", data / "val.json", "--dt", tmp_path / "results.json", "--out", out]) == 0
    study = json.loads((out / "oracle.json").read_text())
    assert [variant["alone"]["ap"] for variant in study["variants"]] == pytest.approx([1.0] * 4)
    assert study["lost_to_ranking"] == pytest.approx(0)
    shown = capsys.readouterr().out
    assert "what suppression removed cannot be known" in shown
    assert "with estimate" not in shown


@pytest.mark.parametrize(
    ("arguments", "parts"),
    [
        ([], ["give either a checkpoint and --data, or a ground truth --gt and a result file --dt"]),
        (["{checkpoint}"], ["give either a checkpoint and --data"]),
        (["--data", "{data}"], ["give either a checkpoint and --data"]),
        (["--gt", "{data}/val.json"], ["give either a checkpoint and --data"]),
        (["{checkpoint}", "--data", "{data}", "--gt", "{data}/val.json"], ["give either"]),
        (["{checkpoint}", "--data", "{data}", "--gt", "{data}/val.json", "--dt", "{tmp}/list.json"], ["give either"]),
        (["--data", "{data}", "--gt", "{data}/val.json", "--dt", "{tmp}/list.json"], ["give either"]),
        (["nowhere", "--data", "{data}"], ["nowhere is not a checkpoint"]),
        (["{checkpoint}", "--data", "nowhere"], ["nowhere does not exist"]),
        (["{checkpoint}", "--data", "{data}", "--split", "test"], ["has no split 'test'"]),
        (["--gt", "nowhere.json", "--dt", "{tmp}/list.json"], ["cannot read nowhere.json: No such file"]),
        (["--gt", "{data}/val.json", "--dt", "{tmp}/cut.json"], ["cut.json is not valid JSON", "cut off"]),
        (["--gt", "{data}/val.json", "--dt", "{tmp}/bytes.json"], ["bytes.json is not text at byte 2"]),
        (["--gt", "{tmp}/list.json", "--dt", "{tmp}/list.json"], ["the ground truth is a list, as results are"]),
        (["--gt", "{data}/val.json", "--dt", "{data}/val.json"], ["the results must be a list of detections"]),
        (
            ["--gt", "{data}/val.json", "--dt", "{tmp}/numbers.json"],
            ["result 1 must be an object with the field image_id"],
        ),
        (
            ["--gt", "{data}/val.json", "--dt", "{tmp}/list.json"],
            ["result 1 must be an object with the field image_id"],
        ),
        (
            ["--gt", "{data}/val.json", "--dt", "{tmp}/percent.json"],
            ["result 1 has the score 90", "percentages by 100"],
        ),
        (["--gt", "{data}/val.json", "--dt", "{tmp}/unknown.json"], ["the image_id 9999", "belong together"]),
        (["--gt", "{tmp}/nameless.json", "--dt", "{tmp}/none.json"], ["category with the id 1 has no name; add one"]),
    ],
)
def test_mistakes_of_the_oracle_are_one_sentence(
    data: Path,
    checkpoint: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    arguments: list[str],
    parts: list[str],
) -> None:
    (tmp_path / "list.json").write_text('[{"score": 1}]')
    (tmp_path / "numbers.json").write_text("[1, 2]")
    row = {"image_id": 10, "category_id": 1, "bbox": [4, 4, 30, 30], "score": 0.9}
    (tmp_path / "percent.json").write_text(json.dumps([row | {"score": 90}]))
    (tmp_path / "unknown.json").write_text(json.dumps([row | {"image_id": 9999}]))
    (tmp_path / "nameless.json").write_text('{"images": [], "annotations": [], "categories": [{"id": 1}]}')
    (tmp_path / "none.json").write_text("[]")
    (tmp_path / "cut.json").write_text('[{"score": 1')
    (tmp_path / "bytes.json").write_bytes(b"\xff\xfe\x00")
    out = tmp_path / "out"
    given = [a.format(checkpoint=checkpoint, data=data, tmp=tmp_path) for a in arguments]
    assert status(["oracle", *given, "--out", out]) == 2
    assert_one_sentence(capsys, *parts)
    assert not out.exists()
