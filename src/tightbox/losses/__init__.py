"""Losses: pure functions of predictions and targets, in float32 at least, with a value for each element or box."""

from tightbox.losses.focal import focal_loss as focal_loss
from tightbox.losses.iou import ciou_loss as ciou_loss
from tightbox.losses.iou import diou_loss as diou_loss
from tightbox.losses.iou import giou_loss as giou_loss
from tightbox.losses.iou import iou_loss as iou_loss
from tightbox.losses.unitbox import l2_distance_loss as l2_distance_loss
from tightbox.losses.unitbox import unitbox_iou_loss as unitbox_iou_loss
from tightbox.losses.varifocal import varifocal_loss as varifocal_loss
