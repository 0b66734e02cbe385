"""Time a VFNet R-50 training step and detection beside torchvision's FCOS R-50, in turn and in one run.

FCOS has the same backbone, pyramid and number of 3x3 convolutions, but no star convolution: the ratio is what the star
costs. Both have 80 classes and random weights, and run in float32. FCOS is timed as it comes, and in the channels-last
layout that our model uses, which is the harder yardstick.
"""

from __future__ import annotations

import argparse
import copy
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import torch
import torchvision
from machine import measured
from torch import Tensor, nn
from torchvision.models.detection import FCOS
from torchvision.models.detection.transform import GeneralizedRCNNTransform

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
    vfnet = create_model("vfnet", num_classes=CLASSES, backbone="resnet50", pretrained_backbone=False)
    fcos = torchvision.models.detection.fcos_resnet50_fpn(
        weights=None, weights_backbone=None, num_classes=CLASSES, trainable_backbone_layers=5
    )
    last = copy.deepcopy(fcos).to(memory_format=torch.channels_last)
    images, boxes, labels = torch.rand(2, 3, 320, 320), random_boxes(2, 7, 320), torch.randint(CLASSES, (2, 7))
    targets = [Targets.of(b, c) for b, c in zip(boxes, labels, strict=True)]
    wide = torch.rand(1, 3, 800, 1344)

    def our_step() -> None:
        step(vfnet.train(), vfnet.loss(list(images), targets))

    def our_detection() -> None:
        vfnet.eval().detect(list(wide))

    def their_step(model: FCOS) -> Callable[[], None]:
        truth = [{"boxes": b, "labels": c} for b, c in zip(boxes, labels, strict=True)]

        def run() -> None:
            model.transform = GeneralizedRCNNTransform(320, 320, [0.0] * 3, [1.0] * 3)  # the images' own size
            step(model.train(), model(list(images), truth))

        return run

    def their_detection(model: FCOS) -> Callable[[], None]:
        def run() -> None:
            model.transform = GeneralizedRCNNTransform(800, 1344, [0.0] * 3, [1.0] * 3)
            with torch.no_grad():
                model.eval()(list(wide))

        return run

    rows = {
        "training step, 2×3×320×320": (our_step, their_step(fcos), their_step(last)),
        "detection, 1×3×800×1344": (our_detection, their_detection(fcos), their_detection(last)),
    }
    lines = [
        measured(),
        "",
        "| | VFNet, tightbox | FCOS, torchvision | ratio | FCOS, channels last | ratio |",
        "|---|---|---|---|---|---|",
    ]
    for name, functions in rows.items():
        ours, theirs, channels_last = interleaved(functions, args.repeats)
        cells = [f"{statistics.median(ours):.2f} s"]
        for other in (theirs, channels_last):
            ratio = statistics.median(a / b for a, b in zip(ours, other, strict=True))
            cells += [f"{statistics.median(other):.2f} s", f"{ratio:.2f}"]
        lines.append(f"| {name} | {' | '.join(cells)} |")
    lines += ["", f"Medians of {args.repeats} runs in turn, and of their ratios. ResNet-50, 80 classes, float32."]
    table = "\n".join(lines)
    print(table)
    if args.markdown is not None:
        with atomic_path(args.markdown) as temporary:
            temporary.write_text(table + "\n", encoding="utf-8")


def random_boxes(images: int, count: int, size: int) -> Tensor:
    corners = torch.rand(images, count, 2) * size * 0.6
    return torch.cat([corners, corners + 16 + torch.rand(images, count, 2) * size * 0.3], dim=-1)


def step(model: nn.Module, losses: dict[str, Tensor]) -> None:
    """Backward and a plain SGD step."""
    torch.autograd.backward(torch.stack(list(losses.values())).sum())
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.grad is not None:
                parameter.add_(parameter.grad, alpha=-1e-6)
                parameter.grad = None


def interleaved(functions: tuple[Callable[[], None], ...], repeats: int) -> list[list[float]]:
    """Seconds of each run of each function; they take turns, so that a busy moment of the machine falls on all."""
    seconds: list[list[float]] = [[] for _ in functions]
    for run in range(repeats + 1):
        for function, times in zip(functions, seconds, strict=True):
            started = time.perf_counter()
            function()
            if run > 0:
                times.append(time.perf_counter() - started)
    return seconds


if __name__ == "__main__":
    main()
