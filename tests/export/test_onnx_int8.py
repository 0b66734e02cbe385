from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, helper, numpy_helper

from tightbox.export.int8 import integers_throughout, onnx_run, output_ranges

KERNEL = np.random.default_rng(0).integers(-127, 128, (6, 4, 1, 1)).astype(np.int8)
IMAGES = [{"images": np.random.default_rng(seed).uniform(-1, 1.5, (1, 4, 8, 8)).astype(np.float32)} for seed in (1, 2)]


def network(*, quantised: bool) -> onnx.ModelProto:
    """A convolution by 1x1 of signed integers, as nncf leaves it where a sigmoid takes its output."""
    images = helper.make_tensor_value_info("images", TensorProto.FLOAT, [1, 4, 8, 8])
    found = helper.make_tensor_value_info("found", TensorProto.FLOAT, [1, 6, 8, 8])
    constants = {
        "step": np.float32(0.01),
        "zero": np.int8(-28),  # so the integers stand for -1 to 1.55
        "kernel": KERNEL,
        "kernel step": np.float32(0.02),
        "kernel zero": np.int8(0),
    }
    nodes = [
        helper.make_node("QuantizeLinear", ["images", "step", "zero"], ["whole"], "whole"),
        helper.make_node("DequantizeLinear", ["whole", "step", "zero"], ["back"], "back"),
        helper.make_node("DequantizeLinear", ["kernel", "kernel step", "kernel zero"], ["weight"], "weight"),
        helper.make_node("Conv", ["back" if quantised else "images", "weight"], ["features"], "conv"),
        helper.make_node("Sigmoid", ["features"], ["found"], "sigmoid"),
    ]
    initializer = [numpy_helper.from_array(np.array(value), name) for name, value in constants.items()]
    graph = helper.make_graph(nodes, "g", [images], [found], initializer)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=9)


def convolutions(model: onnx.ModelProto, folder: Path) -> set[str]:
    """The types of those that ONNX Runtime makes of the graph."""
    settings = onnxruntime.SessionOptions()
    settings.optimized_model_filepath = str(folder / "optimised.onnx")
    onnxruntime.InferenceSession(model.SerializeToString(), settings, providers=["CPUExecutionProvider"])
    return {node.op_type for node in onnx.load(folder / "optimised.onnx").graph.node if "Conv" in node.op_type}


def features(images: np.ndarray) -> np.ndarray:
    """What the convolution gives, in NumPy."""
    found: np.ndarray = np.einsum("oc,bchw->bohw", KERNEL[:, :, 0, 0] * 0.02, images)
    return found


def test_ranges_are_of_all_images_and_of_no_kept_layer() -> None:
    exact = [features(given["images"]) for given in IMAGES]
    found = output_ranges(network(quantised=False), {"sigmoid"}, IMAGES)
    assert list(found) == ["features"]
    assert found["features"] == pytest.approx((np.min(exact), np.max(exact)), rel=1e-5)
    assert output_ranges(network(quantised=False), {"conv"}, IMAGES[:0]) == {}


def test_the_convolution_is_of_integers_and_gives_the_same(tmp_path: Path) -> None:
    given, left = network(quantised=True), network(quantised=True)
    made = integers_throughout(given, {"features": (-12.0, 13.5)})
    onnx.checker.check_model(made)
    assert given == left
    assert convolutions(made, tmp_path) == {"QLinearConv"}
    (images,) = (given["images"] for given in IMAGES[:1])
    rounded = np.clip(np.round(images / np.float32(0.01)), -100, 155) * 0.01
    (found,) = onnx_run(made.SerializeToString())({"images": images})
    about = np.log(found / (1 - found))
    exact = features(rounded)
    clear = abs(exact) < 8  # of these the sigmoid can be undone in float32
    assert clear.mean() > 0.9
    assert abs(about - exact)[clear].max() < 0.5 * 25.5 / 255 + 0.01
    assert abs(about - exact)[clear].max() > 0.02


def test_what_is_not_quantised_stays_as_it_is() -> None:
    exact = network(quantised=False)
    ranges = {"features": (-1.0, 1.0)}
    assert [n.op_type for n in integers_throughout(exact, ranges).graph.node] == [n.op_type for n in exact.graph.node]
    with_unknown_range = integers_throughout(network(quantised=True), {})
    assert [n.op_type for n in with_unknown_range.graph.node].count("QuantizeLinear") == 1
