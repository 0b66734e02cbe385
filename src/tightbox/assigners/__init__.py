"""Assigners: which anchor or point learns which true object, of all images of a batch together."""

from tightbox.assigners.assignment import BACKGROUND as BACKGROUND
from tightbox.assigners.assignment import IGNORED as IGNORED
from tightbox.assigners.atss import atss as atss
from tightbox.assigners.atss import atss_anchors as atss_anchors
from tightbox.assigners.fcos import fcos_assign as fcos_assign
from tightbox.assigners.max_iou import max_iou as max_iou
from tightbox.assigners.pixel_regions import pixel_regions as pixel_regions
from tightbox.assigners.points import level_points as level_points
from tightbox.assigners.points import per_point as per_point
