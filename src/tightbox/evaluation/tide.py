"""How much AP each kind of mistake costs: TIDE's six kinds of error, each fixed alone.

Bolya et al., "TIDE: A General Toolbox for Identifying Object Detection Errors", ECCV 2020, section 2.
"""

from dataclasses import dataclass, fields

import numpy as np

from tightbox.evaluation.coco import class_average_precisions
from tightbox.evaluation.figures import Bools, Floats, Ints, difference, mean
from tightbox.evaluation.matching import Matches


@dataclass(frozen=True)
class Errors:
    """One number for each kind of error.

    Attributes:
        classification: on an object, of the wrong class.
        localisation: on an object of its class, but too loosely.
        both: loosely on an object of another class.
        duplicate: on an object of its class that a better-scored detection found.
        background: on no object.
        missed: objects that no detection found and none of the first two kinds would find if fixed.
    """

    classification: float | None
    localisation: float | None
    both: float | None
    duplicate: float | None
    background: float | None
    missed: float | None


KINDS = tuple(field.name for field in fields(Errors))


@dataclass(frozen=True)
class ClassErrors:
    """AP, what fixing each kind of error would add to it, and how many errors of the kind there are.

    A figure is None where no ground-truth box is left that could tell. A detection counts for the class it names.
    """

    ap: float | None
    gain: Errors
    count: Errors


@dataclass(frozen=True)
class TideReport(ClassErrors):
    """The same with AP as the mean over classes, and for each class by its category id."""

    per_class: dict[int, ClassErrors]


def error_kinds(matches: Matches, iou_threshold: float = 0.5, background_iou: float = 0.1) -> Ints:
    """(N,) position in `KINDS` of the error each detection makes; -1 for hits and for detections in a crowd.

    Crowds are no objects: a detection is compared with the other boxes only. A detection whose class and place could
    both be to blame is blamed for its place, as in TIDE's own code.
    """
    own, other = matches.best_iou, matches.other_iou
    blamed = {  # for the first that holds
        "localisation": (own >= background_iou) & (own < iou_threshold),
        "classification": other >= iou_threshold,
        "duplicate": own >= iou_threshold,
        "background": np.maximum(own, other) <= background_iou,
    }
    kind = np.select(list(blamed.values()), [KINDS.index(name) for name in blamed], KINDS.index("both"))
    return np.where(matches.at(iou_threshold).wrong, kind, -1)


def tide(matches: Matches, iou_threshold: float = 0.5, background_iou: float = 0.1) -> TideReport:
    """AP at one IoU threshold, and the gain from fixing all errors of one kind and nothing else.

    Fixing gives a wrong class or a loose box to the object it belongs to if no hit has that; of several errors at one
    object the best-scored is fixed and the rest go away. Errors of the other kinds go away, and missed objects are
    no longer counted. So no gain is negative; the gains do not add up to 1 - AP.

    Args:
        matches: matched at `iou_threshold` at least.
        iou_threshold: the IoU from which a detection counts as right.
        background_iou: up to this IoU a detection is on no object.
    """
    ground_truth, outcome = matches.ground_truth, matches.at(iou_threshold)
    kind = error_kinds(matches, iou_threshold, background_iou)
    wrong_class, loose = (kind == KINDS.index(name) for name in ("classification", "localisation"))
    object_of = np.select([wrong_class, loose], [matches.other_gt, matches.best_gt], -1)
    objects = np.arange(len(ground_truth.labels))
    used, reachable = np.isin(objects, outcome.matched[outcome.hit]), np.isin(objects, object_of)
    missed = ~used & ~reachable & ~ground_truth.crowd
    repairable = _best_for_object(object_of, matches, used)

    positives = matches.positives
    base = _average_precisions(matches.labels, matches.scores, outcome.hit, ~outcome.ignored, positives)
    misses = np.bincount(ground_truth.labels[missed], minlength=len(positives))
    better, counts = [], []
    for i, name in enumerate(KINDS):
        of_kind = kind == i  # of no detection where objects were missed
        changed = repairable & of_kind
        labels = np.where(changed, ground_truth.labels[object_of] if len(used) else 0, matches.labels)
        kept = ~outcome.ignored & ~of_kind | changed
        to_find = positives - misses if name == "missed" else positives
        counts.append(misses if name == "missed" else np.bincount(matches.labels[of_kind], minlength=len(positives)))
        better.append(_average_precisions(labels, matches.scores, outcome.hit | changed, kept, to_find))

    def errors_of(those: slice) -> ClassErrors:
        ap = mean(base[those])
        gain = Errors(*(difference(mean(fixed[those]), ap) for fixed in better))
        return ClassErrors(ap, gain, Errors(*(int(count[those].sum()) for count in counts)))

    per_class = {category: errors_of(slice(k, k + 1)) for k, category in enumerate(ground_truth.category_ids)}
    return TideReport(**vars(errors_of(slice(None))), per_class=per_class)


def _best_for_object(object_of: Ints, matches: Matches, used: Bools) -> Bools:
    """(N,) the best-scored detection, of equals the first in the file, of each object not used yet.

    Args:
        object_of: (N,) the object each detection would find, -1 for none.
        matches: the N detections.
        used: (G,) which objects are.
    """
    at = np.flatnonzero(object_of >= 0)
    at = at[~used[object_of[at]]]
    at = at[np.lexsort((matches.rows[at], -matches.scores[at]))]
    best = np.zeros(len(matches), dtype=bool)
    best[at[np.unique(object_of[at], return_index=True)[1]]] = True
    return best


def _average_precisions(labels: Ints, scores: Floats, hit: Bools, kept: Bools, positives: Ints) -> Floats:
    """(K,) COCO's AP of each class from its kept detections."""
    order = np.lexsort((-scores[kept], labels[kept]))
    return class_average_precisions(labels[kept][order], hit[kept][order], positives)
