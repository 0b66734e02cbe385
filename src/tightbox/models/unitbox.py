"""UnitBox: every pixel of an object knows how far the sides of its box are, and learns it by the IoU of the whole box.

A confidence map tells which pixels lie on an object, a box map tells their distances to its sides. Both are as large as
the image. An object is a connected region of confident pixels; its box is read at one pixel in the middle of it.

Yu et al., "UnitBox: An Advanced Object Detection Network", https://arxiv.org/abs/1608.01471.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tightbox.assigners import BACKGROUND, IGNORED, level_points, pixel_regions
from tightbox.boxes import clip_boxes, decode_distances, encode_distances
from tightbox.distributed import mean_over_processes
from tightbox.losses import l2_distance_loss, unitbox_iou_loss
from tightbox.models.backbone import Backbone
from tightbox.models.dense import best_of_each, initialise, matched_objects
from tightbox.models.detector import Detector, Images
from tightbox.ops.csr import uses_triton
from tightbox.ops.floored_relu import floored_relu
from tightbox.ops.regions import regions
from tightbox.options import UnitBoxOptions
from tightbox.rank import by_class_score
from tightbox.structures import DIVISOR, Candidates, Detections, Targets, take
from tightbox.suppress import greedy_nms

INITIAL_DISTANCE = 32.0  # pixels; every box starts twice as wide, and no pixel starts dead
INITIAL_CONFIDENCE = 0.1


@dataclass(frozen=True, eq=False)
class PixelOutput:
    """What the network says of every pixel of its input.

    Attributes:
        logits: (B, C, H, W) confidence of each class before the sigmoid.
        distances: (B, 4, H, W) pixels from the pixel's centre to the left, top, right and bottom of its box, at least
            0.5. The paper orders them t, b, l, r.
    """

    logits: Tensor
    distances: Tensor


class UnitBox(Detector):
    """The detector: the confidence branch on stage 4 of the backbone, the box branch on stage 5.

    There is one confidence map a class, but one box map for all, as a pixel shows one object, whatever it is.

    `detect` reads one box from each confident region, as published. `candidates` are the dense reading, in which every
    pixel's box is one: other rules of ranking and suppression, and the oracle study, apply to these.
    """

    name: ClassVar[str] = "unitbox"
    default_backbone: ClassVar[str] = "vgg16"
    Options = UnitBoxOptions

    def make_layers(self) -> None:
        """The two branches, and a backbone of its own for each unless they share one."""
        backbone = self.backbone
        # timm's VGG gives its stages before their pooling; other networks shrink at the start of a stage instead.
        self.pools = self.options.pooled and backbone.options.name.startswith("vgg")
        self.confidence_stride, self.box_stride = (16, 32) if self.options.pooled else (8, 16)
        widths = dict(zip(backbone.strides, backbone.channels, strict=True))
        stage4 = 8 if self.pools else self.confidence_stride
        self.head = UnitBoxHead(widths[stage4], widths[self.box_stride], len(self.class_names), self.options)
        self.box_backbone: Backbone | None = None
        if not self.options.shared:
            self.box_backbone = backbone
            # The confidence branch's own network ends where that branch begins: what comes after would learn nothing.
            self.backbone = Backbone(replace(backbone.options, pretrained=False), (stage4,))
            self.backbone.load_state_dict(backbone.state_dict(), strict=False)

    @classmethod
    def strides(cls, options: UnitBoxOptions) -> tuple[int, ...]:
        """Those of the two stages, and 8 because a VGG's stage 4 is pooled here."""
        return (8, 16, 32) if options.pooled else (8, 16)

    def forward(self, pixels: Tensor) -> PixelOutput:
        """Both maps for normalised pixels (B, 3, H, W), in their size."""
        height, width = pixels.shape[-2:]
        pixels = F.pad(pixels, (0, -width % DIVISOR, 0, -height % DIVISOR))
        features = of_boxes = _by_stride(self.backbone, pixels)
        if self.box_backbone is not None:
            of_boxes = _by_stride(self.box_backbone, pixels)
        stage4 = F.max_pool2d(features[8], 2) if self.pools else features[self.confidence_stride]
        logits, raw = self.head(stage4, of_boxes[self.box_stride])
        logits = _enlarged(logits, self.confidence_stride)[..., :height, :width]
        raw = _enlarged(raw, self.box_stride)[..., :height, :width]
        return PixelOutput(logits, floored_relu(raw * self.options.distance_unit))

    def loss(self, images: Images, targets: Sequence[Targets]) -> dict[str, Tensor]:
        """Cross-entropy of the confidence maps, and −ln IoU (eq. 1 to 7) or ℓ2 of the boxes at the positive pixels.

        Either is the mean over its pixels, those of the whole batch together, or the sum over them in an image. The
        paper says neither, nor how it weighs the two. Pixels in regions to be ignored have no part.
        """
        self._refuse_misfits(images, targets)
        pixels, sizes = self._normalise(images)
        output = self(pixels)
        confidence, matched = self._maps(pixels, targets)
        points = level_points([(pixels.shape[2], pixels.shape[3])], [1], offset=0.5, device=pixels.device)
        points = points.expand(len(pixels), -1, -1)
        inside = (points < sizes.flip(1)[:, None]).all(dim=2)
        known, learns = inside & (matched != IGNORED), inside & (matched >= 0)
        entropy = F.binary_cross_entropy_with_logits(output.logits, confidence, reduction="none").flatten(2)
        # A CPU saves time where it leaves out the pixels that learn no box; a GPU would be waited for.
        chosen = slice(None) if uses_triton(pixels) else learns
        gt_boxes, _ = matched_objects(targets, matched, chosen)
        box = self._box_loss(output.distances.flatten(2).mT[chosen], encode_distances(points[chosen], gt_boxes))
        num_images = output.logits.new_full((), len(sizes))
        by_mean = self.options.reduction == "mean"
        over = (known.sum(), learns.sum()) if by_mean else (num_images, num_images)
        known_pixels, positives = (mean_over_processes(count.float()).clamp(min=1) for count in over)
        return {
            "confidence": self.options.confidence_weight * (entropy * known[:, None]).sum() / known_pixels,
            "box": self.options.box_weight * (box * learns[chosen]).sum() / positives,
        }

    def _detect(self, images: Images) -> list[Detections]:
        """One box of each region, as published: connected confident pixels, the ellipse around them, its centre pixel.

        The score is the confidence there, or the region's mean. Greedy NMS follows if the options say so.
        """
        return [self._detections(candidates) for candidates in self.region_candidates(images)]

    def region_candidates(self, images: Images) -> list[Candidates]:
        """One candidate for each region, scored in its class only."""
        pixels, sizes = self._normalise(images)
        output = self(pixels)
        return [self._read_regions(output, i, size) for i, size in enumerate(sizes.tolist())]

    def candidates(self, images: Images) -> list[Candidates]:
        """The dense reading: the boxes of the `top_k` most confident pixels, of every `dense_stride`-th each way.

        Neighbours say nearly the same, as both maps were enlarged many times over; a grid keeps the pixels of one large
        object from crowding out all others.
        """
        pixels, sizes = self._normalise(images)
        found = self.best_candidates(pixels, sizes)
        return [found[i][inside] for i, inside in enumerate(_lies_inside(found, sizes))]

    def best_candidates(self, pixels: Tensor, sizes: Tensor) -> Candidates:
        """The same of all images together; what lies outside an image has the confidence 0."""
        grid = self._every_pixel(self(pixels), sizes)
        return grid.take(self._best(grid))

    def assigned_candidates(self, images: Images, targets: Sequence[Targets]) -> list[tuple[Candidates, Tensor]]:
        """Those, and every pixel of the grid that learns an object; one that no such pixel learns has no candidate."""
        pixels, sizes = self._normalise(images)
        grid = self._every_pixel(self(pixels), sizes)
        assert grid.points is not None  # `_every_pixel` gives them
        inside = _lies_inside(grid, sizes)
        x, y = grid.points.long().unbind(2)
        places = torch.where(inside, y * pixels.shape[3] + x, 0)
        matched = take(self._maps(pixels, targets)[1], places)
        keep = (matched >= 0).scatter(1, self._best(grid), True) & inside
        return [(grid[i][rows], matched[i][rows].clamp(min=BACKGROUND)) for i, rows in enumerate(keep)]

    def rank(self, candidates: Candidates) -> Tensor:
        """The confidence."""
        return by_class_score(candidates)

    def _maps(self, pixels: Tensor, targets: Sequence[Targets]) -> tuple[Tensor, Tensor]:
        """Confidence (B, C, H, W), and the object (B, H·W) that each pixel learns."""
        size, options = (pixels.shape[2], pixels.shape[3]), self.options
        of_pixels = pixel_regions(size, targets, len(self.class_names), options.region, options.region_scale)
        return of_pixels[0], of_pixels[1].flatten(1)

    def _box_loss(self, predicted: Tensor, target: Tensor) -> Tensor:
        """Of each pixel, from distances (..., 4); the IoU loss is the same in any unit of length."""
        if self.options.loss == "iou":
            return unitbox_iou_loss(predicted, target)
        unit = self.options.distance_unit
        return l2_distance_loss(predicted / unit, target / unit)

    def _read_regions(self, output: PixelOutput, i: int, size: tuple[int, int]) -> Candidates:
        height, width = size
        confidence = output.logits[i, :, :height, :width].sigmoid()
        places, scores = [], []
        for label, of_class in enumerate(confidence):
            found = regions(of_class, self.options.threshold)
            large = found.areas >= self.options.min_region
            score = found.centre_confidence if self.options.score == "centre" else found.mean_confidence
            places.append(found.centres[large])
            scores.append(score.new_zeros(int(large.sum()), len(confidence)))
            scores[-1][:, label] = score[large]
        x, y = torch.cat(places).unbind(1)
        points = torch.stack([x, y], dim=1) + 0.5
        boxes = clip_boxes(decode_distances(points, output.distances[i, :, y, x].T), size)
        return Candidates(boxes, torch.cat(scores), points=points)

    def _detections(self, candidates: Candidates) -> Detections:
        limits = self._limits() | ({} if self.options.nms else {"iou_threshold": 1.0})  # no IoU is above 1
        return greedy_nms(candidates, candidates.class_scores, **limits)

    def _every_pixel(self, output: PixelOutput, sizes: Tensor) -> Candidates:
        """The box of every `dense_stride`-th pixel each way of all images; confidence 0 outside an image."""
        step, (height, width) = self.options.dense_stride, output.logits.shape[-2:]
        y, x = (
            # The middle of every step × step block; of a smaller image, its own middle.
            torch.arange((side + step - 1) // step, device=sizes.device) * step + (size.clamp(max=step) // 2)[:, None]
            for side, size in ((height, sizes[:, 0]), (width, sizes[:, 1]))
        )  # (B, rows), (B, columns)
        places = (y.clamp(max=height - 1)[:, :, None] * width + x.clamp(max=width - 1)[:, None]).flatten(1)
        x, y = torch.broadcast_tensors(x[:, None], y[:, :, None])
        points = torch.stack([x.flatten(1), y.flatten(1)], dim=2) + 0.5
        boxes = decode_distances(points, take(output.distances.flatten(2).mT, places))
        scores = take(output.logits.flatten(2).mT, places).sigmoid()
        grid = Candidates(clip_boxes(boxes, sizes[:, None]), scores, points=points)
        return replace(grid, class_scores=torch.where(_lies_inside(grid, sizes)[..., None], scores, 0))

    def _best(self, grid: Candidates) -> Tensor:
        """(B, K) places of the `top_k` most confident ones, in their order."""
        confidence = grid.class_scores.amax(dim=2)
        return best_of_each(confidence, [confidence.shape[1]], self.options.top_k)


def _by_stride(backbone: Backbone, pixels: Tensor) -> dict[int, Tensor]:
    return dict(zip(backbone.strides, backbone(pixels), strict=True))


def _lies_inside(grid: Candidates, sizes: Tensor) -> Tensor:
    """(B, K) whether the candidates' points lie in their images."""
    assert grid.points is not None  # `_every_pixel` gives them
    return (grid.points < sizes.flip(1)[:, None]).all(dim=2)


class UnitBoxHead(nn.Module):
    """One 3x3 convolution a branch, and nothing else that learns."""

    def __init__(self, stage4: int, stage5: int, num_classes: int, options: UnitBoxOptions) -> None:
        super().__init__()
        self.classes = nn.Conv2d(stage4, num_classes, 3, padding=1)
        self.distances = nn.Conv2d(stage5, 4, 3, padding=1)
        # A VGG has no norms: its features go into the tens, and there are thousands in a sum.
        initialise(self.classes, std=0.001, bias=-math.log(1 / INITIAL_CONFIDENCE - 1))
        initialise(self.distances, std=0.001, bias=INITIAL_DISTANCE / options.distance_unit)

    def forward(self, stage4: Tensor, stage5: Tensor) -> tuple[Tensor, Tensor]:
        """Confidence logits, and distances in units, before their ReLU, at the strides of the features."""
        return self.classes(stage4).float(), self.distances(stage5).float()


def _enlarged(maps: Tensor, stride: int) -> Tensor:
    """Linear up-sampling; the same as a transposed convolution with bilinear weights, but for the border.

    There the transposed convolution fades to 0, and this repeats the last value.
    """
    return F.interpolate(maps, scale_factor=stride, mode="bilinear", align_corners=False)
