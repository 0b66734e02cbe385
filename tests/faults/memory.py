"""`python -m tests.faults.memory`: how much the process grows over many predictions, and over a training's epochs."""

from __future__ import annotations

import argparse
import gc
import sys
import tempfile
import threading
import time
from pathlib import Path

import torch

from tests.helpers.models import tiny_model
from tests.helpers.robustness_page import put_into_page
from tightbox.data.layout import read_data
from tightbox.data.scenes import write_scenes
from tightbox.options import AugmentOptions, TrainOptions
from tightbox.training.fit import fit

ALLOWED = 0.02


def resident() -> float:
    """Megabytes of memory that this process holds (Linux)."""
    gc.collect()
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * 4096 / 2**20


def over_predictions(count: int) -> tuple[float, float]:
    """Memory after the first tenth, which warms every cache, and after all."""
    model = tiny_model().eval()
    image = torch.rand(3, 64, 64)
    first = 0.0
    for number in range(count):
        model.predict(image)
        if number + 1 == count // 10:
            first = resident()
    return first, resident()


def over_epochs(epochs: int) -> tuple[float, float]:
    """Memory when a quarter of the epochs is done, and when all are."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_scenes(folder / "data", {"train": 8, "val": 3}, seed=1, size=(96, 96))
        train, val = read_data(folder / "data", "train"), read_data(folder / "data", "val")
        log = folder / "out" / "metrics.jsonl"
        seen: list[float] = []
        done = threading.Event()

        def watch() -> None:
            while not done.is_set():
                rows = len(log.read_text().splitlines()) if log.is_file() else 0
                if rows >= epochs // 4 and not seen:
                    seen.append(resident())
                time.sleep(0.02)

        watcher = threading.Thread(target=watch)
        watcher.start()
        try:
            options = TrainOptions(epochs=epochs, batch_size=2, eval_every=1, workers=0, precision="fp32")
            fit(tiny_model(class_names=train.class_names), train, val, folder / "out", options, AugmentOptions())
        finally:
            done.set()
            watcher.join()
        return seen[0], resident()


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--predictions", type=int, default=10_000)
    parser.add_argument("--epochs", type=int, default=20)
    parser.add_argument("--page", action="store_true", help="write the table into docs/robustness.md")
    args = parser.parse_args()
    torch.set_num_threads(1)
    lines, worst = ["| what | MB after warming up | MB at the end | growth |", "|---|---|---|---|"], 0.0
    for what, (before, after) in (
        (f"{args.predictions} predictions", over_predictions(args.predictions)),
        (f"{args.epochs} epochs", over_epochs(args.epochs)),
    ):
        growth = after / before - 1
        worst = max(worst, growth)
        lines.append(f"| {what} | {before:.1f} | {after:.1f} | {growth:+.2%} |")
    print("\n".join(lines))
    if args.page:
        put_into_page("memory", "make memory", "\n".join(lines))
    return int(worst > ALLOWED)


if __name__ == "__main__":
    sys.exit(main())
