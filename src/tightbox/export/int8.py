"""Int8 by nncf's post-training quantisation; decoding, sampling coordinates and the tail stay in floats."""

from __future__ import annotations

import logging
from typing import Any

import numpy as np

from tightbox.data.dataset import DetectionDataset
from tightbox.data.records import DetectionData
from tightbox.errors import missing_extra
from tightbox.models import Detector

MOST_IMAGES = 300  # whose activations give the ranges
LAYERS = ("Convolution", "GroupConvolution", "MatMul", "DeformableConvolution")
COORDINATES = (1, 3)  # of OpenVINO's deformable convolution: its offsets, and the mask predicted with them


def quantised(network: Any, model: Detector, data: DetectionData) -> Any:
    """The `openvino.Model` of a detector with int8 weights and activations.

    Args:
        network: from `to_openvino`.
        model: the detector, whose preprocessing is used.
        data: with images like those to come.

    Raises:
        UserError: if the extra `export` is missing, or an image cannot be read.
    """
    try:
        import nncf
    except ImportError as error:
        raise missing_extra("nncf", "export") from error

    nncf.set_log_level(logging.ERROR)
    dataset = DetectionDataset(data, model.preprocess)

    def inputs(index: int) -> dict[str, Any]:
        pixels, _, _ = dataset[0, index]
        size = np.array([pixels.shape[-2:]], dtype=np.int64)
        return {"images": (pixels[None] / 255).numpy(), "sizes": size}

    count = min(len(dataset), MOST_IMAGES)
    indices = np.linspace(0, len(dataset) - 1, count).astype(int).tolist()  # from everywhere in the data set
    return nncf.quantize(
        network,
        nncf.Dataset(indices, inputs),
        subset_size=count,
        preset=nncf.QuantizationPreset.MIXED,
        ignored_scope=nncf.IgnoredScope(names=sorted(kept_in_float(network)), validate=False),
    )


def kept_in_float(network: Any) -> set[str]:
    """Names of the nodes from which only arithmetic leads to an output, or to the coordinates that a layer samples at.

    These are the last layers of the head and what follows them: exp() of an int8 number is a coarse box.
    """
    waiting = [result.input_value(0).get_node() for result in network.get_results()]
    for node in network.get_ops():
        if node.get_type_name() == "DeformableConvolution":
            waiting += [node.input_value(i).get_node() for i in COORDINATES if i < node.get_input_size()]
    found: set[str] = set()
    while waiting:
        node = waiting.pop()
        if node.get_friendly_name() in found:
            continue
        found.add(node.get_friendly_name())
        if node.get_type_name() not in LAYERS:
            waiting += [node.input_value(i).get_node() for i in range(node.get_input_size())]
    return found
