"""Learning a score threshold that misses few objects, with a stated confidence.

The objects missed at a threshold are those without a matched detection of at least this score, so their fraction never
falls as the threshold rises. Thresholds are tested from the lowest on, each for the hypothesis that too many objects
are missed, until one cannot be rejected (fixed sequence testing: Angelopoulos et al., "Learn then Test", 2021). The
test is the exact one for a binomial count (Clopper and Pearson), which takes objects to be independent. They are not:
an image that is hard is hard for all of its objects. So a second bound must hold as well, Student's for a ratio of sums
over images, which takes only images to be independent and is right for many of them. Of few images, and while nothing
is missed, it would know no spread; so one more image is added, of mean size, all of it missed.
"""

import numpy as np
from scipy.stats import binom, t

from tightbox.errors import UserError
from tightbox.evaluation.figures import Floats, Ints
from tightbox.evaluation.matching import Matches, rank_in_group
from tightbox.promises import MissBound


def object_scores(matches: Matches, at_iou: float = 0.5) -> Floats:
    """(G,) the score of the detection that found each object, crowds aside; -∞ for an object that was not found."""
    outcome = matches.at(at_iou)
    scores = np.full(len(matches.ground_truth.labels), -np.inf)
    scores[outcome.matched[outcome.hit]] = matches.scores[outcome.hit]
    return scores[~matches.ground_truth.crowd]


def fit_miss_bound(matches: Matches, miss: float, delta: float = 0.1, at_iou: float = 0.5) -> MissBound:
    """The bound for held-out detections; `matches` are matched at `at_iou` at least, the rest is `bound_of_scores`."""
    truth = matches.ground_truth
    return bound_of_scores(object_scores(matches, at_iou), truth.images[~truth.crowd], miss, delta, at_iou)


def bound_of_scores(scores: Floats, images: Ints, miss: float, delta: float = 0.1, at_iou: float = 0.5) -> MissBound:
    """The highest threshold at which, with probability 1 - delta, at most the fraction `miss` of objects is missed.

    Args:
        scores: (G,) `object_scores` of held-out images.
        images: (G,) image of each object.
        miss: fraction of objects that may be missed, in (0, 1).
        delta: probability with which the promise may fail, in (0, 1).
        at_iou: IoU from which an object counts as found.

    Raises:
        UserError: if a number is out of range, or no threshold can promise that.
    """
    for name, value in (("miss", miss), ("delta", delta)):
        if not 0 < value < 1:
            raise UserError(f"{name} is {value:g}; it must be more than 0 and less than 1, such as 0.1")
    promise = f"to promise at most {miss:g} missed with probability {1 - delta:g}"
    more = "calibrate on more images, or ask for less"
    order = np.argsort(scores, kind="stable")
    scores = scores[order]
    allowed = misses_allowed(len(scores), miss, delta)
    if allowed < 0:
        needed = int(np.ceil(np.log(delta) / np.log1p(-miss)))
        raise UserError(f"{promise} takes at least {needed} objects, but there are {len(scores)}; {more}")
    too_many = np.flatnonzero(_bounds_by_image(images[order], delta) > miss)
    if len(too_many) and too_many[0] == 0:
        raise UserError(f"{promise} takes objects of more than {len(np.unique(images))} images; {more}")
    allowed = min(allowed, int(too_many[0]) - 1 if len(too_many) else allowed)
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
    k = int(binom.ppf(delta, objects, miss)) if objects else -1
    while k >= 0 and binom.cdf(k, objects, miss) > delta:
        k -= 1
    return k


def _bounds_by_image(images: Ints, delta: float) -> Floats:
    """(G,) upper bound on the missed fraction if the first k = 0, 1, ... objects are missed.

    With m of n objects missed in an image and r = Σm / Σn: r + t · √(K / (K - 1) · Σ(m - r n)²) / Σn over K images, of
    which one is added: as large as the mean of the others, and missed.
    """
    names, of_image, counts = np.unique(images, return_inverse=True, return_counts=True)
    number, added, sizes = len(names) + 1, len(images) / len(names), counts.astype(np.float64)
    earlier = rank_in_group(of_image)  # how many objects of the same image are missed before each
    m_m = added**2 + np.concatenate([[0.0], np.cumsum(2 * earlier + 1)[:-1]])
    m_n = added**2 + np.concatenate([[0.0], np.cumsum(sizes[of_image])[:-1]])
    n_n = added**2 + (sizes**2).sum()
    total = len(images) + added
    ratio = (np.arange(len(images)) + added) / total
    squares = np.maximum(m_m - 2 * ratio * m_n + ratio**2 * n_n, 0)
    spread = np.sqrt(number / (number - 1) * squares) / total
    return np.asarray(ratio + t.ppf(1 - delta, number - 1) * spread)
