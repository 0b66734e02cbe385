"""Times `tightbox diagnose --gt --dt` on a made-up result file of 5,000 images with 100 boxes each."""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
from harness import write_table
from machine import measured
from PIL import Image

CLASSES, WIDTH, HEIGHT = 80, 640, 480
HEADER = "| images | boxes | classes | seconds | page, MB |\n|---|---|---|---|---|"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--images", type=int, default=5000)
    parser.add_argument("--boxes", type=int, default=100, help="in each image")
    parser.add_argument("--markdown", type=Path, metavar="FILE", help="also write the table to FILE")
    options = parser.parse_args()
    if options.images < 1 or options.boxes < 1:
        parser.error("--images and --boxes must be 1 or more")

    lines = [measured(), "", HEADER]
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        truth, results = make_results(options.images, options.boxes)
        for file, content in (("gt.json", truth), ("dt.json", results)):
            (folder / file).write_text(json.dumps(content), encoding="utf-8")
        make_images(folder / "images", truth)
        files = [f"--{kind}={folder / kind}.json" for kind in ("gt", "dt")]
        start = time.perf_counter()
        subprocess.run([sys.executable, "-m", "tightbox", "diagnose", *files, f"--out={folder / 'out'}"], check=True)
        seconds = time.perf_counter() - start
        size = (folder / "out" / "diagnosis.html").stat().st_size / 1e6
    lines.append(f"| {options.images:,} | {len(results):,} | {CLASSES} | {seconds:.1f} | {size:.1f} |")
    print("\n".join(lines))
    write_table(options.markdown, lines, parser)


def make_results(images: int, boxes: int) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """Objects at random places; half of the boxes are near one, and the nearer the better their scores."""
    random = np.random.default_rng(0)
    annotations: list[dict[str, Any]] = []
    results: list[dict[str, Any]] = []
    for image in range(1, images + 1):
        objects = int(random.integers(1, 15))
        sides = np.exp(random.normal(4, 0.8, (objects, 2))).clip(6, HEIGHT - 1)
        true = np.concatenate([random.uniform(0, 1, (objects, 2)) * ([WIDTH, HEIGHT] - sides), sides], axis=1).round(2)
        labels = random.integers(1, CLASSES + 1, objects)
        for box, label in zip(true.tolist(), labels.tolist(), strict=True):
            row = {"id": len(annotations) + 1, "image_id": image, "category_id": label, "bbox": box, "iscrowd": 0}
            annotations.append(row | {"area": box[2] * box[3]})
        meant, off = random.integers(0, objects, boxes), random.normal(0, 0.12, (boxes, 4))
        found = true[meant] + off * np.tile(true[meant, 2:], 2)
        near, error = random.random(boxes) < 0.5, np.abs(off).mean(axis=1)
        found[~near] = np.concatenate([random.uniform(0, 400, (boxes, 2)), random.uniform(10, 80, (boxes, 2))], 1)[
            ~near
        ]
        found[:, 2:] = found[:, 2:].clip(2)
        scores = np.where(near, np.exp(-5 * error) * random.uniform(0.5, 1, boxes), random.uniform(0, 0.3, boxes))
        named = np.where(random.random(boxes) < 0.85, labels[meant], random.integers(1, CLASSES + 1, boxes))
        columns = (found.round(2).tolist(), scores.round(4).tolist(), named.tolist(), np.exp(-3 * error).tolist())
        for box, score, label, iou in zip(*columns, strict=True):
            results.append({"image_id": image, "category_id": label, "bbox": box, "score": score, "iou": iou})
    rows = [{"id": i, "width": WIDTH, "height": HEIGHT, "file_name": f"{i:06d}.jpg"} for i in range(1, images + 1)]
    categories = [{"id": i, "name": f"class {i}"} for i in range(1, CLASSES + 1)]
    return {"images": rows, "annotations": annotations, "categories": categories}, results


def make_images(folder: Path, truth: dict[str, Any]) -> None:
    """One image of noise, which compresses badly, under all names."""
    folder.mkdir()
    pixels = np.random.default_rng(0).integers(0, 256, (HEIGHT, WIDTH, 3), dtype=np.uint8)
    first = folder / truth["images"][0]["file_name"]
    Image.fromarray(pixels).save(first, quality=90)
    for row in truth["images"][1:]:
        (folder / row["file_name"]).hardlink_to(first)


if __name__ == "__main__":
    main()
