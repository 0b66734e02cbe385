"""What holds with a stated probability in images like those it was learned from: values that the card keeps.

Margins make of a box an outer box, which reaches at least as far as its object on all four sides, and an inner box,
which reaches at most as far. A bound on misses is a score threshold that misses few objects.
"""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, Literal, Self, get_args, get_type_hints

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
        complete = len(self.sides) == 4 and len(raw) == len(factors) and (len(raw) > 0) == (self.unit == "iou")
        finite = complete and np.isfinite([*self.sides, *others, *raw, *factors]).all()
        monotone = finite and (np.diff(raw) > 0).all() and (np.diff(factors) <= 0).all()
        possible = monotone and min(*self.sides, *others, *factors) >= 0
        if not (possible and 0 < self.coverage < 1 and self.unit in get_args(Unit)):
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
        corners = np.asarray(boxes, dtype=np.float64).reshape(-1, 4)
        units = np.maximum(np.tile(corners[:, 2:] - corners[:, :2], 2), 0)
        if self.unit == "pixels":
            units = np.ones_like(corners)
        elif self.unit == "iou":
            if raw is None:
                raise UserError("these margins depend on the predicted IoU, but the boxes have none; give such boxes")
            units = units * self.factor(raw)[:, None]
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


@dataclass(frozen=True)
class MissBound:
    """With probability 1 - delta over the draw of the held-out objects, at most a fraction `miss` is missed.

    Attributes:
        miss: fraction of the objects that may be missed.
        delta: probability with which the promise may fail.
        at_iou: IoU from which an object counts as found.
        threshold: boxes with a lower score are left out.
        objects: held-out objects that it was chosen on.
        missed: how many of these are missed at the threshold.
    """

    miss: float
    delta: float
    at_iou: float
    threshold: float
    objects: int
    missed: int

    def to_json(self) -> dict[str, Any]:
        """Plain numbers, for a checkpoint's card."""
        return asdict(self)

    @classmethod
    def from_json(cls, content: Mapping[str, Any]) -> Self:
        """What `to_json` wrote.

        Raises:
            UserError: if it did not.
        """
        try:
            return cls(**{name: kind(content[name]) for name, kind in get_type_hints(cls).items()})
        except (KeyError, TypeError, ValueError) as error:
            raise UserError(f"the bound on misses in the card is damaged ({error}); calibrate again") from error


PROMISES: dict[str, type[Margins | MissBound]] = {"outer": Margins, "inner": Margins, "misses": MissBound}


@dataclass(frozen=True, kw_only=True)
class Promises:
    """What can be promised of images like those that it was learned from; each part is None if it was not asked for.

    Attributes:
        outer: margins of the boxes that hold their object.
        inner: margins of the boxes that lie in their object.
        misses: the score threshold that misses few objects.
    """

    outer: Margins | None = None
    inner: Margins | None = None
    misses: MissBound | None = None

    def moved(self, boxes: ArrayLike, raw: ArrayLike | None, labels: ArrayLike) -> dict[str, NDArray[np.float64]]:
        """The "outer" and the "inner" boxes (N, 4), those that there are, of boxes with raw predicted IoUs."""
        ways = {"outer": (self.outer, 1.0), "inner": (self.inner, -1.0)}
        return {n: grown(boxes, way * m.distances(boxes, raw, labels)) for n, (m, way) in ways.items() if m is not None}

    def promises_to_json(self) -> dict[str, Any]:
        """Those that there are, by name."""
        return {name: part.to_json() for name in PROMISES if (part := getattr(self, name)) is not None}


def grown(boxes: ArrayLike, distances: ArrayLike) -> NDArray[np.float64]:
    """(N, 4) the boxes with their sides moved out by (N, 4) distances; negative ones move them in.

    Sides that would pass each other meet in their middle: such a box holds nothing and promises nothing.
    """
    moved = np.asarray(boxes, dtype=np.float64).reshape(-1, 4) + OUTWARD * np.asarray(distances).reshape(-1, 4)
    middle = (moved[:, :2] + moved[:, 2:]) / 2
    return np.concatenate([np.minimum(moved[:, :2], middle), np.maximum(moved[:, 2:], middle)], axis=1)
