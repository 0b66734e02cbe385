"""The result of every assigner."""

from dataclasses import dataclass

from torch import Tensor

BACKGROUND = -1
IGNORED = -2


@dataclass(frozen=True, eq=False)
class Assignment:
    """What each anchor or point of one image learns.

    Attributes:
        matched: (N,) int64 index of the ground-truth box it learns, `BACKGROUND` (-1) or `IGNORED` (-2).
        ious: (N,) IoU of each anchor with its ground-truth box, 0 without one; None from an assigner without anchors.

    That of B images together has the images as the first axis of both.
    """

    matched: Tensor
    ious: Tensor | None = None
