"""What a detector would reach if it knew: the study that VarifocalNet began with (its table 1).

One output at a time is replaced by the truth, on the candidates that learn an object and before suppression. Where AP
rises most, most is lost: replacing the class score by the true IoU has it soar, so a good ranking is what is missing.
"""

from collections.abc import Iterable
from dataclasses import replace

import torch
from torch import Tensor

from tightbox.boxes import centerness, iou, pairwise_iou
from tightbox.data.records import DetectionData
from tightbox.evaluation import ladder
from tightbox.evaluation.coco import AveragePrecision
from tightbox.evaluation.ladder import Ladder, OracleVariant
from tightbox.inference.candidates import AssignedCandidates, iterate_assigned
from tightbox.inference.detect import evaluate_detections
from tightbox.models import Detector
from tightbox.rank import by_class_score
from tightbox.structures import Candidates, Detections, Targets


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
        for name, changed in replaced(image.candidates, image.matched, image.targets).items():
            if name not in ladder.OF_ESTIMATES:
                found = self.model.select(changed, by_class_score, self.model.greedy_nms)
                self._alone.setdefault(name, {})[image.index] = found.resized(image.size, original)
            if has_estimate(image.candidates):
                found = self.model.select(changed)
                self._own.setdefault(name, {})[image.index] = found.resized(image.size, original)
        self._collect_pairs(image.candidates, image.targets)

    def result(self) -> Ladder:
        """AP under every replacement."""
        variants = (
            OracleVariant(name, *(self.measure(by[name]) if name in by else None for by in (self._alone, self._own)))
            for name in self._own or self._alone  # in the order of the ladder
        )
        columns = {}
        for name, parts in self._pairs.items():
            if parts:
                predicted, true_ious = zip(*parts, strict=True)
                columns[name] = torch.cat(predicted).numpy(), torch.cat(true_ious).numpy()
        return Ladder(tuple(variants), ladder.correlations(columns))

    def measure(self, found: dict[int, Detections]) -> AveragePrecision:
        """AP of the detections of all records, by their index."""
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


def replaced(candidates: Candidates, matched: Tensor, targets: Targets) -> dict[str, Candidates]:
    """The candidates by what of them is replaced by the truth, in the order of the ladder.

    It is replaced for those that learn an object, whose IoU is that of their box with it; but the upper bound of the
    IoU-aware detector's paper takes the nearest object of any class, for every candidate.

    Args:
        candidates: K of them.
        matched: (K,) the object that each learns, negative for none.
        targets: the objects.
    """
    rows = (matched >= 0).nonzero().squeeze(1)
    boxes, labels = targets.boxes[matched[rows]], targets.labels[matched[rows]]
    quality = iou(candidates.boxes[rows], boxes)

    def put(name: str, values: Tensor, *places: Tensor) -> Candidates:
        known: Tensor = getattr(candidates, name)
        return replace(candidates, **{name: known.index_put(places, values.to(known))})

    variants = {ladder.AS_PREDICTED: candidates}
    if candidates.centerness is not None:
        assert candidates.points is not None  # as centerness is that of a location
        variants[ladder.TRUE_CENTERNESS] = put("centerness", centerness(candidates.points[rows], boxes), rows)
        variants[ladder.CENTERNESS_IOU] = put("centerness", quality, rows)
    elif candidates.ious is not None and has_estimate(candidates):
        by_class = candidates.ious.dim() == 2
        nearest = candidates.boxes.new_zeros(len(candidates))
        if len(targets):
            nearest = pairwise_iou(candidates.boxes, targets.boxes).amax(dim=1)
        everywhere = nearest[:, None].expand_as(candidates.ious) if by_class else nearest
        variants[ladder.TRUE_PREDICTED_IOU] = put("ious", quality, rows, *((labels,) if by_class else ()))
        variants[ladder.NEAREST_IOU] = replace(candidates, ious=everywhere)
    return variants | {
        ladder.TRUE_BOX: put("boxes", boxes, rows),
        ladder.CLASS_SCORE_ONE: put("class_scores", torch.ones_like(quality), rows, labels),
        ladder.TRUE_IOU_SCORE: put("class_scores", quality, rows, labels),
    }


def predicted_ious(candidates: Candidates, rows: Tensor, labels: Tensor) -> Tensor:
    """The predicted IoU of each row, where they differ by class that of its label."""
    assert candidates.ious is not None  # whoever asks has looked
    return candidates.ious[rows] if candidates.ious.dim() == 1 else candidates.ious[rows, labels]


def has_estimate(candidates: Candidates) -> bool:
    """Whether there is a localisation estimate beside the class score, as VFNet's class score is the estimate."""
    beside = candidates.ious is not None and candidates.ious is not candidates.class_scores
    return beside or candidates.centerness is not None
