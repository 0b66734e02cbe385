"""AP overall, by IoU, by object size and by class, as the studies compare it."""

from dataclasses import dataclass
from typing import Self

import numpy as np

from tightbox.evaluation.coco import AREAS, CocoMetrics
from tightbox.evaluation.figures import Floats, Ints, difference

SIZES = tuple(AREAS)
CURVE = (50, 60, 70, 75, 80, 90)  # IoU thresholds, in per cent, of the AP curves


@dataclass(frozen=True)
class AveragePrecision:
    """COCO AP, and what it is made of; None where no ground-truth box could tell.

    Attributes:
        ap: over the IoU thresholds 0.50 to 0.95.
        by_iou: at single ones, by `CURVE` as text.
        by_size: by `SIZES`.
        by_class: by class name.
    """

    ap: float | None
    by_iou: dict[str, float | None]
    by_size: dict[str, float | None]
    by_class: dict[str, float | None]

    @classmethod
    def of_coco(cls, metrics: CocoMetrics) -> Self:
        """The evaluator's own figures."""
        return cls(
            metrics.ap,
            {str(iou): getattr(metrics, f"ap{iou}") for iou in CURVE},
            {size: getattr(metrics, f"ap_{size}") for size in SIZES},
            {name: row.ap for name, row in metrics.per_class.items()},
        )

    def minus(self, other: Self) -> Self:
        """What this has more."""
        parts = (self.by_iou, other.by_iou), (self.by_size, other.by_size), (self.by_class, other.by_class)
        differences = ({key: difference(ap, theirs.get(key)) for key, ap in ours.items()} for ours, theirs in parts)
        return type(self)(difference(self.ap, other.ap), *differences)


def size_index(areas: Floats) -> Ints:
    """(N,) position in `SIZES` of objects of these areas in pixels."""
    return np.searchsorted([largest for _, largest in AREAS.values()][:-1], areas)
