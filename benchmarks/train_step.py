"""Time a VFNet R-50 training step and forward pass beside torchvision's FCOS R-50, interleaved in one run.

FCOS has the same backbone, pyramid and number of 3x3 convolutions, but no star convolution: the ratio is what the star
costs. Both have 80 classes and random weights, and run in float32.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import torch
import torchvision
from machine import measured
from torch import Tensor, nn

from tightbox.files import atomic_path
from tightbox.models import create_model
from tightbox.structures import Targets

CLASSES = 80


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=5, help="timed runs of each, after one that is not counted")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads(), help="CPU threads")
    parser.add_argument("--markdown", type=Path, help="also write the table to this file")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    torch.manual_seed(0)
    ours = create_model("vfnet", num_classes=CLASSES, backbone="resnet50", pretrained_backbone=False)
    fcos = torchvision.models.detection.fcos_resnet50_fpn(
        weights=None,
        weights_backbone=None,
        num_classes=CLASSES,
        min_size=800,
        max_size=1344,
        trainable_backbone_layers=5,
    )
    # The square pictures of the training step must not be resized by torchvision's own transform.
    small = torchvision.models.detection.transform.GeneralizedRCNNTransform(320, 320, [0.0] * 3, [1.0] * 3)
    large = fcos.transform
    pictures, boxes, labels = torch.rand(2, 3, 320, 320), random_boxes(2, 7, 320), torch.randint(CLASSES, (2, 7))
    targets = [Targets.of(b, c) for b, c in zip(boxes, labels, strict=True)]
    their_targets = [{"boxes": b, "labels": c} for b, c in zip(boxes, labels, strict=True)]
    wide = torch.rand(1, 3, 800, 1344)

    def our_step() -> None:
        ours.train()
        step(ours, ours.loss(list(pictures), targets))

    def their_step() -> None:
        fcos.train()
        fcos.transform = small
        step(fcos, fcos(list(pictures), their_targets))

    def our_forward() -> None:
        ours.eval()
        with torch.inference_mode():
            ours.detect(list(wide))

    def their_forward() -> None:
        fcos.eval()
        fcos.transform = large
        with torch.inference_mode():
            fcos(list(wide))

    rows = [
        ("training step, 2×3×320×320", *interleaved(our_step, their_step, args.repeats)),
        ("detection, 1×3×800×1344", *interleaved(our_forward, their_forward, args.repeats)),
    ]
    table = report(rows, args.repeats)
    print(table)
    if args.markdown is not None:
        with atomic_path(args.markdown) as temporary:
            temporary.write_text(table + "\n", encoding="utf-8")


def random_boxes(images: int, count: int, size: int) -> Tensor:
    corners = torch.rand(images, count, 2) * size * 0.6
    return torch.cat([corners, corners + 16 + torch.rand(images, count, 2) * size * 0.3], dim=-1)


def step(model: nn.Module, losses: dict[str, Tensor]) -> None:
    """Backward and a plain SGD step."""
    torch.stack(list(losses.values())).sum().backward()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.grad is not None:
                parameter.add_(parameter.grad, alpha=-1e-6)
                parameter.grad = None


def interleaved(ours: Callable[[], None], theirs: Callable[[], None], repeats: int) -> tuple[list[float], list[float]]:
    """Seconds of each run, one of ours and one of theirs in turn."""
    times: tuple[list[float], list[float]] = ([], [])
    for run in range(repeats + 1):
        for function, seconds in zip((ours, theirs), times, strict=True):
            started = time.perf_counter()
            function()
            if run > 0:
                seconds.append(time.perf_counter() - started)
    return times


def report(rows: list[tuple[str, list[float], list[float]]], repeats: int) -> str:
    lines = ["| | VFNet, tightbox | FCOS, torchvision | ratio |", "|---|---|---|---|"]
    for name, ours, theirs in rows:
        ratio = statistics.median(a / b for a, b in zip(ours, theirs, strict=True))
        lines.append(f"| {name} | {statistics.median(ours):.2f} s | {statistics.median(theirs):.2f} s | {ratio:.2f} |")
    note = f"Medians of {repeats} runs in turn; ratio: median of the pairs'. ResNet-50, 80 classes, float32."
    lines = [measured(), "", *lines, "", note]
    return "\n".join(lines)


if __name__ == "__main__":
    main()
