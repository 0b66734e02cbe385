"""A detector small enough to build and run in a blink, which reports boxes before any training."""

from __future__ import annotations

from typing import Any

from tightbox.models import Detector, create_model
from tightbox.options import BackboneOptions, Preprocess

BACKBONE = BackboneOptions(name="test_resnet", pretrained=False)


def tiny_model(**changes: Any) -> Detector:
    """Two classes, 32 channels, images of 64 pixels; arguments go to `create_model`."""
    arguments: dict[str, Any] = {
        "class_names": ["cat", "dog"],
        "backbone": BACKBONE,
        "preprocess": Preprocess(long_side=64, short_side=64),
        "channels": 32,
        "tower_depth": 1,
        "score_threshold": 0.0,
        "max_detections": 20,
    }
    return create_model("vfnet", **(arguments | changes))
