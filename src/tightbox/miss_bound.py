"""A score threshold that misses few objects, with a stated confidence: a value that the card keeps."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, Self, get_type_hints

from tightbox.errors import UserError


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
