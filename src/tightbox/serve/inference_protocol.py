"""Tensors in and out by the Open Inference Protocol, version 2 (https://github.com/kserve/open-inference-protocol)."""

import base64
import json
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, NamedTuple

import numpy as np
from PIL import Image

from tightbox.serve.decode import Refusal, check_size, decode_bytes
from tightbox.serve.predictor import Predictor
from tightbox.serve.service import fraction
from tightbox.structures import Detections

# Padded to the image with the most boxes: label -1, zeros elsewhere.
OUTPUTS = {"num_detections": "INT64", "boxes": "FP32", "scores": "FP32", "labels": "INT64", "ious": "FP32"}
SHAPES = {"num_detections": [-1], "boxes": [-1, -1, 4], "scores": [-1, -1], "labels": [-1, -1], "ious": [-1, -1]}
FORM = (
    "JSON with one of inputs, image, which is BYTES of shape [N], each a file in base64, or UINT8 of shape "
    "[N, height, width, 3]; outputs and parameters can be left out"
)


class InferRequest(NamedTuple):
    """What is asked for.

    Attributes:
        id: of the request, given back.
        images: each opened when called.
        threshold: boxes with a lower score are left out; None for the server's own.
        min_iou: boxes with a lower predicted IoU are left out.
        outputs: names of the tensors wanted.
    """

    id: str | None
    images: list[Callable[[], Image.Image]]
    threshold: float | None
    min_iou: float | None
    outputs: list[str]


def model_metadata(name: str, predictor: Predictor) -> dict[str, Any]:
    """The answer to `GET /v2/models/NAME`."""
    return {
        "name": name,
        "versions": [],
        "platform": f"tightbox_{predictor.system}",
        "inputs": [{"name": "image", "datatype": "BYTES", "shape": [-1]}],
        "outputs": [{"name": o, "datatype": OUTPUTS[o], "shape": SHAPES[o]} for o in output_names(predictor)],
        "parameters": {
            "class_names": list(predictor.class_names),
            "predicts_iou": predictor.calibrated is not None,
            "calibrated": bool(predictor.calibrated),
            "score_threshold": predictor.score_threshold,
        },
    }


def output_names(predictor: Predictor) -> list[str]:
    """The tensors that a detector can give."""
    return [name for name in OUTPUTS if name != "ious" or predictor.calibrated is not None]


def read_request(body: bytes, known_outputs: Sequence[str], max_images: int, max_pixels: float) -> InferRequest:
    """The body of `POST /v2/models/NAME/infer`.

    One input is taken, `image`: datatype BYTES and shape [N], image files in base64; or UINT8 and shape [N, H, W, 3],
    RGB values, nested or flat.

    Raises:
        Refusal: 400 if the body is not such a request, 422 if its values cannot be used.
    """
    try:
        content = json.loads(body)
        (tensor,) = content["inputs"]
        parameters = (content.get("parameters") or {}).items()
        wanted = {output["name"] for output in content.get("outputs") or []} or set(known_outputs)
        _require(tensor["name"] == "image" and wanted <= set(known_outputs))
        given = {key: fraction(value, key) for key, value in parameters if key in ("score_threshold", "min_iou")}
        identity = content["id"] if isinstance(content.get("id"), str) else None
        images = _images(tensor["datatype"], tensor["shape"], tensor["data"], max_images, max_pixels)
        outputs = [name for name in known_outputs if name in wanted]
        return InferRequest(identity, images, given.get("score_threshold"), given.get("min_iou"), outputs)
    except (ArithmeticError, AttributeError, LookupError, RecursionError, TypeError, ValueError) as error:
        raise Refusal(400, f"the body must be {FORM}; see /openapi.json") from error


def _images(
    kind: str, shape: list[int], data: list[Any], max_images: int, max_pixels: float
) -> list[Callable[[], Image.Image]]:
    _require(len(shape) == (1 if kind == "BYTES" else 4) and shape[0] >= 1)
    if shape[0] > max_images:
        raise Refusal(422, f"shape must begin with the number of images, at most {max_images}")
    if kind == "BYTES":
        _require(len(data) == shape[0])
        return [partial(decode_bytes, base64.b64decode(text, validate=True), max_pixels) for text in data]
    pixels = np.asarray(data)
    _require(kind == "UINT8" and pixels.dtype.kind == "i" and 0 <= pixels.min() <= pixels.max() <= 255)
    pixels = pixels.astype(np.uint8).reshape(shape)
    _require(pixels.shape[3] == 3)
    check_size(pixels.shape[2], pixels.shape[1], max_pixels)
    return [partial(Image.fromarray, image) for image in pixels]


def _require(fits: bool) -> None:
    if not fits:
        raise ValueError


def infer_response(name: str, request: InferRequest, found: Sequence[Detections]) -> dict[str, Any]:
    """The tensors that were asked for, each image's boxes padded to those of the image with the most."""
    most = max(len(detections) for detections in found)
    sizes = {"num_detections": [len(found)], "boxes": [len(found), most, 4]}
    outputs = []
    for output in request.outputs:
        shape = sizes.get(output, [len(found), most])
        data = [value for detections in found for value in _padded(output, detections, most)]
        outputs.append({"name": output, "datatype": OUTPUTS[output], "shape": shape, "data": data})
    answer = {"model_name": name, "outputs": outputs}
    return answer if request.id is None else answer | {"id": request.id}


def _padded(output: str, detections: Detections, most: int) -> list[Any]:
    if output == "num_detections":
        return [len(detections)]
    values: list[Any] = getattr(detections, output).flatten().tolist()
    per_box, filler = (4 if output == "boxes" else 1), (-1 if output == "labels" else 0)
    return values + [filler] * (per_box * most - len(values))
