"""An IoU-aware score for heads that are not ours: torchvision's FCOS and RetinaNet, by public functions.

A detector gets one by its `head` argument, and nothing else changes:

    FCOS(backbone, num_classes, head=VarifocalFCOSHead(channels, 1, num_classes))
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.models.detection.fcos import FCOSHead
from torchvision.models.detection.retinanet import RetinaNetHead, RetinaNetRegressionHead

from tightbox.boxes import iou
from tightbox.losses import varifocal_loss

Output = dict[str, Tensor]
Target = dict[str, Tensor]
CERTAIN = 20.0  # a logit whose sigmoid is 1 in float32
MIN_IOU = 1e-6  # a positive must not turn into a negative


class VarifocalFCOSHead(FCOSHead):  # type: ignore[misc]  # torchvision has no types
    """FCOS whose class score is the IoU of its box (VarifocalNet); its centerness is not asked any more."""

    def compute_loss(
        self, targets: list[Target], head_outputs: Output, anchors: list[Tensor], matched_idxs: list[Tensor]
    ) -> Output:
        """FCOS's box loss and the varifocal loss."""
        losses = super().compute_loss(targets, head_outputs, anchors, matched_idxs)
        boxes = self.box_coder.decode(head_outputs["bbox_regression"], torch.stack(anchors))
        return {
            "classification": _varifocal(head_outputs["cls_logits"], boxes, targets, matched_idxs),
            "bbox_regression": losses["bbox_regression"],
        }

    def forward(self, x: list[Tensor]) -> Output:
        """FCOS's outputs; in use, a centerness of 1 everywhere."""
        outputs: Output = super().forward(x)
        if not self.training:
            outputs["bbox_ctrness"] = torch.full_like(outputs["bbox_ctrness"], CERTAIN)
        return outputs


class IoUFCOSHead(FCOSHead):  # type: ignore[misc]  # torchvision has no types
    """FCOS whose centerness branch predicts the IoU of the box instead."""

    def compute_loss(
        self, targets: list[Target], head_outputs: Output, anchors: list[Tensor], matched_idxs: list[Tensor]
    ) -> Output:
        """FCOS's losses, that of the centerness against the IoU."""
        losses: Output = super().compute_loss(targets, head_outputs, anchors, matched_idxs)
        boxes = self.box_coder.decode(head_outputs["bbox_regression"], torch.stack(anchors))
        positive, _, ious = _positives(boxes.detach(), targets, matched_idxs)
        predicted = head_outputs["bbox_ctrness"].squeeze(2)[positive]
        loss = F.binary_cross_entropy_with_logits(predicted, ious, reduction="sum")
        return losses | {"bbox_ctrness": loss / max(1, len(ious))}


class VarifocalRetinaNetHead(RetinaNetHead):  # type: ignore[misc]  # torchvision has no types
    """RetinaNet whose class score is the IoU of its box (VarifocalNet)."""

    def compute_loss(
        self, targets: list[Target], head_outputs: Output, anchors: list[Tensor], matched_idxs: list[Tensor]
    ) -> Output:
        """RetinaNet's box loss and the varifocal loss; anchors between its thresholds stay out."""
        boxes = _decode(self.regression_head, head_outputs, anchors)
        valid = torch.stack(matched_idxs) != self.classification_head.BETWEEN_THRESHOLDS
        loss = _varifocal(head_outputs["cls_logits"], boxes, targets, matched_idxs, valid)
        return {
            "classification": loss,
            "bbox_regression": self.regression_head.compute_loss(targets, head_outputs, anchors, matched_idxs),
        }


class IoURetinaNetHead(RetinaNetHead):  # type: ignore[misc]  # torchvision has no types
    """RetinaNet with a branch that predicts each anchor's IoU, which its scores are weighed by (IoU-aware RetinaNet).

    Args:
        in_channels, num_anchors, num_classes, norm_layer: as of torchvision's head.
        alpha: a score is p^alpha · IoU^(1 - alpha).
    """

    def __init__(
        self, in_channels: int, num_anchors: int, num_classes: int, norm_layer: Any = None, alpha: float = 0.5
    ) -> None:
        super().__init__(in_channels, num_anchors, num_classes, norm_layer)
        self.alpha = alpha
        self.iou_branch = nn.Conv2d(in_channels, num_anchors, 3, padding=1)
        nn.init.normal_(self.iou_branch.weight, std=0.01)
        nn.init.zeros_(self.iou_branch.bias)  # type: ignore[arg-type]

    def forward(self, x: list[Tensor]) -> Output:
        """RetinaNet's outputs and the IoU's logits (B, N); in use, the class logits are those of the score."""
        outputs: Output = super().forward(x)
        maps = [self.iou_branch(self.regression_head.conv(level)) for level in x]
        ious = torch.cat([part.permute(0, 2, 3, 1).flatten(1) for part in maps], dim=1).float()
        if self.training:
            return outputs | {"ious": ious}
        log_score = self.alpha * F.logsigmoid(outputs["cls_logits"]) + (1 - self.alpha) * F.logsigmoid(ious)[..., None]
        return outputs | {"cls_logits": log_score - torch.log(-torch.expm1(log_score.clamp(max=-1e-6)))}

    def compute_loss(
        self, targets: list[Target], head_outputs: Output, anchors: list[Tensor], matched_idxs: list[Tensor]
    ) -> Output:
        """RetinaNet's losses and, on the positives, the cross-entropy of predicted and true IoU."""
        losses: Output = super().compute_loss(targets, head_outputs, anchors, matched_idxs)
        positive, _, ious = _positives(_decode(self.regression_head, head_outputs, anchors), targets, matched_idxs)
        # As published, the gradient reaches the boxes by way of the target.
        loss = F.binary_cross_entropy_with_logits(head_outputs["ious"][positive], ious, reduction="sum")
        return losses | {"iou": loss / max(1, len(ious))}


def _varifocal(
    logits: Tensor, boxes: Tensor, targets: list[Target], matched: Sequence[Tensor], valid: Tensor | None = None
) -> Tensor:
    """The varifocal loss of class logits (B, N, C), by the number of positives."""
    positive, labels, ious = _positives(boxes.detach(), targets, matched)
    image, place = positive.nonzero(as_tuple=True)
    target = torch.zeros_like(logits, dtype=torch.float32)
    target[image, place, labels] = ious.clamp(min=MIN_IOU)
    terms = varifocal_loss(logits, target)
    return (terms if valid is None else terms * valid[..., None]).sum() / max(1, len(labels))


def _positives(boxes: Tensor, targets: list[Target], matched: Sequence[Tensor]) -> tuple[Tensor, Tensor, Tensor]:
    """Which boxes (B, N) learn an object, and of these the label and the IoU of the box (B, N, 4) with the object."""
    index = torch.stack(list(matched))
    positive = index >= 0
    labels = [target["labels"][i[i >= 0]] for target, i in zip(targets, matched, strict=True)]
    objects = [target["boxes"][i[i >= 0]] for target, i in zip(targets, matched, strict=True)]
    return positive, torch.cat(labels), iou(boxes[positive].float(), torch.cat(objects))


def _decode(regression_head: RetinaNetRegressionHead, outputs: Output, anchors: list[Tensor]) -> Tensor:
    """RetinaNet's boxes (B, N, 4)."""
    per_image = zip(outputs["bbox_regression"], anchors, strict=True)
    return torch.stack([regression_head.box_coder.decode_single(deltas, boxes) for deltas, boxes in per_image])
