"""All figures of a diagnosis from a COCO data set and anyone's detections of it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import count
from typing import TYPE_CHECKING

import numpy as np

from tightbox.calibration import IOUS
from tightbox.diagnosis.gallery import Seen, pick_cards
from tightbox.diagnosis.numbers import ClassRow, Diagnosis, Fates, Group, Lost, Tightness, Trust
from tightbox.evaluation.average_precision import SIZES, AveragePrecision, average_precisions, size_index
from tightbox.evaluation.coco import evaluate
from tightbox.evaluation.figures import Bools, Floats
from tightbox.evaluation.inputs import GroundTruth, Predictions
from tightbox.evaluation.ladder import ON_OBJECT, TRUE_BOX, TRUE_IOU_SCORE, Ladder, results_ladder
from tightbox.evaluation.lrp import optimal_lrp
from tightbox.evaluation.matching import Matches, match
from tightbox.evaluation.reliability import correlation, laece, localisation_aware_reliability, reliability
from tightbox.evaluation.tide import ClassErrors, tide

if TYPE_CHECKING:
    from tightbox.inference.before_suppression import BeforeSuppression

TAU = 0.1  # of LaECE, as in its paper
POINTS = 1000  # of a scatter plot
MIN_IOU_GAIN = 0.01  # less than this is no tighter box


def diagnose_results(
    ground_truth: GroundTruth,
    predictions: Predictions,
    *,
    title: str,
    before: BeforeSuppression | None = None,
    notes: Sequence[str] = (),
    progress: Callable[[int, int], None] | None = None,
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
        if progress is not None:
            progress(next(done), steps)

    matches = match(ground_truth, predictions, (TAU, *IOUS))
    step()
    coco = evaluate(ground_truth, predictions)
    names = ground_truth.class_names
    step()
    gt_sizes = size_index(ground_truth.areas)
    seen = _seen(matches, before)
    missed = (seen.nearest_iou < ON_OBJECT) & ~ground_truth.crowd
    ladder = results_ladder(ground_truth, predictions, step) if before is None else before.ladder
    lost = _lost(ladder, before, matches, missed)
    errors, optimum, calibration = tide(matches), optimal_lrp(matches), laece(matches, TAU)
    step()

    positives = ~ground_truth.crowd
    per_class = {}
    for label, (name, category) in enumerate(zip(names, ground_truth.category_ids, strict=True)):
        table = calibration.per_class.get(category)
        per_class[name] = ClassRow(
            _group(positives & (ground_truth.labels == label), seen),
            optimum.per_class[category],
            errors.per_class[category],
            None if table is None else table.error,
        )
    better = positives & (seen.kept >= 0) & (seen.better_iou - seen.kept_iou >= MIN_IOU_GAIN)
    has_iou = bool(len(predictions.ious)) and not np.isnan(predictions.ious).any()
    return Diagnosis(
        title=title,
        from_candidates=before is not None,
        images=len(ground_truth.image_ids),
        objects=int(positives.sum()),
        detections=len(predictions.scores),
        notes=(*notes, *_notes(ground_truth, predictions, before)),
        coco=coco,
        aps=AveragePrecision.of_coco(coco),
        all=_group(positives, seen),
        tightness=_tightness(positives, seen),
        lrp=optimum.mean,
        errors=ClassErrors(errors.ap, errors.gain, errors.count),
        laece={f"{TAU:g}": calibration.error, "0.5": laece(matches, ON_OBJECT).error},
        score=_trust(matches, matches.scores, by_precision=True),
        predicted_iou=_trust(matches, matches.ious, by_precision=False) if has_iou else None,
        before_suppression={} if before is None else dict(before.ladder.correlations),
        ladder=ladder.variants,
        lost=lost,
        fates=None if before is None else _fates(missed, before),
        per_class=per_class,
        per_size={size: _group(positives & (gt_sizes == i), seen) for i, size in enumerate(SIZES)},
        better_boxes=int(better.sum()),
        iou_lost=float((seen.better_iou - seen.kept_iou)[better].mean()) if better.any() else None,
        gallery=pick_cards(matches, gt_sizes, seen, better, missed, before),
    )


def _seen(matches: Matches, before: BeforeSuppression | None) -> Seen:
    """For every ground-truth box the detection that found it, the one nearest to it, and the tightest box there was."""
    objects = len(matches.ground_truth.labels)
    outcome = matches.at(ON_OBJECT)
    kept, kept_iou = np.full(objects, -1), np.zeros(objects)
    hits = np.flatnonzero(outcome.hit)
    kept[outcome.matched[hits]], kept_iou[outcome.matched[hits]] = hits, outcome.ious[hits]
    nearest, nearest_iou = np.full(objects, -1), np.zeros(objects)
    # By rising IoU, so that what is written last is the largest.
    touching = np.flatnonzero(matches.best_gt >= 0)
    touching = touching[np.argsort(matches.best_iou[touching], kind="stable")]
    nearest[matches.best_gt[touching]] = touching
    nearest_iou[matches.best_gt[touching]] = matches.best_iou[touching]
    # One that found an object may overlap another of its class more, and is then the nearest of neither.
    closer = kept_iou > nearest_iou
    nearest, nearest_iou = np.where(closer, kept, nearest), np.where(closer, kept_iou, nearest_iou)
    from_candidates = np.zeros(objects, dtype=bool)
    if before is not None:
        from_candidates = before.best.ious > nearest_iou + 1e-3  # else it is among the detections, and was out-ranked
    better_iou = np.where(from_candidates, before.best.ious, nearest_iou) if before is not None else nearest_iou
    return Seen(kept, kept_iou, nearest, nearest_iou, better_iou, from_candidates)


def _group(which: Bools, seen: Seen) -> Group:
    found = which & (seen.kept >= 0)
    objects = int(which.sum())
    return Group(
        objects=objects,
        found=int(found.sum()) / objects if objects else None,
        mean_iou=float(seen.kept_iou[found].mean()) if found.any() else None,
        best_iou=float(seen.better_iou[which].mean()) if objects else None,
    )


def _tightness(which: Bools, seen: Seen) -> Tightness:
    kept = np.where(seen.kept >= 0, seen.kept_iou, seen.nearest_iou)
    counts = (np.histogram(ious[which], bins=20, range=(0, 1))[0].tolist() for ious in (kept, seen.better_iou))
    return Tightness(*map(tuple, counts))


def _lost(ladder: Ladder, before: BeforeSuppression | None, matches: Matches, missed: Bools) -> Lost:
    """AP lost to each stage; where candidates are known, against the detector's own rules on these candidates."""
    base = average_precisions(matches)
    now = base if before is None else before.as_it_is
    ranking, boxes = ladder[TRUE_IOU_SCORE].alone, ladder[TRUE_BOX].own
    return Lost(
        ranking=None if ranking is None else ranking.minus(now),
        suppression=None if before is None else before.well_suppressed.minus(now),
        localisation=None if boxes is None else boxes.minus(now),
        misses=average_precisions(matches, ~missed).minus(base),
    )


def _trust(matches: Matches, claimed: Floats, *, by_precision: bool) -> Trust:
    """A score is to be the IoU if right and 0 if not (`by_precision`), a predicted IoU is to be the true one."""
    counted = np.flatnonzero(~matches.at(TAU).ignored)
    if by_precision:
        table = localisation_aware_reliability(matches, TAU, bins=20)
    else:
        table = reliability(claimed[counted], matches.best_iou[counted])
    drawn = counted[np.linspace(0, len(counted) - 1, min(POINTS, len(counted))).astype(int)]
    drawn = drawn[np.isfinite(claimed[drawn])]
    points = np.stack([claimed[drawn], matches.best_iou[drawn]], axis=1).round(4).tolist()
    return Trust(
        table=table,
        error=table.error,
        bias=table.bias,
        correlation=correlation(claimed[counted], matches.best_iou[counted]),
        points=tuple((claim, true) for claim, true in points),
    )


def _fates(missed: Bools, before: BeforeSuppression) -> Fates:
    reported = missed & (before.best.ious >= ON_OBJECT)
    low = missed & ~reported & (before.best.any_ious >= ON_OBJECT)
    return Fates(int(reported.sum()), int(low.sum()), int((missed & ~reported & ~low).sum()))


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
        notes.append(
            f"Without a ground-truth box, and so without AP: {listed}; "
            f"{stray} detections of such classes count for nothing."
        )
    if len(predictions.ious) and np.isnan(predictions.ious).any() and not np.isnan(predictions.ious).all():
        notes.append("Only some rows have a predicted IoU, so it is not judged.")
    return notes
