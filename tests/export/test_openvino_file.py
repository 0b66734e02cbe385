from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from tests.helpers.exported import SIZES, Exported, assert_same
from tests.helpers.models import image_batch
from tightbox.export.openvino_file import to_openvino

openvino = pytest.importorskip("openvino", reason="the extra `export` is not installed")


def test_detects_the_same(exported_vfnet: Exported, tmp_path: Path) -> None:
    openvino.serialize(to_openvino(exported_vfnet.path), tmp_path / "model.xml")
    core = openvino.Core()
    model = core.read_model(tmp_path / "model.xml")
    assert "class_names" in str(model.get_rt_info(["tightbox"]).astype(str))
    compiled = core.compile_model(model, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    for sizes in SIZES:
        batch = image_batch(*sizes)
        inputs = {"images": batch.pixels.numpy(), "sizes": np.array(batch.sizes, dtype=np.int64)}
        outputs = [np.array(value) for value in compiled(inputs).values()]
        assert_same(outputs, exported_vfnet.model.detect(batch))
