"""What only a detector's candidates can tell: which boxes were there, and what suppression made of them."""

from dataclasses import dataclass, replace
from functools import partial
from typing import Unpack

import torch
from torch import Tensor
from torchvision.ops import box_convert

from tightbox.boxes import pairwise_iou
from tightbox.data.records import DetectionData, ImageRecord
from tightbox.evaluation.coco import AveragePrecision
from tightbox.evaluation.figures import Floats
from tightbox.evaluation.ladder import ON_OBJECT, Ladder
from tightbox.inference.candidates import ImageCandidates, iterate_detected
from tightbox.inference.detect import How
from tightbox.inference.oracle import OracleStudy, predicted_ious
from tightbox.inference.views import joined
from tightbox.models import Detector
from tightbox.rank import best_of_levels
from tightbox.structures import Candidates, Detections, Targets
from tightbox.suppress import Suppress


@dataclass(frozen=True, eq=False)
class BestCandidates:
    """The tightest candidate of each ground-truth box, in the order of the data set's annotations.

    Attributes:
        ious: (G,) its IoU, of the candidates of the object's class that score above the threshold; 0 for none.
        boxes: (G, 4) it, as [x, y, width, height] in the original image.
        scores: (G,) its score.
        predicted_ious: (G,) its predicted IoU, calibrated if the detector is; NaN for none.
        any_ious: (G,) IoU of the tightest candidate of whatever score and class.
    """

    ious: Floats
    boxes: Floats
    scores: Floats
    predicted_ious: Floats
    any_ious: Floats


@dataclass(frozen=True, eq=False)
class BeforeSuppression:
    """What was there before suppression.

    Attributes:
        best: the tightest candidate of each ground-truth box.
        ladder: AP with outputs replaced by the truth.
        detections: what the detector finds in every record, by its index, as `detect_data` gives it.
        as_it_is: AP by the detector's own rules, from the same candidates.
        well_suppressed: AP with `true_suppression` instead of the detector's own.
    """

    best: BestCandidates
    ladder: Ladder
    detections: dict[int, Detections]
    as_it_is: AveragePrecision
    well_suppressed: AveragePrecision


@torch.inference_mode()
def look_before_suppression(model: Detector, data: DetectionData, **how: Unpack[How]) -> BeforeSuppression:
    """What `tightbox.diagnosis` cannot see in the detections of the records.

    Args:
        model: the detector.
        data: the records, with its classes.
        how: as for `batches`.
    """
    study = OracleStudy(model, data)
    best: dict[int, Tensor] = {}
    detections: dict[int, Detections] = {}
    own: dict[int, Detections] = {}
    better: dict[int, Detections] = {}
    rule = partial(true_suppression, own=model.suppress, score_threshold=model.options.score_threshold)
    for image, found in iterate_detected(model, data, **how):
        study.add(image)
        detections[image.index] = found
        record = data.records[image.index]
        height, width = image.size
        scale = torch.tensor([width / record.width, height / record.height] * 2)
        targets = Targets.of(torch.from_numpy(record.boxes) * scale, torch.from_numpy(record.labels))  # with crowds
        best[image.index] = _best_candidates(model, image, targets, record)
        objects = torch.from_numpy(~record.crowd)
        without_crowds = replace(targets, boxes=targets.boxes[objects], labels=targets.labels[objects])
        suppress = partial(rule, targets=without_crowds)
        own[image.index] = model.select(image.candidates).resized(image.size, record.size)
        better[image.index] = model.select(image.candidates, suppress=suppress).resized(image.size, record.size)

    columns = torch.cat([best[index] for index in sorted(best)]).double().numpy().reshape(-1, 8)
    predicted = columns[:, 6] if model.calibration is None else model.calibration.ious(columns[:, 6])
    tightest = BestCandidates(columns[:, 0], columns[:, 1:5], columns[:, 5], predicted, columns[:, 7])
    in_order = dict(sorted(detections.items()))
    return BeforeSuppression(tightest, study.result(), in_order, study.measure(own), study.measure(better))


def true_suppression(
    candidates: Candidates, scores: Tensor, *, own: Suppress, targets: Targets, score_threshold: float
) -> Detections:
    """Suppression that knows the objects: of the candidates on one, the tightest is left, with their best score.

    A candidate is on the object of its class that it overlaps most, if by an IoU of 0.5; every object gets its box, no
    object gets two, and other boxes are what the detector's own suppression leaves. This is IoU-guided suppression
    (https://arxiv.org/abs/1807.11590) with true IoUs: the score of an object stays what it was, so nothing but the
    choice of the box is improved.

    Args:
        candidates: K of them.
        scores: (K, C) what they are ranked by.
        own: the detector's own suppression.
        targets: the objects, without crowds.
        score_threshold: scores must be above this.
    """
    found = own(candidates, scores)
    parts = [found[_on_objects(found.boxes, found.labels, targets) < 0]]
    row, label = (scores > score_threshold).nonzero().unbind(1)
    on = _on_objects(candidates.boxes[row], label, targets)
    for number in sorted(set(on[on >= 0].tolist())):
        there = row[on == number]
        overlaps = pairwise_iou(candidates.boxes[there], targets.boxes[number : number + 1])[:, 0]
        tightest, label = there[overlaps.argmax()][None], targets.labels[number : number + 1]
        ious = None if candidates.ious is None else predicted_ious(candidates, tightest, label)
        parts.append(Detections(candidates.boxes[tightest], scores[there, label].amax(0, keepdim=True), label, ious))
    together = joined(parts)
    return together[together.scores.argsort(descending=True, stable=True)]


def _on_objects(boxes: Tensor, labels: Tensor, targets: Targets) -> Tensor:
    """(N,) the object of its own class that each box is on, -1 for none."""
    if len(targets) == 0:
        return labels.new_full(labels.shape, -1)
    overlaps = pairwise_iou(boxes, targets.boxes) * (labels[:, None] == targets.labels)
    best, number = overlaps.max(dim=1)
    return torch.where(best >= ON_OBJECT, number, -1)


def _best_candidates(model: Detector, image: ImageCandidates, targets: Targets, record: ImageRecord) -> Tensor:
    """(G, 8) the row of each object in the columns of `BestCandidates`: IoU, box, score, predicted IoU, any IoU."""
    if len(image.candidates) == 0:
        return torch.zeros(len(targets), 8)
    any_ious = pairwise_iou(image.candidates.boxes, targets.boxes).amax(dim=0)
    kept, scores = best_of_levels(image.candidates, model.rank(image.candidates), model.options.top_k)
    above = scores[:, targets.labels] > model.options.score_threshold  # (K, G)
    ious, tightest = torch.where(above, pairwise_iou(kept.boxes, targets.boxes), -1).max(dim=0)
    scale = torch.tensor([record.width / image.size[1], record.height / image.size[0]] * 2)
    boxes = box_convert(kept.boxes[tightest] * scale, "xyxy", "xywh")
    predicted = torch.full_like(ious, torch.nan)
    if kept.ious is not None:
        predicted = predicted_ious(kept, tightest, targets.labels)
    rows = torch.column_stack([ious, boxes, scores[tightest, targets.labels], predicted])
    return torch.column_stack([torch.where(ious[:, None] >= 0, rows, 0), any_ious])
