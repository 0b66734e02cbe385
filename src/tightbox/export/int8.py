"""Int8 by nncf's post-training quantisation; decoding, sampling coordinates and the tail stay in floats.

ONNX Runtime asks for more before its CPU kernels multiply integers, without which they multiply floats:
`integers_throughout`. What AP the integers cost is measured by running the file over a data set: `detect_with`.
"""

import logging
from collections import defaultdict
from collections.abc import Callable, Collection, Iterable, Sequence
from copy import deepcopy
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from tightbox.data.dataset import DetectionDataset
from tightbox.data.records import DetectionData
from tightbox.errors import import_extra
from tightbox.inference.detect import evaluate_detections
from tightbox.models import Detector
from tightbox.structures import Detections

MOST_IMAGES = 300  # whose activations give the ranges
# Of OpenVINO, then of ONNX.
LAYERS = ("Convolution", "GroupConvolution", "MatMul", "DeformableConvolution", "Conv", "Gemm", "DeformConv")
Inputs = dict[str, NDArray[Any]]  # of an exported file
Run = Callable[[Inputs], Sequence[NDArray[Any]]]  # such a file, whose outputs it has in their order
Ranges = dict[str, tuple[float, float]]
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
    of_onnx = not hasattr(network, "get_ops")
    limits = output_ranges(network, kept, (inputs(ranges, index) for index in indices)) if of_onnx else {}

    def finished(made: Any) -> Any:
        return integers_throughout(made, limits) if of_onnx else made

    def ap(runnable: Any, items: Iterable[int]) -> tuple[float, list[float]]:
        """AP of all these images, and of each by itself."""
        run = onnx_run(finished(runnable).SerializeToString()) if of_onnx else openvino_run(runnable)
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


def _ap(found: dict[int, Detections], data: DetectionData) -> float:
    """AP of the detections of some records, by their index, on these alone."""
    records = tuple(data.records[index] for index in found)
    return evaluate_detections(dict(enumerate(found.values())), replace(data, records=records)).ap or 0.0


def inputs(dataset: DetectionDataset, index: int) -> Inputs:
    """The inputs of a file for one image."""
    pixels, _, _ = dataset[0, index]
    return {"images": (pixels[None] / 255).numpy(), "sizes": np.array([pixels.shape[-2:]], dtype=np.int64)}


def detect_with(run: Run, dataset: DetectionDataset, indices: Iterable[int]) -> dict[int, Detections]:
    """Detections in each of these images, in pixels of the originals; `run` has the file's outputs in their order."""
    found = {}
    for index in indices:
        given = inputs(dataset, index)
        *columns, counts = map(torch.from_numpy, run(given))
        (detections,) = Detections(*columns).of_images(counts)
        height, width = given["sizes"][0].tolist()
        found[index] = detections.resized((height, width), dataset.data.records[index].size)
    return found


def openvino_run(compiled: Any) -> Run:
    """Of an `openvino.CompiledModel`."""
    return lambda given: [np.array(value) for value in compiled(given).values()]


def onnx_run(model: bytes | str, *, threads: int = 0) -> Run:
    """Of an ONNX model, as bytes or a path, on the CPU; with 0 threads ONNX Runtime chooses their number.

    Raises:
        UserError: if the extra `export` is missing.
    """
    onnxruntime = import_extra("onnxruntime", "export")
    settings = onnxruntime.SessionOptions()
    settings.intra_op_num_threads = threads
    session = onnxruntime.InferenceSession(model, settings, providers=["CPUExecutionProvider"])
    return lambda given: list(session.run(None, given))


def graph_of(network: Any) -> Graph:
    """Every node of an `openvino.Model` or an `onnx.ModelProto`; the network's outputs are nodes of the type Result."""
    if hasattr(network, "get_ops"):
        graph = {}
        for node in network.get_ops():
            given = [value.get_node().get_friendly_name() for value in node.input_values()]
            graph[node.get_friendly_name()] = node.get_type_name(), given
        return graph
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


def output_ranges(network: Any, kept: Collection[str], images: Iterable[Inputs]) -> Ranges:
    """Of each convolution but the kept ones the output's least and greatest value in these images, and 0.

    Args:
        network: an `onnx.ModelProto` of floats.
        kept: names of nodes.
        images: what the network is given.

    Returns:
        The ranges by the name of the output.
    """
    asked = deepcopy(network)
    outputs = [node.output[0] for node in network.graph.node if node.op_type == "Conv" and node.name not in kept]
    del asked.graph.output[:]
    for output in outputs:
        asked.graph.output.add(name=output)
    run = onnx_run(asked.SerializeToString())
    low, high = np.zeros(len(outputs)), np.zeros(len(outputs))  # 0 is a number that integers stand for in any case
    for given in images:
        values = run(given)
        low, high = np.minimum(low, [v.min() for v in values]), np.maximum(high, [v.max() for v in values])
    return {output: (float(low[i]), float(high[i])) for i, output in enumerate(outputs)}


def integers_throughout(network: Any, ranges: Ranges) -> Any:
    """A copy of a `onnx.ModelProto` that nncf quantised, whose convolutions ONNX Runtime computes with integers.

    x86 multiplies unsigned activations by signed weights, so signed activations become unsigned ones that stand for the
    same numbers. And only a convolution whose output is rounded as well is computed with integers: an output that nncf
    leaves in float, as a group norm takes it, is rounded to 255 steps of its range.
    """
    from onnx import numpy_helper

    made = deepcopy(network)
    zeros = {node.input[2] for node in made.graph.node if node.op_type == "QuantizeLinear"}
    for constant in made.graph.initializer:
        zero = numpy_helper.to_array(constant) if constant.name in zeros else None
        if zero is not None and zero.dtype == np.int8:
            constant.CopyFrom(numpy_helper.from_array((zero.astype(int) + 128).astype(np.uint8), constant.name))
    del made.graph.value_info[:]  # of types that are no longer so; whoever reads the file finds them anew
    _round_outputs(made.graph, ranges)
    return made


def _round_outputs(graph: Any, ranges: Ranges) -> None:
    from onnx import helper, numpy_helper

    giver = {output: node.op_type for node in graph.node for output in node.output}
    takers = defaultdict(list)
    for node in graph.node:
        for place, value in enumerate(node.input):
            takers[value].append((node, place))
    for index, node in reversed(list(enumerate(graph.node))):
        output = node.output[0]
        rounded = {"QuantizeLinear", "Relu"} & {taker.op_type for taker, _ in takers[output]}
        if output not in ranges or rounded or giver.get(node.input[0]) != "DequantizeLinear":
            continue
        low, high = ranges[output]
        scale = max(high - low, 1e-9) / 255
        step = [f"{output}/scale", f"{output}/zero"]
        values = np.array(scale, np.float32), np.array(round(-low / scale), np.uint8)
        graph.initializer.extend(map(numpy_helper.from_array, values, step))
        whole, back = f"{output}/integers", f"{output}/rounded"
        for taker, place in takers[output]:
            taker.input[place] = back
        graph.node.insert(index + 1, helper.make_node("DequantizeLinear", [whole, *step], [back], back))
        graph.node.insert(index + 1, helper.make_node("QuantizeLinear", [output, *step], [whole], whole))
