"""What only a detector's candidates can tell: which boxes were there, and what suppression made of them."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from functools import partial

import numpy as np
import torch
from torch import Tensor

from tightbox.boxes import pairwise_iou
from tightbox.data.records import DetectionData
from tightbox.diagnosis.numbers import Aps
from tightbox.evaluation.candidates import ImageCandidates, iterate_candidates
from tightbox.evaluation.coco import evaluate
from tightbox.evaluation.matching import Floats
from tightbox.evaluation.oracle import OracleStudy, oracle_study
from tightbox.evaluation.run import to_results
from tightbox.models import Detector
from tightbox.rank import best_of_levels
from tightbox.structures import Candidates, Detections, Targets
from tightbox.suppress import Suppress

ON_OBJECT = 0.5  # IoU with an object from which a box is taken to be on it


@dataclass(frozen=True, eq=False)
class BeforeSuppression:
    """The best candidate of every ground-truth box, in the order of the data set's annotations, and two studies.

    Attributes:
        ious: (G,) IoU of the tightest candidate of its class that scores above the threshold; 0 for none.
        boxes: (G, 4) that candidate as [x, y, width, height].
        scores: (G,) its score; likewise `estimates`, its predicted IoU (calibrated if the detector is), NaN for none.
        any_ious: (G,) IoU of the tightest candidate of whatever score and class.
        study: AP with outputs replaced by the truth.
        as_it_is: AP by the detector's own rules, from the same candidates.
        well_suppressed: AP with `true_suppression` instead of the detector's own.
    """

    ious: Floats
    boxes: Floats
    scores: Floats
    estimates: Floats
    any_ious: Floats
    study: OracleStudy
    as_it_is: Aps
    well_suppressed: Aps


@torch.inference_mode()
def look_before_suppression(
    model: Detector, data: DetectionData, images: Iterable[ImageCandidates] | None = None
) -> BeforeSuppression:
    """What `diagnose_results` cannot see in the detections of the records.

    Args:
        model: the detector, in evaluation mode.
        data: the records, with its classes.
        images: their assigned candidates; without them, the network is run.
    """
    best: dict[int, Tensor] = {}
    own: dict[int, Detections] = {}
    better: dict[int, Detections] = {}

    def watched() -> Iterator[ImageCandidates]:
        for image in iterate_candidates(model, data, assigned=True) if images is None else images:
            record = data.records[image.index]
            size = record.height, record.width
            scale = torch.tensor([image.size[1] / size[1], image.size[0] / size[0]] * 2)
            solid = torch.from_numpy(~record.crowd)
            targets = Targets.of(torch.from_numpy(record.boxes) * scale, torch.from_numpy(record.labels))
            best[image.index] = _best_candidates(model, image.candidates, targets, scale)
            targets = replace(targets, boxes=targets.boxes[solid], labels=targets.labels[solid])
            suppress = partial(
                true_suppression, own=model.suppress, targets=targets, score_threshold=model.options.score_threshold
            )
            own[image.index] = model.select(image.candidates).resized(image.size, size)
            better[image.index] = model.select(image.candidates, suppress=suppress).resized(image.size, size)
            yield image

    study = oracle_study(model, data, watched())
    truth = data.to_coco()
    columns = torch.cat([best[index] for index in sorted(best)]).double().numpy().reshape(-1, 8)
    estimates = columns[:, 6] if model.calibration is None else model.calibration.ious(columns[:, 6])

    def measure(found: Mapping[int, Detections]) -> Aps:
        return Aps.of_coco(evaluate(truth, to_results(dict(sorted(found.items())), data)))

    return BeforeSuppression(
        *(columns[:, 0], columns[:, 1:5], columns[:, 5], estimates, columns[:, 7]),
        study=study,
        as_it_is=measure(own),
        well_suppressed=measure(better),
    )


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
    left = _on_objects(found.boxes, found.labels, targets) < 0
    boxes, tops, labels, estimates = [found.boxes[left]], [found.scores[left]], [found.labels[left]], []
    if found.ious is not None:
        estimates.append(found.ious[left])
    row, label = (scores > score_threshold).nonzero().unbind(1)
    on = _on_objects(candidates.boxes[row], label, targets)
    for number in sorted(set(on[on >= 0].tolist())):
        there = row[on == number]
        overlaps = pairwise_iou(candidates.boxes[there], targets.boxes[number : number + 1])[:, 0]
        tightest, label = there[overlaps.argmax()], targets.labels[number]
        boxes.append(candidates.boxes[tightest][None])
        tops.append(scores[there, label].max()[None])
        labels.append(label[None])
        if candidates.ious is not None:
            estimates.append(_estimate(candidates, tightest, label)[None])
    together = Detections(
        torch.cat(boxes), torch.cat(tops), torch.cat(labels), torch.cat(estimates) if estimates else None
    )
    return together[together.scores.argsort(descending=True, stable=True)]


def _on_objects(boxes: Tensor, labels: Tensor, targets: Targets) -> Tensor:
    """(N,) the object of its own class that each box is on, -1 for none."""
    if len(targets) == 0:
        return labels.new_full(labels.shape, -1)
    overlaps = pairwise_iou(boxes, targets.boxes) * (labels[:, None] == targets.labels)
    best, number = overlaps.max(dim=1)
    return torch.where(best >= ON_OBJECT, number, -1)


def _best_candidates(model: Detector, candidates: Candidates, targets: Targets, scale: Tensor) -> Tensor:
    """(G, 8) of the tightest candidate of each object: IoU, box in the original, score, estimate, and the last column.

    That is the IoU of the tightest candidate of any score and class.
    """
    rows = torch.zeros(len(targets), 8)
    if len(candidates) == 0:
        return rows
    anything = pairwise_iou(candidates.boxes, targets.boxes)
    kept, scores = best_of_levels(candidates, model.rank(candidates), model.options.top_k)
    overlaps = pairwise_iou(kept.boxes, targets.boxes)
    for number, label in enumerate(targets.labels):
        rows[number, 7] = anything[:, number].max()
        there = (scores[:, label] > model.options.score_threshold).nonzero().squeeze(1)
        if len(there) == 0:
            continue
        tightest = there[overlaps[there, number].argmax()]
        box = kept.boxes[tightest] / scale
        rows[number, 0] = overlaps[tightest, number]
        rows[number, 1:5] = torch.cat([box[:2], box[2:] - box[:2]])
        rows[number, 5] = scores[tightest, label]
        rows[number, 6] = np.nan if kept.ious is None else _estimate(kept, tightest, label)
    return rows


def _estimate(candidates: Candidates, row: Tensor, label: Tensor) -> Tensor:
    assert candidates.ious is not None
    return candidates.ious[row] if candidates.ious.dim() == 1 else candidates.ious[row, label]
