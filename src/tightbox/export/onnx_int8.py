"""What else ONNX Runtime asks of a graph before its CPU kernels multiply integers; without it they multiply floats."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Iterable
from typing import Any

import numpy as np

from tightbox.export.running import Inputs, onnx_run

Ranges = dict[str, tuple[float, float]]


def output_ranges(network: Any, kept: Collection[str], images: Iterable[Inputs]) -> Ranges:
    """Of each convolution but the kept ones the output's least and greatest value in these images, and 0.

    Args:
        network: an `onnx.ModelProto` of floats.
        kept: names of nodes.
        images: what the network is given.

    Returns:
        The ranges by the name of the output.
    """
    asked = _copy(network)
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
    made = _copy(network)
    _make_unsigned(made.graph)
    _round_outputs(made.graph, ranges)
    return made


def _copy(network: Any) -> Any:
    copy = type(network)()
    copy.CopyFrom(network)
    return copy


def _make_unsigned(graph: Any) -> None:
    from onnx import numpy_helper

    zeros = {node.input[2] for node in graph.node if node.op_type == "QuantizeLinear"}
    for constant in graph.initializer:
        zero = numpy_helper.to_array(constant) if constant.name in zeros else None
        if zero is not None and zero.dtype == np.int8:
            constant.CopyFrom(numpy_helper.from_array((zero.astype(int) + 128).astype(np.uint8), constant.name))
    del graph.value_info[:]  # of types that are no longer so; whoever reads the file finds them anew


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
