"""A detector as OpenVINO's two files, the network and its weights."""

from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from tightbox.errors import UserError, import_extra
from tightbox.export.int8 import Int8, quantised
from tightbox.export.onnx_file import METADATA, described, to_onnx
from tightbox.files import atomic_paths
from tightbox.models import Detector


def to_openvino(onnx_file: Path) -> Any:
    """The `openvino.Model` of a file that `write_onnx` wrote, with its description as runtime information.

    Raises:
        UserError: if the extra `export` is missing.
    """
    openvino = import_extra("openvino", "export")
    import onnx
    from openvino.frontend.onnx import ConversionExtension

    model = openvino.convert_model(onnx_file, extension=[ConversionExtension("DeformConv", _deformable_convolution)])
    for entry in onnx.load(onnx_file, load_external_data=False).metadata_props:
        model.set_rt_info(entry.value, [METADATA])
    return model


def write_openvino(model: Detector, path: Path, *, int8: Int8 | None = None) -> Path:
    """Write the network to `path`, which ends in .xml, and the weights beside it; returns the weights' path.

    Args:
        model: the detector.
        path: of the network.
        int8: quantise it by these images.

    Raises:
        UserError: if the extra `export` is missing, the detector cannot be expressed, or the disk refuses.
    """
    openvino = import_extra("openvino", "export")
    weights = path.with_suffix(".bin")
    with atomic_paths(path, weights) as (network_file, weights_file), TemporaryDirectory() as folder:
        for file in (network_file, weights_file):
            file.touch()
        onnx_file = Path(folder, "model.onnx")
        onnx_file.write_bytes(to_onnx(model).SerializeToString())
        converted = to_openvino(onnx_file)
        if int8 is not None:
            converted = quantised(converted, model, int8)
            converted.set_rt_info(described(model, int8), [METADATA])
        try:
            openvino.serialize(converted, Path(folder, "model.xml"), Path(folder, "model.bin"))
        except RuntimeError as error:
            raise UserError(f"OpenVINO cannot write {path}: {error}") from error
        network_file.write_bytes(Path(folder, "model.xml").read_bytes())
        weights_file.write_bytes(Path(folder, "model.bin").read_bytes())
    return weights


def _deformable_convolution(node: Any) -> Any:
    """ONNX's DeformConv, which OpenVINO's reader lacks, as OpenVINO's own operation."""
    import openvino.opset8 as ops

    inputs = [node.get_input(i) for i in range(node.get_input_size())]
    strides, pads = node.get_attribute("strides", [1, 1]), node.get_attribute("pads", [0, 0, 0, 0])
    result = ops.deformable_convolution(
        data=inputs[0],
        offsets=inputs[2],
        filters=inputs[1],
        strides=strides,
        pads_begin=pads[:2],
        pads_end=pads[2:],
        dilations=node.get_attribute("dilations", [1, 1]),
        mask=inputs[4] if len(inputs) > 4 else None,
        group=node.get_attribute("group", 1),
        deformable_group=node.get_attribute("offset_group", 1),
        bilinear_interpolation_pad=True,  # beyond the map features fade to 0, as in ONNX
    )
    if len(inputs) > 3 and inputs[3].get_node().get_type_name() != "NullNode":  # a bias
        result = ops.add(result, ops.unsqueeze(inputs[3], ops.constant([0, 2, 3])))
    return result.outputs()
