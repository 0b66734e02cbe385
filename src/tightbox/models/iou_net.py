"""IoU-Net: Faster R-CNN on a pyramid, with a second head that predicts the IoU of any box with its object.

The head orders the boxes in suppression, and its gradient with respect to a box moves the box to where it is tighter.
It learns from jittered ground-truth boxes, so it can be trained alone and judge the boxes of other detectors.

Jiang et al., "Acquisition of Localization Confidence for Accurate Object Detection", https://arxiv.org/abs/1807.11590.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from tightbox.assigners import max_iou
from tightbox.boxes import area, clip_boxes
from tightbox.distributed import mean_over_processes
from tightbox.errors import UserError
from tightbox.jitter import jitter_boxes
from tightbox.models.detector import Detector, Images
from tightbox.models.fpn import FPN
from tightbox.models.roi_head import BoxHead, IoUHead, Pyramid, decode, encode, image_of
from tightbox.models.rpn import RPN, sample
from tightbox.options import IoUNetOptions
from tightbox.rank import Rank, by_class_score
from tightbox.refine import refine_boxes
from tightbox.structures import Candidates, Detections, Targets
from tightbox.suppress import Suppress, iou_guided_nms

PIECE = 2048  # boxes that the IoU head looks at together: the features pooled for more would fill the memory
MATCH_IOU = 0.5  # least overlap with its object of a proposal that learns it
BOX_BETA = 1 / 9  # of the smooth L1 loss


class IoUNet(Detector):
    """The detector: backbone, pyramid P2 to P6, proposals, R-CNN head, IoU head, and the paper's inference."""

    name: ClassVar[str] = "iou_net"
    Options = IoUNetOptions
    class_layers: ClassVar[tuple[str, ...]] = ("head.classes.", "head.deltas.", "iou_head.ious.")

    def make_layers(self) -> None:
        """Pyramid P2 to P6, proposals and R-CNN head unless it is standalone, and IoU head unless that is off."""
        options = self.options
        size = (len(self.class_names), options.channels, options.fc_channels)
        self.fpn = FPN(self.backbone.channels, options.channels, extra="pool")
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
        pixels, sizes = self._normalise(images)
        return Pyramid(self(pixels), sizes, self.options.pooling)

    def loss(self, images: Images, targets: Sequence[Targets]) -> dict[str, Tensor]:
        """The losses of Faster R-CNN, and that of the IoU head."""
        pyramid = self.features(images)
        losses = {}
        if self.rpn is not None:
            output = self.rpn(pyramid.levels)
            losses["rpn_class"], losses["rpn_box"] = self.rpn.loss(output, pyramid.sizes, targets)
            proposals = self.rpn.proposals(output, pyramid.sizes, self.options.train_proposals)
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

    def assigned_candidates(self, images: Images, targets: Sequence[Targets]) -> list[tuple[Candidates, Tensor]]:
        """Those, and one for each proposal that learns an object, in the object's class; every one learns what it does.

        Raises:
            UserError: from a standalone IoU head.
        """
        pyramid = self.features(images)
        proposed = self._proposed(pyramid)
        matched = [
            max_iou(rois, target, MATCH_IOU, MATCH_IOU, low_quality=False).matched
            for (rois, _, _), target in zip(proposed, targets, strict=True)
        ]
        chosen = []
        for (_, scores, _), of_proposal, target in zip(proposed, matched, targets, strict=True):
            pairs = self._scored_pairs(scores)
            learning = (of_proposal >= 0).nonzero().squeeze(1)
            pairs[learning, target.labels[of_proposal[learning]]] = True
            chosen.append(pairs)
        read = self._read(pyramid, proposed, chosen)
        return [(candidates, of_proposal[rows]) for (candidates, rows), of_proposal in zip(read, matched, strict=True)]

    def rank(self, candidates: Candidates) -> Tensor:
        """The class score."""
        return by_class_score(candidates)

    def suppress(self, candidates: Candidates, scores: Tensor) -> Detections:
        """IoU-guided suppression (algorithm 1), or greedy by option and where there is no IoU."""
        options = self.options
        if options.suppress == "greedy" or candidates.ious is None:
            return self.greedy_nms(candidates, scores)
        return iou_guided_nms(
            candidates,
            scores,
            iou_threshold=options.nms_iou,
            score_threshold=options.score_threshold,
            max_detections=options.max_detections,
        )

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
        pyramid = self.features(images)
        return self._ious(pyramid, [found.boxes for found in detections], [found.labels for found in detections])

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
        boxes, labels = [found.boxes for found in detections], [found.labels for found in detections]
        chosen = []
        for given, ious in zip(detections, self._ious(pyramid, boxes, labels), strict=True):
            one_hot = F.one_hot(given.labels, len(self.class_names)).to(given.scores)
            candidates = Candidates(given.boxes, one_hot * given.scores[:, None], ious)
            scores = _of_its_class(candidates, rank or self.rank)
            if suppress is None:
                own = scores.gather(1, given.labels[:, None]).squeeze(1)
                chosen.append(_by_score(Detections(given.boxes, own, given.labels, ious)))
            else:
                chosen.append(suppress(candidates, scores))
        found = self.refine(pyramid, chosen, refine_steps)
        return found if self.calibration is None else [self.calibration(detections) for detections in found]

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
        rois, labels = [found.boxes for found in detections], torch.cat([found.labels for found in detections])
        _, deltas = self._box_head()(pyramid.pool(rois))
        moved = decode(torch.cat(rois), deltas[torch.arange(len(labels)), labels])
        parts = torch.split(moved, [len(part) for part in rois])
        return [
            replace(found, boxes=clip_boxes(part, size))
            for found, part, size in zip(detections, parts, pyramid.sizes, strict=True)
        ]

    def _box_head(self) -> BoxHead:
        if self.head is None:
            raise UserError(
                "a standalone IoU head finds no boxes, it judges those of other detectors: give it their results "
                "with `tightbox rescore`"
            )
        return self.head

    def _box_losses(
        self, pyramid: Pyramid, proposals: Sequence[Tensor], targets: Sequence[Targets]
    ) -> tuple[Tensor, Tensor]:
        """Cross-entropy and smooth L1 over a sample of the proposals, to which the ground-truth boxes belong."""
        options = self.options
        rois, class_targets, box_targets = [], [], []
        for boxes, target in zip(proposals, targets, strict=True):
            boxes = torch.cat([boxes, target.boxes])
            crowds = 0.5 if options.ignore_crowds else None
            matched = max_iou(boxes, target, MATCH_IOU, MATCH_IOU, low_quality=False, ignore_iof=crowds).matched
            positive, negative = sample(matched, options.rois, options.positive_fraction)
            rois.append(boxes[torch.cat([positive, negative])])
            background = torch.full_like(negative, len(self.class_names))
            class_targets.append(torch.cat([target.labels[matched[positive]], background]))
            box_targets.append(target.boxes[matched[positive]])
        logits, deltas = self._box_head()(pyramid.pool(rois))
        class_target = torch.cat(class_targets)
        positive = (class_target < len(self.class_names)).nonzero().squeeze(1)
        off = deltas[positive, class_target[positive]] - encode(torch.cat(rois)[positive], torch.cat(box_targets))
        total = mean_over_processes(logits.new_tensor(len(class_target))).clamp(min=1)
        box = F.smooth_l1_loss(off, torch.zeros_like(off), beta=BOX_BETA, reduction="sum") / total
        return F.cross_entropy(logits, class_target, reduction="sum") / total, box

    def _iou_loss(self, head: IoUHead, pyramid: Pyramid, targets: Sequence[Targets]) -> Tensor:
        """Over jittered ground-truth boxes, each in the channel of its object's class."""
        boxes, ious, labels = [], [], []
        for target, size in zip(targets, pyramid.sizes, strict=True):
            non_degenerate = (
                area(clip_boxes(target.boxes, size)) > 0
            )  # a sliver may have been rounded away in augmentation
            each = max(1, self.options.jittered_boxes // max(1, int(non_degenerate.sum())))
            jittered, overlaps = jitter_boxes(target.boxes[non_degenerate], each, size)
            boxes.append(jittered)
            ious.append(overlaps)
            labels.append(target.labels[non_degenerate].repeat_interleave(each))
        outputs = head(pyramid.pool(boxes), torch.cat(labels))
        total = mean_over_processes(outputs.new_tensor(len(outputs))).clamp(min=1)
        loss: Tensor = self.options.iou_weight * head.loss(outputs, torch.cat(ious)) / total
        return loss

    def _candidates(self, pyramid: Pyramid) -> list[Candidates]:
        proposed = self._proposed(pyramid)
        chosen = [self._scored_pairs(scores) for _, scores, _ in proposed]
        return [candidates for candidates, _ in self._read(pyramid, proposed, chosen)]

    def _proposed(self, pyramid: Pyramid) -> list[tuple[Tensor, Tensor, Tensor]]:
        """Of each image the proposals (K, 4), their class scores (K, C), and the deltas (K, C, 4) of each class."""
        head = self._box_head()
        assert self.rpn is not None  # it comes with the head
        rois = self.rpn.proposals(self.rpn(pyramid.levels), pyramid.sizes, self.options.proposals)
        logits, deltas = head(pyramid.pool(rois))
        counts = [len(part) for part in rois]
        scores = logits.softmax(dim=1)[:, :-1]
        return list(zip(rois, torch.split(scores, counts), torch.split(deltas, counts), strict=True))

    def _scored_pairs(self, scores: Tensor) -> Tensor:
        """(K, C) mask of the (proposal, class) pairs that are considered for their scores (K, C)."""
        floor = self.options.score_threshold
        if scores.numel() > self.options.top_k:
            floor = max(floor, float(scores.detach().flatten().topk(self.options.top_k + 1).values[-1]))
        considered: Tensor = scores > floor
        return considered

    def _read(
        self, pyramid: Pyramid, proposed: Sequence[tuple[Tensor, Tensor, Tensor]], chosen: Sequence[Tensor]
    ) -> list[tuple[Candidates, Tensor]]:
        """The candidates of each image's chosen pairs (K, C), and the proposal that each came from."""
        boxes, class_scores, labels, origins = [], [], [], []
        for (rois, scores, deltas), pairs, size in zip(proposed, chosen, pyramid.sizes, strict=True):
            row, label = (pairs & deltas.isfinite().all(dim=2)).nonzero().unbind(1)
            boxes.append(clip_boxes(decode(rois[row], deltas[row, label]), size))
            class_scores.append(scores[row] * F.one_hot(label, scores.shape[1]))
            labels.append(label)
            origins.append(row)
        ious: Sequence[Tensor | None] = [None] * len(boxes)
        if self.iou_head is not None:
            ious = self._ious(pyramid, boxes, labels)
        return [
            (Candidates(box, scores, predicted), rows)
            for box, scores, predicted, rows in zip(boxes, class_scores, ious, origins, strict=True)
        ]

    def _ious(self, pyramid: Pyramid, boxes: Sequence[Tensor], labels: Sequence[Tensor]) -> list[Tensor]:
        """Predicted IoU (K,) in [0, 1] of the boxes (K, 4) of each image; 0 for one without area."""
        if self.iou_head is None:
            raise UserError("this model was trained without its IoU head (iou_head=false); train one with it")
        together = torch.cat(list(boxes)), image_of(boxes), torch.cat(list(labels))
        ious = torch.cat([_predicted(self.iou_head, pyramid, *piece) for piece in _pieces(*together)])
        return list(torch.split(_valid(ious, together[0]), [len(part) for part in boxes]))

    @torch.inference_mode(False)  # whose tensors gradients cannot use
    def _moved(self, head: IoUHead, pyramid: Pyramid, detections: list[Detections], steps: int) -> list[Detections]:
        """Algorithm 2 on the boxes of all images together, which stay inside their images."""
        images = image_of([found.boxes for found in detections])
        sizes = torch.tensor(pyramid.sizes, device=images.device)[images]
        boxes = clip_boxes(torch.cat([found.boxes for found in detections]), sizes)
        labels, constant = torch.cat([found.labels for found in detections]).clone(), pyramid.cloned()

        def climb(boxes: Tensor, images: Tensor, labels: Tensor, sizes: Tensor) -> tuple[Tensor, Tensor]:
            return refine_boxes(
                boxes,
                lambda moved, index: _predicted(head, constant, moved, images[index], labels[index]),
                steps=steps,
                step_size=self.options.refine_step_size,
                min_change=self.options.refine_min_change,
                max_drop=-self.options.refine_max_drop,
                roll_back=self.options.refine_roll_back,
                size=sizes,
            )

        refined = [climb(*piece) for piece in _pieces(boxes, images, labels, sizes)]
        moved, ious = (torch.cat(column) for column in zip(*refined, strict=True))
        counts = [len(found) for found in detections]
        parts = zip(detections, torch.split(moved, counts), torch.split(_valid(ious, moved), counts), strict=True)
        return [replace(found, boxes=new, ious=predicted) for found, new, predicted in parts]


def _pieces(*columns: Tensor) -> Iterator[tuple[Tensor, ...]]:
    """`PIECE` rows of every column at a time; once none, if there are none."""
    return zip(*(torch.split(column, PIECE) for column in columns), strict=True)


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
