"""CPU seconds of starting up: a command of one image against importing its libraries, and `--help` likewise.

Every round starts each process once, one after the other, so that a busy moment of the machine falls on all. Seconds of
the CPU are those of the process with all its threads, user and system together.
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
from harness import write_table
from machine import measured
from PIL import Image

from tightbox.models import create_model
from tightbox.options import BackboneOptions, Preprocess

LIBRARIES, PARSER = "import torch, torchvision, timm", "import jsonargparse"
SIDE = 64  # of the image, in pixels: the network's own seconds are no start-up
HEADER = (
    "| command | CPU, s | wall, s | of | CPU, s | wall, s | ratio of CPU | at most |\n|---|---|---|---|---|---|---|---|"
)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=7, help="rounds, of which the medians count")
    parser.add_argument("--markdown", type=Path, metavar="FILE", help="also write the table to FILE")
    options = parser.parse_args()
    if options.repeats < 1:
        parser.error("--repeats must be 1 or more")
    lines = [measured(), "", HEADER]
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        tightbox = ["-m", "tightbox"]
        predict = [*tightbox, "predict", *map(str, write_inputs(folder)), "--out", str(folder / "out")]
        commands = [["-c", LIBRARIES], predict, ["-c", PARSER], [*tightbox, "--help"]]
        libraries, prediction, jsonargparse, overview = medians(commands, options.repeats)
    lines.append(row("tightbox predict CHECKPOINT IMAGE", prediction, LIBRARIES, libraries, 1.25))
    lines.append(row("tightbox --help", overview, PARSER, jsonargparse, 1.6))
    print("\n".join(lines))
    write_table(options.markdown, lines, parser)


def write_inputs(folder: Path) -> tuple[Path, Path]:
    """A checkpoint of a tiny network with random weights, and an image."""
    torch.manual_seed(0)
    preprocess = Preprocess(long_side=SIDE, short_side=SIDE)
    small: dict[str, Any] = {"channels": 32, "tower_depth": 1}
    backbone = BackboneOptions(name="test_resnet", pretrained=False)
    model = create_model("vfnet", num_classes=2, backbone=backbone, preprocess=preprocess, **small)
    Image.new("RGB", (SIDE, SIDE), "grey").save(folder / "image.png")
    return model.save(folder / "checkpoint"), folder / "image.png"


def medians(commands: list[list[str]], repeats: int) -> list[tuple[float, float]]:
    """Median seconds of processor and clock of each command of Python, after one round that fills the disk's cache."""
    rounds = [[once(command) for command in commands] for _ in range(repeats + 1)][1:]
    by_command = [list(zip(*times, strict=True)) for times in zip(*rounds, strict=True)]
    return [(statistics.median(processor), statistics.median(clock)) for processor, clock in by_command]


def once(command: list[str]) -> tuple[float, float]:
    """Seconds of processor and clock of one process."""
    before, start = os.times(), time.perf_counter()
    subprocess.run([sys.executable, *command], check=True, capture_output=True)
    after, clock = os.times(), time.perf_counter() - start
    processor = after.children_user + after.children_system - before.children_user - before.children_system
    return processor, clock


def row(name: str, own: tuple[float, float], base: str, other: tuple[float, float], most: float) -> str:
    """One line of the table."""
    times = [f"{seconds:.2f}" for seconds in (*own, *other)]
    ratio = f"{own[0] / other[0]:.2f}"
    return f"| `{name}` | {times[0]} | {times[1]} | `{base}` | {times[2]} | {times[3]} | {ratio} | {most} |"


if __name__ == "__main__":
    main()
