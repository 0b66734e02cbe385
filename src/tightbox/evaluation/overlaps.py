"""Which boxes overlap, by COCO's rules, for all images at once."""

from collections.abc import Iterator

import numpy as np

from tightbox.evaluation.figures import Bools, Floats, Ints
from tightbox.evaluation.inputs import GroundTruth

PAIRS_AT_ONCE = 1 << 18  # pairs of boxes whose IoUs are held in memory together


def overlaps(boxes: Floats, others: Floats, crowd: Bools) -> Floats:
    """(P,) IoU of each box with the other beside it; where that is a crowd, the fraction of the box inside it.

    Args:
        boxes: (P, 4) as [x, y, width, height].
        others: (P, 4) likewise.
        crowd: (P,) which of the others are crowds.
    """
    # The order of operations is pycocotools', so that a pair falls on the same side of a threshold.
    sides = np.minimum(boxes[:, :2] + boxes[:, 2:], others[:, :2] + others[:, 2:]) - np.maximum(
        boxes[:, :2], others[:, :2]
    )
    shared = np.where((sides > 0).all(axis=1), sides[:, 0] * sides[:, 1], 0.0)
    own = boxes[:, 2] * boxes[:, 3]
    whole = np.where(crowd, own, own + others[:, 2] * others[:, 3] - shared)
    return np.divide(shared, whole, out=np.zeros_like(shared), where=(shared > 0) & (whole > 0))


def overlapping_pairs(images: Ints, boxes: Floats, ground_truth: GroundTruth) -> Iterator[tuple[Ints, Ints, Floats]]:
    """Detection, ground-truth box and overlap of all overlapping pairs; detections ascend, a few at a time."""
    by_image = np.argsort(ground_truth.images, kind="stable")
    starts, stops = (np.searchsorted(ground_truth.images[by_image], images, side) for side in ("left", "right"))
    counts = stops - starts
    ends = np.cumsum(counts)
    cuts = np.searchsorted(ends, np.arange(PAIRS_AT_ONCE, ends[-1] if len(ends) else 0, PAIRS_AT_ONCE))
    for part in np.split(np.arange(len(images)), cuts):
        detection = np.repeat(part, counts[part])
        first = np.cumsum(counts[part]) - counts[part]
        within = np.arange(len(detection)) - np.repeat(first, counts[part])
        target = by_image[starts[detection] + within]
        overlap = overlaps(boxes[detection], ground_truth.boxes[target], ground_truth.crowd[target])
        there = overlap > 0
        yield detection[there], target[there], overlap[there]
