"""VarifocalNet: a dense detector whose class score is the IoU it expects of its box.

The head looks twice. A first branch predicts a box at every point; a star-shaped deformable convolution then gathers
features at nine places of that box, from which a second branch scales the box and the class branch predicts the
IoU-aware classification score (IACS): at the true class, the IoU of the refined box with its object.

Zhang et al., "VarifocalNet: An IoU-aware Dense Object Detector", CVPR 2021.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import ClassVar, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tightbox.assigners import BACKGROUND, IGNORED, atss, atss_anchors, fcos_assign, level_points, per_point
from tightbox.boxes import centerness, clip_boxes, constant, decode_distances, iou
from tightbox.distributed import mean_over_processes
from tightbox.losses import focal_loss, giou_loss, varifocal_loss
from tightbox.models.dense import best_of_each, group_norm, initialise, inside_images, matched_objects, rows
from tightbox.models.detector import Detector, Images
from tightbox.models.fpn import FPN, STRIDES
from tightbox.ops.group_norm_relu import group_norm_relu
from tightbox.ops.modulated_deform_conv import ModulatedDeformConv2d
from tightbox.ops.star_conv import StarSampling, star_conv2d
from tightbox.options import VFNetOptions
from tightbox.rank import by_centerness, by_class_score
from tightbox.structures import Candidates, Targets, take

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

    Switching `varifocal`, `star` and `refine` off gives the rows of the paper's ablation.
    """

    name: ClassVar[str] = "vfnet"
    Options = VFNetOptions
    all_together: ClassVar[bool] = True

    def make_layers(self) -> None:
        """Feature pyramid and head."""
        self.fpn = FPN(self.backbone.channels, self.options)
        self.head = VFNetHead(len(self.class_names), self.options)

    def forward(self, pixels: Tensor) -> DenseOutput:
        """Raw outputs for normalised pixels (B, 3, H, W)."""
        return cast(DenseOutput, self.head(self.fpn(self.backbone(pixels))))

    def loss(self, images: Images, targets: Sequence[Targets]) -> dict[str, Tensor]:
        """Class loss, box loss of each branch, and centerness loss if there is one (eq. 3 and the released code)."""
        self._refuse_misfits(images, targets)
        pixels, sizes = self._normalise(images)
        output = self(pixels)
        points = self._points(output)
        inside = inside_images(output.sizes, STRIDES, sizes)
        matched = self._assign(output, points, inside, targets)
        positive = matched >= 0
        gt_boxes, labels = matched_objects(targets, matched)
        positives = mean_over_processes(positive.sum().to(points)).clamp(min=1)

        def decoded(distances: Tensor) -> tuple[Tensor, Tensor]:
            """Boxes (B, N, 4), those of positives as predicted, and their IoU (B, N), 0 elsewhere."""
            boxes = torch.where(positive[..., None], decode_distances(points, distances), gt_boxes)
            return boxes, iou(boxes, gt_boxes).detach().clamp(min=MIN_IOU) * positive

        boxes, quality = decoded(output.distances)
        losses: dict[str, Tensor] = {}
        if output.centerness is not None:
            weight = centerness(points, gt_boxes) * positive
            terms = F.binary_cross_entropy_with_logits(output.centerness, weight, reduction="none")
            losses["centerness"] = (terms * positive).sum() / positives
        else:
            weight = quality
        scale = self.options.box_weight
        losses["box"] = scale * FINAL_BOX_WEIGHT * self._box_loss(boxes, gt_boxes, weight, positives)
        if self.options.refine:
            initial, initial_quality = decoded(output.initial)
            if self.options.normaliser == "iou_sum":
                weight = initial_quality
            losses["initial_box"] = scale * INITIAL_BOX_WEIGHT * self._box_loss(initial, gt_boxes, weight, positives)

        learned = quality if self.options.varifocal else positive.to(quality)
        class_target = torch.zeros_like(output.logits).scatter_(2, labels[..., None], learned[..., None])
        counted = matched != IGNORED
        if self.options.varifocal:  # points in the padding do learn to be background, as published
            options = self.options
            form = options.varifocal_alpha, options.varifocal_gamma, options.iou_weighted
            terms = varifocal_loss(output.logits, class_target, *form)
        else:
            terms, counted = focal_loss(output.logits, class_target), counted & inside
        losses["class"] = (terms * counted[..., None]).sum() / positives
        return losses

    def candidates(self, images: Images) -> list[Candidates]:
        """The best `top_k` of every level; `ious` is the IACS itself, or None for a baseline without it.

        Of (location, class) pairs, each above the score threshold has a row of its own, with that score only.
        """
        pixels, sizes = self._normalise(images)
        found = self.best_candidates(pixels, sizes)
        if self.options.top_k_of == "locations":
            return [found[i] for i in range(len(pixels))]
        above = self.rank(found).amax(dim=2) > self.options.score_threshold
        return [found[i][of_image] for i, of_image in enumerate(above)]

    def best_candidates(self, pixels: Tensor, sizes: Tensor) -> Candidates:
        """The same of all images together, and pairs under the threshold with them."""
        output = self(pixels)
        everything = self._every_point(output, self._points(output), sizes)
        rows, scores = self._best(everything, output)
        return self._chosen(everything.take(rows), scores)

    def assigned_candidates(self, images: Images, targets: Sequence[Targets]) -> list[tuple[Candidates, Tensor]]:
        """Those of points that learn nothing, and with all its scores every point that learns an object."""
        pixels, sizes = self._normalise(images)
        output = self(pixels)
        points = self._points(output)
        everything = self._every_point(output, points, sizes)
        rows, scores = self._best(everything, output)
        inside, found = inside_images(output.sizes, STRIDES, sizes), []
        for i, matched in enumerate(self._assign(output, points, inside, targets)):
            others, learning = matched[rows[i]] < 0, (matched >= 0).nonzero().squeeze(1)
            chosen = torch.cat([rows[i][others], learning])
            own = torch.cat([scores[i][others], everything.class_scores[i][learning]])
            found.append((self._chosen(everything[i][chosen], own), matched[chosen].clamp(min=BACKGROUND)))
        return found

    def rank(self, candidates: Candidates) -> Tensor:
        """By the IACS; the baseline by score times centerness."""
        return by_class_score(candidates) if candidates.centerness is None else by_centerness(candidates)

    def _points(self, output: DenseOutput) -> Tensor:
        # ATSS's anchors sit on the top left pixel of each cell, FCOS's points in its middle.
        offset = 0.0 if self.options.assigner == "atss" else 0.5
        return level_points(output.sizes, STRIDES, offset=offset, device=output.logits.device)

    def _assign(self, output: DenseOutput, points: Tensor, inside: Tensor, targets: Sequence[Targets]) -> Tensor:
        """(B, N), as of `atss`."""
        strides = per_point(constant(STRIDES, points), output.sizes)
        if self.options.assigner == "atss":
            counts = [height * width for height, width in output.sizes]
            crowds, topk = 0.5 if self.options.ignore_crowds else None, self.options.atss_topk
            anchors = atss_anchors(points, strides)
            return atss(anchors, counts, targets, topk, ignore_iof=crowds, valid=inside)
        ends = DISTANCE_RANGES[:-1]
        ranges = per_point(constant([(-1.0, *ends), (*ends, math.inf)], points).T, output.sizes)
        radius = 1.5 if self.options.center_sampling else None
        return fcos_assign(points, strides, ranges, targets, radius)

    def _box_loss(self, boxes: Tensor, gt_boxes: Tensor, weight: Tensor, positives: Tensor) -> Tensor:
        if not self.options.iou_weighted_boxes:
            weight = (weight > 0).to(weight)  # all positives, and no others, have some
        by_weight = self.options.normaliser == "iou_sum"
        divisor = mean_over_processes(weight.sum()).clamp(min=1) if by_weight else positives
        return (giou_loss(boxes, gt_boxes) * weight).sum() / divisor

    def _every_point(self, output: DenseOutput, points: Tensor, sizes: Tensor) -> Candidates:
        """The candidates of all N points of all B images."""
        scores = output.logits.sigmoid()
        batch, levels = scores.shape[0], torch.arange(len(STRIDES), device=points.device)
        return Candidates(
            boxes=clip_boxes(decode_distances(points, output.distances), sizes[:, None]),
            class_scores=scores,
            ious=scores if self.options.varifocal else None,
            centerness=None if output.centerness is None else output.centerness.sigmoid(),
            levels=per_point(levels, output.sizes).expand(batch, -1),
            points=points.expand(batch, -1, -1),
        )

    def _best(self, everything: Candidates, output: DenseOutput) -> tuple[Tensor, Tensor]:
        """The best `top_k` of each level: which points (B, K), and their scores (B, K, C).

        If these are pairs, every row has the score of its own class only.
        """
        counts = [height * width for height, width in output.sizes]
        ranking, scores = self.rank(everything), everything.class_scores
        classes = scores.shape[2]
        if self.options.top_k_of == "locations":
            rows = best_of_each(ranking.amax(dim=2), counts, self.options.top_k)
            return rows, take(scores, rows)
        pairs = best_of_each(ranking.flatten(1), [count * classes for count in counts], self.options.top_k)
        rows = pairs // classes
        own = torch.arange(classes, device=rows.device) == (pairs - rows * classes)[..., None]
        return rows, torch.where(own, take(scores, rows), 0)

    def _chosen(self, candidates: Candidates, scores: Tensor) -> Candidates:
        """The candidates with these class scores, which are their IoU estimates too."""
        return replace(candidates, class_scores=scores, ious=scores if self.options.varifocal else None)


class VFNetHead(nn.Module):
    """Two towers shared by all levels, the initial box, the star, the refined box and the class scores."""

    def __init__(self, num_classes: int, options: VFNetOptions) -> None:
        super().__init__()
        channels = options.channels
        self.options = options
        self.class_tower, self.box_tower = _tower(options), _tower(options)
        self.box_conv = ConvNormReLU(channels)
        self.box = nn.Conv2d(channels, 4, 3, padding=1)
        self.box_scale = nn.Parameter(torch.ones(len(STRIDES)))
        if options.refine:
            self.refine_conv = _star(options) if options.star else ConvNormReLU(channels)
            self.refine = nn.Conv2d(channels, 4, 3, padding=1)
            self.refine_scale = nn.Parameter(torch.ones(len(STRIDES)))
        self.class_conv = _star(options) if options.star else ConvNormReLU(channels)
        self.classes = nn.Conv2d(channels, num_classes, 3, padding=1)
        if options.centerness:
            self.centerness = nn.Conv2d(channels, 1, 3, padding=1)
        for module in self.modules():
            if isinstance(module, StarConvReLU) and options.star_init == "kaiming":
                nn.init.kaiming_normal_(module.weight, nonlinearity="relu")
            elif isinstance(module, (nn.Conv2d, StarConvReLU)):
                initialise(module)
        for module in self.modules():
            if isinstance(module, ModulatedDeformConv2d):
                module.reset_offsets()
        nn.init.constant_(self.classes.bias, -math.log(99))  # type: ignore[arg-type]  # every score starts at 0.01

    def forward(self, levels: list[Tensor]) -> DenseOutput:
        """Raw outputs for the pyramid's five maps (B, channels, h, w)."""
        units = DISTANCE_RANGES if self.options.distance_unit == "range" else STRIDES
        outputs = [self._level(x, i, units[i]) for i, x in enumerate(levels)]
        # The centerness map has no channels where there is no such branch.
        logits, distances, initial, centerness = (
            torch.cat([rows(part) for part in parts], dim=1) for parts in zip(*outputs, strict=True)
        )
        of_points = centerness[..., 0] if self.options.centerness else None
        return DenseOutput(logits, distances, initial, of_points, [(x.shape[-2], x.shape[-1]) for x in levels])

    def _level(self, x: Tensor, level: int, unit: float) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        class_features, box_features = self.class_tower(x), self.box_tower(x)
        initial_features = self.box_conv(box_features)
        # Distances are computed in float32: exp() of a half-precision number is a coarse box.
        initial = (self.box(initial_features).float() * self.box_scale[level]).exp() * unit
        sampling = None
        if self.options.star:
            fraction = self.options.offset_gradient
            sampling = StarSampling(fraction * initial + (1 - fraction) * initial.detach(), STRIDES[level])
        distances = initial
        if self.options.refine:
            features = self.refine_conv(box_features, sampling)
            factor = (self.refine(features).float() * self.refine_scale[level]).exp()
            distances = factor * (initial if self.options.refine_gradient else initial.detach())
        logits = self.classes(self.class_conv(class_features, sampling)).float()
        centerness = self.centerness(initial_features).float() if self.options.centerness else logits[:, :0]
        return logits, distances, initial, centerness


class ConvNormReLU(nn.Module):
    """3x3 convolution without bias, group norm, ReLU."""

    def __init__(self, channels: int, deformable: bool = False) -> None:
        super().__init__()
        kind = ModulatedDeformConv2d if deformable else nn.Conv2d
        self.conv = kind(channels, channels, 3, padding=1, bias=False)
        self.norm = group_norm(channels)

    def forward(self, x: Tensor, sampling: StarSampling | None = None) -> Tensor:
        """(B, C, H, W) to the same shape; a sampling is accepted and not used, so that it can stand in for a star."""
        return group_norm_relu(self.conv(x), self.norm)


class StarConvReLU(nn.Module):
    """3x3 convolution without bias whose taps lie on the initial box of each point, a group norm if asked for, ReLU."""

    bias: None = None

    def __init__(self, channels: int, norm: bool = False) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(channels, channels, 3, 3))
        self.norm = group_norm(channels) if norm else None

    def forward(self, x: Tensor, sampling: StarSampling) -> Tensor:
        """(B, C, H, W) to the same shape, sampled where `sampling` says."""
        features = star_conv2d(x, sampling, self.weight)
        return F.relu(features) if self.norm is None else group_norm_relu(features, self.norm)


def _star(options: VFNetOptions) -> StarConvReLU:
    return StarConvReLU(options.channels, norm=options.star_norm)


def _tower(options: VFNetOptions) -> nn.Sequential:
    last = options.tower_depth - 1
    layers = (ConvNormReLU(options.channels, options.deformable and i == last) for i in range(options.tower_depth))
    return nn.Sequential(*layers)
