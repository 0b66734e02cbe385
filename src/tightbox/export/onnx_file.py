"""A detector as one ONNX file that describes itself."""

import json
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.export import Dim

from tightbox.errors import UserError, import_extra
from tightbox.export.int8 import Int8, quantised
from tightbox.export.tensors import PaddedDetections, TensorDetector
from tightbox.files import atomic_path
from tightbox.models import Detector, IoUNet, UnitBox
from tightbox.structures import DIVISOR
from tightbox.version import __version__

OPSET = 20  # the first with deformable convolution is 19
METADATA, FORMAT = "tightbox", 1
LICENCE = "network: Apache-2.0; weights: as whoever trained them says"
# No two levels of the pyramid have the same side here, and none is one cell wide: what the exporter takes for
# equal, or for 1, it writes into the file as such.
EXAMPLE_SIZES = ((310, 405), (260, 280))


def to_onnx(model: Detector) -> Any:
    """The detector as an `onnx.ModelProto` with its description as metadata.

    Inputs and outputs are those of `TensorDetector`; batch, height and width are free.

    Raises:
        UserError: if the extra `export` is missing, or the detector cannot be expressed.
    """
    for module in ("onnx", "onnxscript"):
        import_extra(module, "export")
    if isinstance(model, IoUNet) and model.options.standalone:
        raise UserError(
            "a standalone IoU head cannot be exported: it finds no boxes, it judges those of other detectors; "
            "export an IoU-Net with its proposals"
        )
    if model.suppression == "soft_linear":
        raise UserError('a detector with soft-NMS cannot be exported; set "suppress": "greedy" in its card.json')
    detector = TensorDetector(model)
    sizes = torch.tensor(EXAMPLE_SIZES)
    images = torch.rand(len(sizes), 3, *EXAMPLE_SIZES[0])
    any_size = {0: Dim.DYNAMIC, 2: Dim.DYNAMIC, 3: Dim.DYNAMIC}
    # In multiples of 32 every size within the network is a short expression of two numbers. As expressions of the sizes
    # before the padding they would grow from layer to layer, and the exporter would work on these for minutes.
    whole_cells = {0: Dim.DYNAMIC, 2: DIVISOR * Dim("rows", min=1), 3: DIVISOR * Dim("columns", min=1)}
    pixels = model.normalised(images, sizes).contiguous()
    first = _exported(_Part(model, model.normalised), (images, sizes), any_size, ("images", "normalised"))
    outputs = PaddedDetections._fields
    proto = _exported(_Part(detector, detector.detect), (pixels, sizes), whole_cells, ("normalised", *outputs))
    _put_before(first, proto)
    _name_axes(proto)
    _describe(proto, model)
    return proto


def _describe(proto: Any, model: Detector, int8: Int8 | None = None) -> None:
    proto.producer_name, proto.producer_version = "tightbox", __version__
    del proto.metadata_props[:]
    entry = proto.metadata_props.add()
    entry.key, entry.value = METADATA, described(model, int8)


class _Part(nn.Module):
    """A method of a module as what the exporter takes."""

    def __init__(self, module: nn.Module, method: Callable[[Tensor, Tensor], Any]) -> None:
        super().__init__()
        self.module, self.method = module, method

    def forward(self, images: Tensor, sizes: Tensor) -> Any:
        return self.method(images, sizes)


def _exported(part: _Part, example: tuple[Tensor, Tensor], free: dict[int, Any], names: tuple[str, ...]) -> Any:
    """The `onnx.ModelProto` of a function of images and their sizes, with the names of its first input and outputs."""
    from tightbox.export.onnx_operators import translations

    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore")  # the exporter's own, of which nobody who exports can do anything about
        program = torch.onnx.export(
            part,
            example,
            dynamo=True,
            opset_version=OPSET,
            input_names=[names[0], "sizes"],
            output_names=list(names[1:]),
            dynamic_shapes=(free, {0: Dim.DYNAMIC}),
            custom_translation_table=translations(),
            verbose=False,
        )
    assert program is not None  # as dynamo=True
    return program.model_proto


def _put_before(first: Any, proto: Any) -> None:
    """Lets `proto` take its input `normalised` from the nodes of `first`, whose inputs it then has."""
    from onnx.compose import add_prefix_graph

    graph = add_prefix_graph(first.graph, "prepare/", rename_inputs=False, rename_outputs=False)
    nodes = [*graph.node, *proto.graph.node]
    del proto.graph.node[:], proto.graph.input[:]
    proto.graph.node.extend(nodes)
    proto.graph.input.extend(graph.input)
    proto.graph.initializer.extend(graph.initializer)


def write_onnx(model: Detector, path: Path, *, int8: Int8 | None = None) -> None:
    """Write `to_onnx(model)`, quantised by the images of `int8` if there are any, to a file, whole or not at all."""
    with atomic_path(path) as temporary:
        temporary.touch()  # a path that cannot be written is found out before the long work
        proto = to_onnx(model)
        if int8 is not None:
            proto = quantised(proto, model, int8)
            _describe(proto, model, int8)
        temporary.write_bytes(proto.SerializeToString())


def described(model: Detector, int8: Int8 | None = None) -> str:
    """What a program that has only the file needs to know to run it right, as JSON."""
    options = model.options
    about = {
        "format": FORMAT,
        "tightbox": __version__,
        "licence": LICENCE,
        "model": model.name,
        "class_names": list(model.class_names),
        "preprocessing": {
            "color": "RGB in [0, 1]",
            "resize": "bilinear, antialiased, keeping the shape",
            "long_side": model.preprocess.long_side,
            "short_side": model.preprocess.short_side,
            "padding": "right and below, with anything; sizes holds each image's height and width without it",
        },
        "ranking": _ranking(model),
        "reading": "dense" if isinstance(model, UnitBox) else "as published",
        "refinement": "none",  # an IoU-Net's takes gradients, which files do not have
        "score_threshold": options.score_threshold,
        "nms_iou": options.nms_iou,
        "max_detections": options.max_detections,
        "predicts_iou": predicts_iou(model),
        "calibrated": model.calibration is not None,  # within the network: the file's IoUs are those to expect
        "calibration": None if model.calibration is None else model.calibration.to_json(),
        "precision": "float32" if int8 is None else str(int8),
    }
    return json.dumps(about)


def predicts_iou(model: Detector) -> bool:
    """Whether its detections have a predicted IoU."""
    if isinstance(model, UnitBox):
        return False
    options = model.options
    return bool(options.varifocal if model.name == "vfnet" else options.iou_head)


def _ranking(model: Detector) -> str:
    if model.name == "vfnet":
        return "class score x centerness" if model.options.centerness else "class score"
    if model.name == "iou_aware_retinanet" and model.options.iou_head:
        alpha = model.options.alpha
        return f"class score^{alpha:g} x predicted IoU^{1 - alpha:g}"
    return "class score"


def _name_axes(proto: Any) -> None:
    """Gives the free axes of inputs and outputs names that people understand."""
    axes = {"images": {0: "batch", 2: "height", 3: "width"}, "sizes": {0: "batch"}}
    for value in (*proto.graph.input, *proto.graph.output):
        for axis, name in axes.get(value.name, {0: "batch"}).items():
            value.type.tensor_type.shape.dim[axis].dim_param = name
