from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.helpers.exported import SIZES, Exported, assert_same, read_densely
from tests.helpers.models import image_batch
from tightbox.export.openvino_file import to_openvino
from tightbox.structures import ImageBatch

openvino = pytest.importorskip("openvino", reason="the extra `export` is not installed")


def compiled(model: Any) -> Any:
    return openvino.Core().compile_model(model, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})


def found(network: Any, batch: ImageBatch) -> list[Any]:
    inputs = {"images": batch.pixels.numpy(), "sizes": np.array(batch.sizes, dtype=np.int64)}
    return [np.array(value) for value in network(inputs).values()]


def test_detects_the_same(exported_vfnet: Exported, tmp_path: Path) -> None:
    openvino.serialize(to_openvino(exported_vfnet.path), tmp_path / "model.xml")
    model = openvino.Core().read_model(tmp_path / "model.xml")
    assert "class_names" in str(model.get_rt_info(["tightbox"]).astype(str))
    network = compiled(model)
    for sizes in SIZES:
        batch = image_batch(*sizes)
        assert_same(found(network, batch), exported_vfnet.model.detect(batch))


@pytest.mark.parametrize("exported", ["exported_iou_net", "exported_retinanet"])
def test_others_detect_the_same(exported: str, request: pytest.FixtureRequest) -> None:
    made: Exported = request.getfixturevalue(exported)
    network = compiled(to_openvino(made.path))
    for sizes in SIZES:
        batch = image_batch(*sizes)
        assert_same(found(network, batch), made.model.detect(batch))


def test_a_unitbox_is_read_densely(exported_unitbox: Exported) -> None:
    network = compiled(to_openvino(exported_unitbox.path))
    for sizes in SIZES:
        batch = image_batch(*sizes)
        assert_same(found(network, batch), read_densely(exported_unitbox.model, batch))
