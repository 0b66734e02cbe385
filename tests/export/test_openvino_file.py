from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.helpers.data import three_images
from tests.helpers.exported import SIZES, Exported, assert_same
from tests.helpers.models import image_batch
from tightbox.export.int8 import LAYERS, kept_in_float, quantised
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


def test_an_iou_net_detects_the_same(exported_iou_net: Exported) -> None:
    network = compiled(to_openvino(exported_iou_net.path))
    for sizes in SIZES:
        batch = image_batch(*sizes)
        assert_same(found(network, batch), exported_iou_net.model.detect(batch))


def test_the_last_layers_and_what_predicts_coordinates_stay_in_float(exported_vfnet: Exported) -> None:
    network = to_openvino(exported_vfnet.path)
    kept = kept_in_float(network)
    types = {node.get_friendly_name(): node.get_type_name() for node in network.get_ops()}
    layers = [name for name in types if types[name] == "Convolution"]
    # Of each of the five levels: initial box, scale of the box, classes; and the offsets and masks of both towers.
    assert sum(name in kept for name in layers) == 5 * (3 + 2) < len(layers)
    assert {"Exp", "NonMaxSuppression"} <= {types[name] for name in kept}
    assert set(LAYERS) & set(types.values()) == {"Convolution", "DeformableConvolution"}


def test_int8_finds_about_the_same(exported_vfnet: Exported, tmp_path: Path) -> None:
    network = to_openvino(exported_vfnet.path)
    small = quantised(network, exported_vfnet.model, three_images(tmp_path))
    types = [node.get_type_name() for node in small.get_ops()]
    assert types.count("FakeQuantize") > 10
    batch = image_batch((64, 64))
    exact, about = found(compiled(network), batch), found(compiled(small), batch)
    assert about[4].tolist() == exact[4].tolist()
    np.testing.assert_allclose(about[1], exact[1], atol=0.01)
