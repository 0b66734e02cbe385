"""How large a data set's images must be for a detector to see the objects in them."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from tightbox.data.records import DetectionData

SIDES = (320, 384, 448, 512, 576, 640)
"""Longer sides to choose from; larger ones have to be asked for, as time and memory grow with their square."""

NEEDED = 32.0
"""Side that half of the objects should have, in pixels: four cells of the finest level; smaller is small in COCO."""


@dataclass(frozen=True)
class InputSize:
    """A choice of the longer side of images, and what it rests on.

    Attributes:
        long_side: pixels; images are resized to it.
        at_first: the median object's side, in pixels, in images of the first of `SIDES`.
        chosen: the same in images of this size.
    """

    long_side: int
    at_first: float
    chosen: float

    def __str__(self) -> str:
        text = f"the median object is {self.at_first:.0f} px wide in images of {SIDES[0]} px"
        if self.long_side > SIDES[0]:
            text += f" and {self.chosen:.0f} px in those of {self.long_side} px"
        return text if self.chosen >= NEEDED else f"{text}, and larger ones are not there or take long"


def input_size(boxes: NDArray[np.floating], images: NDArray[np.floating]) -> InputSize:
    """The first of `SIDES` at which the median object is `NEEDED` pixels wide, but no larger than most images are.

    Args:
        boxes: (N, 4) xyxy of objects, in pixels of their images.
        images: (N, 2) width and height of each one's image.

    >>> half = input_size(np.array([[0.0, 0.0, 40.0, 40.0]]), np.array([[640.0, 480.0]]))
    >>> print(half)
    the median object is 20 px wide in images of 320 px and 32 px in those of 512 px
    """
    longer = images.max(axis=1, initial=1)
    sides = np.sqrt(np.clip(boxes[:, 2:] - boxes[:, :2], 0, None).prod(axis=1)) / longer
    median = float(np.median(sides)) if len(sides) else 1.0
    # Pixels that an image does not have show nothing new.
    most = max(SIDES[0], float(np.median(longer)) if len(longer) else 0.0)
    possible = [side for side in SIDES if side <= most]
    chosen = next((side for side in possible if side * median >= NEEDED), possible[-1])
    return InputSize(chosen, SIDES[0] * median, chosen * median)


def input_size_of(data: DetectionData) -> InputSize:
    """The same of a split's objects, crowds aside."""
    boxes = [record.boxes[~record.crowd] for record in data.records]
    sizes = [np.tile(record.size[::-1], (len(own), 1)) for record, own in zip(data.records, boxes, strict=True)]
    return input_size(np.concatenate([np.empty((0, 4)), *boxes]), np.concatenate([np.empty((0, 2)), *sizes]))
