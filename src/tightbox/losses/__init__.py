"""Losses: pure functions of predictions and targets, computed in float32 at least."""

from tightbox.losses.focal import focal_loss
from tightbox.losses.iou import ciou_loss, diou_loss, giou_loss, iou_loss
from tightbox.losses.l2_distance import l2_distance_loss
from tightbox.losses.unitbox_iou import unitbox_iou_loss
from tightbox.losses.varifocal import varifocal_loss

__all__ = [
    "ciou_loss",
    "diou_loss",
    "focal_loss",
    "giou_loss",
    "iou_loss",
    "l2_distance_loss",
    "unitbox_iou_loss",
    "varifocal_loss",
]
