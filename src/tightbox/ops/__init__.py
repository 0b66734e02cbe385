"""Operations of the papers, as pure functions."""

from tightbox.ops.floored_relu import floored_relu
from tightbox.ops.greedy_nms import greedy_nms
from tightbox.ops.iou_guided_nms import batched_iou_guided_nms, iou_guided_nms
from tightbox.ops.prroi_pool import PrRoIPool, prroi_pool
from tightbox.ops.regions import Regions, regions
from tightbox.ops.soft_nms import soft_nms
from tightbox.ops.star_conv import StarSampling, star_conv2d, star_offsets

__all__ = [
    "PrRoIPool",
    "Regions",
    "StarSampling",
    "batched_iou_guided_nms",
    "floored_relu",
    "greedy_nms",
    "iou_guided_nms",
    "prroi_pool",
    "regions",
    "soft_nms",
    "star_conv2d",
    "star_offsets",
]
