"""What an exported file finds in the images of a data set."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from tightbox.data.dataset import DetectionDataset
from tightbox.errors import import_extra
from tightbox.structures import Detections

Inputs = dict[str, NDArray[Any]]
Run = Callable[[Inputs], Sequence[NDArray[Any]]]


def inputs(dataset: DetectionDataset, index: int) -> Inputs:
    """The inputs of a file for one image."""
    pixels, _, _ = dataset[0, index]
    return {"images": (pixels[None] / 255).numpy(), "sizes": np.array([pixels.shape[-2:]], dtype=np.int64)}


def detect_with(run: Run, dataset: DetectionDataset, indices: Iterable[int]) -> dict[int, Detections]:
    """Detections in each of these images, in pixels of the originals; `run` has the file's outputs in their order."""
    found = {}
    for index in indices:
        given = inputs(dataset, index)
        boxes, scores, labels, ious, counts = run(given)
        kept = slice(0, int(counts[0]))
        columns = (torch.from_numpy(column[0, kept]) for column in (boxes, scores, labels, ious))
        height, width = given["sizes"][0].tolist()
        found[index] = Detections(*columns).resized((height, width), dataset.data.records[index].size)
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
