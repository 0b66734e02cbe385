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

import numpy as np
from harness import write_table
from machine import measured
from PIL import Image

from tightbox.inference.jobs.merge import merge
from tightbox.inference.jobs.parts import read_rows
from tightbox.models import create_model
from tightbox.options import BackboneOptions, Preprocess


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=10_000)
    parser.add_argument("--part_size", type=int, default=100)
    parser.add_argument("--kills", type=int, default=10)
    parser.add_argument("--markdown", type=Path, metavar="FILE", help="also write the table to FILE")
    options = parser.parse_args()
    lines = [measured(), "", "| kill | planned after images | images in finished parts |", "|---|---|---|"]
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        make_inputs(folder, options.images)
        seconds = run(folder, "whole", options.part_size)
        chance = random.Random(0)
        points = sorted(chance.sample(range(options.images), options.kills))
        for kill, point in enumerate(points, 1):
            parts, within = divmod(point, options.part_size)
            run(folder, "killed", options.part_size, (parts, within / options.images * seconds))
            done = len(list((folder / "killed").glob("part-*"))) * options.part_size
            lines.append(f"| {kill} | {point:,} | {min(done, options.images):,} |")
            print(lines[-1], flush=True)
        run(folder, "killed", options.part_size)
        whole, killed = digest(folder / "whole"), digest(folder / "killed")
        merged = merge([folder / "killed"], folder / "merged.jsonl")
        once = len({row["path"] for row in read_rows(folder / "merged.jsonl", ("path",))})
    lines += ["", f"{merged.images:,} images in the merged file, {once:,} different ones."]
    lines += [f"The parts are {'' if whole == killed else 'NOT '}equal byte by byte to those of the whole run."]
    print("\n".join(lines))
    write_table(options.markdown, lines, parser)
    sys.exit(whole != killed or once != options.images)


def make_inputs(folder: Path, images: int) -> None:
    """Images of 64 pixels and a VFNet of 32 channels that reports boxes without training."""
    noise = np.random.default_rng(0)
    (folder / "images").mkdir()
    for i in range(images):
        pixels = noise.integers(0, 256, (8, 8, 3), dtype=np.uint8)
        Image.fromarray(pixels).resize((64, 64)).save(folder / "images" / f"{i:06d}.jpg")
    create_model(
        "vfnet",
        class_names=["cat", "dog"],
        backbone=BackboneOptions(name="test_resnet", pretrained=False),
        preprocess=Preprocess(long_side=64, short_side=64),
        channels=32,
        tower_depth=1,
        score_threshold=0.0,
        max_detections=20,
    ).save(folder / "model")


def run(folder: Path, out: str, part_size: int, kill: tuple[int, float] | None = None) -> float:
    """Predict or go on, and kill it once so many parts are there, so many seconds later; the seconds that it took."""
    command = [sys.executable, "-m", "tightbox", "predict", str(folder / "model"), str(folder / "images")]
    command += ["--out", str(folder / out), "--format", "jsonl", "--part-size", str(part_size)]
    command += ["--score-threshold", "0", "--device", "cpu", "--batch-size", "16"]
    if (folder / out / "job.json").exists():
        command.append("--resume")
    start = time.perf_counter()
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL)
    if kill is not None:
        while len(list((folder / out).glob("part-*"))) < kill[0] and process.poll() is None:
            time.sleep(0.01)
        time.sleep(kill[1])
        process.send_signal(signal.SIGKILL)
    if process.wait() not in (0, -signal.SIGKILL):
        sys.exit(f"predict ended with status {process.returncode}")
    return time.perf_counter() - start


def digest(folder: Path) -> str:
    """Of all part files and their names."""
    parts = hashlib.sha256()
    for path in sorted(folder.glob("part-*")):
        parts.update(path.name.encode() + path.read_bytes())
    return parts.hexdigest()


if __name__ == "__main__":
    main()
