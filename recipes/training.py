"""Training the runs of a study, several at a time, each in its own process; what is trained already stays."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from statistics import mean, stdev

import yaml

from tightbox.data.scenes import write_scenes

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE.parent / "benchmarks"))

from machine import machine  # noqa: E402 - a script beside the benchmarks, not a package

__all__ = ["HERE", "machine", "scenes", "spread", "train_all"]


def scenes(root: Path = Path("runs/scenes"), train: int = 600, val: int = 200) -> Path:
    """The folder of the studies' synthetic scenes, rendered if it is not there."""
    if not (root / "val.json").exists():
        write_scenes(root, {"train": train, "val": val}, seed=0)
    return root


def train_all(runs: dict[Path, list[str]], jobs: int) -> None:
    """Train into each folder with its `tightbox train` options; with several jobs, each has one thread."""
    missing = {out: options for out, options in runs.items() if not _finished(out)}
    environment = os.environ | ({"OMP_NUM_THREADS": "1"} if jobs > 1 else {})

    def train(out: Path) -> None:
        resume = ["--resume"] if (out / "resume").exists() else []
        command = [sys.executable, "-m", "tightbox", "train", *missing[out], "--out", str(out), *resume]
        out.parent.mkdir(parents=True, exist_ok=True)
        with open(f"{out}.log", "a", encoding="utf-8") as log:
            subprocess.run(command, stdout=log, stderr=log, check=True, env=environment)
        print(f"trained: {out}", flush=True)

    with ThreadPoolExecutor(jobs) as pool:
        list(pool.map(train, missing))


def _finished(out: Path) -> bool:
    """Whether a run has had all its epochs: one that was cut off has checkpoints too."""
    if not (out / "metrics.jsonl").exists():
        return False
    rows = (out / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    epochs = yaml.safe_load((out / "config.yaml").read_text(encoding="utf-8"))["epochs"]
    return bool(rows) and json.loads(rows[-1])["epoch"] >= epochs


def spread(values: Sequence[float], digits: int, sign: bool = False) -> str:
    """Mean ± standard deviation; the value alone if it is the only one."""
    text = f"{mean(values):{'+' if sign else ''}.{digits}f}"
    return f"{text} ± {stdev(values):.{digits}f}" if len(values) > 1 else text
