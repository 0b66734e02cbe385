"""Which boxes to look at: where a tighter one was there, what was missed, and what was reported on nothing."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from tightbox.diagnosis.numbers import Card, Shown
from tightbox.evaluation.average_precision import SIZES, size_index
from tightbox.evaluation.figures import Bools, Floats, Ints, number
from tightbox.evaluation.matching import Matches
from tightbox.evaluation.tide import KINDS, error_kinds

if TYPE_CHECKING:
    from tightbox.inference.before_suppression import BeforeSuppression

BETTER, MISSES, FALSE = 120, 48, 48  # how many cards of each kind at most
PER_GROUP = 4  # the worst of each class and size come first, so that every filter finds some

WHY_WRONG = {
    "classification": "on an object of another class",
    "localisation": "on its object, but too loose",
    "both": "loosely on an object of another class",
    "duplicate": "a second box on an object that was found",
    "background": "on no object",
}


@dataclass(frozen=True, eq=False)
class Seen:
    """What there was for each of G ground-truth boxes; positions are in the matches, -1 for none.

    Attributes:
        kept: (G,) the detection that found it at IoU 0.5, and `kept_iou`, 0 for none.
        nearest: (G,) the tightest detection of its class, and `nearest_iou`.
        better_iou: (G,) IoU of the tightest box there was, detected or not.
        from_candidates: (G,) whether that box is a candidate which is not among the detections.
    """

    kept: Ints
    kept_iou: Floats
    nearest: Ints
    nearest_iou: Floats
    better_iou: Floats
    from_candidates: Bools


def pick_cards(
    matches: Matches,
    gt_sizes: Ints,
    seen: Seen,
    better: Bools,
    missed: Bools,
    before: BeforeSuppression | None,
) -> tuple[Card, ...]:
    """The worst of each kind, those of the rarer classes and sizes among them.

    Args:
        matches: the N detections, matched at 0.5 too.
        gt_sizes: (G,) position of each ground-truth box in `SIZES`.
        seen: what there was for each.
        better: (G,) which of them had a better box than the kept one.
        missed: (G,) which have no box of their class on them.
        before: what is known of the candidates.
    """
    ground_truth = matches.ground_truth
    names = ground_truth.class_names
    kinds = error_kinds(matches)

    def image(position: int) -> dict[str, Any]:
        image_id = ground_truth.image_ids[position]
        width, height = (None if np.isnan(side) else float(side) for side in ground_truth.sizes[position])
        return {
            "image_id": image_id,
            "file": ground_truth.file_names[position],
            "width": width,
            "height": height,
        }

    def object_(g: int) -> Shown:
        return Shown(_box(ground_truth.boxes[g]), name=names[ground_truth.labels[g]])

    def detection(i: int, iou: float) -> Shown:
        return Shown(
            _box(matches.boxes[i]),
            float(matches.scores[i]),
            number(matches.ious[i]),
            float(iou),
            names[matches.labels[i]],
        )

    def candidate(g: int) -> Shown:
        assert before is not None
        return Shown(
            _box(before.best.boxes[g]),
            float(before.best.scores[g]),
            number(before.best.predicted_ious[g]),
            float(before.best.ious[g]),
            names[ground_truth.labels[g]],
        )

    def of_object(g: int, **what: Any) -> Card:
        """A card about a ground-truth box."""
        where = image(int(ground_truth.images[g]))
        return Card(**where, category=names[ground_truth.labels[g]], size=SIZES[gt_sizes[g]], truth=object_(g), **what)

    cards = []
    at = np.flatnonzero(better)
    loss = seen.better_iou - seen.kept_iou
    for g in at[_worst(loss[at], ground_truth.labels[at], gt_sizes[at], BETTER)].tolist():
        suppressed = bool(seen.from_candidates[g])
        cards.append(
            of_object(
                g,
                kind="better",
                loss=float(loss[g]),
                kept=detection(int(seen.kept[g]), float(seen.kept_iou[g])),
                better=candidate(g) if suppressed else detection(int(seen.nearest[g]), float(seen.nearest_iou[g])),
                why="the better box was suppressed" if suppressed else "the better box was out-ranked",
            )
        )
    at = np.flatnonzero(missed)
    area = ground_truth.boxes[:, 2:].prod(axis=1)
    for g in at[_worst(area[at], ground_truth.labels[at], gt_sizes[at], MISSES)].tolist():
        near, suppressed = int(seen.nearest[g]), bool(seen.from_candidates[g] and seen.better_iou[g] >= 0.5)
        cards.append(
            of_object(
                g,
                kind="miss",
                loss=float(area[g]),
                kept=detection(near, float(seen.nearest_iou[g])) if near >= 0 else None,
                better=candidate(g) if suppressed else None,
                why=_why_missed(g, near, suppressed, before),
            )
        )
    at = np.flatnonzero(kinds >= 0)
    sizes = size_index(matches.boxes[:, 2:].prod(axis=1))
    for i in at[_worst(matches.scores[at], matches.labels[at], sizes[at], FALSE)].tolist():
        own, other = matches.best_iou[i], matches.other_iou[i]
        object_at = int(matches.best_gt[i] if own >= other else matches.other_gt[i])
        cards.append(
            Card(
                kind="false",
                **image(int(matches.images[i])),
                category=names[matches.labels[i]],
                size=SIZES[sizes[i]],
                loss=float(matches.scores[i]),
                truth=object_(object_at) if object_at >= 0 else None,
                kept=detection(i, float(max(own, other))),
                better=None,
                why=WHY_WRONG[KINDS[kinds[i]]],
            )
        )
    return tuple(cards)


def _why_missed(g: int, near: int, suppressed: bool, before: BeforeSuppression | None) -> str:
    if suppressed:
        return "a good box was there, and was suppressed"
    if before is not None and before.best.any_ious[g] >= 0.5:
        return "a good box was there, but scored below the threshold"
    if before is not None:
        return "no candidate of any score overlaps it by 0.5"
    return "the nearest box of its class is too loose" if near >= 0 else "no box of its class touches it"


def _worst(loss: Floats, labels: Ints, sizes: Ints, most: int) -> Ints:
    """At most `most` positions by falling loss: the worst `PER_GROUP` of every class and size, then the next ones."""
    order = np.argsort(-loss, kind="stable")
    group = (labels * len(SIZES) + sizes)[order]
    together = np.argsort(group, kind="stable")
    starts = np.flatnonzero(np.diff(group[together], prepend=-1))
    rank = np.empty_like(order)
    rank[together] = np.arange(len(order)) - np.repeat(starts, np.diff(starts, append=len(order)))
    chosen = order[np.lexsort((np.arange(len(order)), rank // PER_GROUP))[:most]]
    worst: Ints = chosen[np.argsort(-loss[chosen], kind="stable")]
    return worst


def _box(box: Floats) -> tuple[float, float, float, float]:
    x, y, width, height = (round(float(v), 2) for v in box)
    return x, y, width, height
