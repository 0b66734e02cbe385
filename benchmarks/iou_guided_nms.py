"""Times IoU-guided suppression against torchvision's nms, which keeps the same boxes but finds no cluster scores."""

from __future__ import annotations

import torch
from harness import fastest_interleaved, table_options, write_table
from machine import measured
from torch import Tensor
from torchvision.ops import nms

from tightbox.boxes import iou
from tightbox.ops import iou_guided_nms

COUNTS = [1000, 5000, 20000]
IMAGE = (1333.0, 800.0)  # width, height
BOXES_PER_OBJECT = [10, 50]
THRESHOLD = 0.5

HEADER = "| boxes | number | kept | nms, ms | iou_guided_nms, ms | takes, of nms |\n|---|---|---|---|---|---|"


def main() -> None:
    parser, options = table_options(__doc__, repeats=7)
    lines = [measured(), "", HEADER]
    print("\n".join(lines), flush=True)
    for per_object in [*BOXES_PER_OBJECT, 1]:
        name = "uniform" if per_object == 1 else f"{per_object} an object"
        for count in COUNTS:
            torch.manual_seed(0)
            boxes, ious = around_objects(count, per_object)
            kept, plain, guided = time_row(boxes, ious, options.repeats)
            lines.append(
                f"| {name} | {count} | {kept} | {1e3 * plain:.2f} | {1e3 * guided:.2f} | {guided / plain:.2f}× |"
            )
            print(lines[-1], flush=True)
    write_table(options.markdown, lines, parser)


def around_objects(count: int, per_object: int) -> tuple[Tensor, Tensor]:
    """Boxes (N, 4) that miss the sides of their objects by up to about a third, and predicted IoUs off by 0.1."""
    size = 12 * 20 ** torch.rand(count // per_object, 2)  # from 12 to 240 pixels, small ones as often as large ones
    middle = torch.rand(count // per_object, 2) * torch.tensor(IMAGE)
    objects = torch.cat([middle - size / 2, middle + size / 2], dim=1).repeat_interleave(per_object, dim=0)
    boxes = objects + 0.15 * torch.randn(count, 4) * size.repeat_interleave(per_object, dim=0).repeat(1, 2)
    return boxes, iou(boxes, objects) + 0.1 * torch.randn(count)


def time_row(boxes: Tensor, ious: Tensor, repeats: int) -> tuple[int, float, float]:
    """How many boxes stay, and seconds of nms and of iou_guided_nms."""
    scores = torch.rand(len(boxes))
    keep, _ = iou_guided_nms(boxes, scores, ious, THRESHOLD)
    plain, guided = fastest_interleaved(
        [lambda: nms(boxes, ious, THRESHOLD), lambda: iou_guided_nms(boxes, scores, ious, THRESHOLD)], repeats
    )
    return len(keep), plain, guided


if __name__ == "__main__":
    main()
