"""What held-out images taught about a detector's numbers: it is kept in the card and used wherever it detects."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Literal, Self

import numpy as np

from tightbox.errors import UserError
from tightbox.evaluation.calibration import IouCalibration
from tightbox.evaluation.matching import Bools, Floats, Matches

if TYPE_CHECKING:
    from tightbox.structures import Detections

Method = Literal["isotonic", "temperature"]

IOUS = tuple(round(0.5 + 0.05 * i, 2) for i in range(10))
PRECISIONS = tuple(round(0.5 + 0.01 * i, 2) for i in range(51))
MIN_DETECTIONS = 20  # detections above a threshold, below which their precision is an accident


@dataclass(frozen=True)
class Calibration:
    """A map that makes predicted IoUs mean what they say, and the score thresholds that reach a precision.

    Attributes:
        ious: from the raw estimate to the IoU to expect.
        thresholds: lowest score from which on at least each of `PRECISIONS` is reached, in a row for each of `IOUS`;
            None where nothing reaches it. A second box on an object is wrong.
        about: how it was made, for whoever reads the card.
    """

    ious: IouCalibration
    thresholds: tuple[tuple[float | None, ...], ...]
    about: Mapping[str, Any]

    def __call__(self, detections: Detections) -> Detections:
        """The same detections, in the same order, with the IoUs to expect."""
        if detections.ious is None:
            return detections
        return replace(detections, ious=self.ious.of_tensor(detections.ious))

    def score_threshold(self, precision: float, at_iou: float) -> float:
        """The lowest score from which on this fraction of the held-out detections had at least this true IoU.

        Both are rounded up, to 0.01 and 0.05, so that no less is promised than was asked for.

        Raises:
            UserError: if one is out of range, or no threshold reached it.
        """
        row, column = _first_at_least(IOUS, at_iou, "IoU"), _first_at_least(PRECISIONS, precision, "precision")
        threshold = self.thresholds[row][column]
        if threshold is None:
            best = max((p for p, t in zip(PRECISIONS, self.thresholds[row], strict=True) if t is not None), default=0.0)
            reached = f"only {best:.2f} was reached" if best else f"not even {PRECISIONS[0]:.2f} was reached"
            raise UserError(
                f"no score threshold reaches the precision {precision:g} at IoU {at_iou:g}: on the images of the "
                f"calibration {reached}; ask for less, or train the detector longer"
            )
        return threshold

    def to_json(self) -> dict[str, Any]:
        """Plain lists and numbers, for a checkpoint's card."""
        return {
            "about": dict(self.about),
            "ious": self.ious.to_json(),
            "thresholds": {f"{iou:.2f}": list(row) for iou, row in zip(IOUS, self.thresholds, strict=True)},
        }

    @classmethod
    def from_json(cls, content: Mapping[str, Any]) -> Self:
        """What `to_json` wrote.

        Raises:
            UserError: if it did not.
        """
        try:
            rows = [[None if v is None else float(v) for v in content["thresholds"][f"{iou:.2f}"]] for iou in IOUS]
            ious, about = content["ious"], dict(content["about"])
            if any(len(row) != len(PRECISIONS) for row in rows):
                raise ValueError("a row of thresholds is too short or too long")
        except (KeyError, TypeError, ValueError) as error:
            raise UserError(f"the calibration in the card is damaged ({error}); run `tightbox calibrate`") from error
        return cls(IouCalibration.from_json(ious), tuple(map(tuple, rows)), about)


def fit_calibration(matches: Matches, method: Method = "isotonic", **about: Any) -> Calibration:
    """Learn from held-out detections with their raw estimates; those in crowds do not count.

    The true IoU of a detection is that with the object of its class it overlaps most, found already or not.

    Args:
        matches: matched at all `IOUS`.
        method: of the map; see `IouCalibration`.
        about: further facts to keep with it.

    Raises:
        UserError: if there are too few detections, or they have no estimate.
    """
    counted = ~matches.at(IOUS[0]).ignored
    estimates, true_ious = matches.ious[counted], matches.best_iou[counted]
    if len(estimates) and np.isnan(estimates).all():
        raise UserError("this detector predicts no IoU, so there is nothing to calibrate; choose one that does")
    fit = IouCalibration.isotonic if method == "isotonic" else IouCalibration.temperature
    return Calibration(
        ious=fit(estimates, true_ious),
        thresholds=tuple(_lowest_scores(matches, iou) for iou in IOUS),
        about={"method": method, "detections": len(estimates)} | about,
    )


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


def _first_at_least(values: tuple[float, ...], wanted: float, what: str) -> int:
    if not values[0] <= wanted <= values[-1]:
        raise UserError(f"the {what} is {wanted:g}; thresholds are known for {values[0]:g} to {values[-1]:g} only")
    return next(i for i, value in enumerate(values) if value >= wanted - 1e-9)
