"""AP from a matching, overall, by class and by object size: a fraction of a second for half a million detections."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import numpy as np

from tightbox.calibration import IOUS
from tightbox.diagnosis.numbers import CURVE, SIZES, Aps
from tightbox.evaluation.matching import Bools, Floats, Ints, Matches
from tightbox.evaluation.tide import average_precision

AREA_LIMITS = (32.0**2, 96.0**2)  # pixels, of COCO's small and medium objects at most


def sizes_of(areas: Floats) -> Ints:
    """(N,) position in `SIZES` of objects of these areas in pixels."""
    return np.searchsorted(AREA_LIMITS, areas)


def average_precisions(
    matches: Matches, names: Sequence[str], truth_sizes: Ints, found_sizes: Ints, asked_for: Bools | None = None
) -> Aps:
    """COCO's AP, with one difference: the sizes are judged on the matching of all sizes together.

    So a detection that could have had an object of the right size may be given to one of another, which COCO prevents.
    AP over all sizes is COCO's.

    Args:
        matches: matched at all IoUs from 0.50 to 0.95.
        names: of the K classes.
        truth_sizes: (G,) of the ground-truth boxes.
        found_sizes: (N,) of the detections, in the order of the matches.
        asked_for: (G,) which ground-truth boxes there are to find; all of them but crowds by default.
    """
    truth = matches.truth
    wanted = ~truth.crowd if asked_for is None else asked_for & ~truth.crowd
    sizes = np.append(truth_sizes, -1)  # of what a detection without a ground-truth box was matched to
    table = np.empty((1 + len(SIZES), len(IOUS), len(names)))
    for group in range(len(table)):
        size = group - 1
        counted = wanted if size < 0 else wanted & (truth_sizes == size)
        positives = np.bincount(truth.labels[counted], minlength=len(names))
        for level, iou in enumerate(IOUS):
            outcome = matches.at(iou)
            kept = ~outcome.ignored
            if size >= 0:
                kept &= np.where(outcome.hit, sizes[outcome.truth], found_sizes) == size
            table[group, level] = _of_classes(matches, outcome.hit, kept, positives)
    return Aps(
        ap=_mean(table[0]),
        by_iou={str(iou): _mean(table[0, IOUS.index(iou / 100)]) for iou in CURVE},
        by_size={size: _mean(table[1 + i]) for i, size in enumerate(SIZES)},
        by_class={name: _mean(table[0, :, k]) for k, name in enumerate(names)},
    )


def _of_classes(matches: Matches, hit: Bools, kept: Bools, positives: Ints) -> Floats:
    """(K,) AP of each class; the matches are in the order of classes and scores already."""
    starts = np.searchsorted(matches.labels, np.arange(len(positives) + 1))
    parts = [slice(start, stop) for start, stop in pairwise(starts)]
    return np.array(
        [average_precision(hit[part][kept[part]], n) for part, n in zip(parts, positives.tolist(), strict=True)]
    )


def _mean(aps: Floats) -> float | None:
    there = aps[~np.isnan(aps)]
    return float(there.mean()) if there.size else None
