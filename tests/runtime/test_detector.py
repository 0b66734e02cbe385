from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper
from PIL import Image

import tightbox_runtime
from tests.helpers.exported import Exported
from tightbox_runtime import Detector, UserError
from tightbox_runtime.cli import main

BOXES = [[[1.0, 2, 5, 7], [0, 0, 30, 30], [0, 0, 0, 0]]]


def stand_in(path: Path, *, ious: bool = True, metadata: dict[str, str] | None = None) -> Path:
    """A file that finds the same two boxes in every image of up to 20 pixels; the third row is empty."""
    outputs = {
        "boxes": (TensorProto.FLOAT, np.array(BOXES, np.float32)),
        "scores": (TensorProto.FLOAT, np.array([[0.9, 0.2, 0]], np.float32)),
        "labels": (TensorProto.INT64, np.array([[1, 0, -1]])),
        "ious": (TensorProto.FLOAT, np.array([[0.75, 0.5, np.nan]], np.float32)),
        "counts": (TensorProto.INT64, np.array([2])),
    }
    graph = helper.make_graph(
        [
            helper.make_node("Constant", [], [name], value=onnx.numpy_helper.from_array(v))
            for name, (_, v) in outputs.items()
        ],
        "stand-in",
        [
            helper.make_tensor_value_info("images", TensorProto.FLOAT, ["batch", 3, "height", "width"]),
            helper.make_tensor_value_info("sizes", TensorProto.INT64, ["batch", 2]),
        ],
        [helper.make_tensor_value_info(name, kind, v.shape) for name, (kind, v) in outputs.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
    about = {"format": 1, "class_names": ["cat", "dog"], "predicts_iou": ious}
    about |= {"preprocessing": {"long_side": 20, "short_side": 20}}
    helper.set_model_props(model, {"tightbox": json.dumps(about)} if metadata is None else metadata)
    onnx.save(model, path)
    return path


def image(path: Path, width: int = 80, height: int = 40) -> Path:
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8)).save(path)
    return path


def test_boxes_are_those_of_the_original(tmp_path: Path) -> None:
    """An image of 80x40 becomes 20x10, so boxes grow by 4 and are clipped to it."""
    detector = Detector(stand_in(tmp_path / "model.onnx"))
    found = detector.predict(image(tmp_path / "image.png"))
    assert found.boxes.tolist() == [[4, 8, 20, 28], [0, 0, 80, 40]]
    assert found.labels.tolist() == [1, 0]
    assert found.ious is not None
    assert found.ious.tolist() == [0.75, 0.5]
    assert len(found[found.scores > 0.5]) == 1
    assert detector.class_names == ("cat", "dog")


def test_without_predicted_ious(tmp_path: Path) -> None:
    found = Detector(stand_in(tmp_path / "model.onnx", ious=False)).predict(np.zeros((20, 20, 3), np.uint8))
    assert found.ious is None
    assert found[:1].ious is None


def test_the_same_as_the_package(exported_vfnet: Exported, tmp_path: Path) -> None:
    detector = Detector(exported_vfnet.path)
    paths = [
        image(tmp_path / f"{width}x{height}.png", width, height) for width, height in ((150, 90), (61, 200), (7, 5))
    ]
    expected = exported_vfnet.model.predict(paths)
    assert min(map(len, expected)) > 0
    for found, wanted in zip(detector.predict(paths), expected, strict=True):
        assert wanted.ious is not None
        torch.testing.assert_close(torch.from_numpy(found.boxes), wanted.boxes, rtol=0, atol=0.01)
        torch.testing.assert_close(torch.from_numpy(found.scores), wanted.scores, rtol=0, atol=1e-4)
        torch.testing.assert_close(torch.from_numpy(found.ious), wanted.ious, rtol=0, atol=1e-4)
        assert found.labels.tolist() == wanted.labels.tolist()


def test_files_that_are_not_its_own(tmp_path: Path) -> None:
    whole = stand_in(tmp_path / "model.onnx").read_bytes()
    (tmp_path / "cut.onnx").write_bytes(whole[: len(whole) // 2])
    (tmp_path / "text.onnx").write_text("no model")
    stand_in(tmp_path / "foreign.onnx", metadata={})
    stand_in(tmp_path / "damaged.onnx", metadata={"tightbox": "[1]"})
    stand_in(tmp_path / "newer.onnx", metadata={"tightbox": '{"format": 2}'})
    for name, sentence in (
        ("absent", "there is no file"),
        ("cut", "cannot be loaded"),
        ("text", "cannot be loaded"),
        ("foreign", "not one of tightbox"),
        ("damaged", "not one of tightbox"),
        ("newer", "upgrade tightbox-runtime"),
    ):
        with pytest.raises(UserError, match=sentence) as caught:
            Detector(tmp_path / f"{name}.onnx")
        assert "\n" not in str(caught.value)


@pytest.mark.parametrize("wrong", [np.zeros((4, 4, 3)), np.zeros((4, 4), np.uint8), np.zeros((0, 4, 3), np.uint8), 3])
def test_images_that_are_none(tmp_path: Path, wrong: object) -> None:
    with pytest.raises(UserError, match="array"):
        Detector(stand_in(tmp_path / "model.onnx")).predict(wrong)  # type: ignore[call-overload]


def test_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model, good = stand_in(tmp_path / "model.onnx"), image(tmp_path / "image.png")
    assert main(["predict", str(model), str(good), "--out", str(tmp_path / "out" / "results.json")]) == 0
    (row,) = json.loads((tmp_path / "out" / "results.json").read_text())  # the other score is below 0.3
    assert row["file"] == str(good)
    assert (row["class"], row["label"], row["bbox"], row["iou"]) == ("dog", 1, [4, 8, 16, 20], 0.75)
    assert main(["predict", str(model), str(good), "absent.png", "--score-threshold", "0"]) == 1
    shown = capsys.readouterr()
    assert len(json.loads(shown.out)) == 2
    assert (
        shown.err
        == "tightbox-runtime: cannot read absent.png: there is no such file; replace the file or leave it out\n"
    )
    assert main(["predict", str(model), str(good), "--score-threshold", "nan"]) == 2
    assert main(["predict", str(good), str(good)]) == 2
    assert main(["predict", str(model), str(good), "--out", str(model / "results.json")]) == 2
    assert capsys.readouterr().err.count("\n") == 3


def test_does_without_torch(tmp_path: Path) -> None:
    model, good = stand_in(tmp_path / "model.onnx"), image(tmp_path / "image.png")
    program = (
        "import sys; from tightbox_runtime.cli import main; status = main(sys.argv[1:]); "
        "bad = {'torch', 'torchvision', 'tightbox', 'onnx'} & set(sys.modules); sys.exit(status or ', '.join(bad) or 0)"
    )
    environment = os.environ | {"PYTHONPATH": str(Path(tightbox_runtime.__file__).parents[1])}
    command = [sys.executable, "-c", program, "predict", str(model), str(good)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    assert len(json.loads(done.stdout)) == 1
