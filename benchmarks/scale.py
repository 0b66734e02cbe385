"""Time and peak memory of what grows with a data set, at COCO's size and multiples: each step in a process of its own.

At 1x: reading, and the doctor's checks of annotations, 118,000 images with 860,000 boxes and their polygons; ATSS 2,000
objects on the pyramid of an 800 x 1344 image; greedy NMS 100,000 boxes of 80 classes; the diagnosis 50,000 images with
ten detections each. The memory is the peak of the process, with what the step imports.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from tightbox.evaluation.inputs import GroundTruth, Predictions

# Each step imports what it needs, so that its memory is its own.
IMAGES, BOXES, CLASSES, WIDTH, HEIGHT = 118_000, 860_000, 80, 640, 480
HEADER = "| step | size | seconds | peak memory, MB |\n|---|---|---|---|"
# Objects repeat after a block, but never in the same image: both numbers are prime.
BLOCK, STRIDE = 10_007, 611_953
POLYGON = 20  # corners of an object's outline, about as many as in COCO's file


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sizes", type=float, nargs="+", default=[1, 3, 10], help="multiples of COCO's size")
    parser.add_argument("--steps", nargs="+", default=list(STEPS), choices=list(STEPS))
    parser.add_argument("--markdown", type=Path, metavar="FILE", help="also write the table to FILE")
    parser.add_argument("--child", nargs=3, metavar=("STEP", "SIZE", "FOLDER"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.child:
        name, size, folder = options.child
        print(json.dumps(measure(STEPS[name], float(size), Path(folder))))
        return
    from harness import write_table
    from machine import measured

    lines = [measured(), "", HEADER]
    for size in options.sizes:
        with tempfile.TemporaryDirectory() as name:
            if {"read", "doctor"} & set(options.steps):
                write_coco(Path(name), size)
            for step in options.steps:
                command = [sys.executable, __file__, "--child", step, str(size), name]
                done = subprocess.run(command, capture_output=True, text=True, check=False)
                if done.returncode == 0:
                    what, seconds, peak = json.loads(done.stdout.splitlines()[-1])
                    lines.append(f"| {step} | {what} | {seconds:.1f} | {peak:,.0f} |")
                else:  # such as -9 where the memory does not suffice
                    lines.append(f"| {step} | {size:g}x | ended with status {done.returncode} | |")
                print(lines[-1], flush=True)
    print("\n".join(lines))
    write_table(options.markdown, lines, parser)


def measure(step: Callable[[float, Path], tuple[str, float]], size: float, folder: Path) -> tuple[str, float, float]:
    """What was done, its seconds, and the process's peak memory in MB."""
    what, seconds = step(size, folder)
    return what, seconds, peak_bytes() / 1e6


def peak_bytes() -> int:
    """The most memory that this process had; Linux's `ru_maxrss` would begin with that of the process before it."""
    try:
        status = Path("/proc/self/status").read_text(encoding="utf-8")
        return int(status.split("VmHWM:")[1].split()[0]) * 1024
    except (OSError, IndexError):
        import resource

        unit = 1 if sys.platform == "darwin" else 1024
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def read(size: float, folder: Path) -> tuple[str, float]:
    from tightbox.data.coco import read_coco

    start = time.perf_counter()
    data = read_coco(folder / "train.json", folder)
    seconds = time.perf_counter() - start
    boxes = sum(len(record.labels) for record in data.records)
    return f"{len(data.records):,} images, {boxes:,} boxes", seconds


def doctor(size: float, folder: Path) -> tuple[str, float]:
    from tightbox.data.coco import parse_coco
    from tightbox.data.doctor import _boxes, _empty, _summary

    start = time.perf_counter()
    parsed = parse_coco(folder / "train.json", [folder], root=folder, split="train")
    findings = [*parsed.all_findings(), *_boxes(parsed), *_empty(parsed)]
    summary = _summary(parsed)
    return f"{summary.boxes:,} boxes, {len(findings):,} findings", time.perf_counter() - start


def assign(size: float, folder: Path) -> tuple[str, float]:
    import torch

    from tightbox.assigners import atss, atss_anchors, level_points, per_point
    from tightbox.structures import Targets

    torch.manual_seed(0)
    objects, strides = int(2000 * size), (8, 16, 32, 64, 128)
    grids = [(-(-800 // stride), -(-1344 // stride)) for stride in strides]
    anchors = atss_anchors(level_points(grids, strides), per_point(torch.tensor(strides), grids))
    corners = torch.rand(objects, 2) * torch.tensor([1300, 760])
    boxes = torch.cat([corners, corners + 8 + 32 * torch.rand(objects, 2)], dim=1)
    targets = Targets.of(boxes, torch.zeros(objects))
    start = time.perf_counter()
    atss(anchors, [height * width for height, width in grids], [targets])
    return f"{objects:,} objects, {len(anchors):,} anchors", time.perf_counter() - start


def suppress(size: float, folder: Path) -> tuple[str, float]:
    import torch

    from tightbox.structures import Candidates
    from tightbox.suppress import greedy_nms

    torch.manual_seed(0)
    count = int(100_000 * size)
    corners = torch.rand(count, 2) * 1000
    boxes = torch.cat([corners, corners + 8 + 100 * torch.rand(count, 2)], dim=1)
    scores = torch.zeros(count, CLASSES)
    scores[torch.arange(count), torch.randint(CLASSES, (count,))] = 0.05 + 0.95 * torch.rand(count)
    start = time.perf_counter()
    greedy_nms(Candidates(boxes, scores), scores)
    return f"{count:,} boxes", time.perf_counter() - start


def diagnose(size: float, folder: Path) -> tuple[str, float]:
    from tightbox.diagnosis.diagnose import diagnose_results

    ground_truth, predictions = results(int(50_000 * size))
    start = time.perf_counter()
    diagnose_results(ground_truth, predictions, title="made up")
    what = f"{len(ground_truth.image_ids):,} images, {len(predictions):,} detections"
    return what, time.perf_counter() - start


def results(images: int) -> tuple[GroundTruth, Predictions]:
    """Seven objects in each image; seven detections near them, and three anywhere."""
    from tightbox.evaluation.inputs import GroundTruth, Predictions

    random = np.random.default_rng(0)
    count = 7 * images
    sides = np.exp(random.normal(4, 0.8, (count, 2))).clip(6, HEIGHT - 1)
    true = np.concatenate([random.random((count, 2)) * ([WIDTH, HEIGHT] - sides), sides], axis=1).round(2)
    labels, owner = random.integers(0, CLASSES, count), np.repeat(np.arange(images), 7)
    off = random.normal(0, 0.1, (count, 4))
    near = true + off * np.tile(true[:, 2:], 2)
    near[:, 2:] = near[:, 2:].clip(2)
    far = np.concatenate([random.random((3 * images, 2)) * 400, 10 + 70 * random.random((3 * images, 2))], axis=1)
    error = np.abs(off).mean(axis=1)
    ground_truth = GroundTruth(
        image_ids=tuple(range(images)),
        file_names=tuple(f"{i}.jpg" for i in range(images)),
        sizes=np.tile([float(WIDTH), float(HEIGHT)], (images, 1)),
        category_ids=tuple(range(CLASSES)),
        class_names=tuple(f"class {i}" for i in range(CLASSES)),
        images=owner,
        labels=labels,
        boxes=true,
        areas=true[:, 2:].prod(axis=1),
        crowd=np.zeros(count, dtype=np.bool_),
    )
    predictions = Predictions(
        images=np.concatenate([owner, np.repeat(np.arange(images), 3)]),
        labels=np.concatenate([labels, random.integers(0, CLASSES, 3 * images)]),
        boxes=np.concatenate([near, far]),
        scores=np.concatenate([np.exp(-5 * error), 0.3 * random.random(3 * images)]),
        ious=np.concatenate([np.exp(-3 * error), random.random(3 * images)]),
    )
    return ground_truth, predictions


def write_coco(folder: Path, size: float) -> None:
    """An annotation file, written row by row, and its first image, which a reader looks for."""
    random = np.random.default_rng(0)
    images, boxes = int(IMAGES * size), int(BOXES * size)
    (folder / "0.jpg").touch()
    with (folder / "train.json").open("w", encoding="utf-8") as file:
        rows = (f'{{"id": {i}, "file_name": "{i}.jpg", "width": {WIDTH}, "height": {HEIGHT}}}' for i in range(images))
        file.write('{"images": [' + ",\n".join(rows) + '], "annotations": [')
        sides = random.uniform(4, 200, (BLOCK, 2)).round(2)
        corners = (random.random((BLOCK, 2)) * ([WIDTH, HEIGHT] - sides)).round(2)
        outline = (random.random((BLOCK, POLYGON, 2)) * sides[:, None] + corners[:, None]).round(2)
        objects = [
            f'"category_id": {1 + i % CLASSES}, "bbox": {[*corners[i].tolist(), *sides[i].tolist()]}, '
            f'"area": {sides[i].prod():.2f}, "iscrowd": 0, "segmentation": [{outline[i].ravel().tolist()}]}}'
            for i in range(BLOCK)
        ]
        for start in range(0, boxes, BLOCK):
            rows = (
                f'{{"id": {i}, "image_id": {i * STRIDE % images}, {objects[i - start]}'
                for i in range(start, min(start + BLOCK, boxes))
            )
            file.write((",\n" if start else "") + ",\n".join(rows))
        names = ", ".join(f'{{"id": {i}, "name": "class {i}"}}' for i in range(1, CLASSES + 1))
        file.write(f'], "categories": [{names}]}}')


STEPS = {
    "read": read,
    "doctor": doctor,
    "assign": assign,
    "suppress": suppress,
    "diagnose": diagnose,
}

if __name__ == "__main__":
    main()
