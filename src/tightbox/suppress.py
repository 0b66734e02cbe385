"""Ways to thin out ranked candidates to one box an object."""

from __future__ import annotations

import torch
from torch import Tensor
from torchvision.ops import batched_nms

from tightbox.boxes import at_least_float32
from tightbox.structures import Candidates, Detections


def greedy_nms(
    candidates: Candidates,
    scores: Tensor,
    iou_threshold: float = 0.6,
    score_threshold: float = 0.05,
    max_detections: int = 100,
    class_agnostic: bool = False,
) -> Detections:
    """Keep the best box, drop those of its class that overlap it, and so on; best first.

    A candidate may be detected once for each class. Boxes without width or height, and scores or boxes that are NaN,
    are never detected.

    Args:
        candidates: the boxes, and the IoU estimates that the detections carry on.
        scores: (K, C) what to rank by.
        iou_threshold: a box is dropped if its IoU with a better one is above this.
        score_threshold: scores must be above this.
        max_detections: at most this many detections.
        class_agnostic: let boxes suppress those of other classes too.

    >>> boxes = torch.tensor([[0.0, 0.0, 10.0, 10.0], [0.0, 0.0, 10.0, 9.0], [20.0, 0.0, 30.0, 10.0]])
    >>> scores = torch.tensor([[0.6, 0.0], [0.8, 0.1], [0.0, 0.7]])
    >>> found = greedy_nms(Candidates(boxes, scores), scores)
    >>> found.scores, found.labels
    (tensor([0.8000, 0.7000, 0.1000]), tensor([0, 1, 1]))
    """
    boxes, scores = at_least_float32(candidates.boxes), at_least_float32(scores)
    has_area = (boxes[:, 2:] > boxes[:, :2]).all(dim=1)
    row, label = ((scores > score_threshold) & has_area[:, None]).nonzero().unbind(1)
    ious = candidates.ious
    if ious is not None:
        ious = ious[row] if ious.dim() == 1 else ious[row, label]
    found = Detections(boxes[row], scores[row, label], label, ious)
    if len(found) == 0:
        return found
    # To keep the classes apart their boxes are moved apart. In float32 that would blur the 80th class of a 1333 px
    # image by 1/128 px; Apple's GPUs have no float64 and must bear it. The shift from zero is for unclipped boxes.
    wide = found.boxes if boxes.device.type == "mps" else found.boxes.double()
    group = torch.zeros_like(label) if class_agnostic else label
    keep: Tensor = batched_nms(wide - wide.min(), found.scores.to(wide.dtype), group, iou_threshold)
    return found[keep[:max_detections]]
