"""Detectors that tightbox exported to ONNX, run without PyTorch."""

from tightbox_runtime.detector import Detector
from tightbox_runtime.errors import UserError
from tightbox_runtime.structures import Detections
from tightbox_runtime.version import __version__

__all__ = ["Detections", "Detector", "UserError", "__version__"]
