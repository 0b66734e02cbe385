"""Time UnitBox's network and the reading of its maps at 640 x 480: regions as published, and the dense reading.

The network is the published one, VGG-16, with random weights. The maps that are read are drawn: ellipses on a grid, as
regions of real images would be, since random weights draw none.
"""

from __future__ import annotations

import argparse
import math
import statistics
from pathlib import Path

import torch
from machine import measured
from train_step import interleaved

from tightbox.assigners import level_points, pixel_regions
from tightbox.boxes import encode_distances
from tightbox.files import atomic_path
from tightbox.models import UnitBox, create_model
from tightbox.models.dense import matched_objects
from tightbox.models.unitbox import PixelOutput
from tightbox.structures import Targets

SIZE = (480, 640)
REGIONS = 50


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=5, help="timed runs of each, after one that is not counted")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads(), help="CPU threads")
    parser.add_argument("--markdown", type=Path, help="also write the table to this file")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    torch.manual_seed(0)
    model, unshared = (
        create_model("unitbox", num_classes=1, pretrained_backbone=False, shared=shared).eval()
        for shared in (True, False)
    )
    assert isinstance(model, UnitBox)
    pixels = torch.randn(1, 3, *SIZE).contiguous(memory_format=torch.channels_last)
    output = drawn()
    assert len(model._read_regions(output, 0, SIZE)) == REGIONS
    image = torch.rand(3, *SIZE)
    model.forward = lambda pixels: output  # type: ignore[method-assign]  # the network has a row of its own

    def dense() -> None:
        model.select(model.candidates([image])[0])

    rows = {
        "network, shared": lambda: model(pixels),
        "network, unshared": lambda: unshared(pixels),
        f"{REGIONS} regions to boxes": lambda: model._detections(model._read_regions(output, 0, SIZE)),
        "dense reading with NMS": dense,
    }
    with torch.inference_mode():
        times = [statistics.median(seconds) for seconds in interleaved(tuple(rows.values()), args.repeats)]
    lines = [measured(), "", "| 1×3×480×640 | time | fraction of the shared network |", "|---|---|---|"]
    lines += [
        f"| {name} | {1000 * time:.0f} ms | {time / times[0]:.3f} |" for name, time in zip(rows, times, strict=True)
    ]
    lines += ["", f"Medians of {args.repeats} runs in turn. VGG-16, one class, float32."]
    lines += [f"The shared network and its regions: {1 / (times[0] + times[2]):.2f} images per second."]
    table = "\n".join(lines)
    print(table)
    if args.markdown is not None:
        with atomic_path(args.markdown) as temporary:
            temporary.write_text(table + "\n", encoding="utf-8")


def drawn() -> PixelOutput:
    """Maps that are the targets of a grid of objects."""
    columns = 10
    cell_width, cell_height = SIZE[1] // columns, SIZE[0] // math.ceil(REGIONS / columns)
    corners = torch.tensor([[i % columns * cell_width, i // columns * cell_height] for i in range(REGIONS)])
    inset = torch.tensor([4, 4, cell_width - 4, cell_height - 4])
    targets = [Targets.of(corners.repeat(1, 2) + inset, torch.zeros(REGIONS))]
    confidence, matched = pixel_regions(SIZE, targets)
    boxes, _ = matched_objects(targets, matched.flatten(1))
    distances = encode_distances(level_points([SIZE], [1], offset=0.5), boxes)
    return PixelOutput(20 * confidence - 10, distances.mT.unflatten(2, SIZE))


if __name__ == "__main__":
    main()
