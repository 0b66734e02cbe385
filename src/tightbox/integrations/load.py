"""Detectors for programs that name a checkpoint, a score threshold and a device."""

from dataclasses import replace

import torch

from tightbox.models import Detector, load


def load_on(checkpoint: str, threshold: float, device: str) -> Detector:
    """The detector, ready to report boxes from a score on, on its device; "auto" takes a GPU if there is one.

    Raises:
        UserError: if there is no checkpoint.
    """
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    model = load(checkpoint).to(device).eval()
    model.options = replace(model.options, score_threshold=min(threshold, model.options.score_threshold))
    return model
