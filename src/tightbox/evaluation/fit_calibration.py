"""Learning a calibration from held-out detections: a map of predicted IoUs, and score thresholds.

The map is by isotonic regression, temperature scaling or a line. Which of them the detections can support is judged on
images that the map did not learn from.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import ArrayLike

from tightbox.calibration import IOUS, PRECISIONS, Calibration, IouCalibration
from tightbox.errors import UserError
from tightbox.evaluation.figures import Floats, Ints
from tightbox.evaluation.matching import Matches
from tightbox.evaluation.reliability import finite_pairs

Method = Literal["isotonic", "temperature", "linear", "none"]

MIN_DETECTIONS = 20  # above a threshold; with fewer, their precision is an accident
FOLDS = 5
MIN_PER_FOLD = 20  # boxes to learn from; with fewer, nothing is changed


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
    about = {"method": method, "detections": len(raw)} | about
    return Calibration(FITS[method](raw, true_ious), tuple(_lowest_scores(matches, iou) for iou in IOUS), about)


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


@dataclass(frozen=True, eq=False)
class MapChoice:
    """The map to use, and what each would predict for images it did not learn from.

    Attributes:
        method: the simplest one that no other beats by more than chance.
        unseen: (N,) predictions of each method, each box's by a map that was fitted without its image.
        true_ious: (N,) what they should be.
    """

    method: Method
    unseen: dict[Method, Floats]
    true_ious: Floats

    def squared_error(self, method: Method) -> float:
        """Mean squared error of a method on unseen images."""
        return float(np.mean((self.unseen[method] - self.true_ious) ** 2))


def choose_map(matches: Matches, iou_threshold: float = 0.5, *, seed: int = 0) -> MapChoice:
    """The choice for the detections of `fit_calibration`; `matches` are matched at `iou_threshold` at least."""
    counted = ~matches.at(iou_threshold).ignored
    return choose_of_pairs(matches.ious[counted], matches.best_iou[counted], matches.images[counted], seed=seed)


def choose_of_pairs(raw: ArrayLike, true_ious: ArrayLike, images: ArrayLike, *, seed: int = 0) -> MapChoice:
    """The choice for predictions, by cross-validation over images.

    A map is preferred to a simpler one only if its squared error on unseen images is less by more than one standard
    error of that difference, between images. With fewer than `FOLDS` images nothing is changed.

    Args:
        raw: (N,) raw predicted IoUs; pairs that are not finite are left out.
        true_ious: (N,) true IoUs.
        images: (N,) image of each: boxes of one image are alike, and never learned from and judged at once.
        seed: of the folds.
    """
    images = np.asarray(images)[np.isfinite(raw) & np.isfinite(true_ious)]
    raw, true_ious = finite_pairs(raw, true_ious)
    names, of_image = np.unique(images, return_inverse=True)
    fold = (np.random.default_rng(seed).permutation(len(names)) % FOLDS)[of_image]
    folds = [fold == k for k in range(FOLDS)]
    if len(names) < FOLDS or min(np.count_nonzero(~held) for held in folds) < MIN_PER_FOLD:
        return MapChoice("none", {"none": raw.clip(0, 1)}, true_ious)
    unseen: dict[Method, Floats] = {}
    for method, fit in FITS.items():
        unseen[method] = np.empty_like(raw)
        for held in folds:
            unseen[method][held] = fit(raw[~held], true_ious[~held], minimum=1)(raw[held])
    chosen: Method = "none"
    for method in unseen:
        better = (unseen[chosen] - true_ious) ** 2 - (unseen[method] - true_ious) ** 2
        by_image = np.bincount(of_image, weights=better, minlength=len(names))
        if by_image.mean() > by_image.std(ddof=1) / np.sqrt(len(names)):
            chosen = method
    return MapChoice(chosen, unseen, true_ious)


def like_groups(values: Floats, most: int) -> Ints:
    """(N,) a number from 0 on for each group of like values, at most so many; equal values are never parted."""
    edges = np.unique(np.quantile(values, np.linspace(0, 1, max(1, most) + 1)[1:-1]))
    return np.asarray(np.unique(np.searchsorted(edges, values, side="right"), return_inverse=True)[1])


def monotone_steps(at: Floats, heights: Floats, counts: Ints, *, rising: bool = True) -> tuple[Floats, Floats]:
    """The nearest heights that never fall (or rise): where the middle of each step lies, and its height.

    Args:
        at: (G,) where each group lies, ascending.
        heights: (G,) of each.
        counts: (G,) how many values each is the mean of.
        rising: whether heights may rise only; they may fall only otherwise.
    """
    from scipy.optimize import isotonic_regression

    fit = isotonic_regression(heights, weights=counts, increasing=rising)
    steps = fit.blocks[:-1]
    return np.add.reduceat(at * counts, steps) / np.add.reduceat(counts, steps), fit.x[steps]


def _lowest_scores(matches: Matches, iou: float) -> tuple[float | None, ...]:
    outcome = matches.at(iou)
    counted = np.flatnonzero(~outcome.ignored)
    order = counted[np.argsort(-matches.scores[counted], kind="stable")]
    scores, hit = matches.scores[order], outcome.hit[order]
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
        needed = f"at least {minimum} detections with a predicted IoU"
        raise UserError(f"calibration needs {needed}, but there are {len(raw)}; calibrate on more images")
    return raw, true_ious
