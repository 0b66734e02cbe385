"""Which boxes to look at: where a tighter one was there, what was missed, and what was reported on nothing."""

from functools import partial

import numpy as np

from tightbox.diagnosis.evidence import Evidence
from tightbox.diagnosis.numbers import Card, CardBox, CardImage
from tightbox.diagnosis.sentences import KINDS
from tightbox.evaluation import tide
from tightbox.evaluation.coco import SIZES
from tightbox.evaluation.figures import Bools, Floats, Ints, number
from tightbox.evaluation.matching import rank_in_group

MAX_BETTER, MAX_MISSES, MAX_FALSE_POSITIVES = 120, 48, 48  # cards of each kind
PER_GROUP = 4  # the worst of each class and size come first, so that every filter finds some


def pick_cards(evidence: Evidence) -> tuple[Card, ...]:
    """The worst of each kind, those of the rarer classes and sizes among them."""
    matches, kinds = evidence.matches, tide.error_kinds(evidence.matches)
    # A number for each class and size.
    object_groups = matches.ground_truth.labels * len(SIZES) + evidence.object_sizes
    detection_groups = matches.labels * len(SIZES) + evidence.detection_sizes
    better = _worst(evidence.had_better_box, evidence.iou_gain, object_groups, MAX_BETTER)
    missed = _worst(evidence.missed, evidence.box_areas, object_groups, MAX_MISSES)
    wrong = _worst(kinds >= 0, matches.scores, detection_groups, MAX_FALSE_POSITIVES)
    return (
        *(_better_box(evidence, g) for g in better.tolist()),
        *(_miss(evidence, g) for g in missed.tolist()),
        *(_false_positive(evidence, i, tide.KINDS[kinds[i]]) for i in wrong.tolist()),
    )


def _better_box(evidence: Evidence, g: int) -> Card:
    """Of a ground-truth box that was found, but not by the tightest box there was."""
    suppressed = bool(evidence.from_candidates[g])
    kept = _detection(evidence, int(evidence.kept[g]), evidence.kept_iou[g])
    better = _candidate(evidence, g) if suppressed else _nearest(evidence, g)
    why = "the better box was suppressed" if suppressed else "the better box was out-ranked"
    return _of_object(evidence, g)("better", severity=float(evidence.iou_gain[g]), kept=kept, better=better, why=why)


def _of_object(evidence: Evidence, g: int) -> partial[Card]:
    """A card of a ground-truth box, without what became of it."""
    ground_truth, size = evidence.matches.ground_truth, SIZES[evidence.object_sizes[g]]
    image, name = _image(evidence, int(ground_truth.images[g])), ground_truth.class_names[ground_truth.labels[g]]
    return partial(Card, image=image, class_name=name, size=size, ground_truth=_object(evidence, g))


def _miss(evidence: Evidence, g: int) -> Card:
    """Of a ground-truth box that no detection of its class is on."""
    better = _candidate(evidence, g) if evidence.suppressed[g] else None
    kept, why, area = _nearest(evidence, g), _why_missed(evidence, g), float(evidence.box_areas[g])
    return _of_object(evidence, g)("miss", severity=area, kept=kept, better=better, why=why)


def _false_positive(evidence: Evidence, i: int, error: str) -> Card:
    """Of a detection that makes this kind of error."""
    matches = evidence.matches
    image, name = _image(evidence, int(matches.images[i])), matches.ground_truth.class_names[matches.labels[i]]
    size, score = SIZES[evidence.detection_sizes[i]], float(matches.scores[i])
    own, other = float(matches.best_iou[i]), float(matches.other_iou[i])
    touched = int(matches.best_gt[i] if own >= other else matches.other_gt[i])
    ground_truth, kept = _object(evidence, touched) if touched >= 0 else None, _detection(evidence, i, max(own, other))
    return Card("false_positive", image, name, size, score, ground_truth, kept, better=None, why=KINDS[error].one)


def _why_missed(evidence: Evidence, g: int) -> str:
    if evidence.suppressed[g]:
        return "a good box was there, and was suppressed"
    if evidence.scored_low[g]:
        return "a good box was there, but scored below the threshold"
    if evidence.candidates is not None:
        return "no candidate of any score overlaps it by 0.5"
    return "the nearest box of its class is too loose" if evidence.nearest[g] >= 0 else "no box of its class touches it"


def _image(evidence: Evidence, position: int) -> CardImage:
    ground_truth = evidence.matches.ground_truth
    width, height = (number(side) for side in ground_truth.sizes[position])
    return CardImage(ground_truth.image_ids[position], ground_truth.file_names[position], width, height)


def _box(evidence: Evidence, box: Floats, label: int, *figures: float) -> CardBox:
    """A box with what is known of it: its score, its predicted IoU, NaN for none, and its true one."""
    x, y, width, height = (round(float(v), 2) for v in box)
    return CardBox((x, y, width, height), evidence.matches.ground_truth.class_names[label], *map(number, figures))


def _object(evidence: Evidence, g: int) -> CardBox:
    ground_truth = evidence.matches.ground_truth
    return _box(evidence, ground_truth.boxes[g], ground_truth.labels[g])


def _detection(evidence: Evidence, i: int, iou: float) -> CardBox:
    matches = evidence.matches
    return _box(evidence, matches.boxes[i], matches.labels[i], matches.scores[i], matches.ious[i], iou)


def _nearest(evidence: Evidence, g: int) -> CardBox | None:
    """The tightest detection of the ground-truth box's class, None if none touches it."""
    nearest = int(evidence.nearest[g])
    return _detection(evidence, nearest, evidence.nearest_iou[g]) if nearest >= 0 else None


def _candidate(evidence: Evidence, g: int) -> CardBox:
    """The tightest candidate of the ground-truth box's class."""
    label, candidates = evidence.matches.ground_truth.labels[g], evidence.candidates
    assert candidates is not None  # or nothing would be known to be suppressed
    figures = candidates.scores[g], candidates.predicted_ious[g], candidates.ious[g]
    return _box(evidence, candidates.boxes[g], label, *figures)


def _worst(which: Bools, severity: Floats, groups: Ints, most: int) -> Ints:
    """At most `most` of the positions `which`, by falling severity.

    They are the worst `PER_GROUP` of every group, then the next ones.
    """
    order = np.flatnonzero(which)
    order = order[np.argsort(-severity[order], kind="stable")]
    chosen = np.argsort(rank_in_group(groups[order]) // PER_GROUP, kind="stable")[:most]
    return np.asarray(order[np.sort(chosen)])
