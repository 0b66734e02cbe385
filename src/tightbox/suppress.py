"""Ways to suppress ranked candidates to one box per object."""

from collections.abc import Callable
from dataclasses import replace
from typing import Literal

import torch
from torch import Tensor

from tightbox import ops
from tightbox.boxes import at_least_float32, iou, pairwise_iou
from tightbox.errors import UserError
from tightbox.ops.greedy_nms import nms_in_groups
from tightbox.structures import Candidates, Detections, take

Suppress = Callable[[Candidates, Tensor], Detections]
SPREAD = 0.025  # of the IoUs that count in score voting


def greedy_nms(
    candidates: Candidates,
    scores: Tensor,
    iou_threshold: float = 0.6,
    score_threshold: float = 0.05,
    max_detections: int = 100,
    class_agnostic: bool = False,
    voting: bool = False,
) -> Detections:
    """Keep the best box, drop those of its class that overlap it, and so on; best first.

    A candidate may be detected once for each class. Boxes without width or height, and scores or boxes that are NaN,
    are never detected.

    Args:
        candidates: the boxes, and the predicted IoUs that the detections carry on.
        scores: (K, C) what to rank by.
        iou_threshold: a box is dropped if its IoU with a better one is above this.
        score_threshold: scores must be above this.
        max_detections: at most this many detections.
        class_agnostic: let boxes suppress those of other classes too.
        voting: then move each box to the mean of the candidates of its class around it (`voted`).

    >>> boxes = torch.tensor([[0.0, 0.0, 10.0, 10.0], [0.0, 0.0, 10.0, 9.0], [20.0, 0.0, 30.0, 10.0]])
    >>> scores = torch.tensor([[0.6, 0.0], [0.8, 0.1], [0.0, 0.7]])
    >>> found = greedy_nms(Candidates(boxes, scores), scores)
    >>> found.scores, found.labels
    (tensor([0.8000, 0.7000, 0.1000]), tensor([0, 1, 1]))
    >>> greedy_nms(Candidates(boxes, scores), scores, voting=True).boxes[0]
    tensor([ 0.0000,  0.0000, 10.0000,  9.2738])
    """
    together, limits = candidates.each(lambda value: value[None]), (iou_threshold, score_threshold, max_detections)
    found, counts = greedy_nms_together(together, scores[None], *limits, class_agnostic, voting)
    return found.of_images(counts)[0]


def greedy_nms_together(
    candidates: Candidates,
    scores: Tensor,
    iou_threshold: float,
    score_threshold: float,
    max_detections: int,
    class_agnostic: bool = False,
    voting: bool = False,
) -> tuple[Detections, Tensor]:
    """The same for several images that have equally many candidates, without a loop over them.

    Args:
        candidates: those of B images together, K of each.
        scores: (B, K, C) what to rank by.
        iou_threshold: and the others are as for `greedy_nms`.
        score_threshold: scores must be above this.
        max_detections: at most this many detections of an image.
        class_agnostic: let boxes suppress those of other classes too.
        voting: then move what is kept.

    Returns:
        Equally many rows for each image, and how many of them, the first ones, are detections (B,).
    """
    _fits(candidates, scores)
    boxes, scores = at_least_float32(candidates.boxes), at_least_float32(scores)
    has_area = (boxes[..., 2:] > boxes[..., :2]).all(dim=-1, keepdim=True)
    scores = torch.where(has_area & (scores > score_threshold), scores, -torch.inf)
    most = min(max_detections, scores.shape[1] * scores.shape[2])
    places, counts = ops.greedy_nms(boxes, scores, iou_threshold, most, class_agnostic)
    rows = places // max(1, scores.shape[2])
    ious = candidates.ious
    if ious is not None:
        ious = take(ious, rows) if ious.dim() == 2 else ious.flatten(1).gather(1, places)
    labels = places - rows * scores.shape[2]
    kept = take(boxes, rows)
    if voting:
        kept = voted(kept, labels, candidates, scores, score_threshold)
    return Detections(kept, scores.flatten(1).gather(1, places), labels, ious), counts


def voted(boxes: Tensor, labels: Tensor, candidates: Candidates, scores: Tensor, score_threshold: float) -> Tensor:
    """What greedy suppression kept (B, M, 4), each moved to the mean of the candidates of its class around it.

    A candidate's weight is the square of its score times exp(−(1 − IoU)² / 0.025) of its IoU with the kept box, so that
    the boxes that a detector takes for tight count most (the form is that of score voting, Kim and Lee,
    https://arxiv.org/abs/2007.08103). In operations whose shapes do not depend on the boxes.

    Args:
        boxes: M kept ones of each of B images.
        labels: (B, M) of these.
        candidates: K of each image.
        scores: (B, K, C) of these.
        score_threshold: of candidates, as in the suppression.
    """
    overlap = iou(boxes[:, :, None], candidates.boxes[:, None])
    own = scores.mT.gather(1, labels[..., None].expand(-1, -1, scores.shape[1]))
    counts = (own > score_threshold) & (overlap > 0)
    weight = torch.where(counts, own**2 * (-((1 - overlap) ** 2) / SPREAD).exp(), 0)
    total = weight.sum(dim=2, keepdim=True)
    # Boxes that are not numbers weigh nothing, but nothing times NaN is NaN.
    mean = weight @ torch.where(candidates.boxes.isfinite(), candidates.boxes, 0).to(weight)
    return torch.where(total > 0, mean / total, boxes)


def soft_nms(
    candidates: Candidates,
    scores: Tensor,
    method: Literal["linear", "gaussian"] = "linear",
    iou_threshold: float = 0.3,
    sigma: float = 0.5,
    score_threshold: float = 0.05,
    max_detections: int = 100,
    class_agnostic: bool = False,
) -> Detections:
    """Keep the best box, lower the scores of those of its class that overlap it, and so on; best first.

    A candidate may be detected once for each class; the fallen scores are reported. What is never detected, and the
    arguments not named here, are as for `greedy_nms`.

    Args:
        candidates: the boxes, and the predicted IoUs that the detections carry on.
        scores: (K, C) what to rank by.
        method: 1 − IoU, or a Gaussian of the IoU, multiplies a score (`tightbox.ops.soft_nms`).
        iou_threshold: smaller overlaps cost nothing; of the linear method only.
        sigma: the larger, the less an overlap costs; of the Gaussian method only.
        score_threshold: scores must be above this, and stay above it.
        max_detections: at most this many detections.
        class_agnostic: let boxes lower the scores of other classes too.

    >>> boxes = torch.tensor([[0.0, 0.0, 10.0, 10.0], [0.0, 0.0, 10.0, 5.0]])
    >>> scores = torch.tensor([[0.9], [0.8]])
    >>> soft_nms(Candidates(boxes, scores), scores).scores
    tensor([0.9000, 0.4000])
    """
    found = _above(candidates, scores, score_threshold)
    labels = None if class_agnostic else found.labels
    keep, fallen = ops.soft_nms(
        found.boxes, found.scores, labels, method, iou_threshold, sigma, score_threshold, max_detections
    )
    return replace(found[keep], scores=fallen)


def iou_guided_nms(
    candidates: Candidates,
    scores: Tensor,
    iou_threshold: float = 0.5,
    score_threshold: float = 0.05,
    max_detections: int = 100,
    class_agnostic: bool = False,
) -> Detections:
    """Keep the box of highest estimated IoU, drop those of its class that overlap it, and so on; best scores first.

    A box takes over the best score of those it drops (IoU-Net, https://arxiv.org/abs/1807.11590), with that one's
    label where classes compete. Low scores are dropped before, since background may have a high predicted IoU. Of
    equal ones the higher score goes first; NaN ones, and what `greedy_nms` never detects, are not detected.

    Args:
        candidates: the boxes and their predicted IoUs, which the detections carry on.
        scores: (K, C) class scores, or anything else to rank the detections by.
        iou_threshold: a box is dropped if its IoU with a better localised one is above this.
        score_threshold: scores must be above this.
        max_detections: at most this many detections.
        class_agnostic: let boxes suppress those of other classes too.

    Raises:
        UserError: if the candidates have no IoUs.

    >>> boxes = torch.tensor([[0.0, 0.0, 10.0, 10.0], [0.0, 0.0, 10.0, 9.0]])
    >>> scores = torch.tensor([[0.9], [0.6]])
    >>> found = iou_guided_nms(Candidates(boxes, scores, ious=torch.tensor([0.7, 0.8])), scores)
    >>> found.boxes, found.scores
    (tensor([[ 0.,  0., 10.,  9.]]), tensor([0.9000]))
    """
    found = _above(candidates, scores, score_threshold)
    if found.ious is None:
        raise UserError("iou_guided_nms: this detector predicts no IoU; suppress by greedy_nms or soft_nms instead")
    found = found[~found.ious.isnan()]
    found = found[found.scores.argsort(descending=True, stable=True)]
    assert found.ious is not None
    group = torch.zeros_like(found.labels) if class_agnostic else found.labels
    # Ranks instead of scores: they say which of a cluster is the best, and so its label too. Apple's GPUs find no
    # maximum of integers; float32 holds those up to 16 million.
    ranks = torch.arange(len(found), device=group.device, dtype=torch.float32)
    keep, best = ops.iou_guided_nms(found.boxes, -ranks, found.ious, iou_threshold, group)
    keep, best = keep[:max_detections], -best[:max_detections].long()
    return replace(found[keep], scores=found.scores[best], labels=found.labels[best])


def box_voting(found: Detections, weights: Tensor, iou_threshold: float = 0.5) -> Detections:
    """Merge each cluster, a box and those that greedy suppression drops for it, into the mean of its boxes; best first.

    The mean has the best score of the cluster, and the mean of its predicted IoUs (Gidaris and Komodakis,
    https://arxiv.org/abs/1505.01749, with scores as weights).

    Args:
        found: boxes, among them several of each object.
        weights: (N,) of each box in the mean; below 0 counts as 0, and where all of a cluster are 0, they count alike.
        iou_threshold: least IoU, with the best box of its cluster and class, of a box that belongs to it.

    >>> boxes = torch.tensor([[0.0, 0.0, 10.0, 10.0], [0.0, 0.0, 10.0, 8.0]])
    >>> box_voting(Detections(boxes, torch.tensor([0.9, 0.3]), torch.zeros(2)), torch.tensor([0.9, 0.3])).boxes
    tensor([[ 0.0000,  0.0000, 10.0000,  9.5000]])
    """
    if len(found) == 0:
        return found
    keep = nms_in_groups(found.boxes, found.scores, found.labels, iou_threshold)
    best, numbers = found[keep], torch.arange(len(keep), device=keep.device)
    joins = (pairwise_iou(best.boxes, found.boxes) > iou_threshold) & (best.labels[:, None] == found.labels)
    joins[:, keep] = numbers[:, None] == numbers  # also where rounding says otherwise
    joins &= joins.int().argmax(dim=0) == numbers[:, None]  # the first, and so the best, of several
    mean = joins * weights.nan_to_num(0).clamp(min=0)
    mean = torch.where(mean.any(dim=1, keepdim=True), mean, joins.to(mean))
    mean /= mean.sum(dim=1, keepdim=True)
    if found.ious is None:
        return replace(best, boxes=mean @ found.boxes)
    known = found.ious.isfinite()
    ious = (mean * known) @ found.ious.nan_to_num(0, 0, 0) / (mean @ known.to(mean))  # NaN where none is known
    return replace(best, boxes=mean @ found.boxes, ious=ious)


@torch.library.custom_op("tightbox::suppress", mutates_args=())
def suppress(boxes: Tensor, scores: Tensor, iou_threshold: float, score_threshold: float, most: int) -> Tensor:
    """The scores (B, C, N) of the boxes (B, N, 4) that greedy suppression keeps, and the threshold in place of others.

    Each class of each image is suppressed by itself. For a whole batch in fixed shapes; in an exported file this is one
    operator.

    Args:
        boxes: (B, N, 4).
        scores: (B, C, N).
        iou_threshold: a box is dropped if its IoU with a better one of its class is above this.
        score_threshold: scores must be above this.
        most: of each class of each image no more than this many are needed, the best ones.
    """
    classes, rows = scores.shape[1:]
    of_each = boxes[:, None].expand(-1, classes, -1, -1).flatten(0, 1)
    counted = torch.where(scores > score_threshold, scores, -torch.inf).flatten(0, 1)
    places, counts = ops.greedy_nms(of_each, counted[..., None], iou_threshold, min(most, rows))
    kept = torch.arange(places.shape[1], device=places.device) < counts[:, None]
    # What is not kept goes to a last place that is then left out.
    places = torch.where(kept, places, rows)
    kept = torch.zeros(len(places), rows + 1, dtype=torch.bool, device=places.device).scatter_(1, places, True)
    return torch.where(kept[:, :-1].view_as(scores), scores, score_threshold)


@suppress.register_fake
def _(boxes: Tensor, scores: Tensor, iou_threshold: float, score_threshold: float, most: int) -> Tensor:
    return torch.empty_like(scores)


def _above(candidates: Candidates, scores: Tensor, score_threshold: float) -> Detections:
    """Every candidate once for each class whose score is above the threshold, without empty boxes and NaN."""
    _fits(candidates, scores)
    boxes, scores = at_least_float32(candidates.boxes), at_least_float32(scores)
    has_area = (boxes[:, 2:] > boxes[:, :2]).all(dim=1)
    row, label = ((scores > score_threshold) & has_area[:, None]).nonzero().unbind(1)
    ious = candidates.ious
    if ious is not None:
        ious = ious[row] if ious.dim() == 1 else ious[row, label]
    return Detections(boxes[row], scores[row, label], label, ious)


def _fits(candidates: Candidates, scores: Tensor) -> None:
    boxes, given = candidates.boxes.shape[-2], scores.shape[-2]
    if given != boxes:
        raise UserError(f"suppress: scores of {given} boxes for {boxes} candidates; rank these first")
