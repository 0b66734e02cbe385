"""Images per second of the training loader by worker processes, and the fraction of a training step that waits for it.

The training is the default one of `tightbox train`, unless the options say otherwise. Each figure is taken for so many
seconds after the first batch.
"""

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

from tightbox.commands.train import small
from tightbox.data.dataset import DetectionDataset, EpochBatches, Item, collate
from tightbox.data.layout import read_data
from tightbox.data.scenes import write_scenes
from tightbox.data.transforms import TrainTransform
from tightbox.models import Detector, create_model
from tightbox.options import AugmentOptions, Preprocess

SMALL = small()
SCENES = 64  # images that are drawn where no data set is given
HEADER = (
    "| workers | images/s of the loader | images/s of training | fraction of a step that waits |\n|---|---|---|---|"
)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, help="folder of a data set; left out, scenes are drawn")
    parser.add_argument("--workers", type=int, nargs="+", default=[0, 1, 2, 4])
    parser.add_argument("--seconds", type=float, default=20, help="of each figure, at least one batch")
    parser.add_argument("--batch_size", type=int, default=SMALL["batch_size"])
    parser.add_argument("--side", type=int, default=320, help="long side of the images in training")
    parser.add_argument("--backbone", default=SMALL["backbone"])
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--markdown", type=Path, metavar="FILE", help="also write the table to FILE")
    options = parser.parse_args()
    lines = [measured(), "", HEADER]
    with tempfile.TemporaryDirectory() as name:
        if options.data is None:
            write_scenes(Path(name), {"train": max(SCENES, 4 * options.batch_size), "val": 1}, size=(640, 480))
        data = read_data(options.data or Path(name), "train")
        preprocess = Preprocess(long_side=options.side, short_side=options.side)
        own = {key.removeprefix("vfnet."): value for key, value in SMALL.items() if key.startswith("vfnet.")}
        model = create_model(
            "vfnet",
            class_names=data.class_names,
            backbone=options.backbone,
            pretrained_backbone=False,
            preprocess=preprocess,
            **own,
        ).to(options.device)
        transform = TrainTransform(AugmentOptions(mosaic=SMALL["mosaic"]), preprocess)
        dataset = DetectionDataset(data, preprocess, transform=transform)
        for workers in options.workers:
            loader = DataLoader(
                dataset,
                batch_sampler=EpochBatches(len(dataset), options.batch_size, seed=0),
                collate_fn=collate,
                num_workers=workers,
                persistent_workers=workers > 0,
                pin_memory=options.device == "cuda",
            )
            alone, _ = go(loader, options.seconds, None)
            trained, waited = go(loader, options.seconds, model)
            lines.append(f"| {workers} | {alone:.1f} | {trained:.1f} | {waited:.1%} |")
            print(lines[-1], flush=True)
    print("\n".join(lines))
    write_table(options.markdown, lines, parser)


def go(loader: DataLoader[Item], seconds: float, model: Detector | None) -> tuple[float, float]:
    """Images per second, and the fraction of the time in which the model waited for images."""
    batches = endless(loader)
    step(model, *next(batches)[:2])  # workers start
    seen, waited, start = 0, 0.0, time.perf_counter()
    while not seen or time.perf_counter() - start < seconds:
        asked = time.perf_counter()
        images, targets, _ = next(batches)
        waited += time.perf_counter() - asked
        seen += len(images)
        step(model, images, targets)
    took = time.perf_counter() - start
    return seen / took, waited / took


def step(model: Detector | None, images: Any, targets: Any) -> None:
    """Loss and gradient, if there is a model; ends when the device has computed them."""
    if model is None:
        return
    model.train()
    losses = model.loss(images.to(model.device), [target.to(model.device) for target in targets])
    torch.stack(list(losses.values())).sum().backward()
    model.zero_grad(set_to_none=True)
    if model.device.type == "cuda":
        torch.cuda.synchronize()


def endless(loader: DataLoader[Item]) -> Iterator[Any]:
    """One epoch after another."""
    while True:
        yield from loader


if __name__ == "__main__":
    main()
