"""Region proposal network: class-agnostic boxes around whatever may be an object.

Ren et al., "Faster R-CNN", https://arxiv.org/abs/1506.01497; on a feature pyramid, https://arxiv.org/abs/1612.03144.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tightbox.assigners import BACKGROUND, IGNORED, level_points, max_iou, per_point
from tightbox.boxes import clip_boxes, constant, decode_deltas, encode_deltas
from tightbox.distributed import mean_over_processes
from tightbox.models.dense import best_of_each, initialise, inside_images, matched_objects, rows
from tightbox.structures import Targets, take
from tightbox.suppress import suppress

STRIDES = (4, 8, 16, 32, 64)
RATIOS = (0.5, 1.0, 2.0)  # height to width
POSITIVE_IOU, NEGATIVE_IOU = 0.7, 0.3
NMS_IOU = 0.7
SAMPLED, POSITIVE_SHARE = 256, 0.5  # anchors of an image that the losses see
SMOOTH_L1_BETA = 1 / 9
LOWEST = -1e30  # of a logit that is none


@dataclass(frozen=True, eq=False)
class RPNOutput:
    """The network's raw outputs, the N anchors of all levels in a row.

    Attributes:
        anchors: (N, 4) boxes.
        logits: (B, N) objectness before the sigmoid.
        deltas: (B, N, 4) dx, dy, dw, dh.
        map_sizes: (height, width) of each level.
    """

    anchors: Tensor
    logits: Tensor
    deltas: Tensor
    map_sizes: list[tuple[int, int]]


class RPN(nn.Module):
    """One 3x3 convolution over every level, then objectness and box of three anchors per cell.

    Args:
        channels: width of the pyramid.
        anchor_scale: side of the square anchor, in strides of its level.
        ignore_crowds: leave anchors inside crowd regions out of the losses.
    """

    def __init__(self, channels: int, anchor_scale: float, ignore_crowds: bool) -> None:
        super().__init__()
        self.anchor_scale = anchor_scale
        self.ignore_crowds = ignore_crowds
        self.conv = nn.Conv2d(channels, channels, 3, padding=1)
        self.objectness = nn.Conv2d(channels, len(RATIOS), 1)
        self.deltas = nn.Conv2d(channels, 4 * len(RATIOS), 1)
        for layer in (self.conv, self.objectness, self.deltas):
            initialise(layer)

    def forward(self, levels: Sequence[Tensor]) -> RPNOutput:
        """Raw outputs for pyramid levels (B, channels, h, w) at `STRIDES`."""
        hidden = [F.relu(self.conv(level)) for level in levels]
        logits = torch.cat([rows(self.objectness(x).float(), len(RATIOS)) for x in hidden], dim=1).squeeze(-1)
        deltas = torch.cat([rows(self.deltas(x).float(), len(RATIOS)) for x in hidden], dim=1)
        sizes = [(x.shape[-2], x.shape[-1]) for x in levels]
        return RPNOutput(self._anchors(sizes, logits.device), logits, deltas, sizes)

    def proposals(self, output: RPNOutput, sizes: Tensor, count: int) -> tuple[Tensor, Tensor]:
        """The best boxes of each image after NMS within the levels, clipped to it, best first.

        Args:
            output: what `forward` gave.
            sizes: (B, 2) true height and width of each image.
            count: boxes kept for each image, and of each level before NMS.

        Returns:
            Boxes (B, `count`, 4), and whether each is one (B, `count`) or only zeros.
        """
        counts = [height * width * len(RATIOS) for height, width in output.map_sizes]
        logits = output.logits.masked_fill(~self._inside(output, sizes), -torch.inf)
        keep = best_of_each(logits, counts, count)
        boxes = clip_boxes(decode_deltas(output.anchors[keep], take(output.deltas, keep)), sizes[:, None])
        logits = take(logits, keep)
        non_degenerate = (boxes[..., 2:] - boxes[..., :2] > 1e-3).all(dim=2)
        numbers = torch.arange(len(STRIDES), device=boxes.device)
        levels = per_point(numbers, output.map_sizes).repeat_interleave(len(RATIOS))[keep]
        own = (levels[:, None] == numbers[:, None]) & non_degenerate[:, None]
        by_level = torch.where(own, logits[:, None], LOWEST)
        kept = suppress(boxes, by_level, NMS_IOU, LOWEST, count).amax(dim=1)
        best, rows = F.pad(kept, (0, count), value=LOWEST).topk(count, dim=1)
        proposed = best > LOWEST
        return torch.where(proposed[..., None], take(boxes, rows.clamp(max=boxes.shape[1] - 1)), 0), proposed

    def loss(self, output: RPNOutput, sizes: Tensor, targets: Sequence[Targets]) -> tuple[Tensor, Tensor]:
        """Objectness (binary cross-entropy) and box loss (smooth L1), over a sample of each image's anchors."""
        crowds = 0.5 if self.ignore_crowds else None
        inside = self._inside(output, sizes)
        matched = max_iou(output.anchors, targets, POSITIVE_IOU, NEGATIVE_IOU, ignore_iof=crowds, valid=inside)
        chosen, matched = sample(matched, SAMPLED, POSITIVE_SHARE)
        counted, positive = matched != IGNORED, matched >= 0
        gt_boxes, _ = matched_objects(targets, matched)
        logits = take(output.logits, chosen)
        wrong = F.binary_cross_entropy_with_logits(logits, positive.to(logits), counted.to(logits), reduction="sum")
        off = take(output.deltas, chosen) - encode_deltas(output.anchors[chosen], gt_boxes)
        off = torch.where(positive[..., None], off, 0)
        box = F.smooth_l1_loss(off, torch.zeros_like(off), beta=SMOOTH_L1_BETA, reduction="sum")
        total = mean_over_processes(counted.sum().to(logits)).clamp(min=1)
        return wrong / total, box / total

    def _anchors(self, sizes: Sequence[tuple[int, int]], device: torch.device) -> Tensor:
        """(N, 4) three of equal area around the middle of every cell, in the order of the outputs."""
        points = level_points(sizes, STRIDES, offset=0.5, device=device)
        ratio = constant(RATIOS, points)
        shapes = torch.stack([1 / ratio.sqrt(), ratio.sqrt()], dim=1)  # (A, 2) width and height
        half = shapes * self.anchor_scale * per_point(constant(STRIDES, points), sizes)[:, None, None] / 2
        return torch.cat([points[:, None] - half, points[:, None] + half], dim=-1).flatten(0, 1)

    def _inside(self, output: RPNOutput, sizes: Tensor) -> Tensor:
        return inside_images(output.map_sizes, STRIDES, sizes).repeat_interleave(len(RATIOS), dim=1)


def sample(matched: Tensor, count: int, positive_share: float) -> tuple[Tensor, Tensor]:
    """At most `count` boxes of each image that `matched` (B, N) tells from another, drawn at random.

    Those that have an object, at most this fraction of the count, and as many of the background as then fit: every
    choice of so many is as likely as any other.

    Returns:
        Which boxes (B, K), with an object first; and what each learns (B, K), `IGNORED` where nothing was left to draw.
        K is the count, or N if that is less, so that a GPU is not waited for.
    """
    keys = torch.rand(matched.shape, device=matched.device)
    best, places = torch.where(matched >= 0, keys, -1).topk(min(int(count * positive_share), matched.shape[1]))
    order = torch.where(matched == BACKGROUND, keys, -1)
    # Above all of the background, and what has no object as it was.
    order = order.scatter(1, places, torch.where(best >= 0, best + 1, order.gather(1, places)))
    best, chosen = order.topk(min(count, matched.shape[1]))
    return chosen, torch.where(best >= 0, matched.gather(1, chosen), IGNORED)
