"""What is known of every ground-truth box: the detections it got, the tightest box there was, and why it was missed."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np

from tightbox.evaluation.coco import size_index
from tightbox.evaluation.figures import Bools, Floats, Ints
from tightbox.evaluation.ladder import ON_OBJECT
from tightbox.evaluation.matching import Matches, overlapping_pairs

if TYPE_CHECKING:
    from tightbox.inference.before_suppression import BestCandidates

MIN_IOU_GAIN = 0.01  # less than this is no tighter box
SAME_IOU = 1e-3  # a candidate this little tighter than a detection is that detection: its box was rounded


@dataclass(frozen=True, eq=False)
class Evidence:
    """The best matches of each of G ground-truth boxes among N detections and, where they are known, the candidates.

    A detection is named by its position in `matches`, -1 for none; an IoU is 0 for none. Of crowds nothing is asked.

    Attributes:
        matches: the detections, matched at IoU 0.5 among others.
        candidates: the tightest candidate of each ground-truth box; None where candidates are not known.
        kept: (G,) the detection that found it at IoU 0.5, and `kept_iou`.
        nearest: (G,) the tightest detection of its class, and `nearest_iou`.
        best_iou: (G,) IoU of the tightest box there was, detection or candidate.
        from_candidates: (G,) whether that box is a candidate that is not among the detections.
    """

    matches: Matches
    candidates: BestCandidates | None
    kept: Ints
    kept_iou: Floats
    nearest: Ints
    nearest_iou: Floats
    best_iou: Floats
    from_candidates: Bools

    @property
    def objects(self) -> Bools:
        """(G,) what there is to find: all but crowds."""
        return ~self.matches.ground_truth.crowd

    @cached_property
    def iou_gain(self) -> Floats:
        """(G,) by how much the tightest box there was is tighter than the kept one."""
        return self.best_iou - self.kept_iou

    @cached_property
    def had_better_box(self) -> Bools:
        """(G,) objects that were found, by a box that is clearly not the tightest there was."""
        return self.objects & (self.kept >= 0) & (self.iou_gain >= MIN_IOU_GAIN)

    @cached_property
    def missed(self) -> Bools:
        """(G,) objects that no detection of their class is on."""
        return self.objects & (self.nearest_iou < ON_OBJECT)

    @cached_property
    def suppressed(self) -> Bools:
        """(G,) missed objects that a candidate of their class was on, with a score above the threshold."""
        return self.missed & (False if self.candidates is None else self.candidates.ious >= ON_OBJECT)

    @cached_property
    def scored_low(self) -> Bools:
        """(G,) missed objects that only candidates of a lower score, or of another class, were on."""
        anything = False if self.candidates is None else self.candidates.any_ious >= ON_OBJECT
        return self.missed & ~self.suppressed & anything

    @cached_property
    def object_sizes(self) -> Ints:
        """(G,) position in `SIZES` of each ground-truth box."""
        return size_index(self.matches.ground_truth.areas)

    @cached_property
    def detection_sizes(self) -> Ints:
        """(N,) position in `SIZES` of each detection."""
        return size_index(self.matches.boxes[:, 2:].prod(axis=1))

    @cached_property
    def box_areas(self) -> Floats:
        """(G,) pixels of each ground-truth box; not of its mask, which sizes go by, as the box is what is shown."""
        return np.asarray(self.matches.ground_truth.boxes[:, 2:].prod(axis=1))


def gather_evidence(matches: Matches, candidates: BestCandidates | None) -> Evidence:
    """The best matches of every ground-truth box.

    Args:
        matches: the detections, matched at IoU 0.5 among others.
        candidates: the tightest candidate of each ground-truth box, where candidates are known.
    """
    objects = len(matches.ground_truth.labels)
    outcome = matches.at(ON_OBJECT)
    kept, kept_iou = np.full(objects, -1), np.zeros(objects)
    hits = np.flatnonzero(outcome.hit)
    kept[outcome.matched[hits]], kept_iou[outcome.matched[hits]] = hits, outcome.ious[hits]
    nearest, nearest_iou = np.full(objects, -1), np.zeros(objects)
    # A detection may be the nearest of several objects, and of one that is not the nearest to it.
    for detection, target, overlap in overlapping_pairs(matches.images, matches.boxes, matches.ground_truth):
        tighter = (matches.labels[detection] == matches.ground_truth.labels[target]) & (overlap > nearest_iou[target])
        rising = np.flatnonzero(tighter)[np.argsort(overlap[tighter], kind="stable")]  # the largest is written last
        nearest[target[rising]], nearest_iou[target[rising]] = detection[rising], overlap[rising]
    best_iou, from_candidates = nearest_iou, np.zeros(objects, dtype=bool)
    if candidates is not None:
        # A candidate as tight as the nearest detection is that detection, which was out-ranked and not suppressed.
        from_candidates = candidates.ious > nearest_iou + SAME_IOU
        best_iou = np.where(from_candidates, candidates.ious, nearest_iou)
    return Evidence(matches, candidates, kept, kept_iou, nearest, nearest_iou, best_iou, from_candidates)
