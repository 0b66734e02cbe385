"""Which boxes overlap, and which detection found which ground-truth box, by COCO's rules, for all images at once."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np

from tightbox.evaluation.figures import Bools, Floats, Ints
from tightbox.evaluation.inputs import GroundTruth, Predictions

PAIRS_AT_ONCE = 1 << 18  # pairs of boxes whose IoUs are held in memory together


@dataclass(frozen=True, eq=False)
class Outcome:
    """What became of each detection at one IoU threshold.

    Attributes:
        matched: (N,) the ground-truth box it was matched to, -1 for none.
        ious: (N,) its IoU with that box, 0 for none.
        ignored: (N,) neither right nor wrong: matched to a crowd, or, like its object, of a size that does not count.
    """

    matched: Ints
    ious: Floats
    ignored: Bools

    @property
    def hit(self) -> Bools:
        """(N,) the true positives."""
        return (self.matched >= 0) & ~self.ignored

    @property
    def earned(self) -> Floats:
        """(N,) the IoU of true positives and 0 of others: its mean over some is their precision × mean IoU of hits."""
        return np.where(self.hit, self.ious, 0.0)

    @property
    def wrong(self) -> Bools:
        """(N,) the false positives."""
        return (self.matched < 0) & ~self.ignored


@dataclass(frozen=True, eq=False)
class Matches:
    """Detections by class and falling score, with what each overlaps and was matched to.

    Equal scores stand in the order of images, then of the result file, as in pycocotools.

    Attributes:
        ground_truth: the ground-truth boxes.
        rows: (N,) where each detection stands in the result file.
        images: (N,) image of each; likewise `labels`, `scores` and `ious` (the predicted IoUs, NaN for none).
        boxes: (N, 4) as [x, y, width, height].
        best_gt: (N,) the ground-truth box of its own class it overlaps most, crowds aside; -1 if it overlaps none.
        best_iou: (N,) its IoU with that; 0 if none.
        other_gt: (N,) the same among the ground-truth boxes of all other classes; likewise `other_iou`.
        positives: (K,) how many boxes of each class there are to find.
        thresholds: the T IoU thresholds of the matching.
        outcomes: what became of each detection at each of them.
    """

    ground_truth: GroundTruth
    rows: Ints
    images: Ints
    boxes: Floats
    labels: Ints
    scores: Floats
    ious: Floats
    best_gt: Ints
    best_iou: Floats
    other_gt: Ints
    other_iou: Floats
    positives: Ints
    thresholds: tuple[float, ...]
    outcomes: tuple[Outcome, ...]

    def __len__(self) -> int:
        return len(self.rows)

    def at(self, threshold: float) -> Outcome:
        """The outcomes at one of the thresholds.

        Raises:
            ValueError: if the matching was not done at this threshold.
        """
        for known, outcome in zip(self.thresholds, self.outcomes, strict=True):
            if abs(known - threshold) < 1e-9:
                return outcome
        raise ValueError(f"matched at the IoUs {self.thresholds}, not at {threshold}")

    def counted(self, threshold: float) -> Iterator[tuple[int, int, Ints]]:
        """Of each class the id, how many boxes there are to find, and where its detections that count stand."""
        ignored = self.at(threshold).ignored
        parts = pairwise(np.searchsorted(self.labels, np.arange(len(self.positives) + 1)))
        classes = zip(self.ground_truth.category_ids, self.positives.tolist(), parts, strict=True)
        for category, positives, (start, stop) in classes:
            yield category, positives, start + np.flatnonzero(~ignored[start:stop])


def match(
    ground_truth: GroundTruth,
    predictions: Predictions,
    thresholds: Sequence[float] = (0.5,),
    max_detections: int | None = 100,
    areas: tuple[float, float] = (0.0, np.inf),
) -> Matches:
    """Give each detection, best score first, the free ground-truth box of its class that it overlaps most.

    These are COCO's rules: a detection counts from the threshold on, the overlap with a crowd is the fraction of the
    detection inside it, any number of detections may end in a crowd, but only those for which no other box is free.
    Boxes that do not overlap never match, whatever the threshold.

    Args:
        ground_truth: the ground-truth boxes.
        predictions: the detections.
        thresholds: IoU thresholds, each matched for itself.
        max_detections: how many detections of one class count in an image, best scores first; None for all.
        areas: least and largest area of the objects that count, in pixels. Others, and detections of other areas that
            find none of these, are ignored.
    """
    rows = np.lexsort((predictions.images, -predictions.scores, predictions.labels))
    if max_detections is not None:
        rows = rows[rank_in_group(_groups(predictions.images, predictions.labels)[rows]) < max_detections]
    found = predictions[rows]

    best, best_iou = np.full((2, len(rows)), -1), np.zeros((2, len(rows)))
    lowest = min(1 - 1e-10, *thresholds) if thresholds else np.inf
    close: list[tuple[Ints, Ints, Floats]] = []
    for detection, target, overlap in overlapping_pairs(found.images, found.boxes, ground_truth):
        same, crowd = found.labels[detection] == ground_truth.labels[target], ground_truth.crowd[target]
        for side, wanted in enumerate((same & ~crowd, ~same & ~crowd)):
            which, at = _largest_of_each(detection[wanted], overlap[wanted])
            best[side, which], best_iou[side, which] = target[wanted][at], overlap[wanted][at]
        enough = same & (overlap >= lowest)
        close.append((detection[enough], target[enough], overlap[enough]))
    detection, target, overlap = (np.concatenate(parts) for parts in zip(*close, strict=True))
    groups, crowd = _groups(found.images, found.labels), ground_truth.crowd
    ignored = crowd | _outside(ground_truth.areas, areas)
    matched = _match_greedily(np.array(thresholds), groups, crowd, ignored, detection, target, overlap)
    # Ignored is who was matched to what is ignored, or to nothing and is of another area.
    to_ignored, of_other_area = np.append(ignored, False), _outside(found.boxes[:, 2:].prod(axis=1), areas)
    parts = ((to, iou, np.where(to >= 0, to_ignored[to], of_other_area)) for to, iou in zip(*matched, strict=True))
    return Matches(
        **vars(found),
        ground_truth=ground_truth,
        rows=rows,
        best_gt=best[0],
        best_iou=best_iou[0],
        other_gt=best[1],
        other_iou=best_iou[1],
        positives=np.bincount(ground_truth.labels[~ignored], minlength=len(ground_truth.category_ids)),
        thresholds=tuple(thresholds),
        outcomes=tuple(Outcome(*part) for part in parts),
    )


def overlaps(boxes: Floats, others: Floats, crowd: Bools) -> Floats:
    """(P,) IoU of each box with the other beside it; where that is a crowd, the fraction of the box inside it.

    Args:
        boxes: (P, 4) as [x, y, width, height].
        others: (P, 4) likewise.
        crowd: (P,) which of the others are crowds.
    """
    # The order of operations is pycocotools', so that a pair falls on the same side of a threshold.
    ends = np.minimum(boxes[:, :2] + boxes[:, 2:], others[:, :2] + others[:, 2:])
    sides = ends - np.maximum(boxes[:, :2], others[:, :2])
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


def _largest_of_each(groups: Ints, values: Floats) -> tuple[Ints, Ints]:
    """Each group and where its largest value stands, the first of equals; equal groups must be neighbours."""
    starts = np.flatnonzero(np.diff(groups, prepend=-1))
    sizes = np.diff(starts, append=len(groups))
    largest = np.repeat(np.maximum.reduceat(values, starts), sizes)
    at = np.where(values == largest, np.arange(len(values)), len(values))
    return groups[starts], np.minimum.reduceat(at, starts)


def _match_greedily(
    thresholds: Floats, groups: Ints, crowd: Bools, ignored: Bools, detection: Ints, target: Ints, overlap: Floats
) -> tuple[Ints, Floats]:
    """(T, N) the ground-truth box of each detection, -1 for none, and (T, N) their IoU.

    Detections compete within their group only, the image and class. So the best of every group is matched in the first
    step, the second best in the next: as many steps as one group has detections, whatever the number of images.

    Args:
        thresholds: (T,) IoU thresholds.
        groups: (N,) image and class of each detection, the detections by falling score.
        crowd: (G,) which of the ground-truth boxes are crowds, which any number of detections may have.
        ignored: (G,) which do not count; these are matched only where no other is free.
        detection: (P,) the pairs of one group that may match, in any order.
        target: (P,) their ground-truth boxes.
        overlap: (P,) their IoUs.
    """
    competing = np.unique(detection)
    step_of = np.zeros(len(groups), dtype=np.int64)
    step_of[competing] = rank_in_group(groups[competing])
    # A detection's preferred box comes first: one that counts, then the largest overlap, then COCO's last of equals.
    order = np.lexsort((-target, -overlap, ignored[target], detection, step_of[detection]))
    detection, target, overlap = detection[order], target[order], overlap[order]
    matched, matched_iou = np.full((len(thresholds), len(groups)), -1), np.zeros((len(thresholds), len(groups)))
    taken = np.zeros((len(thresholds), len(crowd)), dtype=bool)
    needed = np.minimum(thresholds, 1 - 1e-10)[:, None]
    ends = np.flatnonzero(np.diff(step_of[detection], append=-1)) + 1
    for start, stop in pairwise([0, *ends.tolist()]):
        d, g, iou = detection[start:stop], target[start:stop], overlap[start:stop]
        free = (iou >= needed) & (crowd[g] | ~taken[:, g])
        firsts = np.flatnonzero(np.diff(d, prepend=-1))
        chosen = np.minimum.reduceat(np.where(free, np.arange(len(d)), len(d)), firsts, axis=1)
        level, which = np.nonzero(chosen < len(d))
        pair = chosen[level, which]
        matched[level, d[pair]], matched_iou[level, d[pair]] = g[pair], iou[pair]
        taken[level, g[pair]] = True
    return matched, matched_iou


def _outside(values: Floats, limits: tuple[float, float]) -> Bools:
    return (values < limits[0]) | (values > limits[1])


def _groups(images: Ints, labels: Ints) -> Ints:
    """(N,) a number for each image and class."""
    return np.asarray(images * (labels.max(initial=0) + 1) + labels)


def rank_in_group(groups: Ints) -> Ints:
    """(N,) how many members of the same group come before each."""
    order = np.argsort(groups, kind="stable")
    starts = np.flatnonzero(np.diff(groups[order], prepend=-1))
    rank: Ints = np.empty_like(groups)
    rank[order] = np.arange(len(groups)) - np.repeat(starts, np.diff(starts, append=len(groups)))
    return rank
