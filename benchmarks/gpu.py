"""Training, prediction and the two sampling operations on a GPU, beside torchvision's, as one table.

Rows that cannot be measured say why: no memory, no time left of --minutes, or what is not installed. `--smoke` runs
every line on small inputs, on a CPU too; its figures mean nothing.
"""

from __future__ import annotations

import argparse
import gc
import statistics
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from harness import write_table
from machine import measured
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode
from torchvision.models import detection
from torchvision.models.detection.transform import GeneralizedRCNNTransform
from torchvision.ops import deform_conv2d, roi_align

from tightbox.models import create_model
from tightbox.ops import StarSampling, prroi_pool, star_conv2d, star_offsets
from tightbox.structures import ImageBatch, Targets

CLASSES = 80
PEAKS = {"H100": 989e12, "H200": 989e12, "A100": 312e12, "L4": 121e12}  # bf16 operations a second, dense (data sheets)
HEADER = "| what | input | precision | result | per item or pass | peak memory | of the bf16 peak |"
Step = Callable[[], object]


@dataclass(frozen=True)
class Row:
    """One measurement: `make` prepares a step that handles so many items; its unit is images, or "" for a pass."""

    what: str
    input: str
    precision: str
    items: int
    make: Callable[[], Step]
    unit: str = "images"


class Bench:
    """Where it is measured, and for how long."""

    def __init__(self, device: torch.device, seconds: float, smoke: bool) -> None:
        self.device, self.smoke = device, smoke
        self.end = time.monotonic() + seconds
        name = torch.cuda.get_device_name(device) if device.type == "cuda" else ""
        self.peak = next((peak for part, peak in PEAKS.items() if part in name), None)

    def row(self, row: Row) -> str:
        """The row's line of the table, with its figures or the reason why there are none."""
        cells = f"| {row.what} | {row.input} | {row.precision} "
        if time.monotonic() > self.end:
            return cells + "| skipped: no time left | | | |"
        try:
            step = row.make()
            seconds, memory, operations = self._measure(step)
        except (torch.OutOfMemoryError, ImportError, NotImplementedError) as error:
            return cells + f"| skipped: {str(error).splitlines()[0][:80]} | | | |"
        finally:
            step = lambda: None  # noqa: E731  # lets go of the model
            gc.collect()
            if self.device.type == "cuda":
                torch.cuda.empty_cache()
        rate = f"{row.items / seconds:.1f} {row.unit}/s" if row.unit else f"{1e3 * seconds:.3f} ms"
        share = f"{operations / seconds / self.peak:.0%}" if self.peak and operations else ""
        return cells + f"| {rate} | {1e3 * seconds / row.items:.2f} ms | {memory} | {share} |"

    def _measure(self, step: Step) -> tuple[float, str, int]:
        """Median seconds of a step, the most memory it held, and the operations that PyTorch can count in it."""
        with FlopCounterMode(display=False) as counter:
            step()
        step()
        if self.device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(self.device)
        times: list[float] = []
        started = time.monotonic()
        while len(times) < (1 if self.smoke else 5) or (time.monotonic() - started < 2 and not self.smoke):
            self._wait()
            start = time.perf_counter()
            step()
            self._wait()
            times.append(time.perf_counter() - start)
        held = f"{torch.cuda.max_memory_allocated(self.device) / 2**30:.2f} GiB" if self.device.type == "cuda" else ""
        return statistics.median(times), held, counter.get_total_flops()

    def _wait(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)

    def autocast(self, precision: str) -> AbstractContextManager[Any]:
        """Autocast to bfloat16 for "bf16", and none for "fp32"."""
        return torch.autocast(self.device.type, torch.bfloat16, enabled=precision == "bf16")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--minutes", type=float, default=8, help="rows that come later are skipped")
    parser.add_argument("--smoke", action="store_true", help="run every line once, on small inputs")
    parser.add_argument("--markdown", type=Path, metavar="FILE", help="also write the table to FILE")
    options = parser.parse_args()
    if not torch.cuda.is_available() and not options.smoke:
        parser.error("there is no CUDA device; --smoke runs on a CPU")
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    torch.manual_seed(0)
    bench = Bench(device, 60 * options.minutes, options.smoke)
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else "no GPU"
    lines = [f"{measured()} Device: {name}.", "", HEADER, "|---" * 7 + "|"]
    print("\n".join(lines), flush=True)
    for row in rows(bench):
        lines.append(bench.row(row))
        print(lines[-1], flush=True)
    write_table(options.markdown, lines, parser)


def rows(bench: Bench) -> Iterator[Row]:
    """The most telling ones first, as time may run out."""
    yield from operations(bench)
    wide, square = ((64, 96), (64, 64)) if bench.smoke else ((800, 1344), (640, 640))
    batches = (1,) if bench.smoke else (16, 2, 8, 32, 4)
    for batch in batches:
        for size in (wide, square):
            for precision in ("bf16", "fp32"):
                if precision == "fp32" and batch not in batches[:2]:
                    continue
                names = ("VFNet", "FCOS", "RetinaNet") if batch == batches[0] else ("VFNet",)
                for name in names:
                    yield images_row(bench, name, "training", batch, size, precision)
    for batch in (1,) if bench.smoke else (1, 16):
        for precision in ("bf16", "fp32"):
            for name in ("VFNet", "FCOS", "RetinaNet"):
                yield images_row(bench, name, "prediction", batch, wide, precision)
        yield images_row(bench, "VFNet compiled", "prediction", batch, wide, "bf16")


def images_row(bench: Bench, name: str, task: str, batch: int, size: tuple[int, int], precision: str) -> Row:
    """A training step, or detection with suppression, of a detector on ResNet-50 with random weights."""

    def make() -> Step:
        images = torch.rand(batch, 3, *size, device=bench.device)
        corners = torch.rand(batch, 7, 2, device=bench.device) * min(size) * 0.6
        sides = 8 + torch.rand(batch, 7, 2, device=bench.device) * min(size) * 0.3
        boxes = torch.cat([corners, corners + sides], dim=-1)
        labels = torch.randint(CLASSES, (batch, 7), device=bench.device)
        model, loss, detect = (
            ours(images, boxes, labels, name, bench)
            if "VFNet" in name
            else theirs(images, boxes, labels, name, size, bench)
        )
        if task == "prediction":
            model.eval()

            def predict() -> None:
                with torch.inference_mode(), bench.autocast(precision):
                    detect()

            return predict
        model.train()
        trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
        optimizer = torch.optim.AdamW(trained, lr=1e-6, fused=True)

        def train() -> None:
            with bench.autocast(precision):
                losses = loss()
            torch.autograd.backward(torch.stack([value.float() for value in losses.values()]).sum())
            optimizer.step()
            optimizer.zero_grad()

        return train

    return Row(f"{name}, {task}", f"{batch}×{size[0]}×{size[1]}", precision, batch, make)


Parts = tuple[nn.Module, Callable[[], dict[str, Tensor]], Callable[[], object]]


def ours(images: Tensor, boxes: Tensor, labels: Tensor, name: str, bench: Bench) -> Parts:
    """VFNet; compiled, its network is, once for each shape."""
    backbone = "resnet18" if bench.smoke else "resnet50"
    model = create_model("vfnet", num_classes=CLASSES, backbone=backbone, pretrained_backbone=False).to(bench.device)
    batch = ImageBatch(images, ((images.shape[-2], images.shape[-1]),) * len(images))
    targets = [Targets.of(b, c) for b, c in zip(boxes, labels, strict=True)]
    if "compiled" in name:
        if bench.device.type != "cuda":
            raise NotImplementedError("compiling is for a GPU")
        model.compile(dynamic=False)
    return model, lambda: model.loss(batch, targets), lambda: model.detect(batch)


def theirs(images: Tensor, boxes: Tensor, labels: Tensor, name: str, size: tuple[int, int], bench: Bench) -> Parts:
    """torchvision's, which resizes nothing here, and without weights trains all layers, as ours does."""
    make = detection.fcos_resnet50_fpn if name == "FCOS" else detection.retinanet_resnet50_fpn
    model = make(weights=None, weights_backbone=None, num_classes=CLASSES)
    model.transform = GeneralizedRCNNTransform(min(size), max(size), [0.0] * 3, [1.0] * 3)
    model = model.to(bench.device, memory_format=torch.channels_last)
    listed, truth = list(images), [{"boxes": b, "labels": c} for b, c in zip(boxes, labels, strict=True)]
    return model, lambda: model(listed, truth), lambda: model(listed)


def operations(bench: Bench) -> Iterator[Row]:
    """The star convolution and PrRoI pooling alone, each beside torchvision's of about the same work."""
    batch, channels, height, width, count = (1, 16, 8, 12, 8) if bench.smoke else (8, 256, 100, 168, 4096)
    for precision in ("bf16", "fp32"):
        dtype = torch.bfloat16 if precision == "bf16" else torch.float32
        # torchvision's operators know no bfloat16 everywhere: where they do not, they compute in float32.
        for backward in (False, True):
            kind = "forward + backward" if backward else "forward"

            def maps(dtype: torch.dtype, last: bool = True) -> Tensor:
                layout = torch.channels_last if last else torch.contiguous_format
                return torch.randn(batch, channels, height, width, device=bench.device, dtype=dtype).to(
                    memory_format=layout
                )

            def passes(run: Callable[[], Tensor], leaves: list[Tensor], backward: bool = backward) -> Step:
                for leaf in leaves:
                    leaf.requires_grad_(backward)

                def step() -> None:
                    output = run()
                    if backward:
                        torch.autograd.grad(output, leaves, torch.ones_like(output))

                return step

            def star(dtype: torch.dtype = dtype) -> Step:
                features, weight, distances = _star_inputs(maps(dtype))
                leaves = [features, weight, distances]
                return passes(lambda: star_conv2d(features, StarSampling(distances, 8.0), weight), leaves)

            def deform() -> Step:
                features, weight, distances = _star_inputs(maps(torch.float32, last=False))
                leaves = [features, weight, distances]
                return passes(lambda: deform_conv2d(features, star_offsets(distances, 8.0), weight, padding=1), leaves)

            def prroi(dtype: torch.dtype = dtype) -> Step:
                features, boxes = maps(dtype), _boxes(count, batch, height, width, bench.device)
                return passes(lambda: prroi_pool(features, boxes, 7), [features, boxes])

            def align(dtype: torch.dtype = dtype) -> Step:
                features, boxes = maps(dtype, last=False), _boxes(count, batch, height, width, bench.device)
                boxes = boxes.to(dtype)  # one dtype for both, which rounds the boxes: for the time, that is no matter
                return passes(lambda: roi_align(features, boxes, 7, sampling_ratio=2), [features])

            size = f"{batch}×{channels}×{height}×{width}"
            yield Row(f"star_conv2d, {kind}", size, precision, 1, star, unit="")
            if precision == "fp32":
                yield Row(f"deform_conv2d, {kind}", size, precision, 1, deform, unit="")
            yield Row(f"prroi_pool, {kind}, {count} boxes", size, precision, 1, prroi, unit="")
            if precision == "fp32" or bench.device.type == "cpu":
                yield Row(f"roi_align, {kind}, {count} boxes", size, "fp32", 1, lambda: align(torch.float32), unit="")


def _star_inputs(features: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    channels = features.shape[1]
    weight = torch.randn(channels, channels, 3, 3, device=features.device, dtype=features.dtype) / (3 * channels**0.5)
    distances = 64 * torch.rand(len(features), 4, *features.shape[2:], device=features.device)
    return features, weight, distances


def _boxes(count: int, batch: int, height: int, width: int, device: torch.device) -> Tensor:
    """(count, 5) boxes of 3 to about a third of the map's sides, in pixels of the map."""
    images = torch.randint(batch, (count, 1), device=device).float()
    corners = torch.rand(count, 2, device=device) * torch.tensor([width, height], device=device) * 0.6
    sides = 3 + torch.rand(count, 2, device=device) * min(height, width) * 0.3
    return torch.cat([images, corners, corners + sides], dim=1)


if __name__ == "__main__":
    main()
