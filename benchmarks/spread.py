"""`tightbox predict` on many small images: two shards against one process, and Ray against our own loop.

The seconds of all are those of the whole command, with what it imports and, on Ray, the start of a cluster. The work is
what lies between the first finished part and the last. Every process has one thread of PyTorch.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

from harness import write_table
from machine import measured
from many_images import finished, make_inputs, predict

from tightbox.inference.jobs.merge import merge

HEADER = "| run | seconds, all | seconds, work | images/s at work |\n|---|---|---|---|"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=10_000)
    parser.add_argument("--part_size", type=int, default=100)
    parser.add_argument("--markdown", type=Path, metavar="FILE", help="also write the table to FILE")
    options = parser.parse_args()
    cores = sorted(os.sched_getaffinity(0))[:2]
    if len(cores) < 2:
        parser.error("this needs two cores")
    runs: dict[str, list[tuple[list[str], Sequence[int]]]] = {
        "one process on one core": [([], cores[:1])],
        "two shards, each on a core": [(["--shard", f"{i + 1}/2"], cores[i : i + 1]) for i in range(2)],
        "one process on two cores": [([], cores)],
        "Ray, one actor, on two cores": [(["--engine", "ray"], cores)],
    }
    lines = [measured(), "", HEADER]
    wall, work = [], []
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        make_inputs(folder, options.images)
        for number, (what, processes) in enumerate(runs.items()):
            out, start = f"out-{number}", time.perf_counter()
            started = [begin(predict(folder, out, options.part_size, *more), where) for more, where in processes]
            if any(process.wait() for process in started):
                sys.exit(f"{what}: predict ended badly")
            wall.append(time.perf_counter() - start)
            times = finished(folder / out)
            # The first part of each process is done when its clock starts.
            images = options.images - len(processes) * options.part_size
            work.append((times[-1] - times[len(processes) - 1]) * options.images / images)
            merge([folder / out], folder / "merged.jsonl")  # proves that every image is there once
            lines.append(f"| {what} | {wall[-1]:.1f} | {work[-1]:.1f} | {options.images / work[-1]:.1f} |")
            print(lines[-1], flush=True)
    lines += ["", f"Two shards against one process: {wall[0] / wall[1]:.2f}x in all, {work[0] / work[1]:.2f}x at work."]
    lines += [f"Ray's overhead: {wall[3] / wall[2] - 1:.1%} in all, {work[3] / work[2] - 1:.1%} at work."]
    print("\n".join(lines))
    write_table(options.markdown, lines, parser)


def begin(command: list[str], cores: Sequence[int]) -> subprocess.Popen[bytes]:
    """Start a process, and those that it starts, on these cores."""
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, env=environment)
    os.sched_setaffinity(process.pid, cores)
    return process


if __name__ == "__main__":
    main()
