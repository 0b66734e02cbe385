"""Images per second of the training loader by worker processes, and how much of a training step waits for it."""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from harness import write_table
from machine import measured
from torch.utils.data import DataLoader

from tightbox.data.dataset import DetectionDataset, EpochBatches, Item, collate
from tightbox.data.layout import read_data
from tightbox.data.scenes import write_scenes
from tightbox.data.transforms import TrainTransform
from tightbox.models import Detector, create_model
from tightbox.options import AugmentOptions, Preprocess

HEADER = (
    "| workers | images/s of the loader | images/s of training | fraction of a step that waits |\n|---|---|---|---|"
)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, help="folder of a data set; left out, scenes are drawn")
    parser.add_argument("--workers", type=int, nargs="+", default=[0, 1, 2, 4])
    parser.add_argument("--steps", type=int, default=20, help="timed steps, after one that is not counted")
    parser.add_argument("--batch_size", type=int, default=8)
    parser.add_argument("--side", type=int, default=640, help="long side of the images in training")
    parser.add_argument("--backbone", default="resnet18")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--markdown", type=Path, metavar="FILE", help="also write the table to FILE")
    options = parser.parse_args()
    lines = [measured(), "", HEADER]
    with tempfile.TemporaryDirectory() as name:
        if options.data is None:
            count = options.batch_size * (options.steps + 1)
            write_scenes(Path(name), {"train": count, "val": 1}, size=(options.side, options.side))
        data = read_data(options.data or Path(name), "train")
        preprocess = Preprocess(long_side=options.side, short_side=options.side)
        model = create_model(
            "vfnet",
            class_names=data.class_names,
            backbone=options.backbone,
            pretrained_backbone=False,
            preprocess=preprocess,
        ).to(options.device)
        dataset = DetectionDataset(data, preprocess, transform=TrainTransform(AugmentOptions(), preprocess))
        for workers in options.workers:
            loader = DataLoader(
                dataset,
                batch_sampler=EpochBatches(len(dataset), options.batch_size, seed=0),
                collate_fn=collate,
                num_workers=workers,
                persistent_workers=workers > 0,
            )
            alone, _ = go(loader, options.steps, None)
            trained, waited = go(loader, options.steps, model)
            lines.append(f"| {workers} | {alone:.1f} | {trained:.1f} | {waited:.1%} |")
            print(lines[-1], flush=True)
    print("\n".join(lines))
    write_table(options.markdown, lines, parser)


def go(loader: DataLoader[Item], steps: int, model: Detector | None) -> tuple[float, float]:
    """Images per second, and the fraction of the time in which the model waited for images."""
    batches = endless(loader)
    images, targets, _ = next(batches)  # workers start
    seen, waited, start = 0, 0.0, time.perf_counter()
    for _ in range(steps):
        asked = time.perf_counter()
        images, targets, _ = next(batches)
        waited += time.perf_counter() - asked
        seen += len(images)
        if model is not None:
            device = model.device
            model.train()
            losses = model.loss(images.to(device), [t.to(device) for t in targets])
            torch.stack(list(losses.values())).sum().backward()
            model.zero_grad(set_to_none=True)
            if device.type == "cuda":
                torch.cuda.synchronize()
    seconds = time.perf_counter() - start
    return seen / seconds, waited / seconds


def endless(loader: DataLoader[Item]) -> Iterator[Any]:
    """One epoch after another."""
    while True:
        yield from loader


if __name__ == "__main__":
    main()
