"""Time and memory of importing published VFNet files, here files of the same names and shapes with random weights.

Each file is imported in a process of its own, so that the peak of its memory is its own; what Python with its libraries
takes before the import is left out.
"""

from __future__ import annotations

import argparse
import multiprocessing
import statistics
import tempfile
import time
from pathlib import Path

import torch
from harness import write_table
from machine import measured

from tightbox.models import Backbone, VFNet
from tightbox.models.mmdet import import_checkpoint
from tightbox.models.mmdet.names import to_published
from tightbox.models.mmdet.variants import title
from tightbox.options import BackboneOptions, VFNetOptions

NETWORKS = {"resnet50": False, "resnext101_64x4d": True}  # the smallest, and the largest with its DCNv2
HEADER = (
    "| network | file, MB | reading it, s | whole import, s | peak memory of the import, MB | of the file's size |\n"
    "|---|---|---|---|---|---|"
)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=5, help="imports of each, whose median counts")
    parser.add_argument("--markdown", type=Path, metavar="FILE", help="also write the table to FILE")
    args = parser.parse_args()
    if args.repeats < 1:
        parser.error("--repeats must be 1 or more")
    lines = [measured(), "", HEADER]
    print("\n".join(lines), flush=True)
    fresh = multiprocessing.get_context("spawn")
    for name, deformable in NETWORKS.items():
        options = BackboneOptions(name=name, pretrained=False, deformable=deformable)
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "vfnet.pth"
            write_file(path, options)
            figures = []
            for _ in range(args.repeats):
                with fresh.Pool(1) as pool:
                    figures.append(pool.apply(one_import, (path,)))
            megabytes = path.stat().st_size / 1e6
        read, whole, memory = (statistics.median(column) for column in zip(*figures, strict=True))
        times = f"{read:.2f} | {whole:.2f}"
        lines.append(f"| {title(options)} | {megabytes:.0f} | {times} | {memory:.0f} | {memory / megabytes:.1f}× |")
        print(lines[-1], flush=True)
    write_table(args.markdown, lines, parser)


def write_file(path: Path, options: BackboneOptions) -> None:
    """A file of 80 classes as mmdetection writes it."""
    with torch.device("meta"):
        head = VFNetOptions(deformable=options.deformable)
        model = VFNet(backbone=Backbone(options), class_names=[str(i) for i in range(80)], options=head)
    shapes = to_published(model.state_dict())
    state = {
        name: torch.randn(slot.shape) if slot.is_floating_point() else torch.zeros(slot.shape, dtype=slot.dtype)
        for name, slot in shapes.items()
    }
    torch.save({"meta": {"epoch": 12}, "state_dict": state}, path)


def one_import(path: Path) -> tuple[float, float, float]:
    """Seconds of reading the file, seconds of the import (which reads it again), and megabytes at its peak."""
    before = peak_megabytes()
    start = time.perf_counter()
    import_checkpoint(path)
    whole = time.perf_counter() - start
    memory = peak_megabytes() - before
    start = time.perf_counter()
    torch.load(path, weights_only=True)
    return time.perf_counter() - start, whole, memory


def peak_megabytes() -> float:
    """The most memory this process has had so far, as Linux counts it."""
    # getrusage would do on other systems, too, but starts from what the parent process had.
    status = Path("/proc/self/status").read_text(encoding="ascii")
    return int(status.partition("VmHWM:")[2].split()[0]) * 1024 / 1e6


if __name__ == "__main__":
    main()
