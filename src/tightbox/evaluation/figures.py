"""Means over what is known, and figures as text: None stands for "no box could tell", a dash shows it."""

import math
from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Self

import numpy as np
from numpy.typing import NDArray

Bools = NDArray[np.bool_]
Floats = NDArray[np.float64]
Ints = NDArray[np.int64]


@dataclass(frozen=True, eq=False)
class Columns:
    """Counting and picking, shared by the frozen dataclasses whose fields are all columns of one length."""

    def __len__(self) -> int:
        return len(next(iter(vars(self).values())))

    def __getitem__(self, which: Bools | Ints) -> Self:
        """Some of the rows, by a mask or their positions."""
        return replace(self, **{name: column[which] for name, column in vars(self).items()})


def number(value: float) -> float | None:
    """The value as a float; None for NaN."""
    return None if math.isnan(value) else float(value)


def mean(values: Iterable[float | None] | Floats) -> float | None:
    """The mean of those that are neither None nor NaN; None if there are none."""
    known = np.array(list(values) if not isinstance(values, np.ndarray) else values, dtype=np.float64)
    known = known[~np.isnan(known)]
    return float(known.mean()) if known.size else None


def difference(a: float | None, b: float | None) -> float | None:
    """`a` - `b`; None if either is."""
    return None if a is None or b is None else a - b


def percent(value: float | None, width: int = 5) -> str:
    """A fraction in per cent with one decimal, such as " 12.3", in `width` characters; a dash for None."""
    return f"{'-' if value is None else format(100 * value, '.1f'):>{width}}"


def percents(values: Iterable[float | None], width: int = 5) -> str:
    """Columns of a table, with a space between them."""
    return " ".join(percent(value, width) for value in values)
