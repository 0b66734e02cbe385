"""The interface as an OpenAPI document, for clients that are generated and for people."""

from __future__ import annotations

from typing import Any

from tightbox.options import ServeOptions
from tightbox.serve.decode import MEDIA_TYPES
from tightbox.version import __version__

REFUSALS = {
    "400": "the body is empty or not as described",
    "401": "the bearer token is missing or wrong",
    "408": "the body did not arrive in time",
    "413": "the body is too large",
    "415": "the body is no image in an accepted format",
    "422": "the image or a parameter cannot be used",
    "503": "not ready, or too much to do; Retry-After says when to try again",
}
FRACTION = {"type": "number", "minimum": 0, "maximum": 1}


def description(name: str, options: ServeOptions, score_threshold: float) -> dict[str, Any]:
    """The document, OpenAPI 3.1.

    Args:
        name: of the model.
        options: whose limits are named.
        score_threshold: where a request gives none.
    """
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "tightbox",
            "version": __version__,
            "description": f"Finds objects in images, each with the IoU that its box is expected to have. "
            f"Bodies up to {options.max_mb:g} MB and images up to {options.max_megapixels:g} megapixels are accepted.",
        },
        "paths": {
            "/predict": {"post": _predict(score_threshold)},
            "/v2": _get("Which server this is", "Server"),
            "/v2/health/live": _get("Whether the server is worth keeping", "Health", {"503": "the detector failed"}),
            "/v2/health/ready": _get("Whether images are accepted", "Health", {"503": "not yet, or no longer"}),
            f"/v2/models/{name}": _get("What goes in and comes out", "Model"),
            f"/v2/models/{name}/ready": _get("Whether the model is ready", "Health", {"503": "not yet"}),
            f"/v2/models/{name}/infer": {"post": _infer(options)},
            "/metrics": _get_text("Counters in Prometheus's text format", "text/plain"),
            "/": _get_text("The page to drop images on", "text/html"),
            "/openapi.json": _get_text("This document", "application/json"),
        },
        "components": {
            "securitySchemes": {"token": {"type": "http", "scheme": "bearer"}},
            "schemas": _schemas(),
        },
        "security": [{"token": []}, {}],
    }


def _predict(score_threshold: float) -> dict[str, Any]:
    parameters = [
        ("score_threshold", FRACTION | {"default": score_threshold}, "boxes with a lower score are left out"),
        ("min_iou", FRACTION, "boxes with a lower predicted IoU are left out"),
    ]
    return {
        "summary": "Boxes in one image",
        "operationId": "predict",
        "parameters": [
            {"name": name, "in": "query", "schema": schema, "description": text} for name, schema, text in parameters
        ],
        "requestBody": {
            "required": True,
            "description": "the bytes of the image file",
            "content": {media_type: {} for media_type in MEDIA_TYPES},
        },
        "responses": {
            "200": {
                "description": "the boxes, or by Accept the image with its boxes drawn",
                "content": {"application/json": {"schema": _ref("Predictions")}, "image/jpeg": {}},
            },
            "406": _problem("the answer can be JSON or JPEG"),
            **{status: _problem(text) for status, text in REFUSALS.items()},
        },
    }


def _infer(options: ServeOptions) -> dict[str, Any]:
    return {
        "summary": "Tensors in and out by the Open Inference Protocol, version 2",
        "operationId": "infer",
        "requestBody": {
            "required": True,
            "description": f"one input named image, of at most {options.max_batch} images: BYTES, files in base64, or "
            "UINT8 (N, height, width, 3), RGB; parameters are score_threshold and min_iou",
            "content": {"application/json": {"schema": _ref("InferRequest")}},
        },
        "responses": {
            "200": _json("one tensor for each output", "InferResponse"),
            "404": _problem("there is no such model"),
            **{status: _problem(text) for status, text in REFUSALS.items()},
        },
    }


def _get(summary: str, schema: str, others: dict[str, str] | None = None) -> dict[str, Any]:
    more = {status: _json(text, schema) for status, text in (others or {}).items()}
    return {"get": {"summary": summary, "responses": {"200": _json(summary, schema)} | more}}


def _get_text(summary: str, media_type: str) -> dict[str, Any]:
    return {"get": {"summary": summary, "responses": {"200": {"description": summary, "content": {media_type: {}}}}}}


def _json(text: str, schema: str) -> dict[str, Any]:
    return {"description": text, "content": {"application/json": {"schema": _ref(schema)}}}


def _problem(text: str) -> dict[str, Any]:
    return _json(text, "Error")


def _ref(schema: str) -> dict[str, str]:
    return {"$ref": f"#/components/schemas/{schema}"}


def _object(required: list[str], **properties: Any) -> dict[str, Any]:
    return {"type": "object", "required": required, "properties": properties}


def _schemas() -> dict[str, Any]:
    text, whole = {"type": "string"}, {"type": "integer"}
    box = {
        "type": "array",
        "items": {"type": "number"},
        "minItems": 4,
        "maxItems": 4,
        "description": "x1, y1, x2, y2 in pixels of the upright image",
    }
    iou = FRACTION | {"description": "predicted IoU of the box with its object; absent if the detector predicts none"}
    tensor = _object(
        ["name", "shape", "datatype", "data"],
        name=text,
        shape={"type": "array", "items": whole},
        datatype=text,
        data={"type": "array"},
    )
    detection = _object(["box", "score", "label", "class"], box=box, score=FRACTION, label=whole, iou=iou)
    detection["properties"]["class"] = text
    tensors = {"type": "array", "items": _ref("Tensor")}
    found = {"type": "array", "items": _ref("Detection"), "description": "best first"}
    return {
        "Error": _object(["error"], error=text),
        "Detection": detection,
        "Predictions": _object(["width", "height", "detections"], width=whole, height=whole, detections=found),
        "Tensor": tensor,
        "InferRequest": _object(["inputs"], id=text, inputs=tensors, parameters={"type": "object"}),
        "InferResponse": _object(["model_name", "outputs"], model_name=text, id=text, outputs=tensors),
        "Server": _object(["name", "version"], name=text, version=text),
        "Health": {"type": "object"},
        "Model": _object(["name", "platform", "inputs", "outputs"], name=text, platform=text),
    }
