"""Assigners: which anchor or point learns which true object."""

from tightbox.assigners.assignment import BACKGROUND, IGNORED, Assignment
from tightbox.assigners.atss import atss, atss_anchors, atss_of_batch
from tightbox.assigners.fcos import fcos_assign, fcos_assign_of_batch
from tightbox.assigners.max_iou import max_iou, max_iou_of_batch
from tightbox.assigners.pixel_regions import PixelTargets, pixel_regions, pixel_regions_of_batch
from tightbox.assigners.points import level_points, per_point

__all__ = [
    "BACKGROUND",
    "IGNORED",
    "Assignment",
    "PixelTargets",
    "atss",
    "atss_anchors",
    "atss_of_batch",
    "fcos_assign",
    "fcos_assign_of_batch",
    "level_points",
    "max_iou",
    "max_iou_of_batch",
    "per_point",
    "pixel_regions",
    "pixel_regions_of_batch",
]
