"""ATSS: an IoU threshold for every object, taken from the anchors nearest to it.

Bridging the Gap Between Anchor-based and Anchor-free Detection, https://arxiv.org/abs/1912.02424, algorithm 1.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from tightbox.assigners.assignment import BACKGROUND, IGNORED, in_parts, in_regions, padded_boxes
from tightbox.boxes import at_least_float32, encode_distances, iou
from tightbox.errors import UserError
from tightbox.structures import Targets, take

MIN_DISTANCE_INSIDE = 0.01  # pixels between a positive anchor's centre and every side of its object


def atss_anchors(points: Tensor, point_strides: Tensor, scale: float = 8.0) -> Tensor:
    """One square anchor (N, 4) around each of `points` (N, 2), with a side of `scale` strides (N,).

    >>> atss_anchors(torch.tensor([[8.0, 0.0]]), torch.tensor([8.0]))
    tensor([[-24., -32.,  40.,  32.]])
    """
    half = point_strides[:, None] * scale / 2
    return torch.cat([points - half, points + half], dim=1)


def atss(
    anchors: Tensor,
    level_sizes: Sequence[int],
    targets: Sequence[Targets],
    topk: int = 9,
    ignore_iof: float | None = None,
    valid: Tensor | None = None,
) -> Tensor:
    """Which ground-truth box each anchor learns in each of B images.

    The candidates of a ground-truth box are, per level, the `topk` anchors whose centres are nearest to its own (all of
    them on a smaller level). A candidate is positive if its IoU reaches the candidates' mean plus standard deviation
    (unbiased; 0 for a single candidate) and its centre lies inside the box. An anchor that is positive for several
    boxes learns the one of highest IoU. Which of several equally distant anchors are candidates is up to `torch.topk`.

    Images are padded to the most objects of any and assigned together, within bounds of memory.

    Args:
        anchors: (N, 4) anchors, level after level, the same for all images.
        level_sizes: number of anchors on each level.
        targets: the objects of each image.
        topk: candidates per level.
        ignore_iof: anchors of which more than this fraction lies in one region of `targets.ignore` are ignored and
            are nobody's candidates; None leaves the regions out of it.
        valid: (B, N) bool; False for an anchor in the padding, which is nobody's candidate and stays background.

    Returns:
        (B, N) int64 index of the image's ground-truth box that each learns, `BACKGROUND` (-1) or `IGNORED` (-2).

    Raises:
        UserError: if the levels do not add up to the anchors.

    >>> anchors = torch.tensor([[0.0, 0.0, 8.0, 8.0], [8.0, 0.0, 16.0, 8.0], [0.0, 0.0, 16.0, 16.0]])
    >>> targets = Targets.of(torch.tensor([[7.0, 0.0, 15.0, 8.0]]), torch.tensor([0]))
    >>> atss(anchors, [2, 1], [targets])
    tensor([[-1,  0, -1]])
    """
    if sum(level_sizes) != len(anchors):
        raise UserError(f"atss got {len(anchors)} anchors but levels of {list(level_sizes)}; they must add up")
    anchors = at_least_float32(anchors)
    centres = (anchors[:, :2] + anchors[:, 2:]) / 2
    every = torch.ones(len(targets), len(anchors), dtype=torch.bool, device=anchors.device) if valid is None else valid

    def assign(part: slice) -> Tensor:
        usable, gt_boxes = every[part], padded_boxes(targets[part])  # (B, N), (B, G, 4)
        matched = torch.full_like(usable, BACKGROUND, dtype=torch.int64)
        ignored = in_regions(anchors, targets[part], ignore_iof)
        if ignored is not None:
            matched, usable = matched.masked_fill(usable & ignored, IGNORED), usable & ~ignored
        if gt_boxes.numel() == 0:
            return matched

        # Shapes depend on no values, for which a GPU would be waited for: what is no candidate or positive is masked.
        candidates = _nearest(centres, level_sizes, usable, gt_boxes, topk)  # (B, G, K)
        anchor, shape = candidates.flatten(1), candidates.shape
        counts = take(usable, anchor).view(shape)
        overlaps = iou(anchors[candidates], gt_boxes[:, :, None]) * counts
        number = counts.sum(dim=2, keepdim=True)
        mean = overlaps.sum(dim=2, keepdim=True) / number
        # The standard deviation of one value is NaN by definition: with 0, its own IoU is the threshold.
        spread = (((overlaps - mean).square() * counts).sum(dim=2, keepdim=True) / (number - 1).clamp(min=1)).sqrt()
        inside = encode_distances(centres[candidates], gt_boxes[:, :, None]).amin(dim=-1) > MIN_DISTANCE_INSIDE
        positive = (overlaps >= mean + spread) & inside & counts

        highest = anchors.new_zeros(usable.shape).scatter_reduce(1, anchor, (overlaps * positive).flatten(1), "amax")
        wins = positive & (overlaps == take(highest, anchor).view(shape))
        # Where even the IoUs are equal the first of the ground-truth boxes has it, on every device.
        none = shape[1]
        gt_index = torch.arange(none, device=anchor.device)[:, None]
        first = torch.where(wins, gt_index, none).flatten(1)
        first = torch.full_like(matched, none).scatter_reduce(1, anchor, first, "amin")
        return torch.where(first < none, first, matched)

    return in_parts(assign, targets, len(anchors))


def _nearest(centres: Tensor, level_sizes: Sequence[int], usable: Tensor, gt_boxes: Tensor, topk: int) -> Tensor:
    """Indices (B, G, K) of the anchors nearest to each ground-truth box, `topk` from each level, or all it has.

    Those that are not usable come last.
    """
    gt_centres = (gt_boxes[..., :2] + gt_boxes[..., 2:]) / 2
    # The matrix-product shortcut of cdist would lose the digits that tell two near anchors apart.
    distances = torch.cdist(gt_centres.flatten(0, 1), centres, compute_mode="donot_use_mm_for_euclid_dist")
    distances = distances.view(*gt_boxes.shape[:2], -1).masked_fill_(~usable[:, None], torch.inf)
    nearest, start = [], 0
    for level in distances.split(list(level_sizes), dim=2):
        nearest.append(start + level.topk(min(topk, level.shape[2]), dim=2, largest=False).indices)
        start += level.shape[2]
    return torch.cat(nearest, dim=2)
