"""Suppression as one operator of an exported file: class by class, a whole batch at once, in fixed shapes."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torchvision.ops import nms

SUPPRESSED = -1.0


@torch.library.custom_op("tightbox::suppress", mutates_args=())
def suppress(boxes: Tensor, scores: Tensor, iou_threshold: float, score_threshold: float, most: int) -> Tensor:
    """The scores (B, C, N) of the boxes (B, N, 4) that greedy suppression keeps, and -1 in place of all others.

    Each class of each image is suppressed by itself. In an ONNX file this is one NonMaxSuppression; here it is the
    slow, obvious form.

    Args:
        boxes: (B, N, 4).
        scores: (B, C, N).
        iou_threshold: a box is dropped if its IoU with a better one of its class is above this.
        score_threshold: scores must be above this.
        most: boxes kept of a class of an image.
    """
    kept = torch.full_like(scores, SUPPRESSED)
    for image, of_image in enumerate(scores):
        for label, of_class in enumerate(of_image):
            rows = (of_class > score_threshold).nonzero().squeeze(1)
            rows = rows[nms(boxes[image, rows].double(), of_class[rows].double(), iou_threshold)[:most]]
            kept[image, label, rows] = of_class[rows]
    return kept


@suppress.register_fake
def _(boxes: Tensor, scores: Tensor, iou_threshold: float, score_threshold: float, most: int) -> Tensor:
    return torch.empty_like(scores)


def onnx_translations() -> dict[Any, Any]:
    """For `torch.onnx.export`: how the operators of this package are written in ONNX."""
    from onnxscript import opset20 as op

    def suppress_in_onnx(boxes: Any, scores: Any, iou_threshold: float, score_threshold: float, most: int) -> Any:
        # The runtime's operator has every limit, without which some of them keep and sort all boxes.
        chosen = op.NonMaxSuppression(
            boxes,
            scores,
            op.Constant(value_ints=[most]),
            op.Constant(value_floats=[iou_threshold]),
            op.Constant(value_floats=[score_threshold]),
        )  # (S, 3): image, class and box
        nothing = op.Expand(op.Constant(value_floats=[SUPPRESSED]), op.Shape(scores))
        return op.ScatterND(nothing, chosen, op.GatherND(scores, chosen))

    return {torch.ops.tightbox.suppress.default: suppress_in_onnx}
