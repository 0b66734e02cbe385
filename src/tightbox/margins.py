"""Margins around boxes that hold with a probability: a value that the card keeps and that detection applies.

An outer box reaches at least as far as its object on all four sides, an inner box at most as far.
"""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, Literal, Self, get_args

import numpy as np
from numpy.typing import ArrayLike, NDArray

from tightbox.errors import UserError

Unit = Literal["iou", "size", "pixels"]
OUTWARD = np.array([-1.0, -1.0, 1.0, 1.0])  # the way that x1, y1, x2, y2 move when a box grows


@dataclass(frozen=True)
class Margins:
    """How far each side of a box is moved, in units of the box.

    Attributes:
        coverage: probability with which all four sides together reach far enough.
        unit: what a margin is a multiple of: the box's width (left, right) and height (top, bottom) times a factor that
            falls with the raw predicted IoU; the width and height alone; or one pixel.
        sides: multiples for left, top, right and bottom.
        classes: by label, what `sides` are multiplied with for a class that has margins of its own; None for a class
            that has the margins of all classes together. Empty if no class has its own.
        raw: knots of the factor: raw predicted IoUs, ascending; empty unless the unit is "iou".
        factors: the factor at each, not rising; linear between them and constant beyond.
        about: how they were made.
    """

    coverage: float
    unit: Unit
    sides: tuple[float, float, float, float]
    classes: tuple[float | None, ...]
    raw: tuple[float, ...]
    factors: tuple[float, ...]
    about: Mapping[str, Any]

    def __post_init__(self) -> None:
        raw, factors = np.array(self.raw), np.array(self.factors)
        others = [value for value in self.classes if value is not None]
        if (
            not 0 < self.coverage < 1
            or self.unit not in get_args(Unit)
            or len(self.sides) != 4
            or not np.isfinite([*self.sides, *others, *raw, *factors]).all()
            or min(*self.sides, *others, *factors) < 0
            or len(raw) != len(factors)
            or (len(raw) > 0) != (self.unit == "iou")
            or (np.diff(raw) <= 0).any()
            or (np.diff(factors) > 0).any()
        ):
            raise UserError("the margins in the card are damaged; run `tightbox calibrate` again")

    def distances(self, boxes: ArrayLike, raw: ArrayLike | None, labels: ArrayLike) -> NDArray[np.float64]:
        """(N, 4) how far the left, top, right and bottom side are moved, in pixels.

        Args:
            boxes: (N, 4) xyxy.
            raw: (N,) raw predicted IoUs; not used unless the unit is "iou". NaN counts as the lowest.
            labels: (N,) class of each.

        Raises:
            UserError: if predicted IoUs are needed and not there.
        """
        if self.unit == "iou" and raw is None:
            raise UserError("these margins depend on the predicted IoU, but the boxes have none; give such boxes")
        units = box_units(boxes, self.unit)
        if self.unit == "iou":
            units = units * self.factor(np.asarray(raw, dtype=np.float64))[:, None]
        if self.classes:
            own = np.array([1.0 if value is None else value for value in self.classes])
            units = units * own[np.asarray(labels, dtype=np.int64)][:, None]
        return np.asarray(units * np.array(self.sides))

    def factor(self, raw: ArrayLike) -> NDArray[np.float64]:
        """The factor of raw predicted IoUs; that of the lowest knot for NaN."""
        x = np.asarray(raw, dtype=np.float64)
        return np.interp(np.where(np.isnan(x), self.raw[0], x), self.raw, self.factors)

    def to_json(self) -> dict[str, Any]:
        """Plain lists and numbers, for a checkpoint's card."""
        return {name: list(value) if isinstance(value, tuple) else value for name, value in asdict(self).items()}

    @classmethod
    def from_json(cls, content: Mapping[str, Any]) -> Self:
        """What `to_json` wrote.

        Raises:
            UserError: if it did not.
        """
        try:
            lists = {name: tuple(float(v) for v in content[name]) for name in ("sides", "raw", "factors")}
            classes = tuple(None if v is None else float(v) for v in content["classes"])
            coverage, unit, about = float(content["coverage"]), content["unit"], dict(content["about"])
        except (KeyError, TypeError, ValueError) as error:
            raise UserError(f"the margins in the card are damaged ({error}); run `tightbox calibrate`") from error
        return cls(coverage=coverage, unit=unit, classes=classes, about=about, **lists)  # type: ignore[arg-type]


def box_units(boxes: ArrayLike, unit: Unit) -> NDArray[np.float64]:
    """(N, 4) what the margins of left, top, right and bottom are multiples of, before any factor."""
    corners = np.asarray(boxes, dtype=np.float64).reshape(-1, 4)
    if unit == "pixels":
        return np.ones_like(corners)
    sizes = np.maximum(corners[:, 2:] - corners[:, :2], 0)
    return np.concatenate([sizes, sizes], axis=1)


def grown(boxes: ArrayLike, distances: ArrayLike) -> NDArray[np.float64]:
    """(N, 4) the boxes with their sides moved out by (N, 4) distances; negative ones move them in.

    Sides that would pass each other meet in their middle: such a box holds nothing and promises nothing.
    """
    moved = np.asarray(boxes, dtype=np.float64).reshape(-1, 4) + OUTWARD * np.asarray(distances).reshape(-1, 4)
    middle = (moved[:, :2] + moved[:, 2:]) / 2
    return np.concatenate([np.minimum(moved[:, :2], middle), np.maximum(moved[:, 2:], middle)], axis=1)
