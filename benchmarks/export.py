"""Times exported detectors beside PyTorch's eager mode: ONNX Runtime, OpenVINO, and torchvision's FCOS.

python benchmarks/export.py --markdown benchmarks/export.md

Weights are random and options the defaults, the score threshold too. A new VFNet scores every box about 0.01, which is
below it, so suppression is given next to nothing: timed are the network, the choice of the best and the operator.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch
from harness import fastest_interleaved, table_options, write_table
from machine import measured

from tightbox.export.onnx_file import write_onnx
from tightbox.export.openvino_file import to_openvino
from tightbox.models import Detector, create_model
from tightbox.structures import ImageBatch

Step = Callable[[], object]
ROWS = {"VFNet R-50": ("resnet50", 800, 1344), "VFNet R-18": ("resnet18", 320, 320)}
HEAD = [
    "| detector | input | file, MB | eager, ms | ONNX Runtime, ms | | OpenVINO, ms | |",
    "|---|---|--:|--:|--:|--:|--:|--:|",
]
RUNTIME = str(Path(__file__).parents[1] / "runtime" / "src")


def main() -> None:
    """A row for each detector and size, torchvision's FCOS, and how long either package takes to start."""
    parser, options = table_options(__doc__, repeats=5)
    lines = list(HEAD)
    with TemporaryDirectory() as name:
        folder = Path(name)
        for title, (backbone, height, width) in ROWS.items():
            model = create_model("vfnet", num_classes=80, backbone=backbone, pretrained_backbone=False).eval()
            file = folder / f"{backbone}.onnx"
            write_onnx(model, file)
            lines.append(row(title, model, file, (height, width), options))
            print(lines[-1], flush=True)
        lines.append(torchvision_row(folder, options))
        lines += ["", *start_up(folder / "resnet18.onnx", options.repeats)]
    lines += ["", "Factors are times faster than eager.", measured()]
    print("\n".join(lines))
    write_table(options.markdown, lines, parser)


def row(title: str, model: Detector, file: Path, size: tuple[int, int], options: argparse.Namespace) -> str:
    """Times the three in turns, with as many threads each."""
    images = torch.rand(1, 3, *size)
    batch = ImageBatch(images, (size,))
    inputs = {"images": images.numpy(), "sizes": np.array([size], dtype=np.int64)}
    threads = torch.get_num_threads()
    steps = [lambda: model.detect(batch), onnx_step(file, inputs, threads), openvino_step(file, inputs, threads)]
    eager, runtime, openvino = (1000 * seconds for seconds in fastest_interleaved(steps, options.repeats))
    cells = [title, f"{size[0]}x{size[1]}", f"{file.stat().st_size / 1e6:.0f}", f"{eager:.0f}"]
    cells += [f"{runtime:.0f}", f"{eager / runtime:.2f}x", f"{openvino:.0f}", f"{eager / openvino:.2f}x"]
    return f"| {' | '.join(cells)} |"


def onnx_step(file: Path, inputs: dict[str, Any], threads: int) -> Step:
    """One run of ONNX Runtime."""
    import onnxruntime

    settings = onnxruntime.SessionOptions()
    settings.intra_op_num_threads = threads
    session = onnxruntime.InferenceSession(file, settings, providers=["CPUExecutionProvider"])
    return lambda: session.run(None, inputs)


def openvino_step(file: Path, inputs: dict[str, Any], threads: int) -> Step:
    """One run of OpenVINO in float32."""
    import openvino

    hints = {"INFERENCE_PRECISION_HINT": "f32", "INFERENCE_NUM_THREADS": threads}
    compiled = openvino.compile_model(to_openvino(file), "CPU", hints)
    return lambda: compiled(inputs)


def torchvision_row(folder: Path, options: argparse.Namespace) -> str:
    """FCOS by the same exporter, or what the exporter says of it."""
    from torchvision.models.detection import fcos_resnet50_fpn

    model = fcos_resnet50_fpn(weights=None, weights_backbone=None, min_size=800, max_size=1344).eval()
    images = torch.rand(1, 3, 800, 1344)
    file, title = folder / "fcos.onnx", "| FCOS R-50, torchvision | 800x1344 |"
    with torch.no_grad():
        try:
            torch.onnx.export(model, ([images[0]],), file, dynamo=True, opset_version=20, verbose=False)
            (name,) = onnx_inputs(file)
            steps = [lambda: model([images[0]]), onnx_step(file, {name: images[0].numpy()}, torch.get_num_threads())]
            eager, runtime = (1000 * seconds for seconds in fastest_interleaved(steps, options.repeats))
        except Exception as error:  # whichever the exporter or the runtime ends with
            (eager,) = (
                1000 * seconds for seconds in fastest_interleaved([lambda: model([images[0]])], options.repeats)
            )
            return f"{title} - | {eager:.0f} | fails: {type(error).__name__} | | - | |"
    size = file.stat().st_size / 1e6
    return f"{title} {size:.0f} | {eager:.0f} | {runtime:.0f} | {eager / runtime:.2f}x | - | |"


def onnx_inputs(file: Path) -> list[str]:
    """The names of a file's inputs."""
    import onnxruntime

    return [entry.name for entry in onnxruntime.InferenceSession(file).get_inputs()]


def start_up(file: Path, repeats: int) -> list[str]:
    """Seconds from starting Python until a detector is loaded, by either package."""
    with TemporaryDirectory() as name:
        create_model("vfnet", num_classes=80, backbone="resnet18", pretrained_backbone=False).save(name)
        runtime = (
            f"import sys; sys.path.insert(0, {RUNTIME!r}); import tightbox_runtime as t; t.Detector({str(file)!r})"
        )
        programs = {"tightbox-runtime": runtime, "tightbox": f"import tightbox; tightbox.load({name!r})"}
        seconds = {package: min(timed(program) for _ in range(repeats)) for package, program in programs.items()}
    rows = [f"| {package} | {value:.2f} |" for package, value in seconds.items()]
    return ["| start until a VFNet R-18 is loaded | seconds |", "|---|--:|", *rows]


def timed(program: str) -> float:
    """Seconds that Python takes for a program."""
    start = time.perf_counter()
    subprocess.run([sys.executable, "-c", program], check=True)
    return time.perf_counter() - start


if __name__ == "__main__":
    main()
