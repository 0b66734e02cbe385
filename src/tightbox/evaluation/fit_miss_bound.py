"""Learning a score threshold that misses few objects, with a stated confidence.

The objects missed at a threshold are those without a matched detection of at least this score, so their fraction never
falls as the threshold rises. Thresholds are tested from the lowest on, each for the hypothesis that too many objects
are missed, until one cannot be rejected (fixed sequence testing: Angelopoulos et al., "Learn then Test", 2021). The
test is the exact one for a binomial count (Clopper and Pearson), which takes objects to be independent.
"""

from __future__ import annotations

import numpy as np

from tightbox.errors import UserError
from tightbox.evaluation.figures import Floats
from tightbox.evaluation.matching import Matches
from tightbox.miss_bound import MissBound


def object_scores(matches: Matches, at_iou: float = 0.5) -> Floats:
    """(G,) the score of the detection that found each object, crowds aside; -∞ for an object that was not found."""
    outcome = matches.at(at_iou)
    scores = np.full(len(matches.ground_truth.labels), -np.inf)
    scores[outcome.matched[outcome.hit]] = matches.scores[outcome.hit]
    return scores[~matches.ground_truth.crowd]


def fit_miss_bound(matches: Matches, miss: float, delta: float = 0.1, at_iou: float = 0.5) -> MissBound:
    """The highest threshold at which, with probability 1 - delta, at most the fraction `miss` of objects is missed.

    Args:
        matches: held-out detections, matched at `at_iou` at least.
        miss: fraction of objects that may be missed, in (0, 1).
        delta: probability with which the promise may fail, in (0, 1).
        at_iou: IoU from which an object counts as found.

    Raises:
        UserError: if a number is out of range, or no threshold can promise that.
    """
    for name, value in (("miss", miss), ("delta", delta)):
        if not 0 < value < 1:
            raise UserError(f"{name} is {value:g}; it must be more than 0 and less than 1, such as 0.1")
    scores = np.sort(object_scores(matches, at_iou))
    allowed = misses_allowed(len(scores), miss, delta)
    if allowed < 0:
        needed = int(np.ceil(np.log(delta) / np.log1p(-miss)))
        raise UserError(
            f"to promise at most {miss:g} missed with probability {1 - delta:g} takes at least {needed} objects, but "
            f"there are {len(scores)}; calibrate on more images, or ask for less"
        )
    threshold = float(scores[allowed])
    if threshold == -np.inf:
        missed = int(np.count_nonzero(scores == -np.inf))
        raise UserError(
            f"{missed} of {len(scores)} objects are missed at every score, too many to promise at most {miss:g} with "
            f"probability {1 - delta:g}, which allows {allowed}; allow more, or train the detector longer"
        )
    return MissBound(miss, delta, at_iou, threshold, len(scores), int(np.count_nonzero(scores < threshold)))


def misses_allowed(objects: int, miss: float, delta: float) -> int:
    """The most misses among so many objects with which the upper confidence bound is at most `miss`; -1 for none.

    That is the largest k with P(Binomial(objects, miss) ≤ k) ≤ delta.
    """
    from scipy.stats import binom

    k = int(binom.ppf(delta, objects, miss)) if objects else -1
    while k >= 0 and binom.cdf(k, objects, miss) > delta:
        k -= 1
    return k
