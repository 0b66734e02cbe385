"""Training, prediction and the two sampling operations on a GPU, beside torchvision's, as one table.

Convolutions of the rows "fp32" may multiply in TF32, which is PyTorch's default. Rows that cannot be measured say why.
`--smoke` runs every line on small inputs, on a CPU too; its figures mean nothing.
`--profile FILE` writes instead where the time of a training step and of a detection goes.
"""

from __future__ import annotations

import argparse
import gc
import io
import math
import statistics
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from harness import write_table
from machine import measured
from PIL import Image
from torch import Tensor, nn
from torch.profiler import ProfilerActivity, profile
from torch.utils.flop_counter import FlopCounterMode
from torchvision.io import ImageReadMode, decode_jpeg
from torchvision.models import detection
from torchvision.models.detection.transform import GeneralizedRCNNTransform
from torchvision.ops import deform_conv2d, roi_align

from tightbox.data.layout import read_data
from tightbox.data.records import DetectionData
from tightbox.data.scenes import write_scenes
from tightbox.inference.detect import Loading, evaluate_model
from tightbox.models import Detector, create_model, load
from tightbox.ops import StarSampling, prroi_pool, star_conv2d, star_offsets
from tightbox.options import AugmentOptions, Preprocess, TrainOptions
from tightbox.structures import ImageBatch, Targets
from tightbox.training.fit import fit
from tightbox.training.optimizer import MovingAverage, build_optimizer

CLASSES = 80
PAIRS = 1000  # of a point and a class in an image whose score is above the threshold, and so have to be suppressed
PEAKS = {"H100": 989e12, "H200": 989e12, "A100": 312e12, "L4": 121e12}  # bf16 operations a second, dense (data sheets)
HEADER = "| what | input | precision | result | per item or pass | peak memory | of the bf16 peak |"
Step = Callable[[], object]


class Bench:
    """Where it is measured, and for how long."""

    def __init__(self, device: torch.device, options: argparse.Namespace) -> None:
        self.device, self.smoke, self.options = device, options.smoke, options
        self.end = time.monotonic() + 60 * options.minutes
        self.gpu = device.type == "cuda"
        name = torch.cuda.get_device_name(device) if self.gpu else ""
        self.peak = next((peak for part, peak in PEAKS.items() if part in name), None)
        self.counted: dict[str, int] = {}

    def wait(self) -> None:
        """Until the device has done what it was given."""
        if self.gpu:
            torch.cuda.synchronize(self.device)

    def autocast(self, precision: str) -> AbstractContextManager[Any]:
        """Autocast to bfloat16 for "bf16", and none for "fp32"."""
        return torch.autocast(self.device.type, torch.bfloat16, enabled=precision == "bf16")


@dataclass(frozen=True)
class Row:
    """A line of the table: what is in its first three cells, and what finds the text of the other four."""

    what: str
    input: str
    precision: str
    cells: Callable[[Bench], str]

    def line(self, bench: Bench) -> str:
        """The row with its figures, or the reason why there are none."""
        start = f"| {self.what} | {self.input} | {self.precision} |"
        if time.monotonic() > bench.end:
            return f"{start} skipped: no time left | | | |"
        try:
            return f"{start} {self.cells(bench)}"
        except Exception as error:  # whatever is wrong with one row, there are others
            reason = f"{type(error).__name__}: {error}".split("\n")[0].replace("|", "/")
            return f"{start} skipped: {reason[:160]} | | | |"
        finally:
            gc.collect()
            if bench.gpu:
                torch.cuda.empty_cache()


def timed(bench: Bench, make: Callable[[Bench], Step], items: int, unit: str, counted_as: str) -> str:
    """The cells of a step that handles so many items: its rate, or a pass's time if the items have no unit.

    Args:
        bench: where.
        make: prepares the step.
        items: which it handles.
        unit: "images", or "" for a pass.
        counted_as: name of its arithmetic, which is counted once, as PyTorch cannot look into captured steps.
    """
    step = make(bench)
    if counted_as and counted_as not in bench.counted:  # captured from the second step on
        with FlopCounterMode(display=False) as counter:
            step()
        bench.counted[counted_as] = counter.get_total_flops()
    for _ in range(3):
        step()
    bench.wait()
    if bench.gpu:
        torch.cuda.reset_peak_memory_stats(bench.device)
    times: list[float] = []
    started = time.monotonic()
    while len(times) < (1 if bench.smoke else 5) or (time.monotonic() - started < 1.5 and not bench.smoke):
        start = time.perf_counter()
        step()
        bench.wait()
        times.append(time.perf_counter() - start)
    seconds = statistics.median(times)
    held = f"{torch.cuda.max_memory_allocated(bench.device) / 2**30:.2f} GiB" if bench.gpu else ""
    rate = f"{items / seconds:.1f} {unit}/s" if unit else f"{1e3 * seconds:.3f} ms"
    operations = bench.counted.get(counted_as, 0)
    share = f"{operations / seconds / bench.peak:.0%}" if bench.peak and operations else ""
    return f"{rate} | {1e3 * seconds / items:.2f} ms | {held} | {share} |"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--minutes", type=float, default=8, help="rows that come later are skipped")
    parser.add_argument("--only", default="", metavar="TEXT", help="only rows whose line begins with or contains this")
    parser.add_argument("--smoke", action="store_true", help="run every line once, on small inputs")
    parser.add_argument("--checkpoint", type=Path, help="whose AP is compared; left out, a small one is trained first")
    parser.add_argument("--data", type=Path, help="the data set for --checkpoint, whose val it is")
    parser.add_argument("--train_minutes", type=float, default=0.4, help="for that small one")
    parser.add_argument("--profile", type=Path, metavar="FILE", help="write where the time goes, and no table")
    parser.add_argument("--markdown", type=Path, metavar="FILE", help="also write the table to FILE")
    parser.add_argument("--skip", type=int, default=0, help="rows to leave out at the beginning")
    options = parser.parse_args()
    if not torch.cuda.is_available() and not options.smoke:
        parser.error("there is no CUDA device; --smoke runs on a CPU")
    if (options.checkpoint is None) != (options.data is None):
        parser.error("give both --checkpoint and --data, or neither")
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    torch.manual_seed(0)
    bench = Bench(device, options)
    if options.profile is not None:
        lines: list[str] = []
        for line in where_time_goes(bench):
            print(line, flush=True)
            lines.append(line)
        write_table(options.profile, lines, parser)
        return
    name = torch.cuda.get_device_name(device) if bench.gpu else "no GPU"
    lines = [f"{measured()} Device: {name}.", "", HEADER, "|---" * 7 + "|"]
    if not options.skip:
        print("\n".join(lines), flush=True)
    for line in table(bench):
        lines.append(line)
        print(line, flush=True)
        write_table(options.markdown, lines, parser)


def table(bench: Bench) -> Iterator[str]:
    """The lines of the rows that are asked for."""
    for number, row in enumerate(rows(bench)):
        if number < bench.options.skip or bench.options.only not in f"{row.what}, {row.input}, {row.precision}":
            continue
        yield row.line(bench)
        try:
            bench.wait()
        except Exception:  # what a kernel did wrong stays with the process: the others are another one's
            left = max(0.0, (bench.end - time.monotonic()) / 60)
            rest = [*sys.argv, "--skip", str(number + 1), "--minutes", str(left)]
            with subprocess.Popen([sys.executable, *rest], stdout=subprocess.PIPE, text=True) as process:
                assert process.stdout is not None
                yield from (line.rstrip() for line in process.stdout)
            return


def rows(bench: Bench) -> Iterator[Row]:
    """The most telling ones first, as time may run out."""
    wide, square = ((64, 96), (64, 64)) if bench.smoke else ((800, 1344), (640, 640))
    many, one = 1 if bench.smoke else 16, 1
    detectors = ("VFNet", "FCOS", "RetinaNet")
    for size in (wide, square):
        for name in detectors:
            yield images_row(name, "training", many, size, "bf16")
    yield Row("AP, VFNet in fp32 and in bf16", "", "both", ap_of_both)
    yield from operations(bench, "bf16")
    for batch in (many, one):
        for name in ("VFNet replayed", *detectors):
            yield images_row(name, "prediction", batch, wide, "bf16")
    yield Row("JPEG decoding, torchvision on the GPU", "800×1333", "", partial(decoding, on_gpu=True))
    yield Row("JPEG decoding, Pillow, one thread", "800×1333", "", partial(decoding, on_gpu=False))
    yield Row("bf16 matrix product", "8192³", "bf16", matrix_product)
    for batch in (2, 8, 32, 4):
        if not bench.smoke:
            yield images_row("VFNet", "training", batch, wide, "bf16")
            yield images_row("VFNet", "training", batch, square, "bf16")
    for name in detectors:
        yield images_row(name, "training", many, wide, "fp32")
    for batch in (one, many):
        for name in ("VFNet replayed", *detectors):
            yield images_row(name, "prediction", batch, wide, "fp32")
    yield from operations(bench, "fp32")
    for batch in (2, 8):
        if not bench.smoke:
            yield images_row("VFNet", "training", batch, wide, "fp32")
    for batch in (one, many):
        yield images_row("VFNet compiled", "prediction", batch, wide, "bf16")


def images_row(name: str, task: str, batch: int, size: tuple[int, int], precision: str) -> Row:
    """A training step, or detection with suppression, of a detector on ResNet-50 with random weights."""
    make = partial(step_of, name=name, task=task, batch=batch, size=size, precision=precision)
    shape = f"{batch}×{size[0]}×{size[1]}"
    counted_as = f"{name.split()[0]}, {task}, {shape}" if "compiled" not in name else ""
    cells = partial(timed, make=make, items=batch, unit="images", counted_as=counted_as)
    return Row(f"{name}, {task}", shape, precision, cells)


def step_of(bench: Bench, name: str, task: str, batch: int, size: tuple[int, int], precision: str) -> Step:
    """That step: what `tightbox.training.fit` does for each batch, for torchvision's detectors too; or detection."""
    with bench.device:
        images = torch.rand(batch, 3, *size)
        corners = torch.rand(batch, 7, 2) * min(size) * 0.6
        boxes = torch.cat([corners, corners + 8 + torch.rand(batch, 7, 2) * min(size) * 0.3], dim=-1)
        labels = torch.randint(CLASSES, (batch, 7))
        make = ours if "VFNet" in name else theirs
        model, loss, detect = make(images, boxes, labels, name, bench)
    if task == "prediction":
        model.eval()
        last = model.head.classes if "VFNet" in name else model.head.classification_head.cls_logits
        # FCOS's scores are roots of products with centernesses, which are about a half here.
        _let_through(last, detect, batch * PAIRS, 0.05**2 / 0.5 if name == "FCOS" else 0.05)

        def predict() -> None:
            with torch.inference_mode(), bench.autocast(precision):
                detect()

        return predict
    model.train()
    options = TrainOptions(lr=1e-6)
    optimizer, average = build_optimizer(model, options), MovingAverage(model, options.ema)

    def train() -> None:
        with bench.autocast(precision):
            losses = loss()
        torch.autograd.backward(torch.stack([value.float() for value in losses.values()]).sum())
        nn.utils.clip_grad_norm_(model.parameters(), options.clip)
        optimizer.step()
        optimizer.zero_grad()
        average.update_parameters(model)

    return train


def _let_through(last: nn.Conv2d, detect: Step, pairs: int, threshold: float) -> None:
    """Makes the last layer of class scores let so many of them pass, as random ones are all of about 0.01."""
    assert last.bias is not None
    found: list[Tensor] = []
    hook = last.register_forward_hook(lambda module, inputs, output: found.append(output.float().flatten()))
    with torch.no_grad():
        last.bias.zero_()
        detect()
        hook.remove()
        logits = torch.cat(found)
        last.weight /= logits.std()
        least = (logits / logits.std()).topk(min(pairs, len(logits))).values[-1]
        last.bias += math.log(threshold / (1 - threshold)) - least


Parts = tuple[Any, Callable[[], dict[str, Tensor]], Callable[[], object]]


def ours(images: Tensor, boxes: Tensor, labels: Tensor, name: str, bench: Bench) -> Parts:
    """VFNet; replayed, detection is a CUDA graph, and compiled, its network is, both for this shape."""
    backbone = "resnet18" if bench.smoke else "resnet50"
    model = create_model("vfnet", num_classes=CLASSES, backbone=backbone, pretrained_backbone=False)
    batch = ImageBatch(images, ((images.shape[-2], images.shape[-1]),) * len(images))
    targets = [Targets.of(b, c) for b, c in zip(boxes, labels, strict=True)]
    if "compiled" in name:
        if not bench.gpu:
            raise NotImplementedError("compiling is for a GPU")
        model.compile(dynamic=False)
    return model, lambda: model.loss(batch, targets), lambda: model.detect(batch, replay="replayed" in name)


def theirs(images: Tensor, boxes: Tensor, labels: Tensor, name: str, bench: Bench) -> Parts:
    """torchvision's, which resizes nothing here, and without weights trains all layers, as ours does."""
    make = detection.fcos_resnet50_fpn if name == "FCOS" else detection.retinanet_resnet50_fpn
    model = make(weights=None, weights_backbone=None, num_classes=CLASSES)
    sides = images.shape[-2:]
    model.transform = GeneralizedRCNNTransform(min(sides), max(sides), [0.0] * 3, [1.0] * 3)
    model.score_thresh = 0.05  # as ours; FCOS's is 0.2
    model = model.to(bench.device, memory_format=torch.channels_last)
    listed, truth = list(images), [{"boxes": b, "labels": c} for b, c in zip(boxes, labels, strict=True)]
    return model, lambda: model(listed, truth), lambda: model(listed)


def operations(bench: Bench, precision: str) -> Iterator[Row]:
    """The star convolution and PrRoI pooling alone, each beside torchvision's of about the same work."""
    batch, channels, height, width, count = (1, 16, 8, 12, 8) if bench.smoke else (8, 256, 100, 168, 4096)
    size = f"{batch}×{channels}×{height}×{width}"
    for what in (star, deform, prroi, align):
        # torchvision's operators know no bfloat16 everywhere: they compute in float32 beside both.
        number = "fp32" if what in (deform, align) else precision
        boxes = f", {count} boxes" if what in (prroi, align) else ""
        for backward in (False, True):
            passes = "forward + backward" if backward else "forward"
            shape = (batch, channels, height, width)
            make = partial(pass_of, what=what, shape=shape, count=count, precision=number, backward=backward)
            cells = partial(timed, make=make, items=1, unit="", counted_as="")
            if number == precision or precision == "bf16":
                yield Row(f"{what.__doc__}, {passes}{boxes}", size, number, cells)


Run = tuple[Callable[[], Tensor], list[Tensor]]


def pass_of(
    bench: Bench, what: Callable[..., Run], shape: tuple[int, int, int, int], count: int, precision: str, backward: bool
) -> Step:
    """One pass, and perhaps the one back, of an operation."""
    dtype = torch.bfloat16 if precision == "bf16" else torch.float32
    with bench.device:
        features = torch.randn(shape, dtype=dtype).to(memory_format=torch.channels_last)
        run, leaves = what(features, count)
    for leaf in leaves:
        leaf.requires_grad_(backward)

    def step() -> None:
        output = run()
        if backward:
            torch.autograd.grad(output, leaves, torch.ones_like(output))

    return step


def star(features: Tensor, count: int) -> Run:
    """star_conv2d"""
    weight, distances = _star_inputs(features)
    return lambda: star_conv2d(features, StarSampling(distances, 8.0), weight), [features, weight, distances]


def deform(features: Tensor, count: int) -> Run:
    """deform_conv2d (torchvision)"""
    features = features.contiguous()
    weight, distances = _star_inputs(features)
    leaves = [features, weight, distances]
    return lambda: deform_conv2d(features, star_offsets(distances, 8.0), weight, padding=1), leaves


def prroi(features: Tensor, count: int) -> Run:
    """prroi_pool"""
    boxes = _boxes(count, features)
    return lambda: prroi_pool(features, boxes, 7), [features, boxes]


def align(features: Tensor, count: int) -> Run:
    """roi_align (torchvision)"""
    features, boxes = features.contiguous(), _boxes(count, features)
    return lambda: roi_align(features, boxes, 7, sampling_ratio=2), [features]


def _star_inputs(features: Tensor) -> tuple[Tensor, Tensor]:
    channels = features.shape[1]
    weight = torch.randn(channels, channels, 3, 3, dtype=features.dtype) / (3 * channels**0.5)
    return weight, 64 * torch.rand(len(features), 4, *features.shape[2:])


def _boxes(count: int, features: Tensor) -> Tensor:
    """(count, 5) boxes of 3 to about a third of the map's sides, in pixels of the map."""
    batch, _, height, width = features.shape
    corners = torch.rand(count, 2) * torch.tensor([width, height]) * 0.6
    sides = 3 + torch.rand(count, 2) * min(height, width) * 0.3
    return torch.cat([torch.randint(batch, (count, 1)).float(), corners, corners + sides], dim=1)


def ap_of_both(bench: Bench) -> str:
    """COCO AP of the same detector in both precisions."""
    with tempfile.TemporaryDirectory() as folder:
        model, data = (
            _trained(bench, Path(folder))
            if bench.options.checkpoint is None
            else (load(bench.options.checkpoint), read_data(bench.options.data, "val"))
        )
        model, aps = model.to(bench.device), []
        allowed, torch.backends.cudnn.allow_tf32 = torch.backends.cudnn.allow_tf32, False
        for precision in ("fp32", "bf16"):
            with bench.autocast(precision):
                aps.append(100 * (evaluate_model(model, data, loading=Loading(16, workers=4)).ap or 0))
        torch.backends.cudnn.allow_tf32 = allowed
    return f"{aps[0]:.2f} and {aps[1]:.2f}: {aps[1] - aps[0]:+.2f} on {len(data.records)} images | | | |"


def _trained(bench: Bench, folder: Path) -> tuple[Detector, DetectionData]:
    """A VFNet on ResNet-18 that learned from rendered scenes for a moment, and others of them."""
    counts = {"train": 16, "val": 4} if bench.smoke else {"train": 400, "val": 300}
    write_scenes(folder / "scenes", counts)
    train, val = (read_data(folder / "scenes", split) for split in counts)
    model = create_model(
        "vfnet",
        class_names=train.class_names,
        backbone="resnet18",
        pretrained_backbone=False,
        preprocess=Preprocess(long_side=128, short_side=128),
        channels=64,
        tower_depth=2,
        star_norm=True,
        star_init="kaiming",
    )
    length: dict[str, Any] = {"epochs": 1} if bench.smoke else {"minutes": bench.options.train_minutes}
    options = TrainOptions(batch_size=16, lr=3e-3, ema=0.98, workers=0 if bench.smoke else 8, **length)
    augment = AugmentOptions(vertical_flip=0.5, scale_min=0.8, scale_max=1.25, color=0)
    return fit(model.to(bench.device), train, None, folder / "run", options, augment, device=bench.device), val


def decoding(bench: Bench, on_gpu: bool) -> str:
    """JPEG files of a photograph's size to pixels on the device."""
    if on_gpu and not bench.gpu:
        raise NotImplementedError("there is no GPU")
    small = torch.randint(256, (50, 84, 3), dtype=torch.uint8, device="cpu").numpy()
    buffer = io.BytesIO()
    Image.fromarray(small).resize((1333, 800), Image.Resampling.BICUBIC).save(buffer, "jpeg", quality=92)
    files = [buffer.getvalue()] * (1 if bench.smoke else 64)

    def by_torchvision() -> object:
        encoded = [torch.frombuffer(bytearray(file), dtype=torch.uint8) for file in files]
        return decode_jpeg(encoded, mode=ImageReadMode.RGB, device=bench.device)

    def by_pillow() -> object:
        return [Image.open(io.BytesIO(file)).convert("RGB") for file in files]

    step = by_torchvision if on_gpu else by_pillow
    return timed(bench, lambda _: step, len(files), "images", "")


def matrix_product(bench: Bench) -> str:
    """What the card does on its own: the share of the peak is the most to be had."""
    side = 64 if bench.smoke else 8192
    a, b = (torch.randn(side, side, device=bench.device, dtype=torch.bfloat16) for _ in range(2))
    return timed(bench, lambda _: lambda: a @ b, 1, "", "matrix product")


def where_time_goes(bench: Bench) -> Iterator[str]:
    """Parts of a step, and the kernels that take most of the time, as text."""
    size = (64, 96) if bench.smoke else (800, 1344)
    many = 1 if bench.smoke else 8
    for name, task, batch in (
        ("VFNet", "training", many),
        ("VFNet", "prediction", many),
        ("VFNet", "prediction", 1),
        ("VFNet replayed", "prediction", 1),
        ("FCOS", "training", many),
    ):
        title = f"{name}, {task}, {batch}×{size[0]}×{size[1]}, bf16"
        try:
            lines = list(_profiled(bench, name, task, batch, size))
        except Exception as error:  # the others are worth having
            lines = [f"failed: {type(error).__name__}: {error}"]
        yield from ("", f"# {title}", *lines)
        gc.collect()
        if bench.gpu:
            torch.cuda.empty_cache()


def _profiled(bench: Bench, name: str, task: str, batch: int, size: tuple[int, int]) -> Iterator[str]:
    step = step_of(bench, name, task, batch, size, "bf16")
    for _ in range(4):
        step()
    bench.wait()
    start = time.perf_counter()
    step()
    launched = time.perf_counter() - start
    bench.wait()
    yield f"launched in {1e3 * launched:.1f} ms, done after {1e3 * (time.perf_counter() - start):.1f} ms"
    # Without the operators of the CPU, of which there are many more than kernels.
    with profile(activities=[ProfilerActivity.CUDA if bench.gpu else ProfilerActivity.CPU]) as profiler:
        step()
        bench.wait()
    events = profiler.events()
    assert events is not None
    yield "host synchronisations: " + str(
        {e.key: e.count for e in profiler.key_averages() if "Synchronize" in e.key or e.key == "aten::item"}
    )
    kernels = [e for e in events if str(e.device_type) == "DeviceType.CUDA"]
    times, counts = Counter[str](), Counter[str](e.name for e in kernels)
    for event in kernels:
        times[event.name] += event.time_range.elapsed_us()
    yield f"{len(kernels)} kernels, {sum(times.values()) / 1e3:.2f} ms"
    for kernel, microseconds in times.most_common(40):
        yield f"{microseconds / 1e3:9.3f} ms {counts[kernel]:5d} × {kernel[:150]}"


if __name__ == "__main__":
    main()
