"""The detectors, and the functions that make any of them."""

from tightbox.models.backbone import Backbone
from tightbox.models.build import create_model, load, start_from
from tightbox.models.detector import Detector
from tightbox.models.iou_aware_retinanet import IoUAwareRetinaNet
from tightbox.models.iou_net import IoUNet
from tightbox.models.unitbox import UnitBox
from tightbox.models.vfnet import VFNet

__all__ = [
    "Backbone",
    "Detector",
    "IoUAwareRetinaNet",
    "IoUNet",
    "UnitBox",
    "VFNet",
    "create_model",
    "load",
    "start_from",
]
