"""Options that would have been ignored, paths that are no paths, and what must not be deleted."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.helpers.commands import assert_one_sentence, status
from tests.helpers.data import noise_image as image
from tests.helpers.models import tiny_iou_net

TRAIN = ["train", "--data", "d", "--out", "o"]
RESCORE = ["rescore", "m", "--data", "d", "--dt", "r.json"]


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["train"], "train needs --data and --out (see tightbox train --help)"),
        (["predict", "m"], "predict needs --out"),
        (["predict", "m", "--out", "o"], "predict needs a SOURCE"),
        (["eval", "--data", "d"], "eval needs CHECKPOINT (see"),
        (["eval", "m", "--data", ""], "data is empty"),
        (["predict", "m", "", "--out", "o"], "source is empty"),
        (["predict", "m", "a.jpg", "--out", ""], "out is empty"),
        (["eval", "m", "--data", "d", "--sigma", "0.1"], "give that too"),
        (["eval", "m", "--data", "d", "--alpha", "0.1"], "give that too"),
        (["eval", "m", "--data", "d", "--alpha-sweep", "--alpha", "0.2"], "leave out --rank and --alpha"),
        (["eval", "m", "--data", "d", "--alpha-sweep", "--rank", "iou"], "leave out --rank and --alpha"),
        ([*RESCORE, "--out", "o", "--alpha", "0"], "give that too"),
        ([*RESCORE, "--out", "o", "--nms-iou", "0.3"], "--nms-iou belongs to suppression"),
        ([*RESCORE, "--out", "o", "--max-detections", "3"], "--max-detections belongs to suppression"),
        ([*RESCORE, "--out", "{folder}"], "is a folder; name the file"),
        (["doctor", __file__], "is a file, not the folder of a data set"),
        (["train", "--data", __file__, "--out", "o"], "is a file, not the folder of a data set"),
        (["demo", "--minutes", "0"], "minutes is 0.0; it must be more than 0"),
        (["demo", "--minutes", "nan"], "--minutes: Expected a <class 'float'>. Got value: nan"),
        (["train", "--data", "d", "--out", "o", "--minutes", "nan"], "Expected a <class 'float'>. Got value: nan"),
        (["train", "--data", "d", "--out", "o", "--minutes", ".nan"], "minutes is nan; it must be a finite number"),
        (["demo", "--device", "cuda:77"], "--device cuda:77 cannot be used here"),
        (["train", "--data", "d", "--out", "o", "--minutes", "-1"], "minutes is -1.0; it must be more than 0"),
        (["train", "--data", "d", "--out", "o", "--minutes", "2", "--epochs", "100"], "either --minutes or --epochs"),
        (["demo", "--seed", "-1"], "--seed"),
        # What jsonargparse, or PyYAML below it, passes on as other errors than its own.
        (["eval", "m", "--data", "d", "--nms-iou", "!!timestamp x"], "a value cannot be read ("),
        (["eval", "m", "--data", "d", "--nms-iou", "!!int ''"], "a value cannot be read ("),
        ([*TRAIN, "--vfnet.score-threshold", "1" + "0" * 400], "a value cannot be read (int too large"),
        ([*TRAIN, "--init"], "expected one argument"),
        ([*TRAIN, "--config"], "expected one argument"),
    ],
)
def test_one_sentence_before_anything_is_read(
    arguments: list[str], sentence: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert status([argument.format(folder=tmp_path) for argument in arguments]) == 2
    assert_one_sentence(capsys, sentence)


def test_the_demo_deletes_nothing_that_no_demo_made(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "precious.txt").write_text("mine")
    assert status(["demo", "--out", str(tmp_path)]) == 2
    assert_one_sentence(capsys, f"{tmp_path / 'run'} exists and no demo made it; choose another --out")
    assert (tmp_path / "run" / "precious.txt").read_text() == "mine"


def test_a_lower_score_threshold_than_the_models_own_shows_more(data: Path, tmp_path: Path) -> None:
    model = tiny_iou_net(score_threshold=0.34).save(tmp_path / "model")
    found = {}
    for threshold in ("0.34", "0.01"):
        out = tmp_path / threshold
        arguments = ["predict", str(model), str(image(tmp_path / "a.png")), "--score-threshold", threshold]
        assert status([*arguments, "--out", str(out)]) == 0
        found[threshold] = json.loads((out / "results.json").read_text())
    assert min(row["score"] for row in found["0.01"]) < 0.34
    assert len(found["0.34"]) < len(found["0.01"])


def test_rules_say_that_they_refine_nothing(data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model = tiny_iou_net().save(tmp_path / "model")
    names = ["--classes", "cat", "dog"]
    assert status(["eval", str(model), "--data", str(data), *names, "--max-detections", "5"]) == 0
    assert "boxes are not refined" in capsys.readouterr().err
    assert status(["eval", str(model), "--data", str(data), *names]) == 0
    assert "boxes are not refined" not in capsys.readouterr().err
