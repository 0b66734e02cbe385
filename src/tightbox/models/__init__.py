"""The detectors, and the functions that make any of them."""

from tightbox.models.backbone import Backbone as Backbone
from tightbox.models.build import create_model as create_model
from tightbox.models.build import load as load
from tightbox.models.build import start_from as start_from
from tightbox.models.detector import Detector as Detector
from tightbox.models.iou_aware_retinanet import IoUAwareRetinaNet as IoUAwareRetinaNet
from tightbox.models.iou_net import IoUNet as IoUNet
from tightbox.models.unitbox import UnitBox as UnitBox
from tightbox.models.vfnet import VFNet as VFNet
