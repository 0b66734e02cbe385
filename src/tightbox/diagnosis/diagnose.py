"""All figures of a diagnosis from a COCO data set and anyone's detections of it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from itertools import count
from typing import TYPE_CHECKING, Any

import numpy as np

from tightbox.calibration import IOUS
from tightbox.diagnosis.aps import average_precisions, sizes_of
from tightbox.diagnosis.gallery import Seen, pick_cards
from tightbox.diagnosis.numbers import (
    SIZES,
    Aps,
    ClassRow,
    Diagnosis,
    Fates,
    Group,
    Lost,
    Rung,
    Tightness,
    Trust,
)
from tightbox.evaluation.calibration import correlation, laece, localisation_aware_reliability, reliability
from tightbox.evaluation.coco import evaluate
from tightbox.evaluation.lrp import optimal_lrp
from tightbox.evaluation.matching import Bools, Floats, Found, Ints, Matches, Truth, match
from tightbox.evaluation.results import to_columns
from tightbox.evaluation.tide import ClassErrors, tide

if TYPE_CHECKING:
    from tightbox.diagnosis.before_suppression import BeforeSuppression
    from tightbox.evaluation.oracle import OracleStudy

ON_OBJECT = 0.5  # IoU from which a box is taken to be on an object
TAU = 0.1  # of LaECE, as in its paper
POINTS = 1000  # of a scatter plot
MIN_IOU_GAIN = 0.01  # less than this is no tighter box


def diagnose_results(
    ground_truth: Any,
    results: Any,
    *,
    title: str,
    before: BeforeSuppression | None = None,
    notes: Sequence[str] = (),
    progress: Callable[[int, int], None] | None = None,
) -> Diagnosis:
    """Every figure of the page.

    Args:
        ground_truth: the content of a COCO file.
        results: rows of a COCO result file of any tool, with the predicted IoU as `iou` where there is one.
        title: what is diagnosed, in words.
        before: what the detector's candidates tell, where it is known.
        notes: what else has to be known to read the figures, in sentences.
        progress: called with the number of steps done and their total.

    Raises:
        UserError: if a row makes no sense; see `tightbox.evaluation.results.to_columns`.
    """
    steps = 7 if before is None else 4
    done = count(1)

    def step() -> None:
        if progress is not None:
            progress(next(done), steps)

    truth, found = to_columns(ground_truth, results)
    step()
    matches = match(truth, found, (TAU, *IOUS))
    step()
    coco = evaluate(ground_truth, results)
    names = list(coco.per_class)
    step()
    truth_sizes = sizes_of(_areas(ground_truth, truth))
    seen = _seen(matches, before)
    missed = (seen.nearest_iou < ON_OBJECT) & ~truth.crowd
    if before is None:
        ladder, lost = _file_ladder(matches, found, names, truth_sizes, missed, step)
    else:
        ladder = _ladder(before.study)
        lost = _lost(ladder, before, matches, found, names, truth_sizes, missed)
    errors, optimum, calibration = tide(matches), optimal_lrp(matches), laece(matches, TAU)
    step()

    positives = ~truth.crowd
    per_class = {}
    for label, (name, category) in enumerate(zip(names, truth.category_ids, strict=True)):
        table = calibration.per_class.get(category)
        per_class[name] = ClassRow(
            _group(positives & (truth.labels == label), seen),
            optimum.per_class[category],
            errors.per_class[category],
            None if table is None else table.error,
        )
    better = positives & (seen.kept >= 0) & (seen.better_iou - seen.kept_iou >= MIN_IOU_GAIN)
    has_iou = bool(len(found.ious)) and not np.isnan(found.ious).any()
    return Diagnosis(
        title=title,
        from_candidates=before is not None,
        images=len(truth.image_ids),
        objects=int(positives.sum()),
        detections=len(found.scores),
        notes=(*notes, *_notes(truth, found, names, before)),
        coco=coco,
        aps=Aps.of_coco(coco),
        all=_group(positives, seen),
        tightness=_tightness(positives, seen),
        lrp=optimum.mean,
        errors=ClassErrors(errors.ap, errors.gain, errors.count),
        laece={f"{TAU:g}": calibration.error, "0.5": laece(matches, ON_OBJECT).error},
        score=_trust(matches, matches.scores, by_precision=True),
        predicted_iou=_trust(matches, matches.ious, by_precision=False) if has_iou else None,
        before_suppression={} if before is None else dict(before.study.correlations),
        ladder=ladder,
        lost=lost,
        fates=None if before is None else _fates(missed, before),
        per_class=per_class,
        per_size={size: _group(positives & (truth_sizes == i), seen) for i, size in enumerate(SIZES)},
        better_boxes=int(better.sum()),
        iou_lost=float((seen.better_iou - seen.kept_iou)[better].mean()) if better.any() else None,
        gallery=pick_cards(ground_truth, matches, found, names, truth_sizes, seen, better, missed, before),
    )


def _seen(matches: Matches, before: BeforeSuppression | None) -> Seen:
    """For every ground-truth box the detection that found it, the one nearest to it, and the tightest box there was."""
    objects = len(matches.truth.labels)
    outcome = matches.at(ON_OBJECT)
    kept, kept_iou = np.full(objects, -1), np.zeros(objects)
    hits = np.flatnonzero(outcome.hit)
    kept[outcome.truth[hits]], kept_iou[outcome.truth[hits]] = hits, outcome.ious[hits]
    nearest, nearest_iou = np.full(objects, -1), np.zeros(objects)
    # By rising IoU, so that what is written last is the largest.
    touching = np.flatnonzero(matches.best_truth >= 0)
    touching = touching[np.argsort(matches.best_iou[touching], kind="stable")]
    nearest[matches.best_truth[touching]] = touching
    nearest_iou[matches.best_truth[touching]] = matches.best_iou[touching]
    # One that found an object may overlap another of its class more, and is then the nearest of neither.
    closer = kept_iou > nearest_iou
    nearest, nearest_iou = np.where(closer, kept, nearest), np.where(closer, kept_iou, nearest_iou)
    from_candidates = np.zeros(objects, dtype=bool)
    if before is not None:
        from_candidates = before.ious > nearest_iou + 1e-3  # else it is among the detections, and was out-ranked
    better_iou = np.where(from_candidates, before.ious, nearest_iou) if before is not None else nearest_iou
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


def _file_ladder(
    matches: Matches, found: Found, names: Sequence[str], truth_sizes: Ints, missed: Bools, step: Callable[[], None]
) -> tuple[tuple[Rung, ...], Lost]:
    """`tightbox.evaluation.oracle.results_study`, whose definitions these are, in columns."""
    best, target = np.zeros(len(found.scores)), np.full(len(found.scores), -1)
    best[matches.rows], target[matches.rows] = matches.best_iou, matches.best_truth
    on = best >= ON_OBJECT
    boxes = found.boxes.copy()
    boxes[on] = matches.truth.boxes[target[on]]
    changed = {
        "box := ground-truth box": replace(found, boxes=boxes),
        "class score := 1": replace(found, scores=np.where(on, 1.0, found.scores)),
        "class score := true IoU": replace(found, scores=np.where(on, best, found.scores)),
    }
    base = average_precisions(matches, names, truth_sizes, _sizes_found(matches, found))
    rungs = {"as predicted": base}
    for name, columns in changed.items():
        again = match(matches.truth, columns, IOUS)
        rungs[name] = average_precisions(again, names, truth_sizes, _sizes_found(again, columns))
        step()
    asked = average_precisions(matches, names, truth_sizes, _sizes_found(matches, found), ~missed)
    return tuple(Rung(name, aps, None) for name, aps in rungs.items()), Lost(
        ranking=rungs["class score := true IoU"].minus(base),
        suppression=None,
        localisation=rungs["box := ground-truth box"].minus(base),
        misses=asked.minus(base),
    )


def _lost(
    ladder: Sequence[Rung],
    before: BeforeSuppression,
    matches: Matches,
    found: Found,
    names: Sequence[str],
    truth_sizes: Ints,
    missed: Bools,
) -> Lost:
    """The same with a detector's candidates: each against the detector's own rules on these candidates."""
    by_name = {rung.name: rung for rung in ladder}
    ranking, boxes = by_name["class score := true IoU"].alone, by_name["box := ground-truth box"]
    own_boxes = boxes.with_estimate or boxes.alone
    sizes = _sizes_found(matches, found)
    base = average_precisions(matches, names, truth_sizes, sizes)
    asked = average_precisions(matches, names, truth_sizes, sizes, ~missed)
    return Lost(
        ranking=None if ranking is None else ranking.minus(before.as_it_is),
        suppression=before.well_suppressed.minus(before.as_it_is),
        localisation=None if own_boxes is None else own_boxes.minus(before.as_it_is),
        misses=asked.minus(base),
    )


def _ladder(study: OracleStudy) -> tuple[Rung, ...]:
    return tuple(
        Rung(rung.name, *(None if m is None else Aps.of_coco(m) for m in (rung.alone, rung.with_estimate)))
        for rung in study.rungs
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
    reported = missed & (before.ious >= ON_OBJECT)
    low = missed & ~reported & (before.any_ious >= ON_OBJECT)
    return Fates(int(reported.sum()), int(low.sum()), int((missed & ~reported & ~low).sum()))


def _sizes_found(matches: Matches, found: Found) -> Ints:
    return sizes_of(found.boxes[matches.rows, 2:].prod(axis=1))


def _areas(ground_truth: Any, truth: Truth) -> Floats:
    """(G,) what COCO's sizes go by: the mask's area where the data set gives it."""
    own = truth.boxes[:, 2:].prod(axis=1)
    given = [row.get("area") for row in ground_truth["annotations"]]
    return np.array([box if area is None else float(area) for area, box in zip(given, own, strict=True)], dtype=float)


def _notes(truth: Truth, found: Found, names: Sequence[str], before: BeforeSuppression | None) -> list[str]:
    notes = []
    if before is None:
        notes.append(
            "These are final boxes: what suppression removed cannot be known, so nothing can be said of it, and a "
            "better box is shown only where the file itself holds one that was out-ranked."
        )
    if not len(found.scores):
        notes.append("There is not a single detection.")
    positives = truth.positives
    without = [name for name, n in zip(names, positives.tolist(), strict=True) if not n]
    if without:
        listed = ", ".join(without[:8]) + (f" and {len(without) - 8} more" if len(without) > 8 else "")
        stray = int(np.isin(found.labels, np.flatnonzero(positives == 0)).sum())
        notes.append(
            f"Without a ground-truth box, and so without AP: {listed}; "
            f"{stray} detections of such classes count for nothing."
        )
    if len(found.ious) and np.isnan(found.ious).any() and not np.isnan(found.ious).all():
        notes.append("Only some rows have a predicted IoU, so it is not judged.")
    return notes
