"""A file that `tightbox export --format onnx` wrote, run by ONNX Runtime; images are resized as for its checkpoint."""

import json
from pathlib import Path
from typing import Any

import torch

from tightbox.errors import UserError, import_extra
from tightbox.export.onnx_file import FORMAT, METADATA
from tightbox.export.tensors import PaddedDetections
from tightbox.options import Preprocess
from tightbox.serve.predictor import NetworkPredictor
from tightbox.structures import Detections, ImageBatch

CUDA, CPU = "CUDAExecutionProvider", "CPUExecutionProvider"
HINT = "give one that `tightbox export --format onnx` wrote"


def of_onnx(path: Path, device: str = "auto") -> NetworkPredictor:
    """The detector in the file.

    Args:
        path: of the file.
        device: cpu, cuda or cuda:1; auto takes a GPU if ONNX Runtime has one.

    Raises:
        UserError: if ONNX Runtime is missing or has no such device, or the file is missing, damaged or another.
    """
    session = _open(path, device)
    entries = session.get_modelmeta().custom_metadata_map
    try:
        about: dict[str, Any] = json.loads(entries[METADATA])
        found = about["format"]
    except (KeyError, TypeError, ValueError) as error:
        raise UserError(f"{path} is an ONNX file, but not one of tightbox; {HINT}") from error
    if found != FORMAT:
        raise UserError(f"{path} has format {found}, not {FORMAT}; export the checkpoint again")

    def detect(images: ImageBatch) -> list[Detections]:
        inputs = {"images": images.pixels.numpy(), "sizes": torch.tensor(images.sizes).numpy()}
        boxes, scores, labels, ious, counts = map(torch.from_numpy, session.run(PaddedDetections._fields, inputs))
        return Detections(boxes, scores, labels, ious if about["predicts_iou"] else None).of_images(counts)

    return NetworkPredictor(
        detect=detect,
        preprocess=Preprocess(**{side: about["preprocessing"][side] for side in ("long_side", "short_side")}),
        system=about["model"],
        class_names=tuple(about["class_names"]),
        calibrated=about["calibrated"] if about["predicts_iou"] else None,
        score_threshold=about["score_threshold"],
    )


def _open(path: Path, device: str) -> Any:
    """The session of ONNX Runtime."""
    onnxruntime = import_extra("onnxruntime", "serve", "ONNX Runtime, which runs exported files,")
    kind, _, index = device.partition(":")
    on_gpu = kind != "cpu" and CUDA in onnxruntime.get_available_providers()
    if not on_gpu and kind not in ("auto", "cpu"):
        raise UserError(f"--device {device} needs onnxruntime-gpu in place of onnxruntime; or choose auto or cpu")
    if not path.is_file():
        raise UserError(f"there is no file {path}; {HINT}")
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4  # what is wrong with a file is said once, here
    providers = [*([(CUDA, {"device_id": index or "0"})] if on_gpu else []), CPU]
    try:
        return onnxruntime.InferenceSession(path, options, providers=providers)
    except Exception as error:  # ONNX Runtime's exceptions have no class in common
        raise UserError(f"{path} cannot be loaded ({' '.join(str(error).split())}); {HINT}") from error
