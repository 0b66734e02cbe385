"""The candidates of a whole batch as tensors whose shapes depend on those of the images only.

What each system's `candidates` and `rank` do image by image, `batch_candidates` does at once: of each pyramid level the
`top_k` best by the system's ranking.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from tightbox.assigners import level_points
from tightbox.boxes import clip_boxes, decode_deltas, decode_distances
from tightbox.models import Detector, IoUAwareRetinaNet, UnitBox, VFNet
from tightbox.models.fpn import STRIDES
from tightbox.models.iou_aware_retinanet import ANCHORS


@dataclass(frozen=True, eq=False)
class BatchCandidates:
    """N candidates of each of B images.

    Attributes:
        boxes: (B, N, 4), clipped to the image.
        scores: (B, C, N) what the system ranks by; 0 for what is not to be detected.
        ious: (B, N) or (B, C, N) predicted IoU; None if the system predicts none.
    """

    boxes: Tensor
    scores: Tensor
    ious: Tensor | None


def batch_candidates(model: Detector, pixels: Tensor, sizes: Tensor) -> BatchCandidates:
    """The candidates of a batch of images.

    Args:
        model: whose.
        pixels: (B, 3, H, W), normalised, 0 outside the images; H and W are multiples of 32.
        sizes: (B, 2) true height and width of each image.
    """
    if isinstance(model, VFNet):
        return _vfnet(model, pixels, sizes)
    if isinstance(model, IoUAwareRetinaNet):
        return _iou_aware_retinanet(model, pixels, sizes)
    assert isinstance(model, UnitBox)  # `onnx_file.require_exportable` lets no other pass
    return _unitbox(model, pixels, sizes)


def _vfnet(model: VFNet, pixels: Tensor, sizes: Tensor) -> BatchCandidates:
    output, options = model(pixels), model.options
    offset = 0.0 if options.assigner == "atss" else 0.5
    boxes, scores, ious = [], [], []
    counts = _counts(output.sizes)
    for level, (logits, distances) in enumerate(_levels(counts, output.logits, output.distances)):
        points = level_points([output.sizes[level]], [STRIDES[level]], offset=offset, device=pixels.device)
        ranking = logits.sigmoid()
        if output.centerness is not None:
            ranking = ranking * output.centerness.split(counts, dim=1)[level].sigmoid()[..., None]
        ranking = _numbers(ranking)
        if options.top_k_of == "pairs":
            classes = ranking.shape[2]
            best = _best(ranking.flatten(1), options.top_k)
            rows = best // classes
            label = best - rows * classes
            chosen = torch.arange(classes, device=pixels.device) == label[..., None]
            ranking = torch.where(chosen, _take(ranking, rows), 0)
        else:
            rows = _best(ranking.amax(dim=2), options.top_k)
            ranking = _take(ranking, rows)
        boxes.append(decode_distances(points[rows], _take(distances, rows)))
        scores.append(ranking)
        ious.append(ranking)
    return _together(boxes, scores, ious if options.varifocal else None, sizes)


def _iou_aware_retinanet(model: IoUAwareRetinaNet, pixels: Tensor, sizes: Tensor) -> BatchCandidates:
    output, options = model(pixels), model.options
    anchors = model.level_anchors(output.sizes, pixels.device)
    counts = _counts(output.sizes, ANCHORS)
    boxes, scores, ious = [], [], []
    for level, (logits, deltas) in enumerate(_levels(counts, output.logits, output.deltas)):
        ranking, predicted = logits.sigmoid(), None
        if output.ious is not None:
            predicted = output.ious.split(counts, dim=1)[level].sigmoid()
            ranking = ranking**options.alpha * predicted[..., None] ** (1 - options.alpha)
        ranking = _numbers(ranking)
        rows = _best(ranking.amax(dim=2), options.top_k)
        boxes.append(decode_deltas(anchors[level][rows], _take(deltas, rows)))
        scores.append(_take(ranking, rows))
        if predicted is not None:
            ious.append(predicted.gather(1, rows))
    return _together(boxes, scores, ious or None, sizes)


def _unitbox(model: UnitBox, pixels: Tensor, sizes: Tensor) -> BatchCandidates:
    """The dense reading: connected regions are no tensor operation."""
    output, step = model(pixels), model.options.dense_stride
    height, width = output.logits.shape[-2:]
    y, x = (
        # The middle of every step × step block; of a smaller image, its own middle.
        torch.arange((side + step - 1) // step, device=pixels.device) * step + (size.clamp(max=step) // 2)[:, None]
        for side, size in ((height, sizes[:, 0]), (width, sizes[:, 1]))
    )  # (B, rows), (B, columns)
    inside = ((y < sizes[:, :1])[:, :, None] & (x < sizes[:, 1:])[:, None]).flatten(1)
    places = (y.clamp(max=height - 1)[:, :, None] * width + x.clamp(max=width - 1)[:, None]).flatten(1)
    x, y = torch.broadcast_tensors(x[:, None], y[:, :, None])
    points = torch.stack([x.flatten(1), y.flatten(1)], dim=2)
    scores = _take(output.logits.flatten(2).mT, places).sigmoid()
    scores = torch.where(inside[..., None], _numbers(scores), 0)
    rows = _best(scores.amax(dim=2), model.options.top_k)
    distances = _take(_take(output.distances.flatten(2).mT, places), rows)
    boxes = decode_distances(_take(points, rows) + 0.5, distances)
    return _together([boxes], [_take(scores, rows)], None, sizes)


def _counts(sizes: Sequence[tuple[int, int]], anchors: int = 1) -> list[int]:
    return [height * width * anchors for height, width in sizes]


def _levels(counts: list[int], *columns: Tensor) -> Iterator[tuple[Tensor, ...]]:
    """The rows of each level of outputs (B, N, ...)."""
    return zip(*(torch.split(column, counts, dim=1) for column in columns), strict=True)


def _best(values: Tensor, top_k: int) -> Tensor:
    """(B, K) places of the `top_k` highest of the values (B, N), or of all if there are fewer."""
    return values.topk(torch.sym_min(top_k, values.shape[1]), dim=1).indices


def _take(values: Tensor, rows: Tensor) -> Tensor:
    """(B, K, D): the rows (B, K) of the values (B, N, D)."""
    return values.gather(1, rows[..., None].expand(-1, -1, values.shape[2]))


def _numbers(scores: Tensor) -> Tensor:
    """The scores, and 0 for what is not a number, which no comparison would find and `topk` would take for the best."""
    return torch.where(scores >= 0, scores, 0)


def _together(boxes: list[Tensor], scores: list[Tensor], ious: list[Tensor] | None, sizes: Tensor) -> BatchCandidates:
    """The levels' candidates in a row: boxes (B, N, 4), scores (B, N, C), and ious like them or (B, N)."""
    clipped = clip_boxes(torch.cat(boxes, dim=1), sizes[:, None])
    has_area = (clipped[..., 2:] > clipped[..., :2]).all(dim=2, keepdim=True)
    ranking = torch.where(has_area, torch.cat(scores, dim=1), 0).mT
    if ious is None:
        return BatchCandidates(clipped, ranking, None)
    predicted = torch.cat(ious, dim=1)
    return BatchCandidates(clipped, ranking, predicted.mT if predicted.dim() == 3 else predicted)
