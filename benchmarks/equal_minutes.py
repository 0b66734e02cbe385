"""Train VFNet and torchvision's FCOS from random weights for the same number of minutes, and compare their AP.

Both have a ResNet-18 and 64 channels, and the same images, random changes, batches of 8, AdamW with one cosine over
the minutes, number format, moving average of weights and evaluator. The two run at the same time, one process and one
thread each, so that neither has the quieter machine.
"""

from __future__ import annotations

import argparse
import json
import math
import multiprocessing
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import ClassVar, cast

import torch
import torchvision
from machine import measured
from torch import Tensor
from torch.utils.data import DataLoader
from torchvision.models.detection import FCOS
from torchvision.models.detection.backbone_utils import BackboneWithFPN
from torchvision.models.detection.transform import GeneralizedRCNNTransform
from torchvision.ops.feature_pyramid_network import LastLevelP6P7

from tightbox.data.dataset import DetectionDataset, EpochBatches, collate
from tightbox.data.layout import read_data
from tightbox.data.transforms import TrainTransform
from tightbox.files import atomic_path
from tightbox.inference.detect import evaluate_model
from tightbox.models import Backbone, Detector, create_model
from tightbox.models.detector import Images
from tightbox.options import AugmentOptions, BackboneOptions, Preprocess, TrainOptions, VFNetOptions
from tightbox.structures import Candidates, Detections, ImageBatch, Targets
from tightbox.training.fit import choose_precision
from tightbox.training.optimizer import build_optimizer, moving_average

FIGURES = ("ap", "ap50", "ap75", "ap90")
CHANNELS = 64
NAMES = {"vfnet": "VFNet, tightbox", "fcos": "FCOS, torchvision"}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", required=True, help="folder of the data set")
    parser.add_argument("--minutes", type=float, default=25, help="of training, evaluation not counted")
    parser.add_argument("--size", type=int, default=320, help="longer side of the images")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--markdown", type=Path, help="also write the table to this file")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        results = {name: Path(folder) / f"{name}.json" for name in NAMES}
        context = multiprocessing.get_context("spawn")
        jobs = [
            context.Process(target=train, args=(name, args.data, args.size, args.minutes, args.seed, path))
            for name, path in results.items()
        ]
        for job in jobs:
            job.start()
        for job in jobs:
            job.join()
        rows = {name: json.loads(path.read_text(encoding="utf-8")) for name, path in results.items()}
    lines = [measured(), "", "| detector | AP | AP50 | AP75 | AP90 | images seen |", "|---|---|---|---|---|---|"]
    for name, row in rows.items():
        figures = " | ".join(f"{row[figure]:.3f}" for figure in FIGURES)
        lines.append(f"| {NAMES[name]} | {figures} | {row['images']} |")
    lines += ["", f"{args.minutes:g} minutes each on {Path(args.data).name}, one thread each, at the same time."]
    print("\n".join(lines))
    if args.markdown is not None:
        with atomic_path(args.markdown) as temporary:
            temporary.write_text("\n".join(lines) + "\n", encoding="utf-8")


class TorchvisionFCOS(Detector):
    """torchvision's FCOS behind our surface, so that both are trained and evaluated by the same lines."""

    name: ClassVar[str] = "torchvision fcos"

    def __init__(self, class_names: Sequence[str], preprocess: Preprocess) -> None:
        backbone = Backbone(BackboneOptions(name="test_efficientnet", pretrained=False)).requires_grad_(
            False
        )  # not used
        super().__init__(backbone=backbone, class_names=class_names, options=VFNetOptions(), preprocess=preprocess)
        layers = {"layer2": "0", "layer3": "1", "layer4": "2"}
        pyramid = BackboneWithFPN(
            torchvision.models.resnet18(weights=None),
            layers,
            [128, 256, 512],
            CHANNELS,
            extra_blocks=LastLevelP6P7(CHANNELS, CHANNELS),
        )
        self.fcos = FCOS(pyramid, num_classes=len(class_names))
        self.fcos.transform = _NoResize(0, 0, [0.485, 0.456, 0.406], [0.229, 0.224, 0.225])
        self.to(memory_format=torch.channels_last)

    def loss(self, images: Images, targets: Sequence[Targets]) -> dict[str, Tensor]:
        """FCOS's own losses."""
        objects = [{"boxes": target.boxes, "labels": target.labels} for target in targets]
        return cast(dict[str, Tensor], self.fcos(_unpadded(images), objects))

    def detect(self, images: Images) -> list[Detections]:
        """FCOS's own detections."""
        return [Detections(row["boxes"], row["scores"], row["labels"]) for row in self.fcos(_unpadded(images))]

    def candidates(self, images: Images) -> list[Candidates]:
        """It does not give any out."""
        raise RuntimeError("torchvision's FCOS keeps its candidates to itself")

    def assigned_candidates(self, images: Images, targets: Sequence[Targets]) -> list[tuple[Candidates, Tensor]]:
        """It does not give any out."""
        raise RuntimeError("torchvision's FCOS keeps its candidates to itself")

    def rank(self, candidates: Candidates) -> Tensor:
        """It does not take any in."""
        raise RuntimeError("torchvision's FCOS keeps its candidates to itself")


class _NoResize(GeneralizedRCNNTransform):  # type: ignore[misc]  # torchvision has no types
    """Our data set has resized the images already."""

    def resize(self, image: Tensor, target: dict[str, Tensor] | None = None) -> tuple[Tensor, dict[str, Tensor] | None]:
        return image, target


def _unpadded(images: Images) -> list[Tensor]:
    batch = cast(ImageBatch, images)
    return [pixels[:, :h, :w] for pixels, (h, w) in zip(batch.pixels, batch.sizes, strict=True)]


def train(name: str, data: str, size: int, minutes: float, seed: int, result: Path) -> None:
    """Train one detector by the clock, and write its figures on the validation split."""
    torch.set_num_threads(1)
    torch.manual_seed(seed)
    records = read_data(data, "train")
    preprocess = Preprocess(long_side=size, short_side=size)
    model = (
        TorchvisionFCOS(records.class_names, preprocess)
        if name == "fcos"
        else create_model(
            "vfnet",
            class_names=records.class_names,
            backbone="resnet18",
            pretrained_backbone=False,
            preprocess=preprocess,
            channels=CHANNELS,
        )
    )
    transform = TrainTransform(AugmentOptions(vertical_flip=0.5, mosaic=0.5), preprocess)
    # The clock, not the epoch, tells how far the training is: mosaics go on to the end.
    dataset = DetectionDataset(records, preprocess, transform=transform, seed=seed, epochs=10**9, cache_mb=2000)
    batches = EpochBatches(len(dataset), 8, seed)
    loader = DataLoader(dataset, batch_sampler=batches, collate_fn=collate)
    options = TrainOptions()
    optimizer = build_optimizer(model, options)
    average = moving_average(model, options.ema)
    half = choose_precision("auto") == "bf16"
    model.train()
    images_seen, started, progress = 0, time.monotonic(), 0.0
    while progress < 1:
        for images, targets, _ in loader:
            progress = (time.monotonic() - started) / 60 / minutes
            if progress >= 1:
                break
            factor = min(1.0, 0.1 + progress / options.warmup) * 0.5 * (1 + math.cos(math.pi * progress))
            for group in optimizer.param_groups:
                group["lr"] = options.lr * factor
            with torch.autocast("cpu", torch.bfloat16, enabled=half):
                losses = model.loss(images, targets)
            torch.autograd.backward(torch.stack(list(losses.values())).sum())
            torch.nn.utils.clip_grad_norm_(model.parameters(), options.clip)
            optimizer.step()
            optimizer.zero_grad()
            average.update_parameters(model)
            images_seen += len(images)
        batches.epoch += 1
    trained = cast(Detector, average.module)
    metrics = evaluate_model(trained, read_data(data, "val").with_classes(records.class_names))
    figures = {figure: getattr(metrics, figure) for figure in FIGURES}
    result.write_text(json.dumps(figures | {"images": images_seen}), encoding="utf-8")


if __name__ == "__main__":
    main()
