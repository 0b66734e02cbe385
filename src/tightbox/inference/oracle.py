"""What a detector would reach if it knew: the study that VarifocalNet began with (its table 1).

One output at a time is replaced by the truth, on the candidates that learn an object and before suppression. Where AP
rises most, most is lost: replacing the class score by the true IoU has it soar, so a good ranking is what is missing.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import replace

import torch
from torch import Tensor

from tightbox.boxes import centerness, iou, pairwise_iou
from tightbox.data.records import DetectionData
from tightbox.evaluation import ladder
from tightbox.evaluation.average_precision import AveragePrecision
from tightbox.evaluation.ladder import Ladder, OracleVariant
from tightbox.inference.candidates import AssignedCandidates, iterate_assigned
from tightbox.inference.detect import evaluate_detections
from tightbox.models import Detector
from tightbox.rank import by_class_score
from tightbox.structures import Candidates, Detections, Targets

Replacement = Callable[[Candidates, Tensor, Targets], Candidates]


def oracle_study(model: Detector, data: DetectionData, images: Iterable[AssignedCandidates] | None = None) -> Ladder:
    """The ladder and the correlations of a detector on records with its classes.

    Without the estimate, candidates are ranked by class score and suppressed by greedy NMS; with it, by the detector's
    own rules. An object that no candidate learns cannot be helped by any replacement.

    Args:
        model: the detector.
        data: the records, with its classes.
        images: their assigned candidates; without them, the network is run.
    """
    study = OracleStudy(model, data)
    for image in iterate_assigned(model, data) if images is None else images:
        study.add(image)
    return study.result()


class OracleStudy:
    """Takes the candidates of one image after another, so that other studies can look at the same ones."""

    def __init__(self, model: Detector, data: DetectionData) -> None:
        self.model = model
        self.data = data
        self._alone: dict[str, dict[int, Detections]] = {}
        self._own: dict[str, dict[int, Detections]] = {}
        self._pairs: dict[str, list[tuple[Tensor, Tensor]]] = {"score": [], "predicted IoU": []}

    def add(self, image: AssignedCandidates) -> None:
        """Select from the image's candidates under every replacement."""
        original = self.data.records[image.index].size
        for name, (replacement, only_with_estimate) in replacements(image.candidates).items():
            changed = replacement(image.candidates, image.matched, image.targets)
            if not only_with_estimate:
                found = self.model.select(changed, by_class_score, self.model.greedy_nms)
                self._alone.setdefault(name, {})[image.index] = found.resized(image.size, original)
            if has_estimate(image.candidates):
                found = self.model.select(changed)
                self._own.setdefault(name, {})[image.index] = found.resized(image.size, original)
        self._collect_pairs(image.candidates, image.targets)

    def result(self) -> Ladder:
        """AP under every replacement."""
        names = self._own or self._alone  # in the order of the ladder
        variants = (
            OracleVariant(name, self._measure(self._alone.get(name)), self._measure(self._own.get(name)))
            for name in names
        )
        columns = {}
        for name, parts in self._pairs.items():
            if parts:
                predicted, true_ious = zip(*parts, strict=True)
                columns[name] = torch.cat(predicted).numpy(), torch.cat(true_ious).numpy()
        return Ladder(tuple(variants), ladder.correlations(columns))

    def _measure(self, found: dict[int, Detections] | None) -> AveragePrecision | None:
        if found is None:
            return None
        return AveragePrecision.of_coco(evaluate_detections(dict(sorted(found.items())), self.data))

    def _collect_pairs(self, candidates: Candidates, targets: Targets) -> None:
        """The class score and the predicted IoU of every (box, class) that would be reported, with its true IoU."""
        if len(targets) == 0:
            return
        scores = by_class_score(candidates)
        row, label = (scores > self.model.options.score_threshold).nonzero().unbind(1)
        overlaps = pairwise_iou(candidates.boxes[row], targets.boxes) * (label[:, None] == targets.labels)
        true_ious = overlaps.amax(dim=1)
        self._pairs["score"].append((scores[row, label], true_ious))
        if candidates.ious is not None:
            self._pairs["predicted IoU"].append((predicted_ious(candidates, row, label), true_ious))


def true_class(candidates: Candidates, matched: Tensor, targets: Targets, by_iou: bool = False) -> Candidates:
    """The true class of every candidate that learns an object scores 1, or the IoU of its box with the object."""
    rows, objects = _learning(matched)
    quality = iou(candidates.boxes[rows], targets.boxes[objects]) if by_iou else torch.ones(len(rows))
    return _put(candidates, "class_scores", (rows, targets.labels[objects]), quality)


def true_box(candidates: Candidates, matched: Tensor, targets: Targets) -> Candidates:
    """Every candidate that learns an object has the object's box."""
    rows, objects = _learning(matched)
    return _put(candidates, "boxes", (rows,), targets.boxes[objects])


def true_estimate(candidates: Candidates, matched: Tensor, targets: Targets) -> Candidates:
    """The localisation estimate, whichever there is, is the true IoU for every candidate that learns an object."""
    rows, objects = _learning(matched)
    quality = iou(candidates.boxes[rows], targets.boxes[objects])
    if candidates.centerness is not None:
        return _put(candidates, "centerness", (rows,), quality)
    assert candidates.ious is not None  # `replacements` asks for this only where there is an estimate
    places = (rows,) if candidates.ious.dim() == 1 else (rows, targets.labels[objects])
    return _put(candidates, "ious", places, quality)


def true_centerness(candidates: Candidates, matched: Tensor, targets: Targets) -> Candidates:
    """The centerness is FCOS's, of the ground-truth box, for every candidate that learns an object."""
    assert candidates.points is not None  # as above
    rows, objects = _learning(matched)
    return _put(candidates, "centerness", (rows,), centerness(candidates.points[rows], targets.boxes[objects]))


def nearest_iou(candidates: Candidates, matched: Tensor, targets: Targets) -> Candidates:
    """The predicted IoU of every candidate is its true IoU with the nearest object of any class.

    This is the upper bound of the IoU-aware detector's paper.
    """
    assert candidates.ious is not None  # as above
    overlaps = candidates.boxes.new_zeros(len(candidates))
    if len(targets):
        overlaps = pairwise_iou(candidates.boxes, targets.boxes).amax(dim=1)
    by_class = candidates.ious.dim() == 2
    return replace(candidates, ious=overlaps[:, None].expand_as(candidates.ious) if by_class else overlaps)


def replacements(candidates: Candidates) -> dict[str, tuple[Replacement, bool]]:
    """What can be replaced in such candidates, and whether it matters only with the localisation estimate."""
    found: dict[str, tuple[Replacement, bool]] = {ladder.AS_PREDICTED: (lambda c, matched, targets: c, False)}
    if candidates.centerness is not None:
        found[ladder.TRUE_CENTERNESS] = (true_centerness, True)
        found[ladder.CENTERNESS_IOU] = (true_estimate, True)
    elif has_estimate(candidates):
        found[ladder.TRUE_PREDICTED_IOU] = (true_estimate, True)
        found[ladder.NEAREST_IOU] = (nearest_iou, True)
    found[ladder.TRUE_BOX] = (true_box, False)
    found[ladder.CLASS_SCORE_ONE] = (true_class, False)
    found[ladder.TRUE_IOU_SCORE] = (lambda c, m, t: true_class(c, m, t, by_iou=True), False)
    return found


def predicted_ious(candidates: Candidates, rows: Tensor, labels: Tensor) -> Tensor:
    """The predicted IoU of each row, where they differ by class that of its label."""
    assert candidates.ious is not None  # whoever asks has looked
    return candidates.ious[rows] if candidates.ious.dim() == 1 else candidates.ious[rows, labels]


def has_estimate(candidates: Candidates) -> bool:
    """Whether there is a localisation estimate beside the class score, as VFNet's class score is the estimate."""
    return candidates.centerness is not None or (
        candidates.ious is not None and candidates.ious is not candidates.class_scores
    )


def _learning(matched: Tensor) -> tuple[Tensor, Tensor]:
    """Rows of the candidates that learn an object, and which one."""
    rows = (matched >= 0).nonzero().squeeze(1)
    return rows, matched[rows]


def _put(candidates: Candidates, name: str, places: tuple[Tensor, ...], values: Tensor) -> Candidates:
    """The candidates with these values at some places of one of their columns."""
    known: Tensor = getattr(candidates, name)
    return replace(candidates, **{name: known.index_put(places, values.to(known))})
