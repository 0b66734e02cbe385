"""The mistakes of `tightbox export`; what it writes is tested beside the code that does."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from tests.helpers.commands import assert_one_sentence, status
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
    tiny_iou_net().save(tmp_path / "checkpoint")
    out = tmp_path / "model.onnx"
    assert status(["export", tmp_path / "checkpoint", "--format", "onnx", "--out", out]) == 2
    assert_one_sentence(capsys, "an IoU-Net cannot be exported")
    assert not out.exists()
