"""VarifocalNet: a dense detector whose class score is the IoU it expects of its box.

The head looks twice. A first branch predicts a box at every point; a star-shaped deformable convolution then gathers
features at nine places of that box, from which a second branch scales the box and the class branch predicts the
IoU-aware classification score (IACS): at the true class, the IoU of the refined box with its object.

Zhang et al., "VarifocalNet: An IoU-aware Dense Object Detector", CVPR 2021.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tightbox.assigners import IGNORED, Assignment, atss, atss_anchors, fcos_assign, level_points, per_point
from tightbox.boxes import clip_boxes, decode_distances, encode_distances, iou
from tightbox.distributed import mean_over_processes
from tightbox.losses import focal_loss, giou_loss, varifocal_loss
from tightbox.models.backbone import Backbone
from tightbox.models.detector import Detector, Images
from tightbox.models.fpn import FPN, STRIDES
from tightbox.ops.star_conv import StarSampling, star_conv2d
from tightbox.options import Preprocess, VFNetOptions
from tightbox.rank import by_centerness, by_class_score
from tightbox.structures import Candidates, Detections, Targets
from tightbox.suppress import greedy_nms

# Upper ends of FCOS's distance ranges, in pixels; the last range is open, and twice the one before stands in for it.
DISTANCE_RANGES = (64.0, 128.0, 256.0, 512.0, 1024.0)
INITIAL_BOX_WEIGHT = 1.5
FINAL_BOX_WEIGHT = 2.0
MIN_IOU = 1e-6  # a positive whose box misses its object must not turn into a negative (q = 0)


@dataclass(frozen=True, eq=False)
class DenseOutput:
    """The head's raw outputs, all N points of all levels in a row.

    Attributes:
        logits: (B, N, C) class scores before the sigmoid.
        distances: (B, N, 4) final l, t, r, b in pixels.
        initial: (B, N, 4) l, t, r, b of the first branch; the final ones themselves if nothing refines them.
        centerness: (B, N) logits, or None.
        sizes: (height, width) of each level.
    """

    logits: Tensor
    distances: Tensor
    initial: Tensor
    centerness: Tensor | None
    sizes: list[tuple[int, int]]


class VFNet(Detector):
    """The detector: backbone, feature pyramid, head, and the paper's loss and inference.

    Args:
        backbone: gives C3, C4 and C5.
        class_names: the classes, in the order of their labels.
        options: the paper's choices; switching `varifocal`, `star` and `refine` off gives the rungs of its ablation.
        preprocess: how pictures are resized.
    """

    name: ClassVar[str] = "vfnet"

    def __init__(
        self,
        *,
        backbone: Backbone,
        class_names: Sequence[str],
        options: VFNetOptions | None = None,
        preprocess: Preprocess | None = None,
    ) -> None:
        super().__init__(class_names=class_names, preprocess=preprocess or Preprocess())
        self.options = options or VFNetOptions()
        self.backbone = backbone
        self.fpn = FPN(backbone.channels, self.options.channels)
        self.head = VFNetHead(len(self.class_names), self.options)
        self.to(memory_format=torch.channels_last)

    def forward(self, pixels: Tensor) -> DenseOutput:
        """Raw outputs for normalised pixels (B, 3, H, W)."""
        output: DenseOutput = self.head(self.fpn(self.backbone(pixels)))
        return output

    def loss(self, images: Images, targets: Sequence[Targets]) -> dict[str, Tensor]:
        """Class loss, box loss of each branch, and centerness loss if there is one (eq. 3 and the released code)."""
        pixels, sizes = self._normalise(images)
        output = self(pixels)
        points = self._points(output)
        inside = torch.stack([self._inside(output, size) for size in sizes])
        matched = torch.stack(
            [self._assign(output, points, valid, target).matched for valid, target in zip(inside, targets, strict=True)]
        )
        image, place = (matched >= 0).nonzero(as_tuple=True)
        index = matched[image, place]
        truth = torch.cat([target.boxes[index[image == i]] for i, target in enumerate(targets)])
        labels = torch.cat([target.labels[index[image == i]] for i, target in enumerate(targets)])
        positives = mean_over_processes(points.new_tensor(float(len(index)))).clamp(min=1)

        boxes = decode_distances(points[place], output.distances[image, place])
        quality = iou(boxes, truth).detach().clamp(min=MIN_IOU)
        losses: dict[str, Tensor] = {}
        if self.options.centerness:
            assert output.centerness is not None
            goal = _centerness(encode_distances(points[place], truth))
            predicted = output.centerness[image, place]
            losses["centerness"] = F.binary_cross_entropy_with_logits(predicted, goal, reduction="sum") / positives
            weight = goal
        else:
            weight = quality
        losses["box"] = FINAL_BOX_WEIGHT * self._box_loss(boxes, truth, weight, positives)
        if self.options.refine:
            initial = decode_distances(points[place], output.initial[image, place])
            if self.options.normaliser == "code":
                weight = iou(initial, truth).detach().clamp(min=MIN_IOU)
            losses["initial_box"] = INITIAL_BOX_WEIGHT * self._box_loss(initial, truth, weight, positives)

        goal = torch.zeros_like(output.logits)
        if self.options.varifocal:
            goal[image, place, labels] = quality
            terms = varifocal_loss(output.logits, goal, iou_weighted=self.options.iou_weighted)
            counted = matched != IGNORED  # points in the padding do learn to be background, as published
        else:
            goal[image, place, labels] = 1
            terms = focal_loss(output.logits, goal)
            counted = (matched != IGNORED) & inside
        losses["class"] = (terms * counted[..., None]).sum() / positives
        return losses

    def candidates(self, images: Images) -> list[Candidates]:
        """The best `top_k` of every level; `ious` is the IACS itself, or None for a baseline without it."""
        pixels, sizes = self._normalise(images)
        output = self(pixels)
        points = self._points(output)
        scores = output.logits.sigmoid()
        centerness = None if output.centerness is None else output.centerness.sigmoid()
        return [
            self._image_candidates(
                points,
                scores[i],
                output.distances[i],
                None if centerness is None else centerness[i],
                output.sizes,
                size,
            )
            for i, size in enumerate(sizes)
        ]

    def select(self, candidates: Candidates) -> Detections:
        """Rank by the IACS (the baseline: by score times centerness), then greedy class-wise NMS."""
        scores = by_class_score(candidates) if candidates.centerness is None else by_centerness(candidates)
        options = self.options
        return greedy_nms(
            candidates,
            scores,
            iou_threshold=options.nms_iou,
            score_threshold=options.score_threshold,
            max_detections=options.max_detections,
        )

    def _points(self, output: DenseOutput) -> Tensor:
        # ATSS's anchors sit on the top left pixel of each cell, FCOS's points in its middle.
        offset = 0.0 if self.options.assigner == "atss" else 0.5
        return level_points(output.sizes, STRIDES, offset=offset, device=output.logits.device)

    def _inside(self, output: DenseOutput, size: tuple[int, int]) -> Tensor:
        """(N,) whether each point lies in the picture, rounded up to 32 pixels, and not in the batch's padding."""
        levels = []
        for (height, width), stride in zip(output.sizes, STRIDES, strict=True):
            rows, columns = (-(-(-(-side // 32) * 32) // stride) for side in size)
            y = torch.arange(height, device=output.logits.device) < rows
            x = torch.arange(width, device=output.logits.device) < columns
            levels.append((y[:, None] & x).flatten())
        return torch.cat(levels)

    def _assign(self, output: DenseOutput, points: Tensor, inside: Tensor, targets: Targets) -> Assignment:
        strides = per_point(points.new_tensor(STRIDES), output.sizes)
        if self.options.assigner == "atss":
            counts = [height * width for height, width in output.sizes]
            crowds = 0.5 if self.options.ignore_crowds else None
            return atss(atss_anchors(points, strides), counts, targets, ignore_iof=crowds, valid=inside)
        ends = DISTANCE_RANGES[:-1]
        ranges = points.new_tensor([(-1.0, *ends), (*ends, math.inf)]).T
        radius = 1.5 if self.options.center_sampling else None
        return fcos_assign(points, strides, per_point(ranges, output.sizes), targets, center_radius=radius)

    def _box_loss(self, boxes: Tensor, truth: Tensor, weight: Tensor, positives: Tensor) -> Tensor:
        by_weight = self.options.normaliser == "code"
        divisor = mean_over_processes(weight.sum()).clamp(min=1) if by_weight else positives
        return (giou_loss(boxes, truth) * weight).sum() / divisor

    def _image_candidates(
        self,
        points: Tensor,
        scores: Tensor,
        distances: Tensor,
        centerness: Tensor | None,
        levels: list[tuple[int, int]],
        size: tuple[int, int],
    ) -> Candidates:
        counts = [height * width for height, width in levels]
        ranking = scores if centerness is None else scores * centerness[:, None]
        kept, kept_scores, start = [], [], 0
        for count in counts:
            level = slice(start, start + count)
            if self.options.top_k_of == "locations":
                rows = ranking[level].amax(dim=1).topk(min(self.options.top_k, count)).indices + start
                kept_scores.append(scores[rows])
            else:
                rows, label = _best_pairs(ranking[level], self.options.score_threshold, self.options.top_k)
                rows = rows + start
                kept_scores.append(scores[rows] * F.one_hot(label, scores.shape[1]))
            kept.append(rows)
            start += count
        rows, class_scores = torch.cat(kept), torch.cat(kept_scores)
        return Candidates(
            boxes=clip_boxes(decode_distances(points[rows], distances[rows]), size),
            class_scores=class_scores,
            ious=class_scores if self.options.varifocal else None,
            centerness=None if centerness is None else centerness[rows],
        )


class VFNetHead(nn.Module):
    """Two towers shared by all levels, the initial box, the star, the refined box and the class scores."""

    def __init__(self, num_classes: int, options: VFNetOptions) -> None:
        super().__init__()
        channels = options.channels
        self.options = options
        self.class_tower = nn.Sequential(*(ConvNormReLU(channels) for _ in range(options.tower_depth)))
        self.box_tower = nn.Sequential(*(ConvNormReLU(channels) for _ in range(options.tower_depth)))
        self.box_conv = ConvNormReLU(channels)
        self.box = nn.Conv2d(channels, 4, 3, padding=1)
        self.box_scale = nn.Parameter(torch.ones(len(STRIDES)))
        if options.refine:
            self.refine_conv = StarConvReLU(channels) if options.star else ConvNormReLU(channels)
            self.refine = nn.Conv2d(channels, 4, 3, padding=1)
            self.refine_scale = nn.Parameter(torch.ones(len(STRIDES)))
        self.class_conv = StarConvReLU(channels) if options.star else ConvNormReLU(channels)
        self.classes = nn.Conv2d(channels, num_classes, 3, padding=1)
        if options.centerness:
            self.centerness = nn.Conv2d(channels, 1, 3, padding=1)
        for module in self.modules():
            if isinstance(module, (nn.Conv2d, StarConvReLU)):
                nn.init.normal_(module.weight, std=0.01)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)
        nn.init.constant_(self.classes.bias, -math.log(99))  # type: ignore[arg-type]  # every score starts at 0.01

    def forward(self, levels: list[Tensor]) -> DenseOutput:
        """Raw outputs for the pyramid's five maps (B, channels, h, w)."""
        units = DISTANCE_RANGES if self.options.distance_unit == "range" else STRIDES
        outputs = [self._level(x, i, units[i]) for i, x in enumerate(levels)]
        # The centerness map has no channels where there is no such branch.
        logits, distances, initial, centerness = (
            torch.cat([_rows(part) for part in parts], dim=1) for parts in zip(*outputs, strict=True)
        )
        return DenseOutput(
            logits=logits,
            distances=distances,
            initial=initial,
            centerness=centerness[..., 0] if self.options.centerness else None,
            sizes=[(x.shape[-2], x.shape[-1]) for x in levels],
        )

    def _level(self, x: Tensor, level: int, unit: float) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        class_features, box_features = self.class_tower(x), self.box_tower(x)
        initial_features = self.box_conv(box_features)
        # Distances are computed in float32: exp() of a half-precision number is a coarse box.
        initial = (self.box(initial_features).float() * self.box_scale[level]).exp() * unit
        sampling = None
        if self.options.star:
            share = self.options.offset_gradient
            sampling = StarSampling(share * initial + (1 - share) * initial.detach(), STRIDES[level])
        distances = initial
        if self.options.refine:
            features = self.refine_conv(box_features, sampling)
            factor = (self.refine(features).float() * self.refine_scale[level]).exp()
            distances = factor * initial.detach()
        logits = self.classes(self.class_conv(class_features, sampling)).float()
        centerness = self.centerness(initial_features).float() if self.options.centerness else logits[:, :0]
        return logits, distances, initial, centerness


class ConvNormReLU(nn.Module):
    """3x3 convolution without bias, group norm over 32 groups (of at least two channels), ReLU."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
        self.norm = nn.GroupNorm(min(32, channels // 2), channels)

    def forward(self, x: Tensor, sampling: StarSampling | None = None) -> Tensor:
        """(B, C, H, W) to the same shape; a sampling is accepted and not used, so that it can stand in for a star."""
        return F.relu(self.norm(self.conv(x)))


class StarConvReLU(nn.Module):
    """3x3 convolution whose taps lie on the initial box of each point, ReLU; neither bias nor norm."""

    bias: None = None

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(channels, channels, 3, 3))

    def forward(self, x: Tensor, sampling: StarSampling) -> Tensor:
        """(B, C, H, W) to the same shape, sampled where `sampling` says."""
        return F.relu(star_conv2d(x, sampling, self.weight))


def _rows(x: Tensor) -> Tensor:
    """(B, C, H, W) to (B, H·W, C)."""
    return x.permute(0, 2, 3, 1).flatten(1, 2)


def _centerness(distances: Tensor) -> Tensor:
    """FCOS's centerness of points whose distances to their object's sides are (P, 4) l, t, r, b: 1 in the middle."""
    across, down = distances[:, 0::2], distances[:, 1::2]
    ratio = (across.amin(1) / across.amax(1)) * (down.amin(1) / down.amax(1))
    return ratio.clamp(min=0).sqrt()


def _best_pairs(ranking: Tensor, threshold: float, top_k: int) -> tuple[Tensor, Tensor]:
    """Rows and labels of the best (row, class) pairs of (n, C) that are above the threshold, best first."""
    rows, labels = (ranking > threshold).nonzero(as_tuple=True)
    order = ranking[rows, labels].sort(descending=True, stable=True).indices[:top_k]
    return rows[order], labels[order]
