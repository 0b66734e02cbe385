"""Int8 by nncf's post-training quantisation; decoding, sampling coordinates and the tail stay in floats."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np

from tightbox.data.dataset import DetectionDataset
from tightbox.data.records import DetectionData
from tightbox.errors import import_extra
from tightbox.export.onnx_int8 import integers_throughout, output_ranges
from tightbox.export.running import Run, detect_with, inputs, onnx_run, openvino_run
from tightbox.inference.detect import evaluate_detections
from tightbox.models import Detector
from tightbox.structures import Detections

MOST_IMAGES = 300  # whose activations give the ranges
# Of OpenVINO, then of ONNX.
LAYERS = ("Convolution", "GroupConvolution", "MatMul", "DeformableConvolution", "Conv", "Gemm", "DeformConv")
Graph = dict[str, tuple[str, list[str]]]  # of each node its operator, and what gives its inputs, "" for a constant
COORDINATES = {"DeformableConvolution": (1, 3), "DeformConv": (2, 4)}  # offsets, and the mask predicted with them


@dataclass(frozen=True)
class Int8:
    """What makes and judges a detector of 8-bit integers.

    Attributes:
        data: images like those to come, which show the ranges of activations.
        val: images with ground truth, on which AP is measured.
        max_drop: AP that it may lose there; layers go back to floats, the worst ones first, until it loses no more.
    """

    data: DetectionData
    val: DetectionData
    max_drop: float = 0.005

    def __str__(self) -> str:
        return f"int8, by {len(self.data.records)} images; at most {self.max_drop:g} AP lost on {len(self.val.records)}"


def quantised(network: Any, model: Detector, how: Int8) -> Any:
    """A detector's `openvino.Model` or `onnx.ModelProto` with int8 weights and activations.

    Args:
        network: from `to_openvino` or `to_onnx`.
        model: the detector, whose preprocessing is used.
        how: the images.

    Raises:
        UserError: if the extra `export` is missing, or an image cannot be read.
    """
    nncf = import_extra("nncf", "export")
    nncf.set_log_level(logging.ERROR)
    ranges, val = (DetectionDataset(data, model.preprocess) for data in (how.data, how.val))
    count = min(len(ranges), MOST_IMAGES)
    indices = np.linspace(0, len(ranges) - 1, count).astype(int).tolist()  # from everywhere in the data set
    kept = kept_in_float(graph_of(network))
    finished: Callable[[Any], Any] = _as_it_is
    if not hasattr(network, "get_ops"):
        limits = output_ranges(network, kept, (inputs(ranges, index) for index in indices))
        finished = partial(integers_throughout, ranges=limits)

    def ap(runnable: Any, items: Iterable[int]) -> tuple[float, list[float]]:
        """AP of all these images, and of each by itself."""
        run: Run = openvino_run(runnable) if callable(runnable) else onnx_run(finished(runnable).SerializeToString())
        found = detect_with(run, val, items)
        alone = [_ap({index: detections}, how.val) for index, detections in found.items()]
        return _ap(found, how.val), alone

    made = nncf.quantize_with_accuracy_control(
        network,
        nncf.Dataset(indices, lambda index: inputs(ranges, index)),
        nncf.Dataset(range(len(val)), lambda index: inputs(val, index)),
        ap,
        max_drop=how.max_drop,
        subset_size=count,
        preset=nncf.QuantizationPreset.MIXED,
        ignored_scope=nncf.IgnoredScope(names=sorted(kept), validate=False),
    )
    return finished(made)


def _as_it_is(network: Any) -> Any:
    return network


def _ap(found: dict[int, Detections], data: DetectionData) -> float:
    """AP of the detections of some records, by their index, on these alone."""
    records = tuple(data.records[index] for index in found)
    return evaluate_detections(dict(enumerate(found.values())), replace(data, records=records)).ap or 0.0


def graph_of(network: Any) -> Graph:
    """Every node of an `openvino.Model` or an `onnx.ModelProto`; the network's outputs are nodes of the type Result."""
    if hasattr(network, "get_ops"):
        return {
            node.get_friendly_name(): (
                node.get_type_name(),
                [value.get_node().get_friendly_name() for value in node.input_values()],
            )
            for node in network.get_ops()
        }
    giver = {output: node.name for node in network.graph.node for output in node.output}
    graph = {node.name: (node.op_type, [giver.get(value, "") for value in node.input]) for node in network.graph.node}
    return graph | {f"output {value.name}": ("Result", [giver[value.name]]) for value in network.graph.output}


def kept_in_float(graph: Graph) -> set[str]:
    """Names of the nodes from which only arithmetic leads to an output, or to the coordinates that a layer samples at.

    These are the last layers of the head and what follows them: exp() of an int8 number is a coarse box. Also paddings:
    integers that are padded reach no layer as such in ONNX Runtime.
    """
    waiting = [name for name, (kind, _) in graph.items() if kind == "Result"]
    for kind, given in graph.values():
        waiting += [given[i] for i in COORDINATES.get(kind, ()) if i < len(given)]
    found = {""}
    while waiting:
        name = waiting.pop()
        if name in found:
            continue
        found.add(name)
        kind, given = graph[name]
        if kind not in (*LAYERS, "ShapeOf", "Shape"):  # the shape of what a layer gives is no number it gives
            waiting += given
    return found - {""} | {name for name, (kind, _) in graph.items() if kind == "Pad"}
