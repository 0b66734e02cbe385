"""Kill `tightbox predict` at random points, resume it each time, and compare with a run that nobody killed.

Writes the log of the kills as a table: how many images were in finished parts at each. The images are small and made of
noise, the detector is a tiny one with random weights.
"""

from __future__ import annotations

import argparse
import hashlib
import random
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from harness import write_table
from machine import measured
from many_images import finished, make_inputs, predict

from tightbox.inference.jobs.merge import merge
from tightbox.inference.jobs.parts import read_rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=10_000)
    parser.add_argument("--part_size", type=int, default=100)
    parser.add_argument("--kills", type=int, default=10)
    parser.add_argument("--markdown", type=Path, metavar="FILE", help="also write the table to FILE")
    options = parser.parse_args()
    lines = [measured(), "", "| kill -9 | planned after images | images in finished parts then |", "|---|---|---|"]
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        make_inputs(folder, options.images)
        run(predict(folder, "whole", options.part_size))
        times = finished(folder / "whole")
        seconds = (times[-1] - times[0]) / max(1, len(times) - 1)  # that a part takes
        chance, missed = random.Random(0), 0
        for kill, point in enumerate(sorted(chance.sample(range(options.images), options.kills)), 1):
            parts, within = divmod(point, options.part_size)
            killed = run_killed(folder, options.part_size, parts, within / options.part_size * seconds)
            done = min(options.images, len(finished(folder / "killed")) * options.part_size)
            missed += not killed
            lines.append(f"| {kill} | {point:,} | {done:,}{'' if killed else ', too late: it had ended'} |")
            print(lines[-1], flush=True)
        run(predict(folder, "killed", options.part_size, "--resume"))
        whole, resumed = digest(folder / "whole"), digest(folder / "killed")
        merged = merge([folder / "killed"], folder / "merged.jsonl")
        once = len({row["path"] for row in read_rows(folder / "merged.jsonl", ("path",))})
    lines += ["", f"{merged.images:,} images in the merged file, {once:,} different ones."]
    lines += [f"The parts are {'' if whole == resumed else 'NOT '}equal byte by byte to those of the whole run."]
    print("\n".join(lines))
    write_table(options.markdown, lines, parser)
    sys.exit(whole != resumed or once != options.images or missed > 0)


def run(command: list[str]) -> None:
    """To its end, which must be a good one."""
    subprocess.run(command, stdout=subprocess.DEVNULL, check=True)


def run_killed(folder: Path, part_size: int, parts: int, seconds: float) -> bool:
    """Begin or go on, and kill once so many parts are there, so many seconds later; False if it had ended by then."""
    job = folder / "killed"
    resume = ["--resume"] if (job / "job.json").exists() else []
    process = subprocess.Popen(predict(folder, "killed", part_size, *resume), stdout=subprocess.DEVNULL)
    while process.poll() is None and not (job.is_dir() and len(finished(job)) >= parts):
        time.sleep(0.005)
    time.sleep(seconds)
    process.send_signal(signal.SIGKILL)
    return process.wait() == -signal.SIGKILL


def digest(folder: Path) -> str:
    """Of all part files and their names."""
    parts = hashlib.sha256()
    for path in sorted(folder.glob("part-*")):
        parts.update(path.name.encode() + path.read_bytes())
    return parts.hexdigest()


if __name__ == "__main__":
    main()
