"""Exported detectors beside PyTorch's eager mode: speed, AP, size, and what the runtime costs to install and start.

python benchmarks/export.py --checkpoint runs/bccd/best --data data/bccd --markdown benchmarks/export.md

The first table has random weights and the default options, the score threshold too. A new VFNet scores every box about
0.01, which is below it, so suppression is given next to nothing: timed are the network, the choice of the best and the
operator. The second is of a trained detector on a data set, image by image and in turns; int8 ranges come from its
train split, and as AP that int8 may lose `tightbox export`'s default is given. OpenVINO works in float32 but for the
rows with bfloat16, which it takes by itself on processors that have it.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import time
import warnings
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import onnx
import torch
from harness import fastest_interleaved, table_options, write_table
from machine import measured
from packaging.requirements import Requirement

from tightbox.data.dataset import DetectionDataset
from tightbox.data.layout import read_data
from tightbox.data.records import DetectionData
from tightbox.errors import import_extra
from tightbox.export.int8 import Inputs, Int8, Run, detect_with, onnx_run, openvino_run, quantised
from tightbox.export.onnx_file import write_onnx
from tightbox.export.openvino_file import to_openvino
from tightbox.inference.detect import evaluate_detections
from tightbox.models import Detector, create_model, load
from tightbox.structures import Detections, ImageBatch

Outputs = list[np.ndarray]
Row = tuple[str, tuple[int, int], dict[str, Any]]  # backbone, height and width, options
ROWS: dict[str, Row] = {
    "VFNet R-50": ("resnet50", (800, 1344), {}),
    "VFNet R-18": ("resnet18", (320, 320), {}),
}
SMOKE: dict[str, Row] = {"VFNet, tiny": ("test_resnet", (64, 96), {"channels": 32, "tower_depth": 1})}
SPEED = [
    "| detector | input | file, MB | eager, ms | ONNX Runtime, ms | | OpenVINO, ms | |",
    "|---|---|--:|--:|--:|--:|--:|--:|",
]
TRAINED = ["| {} | file, MB | ms an image | times faster than eager | AP |", "|---|--:|--:|--:|--:|"]
RUNTIME = Path(__file__).parents[1] / "runtime"


def own_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--checkpoint", type=Path, help="a trained detector, for the second table")
    parser.add_argument("--data", type=Path, help="its data set, with the splits train and val")
    parser.add_argument("--images", type=int, help="of the second table only so many images of val")
    parser.add_argument("--smoke", action="store_true", help="whether it runs: tiny networks, a few images")


def main() -> None:
    """Both tables, and what either package takes to install and to start."""
    parser, options = table_options(__doc__, repeats=3, own=own_options)
    if options.smoke:
        options.repeats = 1
    if (options.checkpoint is None) != (options.data is None):
        parser.error("--checkpoint and --data belong together")
    lines = list(SPEED)
    with TemporaryDirectory() as name:
        folder = Path(name)
        for title, (backbone, size, changes) in (SMOKE if options.smoke else ROWS).items():
            model = create_model("vfnet", num_classes=80, backbone=backbone, pretrained_backbone=False, **changes)
            model.eval()
            lines.append(speed_row(title, model, folder / f"{backbone}.onnx", size, options.repeats))
            print(lines[-1], flush=True)
        lines.append(torchvision_row(folder, options))
        print(lines[-1], flush=True)
        lines += ["", *installed_and_started(model, folder / f"{backbone}.onnx", options.repeats)]
        if options.checkpoint is not None:
            lines += ["", *trained_rows(load(options.checkpoint).eval(), folder, options)]
    lines += ["", "Factors are times faster than eager.", measured()]
    print("\n".join(lines))
    write_table(options.markdown, lines, parser)


def speed_row(title: str, model: Detector, file: Path, size: tuple[int, int], repeats: int) -> str:
    """Times the three in turns, with as many threads each."""
    write_onnx(model, file)
    images = torch.rand(1, 3, *size)
    batch = ImageBatch(images, (size,))
    inputs = {"images": images.numpy(), "sizes": np.array([size], dtype=np.int64)}
    runtime, openvino = onnx_session(file), compiled(to_openvino(file))
    steps = [lambda: model.detect(batch), lambda: runtime(inputs), lambda: openvino(inputs)]
    a, b, c = (1000 * seconds for seconds in fastest_interleaved(steps, repeats))
    cells = [title, f"{size[0]}x{size[1]}", f"{megabytes(file):.0f}", f"{a:.0f}"]
    return f"| {' | '.join([*cells, f'{b:.0f}', f'{a / b:.2f}x', f'{c:.0f}', f'{a / c:.2f}x'])} |"


def compiled(network: Any, precision: str = "f32") -> Run:
    """OpenVINO with as many threads as PyTorch; what is not int8 in a precision of its own naming."""
    hints = {"INFERENCE_PRECISION_HINT": precision, "INFERENCE_NUM_THREADS": torch.get_num_threads()}
    return openvino_run(import_extra("openvino", "export").compile_model(network, "CPU", hints))


def onnx_session(file: Path) -> Run:
    """ONNX Runtime with as many threads."""
    return onnx_run(str(file), threads=torch.get_num_threads())


def torchvision_row(folder: Path, options: argparse.Namespace) -> str:
    """FCOS as torchvision has it, for one size of image: its code branches on the data, so it is traced."""
    from torchvision.models.detection import fcos_resnet50_fpn

    height, width = (64, 96) if options.smoke else (800, 1344)
    model = fcos_resnet50_fpn(weights=None, weights_backbone=None, min_size=height, max_size=width).eval()
    image = torch.rand(3, height, width)
    file, title = folder / "fcos.onnx", f"| FCOS R-50, torchvision, traced | {height}x{width} |"
    with torch.no_grad():
        steps: list[Callable[[], object]] = [lambda: model([image])]
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                torch.onnx.export(model, ([image],), file, dynamo=False, opset_version=17)
            runtime, name = onnx_session(file), onnx_input(file)
            steps.append(lambda: runtime({name: image.numpy()}))
            eager, exported = (1000 * seconds for seconds in fastest_interleaved(steps, options.repeats))
        except Exception as error:  # whichever the exporter or the runtime ends with
            (eager,) = (1000 * seconds for seconds in fastest_interleaved(steps[:1], options.repeats))
            reason = str(error).strip().partition("\n")[0]
            return f"{title} - | {eager:.0f} | fails: {type(error).__name__}, {reason} | | - | |"
    return f"{title} {megabytes(file):.0f} | {eager:.0f} | {exported:.0f} | {eager / exported:.2f}x | - | |"


def onnx_input(file: Path) -> str:
    """The name of a file's first input."""
    import onnxruntime

    name: str = onnxruntime.InferenceSession(file).get_inputs()[0].name
    return name


def trained_rows(model: Detector, folder: Path, options: argparse.Namespace) -> list[str]:
    """Speed and AP of a detector in PyTorch, and of its files."""
    openvino, onnx_file = import_extra("openvino", "export"), folder / "trained.onnx"
    train, val = (read_data(options.data, split).with_classes(model.class_names) for split in ("train", "val"))
    if options.smoke:
        train, val = first(train, 4), first(val, 4)
    elif options.images:
        val = first(val, options.images)
    write_onnx(model, onnx_file)
    network, how = to_openvino(onnx_file), Int8(train, val)
    if options.smoke:
        how = replace(how, max_drop=1)  # or layer after layer would go back to floats
    networks = {"OpenVINO": network, "OpenVINO, int8": quantised(network, model, how)}
    small_onnx = folder / "int8.onnx"
    small_onnx.write_bytes(quantised(onnx.load(onnx_file), model, how).SerializeToString())
    runs: dict[str, tuple[Path | None, Run]] = {
        "PyTorch, eager": (None, eager_run(model)),
        "ONNX Runtime": (onnx_file, onnx_session(onnx_file)),
        "ONNX Runtime, int8": (small_onnx, onnx_session(small_onnx)),
    }
    for title, converted in networks.items():
        written = folder / f"{len(runs)}.xml"
        openvino.save_model(converted, written, compress_to_fp16=False)
        for precision, addition in (("f32", ""), ("bf16", ", bfloat16")):
            runs[title + addition] = written.with_suffix(".bin"), compiled(converted, precision)
    title = f"{model.name} of {options.checkpoint.name} on {len(val.records)} images of {options.data.name}"
    lines, measures = [TRAINED[0].format(title), TRAINED[1]], on_data([run for _, run in runs.values()], model, val)
    eager = measures[0][0]
    for (name, (path, _)), (seconds, ap) in zip(runs.items(), measures, strict=True):
        size = "-" if path is None else f"{megabytes(path):.1f}"
        lines.append(f"| {name} | {size} | {1000 * seconds:.1f} | {eager / seconds:.2f}x | {100 * ap:.2f} |")
        print(lines[-1], flush=True)
    return lines


def first(data: DetectionData, count: int) -> DetectionData:
    """The first records only."""
    return replace(data, records=data.records[:count])


def eager_run(model: Detector) -> Run:
    """The detector in PyTorch, with outputs like those of a file."""

    def run(given: Inputs) -> Outputs:
        images = ImageBatch(torch.from_numpy(given["images"]), tuple(map(tuple, given["sizes"].tolist())))
        (found,) = model.detect(images)
        columns = found.boxes, found.scores, found.labels, found.scores
        return [*(column[None].numpy() for column in columns), np.array([len(found)])]

    return run


def on_data(runs: list[Run], model: Detector, data: DetectionData) -> list[tuple[float, float]]:
    """Of each its seconds an image, the median, and its AP; at each image they take turns."""
    dataset = DetectionDataset(data, model.preprocess)
    seconds: list[list[float]] = [[] for _ in runs]
    found: list[dict[int, Detections]] = [{} for _ in runs]

    def timed_run(which: int, given: Inputs) -> Sequence[np.ndarray]:
        start = time.perf_counter()
        outputs = runs[which](given)
        seconds[which].append(time.perf_counter() - start)
        return outputs

    for index in range(len(dataset)):
        for which in range(len(runs)):
            found[which] |= detect_with(partial(timed_run, which), dataset, [index])
    aps = [evaluate_detections(detections, data).ap or 0.0 for detections in found]
    return list(zip(map(median, seconds), aps, strict=True))


def installed_and_started(model: Detector, file: Path, repeats: int) -> list[str]:
    """What either package takes with all that it needs, and seconds from starting Python until a detector is loaded."""
    with TemporaryDirectory() as name:
        model.save(name)
        source = str(RUNTIME / "src")
        runtime = f"import sys; sys.path.insert(0, {source!r}); import tightbox_runtime as t; t.Detector({str(file)!r})"
        programs = {
            "tightbox-runtime": (["numpy", "onnxruntime", "pillow"], runtime),
            "tightbox": (["tightbox"], f"import tightbox; tightbox.load({name!r})"),
        }
        rows = []
        for package, (roots, program) in programs.items():
            seconds = min(timed(program) for _ in range(repeats))
            rows.append(f"| {package} | {install_megabytes(roots):.0f} | {seconds:.2f} |")
    return ["| package | installed, MB | start until a VFNet is loaded, s |", "|---|--:|--:|", *rows]


def install_megabytes(roots: list[str]) -> float:
    """The files of these distributions and of all that they need, as installed here, without extras."""
    waiting, seen, size = list(roots), set(), 0
    while waiting:
        name = waiting.pop().lower().replace("_", "-")
        if name in seen:
            continue
        seen.add(name)
        try:
            package = distribution(name)
        except PackageNotFoundError:  # of another platform
            continue
        for entry in package.files or []:
            path = Path(str(entry.locate()))
            size += path.stat().st_size if path.is_file() else 0
        for line in package.requires or []:
            requirement = Requirement(line)
            if requirement.marker is None or requirement.marker.evaluate({"extra": ""}):
                waiting.append(requirement.name)
    return size / 1e6


def timed(program: str) -> float:
    """Seconds that Python takes for a program."""
    start = time.perf_counter()
    subprocess.run([sys.executable, "-c", program], check=True)
    return time.perf_counter() - start


def megabytes(file: Path) -> float:
    return file.stat().st_size / 1e6


if __name__ == "__main__":
    main()
