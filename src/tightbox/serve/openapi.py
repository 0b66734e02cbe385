"""The interface as an OpenAPI document, for clients that are generated and for people."""

from __future__ import annotations

import json
from importlib.resources import files
from string import Template
from typing import Any

from tightbox.options import ServeOptions
from tightbox.version import __version__


def description(name: str, options: ServeOptions, score_threshold: float) -> dict[str, Any]:
    """The document, OpenAPI 3.1: `openapi.json` with what differs from server to server filled in.

    Args:
        name: of the model.
        options: whose limits are named.
        score_threshold: where a request gives none.
    """
    template = Template(files("tightbox.serve").joinpath("openapi.json").read_text(encoding="utf-8"))
    # Safe, as "$ref" is a key of the document and no place to fill in.
    text = template.safe_substitute(
        name=name,
        version=__version__,
        max_batch=options.max_batch,
        max_mb=f"{options.max_mb:g}",
        max_megapixels=f"{options.max_megapixels:g}",
    )
    document: dict[str, Any] = json.loads(text)
    document["paths"]["/predict"]["post"]["parameters"][0]["schema"]["default"] = score_threshold
    return document
