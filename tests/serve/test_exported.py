"""A file for ONNX Runtime is served with the answers of its checkpoint."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from onnx import helper
from PIL import Image

from tests.helpers.exported import Exported
from tests.helpers.serving import image_bytes, serving
from tests.serve.conftest import ready_client
from tightbox.errors import UserError
from tightbox.serve.app import create_app
from tightbox.serve.exported import of_onnx
from tightbox.serve.predictor import of_checkpoint


def test_detections_are_those_of_the_checkpoint(exported_vfnet: Exported) -> None:
    """Images of several shapes within what an export may differ by."""
    random = np.random.default_rng(0)
    sizes = ((150, 90), (61, 200), (150, 90), (7, 5))
    images = [Image.fromarray(random.integers(0, 256, (h, w, 3), dtype=np.uint8)) for w, h in sizes]
    checkpoint, exported = of_checkpoint(exported_vfnet.model), of_onnx(exported_vfnet.path)
    assert exported.preprocess == checkpoint.preprocess
    for attribute in ("system", "class_names", "calibrated", "score_threshold"):
        assert getattr(exported, attribute) == getattr(checkpoint, attribute)
    expected, found = (p.predict([p.prepare(image) for image in images]) for p in (checkpoint, exported))
    assert sum(map(len, found)) > 0
    for a, b in zip(found, expected, strict=True):
        assert a.labels.tolist() == b.labels.tolist()
        torch.testing.assert_close(a.boxes, b.boxes, rtol=0, atol=0.01)
        torch.testing.assert_close(a.scores, b.scores, rtol=0, atol=1e-4)
        torch.testing.assert_close(a.ious, b.ious, rtol=0, atol=1e-4)


def test_it_is_served(exported_vfnet: Exported) -> None:
    with serving(create_app(of_onnx(exported_vfnet.path))) as url, ready_client(url) as client:
        answer = client.post("/predict?score_threshold=0", content=image_bytes((80, 60), colour=(200, 40, 40)))
        about = client.get("/v2/models/tightbox").json()
    assert len(answer.json()["detections"]) > 0
    assert about["platform"] == "tightbox_vfnet"
    assert about["parameters"]["predicts_iou"]


def other_file(path: Path, about: dict[str, object] | None) -> Path:
    graph = helper.make_graph(
        [helper.make_node("Identity", ["x"], ["y"])],
        "other",
        *([helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, [1])] for name in "xy"),
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
    if about is not None:
        helper.set_model_props(model, {"tightbox": json.dumps(about)})
    onnx.save(model, path)
    return path


def test_other_files_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "model.onnx"
    with pytest.raises(UserError, match="there is no file"):
        of_onnx(path)
    path.write_text("no protobuf")
    with pytest.raises(UserError, match="cannot be loaded"):
        of_onnx(path)
    with pytest.raises(UserError, match="not one of tightbox"):
        of_onnx(other_file(path, None))
    with pytest.raises(UserError, match="has format 2, not 1"):
        of_onnx(other_file(path, {"format": 2}))


def test_a_device_that_is_not_there(exported_vfnet: Exported) -> None:
    with pytest.raises(UserError, match="--device tpu"):
        of_onnx(exported_vfnet.path, "tpu")


def test_without_onnx_runtime(exported_vfnet: Exported, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    with pytest.raises(UserError, match=r"tightbox\[serve\]"):
        of_onnx(exported_vfnet.path)
