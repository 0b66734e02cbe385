"""Which calibration map held-out detections can support: judged on images that the map did not learn from."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike

from tightbox.evaluation.figures import Floats
from tightbox.evaluation.fit_calibration import FITS, Method
from tightbox.evaluation.matching import Matches
from tightbox.evaluation.reliability import finite_pairs

FOLDS = 5
MIN_PER_FOLD = 20  # boxes to learn from; with fewer, nothing is changed


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
