"""Exported detectors beside PyTorch's eager mode: speed, AP, size, and what the runtime costs to install and start.

python benchmarks/export.py --checkpoint runs/bccd/best --data BCCD --markdown benchmarks/export.md

The first table has random weights and the default options, the score threshold too. A new VFNet scores every box about
0.01, which is below it, so suppression is given next to nothing: timed are the network, the choice of the best and the
operator. The second is of a trained detector on a data set, image by image; int8 ranges come from its train split.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import time
from collections.abc import Callable
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch
from harness import fastest_interleaved, table_options, write_table
from machine import measured
from packaging.requirements import Requirement

from tightbox.data.layout import read_data
from tightbox.data.records import DetectionData
from tightbox.export.int8 import quantised
from tightbox.export.onnx_file import write_onnx
from tightbox.export.openvino_file import import_openvino, to_openvino
from tightbox.inference.batches import Loading, batches
from tightbox.inference.detect import evaluate_detections
from tightbox.models import Detector, create_model, load
from tightbox.structures import Detections, ImageBatch

Outputs = list[np.ndarray]
Run = Callable[[dict[str, Any]], Outputs]
ROWS = {"VFNet R-50": ("resnet50", (800, 1344)), "VFNet R-18": ("resnet18", (320, 320))}
SMOKE = {"VFNet, tiny": ("test_resnet", (64, 96))}
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
    if (options.checkpoint is None) != (options.data is None):
        parser.error("--checkpoint and --data belong together")
    lines = list(SPEED)
    with TemporaryDirectory() as name:
        folder = Path(name)
        for title, (backbone, size) in (SMOKE if options.smoke else ROWS).items():
            model = create_model("vfnet", num_classes=80, backbone=backbone, pretrained_backbone=False).eval()
            lines.append(speed_row(title, model, folder / f"{backbone}.onnx", size, options.repeats))
            print(lines[-1], flush=True)
        lines.append(torchvision_row(folder, options))
        print(lines[-1], flush=True)
        last = create_model("vfnet", num_classes=80, backbone=backbone, pretrained_backbone=False)
        lines += ["", *installed_and_started(last, folder / f"{backbone}.onnx", options.repeats)]
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
    runtime, openvino = onnx_run(file), openvino_run(to_openvino(file))
    steps = [lambda: model.detect(batch), lambda: runtime(inputs), lambda: openvino(inputs)]
    a, b, c = (1000 * seconds for seconds in fastest_interleaved(steps, repeats))
    cells = [title, f"{size[0]}x{size[1]}", f"{megabytes(file):.0f}", f"{a:.0f}"]
    return f"| {' | '.join([*cells, f'{b:.0f}', f'{a / b:.2f}x', f'{c:.0f}', f'{a / c:.2f}x'])} |"


def onnx_run(file: Path) -> Run:
    """ONNX Runtime with as many threads as PyTorch."""
    import onnxruntime

    settings = onnxruntime.SessionOptions()
    settings.intra_op_num_threads = torch.get_num_threads()
    session = onnxruntime.InferenceSession(file, settings, providers=["CPUExecutionProvider"])
    return lambda inputs: list(session.run(None, inputs))


def openvino_run(network: Any) -> Run:
    """OpenVINO with as many threads, what is not int8 in float32."""
    hints = {"INFERENCE_PRECISION_HINT": "f32", "INFERENCE_NUM_THREADS": torch.get_num_threads()}
    compiled = import_openvino().compile_model(network, "CPU", hints)
    return lambda inputs: [np.array(value) for value in compiled(inputs).values()]


def torchvision_row(folder: Path, options: argparse.Namespace) -> str:
    """FCOS by the same exporter, or what the exporter says of it."""
    from torchvision.models.detection import fcos_resnet50_fpn

    height, width = (64, 96) if options.smoke else (800, 1344)
    model = fcos_resnet50_fpn(weights=None, weights_backbone=None, min_size=height, max_size=width).eval()
    image = torch.rand(3, height, width)
    file, title = folder / "fcos.onnx", f"| FCOS R-50, torchvision | {height}x{width} |"
    with torch.no_grad():
        steps: list[Callable[[], object]] = [lambda: model([image])]
        try:
            torch.onnx.export(model, ([image],), file, dynamo=True, opset_version=20, verbose=False)
            runtime = onnx_run(file)
            steps.append(lambda: runtime({onnx_input(file): image.numpy()}))
            eager, exported = (1000 * seconds for seconds in fastest_interleaved(steps, options.repeats))
        except Exception as error:  # whichever the exporter or the runtime ends with
            (eager,) = (1000 * seconds for seconds in fastest_interleaved(steps[:1], options.repeats))
            return f"{title} - | {eager:.0f} | fails: {type(error).__name__} | | - | |"
    return f"{title} {megabytes(file):.0f} | {eager:.0f} | {exported:.0f} | {eager / exported:.2f}x | - | |"


def onnx_input(file: Path) -> str:
    """The name of a file's first input."""
    import onnxruntime

    name: str = onnxruntime.InferenceSession(file).get_inputs()[0].name
    return name


def trained_rows(model: Detector, folder: Path, options: argparse.Namespace) -> list[str]:
    """Speed and AP of a detector in PyTorch, and of its files."""
    openvino, onnx_file = import_openvino(), folder / "trained.onnx"
    train, val = (read_data(options.data, split).with_classes(model.class_names) for split in ("train", "val"))
    if options.smoke:
        train, val = first(train, 4), first(val, 4)
    elif options.images:
        val = first(val, options.images)
    write_onnx(model, onnx_file)
    network = to_openvino(onnx_file)
    small = quantised(network, model, train)
    files = {"": onnx_file}
    for title, converted in (("OpenVINO", network), ("OpenVINO, int8", small)):
        files[title] = folder / f"{len(files)}.xml"
        openvino.save_model(converted, files[title], compress_to_fp16=False)
    runs: dict[str, tuple[Path | None, Run]] = {
        "PyTorch, eager": (None, eager_run(model)),
        "ONNX Runtime": (onnx_file, onnx_run(onnx_file)),
        "OpenVINO": (files["OpenVINO"].with_suffix(".bin"), openvino_run(network)),
        "OpenVINO, int8": (files["OpenVINO, int8"].with_suffix(".bin"), openvino_run(small)),
    }
    title = f"{model.name} of {options.checkpoint.name} on {len(val.records)} images of {options.data.name}"
    lines, eager = [TRAINED[0].format(title), TRAINED[1]], 0.0
    for name, (file, run) in runs.items():
        seconds, ap = on_data(run, model, val)
        eager = eager or seconds
        size = "-" if file is None else f"{megabytes(file):.1f}"
        lines.append(f"| {name} | {size} | {1000 * seconds:.1f} | {eager / seconds:.2f}x | {100 * ap:.2f} |")
        print(lines[-1], flush=True)
    return lines


def first(data: DetectionData, count: int) -> DetectionData:
    """The first records only."""
    from dataclasses import replace

    return replace(data, records=data.records[:count])


def eager_run(model: Detector) -> Run:
    """The detector in PyTorch, with outputs like those of a file."""

    def run(inputs: dict[str, Any]) -> Outputs:
        images = ImageBatch(torch.from_numpy(inputs["images"]), tuple(map(tuple, inputs["sizes"].tolist())))
        (found,) = model.detect(images)
        columns = found.boxes, found.scores, found.labels, found.labels
        return [*(column[None].numpy() for column in columns), np.array([len(found)])]

    return run


def on_data(run: Run, model: Detector, data: DetectionData) -> tuple[float, float]:
    """Seconds an image, the first one left out, and AP."""
    found: dict[int, Detections] = {}
    seconds = 0.0
    for images, _, (index,) in batches(model, data, loading=Loading(batch_size=1)):
        (size,) = images.sizes
        inputs = {"images": images.pixels.numpy(), "sizes": np.array([size], dtype=np.int64)}
        if not found:
            run(inputs)
        start = time.perf_counter()
        boxes, scores, labels, _, counts = run(inputs)
        seconds += time.perf_counter() - start
        kept = slice(0, int(counts[0]))
        detections = Detections(*(torch.from_numpy(column[0, kept]) for column in (boxes, scores, labels)))
        found[index] = detections.resized(size, data.records[index].size)
    return seconds / len(found), evaluate_detections(dict(sorted(found.items())), data).ap or 0.0


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
