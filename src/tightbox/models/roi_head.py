"""Heads that look at boxes: features pooled from a pyramid, and from them classes and boxes, or the boxes' IoUs.

Jiang et al., "Acquisition of Localization Confidence for Accurate Object Detection", https://arxiv.org/abs/1807.11590.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, cast

import torch
from torch import Tensor, nn
from torchvision.ops import roi_align

from tightbox.boxes import area, constant, decode_deltas, encode_deltas
from tightbox.errors import UserError
from tightbox.models.dense import initialise
from tightbox.ops.csr import uses_triton
from tightbox.ops.prroi_pool import prroi_pool, window_pool

STRIDES = (4, 8, 16, 32)
BINS = 7
CANONICAL_SIZE, CANONICAL_LEVEL = 224, 2  # a box of ImageNet's size pools from the level of stride 16
DELTA_SCALE = (0.1, 0.1, 0.2, 0.2)  # of what the network says, so that its outputs are of the order of 1


@dataclass(frozen=True, eq=False)
class Pyramid:
    """Features of a batch, to be pooled over boxes.

    Attributes:
        levels: maps (B, channels, h, w) at `STRIDES`; more may follow.
        sizes: (B, 2) true height and width of each image.
        pooling: PrRoI pooling, or RoIAlign, which passes no gradient to the boxes.
    """

    levels: Sequence[Tensor]
    sizes: Tensor
    pooling: Literal["prroi", "roi_align"] = "prroi"

    def pool_at(self, boxes: Tensor, images: Tensor) -> Tensor:
        """Features (K, channels, 7, 7) of the boxes (K, 4) of the images `images` (K,)."""
        level, exporting = pyramid_level(boxes.detach()), torch.compiler.is_exporting()
        if exporting and self.pooling == "prroi":
            scaled = boxes / torch.tensor(STRIDES, device=boxes.device)[level][:, None]
            return window_pool(self.levels[: len(STRIDES)], scaled, level, images, BINS)
        regions = torch.cat([images[:, None].to(boxes), boxes], dim=1)
        if exporting or uses_triton(boxes):
            # In fixed shapes, as a GPU would be waited for until it is known how many boxes are of a level. In each
            # level the others are empty, for which Triton's kernels do nothing.
            pooled = boxes.new_zeros(())
            for i in range(len(STRIDES)):
                own = (level == i)[:, None]
                pooled = pooled + self._pool_level(i, regions * own) * own[..., None, None]
            return pooled
        if not boxes.isfinite().all():  # which would end the process in RoIAlign
            number = int((~boxes.isfinite().all(dim=1)).nonzero()[0])
            raise UserError(f"box {number} is not finite; its coordinates must be numbers")
        here = [(level == i).nonzero().squeeze(1) for i in range(len(STRIDES))]
        parts = [self._pool_level(i, regions[rows]) for i, rows in enumerate(here)]
        return torch.cat(parts)[torch.cat(here).argsort()]

    def _pool_level(self, i: int, regions: Tensor) -> Tensor:
        if self.pooling == "prroi":
            return prroi_pool(self.levels[i], regions, BINS, 1 / STRIDES[i])
        return cast(Tensor, roi_align(self.levels[i], regions, BINS, 1 / STRIDES[i], sampling_ratio=2))


def image_of(boxes: Sequence[Tensor]) -> Tensor:
    """(K,) the image that each of the boxes (L, 4) of the images belongs to.

    >>> image_of([torch.zeros(2, 4), torch.zeros(1, 4)])
    tensor([0, 0, 1])
    """
    return torch.cat([torch.full((len(part),), i, device=part.device) for i, part in enumerate(boxes)])


def pyramid_level(boxes: Tensor) -> Tensor:
    """(K,) index into `STRIDES` of the level that boxes (K, 4) are pooled from, by their area (FPN, eq. 1).

    >>> pyramid_level(torch.tensor([[0.0, 0.0, 224.0, 224.0], [0.0, 0.0, 223.0, 223.0], [0.0, 0.0, 0.0, 0.0]]))
    tensor([2, 1, 0])
    """
    # The margin lets a box of exactly twice the size be on the level above in float32, too.
    doublings = torch.log2(area(boxes).sqrt() / CANONICAL_SIZE + 1e-6).floor()
    levels = (CANONICAL_LEVEL + doublings).clamp(0, len(STRIDES) - 1)
    return levels.nan_to_num(0).long()  # that a box is not a number, the pooling of its level says


class BoxHead(nn.Module):
    """The R-CNN head: two layers, then a score of each class and of the background, and a box for each class.

    Args:
        classes: number of classes.
        channels: width of the pyramid.
        width: of the two layers.
    """

    def __init__(self, classes: int, channels: int, width: int) -> None:
        super().__init__()
        self.layers = _two_layers(channels, width)
        self.classes = nn.Linear(width, classes + 1)
        self.deltas = nn.Linear(width, classes * 4)
        initialise(self.classes)
        initialise(self.deltas, std=0.001)

    def forward(self, pooled: Tensor) -> tuple[Tensor, Tensor]:
        """Logits (K, C + 1), the background last, and deltas (K, C, 4) for pooled features (K, channels, 7, 7)."""
        hidden = self.layers(pooled)
        return self.classes(hidden).float(), self.deltas(hidden).float().unflatten(1, (-1, 4))


def encode(rois: Tensor, boxes: Tensor) -> Tensor:
    """What `BoxHead` should say (..., 4) to turn `rois` (..., 4) into `boxes` (..., 4)."""
    deltas = encode_deltas(rois, boxes)
    return deltas / constant(DELTA_SCALE, deltas)


def decode(rois: Tensor, deltas: Tensor) -> Tensor:
    """Boxes (..., 4) from `rois` (..., 4) and what `BoxHead` said (..., 4)."""
    return decode_deltas(rois, deltas * constant(DELTA_SCALE, deltas))


class IoUHead(nn.Module):
    """Two layers of its own, then for each class the IoU that the box has with its object, if it is of that class.

    Args:
        classes: number of classes.
        channels: width of the pyramid.
        width: of the two layers.
        logistic: outputs are logits; otherwise they are 2·IoU − 1.
    """

    def __init__(self, classes: int, channels: int, width: int, *, logistic: bool) -> None:
        super().__init__()
        self.logistic = logistic
        self.layers = _two_layers(channels, width)
        self.ious = nn.Linear(width, classes)
        initialise(self.ious)

    def forward(self, pooled: Tensor, labels: Tensor) -> Tensor:
        """Raw outputs (K,) for pooled features (K, channels, 7, 7), each in the channel of its label (K,)."""
        outputs: Tensor = self.ious(self.layers(pooled)).float()
        return outputs.gather(1, labels[:, None]).squeeze(1)

    def loss(self, outputs: Tensor, ious: Tensor) -> Tensor:
        """Of each raw output (K,): smooth L1 on 2·IoU − 1, or binary cross-entropy on the IoU."""
        if self.logistic:
            return nn.functional.binary_cross_entropy_with_logits(outputs, ious, reduction="none")
        return nn.functional.smooth_l1_loss(outputs, 2 * ious - 1, reduction="none")

    def to_iou(self, outputs: Tensor) -> Tensor:
        """IoU of raw outputs; of linear ones it may lie a little outside [0, 1]."""
        return outputs.sigmoid() if self.logistic else (outputs + 1) / 2


def _two_layers(channels: int, width: int) -> nn.Sequential:
    first, second = nn.Linear(channels * BINS**2, width), nn.Linear(width, width)
    for layer in (first, second):
        nn.init.xavier_uniform_(layer.weight)
        nn.init.zeros_(layer.bias)
    return nn.Sequential(nn.Flatten(), first, nn.ReLU(), second, nn.ReLU())
