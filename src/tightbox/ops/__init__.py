"""Operations of the papers, as pure functions."""

from tightbox.ops.floored_relu import floored_relu as floored_relu
from tightbox.ops.greedy_nms import greedy_nms as greedy_nms
from tightbox.ops.iou_guided_nms import iou_guided_nms as iou_guided_nms
from tightbox.ops.prroi_pool import prroi_pool as prroi_pool
from tightbox.ops.regions import regions as regions
from tightbox.ops.soft_nms import soft_nms as soft_nms
from tightbox.ops.star_conv import StarSampling as StarSampling
from tightbox.ops.star_conv import star_conv2d as star_conv2d
from tightbox.ops.star_conv import star_offsets as star_offsets
