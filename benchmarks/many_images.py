"""For benchmarks of `tightbox predict` on many images: small images of noise, a tiny detector, the command."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
from PIL import Image

from tightbox.models import create_model
from tightbox.options import BackboneOptions, Preprocess


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


def predict(folder: Path, out: str, part_size: int, *more: str) -> list[str]:
    """The command that works off the images of `make_inputs`, in parts, on the CPU."""
    command = [sys.executable, "-m", "tightbox", "predict", str(folder / "model"), str(folder / "images")]
    command += ["--out", str(folder / out), "--format", "jsonl", "--part-size", str(part_size)]
    return [*command, "--score-threshold", "0", "--device", "cpu", "--batch-size", "16", *more]


def finished(folder: Path) -> list[float]:
    """When each part in a job's folder was finished, in order of time."""
    return sorted(path.stat().st_mtime for path in folder.glob("part-*"))
