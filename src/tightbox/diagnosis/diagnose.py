"""All figures of a diagnosis from a COCO data set and anyone's detections of it."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import count
from typing import TYPE_CHECKING

import numpy as np

from tightbox.calibration import IOUS
from tightbox.diagnosis.evidence import Evidence, gather_evidence
from tightbox.diagnosis.gallery import pick_cards
from tightbox.diagnosis.numbers import ClassRow, Diagnosis, Group, ScoreReliability, Tightness
from tightbox.evaluation.calibration_measures import calibration_measures
from tightbox.evaluation.coco import SIZES, AveragePrecision, evaluate
from tightbox.evaluation.figures import Bools, Floats, mean
from tightbox.evaluation.inputs import GroundTruth, Predictions
from tightbox.evaluation.ladder import ON_OBJECT, TRUE_BOX, TRUE_IOU_SCORE, Ladder, results_ladder
from tightbox.evaluation.lrp import optimal_lrp
from tightbox.evaluation.matching import match
from tightbox.evaluation.reliability import Reliability, correlation, laece, reliability
from tightbox.evaluation.tide import ClassErrors, tide
from tightbox.progress import Progress, silent

if TYPE_CHECKING:
    from tightbox.inference.before_suppression import BeforeSuppression

LAECE_TAU = 0.1  # IoU from which a box is right, as in LaECE's paper
SCATTER_POINTS = 1000  # boxes in a scatter plot at most


def diagnose_results(
    ground_truth: GroundTruth,
    predictions: Predictions,
    *,
    title: str,
    before: BeforeSuppression | None = None,
    notes: Sequence[str] = (),
    progress: Progress = silent,
) -> Diagnosis:
    """Every figure of the page.

    Args:
        ground_truth: what is in the images.
        predictions: what was found there.
        title: what is diagnosed, in words.
        before: what the detector's candidates tell, where it is known.
        notes: what else has to be known to read the figures, in sentences.
        progress: called with the number of steps done and their total.
    """
    steps = 7 if before is None else 3
    done = count(1)

    def step() -> None:
        progress(next(done), steps)

    matches = match(ground_truth, predictions, (LAECE_TAU, *IOUS))
    step()
    coco = evaluate(ground_truth, predictions)
    step()
    evidence = gather_evidence(matches, None if before is None else before.best)
    ladder = results_ladder(ground_truth, predictions, step) if before is None else before.ladder
    without_misses = evaluate(ground_truth[~evidence.missed], predictions)
    aps, better_aps = (AveragePrecision.of_coco(metrics) for metrics in (coco, without_misses))
    errors, optimum, calibration = tide(matches), optimal_lrp(matches), laece(matches, LAECE_TAU)
    step()

    per_class = {}
    for label, (name, category) in enumerate(zip(ground_truth.class_names, ground_truth.category_ids, strict=True)):
        group, table = _group(evidence, ground_truth.labels == label), calibration.per_class.get(category)
        error = None if table is None else table.error
        per_class[name] = ClassRow(group, optimum.per_class[category], errors.per_class[category], error)
    better = evidence.had_better_box
    outcome = matches.at(LAECE_TAU)
    columns = matches.scores, outcome.earned, matches.ious, matches.best_iou
    scores, earned, ious, true_ious = (column[~outcome.ignored] for column in columns)
    has_iou = bool(len(predictions.ious)) and not np.isnan(predictions.ious).any()
    return Diagnosis(
        title=title,
        from_candidates=before is not None,
        images=len(ground_truth.image_ids),
        objects=int(evidence.objects.sum()),
        detections=len(predictions.scores),
        notes=(*notes, *_notes(ground_truth, predictions, before)),
        coco=coco,
        aps=aps,
        all=_group(evidence, evidence.objects),
        tightness=_tightness(evidence),
        lrp=optimum.mean,
        errors=ClassErrors(errors.ap, errors.gain, errors.count),
        laece={f"{LAECE_TAU:g}": calibration.error, "0.5": laece(matches, ON_OBJECT).error},
        measures=calibration_measures(ground_truth, predictions),
        # A score predicts the IoU of a box that is right and 0 of one that is wrong; a predicted IoU the true one.
        score=_reliability(reliability(scores, earned), scores, true_ious),
        predicted_iou=_reliability(reliability(ious, true_ious), ious, true_ious) if has_iou else None,
        before_suppression={} if before is None else dict(before.ladder.correlations),
        ladder=ladder.variants,
        lost=_lost(ladder, before, aps, better_aps),
        miss_breakdown=None if before is None else _miss_breakdown(evidence),
        per_class=per_class,
        per_size={size: _group(evidence, evidence.object_sizes == i) for i, size in enumerate(SIZES)},
        better_boxes=int(better.sum()),
        iou_lost=mean(evidence.iou_gain[better]),
        gallery=pick_cards(evidence),
    )


def _group(evidence: Evidence, which: Bools) -> Group:
    """The figures of some of the G ground-truth boxes, crowds aside."""
    which = which & evidence.objects
    objects, found = int(which.sum()), which & (evidence.kept >= 0)
    fraction = int(found.sum()) / objects if objects else None
    return Group(objects, fraction, mean(evidence.kept_iou[found]), mean(evidence.best_iou[which]))


def _tightness(evidence: Evidence) -> Tightness:
    kept = np.where(evidence.kept >= 0, evidence.kept_iou, evidence.nearest_iou)
    # Rounding may take an IoU beyond 1.
    columns = (np.minimum(values[evidence.objects], 1) for values in (kept, evidence.best_iou))
    return Tightness(*(tuple(np.histogram(ious, bins=20, range=(0, 1))[0].tolist()) for ious in columns))


def _lost(
    ladder: Ladder, before: BeforeSuppression | None, aps: AveragePrecision, without_misses: AveragePrecision
) -> dict[str, AveragePrecision | None]:
    """AP lost to each stage; where candidates are known, against the detector's own rules on these candidates."""
    now = aps if before is None else before.as_it_is
    ranking, boxes = ladder[TRUE_IOU_SCORE].alone, ladder[TRUE_BOX].own
    return {
        "ranking": None if ranking is None else ranking.minus(now),
        "suppression": None if before is None else before.well_suppressed.minus(now),
        "localisation": None if boxes is None else boxes.minus(now),
        "misses": without_misses.minus(aps),
    }


def _reliability(table: Reliability, predicted: Floats, true_ious: Floats) -> ScoreReliability:
    """That of predictions (N,) about boxes with these true IoUs (N,), and some of the pairs for a plot."""
    drawn = np.linspace(0, len(predicted) - 1, min(SCATTER_POINTS, len(predicted))).astype(int)
    drawn = drawn[np.isfinite(predicted[drawn])]
    pairs = np.stack([predicted[drawn], true_ious[drawn]], axis=1).round(4).tolist()
    points = tuple((each, true_iou) for each, true_iou in pairs)
    return ScoreReliability(table, table.error, table.bias, correlation(predicted, true_ious), points)


def _miss_breakdown(evidence: Evidence) -> dict[str, int]:
    missed, suppressed, low = (int(each.sum()) for each in (evidence.missed, evidence.suppressed, evidence.scored_low))
    return {"suppressed": suppressed, "scored_low": low, "no_box": missed - suppressed - low}


def _notes(ground_truth: GroundTruth, predictions: Predictions, before: BeforeSuppression | None) -> list[str]:
    notes = []
    if before is None:
        notes.append(
            "These are final boxes: what suppression removed cannot be known, so nothing can be said of it, and a "
            "better box is shown only where the file itself holds one that was out-ranked."
        )
    if not len(predictions.scores):
        notes.append("There is not a single detection.")
    positives = ground_truth.positives
    without = [name for name, n in zip(ground_truth.class_names, positives.tolist(), strict=True) if not n]
    if without:
        listed = ", ".join(without[:8]) + (f" and {len(without) - 8} more" if len(without) > 8 else "")
        stray = int(np.isin(predictions.labels, np.flatnonzero(positives == 0)).sum())
        classes = f"Without a ground-truth box, and so without AP: {listed}"
        notes.append(f"{classes}; {stray} detections of such classes count for nothing.")
    if len(predictions.ious) and np.isnan(predictions.ious).any() and not np.isnan(predictions.ious).all():
        notes.append("Only some rows have a predicted IoU, so it is not judged.")
    return notes
