"""Learning margins from held-out detections by split conformal prediction.

The score of a matched detection is how far the object's side lies outside the box's side, for each of the four, in
units of the box. The margins are a quantile of these scores, with a correction for how few images there are: boxes of
one image are alike, so that only images can be exchanged. Of n scores in K images it is the ⌈n (K + 1) / K (1 - α)⌉-th
smallest, which leaves room for the scores of one more image: exact for equally many boxes in each image, and the usual
⌈(n + 1)(1 - α)⌉ for one.
The four sides hold together either by Bonferroni's correction (each at 1 - α/4) or because the quantile is that of the
largest of the four, once they are made comparable.

What makes margins narrow, the factor by predicted IoU and the proportions of the sides, is learned on one half of the
images, and the quantile taken on the other: given the first half, the scores of the second are exchangeable with those
of new images, whatever was learned.

Lee, Barber and Willett, "Distribution-free inference with hierarchical data", 2023, have the correction. Timans et
al., "Adaptive Bounding Box Uncertainties via Two-Step Conformal Prediction", ECCV 2024, and Andéol et al.,
"Conformal Object Detection by Sequential Risk Control", 2025, have the scores of the sides; the factor is our own.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal, Self

import numpy as np

from tightbox.errors import UserError
from tightbox.evaluation.figures import Bools, Columns, Floats, Ints
from tightbox.evaluation.fit_calibration import like_groups, monotone_steps
from tightbox.evaluation.matching import Matches
from tightbox.promises import OUTWARD, Margins, Unit, grown

Simultaneous = Literal["max", "bonferroni"]
Sides = tuple[float, float, float, float]
Factors = tuple[tuple[float, ...], tuple[float, ...]]  # knots and values of `Margins.raw` and `Margins.factors`

AT_IOU = 0.5  # from which a detection is matched to an object
MIN_BOXES = 25  # that proportions of the sides are learned from
PER_GROUP = 100  # boxes of like predicted IoU that a factor is learned from: fewer give noise, which widens margins
MAX_GROUPS = 12
FOLDS = 4
CONSTANT: Factors = ((0.0,), (1.0,))  # the factor that changes nothing
LEAST_MARGIN = 1e-6  # of all classes together, where each has a multiple of it for its own
LEAST_FACTOR = 1e-3  # of a box's size: no predicted IoU earns a box that is exact
ROUNDING = 0.01  # pixels; the boxes of both sides were rounded or were float32


@dataclass(frozen=True, eq=False)
class MatchedBoxes(Columns):
    """Detections that were matched to an object, as the margins see them.

    Attributes:
        boxes: (N, 4) xyxy.
        errors: (N, 4) by how many pixels the object's left, top, right, bottom side lies outside the box's.
        raw: (N,) raw predicted IoUs, NaN for none.
        labels: (N,) positions in the class names they were asked for.
        images: (N,) image of each.
    """

    boxes: Floats
    errors: Floats
    raw: Floats
    labels: Ints
    images: Ints

    def of(self, inner: bool) -> Self:
        """For inner boxes the same with errors inwards, so that margins of both kinds are learned alike."""
        return replace(self, errors=-self.errors) if inner else self


def matched_boxes(matches: Matches, class_names: Sequence[str] | None = None, at_iou: float = AT_IOU) -> MatchedBoxes:
    """The detections that found an object.

    Args:
        matches: matched at `at_iou` at least, with raw predicted IoUs.
        class_names: the classes in the order of a detector's labels; that of the ground truth if not given.
        at_iou: IoU from which a detection is matched.
    """
    outcome, truth = matches.at(at_iou), matches.ground_truth
    hit = outcome.hit
    boxes, objects = _corners(matches.boxes[hit]), _corners(truth.boxes[outcome.matched[hit]])
    order = {name: label for label, name in enumerate(class_names or truth.class_names)}
    to_label = np.array([order.get(name, -1) for name in truth.class_names], dtype=np.int64)
    labels = to_label[matches.labels[hit]]
    return MatchedBoxes(boxes, (objects - boxes) * OUTWARD, matches.ious[hit], labels, matches.images[hit])


def fit_margins(
    found: MatchedBoxes,
    coverage: float,
    unit: Unit = "iou",
    *,
    inner: bool = False,
    classes: int = 0,
    simultaneous: Simultaneous = "max",
    seed: int = 0,
    **about: Any,
) -> Margins:
    """Margins with which at least this fraction of objects is to lie within the outer box of their detection.

    Args:
        found: held-out detections that were matched.
        coverage: the probability, in (0, 1).
        unit: what margins are multiples of.
        inner: margins of inner boxes instead, which are to lie within their object.
        classes: of how many classes each is to have margins of its own, if it has enough boxes; 0 for none.
        simultaneous: how the four sides are to hold together.
        seed: of the choice of the half of the images that the quantile is taken from.
        about: further facts to keep with them.

    Raises:
        UserError: if the coverage is out of range, there are too few boxes for it, or predicted IoUs are missing.
    """
    if not 0 < coverage < 1:
        raise UserError(f"the coverage is {coverage:g}; it must be more than 0 and less than 1, such as 0.9")
    if unit == "iou" and np.isnan(found.raw).any():
        raise UserError("margins by predicted IoU need one for each box; choose margins by size instead")
    images = np.unique(found.images)  # in two halves, which never part the boxes of one image
    first = np.isin(found.images, np.random.default_rng(seed).permutation(images)[: len(images) // 2])
    shape, rest = (found.of(inner)[half] for half in (first, ~first))
    if (held := len(np.unique(rest.images))) < (needed := images_needed(coverage, simultaneous)):
        what = f"{needed} images with matched boxes in the half that the quantile is taken from, but there are {held}"
        fix = "calibrate on more images, or ask for less"
        raise UserError(f"a coverage of {coverage:g} needs at least {what}; {fix}")
    # Without a first half all sides and all predicted IoUs count alike, which is no less valid.
    factors = _helpful_factors(shape, coverage, inner, seed) if unit == "iou" else ((), ())
    plain = _plain(coverage, unit, factors)
    sides, scores = _sides(plain, shape, rest, simultaneous, least=LEAST_MARGIN if classes else 0.0)
    own = _of_classes(scores, rest, classes, coverage, simultaneous)
    without = [label for label, value in enumerate(own) if value is None]
    facts: dict[str, Any] = {"boxes": len(rest), "shape_boxes": len(shape), "simultaneous": simultaneous}
    facts |= {"classes_without_own": without} if classes else {}
    return replace(plain, sides=sides, classes=own, about=facts | about)


def images_needed(coverage: float, simultaneous: Simultaneous = "max") -> int:
    """The least number K of images with (K + 1) / K (1 - α) ≤ 1, below which no finite margin would do."""
    return max(1, math.ceil(1 / _allowed(coverage, simultaneous) - 1e-9) - 1)


def covered(found: MatchedBoxes, margins: Margins, *, inner: bool = False) -> Bools:
    """(N,) whether all four sides of the object are within the outer box (or the inner box within the object)."""
    return np.asarray((_scores(found.of(inner), margins) <= 1 + 1e-9).all(axis=1))


def outer_coverage(matches: Matches, outer: Floats, at_iou: float = AT_IOU) -> tuple[int, int]:
    """The number of matched detections whose outer box holds the object, and that of all matched ones.

    Args:
        matches: matched at `at_iou` at least.
        outer: (N, 4) xyxy outer boxes in the order of the predictions.
        at_iou: IoU from which a detection is matched.
    """
    outcome = matches.at(at_iou)
    objects = _corners(matches.ground_truth.boxes[outcome.matched[outcome.hit]])
    beyond = (objects - outer[matches.rows[outcome.hit]]) * OUTWARD
    return int((beyond <= ROUNDING).all(axis=1).sum()), len(objects)


def relative_area(found: MatchedBoxes, margins: Margins, *, inner: bool = False) -> float:
    """Mean area of the outer (or inner) boxes in areas of the boxes; NaN without any.

    Timans et al. and Andéol et al. call it (or its root) stretch.
    """
    distances = margins.distances(found.boxes, found.raw, found.labels)
    moved = grown(found.boxes, -distances if inner else distances)
    areas = [(boxes[:, 2:] - boxes[:, :2]).prod(axis=1) for boxes in (moved, found.boxes)]
    there = areas[1] > 0
    return float(np.mean(areas[0][there] / areas[1][there])) if there.any() else float("nan")


def _plain(coverage: float, unit: Unit, factors: Factors = ((), ())) -> Margins:
    """Margins of one unit on each side, for all classes together."""
    return Margins(coverage, unit, (1.0,) * 4, (), *factors, {})


def _scores(found: MatchedBoxes, margins: Margins) -> Floats:
    """(N, 4) how far each side would have to be moved, in margins of these; infinite where such a margin is nothing."""
    units = margins.distances(found.boxes, found.raw, found.labels)
    without = np.where(found.errors > 1e-9, np.inf, 0.0)
    return np.divide(found.errors, units, out=without, where=units > 0)


def _helpful_factors(shape: MatchedBoxes, coverage: float, inner: bool, seed: int) -> Factors:
    """The factors, or a constant one if they make outer boxes no smaller (inner boxes no larger) on unseen images.

    That is judged within the first half, by cross-validation over its images, at equal coverage.
    """
    if len(shape) < 2 * PER_GROUP:
        return CONSTANT
    images = np.unique(shape.images)
    fold = (np.random.default_rng(seed).permutation(len(images)) % FOLDS)[np.searchsorted(images, shape.images)]
    areas: dict[bool, list[float]] = {True: [], False: []}
    for k in range(FOLDS):
        learn, held = shape[fold != k], shape[fold == k]
        if len(np.unique(held.images)) < images_needed(coverage):
            return CONSTANT
        for scaled in areas:
            plain = _plain(coverage, "iou", _factors(learn, coverage) if scaled else CONSTANT)
            sides, _ = _sides(plain, learn, held, "max")
            if np.isfinite(sides).all():
                areas[scaled].append(relative_area(held, replace(plain, sides=sides), inner=inner))
    gain = (np.sum(areas[False]) - np.sum(areas[True])) * (-1 if inner else 1)
    return _factors(shape, coverage) if len(areas[True]) == len(areas[False]) and gain > 1e-6 else CONSTANT


def _factors(shape: MatchedBoxes, coverage: float) -> Factors:
    """Knots of the factor: in groups of like predicted IoU, the quantile of the largest of the four scores, falling.

    So every predicted IoU gets about the margin that it needs, and none pays for the least trusted boxes.
    """
    worst = np.clip(_scores(shape, _plain(coverage, "size")).max(axis=1), 0, None)
    group = like_groups(shape.raw, min(MAX_GROUPS, len(shape) // PER_GROUP))
    counts = np.bincount(group)
    members = [group == i for i in range(len(counts))]
    at = np.array([shape.raw[m].mean() for m in members])
    height = np.array([np.quantile(worst[m], coverage) for m in members])
    middle, factor = monotone_steps(at, np.where(np.isfinite(height), height, 1.0), counts, rising=False)
    return tuple(middle.tolist()), tuple(np.maximum(factor, LEAST_FACTOR).tolist())


def _sides(
    plain: Margins, shape: MatchedBoxes, rest: MatchedBoxes, simultaneous: Simultaneous, least: float = 0.0
) -> tuple[Sides, Floats]:
    """The four sides: their proportions by `shape`, their size by `rest`, whose scores (N, 4) are in proportions."""
    proportions = _proportions(_scores(shape, plain), plain.coverage)
    scores = _scores(rest, plain) / proportions
    sides = proportions * np.maximum(_quantile(scores, rest.images, plain.coverage, simultaneous), least)
    return tuple(sides.tolist()), scores


def _proportions(scores: Floats, coverage: float) -> Floats:
    """(4,) the quantile of each side's scores, so that no side widens the margins of the others; 1 without boxes."""
    if len(scores) < MIN_BOXES:
        return np.ones(4)
    finite = np.where(np.isfinite(scores), scores, np.nanmax(np.where(np.isfinite(scores), scores, 0), initial=1.0))
    each = np.quantile(finite, 1 - (1 - coverage) / 4, axis=0)
    largest = max(float(each.max()), LEAST_FACTOR)
    return np.asarray(np.maximum(each, 0.05 * largest))


def _quantile(scores: Floats, images: Ints, coverage: float, simultaneous: Simultaneous) -> Floats:
    """(4,) the conformal quantile of (N, 4) scores from enough images (N,), of each side or of their largest."""
    if simultaneous == "max":
        scores = scores.max(axis=1, keepdims=True).repeat(4, axis=1)
    corrected = 1 + 1 / len(np.unique(images))
    rank = math.ceil(len(scores) * corrected * (1 - _allowed(coverage, simultaneous)) - 1e-9)
    return np.asarray(np.sort(scores, axis=0)[rank - 1])


def _allowed(coverage: float, simultaneous: Simultaneous) -> float:
    """The fraction of the scores of a side, or of the largest ones, that may lie above their quantile."""
    return (1 - coverage) / (4 if simultaneous == "bonferroni" else 1)


def _of_classes(
    scores: Floats, rest: MatchedBoxes, classes: int, coverage: float, simultaneous: Simultaneous
) -> tuple[float | None, ...]:
    """What the margins of all are multiplied with for each class; None for one in too few images for its own."""
    pooled = _quantile(scores, rest.images, coverage, simultaneous).clip(LEAST_MARGIN)
    own: list[float | None] = []
    for label in range(classes):
        of_class = rest.labels == label
        part, images = scores[of_class], rest.images[of_class]
        if len(np.unique(images)) < images_needed(coverage, simultaneous):
            own.append(None)
        else:  # the largest ratio of the four sides: with "max" they are all the same
            own.append(float((_quantile(part, images, coverage, simultaneous).clip(0) / pooled).max()))
    return tuple(own)


def _corners(boxes: Floats) -> Floats:
    return np.concatenate([boxes[:, :2], boxes[:, :2] + boxes[:, 2:]], axis=1)
