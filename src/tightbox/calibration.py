"""What held-out images taught about a detector's numbers: a value that the card keeps and that detection applies."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Self

import numpy as np
from numpy.typing import ArrayLike, NDArray

from tightbox.errors import UserError
from tightbox.promises import PROMISES, Margins, MissBound, Promises

if TYPE_CHECKING:
    from torch import Tensor

    from tightbox.structures import Detections

IOUS = tuple(round(0.5 + 0.05 * i, 2) for i in range(10))
DIGESTS = ("weights", "settings")  # of what a calibration is for
PRECISIONS = tuple(round(0.5 + 0.01 * i, 2) for i in range(51))


@dataclass(frozen=True)
class IouCalibration:
    """A rising map from a detector's raw predicted IoU to the IoU to expect, linear between its knots.

    Beyond the first and last knot it keeps their value. NaN stays NaN.

    Attributes:
        raw: the knots' raw predicted IoUs, ascending.
        ious: the knots' IoUs in [0, 1], not falling.
    """

    raw: tuple[float, ...]
    ious: tuple[float, ...]

    def __post_init__(self) -> None:
        raw, ious = np.array(self.raw), np.array(self.ious)
        finite = len(raw) == len(ious) > 0 and np.isfinite([raw, ious]).all()
        rising = finite and (np.diff(raw) > 0).all() and (np.diff(ious) >= 0).all()
        if not (rising and ious[0] >= 0 and ious[-1] <= 1):
            needed = "equally many raw and expected IoUs, both rising, the latter in [0, 1]"
            raise UserError(f"an IoU calibration needs {needed}; calibrate again")

    def __call__(self, raw: ArrayLike) -> NDArray[np.float64]:
        """The IoUs to expect for an array of raw predicted IoUs."""
        x = np.asarray(raw, dtype=np.float64)
        return np.where(np.isnan(x), np.nan, np.interp(x, self.raw, self.ious))

    def of_tensor(self, raw: Tensor) -> Tensor:
        """The same for a tensor, in its shape, type and device.

        By arithmetic alone, which exported files have too: each piece between two knots adds its part.
        """
        import torch

        at, ious = torch.tensor([self.raw, self.ious], dtype=torch.float64, device=raw.device).unbind()
        passed = ((raw.double()[..., None] - at[:-1]) / at.diff()).clamp(0, 1)  # (..., pieces)
        expected = (ious[0] + (passed * ious.diff()).sum(dim=-1)).clamp(ious[0], ious[-1])
        return torch.where(raw.isnan(), raw, expected.to(raw.dtype))

    def to_json(self) -> dict[str, list[float]]:
        """The knots as lists, for a checkpoint's card."""
        return {"estimates": list(self.raw), "ious": list(self.ious)}

    @classmethod
    def from_json(cls, content: Mapping[str, Any]) -> Self:
        """The map that `to_json` wrote.

        Raises:
            UserError: if the lists are not there or make no rising map.
        """
        try:
            lists: list[Sequence[float]] = [[float(v) for v in content[name]] for name in ("estimates", "ious")]
        except (KeyError, TypeError, ValueError) as error:
            sentence = "an IoU calibration needs the lists of numbers estimates and ious; calibrate again"
            raise UserError(sentence) from error
        return cls(*map(tuple, lists))


@dataclass(frozen=True)
class Calibration(Promises):
    """A map from raw predicted IoUs to those to expect, and the score thresholds that reach a precision.

    Attributes:
        ious: from the raw predicted IoU to the IoU to expect.
        thresholds: lowest score from which on at least each of `PRECISIONS` is reached, in a row for each of `IOUS`;
            None where nothing reaches it. A second box on an object is wrong.
        about: how it was made, for whoever reads the card.
        weights: digest of the weights that it was learned from; None in cards from before there was one.
        settings: likewise of the options of detector and preprocessing.
    """

    ious: IouCalibration
    thresholds: tuple[tuple[float | None, ...], ...]
    about: Mapping[str, Any]
    weights: str | None = None
    settings: str | None = None

    def __call__(self, detections: Detections) -> Detections:
        """The same detections, in the same order, with the IoUs to expect and their outer and inner boxes."""
        if detections.ious is None:
            return detections
        columns = (detections.boxes, detections.ious, detections.labels)
        moved = self.moved(*(column.detach().cpu().double().numpy() for column in columns))
        tensors = {name: detections.boxes.new_tensor(boxes) for name, boxes in moved.items()}
        calibrated = replace(detections, ious=self.ious.of_tensor(detections.ious), outer=None, inner=None)
        return replace(calibrated, **tensors)

    def without_margins(self) -> Self:
        """The same for boxes that the detector did not find by its own rules, whose margins these are not."""
        return replace(self, outer=None, inner=None)

    def margins_for(self, coverage: float) -> Margins:
        """The margins of the outer boxes, which must have been learned for this coverage.

        Raises:
            UserError: if they were not.
        """
        if self.outer is None or abs(self.outer.coverage - coverage) > 1e-9:
            known = "for none" if self.outer is None else f"for {self.outer.coverage:g} only"
            fix = f"run `tightbox calibrate` with --coverage {coverage:g}"
            raise UserError(f"no margins are known for a coverage of {coverage:g}, {known}; {fix}")
        return self.outer

    def miss_bound_for(self, miss: float) -> MissBound:
        """The score threshold that misses at most this fraction of objects, which must have been learned.

        Raises:
            UserError: if it was not.
        """
        if self.misses is None or abs(self.misses.miss - miss) > 1e-9:
            known = "for none" if self.misses is None else f"for {self.misses.miss:g} only"
            fix = f"{known}; run `tightbox calibrate` with --miss {miss:g}"
            raise UserError(f"no score threshold is known with which at most {miss:g} of the objects are missed, {fix}")
        return self.misses

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
            wanted, fix = f"the precision {precision:g} at IoU {at_iou:g}", "ask for less, or train the detector longer"
            raise UserError(f"no score threshold reaches {wanted}: on the images of the calibration {reached}; {fix}")
        return threshold

    def to_json(self) -> dict[str, Any]:
        """Plain lists and numbers, for a checkpoint's card."""
        thresholds = {f"{iou:.2f}": list(row) for iou, row in zip(IOUS, self.thresholds, strict=True)}
        always = {"about": dict(self.about), "ious": self.ious.to_json(), "thresholds": thresholds}
        digests = {name: digest for name in DIGESTS if (digest := getattr(self, name)) is not None}
        return always | self.promises_to_json() | digests  # which the first cards had not

    @classmethod
    def from_json(cls, content: Mapping[str, Any]) -> Self:
        """What `to_json` wrote.

        Raises:
            UserError: if it did not.
        """
        try:
            rows = [[None if v is None else float(v) for v in content["thresholds"][f"{iou:.2f}"]] for iou in IOUS]
            ious, about = content["ious"], dict(content["about"])
            later = {name: content[name] for name in PROMISES if content.get(name) is not None}
            digests: dict[str, Any] = {name: str(content[name]) for name in DIGESTS if content.get(name) is not None}
            if any(len(row) != len(PRECISIONS) for row in rows):
                raise ValueError("a row of thresholds is too short or too long")
        except (KeyError, TypeError, ValueError) as error:
            raise UserError(f"the calibration in the card is damaged ({error}); run `tightbox calibrate`") from error
        parts: dict[str, Any] = {name: PROMISES[name].from_json(part) for name, part in later.items()}
        return cls(IouCalibration.from_json(ious), tuple(map(tuple, rows)), about, **digests, **parts)


def _first_at_least(values: tuple[float, ...], wanted: float, what: str) -> int:
    if not values[0] <= wanted <= values[-1]:
        raise UserError(f"the {what} is {wanted:g}; thresholds are known for {values[0]:g} to {values[-1]:g} only")
    return next(i for i, value in enumerate(values) if value >= wanted - 1e-9)
