"""Learning a calibration from held-out detections: isotonic regression or temperature scaling, and score thresholds."""

from collections.abc import Callable
from typing import Any, Literal

import numpy as np
from numpy.typing import ArrayLike

from tightbox.calibration import IOUS, PRECISIONS, Calibration, IouCalibration
from tightbox.errors import UserError
from tightbox.evaluation.figures import Bools, Floats
from tightbox.evaluation.isotonic import like_groups, monotone_steps
from tightbox.evaluation.matching import Matches
from tightbox.evaluation.reliability import finite_pairs

Method = Literal["isotonic", "temperature", "linear", "none"]

MIN_DETECTIONS = 20  # above a threshold; with fewer, their precision is an accident


def fit_calibration(matches: Matches, method: Method = "isotonic", **about: Any) -> Calibration:
    """Learn from held-out detections with their raw predicted IoUs; those in crowds do not count.

    The true IoU of a detection is that with the object of its class it overlaps most, found already or not.

    Args:
        matches: matched at all `IOUS`.
        method: `fit_isotonic`, `fit_temperature`, `fit_linear`, or "none" to keep predicted IoUs as they are.
        about: further facts to keep with it.

    Raises:
        UserError: if there are too few detections, or they have no predicted IoU.
    """
    counted = ~matches.at(IOUS[0]).ignored
    raw, true_ious = matches.ious[counted], matches.best_iou[counted]
    if len(raw) and np.isnan(raw).all():
        raise UserError("this detector predicts no IoU, so there is nothing to calibrate; choose one that does")
    return Calibration(
        ious=FITS[method](raw, true_ious),
        thresholds=tuple(_lowest_scores(matches, iou) for iou in IOUS),
        about={"method": method, "detections": len(raw)} | about,
    )


def fit_isotonic(raw: ArrayLike, true_ious: ArrayLike, *, minimum: int = 100, knots: int = 64) -> IouCalibration:
    """The rising map nearest to the pairs: isotonic regression, joined by lines through the middle of its steps.

    The pairs are averaged in at most `knots` groups of like predictions first, each of at least 10 pairs or so.

    Raises:
        UserError: if there are fewer than `minimum` pairs of finite numbers.
    """
    raw, true_ious = _enough_pairs(raw, true_ious, minimum)
    group = like_groups(raw, min(knots, len(raw) // 10))
    counts = np.bincount(group)
    at, iou = (np.bincount(group, weights=values) / counts for values in (raw, true_ious))
    middle, height = monotone_steps(at, iou, counts)
    return IouCalibration(tuple(middle.tolist()), tuple(height.clip(0, 1).tolist()))


def fit_temperature(raw: ArrayLike, true_ious: ArrayLike, *, minimum: int = 100, knots: int = 64) -> IouCalibration:
    """Temperature scaling of predicted IoUs in [0, 1]: sigmoid(logit / T), with T of the least cross-entropy.

    With one parameter it needs few pairs, but corrects only what T can. The map is tabulated at about `knots`.

    Raises:
        UserError: if there are fewer than `minimum` pairs of finite numbers.
    """
    from scipy.optimize import minimize_scalar
    from scipy.special import expit, logit

    raw, true_ious = _enough_pairs(raw, true_ious, minimum)
    logits = logit(np.clip(raw, 1e-6, 1 - 1e-6))

    def cross_entropy(log_temperature: float) -> float:
        z = logits / np.exp(log_temperature)
        return float(np.mean(np.logaddexp(0, z) - true_ious * z))

    temperature = np.exp(minimize_scalar(cross_entropy, bounds=(-4, 4), method="bounded").x)
    # Half of the knots are evenly spread before the scaling and half after, so both ends of it are followed.
    half = np.linspace(-12, 12, knots // 2)
    at = np.unique(np.concatenate([[0.0, 1.0], expit(half), expit(half * temperature)]))
    return IouCalibration(tuple(at.tolist()), tuple(expit(logit(at) / temperature).tolist()))


def fit_linear(raw: ArrayLike, true_ious: ArrayLike, *, minimum: int = 100) -> IouCalibration:
    """The rising line of least squares, cut off at 0 and 1; level where a falling one would fit better.

    Raises:
        UserError: if there are fewer than `minimum` pairs of finite numbers.
    """
    raw, true_ious = _enough_pairs(raw, true_ious, minimum)
    spread = float(np.var(raw))
    slope = max(0.0, float(np.mean((raw - raw.mean()) * (true_ious - true_ious.mean()))) / spread) if spread else 0.0
    offset = float(true_ious.mean()) - slope * float(raw.mean())
    # Knots where the line is cut off, too, so that it stays a line in between.
    cuts = [(bound - offset) / slope for bound in (0, 1)] if slope > 1e-9 else []
    at = np.unique([0.0, 1.0, *(cut for cut in cuts if 0 < cut < 1)])
    return IouCalibration(tuple(at.tolist()), tuple(np.clip(offset + slope * at, 0, 1).tolist()))


def keep_as_it_is(raw: ArrayLike, true_ious: ArrayLike, *, minimum: int = 100) -> IouCalibration:
    """The map that changes nothing in [0, 1].

    Raises:
        UserError: if there are fewer than `minimum` pairs of finite numbers.
    """
    _enough_pairs(raw, true_ious, minimum)
    return IouCalibration((0.0, 1.0), (0.0, 1.0))


FITS: dict[Method, Callable[..., IouCalibration]] = {  # the simplest first
    "none": keep_as_it_is,
    "linear": fit_linear,
    "temperature": fit_temperature,
    "isotonic": fit_isotonic,
}


def _lowest_scores(matches: Matches, iou: float) -> tuple[float | None, ...]:
    outcome = matches.at(iou)
    counted = ~outcome.ignored
    scores: Floats = matches.scores[counted]
    hit: Bools = outcome.hit[counted]
    order = np.argsort(-scores, kind="stable")
    scores, hit = scores[order], hit[order]
    # A threshold takes all detections of one score or none: only the last of equal scores ends a choice.
    ends = np.flatnonzero(np.diff(scores, append=-np.inf))
    ends = ends[ends + 1 >= MIN_DETECTIONS]
    precision = np.cumsum(hit)[ends] / (ends + 1)
    best_from_here = np.maximum.accumulate(precision[::-1])[::-1]
    last = [int(np.count_nonzero(best_from_here >= wanted - 1e-9)) - 1 for wanted in PRECISIONS]
    return tuple(float(scores[ends[i]]) if i >= 0 else None for i in last)


def _enough_pairs(raw: ArrayLike, true_ious: ArrayLike, minimum: int) -> tuple[Floats, Floats]:
    raw, true_ious = finite_pairs(raw, true_ious)
    if len(raw) < minimum:
        raise UserError(
            f"calibration needs at least {minimum} detections with a predicted IoU, but there are {len(raw)}; "
            "calibrate on more images"
        )
    return raw, true_ious
