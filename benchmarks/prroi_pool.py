"""Times precise RoI pooling against torchvision's roi_align, which samples 2×2 points in each bin, and weighs both."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Callable
from pathlib import Path

import torch
from harness import fastest_interleaved, table_options, write_table
from machine import measured
from torch import Tensor
from torch.profiler import profile
from torchvision.ops import roi_align

from tightbox.ops import prroi_pool

CHANNELS, HEIGHT, WIDTH = 256, 100, 168
BOXES = 512
SIDES = (3.0, 60.0)  # sides of boxes are uniform, in pixels of the map
BINS = 7

HEADER = (
    "| features | pass | roi_align, ms | prroi_pool, ms | time, of roi_align "
    "| roi_align, MiB | prroi_pool, MiB | memory, of roi_align |\n|---|---|---|---|---|---|---|---|"
)
FOOT = (
    "roi_align gives boxes no gradient; prroi_pool's backward pass includes theirs except where said. Memory is the "
    "peak of what is allocated above the inputs. roi_align runs in the memory format it likes best, contiguous."
)

Pool = Callable[[Tensor, Tensor], Tensor]
Step = Callable[[], None]


def main() -> None:
    parser, options = table_options(__doc__, repeats=10)
    lines = [measured(), "", HEADER]
    print("\n".join(lines), flush=True)
    for layout, name in ((torch.contiguous_format, "contiguous"), (torch.channels_last, "channels_last")):
        rows = {
            "forward": (make_step(align, torch.contiguous_format), make_step(prroi, layout)),
            "forward + backward, no gradient of boxes": (
                make_step(align, torch.contiguous_format, features=True),
                make_step(prroi, layout, features=True),
            ),
            "forward + backward": (
                make_step(align, torch.contiguous_format, features=True),
                make_step(prroi, layout, features=True, boxes=True),
            ),
        }
        for kind, (theirs, ours) in rows.items():
            their_time, our_time = fastest_interleaved((theirs, ours), options.repeats)
            their_memory, our_memory = peak_memory(theirs), peak_memory(ours)
            lines.append(
                f"| {name} | {kind} | {1e3 * their_time:.1f} | {1e3 * our_time:.1f} | {our_time / their_time:.2f}× "
                f"| {their_memory / 2**20:.1f} | {our_memory / 2**20:.1f} | {our_memory / their_memory:.2f}× |"
            )
            print(lines[-1], flush=True)
    lines += ["", FOOT]
    print("\n".join(lines[-2:]))
    write_table(options.markdown, lines, parser)


def align(features: Tensor, boxes: Tensor) -> Tensor:
    output: Tensor = roi_align(features, boxes, BINS, sampling_ratio=2)
    return output


def prroi(features: Tensor, boxes: Tensor) -> Tensor:
    return prroi_pool(features, boxes, BINS)


def make_step(pool: Pool, layout: torch.memory_format, *, features: bool = False, boxes: bool = False) -> Step:
    """A pass of `pool` over the same features and boxes each time, backward to those that are said to need it."""
    torch.manual_seed(0)
    sides = SIDES[0] + (SIDES[1] - SIDES[0]) * torch.rand(BOXES, 2)
    corners = torch.rand(BOXES, 2) * (torch.tensor([WIDTH - 1, HEIGHT - 1]) - sides)
    rois = torch.cat((torch.zeros(BOXES, 1), corners, corners + sides), dim=1).requires_grad_(boxes)
    maps = torch.randn(1, CHANNELS, HEIGHT, WIDTH).to(memory_format=layout).requires_grad_(features)
    cotangent = torch.randn(BOXES, CHANNELS, BINS, BINS).to(memory_format=layout)

    def run() -> None:
        output = pool(maps, rois)
        if features or boxes:
            maps.grad = rois.grad = None
            torch.autograd.backward(output, cotangent)
            maps.grad = rois.grad = None

    return run


def peak_memory(step: Step) -> int:
    """Bytes that PyTorch holds at the most during `step`, above what it held before, in every allocation it makes."""
    with profile(profile_memory=True) as profiled:
        step()
    with tempfile.TemporaryDirectory() as folder:
        trace = Path(folder) / "trace.json"
        profiled.export_chrome_trace(str(trace))
        events = json.loads(trace.read_text(encoding="utf-8"))["traceEvents"]
    changes = sorted((event["ts"], event["args"]["Bytes"]) for event in events if event["name"] == "[memory]")
    held = peak = 0
    for _, change in changes:
        held += change
        peak = max(peak, held)
    return peak


if __name__ == "__main__":
    main()
