"""Tensors in and out by the Open Inference Protocol, version 2 (https://github.com/kserve/open-inference-protocol)."""

from __future__ import annotations

import base64
import binascii
import json
import math
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, NamedTuple

import numpy as np
from PIL import Image

from tightbox.serve.decode import check_size, decode_bytes
from tightbox.serve.predictor import Predictor
from tightbox.serve.refusals import Refusal
from tightbox.serve.service import fraction
from tightbox.structures import Detections

# Padded to the image with the most boxes: label -1, zeros elsewhere.
OUTPUTS = {"num_detections": "INT64", "boxes": "FP32", "scores": "FP32", "labels": "INT64", "ious": "FP32"}
SHAPES = {"num_detections": [-1], "boxes": [-1, -1, 4], "scores": [-1, -1], "labels": [-1, -1], "ious": [-1, -1]}
BYTES_HELP = "data must be as many base64 texts as shape says"


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
    outputs = output_names(predictor)
    return {
        "name": name,
        "versions": [],
        "platform": f"tightbox_{predictor.system}",
        "inputs": [{"name": "image", "datatype": "BYTES", "shape": [-1]}],
        "outputs": [{"name": o, "datatype": OUTPUTS[o], "shape": SHAPES[o]} for o in outputs],
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
    except (ValueError, RecursionError) as error:
        raise Refusal(400, "the body is not JSON; see /openapi.json for the form of a request") from error
    if not isinstance(content, dict):
        raise Refusal(400, "the body must be a JSON object with inputs; see /openapi.json")
    inputs = content.get("inputs")
    if not isinstance(inputs, list) or len(inputs) != 1 or not isinstance(inputs[0], dict):
        raise Refusal(400, "inputs must be a list of one tensor, named image")
    parameters = content.get("parameters") or {}
    if not isinstance(parameters, dict):
        raise Refusal(400, "parameters must be an object")
    given = {key: fraction(parameters[key], key) for key in ("score_threshold", "min_iou") if key in parameters}
    identity = content.get("id")
    return InferRequest(
        id=identity if isinstance(identity, str) else None,
        images=_images(inputs[0], max_images, max_pixels),
        threshold=given.get("score_threshold"),
        min_iou=given.get("min_iou"),
        outputs=_wanted(content.get("outputs"), known_outputs),
    )


def _wanted(outputs: Any, known: Sequence[str]) -> list[str]:
    if outputs is None or outputs == []:
        return list(known)
    if not isinstance(outputs, list) or not all(isinstance(output, dict) for output in outputs):
        raise Refusal(400, "outputs must be a list of objects with a name")
    names = [output.get("name") for output in outputs]
    if any(name not in known for name in names):
        raise Refusal(400, f"outputs can be {', '.join(known)}")
    return [name for name in known if name in names]


def _images(tensor: dict[str, Any], max_images: int, max_pixels: float) -> list[Callable[[], Image.Image]]:
    shape, data, kind = tensor.get("shape"), tensor.get("data"), tensor.get("datatype")
    if tensor.get("name") != "image":
        raise Refusal(400, "the input tensor must be named image")
    whole = isinstance(shape, list) and all(type(side) is int and side >= 1 for side in shape)
    if not whole or not isinstance(shape, list) or not isinstance(data, list):
        raise Refusal(400, "a tensor needs a shape of whole numbers from 1 on, and data as a list")
    if not shape or shape[0] > max_images:
        raise Refusal(422, f"shape must begin with the number of images, at most {max_images}")
    if kind == "BYTES" and len(shape) == 1:
        if len(data) != shape[0] or not all(isinstance(text, str) for text in data):
            raise Refusal(400, BYTES_HELP)
        return [partial(_decode_base64, text, max_pixels) for text in data]
    if kind == "UINT8" and len(shape) == 4 and shape[3] == 3:
        check_size(shape[2], shape[1], max_pixels)
        pixels = _pixels(data, shape)
        return [partial(Image.fromarray, image) for image in pixels]
    raise Refusal(400, "image must be BYTES of shape [N], or UINT8 of shape [N, height, width, 3]")


def _decode_base64(text: str, max_pixels: float) -> Image.Image:
    try:
        data = base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError) as error:
        raise Refusal(400, BYTES_HELP) from error
    return decode_bytes(data, max_pixels)


def _pixels(data: list[Any], shape: list[int]) -> np.ndarray[Any, np.dtype[np.uint8]]:
    try:
        values = np.asarray(data)
        fits = (
            values.dtype.kind in "iu" and values.size == math.prod(shape) and 0 <= values.min() <= values.max() <= 255
        )
    except (ValueError, RecursionError, OverflowError) as error:  # ragged or too deep
        raise Refusal(400, "data is not a list of numbers that shape describes") from error
    if not fits:
        raise Refusal(400, "data must be whole numbers from 0 to 255, as many as shape says")
    return values.reshape(shape).astype(np.uint8)


def infer_response(name: str, request: InferRequest, found: Sequence[Detections]) -> dict[str, Any]:
    """The tensors that were asked for, each image's boxes padded to those of the image with the most."""
    most = max(len(detections) for detections in found)
    sizes = {"num_detections": [len(found)], "boxes": [len(found), most, 4]}
    outputs = [
        {
            "name": output,
            "datatype": OUTPUTS[output],
            "shape": sizes.get(output, [len(found), most]),
            "data": [value for detections in found for value in _padded(output, detections, most)],
        }
        for output in request.outputs
    ]
    answer = {"model_name": name, "outputs": outputs}
    return answer if request.id is None else answer | {"id": request.id}


def _padded(output: str, detections: Detections, most: int) -> list[Any]:
    if output == "num_detections":
        return [len(detections)]
    values: list[Any] = getattr(detections, output).flatten().tolist()
    per_box, filler = (4 if output == "boxes" else 1), (-1 if output == "labels" else 0)
    return values + [filler] * (per_box * most - len(values))
