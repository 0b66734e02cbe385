"""The mistakes of `tightbox export`; what it writes is tested beside the code that does."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from tests.helpers.commands import assert_one_sentence, status
from tests.helpers.data import one_image_coco
from tests.helpers.models import tiny_iou_net, tiny_model


@pytest.mark.parametrize(
    ("format", "out", "parts"),
    [
        ("onnx", "{here}", ["is a folder; name the file to write, such as", "model.onnx"]),
        ("onnx", "{here}/file/model.onnx", ["cannot write"]),
        ("openvino", "{here}/model.onnx", ["OpenVINO's files end in .xml; name it", "model.xml"]),
    ],
)
def test_paths_that_cannot_be_written(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], format: str, out: str, parts: list[str]
) -> None:
    tiny_model().save(tmp_path / "checkpoint")
    (tmp_path / "file").touch()
    before = sorted(tmp_path.rglob("*"))
    arguments = ["export", tmp_path / "checkpoint", "--format", format, "--out", out.format(here=tmp_path)]
    assert status(arguments) == 2
    assert_one_sentence(capsys, *parts)
    assert sorted(tmp_path.rglob("*")) == before


@pytest.mark.parametrize(("format", "package"), [("onnx", "onnx"), ("onnx", "onnxscript"), ("openvino", "openvino")])
def test_a_missing_extra_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], format: str, package: str
) -> None:
    tiny_model().save(tmp_path / "checkpoint")
    monkeypatch.setitem(sys.modules, package, None)
    out = tmp_path / "model.xml"
    assert status(["export", tmp_path / "checkpoint", "--format", format, "--out", out]) == 2
    assert_one_sentence(capsys, f"{package} is not installed; it comes with: pip install 'tightbox[export]'")
    assert not out.exists()


def test_a_detector_that_cannot_be_expressed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    tiny_iou_net(standalone=True).save(tmp_path / "checkpoint")
    out = tmp_path / "model.onnx"
    assert status(["export", tmp_path / "checkpoint", "--format", "onnx", "--out", out]) == 2
    assert_one_sentence(capsys, "a standalone IoU head cannot be exported")
    assert not out.exists()


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        (["--format", "openvino", "--int8"], "--int8 and --data belong together: give both, or leave out both"),
        (["--format", "openvino", "--data", "{here}/data"], "--int8 and --data belong together"),
        (["--format", "mmdet", "--int8", "--data", "{here}/data"], "--int8 is of --format onnx and openvino, not of"),
        (["--format", "onnx", "--int8", "--data", "{here}/data", "--max_drop", "5"], "--max-drop is 5; give the AP"),
        (
            ["--format", "openvino", "--int8", "--data", "{here}/data"],
            "has the classes lion, and the checkpoint cat, dog;",
        ),
    ],
)
def test_mistakes_of_int8(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], options: list[str], sentence: str
) -> None:
    tiny_model().save(tmp_path / "checkpoint")
    one_image_coco(tmp_path / "data" / "train.json", tmp_path / "data" / "images" / "1.png", ["lion"])
    given = [option.format(here=tmp_path) for option in options]
    assert status(["export", tmp_path / "checkpoint", "--out", tmp_path / "model.xml", *given]) == 2
    assert_one_sentence(capsys, sentence)
    assert not (tmp_path / "model.xml").exists()
