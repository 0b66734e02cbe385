from __future__ import annotations

import json
from collections.abc import Callable, Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

from tests.helpers.data import three_images
from tests.helpers.exported import Exported
from tests.helpers.models import image_batch
from tightbox.data.records import DetectionData
from tightbox.export.int8 import LAYERS, Int8, Run, graph_of, kept_in_float, onnx_run, openvino_run, quantised
from tightbox.export.onnx_file import write_onnx
from tightbox.export.openvino_file import to_openvino
from tightbox.inference.detect import evaluate_model

openvino = pytest.importorskip("openvino", reason="the extra `export` is not installed")
nncf = pytest.importorskip("nncf", reason="the extra `export` is not installed")

Network = Callable[[Path], Any]
NETWORKS: dict[str, Network] = {"onnx": onnx.load, "openvino": to_openvino}
both = pytest.mark.parametrize("network", NETWORKS.values(), ids=NETWORKS)


def runnable(network: Any) -> Any:
    """What nncf gives to whoever measures AP."""
    if isinstance(network, onnx.ModelProto):
        return network
    return openvino.Core().compile_model(network, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})


def run_of(network: Any) -> Run:
    model = runnable(network)
    return onnx_run(model.SerializeToString()) if isinstance(model, onnx.ModelProto) else openvino_run(model)


@both
def test_the_last_layers_and_what_predicts_coordinates_stay_in_float(
    exported_vfnet: Exported, network: Network
) -> None:
    graph = graph_of(network(exported_vfnet.path))
    kept = kept_in_float(graph)
    types = {name: kind for name, (kind, _) in graph.items()}
    layers = [name for name, kind in types.items() if kind in ("Convolution", "Conv")]
    # Of each of the five levels: initial box, scale of the box, classes; and the offsets and masks of both towers.
    assert sum(name in kept for name in layers) == 5 * (3 + 2) < len(layers)
    assert {"Exp", "NonMaxSuppression"} <= {types[name] for name in kept}
    assert set(LAYERS) & set(types.values()) in (
        {"Conv", "DeformConv"},
        {"Convolution", "DeformableConvolution"},
    )


@both
def test_finds_about_the_same(exported_vfnet: Exported, tmp_path: Path, network: Network) -> None:
    exact, images = network(exported_vfnet.path), three_images(tmp_path)
    small = quantised(exact, exported_vfnet.model, Int8(images, images))
    kinds = [kind for kind, _ in graph_of(small).values()]
    assert max(kinds.count("FakeQuantize"), kinds.count("QuantizeLinear")) > 10
    batch = image_batch((64, 64))
    given = {"images": batch.pixels.numpy(), "sizes": np.array(batch.sizes, dtype=np.int64)}
    wanted, about = run_of(exact)(given), run_of(small)(given)
    assert about[4].tolist() == wanted[4].tolist()
    np.testing.assert_allclose(about[1], wanted[1], atol=0.01)
    assert not np.array_equal(about[1], wanted[1])


@both
def test_accuracy_is_the_ap_of_all_images_and_of_each(
    exported_vfnet: Exported, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, network: Network
) -> None:
    """Of the exact network it is what the detector has in PyTorch."""
    asked: dict[str, Any] = {}

    def control(network: Any, ranges: Any, val: Any, measure: Any, **options: Any) -> Any:
        asked.update(options, measured=measure(runnable(network), val.get_data(None)))
        return network

    monkeypatch.setattr(nncf, "quantize_with_accuracy_control", control)
    model, images = exported_vfnet.model, found_objects(exported_vfnet, three_images(tmp_path))
    quantised(network(exported_vfnet.path), model, Int8(images, images, max_drop=0.02))
    ap, alone = asked["measured"]
    expected = evaluate_model(model, images).ap
    assert expected is not None
    assert 0.5 < ap == pytest.approx(expected, abs=1e-6)
    one = evaluate_model(model, first(images, [1])).ap
    assert len(alone) == 3
    assert alone[1] == pytest.approx(one, abs=1e-6)
    assert asked["max_drop"] == 0.02


def first(data: DetectionData, indices: Iterable[int]) -> DetectionData:
    return replace(data, records=tuple(data.records[index] for index in indices))


def found_objects(exported: Exported, data: DetectionData) -> DetectionData:
    """The images with the detector's two best boxes as ground truth."""
    records = []
    for record in data.records:
        found = exported.model.predict(record.path)[:2]
        boxes, count = found.boxes.numpy(), len(found)
        area = (boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1])
        fields = {"boxes": boxes, "labels": found.labels.numpy(), "crowd": np.zeros(count, bool), "areas": area}
        records.append(replace(record, **fields))
    return replace(data, records=tuple(records))


def test_an_int8_file_says_so(exported_vfnet: Exported, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tightbox.export.onnx_file.to_onnx", lambda _: onnx.load(exported_vfnet.path))
    monkeypatch.setattr("tightbox.export.onnx_file.quantised", lambda network, *_: network)
    images = three_images(tmp_path)
    write_onnx(exported_vfnet.model, tmp_path / "model.onnx", int8=Int8(images, images, 0.01))
    (entry,) = onnx.load(tmp_path / "model.onnx").metadata_props
    assert json.loads(entry.value)["precision"] == "int8, by 3 images; at most 0.01 AP lost on 3"
    (entry,) = onnx.load(exported_vfnet.path).metadata_props
    assert json.loads(entry.value)["precision"] == "float32"
