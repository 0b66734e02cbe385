"""A file for ONNX Runtime is served with the answers of its checkpoint."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from tests.helpers.exported import Exported
from tests.helpers.serving import image_bytes, serving
from tests.runtime.test_detector import stand_in
from tests.serve.conftest import ready_client
from tightbox.errors import UserError
from tightbox.options import ServeOptions
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


ALONE = ServeOptions(max_batch=1)
ABOUT = {
    "format": 1,
    "model": "vfnet",
    "class_names": ["cat", "dog"],
    "preprocessing": {"long_side": 32, "short_side": 32},
    "score_threshold": 0.05,
    "predicts_iou": True,
    "calibrated": False,
}


def with_metadata(path: Path, about: object) -> Path:
    return stand_in(path, metadata={} if about is None else {"tightbox": json.dumps(about)})


def test_boxes_are_those_of_the_original(tmp_path: Path) -> None:
    """80x40 becomes 32x16, so the file's boxes (1, 2, 5, 7) and (0, 0, 30, 30) grow by 2.5 and are clipped."""
    predictor = of_onnx(with_metadata(tmp_path / "model.onnx", ABOUT))
    assert predictor.calibrated is False
    (found,) = predictor.predict([predictor.prepare(Image.new("RGB", (80, 40)))])
    assert found.boxes.tolist() == [[2.5, 5, 12.5, 17.5], [0, 0, 75, 40]]
    assert found.labels.tolist() == [1, 0]
    assert found.ious is not None
    assert found.ious.tolist() == [0.75, 0.5]


def test_it_is_served(tmp_path: Path) -> None:
    """The stand-in takes one image at a time."""
    app = create_app(of_onnx(with_metadata(tmp_path / "model.onnx", ABOUT | {"predicts_iou": False})), options=ALONE)
    with serving(app) as url, ready_client(url) as client:
        rows = client.post("/predict", content=image_bytes((80, 40))).json()["detections"]
        about = client.get("/v2/models/tightbox").json()
    (row,) = rows  # the other score is below 0.3
    assert row == {"box": [2.5, 5, 12.5, 17.5], "score": 0.9, "label": 1, "class": "dog"}
    assert about["platform"] == "tightbox_vfnet"
    assert not about["parameters"]["predicts_iou"]


def test_other_files_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "model.onnx"
    with pytest.raises(UserError, match="there is no file"):
        of_onnx(path)
    path.write_text("no protobuf")
    with pytest.raises(UserError, match="cannot be loaded"):
        of_onnx(path)
    with pytest.raises(UserError, match="not one of tightbox"):
        of_onnx(with_metadata(path, None))
    with pytest.raises(UserError, match="not one of tightbox"):
        of_onnx(with_metadata(path, [1]))
    with pytest.raises(UserError, match="has format 2, not 1"):
        of_onnx(with_metadata(path, {"format": 2}))


def test_a_device_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="--device tpu"):
        of_onnx(with_metadata(tmp_path / "model.onnx", ABOUT), "tpu")


def test_without_onnx_runtime(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    with pytest.raises(UserError, match=r"tightbox\[serve\]"):
        of_onnx(tmp_path / "model.onnx")
