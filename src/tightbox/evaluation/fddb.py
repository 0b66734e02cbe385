"""FDDB's discrete and continuous score ROC curves.

FDDB: A Benchmark for Face Detection in Unconstrained Settings, technical report UM-CS-2010-009,
https://people.cs.umass.edu/~elm/papers/fddb.pdf, section 5.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import linear_sum_assignment

from tightbox.errors import UserError, import_extra
from tightbox.files import atomic_path

Array = NDArray[np.float64]
Arrays = Sequence[NDArray[Any]]
KINDS = ("discrete", "continuous")


@dataclass(frozen=True, eq=False)
class FddbCurves:
    """Both ROC curves, one point for every score that some detection has, from the highest to the lowest.

    Attributes:
        faces: number of annotated faces.
        thresholds: (T,) the scores: a point counts the detections that reach it.
        false_positives: (T,) detections that no face of an IoU above 0.5 belongs to, of all images together. Both
            curves are drawn over these.
        discrete: (T,) fraction of the faces that were found: matched with an IoU above 0.5.
        continuous: (T,) sum of the IoUs of all matches over the number of faces.
    """

    faces: int
    thresholds: Array
    false_positives: NDArray[np.int64]
    discrete: Array
    continuous: Array

    def at(self, false_positives: int) -> tuple[float, float]:
        """The highest discrete and continuous rate with at most so many false positives; 0 if there is no such point.

        >>> curves = FddbCurves(2, np.array([0.9, 0.8]), np.array([0, 3]), np.array([0.5, 1.0]), np.array([0.4, 0.8]))
        >>> curves.at(2)
        (0.5, 0.4)
        """
        reached = self.false_positives <= false_positives
        return float(self.discrete.max(where=reached, initial=0)), float(self.continuous.max(where=reached, initial=0))

    def to_dict(self) -> dict[str, Any]:
        """Plain lists and numbers, fit for JSON."""
        return {name: value.tolist() if isinstance(value, np.ndarray) else value for name, value in vars(self).items()}


def fddb_curves(ellipses: Arrays, regions: Arrays, scores: Arrays, sizes: Sequence[tuple[int, int]]) -> FddbCurves:
    """The curves of a detector, as the data set's own program has them.

    For every score, the detections of an image that reach it are matched one to one with its faces so that the sum of
    the IoUs is greatest. All four arguments have one entry for each image.

    Args:
        ellipses: (G, 5) faces as of `tightbox.data.faces.read_ellipses`.
        regions: (D, 4) boxes xyxy, or (D, 5) ellipses.
        scores: (D,) of the regions; only their order matters.
        sizes: (height, width) of the image, beyond which no region counts.

    Raises:
        UserError: if there is no face at all, or a region or score is not finite or of another shape.
    """
    faces = sum(len(annotated) for annotated in ellipses)
    if faces == 0:
        raise UserError("there are no annotated faces to compare with; check which folds were read")
    steps = []
    for number, (annotated, found, score, size) in enumerate(zip(ellipses, regions, scores, sizes, strict=True), 1):
        found, score = np.asarray(found, np.float64), np.asarray(score, np.float64)
        known_shape = score.ndim == 1 and found.shape in ((len(score), 4), (len(score), 5))
        if not (known_shape and np.isfinite(found).all() and np.isfinite(score).all()):
            shapes = f"regions of shape {found.shape} and scores of shape {score.shape}"
            fix = "give (D, 4) boxes or (D, 5) ellipses and (D,) scores"
            raise UserError(f"image {number} has {shapes}, or numbers that are not finite; {fix}")
        ious = region_ious(drawn(np.asarray(annotated, np.float64)), drawn(found), size)
        steps.append(_steps(ious, score))
    step = np.concatenate(steps)
    step = step[np.argsort(-step[:, 0], kind="stable")]
    last = np.flatnonzero(np.diff(step[:, 0], append=-np.inf))
    detections, matched, overlap = step[:, 1:].cumsum(axis=0)[last].T
    false_positives = (detections - matched).round().astype(np.int64)
    return FddbCurves(faces, step[last, 0], false_positives, matched / faces, overlap / faces)


def drawn(regions: Array) -> Array:
    """The regions (N, 4) or (N, 5) as the data set's program draws them, in whole pixels.

    It rounds a box's corners and fills the last pixel too; it rounds an ellipse's centre to a pixel, cuts the fraction
    off its radii, and fills the pixels of its outline too. Small faces feel it, and published curves include it.

    >>> drawn(np.array([[10.4, 5.6, 20.4, 15.6]]))
    array([[10.,  6., 21., 17.]])
    """
    shapes = regions.copy()
    if regions.shape[1] == 4:
        shapes = shapes.round()
        shapes[:, 2:] += 1
    else:
        shapes[:, :2] = np.floor(regions[:, :2]) + 0.5
        shapes[:, 3:] = regions[:, 3:].round() + 0.5
    return shapes


def region_ious(a: Array, b: Array, size: tuple[int, int]) -> Array:
    """IoU (N, M) of regions, each (N, 4) boxes xyxy or (N, 5) ellipses, inside an image of `size` (height, width).

    The regions are convex, so every row of pixels cuts an interval out of each, and two regions share what their
    intervals share: areas are sums of the lengths along the rows' centre lines, with no image painted.

    >>> circle_around_square = np.array([[10.0, 10.0, 0.0, 20.0, 20.0]]), np.array([[13.0, 13.0, 27.0, 27.0]])
    >>> region_ious(*circle_around_square, (40, 40)).round(2)  # 14² / (π 10²) = 0.62
    array([[0.62]])
    """
    (start_a, end_a), (start_b, end_b) = _rows(a, size), _rows(b, size)
    area_a, area_b = (end_a - start_a).sum(axis=1), (end_b - start_b).sum(axis=1)
    ious = np.zeros((len(a), len(b)))
    for i in range(len(a)):
        intersection = (np.minimum(end_a[i], end_b) - np.maximum(start_a[i], start_b)).clip(min=0).sum(axis=1)
        union = area_a[i] + area_b - intersection
        np.divide(intersection, union, out=ious[i], where=union > 0)
    return ious


def plot_fddb(curves: Mapping[str, FddbCurves], path: Path, false_positives: int = 2000) -> None:
    """Draws both curves of one or more detectors, by name, up to so many false positives (needs the extra `viz`)."""
    figure = import_extra("matplotlib.figure", "viz", "matplotlib").Figure(figsize=(10, 4.5), layout="constrained")
    for number, (axes, kind) in enumerate(zip(figure.subplots(1, 2, sharey=True), KINDS, strict=True)):
        for name, curve in curves.items():
            label = f"{name} ({curve.at(false_positives)[number]:.3f})"
            axes.plot(curve.false_positives, getattr(curve, kind), label=label)
        axes.set(title=f"{kind} score", xlabel="false positives", xlim=(0, false_positives), ylim=(0, 1))
        axes.grid(alpha=0.3)
        axes.legend(loc="lower right", title=f"rate at {false_positives}")
    figure.axes[0].set_ylabel("true positive rate")
    with atomic_path(path) as temporary:
        figure.savefig(temporary, format=path.suffix[1:] or "png", dpi=150)


def _steps(ious: Array, scores: Array) -> Array:
    """What every further score adds: (S, 4) the score, its detections, and what the matches and their IoUs change."""
    thresholds, counts = np.unique(scores, return_counts=True)
    steps = np.zeros((len(thresholds), 4))
    steps[:, 0], steps[:, 1] = thresholds[::-1], counts[::-1]
    touching = ious.any(axis=0)  # only these can change the best match
    before = np.zeros(2)
    for step in steps:
        new = touching & (scores == step[0])
        if new.any():
            reached = ious[:, touching & (scores >= step[0])]
            pairs = reached[linear_sum_assignment(reached, maximize=True)]
            after = np.array([(pairs > 0.5).sum(), pairs.sum()])
            step[2:] = after - before
            before = after
    return steps


def _rows(regions: Array, size: tuple[int, int]) -> tuple[Array, Array]:
    """Where each region begins and ends on the centre line of each row of pixels, (N, height) each.

    Both are the same where the region has no part of the row.
    """
    height, width = size
    y = np.arange(height) + 0.5
    if regions.shape[1] == 4:
        x1, y1, x2, y2 = regions.T[:, :, None]
        start, end, inside = x1, x2, (y1 <= y) & (y < y2)
    else:
        major, minor, angle, centre_x, centre_y = regions.T[:, :, None]
        cos, sin, v = np.cos(angle), np.sin(angle), y - centre_y
        # With (u, v) from the centre: (u·cos + v·sin)²/a² + (v·cos − u·sin)²/b² = 1, a quadratic in u.
        square = ((major * sin) ** 2 + (minor * cos) ** 2).clip(min=np.finfo(np.float64).tiny)
        middle = centre_x + (major**2 - minor**2) * sin * cos * v / square
        half = major * minor * np.sqrt((square - v**2).clip(min=0)) / square
        start, end, inside = middle - half, middle + half, v**2 < square
    start = np.where(inside, start.clip(0, width), 0)
    return start, np.where(inside, end.clip(0, width), start).clip(min=start)
