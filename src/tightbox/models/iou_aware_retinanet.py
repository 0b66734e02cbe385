"""IoU-aware RetinaNet: RetinaNet with one more convolution that predicts the IoU of each anchor's box.

Detections are ranked by p^α·u^(1−α), p being the class score and u the predicted IoU, so that of two boxes on an object
the tighter one survives. Without the IoU head this is RetinaNet.

Wu et al., "IoU-aware Single-stage Object Detector for Accurate Localization", https://arxiv.org/abs/1912.05992.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tightbox.assigners import BACKGROUND, IGNORED, level_points, max_iou, per_point
from tightbox.boxes import clip_boxes, decode_deltas, encode_deltas, iou
from tightbox.distributed import mean_over_processes
from tightbox.losses import focal_loss
from tightbox.models.dense import best_of_each, group_norm, initialise, inside_images, matched_objects, rows
from tightbox.models.detector import Detector, Images
from tightbox.models.fpn import FPN, STRIDES
from tightbox.options import IoUAwareRetinaNetOptions
from tightbox.rank import by_class_score, by_power
from tightbox.structures import Candidates, Targets

SCALES = (1.0, 2 ** (1 / 3), 2 ** (2 / 3))  # of a level's anchors, in steps of a third of an octave
RATIOS = (0.5, 1.0, 2.0)  # height to width
ANCHORS = len(SCALES) * len(RATIOS)
SMOOTH_L1_BETA = 0.11
# Candidates are the best of a level under any of these, so that one inference serves a whole sweep of α.
ALPHAS = tuple(i / 10 for i in range(11))


@dataclass(frozen=True, eq=False)
class AnchorOutput:
    """The head's raw outputs, the N anchors of all levels in a row.

    Attributes:
        logits: (B, N, C) class scores before the sigmoid.
        deltas: (B, N, 4) dx, dy, dw, dh.
        ious: (B, N) predicted IoU before the sigmoid; None without the IoU head.
        sizes: (height, width) of each level.
    """

    logits: Tensor
    deltas: Tensor
    ious: Tensor | None
    sizes: list[tuple[int, int]]


class IoUAwareRetinaNet(Detector):
    """The detector: backbone, feature pyramid with P6 from C5, head, and the paper's loss and inference."""

    name: ClassVar[str] = "iou_aware_retinanet"
    Options = IoUAwareRetinaNetOptions
    all_together: ClassVar[bool] = True
    half_sides: Tensor

    def make_layers(self) -> None:
        """Feature pyramid with P6 from C5, and head."""
        scale, ratio = torch.cartesian_prod(torch.tensor(SCALES), torch.tensor(RATIOS)).unbind(1)
        shapes = torch.stack([scale / ratio.sqrt(), scale * ratio.sqrt()], dim=1)  # (A, 2) width and height
        half = shapes * (self.options.anchor_scale * torch.tensor(STRIDES))[:, None, None] / 2
        self.register_buffer("half_sides", half, persistent=False)  # (levels, A, 2) of the anchors
        self.fpn = FPN(self.backbone.channels, self.options, extra="c5")
        self.head = IoUAwareRetinaNetHead(len(self.class_names), self.options)

    def forward(self, pixels: Tensor) -> AnchorOutput:
        """Raw outputs for normalised pixels (B, 3, H, W)."""
        return cast(AnchorOutput, self.head(self.fpn(self.backbone(pixels))))

    def loss(self, images: Images, targets: Sequence[Targets]) -> dict[str, Tensor]:
        """Focal, smooth-L1 and IoU loss, each divided by the number of positives (eq. 1 to 4)."""
        self._refuse_misfits(images, targets)
        pixels, sizes = self._normalise(images)
        output = self(pixels)
        anchors = self._anchors(output)
        matched = self._assign(output, anchors, sizes, targets)
        positive = (matched >= 0)[..., None]
        gt_boxes, labels = matched_objects(targets, matched)
        # As in the released code, an image without positives counts as one.
        positives = mean_over_processes(positive.sum(dim=1).clamp(min=1).sum().to(anchors))

        class_target = torch.zeros_like(output.logits).scatter_(2, labels[..., None], positive.to(output.logits))
        encoded = encode_deltas(anchors, torch.where(positive, gt_boxes, anchors))
        off = F.smooth_l1_loss(output.deltas, encoded, beta=SMOOTH_L1_BETA, reduction="none")
        losses = {
            "class": (focal_loss(output.logits, class_target) * (matched != IGNORED)[..., None]).sum() / positives,
            "box": (off * positive).sum() / positives,
        }
        if output.ious is not None:
            quality = iou(decode_deltas(anchors, output.deltas), gt_boxes)
            losses["iou"] = (self._iou_loss(output.ious, quality) * (matched >= 0)).sum() / positives
        return losses

    def candidates(self, images: Images) -> list[Candidates]:
        """The boxes that are among the best `top_k` of their level by one of `ALPHAS`; `ious` is the IoU head's u."""
        pixels, sizes = self._normalise(images)
        everything, counts = self._every_anchor(self(pixels), sizes)
        return [everything[i][keep] for i, keep in enumerate(self._best_by_any(everything, counts))]

    def best_candidates(self, pixels: Tensor, sizes: Tensor) -> Candidates:
        """The best `top_k` of every level by the ranking of the options."""
        everything, counts = self._every_anchor(self(pixels), sizes)
        return everything.take(best_of_each(self.rank(everything).amax(dim=2), counts, self.options.top_k))

    def assigned_candidates(self, images: Images, targets: Sequence[Targets]) -> list[tuple[Candidates, Tensor]]:
        """Those of `candidates`, and every anchor's that learns an object."""
        pixels, sizes = self._normalise(images)
        output = self(pixels)
        anchors = self._anchors(output)
        everything, counts = self._every_anchor(output, sizes)
        matched = self._assign(output, anchors, sizes, targets)
        chosen = self._best_by_any(everything, counts) | (matched >= 0)
        return [(everything[i][keep], matched[i][keep].clamp(min=BACKGROUND)) for i, keep in enumerate(chosen)]

    def rank(self, candidates: Candidates) -> Tensor:
        """p^α·u^(1−α) (eq. 6); the class score without the IoU head."""
        return by_class_score(candidates) if candidates.ious is None else by_power(candidates, self.options.alpha)

    def _anchors(self, output: AnchorOutput) -> Tensor:
        """(N, 4) nine around the middle of every cell, in the order of the outputs."""
        points = level_points(output.sizes, STRIDES, offset=0.5, device=output.logits.device)
        half = per_point(self.half_sides, output.sizes)  # (cells, A, 2)
        return torch.cat([points[:, None] - half, points[:, None] + half], dim=-1).flatten(0, 1)

    def _assign(self, output: AnchorOutput, anchors: Tensor, sizes: Tensor, targets: Sequence[Targets]) -> Tensor:
        """(B, N), as of `max_iou`."""
        inside = inside_images(output.sizes, STRIDES, sizes).repeat_interleave(ANCHORS, dim=1)
        crowds = 0.5 if self.options.ignore_crowds else None
        return max_iou(anchors, targets, ignore_iof=crowds, valid=inside)

    def _iou_loss(self, logits: Tensor, quality: Tensor) -> Tensor:
        """Of each anchor. Its gradient also reaches the boxes, through the target: log((1−u)/u) for BCE."""
        if self.options.detach_target:
            quality = quality.detach()
        if self.options.iou_loss == "bce":
            return F.binary_cross_entropy_with_logits(logits, quality, reduction="none")
        difference = logits.sigmoid() - quality
        return difference.abs() if self.options.iou_loss == "l1" else difference.square()

    def _every_anchor(self, output: AnchorOutput, sizes: Tensor) -> tuple[Candidates, list[int]]:
        """The candidates of all N anchors of all B images, and how many anchors each level has."""
        anchors = self._anchors(output)
        counts = [height * width * ANCHORS for height, width in output.sizes]
        levels = per_point(torch.arange(len(STRIDES), device=anchors.device), output.sizes)
        everything = Candidates(
            boxes=clip_boxes(decode_deltas(anchors, output.deltas), sizes[:, None]),
            class_scores=output.logits.sigmoid(),
            ious=None if output.ious is None else output.ious.sigmoid(),
            levels=levels.repeat_interleave(ANCHORS).expand(sizes.shape[0], -1),
        )
        return everything, counts

    def _best_by_any(self, everything: Candidates, counts: list[int]) -> Tensor:
        """(B, N) mask of those among the best `top_k` of their level by one of `ALPHAS`."""
        scores, ious = everything.class_scores.amax(dim=2), everything.ious
        rankings = [scores]
        if ious is not None:
            rankings += [scores**alpha * ious ** (1 - alpha) for alpha in {self.options.alpha, *ALPHAS} - {1.0}]
        keep = torch.zeros_like(scores, dtype=torch.bool)
        for ranking in rankings:
            keep.scatter_(1, best_of_each(ranking, counts, self.options.top_k), True)
        return keep


class IoUAwareRetinaNetHead(nn.Module):
    """Two towers shared by all levels; the box tower ends in the deltas and, beside them, the predicted IoU."""

    def __init__(self, num_classes: int, options: IoUAwareRetinaNetOptions) -> None:
        super().__init__()
        self.class_tower = _tower(options)
        self.box_tower = _tower(options)
        self.classes = nn.Conv2d(options.channels, ANCHORS * num_classes, 3, padding=1)
        self.deltas = nn.Conv2d(options.channels, ANCHORS * 4, 3, padding=1)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                initialise(module)
        nn.init.constant_(self.classes.bias, -math.log(99))  # type: ignore[arg-type]  # every score starts at 0.01
        # Made when the others have their numbers, which so are the same for a seed with and without it.
        self.iou = nn.Conv2d(options.channels, ANCHORS, 3, padding=1) if options.iou_head else None
        if self.iou is not None:
            initialise(self.iou)

    def forward(self, levels: list[Tensor]) -> AnchorOutput:
        """Raw outputs for the pyramid's five maps (B, channels, h, w)."""

        def of_anchors(layer: nn.Module, features: list[Tensor]) -> Tensor:
            # Boxes are decoded in float32: exp() of a half-precision number is a coarse box.
            return torch.cat([rows(layer(x).float(), ANCHORS) for x in features], dim=1)

        box_features = [self.box_tower(x) for x in levels]
        logits = of_anchors(self.classes, [self.class_tower(x) for x in levels])
        deltas = of_anchors(self.deltas, box_features)
        ious = None if self.iou is None else of_anchors(self.iou, box_features)[..., 0]
        return AnchorOutput(logits, deltas, ious, [(x.shape[-2], x.shape[-1]) for x in levels])


def _tower(options: IoUAwareRetinaNetOptions) -> nn.Sequential:
    layers: list[nn.Module] = []
    for _ in range(options.tower_depth):
        conv = nn.Conv2d(options.channels, options.channels, 3, padding=1, bias=not options.tower_norm)
        layers += [conv, group_norm(options.channels), nn.ReLU()] if options.tower_norm else [conv, nn.ReLU()]
    return nn.Sequential(*layers)
