"""What a detector would reach if it knew: the study that VarifocalNet began with (its table 1).

One output at a time is replaced by the truth, on the candidates that learn an object and before suppression. Where AP
rises most, most is lost: replacing the class score by the true IoU has it soar, so a good ranking is what is missing.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Any

import numpy as np
import torch
from torch import Tensor

from tightbox.boxes import centerness, iou, pairwise_iou
from tightbox.data.records import DetectionData
from tightbox.evaluation.calibration import Correlation, correlation
from tightbox.evaluation.candidates import ImageCandidates, iterate_candidates
from tightbox.evaluation.coco import CocoMetrics, evaluate
from tightbox.evaluation.matching import Floats, Ints, Truth
from tightbox.evaluation.results import Json, to_columns
from tightbox.evaluation.run import to_results
from tightbox.models import Detector
from tightbox.rank import by_class_score
from tightbox.structures import Candidates, Detections, Targets

AS_PREDICTED = "as predicted"
TRUE_IOU_AS_SCORE = "class score := true IoU"
MIN_IOU = 0.5  # correlations are of boxes that overlap their object more than this, as in IoU-Net's figure 2


@dataclass(frozen=True)
class Rung:
    """One line of the ladder: AP by the class score alone, and with the detector's own localisation estimate."""

    name: str
    alone: CocoMetrics | None
    with_estimate: CocoMetrics | None


@dataclass(frozen=True)
class OracleStudy:
    """The ladder, and how well score and predicted IoU tell the true IoU.

    Attributes:
        rungs: what is replaced, and what comes of it.
        lost_to_ranking: AP with the class score replaced by the true IoU, minus AP as the detector is.
        correlations: by "score" and "predicted IoU".
    """

    rungs: list[Rung]
    lost_to_ranking: float | None
    correlations: dict[str, Correlation]


def true_class(candidates: Candidates, matched: Tensor, targets: Targets, by_iou: bool = False) -> Candidates:
    """The true class of every candidate that learns an object scores 1, or the IoU of its box with the object."""
    rows, truth = _learning(matched)
    scores = candidates.class_scores.clone()
    quality = iou(candidates.boxes[rows], targets.boxes[truth]) if by_iou else scores.new_ones(len(rows))
    scores[rows, targets.labels[truth]] = quality.to(scores)
    return replace(candidates, class_scores=scores)


def true_box(candidates: Candidates, matched: Tensor, targets: Targets) -> Candidates:
    """Every candidate that learns an object has the object's box."""
    rows, truth = _learning(matched)
    boxes = candidates.boxes.clone()
    boxes[rows] = targets.boxes[truth].to(boxes)
    return replace(candidates, boxes=boxes)


def true_estimate(candidates: Candidates, matched: Tensor, targets: Targets) -> Candidates:
    """The localisation estimate, whichever there is, is the true IoU for every candidate that learns an object."""
    rows, truth = _learning(matched)
    quality = iou(candidates.boxes[rows], targets.boxes[truth])
    if candidates.centerness is not None:
        return replace(
            candidates, centerness=candidates.centerness.index_put((rows,), quality.to(candidates.centerness))
        )
    assert candidates.ious is not None
    if candidates.ious.dim() == 1:
        return replace(candidates, ious=candidates.ious.index_put((rows,), quality.to(candidates.ious)))
    places = (rows, targets.labels[truth])
    return replace(candidates, ious=candidates.ious.index_put(places, quality.to(candidates.ious)))


def true_centerness(candidates: Candidates, matched: Tensor, targets: Targets) -> Candidates:
    """The centerness is FCOS's, of the ground-truth box, for every candidate that learns an object."""
    assert candidates.centerness is not None
    assert candidates.points is not None
    rows, truth = _learning(matched)
    values = centerness(candidates.points[rows], targets.boxes[truth])
    return replace(candidates, centerness=candidates.centerness.index_put((rows,), values.to(candidates.centerness)))


def nearest_iou(candidates: Candidates, matched: Tensor, targets: Targets) -> Candidates:
    """The predicted IoU of every candidate is its true IoU with the nearest object of any class.

    This is the upper bound of the IoU-aware detector's paper.
    """
    assert candidates.ious is not None
    overlaps = candidates.boxes.new_zeros(len(candidates))
    if len(targets):
        overlaps = pairwise_iou(candidates.boxes, targets.boxes).amax(dim=1)
    return replace(
        candidates, ious=overlaps if candidates.ious.dim() == 1 else overlaps[:, None].expand_as(candidates.ious)
    )


Replacement = Callable[[Candidates, Tensor, Targets], Candidates]


def replacements(candidates: Candidates) -> dict[str, tuple[Replacement, bool]]:
    """What can be replaced in such candidates, and whether it matters only with the localisation estimate."""
    found: dict[str, tuple[Replacement, bool]] = {AS_PREDICTED: (lambda c, matched, targets: c, False)}
    if candidates.centerness is not None:
        found["centerness := true centerness"] = (true_centerness, True)
        found["centerness := true IoU"] = (true_estimate, True)
    elif has_estimate(candidates):
        found["predicted IoU := true IoU"] = (true_estimate, True)
        found["every predicted IoU := IoU with the nearest object"] = (nearest_iou, True)
    found["box := ground-truth box"] = (true_box, False)
    found["class score := 1"] = (true_class, False)
    found[TRUE_IOU_AS_SCORE] = (lambda c, m, t: true_class(c, m, t, by_iou=True), False)
    return found


def has_estimate(candidates: Candidates) -> bool:
    """Whether there is a localisation estimate beside the class score, as VFNet's class score is the estimate."""
    return candidates.centerness is not None or (
        candidates.ious is not None and candidates.ious is not candidates.class_scores
    )


def oracle_study(model: Detector, data: DetectionData, images: Iterable[ImageCandidates] | None = None) -> OracleStudy:
    """The ladder and the correlations of a detector on records with its classes.

    Without the estimate, candidates are ranked by class score and suppressed by greedy NMS; with it, by the detector's
    own rules. An object that no candidate learns cannot be helped by any replacement.

    Args:
        model: used in evaluation mode.
        data: the records, with its classes.
        images: their assigned candidates; without them, the network is run.
    """
    alone: dict[str, dict[int, Detections]] = {}
    own: dict[str, dict[int, Detections]] = {}
    pairs: dict[str, list[tuple[Tensor, Tensor]]] = {"score": [], "predicted IoU": []}
    if images is None:
        images = iterate_candidates(model, data, assigned=True)
    for image in images:
        record = data.records[image.index]
        for name, (replacement, only_with) in replacements(image.candidates).items():
            changed = replacement(image.candidates, image.matched, image.targets)
            if not only_with:
                found = model.select(changed, by_class_score, model.greedy_nms)
                alone.setdefault(name, {})[image.index] = found.resized(image.size, (record.height, record.width))
            if has_estimate(image.candidates):
                found = model.select(changed)
                own.setdefault(name, {})[image.index] = found.resized(image.size, (record.height, record.width))
        _collect_pairs(model, image.candidates, image.targets, pairs)
    truth = data.to_coco()

    def measure(found: dict[int, Detections] | None) -> CocoMetrics | None:
        return None if found is None else evaluate(truth, to_results(dict(sorted(found.items())), data))

    names = own or alone  # in the order of the ladder
    rungs = [Rung(name, measure(alone.get(name)), measure(own.get(name))) for name in names]
    correlations = _correlations(pairs)
    return OracleStudy(rungs, lost_to_ranking(rungs), correlations)


def results_study(ground_truth: Json, results: Sequence[Json]) -> OracleStudy:
    """The same for any tool's final boxes; a box stands for the object of its class that it overlaps most, from 0.5 on.

    What was suppressed is not in such a file. So nothing can take the place of a box whose score is lowered, objects
    without a box stay missed, and second boxes on an object stay false: this studies the ranking of these boxes only.

    Args:
        ground_truth: the content of a COCO file.
        results: rows of a COCO result file, with the predicted IoU as `iou` where there is one.

    Raises:
        UserError: if a row makes no sense; see `tightbox.evaluation.results.to_columns`.
    """
    truth, detections = to_columns(ground_truth, results)
    gt_boxes, boxes = _corners(truth.boxes), _corners(detections.boxes)
    images = zip(truth.image_ids, _by_image(detections.images, truth), _by_image(truth.images, truth), strict=True)
    changed_rows: dict[str, list[dict[str, Any]]] = {}
    pairs: dict[str, list[tuple[Tensor, Tensor]]] = {"score": [], "predicted IoU": []}
    for image_id, rows, all_objects in images:
        if not len(rows):
            continue
        objects = all_objects[~truth.crowd[all_objects]]
        targets = Targets.of(gt_boxes[objects], torch.from_numpy(truth.labels[objects]))
        label, scores, ious = (
            torch.from_numpy(column[rows]) for column in (detections.labels, detections.scores, detections.ious)
        )
        one_hot = torch.nn.functional.one_hot(label, len(truth.category_ids)) * scores[:, None]
        overlaps = pairwise_iou(boxes[rows], targets.boxes) * (label[:, None] == targets.labels)
        best, matched = torch.cat([overlaps.new_zeros(len(rows), 1), overlaps], dim=1).max(dim=1)
        matched = torch.where(best >= MIN_IOU, matched - 1, -1)
        pairs["score"].append((scores, best))
        if not ious.isnan().any():
            pairs["predicted IoU"].append((ious, best))
        candidates = Candidates(boxes[rows], one_hot)
        for name, (replacement, _) in replacements(candidates).items():
            changed = replacement(candidates, matched, targets)
            found = Detections(changed.boxes, changed.class_scores[torch.arange(len(rows)), label], label)
            changed_rows.setdefault(name, []).extend(found.to_coco(image_id, truth.category_ids))
    rungs = [Rung(name, evaluate(ground_truth, rows), None) for name, rows in changed_rows.items()]
    rungs = rungs or [Rung(name, evaluate(ground_truth, []), None) for name in (AS_PREDICTED, TRUE_IOU_AS_SCORE)]
    return OracleStudy(rungs, lost_to_ranking(rungs), _correlations(pairs))


def lost_to_ranking(rungs: list[Rung]) -> float | None:
    """AP with the class score replaced by the true IoU, minus the AP as it is."""
    by_name = {rung.name: rung for rung in rungs}
    ideal, base = by_name[TRUE_IOU_AS_SCORE].alone, by_name[AS_PREDICTED]
    now = base.with_estimate or base.alone
    if ideal is None or now is None or ideal.ap is None or now.ap is None:
        return None
    return ideal.ap - now.ap


def _correlations(pairs: dict[str, list[tuple[Tensor, Tensor]]]) -> dict[str, Correlation]:
    found = {}
    for name, parts in pairs.items():
        if parts:
            estimates, true_ious = (torch.cat(values).numpy() for values in zip(*parts, strict=True))
            found[name] = correlation(estimates, true_ious, above=MIN_IOU)
    return found


def _by_image(images: Ints, truth: Truth) -> list[Ints]:
    """The rows of each image, in their order; `images` is that of each row."""
    order = np.argsort(images, kind="stable")
    starts = np.searchsorted(images[order], np.arange(len(truth.image_ids) + 1))
    return [order[start:stop] for start, stop in pairwise(starts)]


def _corners(boxes: Floats) -> Tensor:
    """(N, 4) xyxy from COCO's [x, y, width, height]."""
    return torch.from_numpy(np.concatenate([boxes[:, :2], boxes[:, :2] + boxes[:, 2:]], axis=1))


def _learning(matched: Tensor) -> tuple[Tensor, Tensor]:
    rows = (matched >= 0).nonzero().squeeze(1)
    return rows, matched[rows]


def _collect_pairs(
    model: Detector, candidates: Candidates, targets: Targets, pairs: dict[str, list[tuple[Tensor, Tensor]]]
) -> None:
    """Add the class score and the predicted IoU of every (box, class) that would be reported, with its true IoU."""
    if len(targets) == 0:
        return
    scores = by_class_score(candidates)
    row, label = (scores > model.options.score_threshold).nonzero().unbind(1)
    overlaps = pairwise_iou(candidates.boxes[row], targets.boxes) * (label[:, None] == targets.labels)
    truth = overlaps.amax(dim=1)
    pairs["score"].append((scores[row, label], truth))
    if candidates.ious is not None:
        ious = candidates.ious[row] if candidates.ious.dim() == 1 else candidates.ious[row, label]
        pairs["predicted IoU"].append((ious, truth))
