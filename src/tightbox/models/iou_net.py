"""IoU-Net: Faster R-CNN on a pyramid, with a second head that predicts the IoU of any box with its object.

The head orders the boxes in suppression, and its gradient with respect to a box moves the box to where it is tighter.
It learns from jittered ground-truth boxes, so it can be trained alone and judge the boxes of other detectors.

Jiang et al., "Acquisition of Localization Confidence for Accurate Object Detection", https://arxiv.org/abs/1807.11590.
"""

from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any, ClassVar, NamedTuple, cast

import torch
import torch.nn.functional as F
from torch import Tensor

from tightbox.assigners import BACKGROUND, IGNORED, max_iou
from tightbox.assigners.assignment import padded_boxes
from tightbox.boxes import area, clip_boxes
from tightbox.distributed import mean_over_processes
from tightbox.errors import UserError
from tightbox.jitter import jitter_boxes
from tightbox.models.dense import matched_objects
from tightbox.models.detector import Detector, Images
from tightbox.models.fpn import FPN
from tightbox.models.roi_head import BoxHead, IoUHead, Pyramid, decode, encode, image_of
from tightbox.models.rpn import RPN, sample
from tightbox.options import IoUNetOptions
from tightbox.rank import Rank, by_class_score
from tightbox.refine import refine_boxes
from tightbox.structures import Candidates, Detections, Targets, take
from tightbox.suppress import Suppress, iou_guided_nms

PIECE = 2048  # boxes that the IoU head looks at together: the features pooled for more would fill the memory
MATCH_IOU = 0.5  # least overlap with its object of a proposal that learns it
BOX_BETA = 1 / 9  # of the smooth L1 loss


class Proposed(NamedTuple):
    """The P proposals of each of B images, and what the R-CNN head says of them.

    Attributes:
        rois: (B, P, 4) boxes.
        real: (B, P) whether each is one; the others are 0.
        scores: (B, P, C) class scores, 0 where there is no box.
        deltas: (B, P, C, 4) of the box of each class.
    """

    rois: Tensor
    real: Tensor
    scores: Tensor
    deltas: Tensor


class IoUNet(Detector):
    """The detector: backbone, pyramid P2 to P6, proposals, R-CNN head, IoU head, and the paper's inference."""

    name: ClassVar[str] = "iou_net"
    Options = IoUNetOptions
    class_layers: ClassVar[tuple[str, ...]] = ("head.classes.", "head.deltas.", "iou_head.ious.")

    def make_layers(self) -> None:
        """Pyramid P2 to P6, proposals and R-CNN head unless it is standalone, and IoU head unless that is off."""
        options = self.options
        size = (len(self.class_names), options.channels, options.fc_channels)
        self.fpn = FPN(self.backbone.channels, options, extra="pool")
        self.rpn = None if options.standalone else RPN(options.channels, options.anchor_scale, options.ignore_crowds)
        self.head = None if options.standalone else BoxHead(*size)
        # The last to be made: without it the other weights are the same.
        self.iou_head = IoUHead(*size, logistic=options.iou_loss == "bce") if options.iou_head else None

    @classmethod
    def strides(cls, options: IoUNetOptions) -> tuple[int, ...]:
        """C2 to C5."""
        return (4, 8, 16, 32)

    def forward(self, pixels: Tensor) -> list[Tensor]:
        """Pyramid levels P2 to P6 (B, channels, h, w) for normalised pixels (B, 3, H, W).

        Of the dtype they were computed in for training, and of float32 for prediction, where a thousandth of a
        predicted IoU counts.
        """
        levels: list[Tensor] = self.fpn(self.backbone(pixels))
        return levels if self.training else [level.float() for level in levels]

    def features(self, images: Images) -> Pyramid:
        """What every head looks at."""
        return self._pyramid(*self._normalise(images))

    def loss(self, images: Images, targets: Sequence[Targets]) -> dict[str, Tensor]:
        """The losses of Faster R-CNN, and that of the IoU head."""
        self._refuse_misfits(images, targets)
        pyramid = self.features(images)
        losses = {}
        if self.rpn is not None:
            output = self.rpn(pyramid.levels)
            losses["rpn_class"], losses["rpn_box"] = self.rpn.loss(output, pyramid.sizes, targets)
            with torch.no_grad():
                proposals, _ = self.rpn.proposals(output, pyramid.sizes, self.options.train_proposals)
            losses["class"], losses["box"] = self._box_losses(pyramid, proposals, targets)
        if self.iou_head is not None:
            losses["iou"] = self._iou_loss(self.iou_head, pyramid, targets)
        return losses

    def candidates(self, images: Images) -> list[Candidates]:
        """One candidate for each proposal and class above `score_threshold`.

        Raises:
            UserError: from a standalone IoU head.
        """
        return self._candidates(self.features(images))

    def best_candidates(self, pixels: Tensor, sizes: Tensor) -> Candidates:
        """The same of all images together, best class score first."""
        pyramid = self._pyramid(pixels, sizes)
        return self._read(pyramid, self._proposed(pyramid))[0]

    def assigned_candidates(self, images: Images, targets: Sequence[Targets]) -> list[tuple[Candidates, Tensor]]:
        """Those, and one for each proposal that learns an object, in the object's class; every one learns what it does.

        Raises:
            UserError: from a standalone IoU head.
        """
        pyramid = self.features(images)
        proposed = self._proposed(pyramid)
        matched = self._matched(proposed.rois, targets)
        _, labels = matched_objects(targets, matched)
        learns = torch.zeros_like(proposed.scores, dtype=torch.bool)
        learns = learns.scatter(2, labels[..., None], matched[..., None] >= 0)
        found, rows = self._read(pyramid, proposed, learns)
        matched = take(matched, rows).clamp(min=BACKGROUND)
        return [(found[i][real], matched[i][real]) for i, real in enumerate(_scored(found))]

    def rank(self, candidates: Candidates) -> Tensor:
        """The class score."""
        return by_class_score(candidates)

    def suppress(self, candidates: Candidates, scores: Tensor) -> Detections:
        """IoU-guided suppression (algorithm 1), or by option and where there is no IoU another."""
        if self.suppression != "iou_guided" or candidates.ious is None:
            return super().suppress(candidates, scores)
        return iou_guided_nms(candidates, scores, **self._limits())

    @property
    def suppression(self) -> str:
        """The rule that the options name; greedy in the place of IoU-guided where there is no IoU head."""
        rule = super().suppression
        return "greedy" if rule == "iou_guided" and self.iou_head is None else rule

    def select(self, candidates: Candidates, rank: Rank | None = None, suppress: Suppress | None = None) -> Detections:
        """As every detector, but that a candidate is of one class, also under a ranking that leaves classes out."""
        return super().select(candidates, lambda found: _of_its_class(found, rank or self.rank), suppress)

    def _detect(self, images: Images) -> list[Detections]:
        """Suppressed, then refined, from one forward pass."""
        pyramid = self.features(images)
        return self.refine(pyramid, [self.select(candidates) for candidates in self._candidates(pyramid)])

    @torch.no_grad()
    def predict_ious(self, images: Images, detections: Sequence[Detections]) -> list[Tensor]:
        """Predicted IoU (N,) of each box of any detector, in pixels of the given images, as one of its class.

        It is not calibrated.
        """
        return self._ious_of_images(self.features(images), detections)

    @torch.no_grad()
    def rescore(
        self,
        images: Images,
        detections: Sequence[Detections],
        *,
        rank: Rank | None = None,
        suppress: Suppress | None = None,
        refine_steps: int | None = None,
    ) -> list[Detections]:
        """The detections of any detector with predicted IoUs, ranked, suppressed and refined anew, best first.

        Args:
            images: the images.
            detections: of each image, in its pixels; for IoU-guided suppression, those before any suppression.
            rank: how to rank them; by their scores if not given.
            suppress: how to suppress them; if not given, all stay.
            refine_steps: as the option of that name, whose value it has if not given.
        """
        pyramid = self.features(images)
        chosen = []
        for given, ious in zip(detections, self._ious_of_images(pyramid, detections), strict=True):
            one_hot = F.one_hot(given.labels, len(self.class_names)).to(given.scores)
            candidates = Candidates(given.boxes, one_hot * given.scores[:, None], ious)
            scores = _of_its_class(candidates, rank or self.rank)
            if suppress is None:
                own = scores.gather(1, given.labels[:, None]).squeeze(1)
                chosen.append(_by_score(Detections(given.boxes, own, given.labels, ious)))
            else:
                chosen.append(suppress(candidates, scores))
        found = self.refine(pyramid, chosen, refine_steps)
        if self.calibration is None:
            return found
        calibration = self.calibration.without_margins()
        return [calibration(detections) for detections in found]

    @torch.no_grad()
    def refine(self, pyramid: Pyramid, detections: Sequence[Detections], steps: int | None = None) -> list[Detections]:
        """Detections moved to a higher predicted IoU (algorithm 2), which they then carry, best score first.

        Without an IoU head they are given back as they are.

        Raises:
            UserError: if there are steps to take and features are pooled by RoIAlign.
        """
        options, refined = self.options, list(detections)
        steps = options.refine_steps if steps is None else steps
        if self.iou_head is not None and steps > 0:
            if options.pooling != "prroi":
                raise UserError("this model pools by RoIAlign, which gives boxes no gradient: set refine_steps to 0")
            refined = self._moved(self.iou_head, pyramid, refined, steps)
        if self.iou_head is not None and options.rank_by_iou:
            refined = [_by_score_and_iou(found) for found in refined]
        return refined

    @torch.no_grad()
    def regress(self, pyramid: Pyramid, detections: Sequence[Detections]) -> list[Detections]:
        """Detections whose boxes the R-CNN head has regressed once more."""
        rois, images, labels = _together(detections)
        _, deltas = self._box_head()(pyramid.pool_at(rois, images))
        moved = clip_boxes(decode(rois, deltas[torch.arange(len(labels)), labels]), pyramid.sizes[images])
        parts = moved.split([len(found) for found in detections])
        return [replace(found, boxes=part) for found, part in zip(detections, parts, strict=True)]

    def _box_head(self) -> BoxHead:
        if self.head is None:
            raise UserError(
                "a standalone IoU head finds no boxes, it judges those of other detectors: give it their results "
                "with `tightbox rescore`"
            )
        return self.head

    def _matched(self, boxes: Tensor, targets: Sequence[Targets]) -> Tensor:
        """(B, K) as of `max_iou`, of proposals (B, K, 4); one without area is ignored."""
        crowds = 0.5 if self.options.ignore_crowds else None
        return max_iou(boxes, targets, MATCH_IOU, MATCH_IOU, False, crowds, area(boxes) > 0)

    def _box_losses(self, pyramid: Pyramid, proposals: Tensor, targets: Sequence[Targets]) -> tuple[Tensor, Tensor]:
        """Cross-entropy and smooth L1 over a sample of the proposals, to which the ground-truth boxes belong."""
        options, classes = self.options, len(self.class_names)
        boxes = torch.cat([proposals, padded_boxes(targets)], dim=1)
        chosen, matched = sample(self._matched(boxes, targets), options.rois, options.positive_fraction)
        rois, (gt_boxes, labels) = take(boxes, chosen), matched_objects(targets, matched)
        logits, deltas = self._box_head()(pyramid.pool_at(rois.flatten(0, 1), _image_of_each(rois)))
        class_target = torch.where(matched >= 0, labels, torch.where(matched == IGNORED, IGNORED, classes)).flatten()
        total = mean_over_processes((class_target != IGNORED).sum().to(logits)).clamp(min=1)
        own = take(deltas, labels.reshape(-1, 1)).view_as(rois)
        off = torch.where(matched[..., None] >= 0, own - encode(rois, gt_boxes), 0)
        box = F.smooth_l1_loss(off, torch.zeros_like(off), beta=BOX_BETA, reduction="sum") / total
        return F.cross_entropy(logits, class_target, ignore_index=IGNORED, reduction="sum") / total, box

    def _iou_loss(self, head: IoUHead, pyramid: Pyramid, targets: Sequence[Targets]) -> Tensor:
        """Over jittered ground-truth boxes, each in the channel of its object's class."""
        boxes, labels = [], []
        for target, size in zip(targets, pyramid.sizes, strict=True):
            count = len(target) * max(1, self.options.jittered_boxes // max(1, len(target)))
            # Shared among the objects with area: a sliver may have been rounded away in augmentation.
            has_area = area(clip_boxes(target.boxes, size)) > 0
            rows = torch.arange(count, device=has_area.device) * has_area.sum() // max(1, count)
            rows = has_area.byte().argsort(descending=True, stable=True)[rows]
            boxes.append(target.boxes[rows])
            labels.append(target.labels[rows])
        images = image_of(boxes)
        jittered, ious = jitter_boxes(torch.cat(boxes), pyramid.sizes[images])
        real = ious > 0  # of an image with slivers only nothing
        outputs = head(pyramid.pool_at(torch.where(real[:, None], jittered, 0), images), torch.cat(labels))
        total = mean_over_processes(real.sum().to(outputs)).clamp(min=1)
        return cast(Tensor, self.options.iou_weight * (head.loss(outputs, ious) * real).sum() / total)

    def _pyramid(self, pixels: Tensor, sizes: Tensor) -> Pyramid:
        return Pyramid(self(pixels), sizes, self.options.pooling)

    def _candidates(self, pyramid: Pyramid) -> list[Candidates]:
        found, _ = self._read(pyramid, self._proposed(pyramid))
        return [found[i][real] for i, real in enumerate(_scored(found))]

    def _proposed(self, pyramid: Pyramid) -> Proposed:
        head = self._box_head()
        assert self.rpn is not None  # it comes with the head
        rois, real = self.rpn.proposals(self.rpn(pyramid.levels), pyramid.sizes, self.options.proposals)
        if not torch.compiler.is_exporting():  # whose shapes cannot depend on what is found
            most = max(1, int(real.sum(dim=1).max()))
            rois, real = rois[:, :most], real[:, :most]
        logits, deltas = head(pyramid.pool_at(rois.flatten(0, 1), _image_of_each(rois)))
        scores, deltas = logits.softmax(dim=1)[:, :-1].unflatten(0, real.shape), deltas.unflatten(0, real.shape)
        return Proposed(rois, real, torch.where(real[..., None] & deltas.isfinite().all(dim=3), scores, 0), deltas)

    def _read(self, pyramid: Pyramid, proposed: Proposed, learns: Tensor | None = None) -> tuple[Candidates, Tensor]:
        """The candidates of each image, and the proposal (B, K) that each came from.

        They are the (proposal, class) pairs considered for their scores, and of a mask (B, P, C) those that learn.
        Those with the best class scores are first. K is the most of an image; of others, what is too many is of class
        score 0.
        """
        classes, scores = proposed.scores.shape[2], proposed.scores.flatten(1)
        best = scores.detach().topk(torch.sym_min(self.options.top_k, scores.shape[1]), dim=1).indices
        chosen = torch.zeros_like(scores, dtype=torch.bool).scatter(1, best, True)
        chosen &= scores > self.options.score_threshold
        if learns is not None:
            chosen |= learns.flatten(1)
        scores = torch.where(chosen, scores, 0)
        most: Any = (scores > 0).sum(dim=1).max().clamp(min=1).item()  # to an exporter a symbol
        torch._check(most >= 1)
        torch._check(most <= scores.shape[1])
        best, pairs = scores.sort(dim=1, descending=True)
        best, pairs = best[:, :most], pairs[:, :most]
        rows = pairs // classes
        labels = pairs - rows * classes
        boxes = decode(take(proposed.rois, rows), take(proposed.deltas.flatten(1, 2), pairs))
        boxes = torch.where(best[..., None] > 0, clip_boxes(boxes, pyramid.sizes[:, None]), 0)
        own = torch.arange(classes, device=labels.device) == labels[..., None]
        ious = None
        if self.iou_head is not None:
            ious = self._ious(pyramid, boxes.flatten(0, 1), _image_of_each(boxes), labels.flatten()).view_as(best)
        return Candidates(boxes, torch.where(own, best[..., None], 0), ious), rows

    def _ious(self, pyramid: Pyramid, boxes: Tensor, images: Tensor, labels: Tensor) -> Tensor:
        """Predicted IoU (K,) in [0, 1] of the boxes (K, 4) of the images `images` (K,); 0 for one without area."""
        if self.iou_head is None:
            raise UserError("this model was trained without its IoU head (iou_head=false); train one with it")
        together = boxes, images, labels
        pieces = [together] if torch.compiler.is_exporting() else _pieces(*together)
        ious = torch.cat([_predicted(self.iou_head, pyramid, *piece) for piece in pieces])
        return _valid(ious, boxes)

    def _ious_of_images(self, pyramid: Pyramid, detections: Sequence[Detections]) -> list[Tensor]:
        """The same (N,) of the detections of each image."""
        ious = self._ious(pyramid, *_together(detections))
        return list(ious.split([len(found) for found in detections]))

    @torch.inference_mode(False)  # whose tensors gradients cannot use
    def _moved(self, head: IoUHead, pyramid: Pyramid, detections: list[Detections], steps: int) -> list[Detections]:
        """Algorithm 2 on the boxes of all images together, which stay inside their images."""
        options, (boxes, images, labels) = self.options, _together(detections)
        sizes = pyramid.sizes[images]
        constant = replace(pyramid, levels=[level.detach().clone() for level in pyramid.levels])
        step_size, min_change = options.refine_step_size, options.refine_min_change
        max_drop, roll_back = -options.refine_max_drop, options.refine_roll_back

        def climb(boxes: Tensor, images: Tensor, labels: Tensor, sizes: Tensor) -> tuple[Tensor, Tensor]:
            def predict_iou(moved: Tensor, index: Tensor) -> Tensor:
                return _predicted(head, constant, moved, images[index], labels[index])

            return refine_boxes(boxes, predict_iou, steps, step_size, min_change, max_drop, roll_back, sizes)

        refined = [climb(*piece) for piece in _pieces(clip_boxes(boxes, sizes), images, labels.clone(), sizes)]
        moved, ious = (torch.cat(column) for column in zip(*refined, strict=True))
        counts = [len(found) for found in detections]
        parts = zip(detections, moved.split(counts), _valid(ious, moved).split(counts), strict=True)
        return [replace(found, boxes=new, ious=predicted) for found, new, predicted in parts]


def _together(detections: Sequence[Detections]) -> tuple[Tensor, Tensor, Tensor]:
    """Boxes (K, 4), images (K,) and labels (K,) of the detections in all images."""
    boxes = [found.boxes for found in detections]
    return torch.cat(boxes), image_of(boxes), torch.cat([found.labels for found in detections])


def _pieces(*columns: Tensor) -> Iterator[tuple[Tensor, ...]]:
    """`PIECE` rows of every column at a time; once none, if there are none."""
    return zip(*(torch.split(column, PIECE) for column in columns), strict=True)


def _image_of_each(boxes: Tensor) -> Tensor:
    """(B · K,) the image of each of the boxes (B, K, 4)."""
    images = torch.arange(boxes.shape[0], device=boxes.device)
    return images[:, None].expand(-1, boxes.shape[1]).flatten()


def _scored(candidates: Candidates) -> Tensor:
    """(B, K) whether each of the candidates of several images has a score."""
    return candidates.class_scores.amax(dim=2) > 0


def _predicted(head: IoUHead, pyramid: Pyramid, boxes: Tensor, images: Tensor, labels: Tensor) -> Tensor:
    """IoU (K,) of the boxes (K, 4) of the images `images` (K,), as ones of the classes `labels` (K,).

    In float32, whatever the rest runs in: a step of refinement matters from a thousandth on.
    """
    with torch.autocast(boxes.device.type, enabled=False):
        return head.to_iou(head(pyramid.pool_at(boxes, images), labels))


def _valid(ious: Tensor, boxes: Tensor) -> Tensor:
    """Predictions in [0, 1], and 0 for a box without area."""
    return ious.clamp(0, 1) * (area(boxes) > 0)


def _of_its_class(candidates: Candidates, rank: Rank) -> Tensor:
    """Scores (K, C) that are 0 where the class score is."""
    return rank(candidates) * (candidates.class_scores > 0)


def _by_score_and_iou(detections: Detections) -> Detections:
    """Ranked by the product of class score and predicted IoU."""
    assert detections.ious is not None
    return _by_score(replace(detections, scores=detections.scores * detections.ious))


def _by_score(detections: Detections) -> Detections:
    return detections[detections.scores.argsort(descending=True, stable=True)]
