"""How many outer boxes hold the whole of their object."""

import numpy as np

from tightbox.evaluation.figures import Floats
from tightbox.evaluation.matching import Matches

ROUNDING = 0.01  # pixels; the boxes of both sides were rounded or were float32


def outer_coverage(matches: Matches, outer: Floats, at_iou: float = 0.5) -> tuple[int, int]:
    """The number of matched detections whose outer box holds the object, and that of all matched ones.

    Args:
        matches: matched at `at_iou` at least.
        outer: (N, 4) xyxy outer boxes in the order of the predictions.
        at_iou: IoU from which a detection is matched.
    """
    outcome = matches.at(at_iou)
    around = outer[matches.rows[outcome.hit]]
    objects = matches.ground_truth.boxes[outcome.matched[outcome.hit]]
    held = (around[:, :2] <= objects[:, :2] + ROUNDING) & (around[:, 2:] >= objects[:, :2] + objects[:, 2:] - ROUNDING)
    return int(np.count_nonzero(held.all(axis=1))), len(objects)
