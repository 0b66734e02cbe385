"""UnitBox's two experiments: its IoU loss against ℓ2 over the iterations, and over the size of the image.

Both losses are trained on the same synthetic scenes, with the same seeds and iterations, each at its own learning rate,
which the same search finds on the validation scenes. All figures are of test scenes. Whatever is trained or measured
already is not done again.
"""

from __future__ import annotations

import argparse
import datetime
import json
import sys
from collections.abc import Iterator, Mapping
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from statistics import mean
from typing import Any

import numpy as np
import torch
from matplotlib.figure import Figure
from torch import Tensor
from training import HERE, machine, spread, train_all

from tightbox.boxes import decode_distances, iou
from tightbox.data.dataset import DetectionDataset
from tightbox.data.layout import read_data
from tightbox.data.records import DetectionData
from tightbox.data.scenes import write_scenes
from tightbox.evaluation.inputs import GroundTruth, Predictions
from tightbox.evaluation.matching import match
from tightbox.files import atomic_path, write_json
from tightbox.inference.detect import detect_data
from tightbox.models import UnitBox, load
from tightbox.options import Preprocess
from tightbox.structures import Detections, ImageBatch

LOSSES = {"iou": "IoU loss", "l2": "ℓ2 loss"}
RATES = (1e-3, 3e-3, 1e-2, 3e-2, 1e-1)
SIZES = (60, 120, 240, 360, 480, 960)  # of the paper's figure 5
FALSE_POSITIVES = 100  # one for each test scene; the paper has 10,000 for 2,845 photographs
RUNS = Path("runs/unitbox")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--epochs", type=int, default=10)
    parser.add_argument("--search_epochs", type=int, default=2)
    parser.add_argument("--scenes", type=int, nargs=3, default=[600, 100, 100], help="of train, val and test")
    parser.add_argument("--runs", type=Path, default=RUNS, help="folder of scenes and runs")
    parser.add_argument("--out", type=Path, default=HERE, help="folder of unitbox.json, unitbox.md and the plots")
    parser.add_argument("--jobs", type=int, default=2, help="trainings at a time, one thread each")
    args = parser.parse_args()
    data = one_class(args.runs / "scenes", args.scenes)

    search = {(loss, rate): args.runs / f"search-{loss}-{rate:g}" for loss in LOSSES for rate in RATES}
    train_all(
        {out: options(data, loss, 0, rate, args.search_epochs) for (loss, rate), out in search.items()}, args.jobs
    )
    found = dict(zip(search, measured(list(search.values()), data, args.jobs, search=True), strict=True))
    recalls = {loss: {rate: found[loss, rate][-1]["recall"] for rate in RATES} for loss in LOSSES}
    best = {loss: max(of_rate, key=of_rate.__getitem__) for loss, of_rate in recalls.items()}
    print(f"learning rates: {best}", flush=True)

    runs = {(loss, seed): args.runs / f"{loss}-seed{seed}" for seed in args.seeds for loss in LOSSES}
    train_all(
        {out: options(data, loss, seed, best[loss], args.epochs) for (loss, seed), out in runs.items()}, args.jobs
    )
    results = measured(list(runs.values()), data, args.jobs, search=False)
    rows = [{"loss": loss, "seed": seed} | result for (loss, seed), result in zip(runs, results, strict=True)]
    study = {"rows": rows, "recalls": recalls, "rates": best, "scenes": args.scenes, "epochs": args.epochs}
    study |= {"machine": machine(), "jobs": args.jobs, "date": str(datetime.date.today()), "command": sys.argv[1:]}
    write_json(args.out / "unitbox.json", study)
    draw_iterations(rows, args.out / "unitbox_iterations.png")
    draw_sizes(rows, args.out / "unitbox_sizes.png")
    with atomic_path(args.out / "unitbox.md") as temporary:
        temporary.write_text("\n".join(report(study)) + "\n", encoding="utf-8")
    return 0


def one_class(root: Path, counts: list[int]) -> Path:
    """Scenes whose shapes are all of the class "object", rendered if they are not there."""
    splits = dict(zip(("train", "val", "test"), counts, strict=True))
    if not (root / "test.json").exists():
        write_scenes(root, splits, seed=0)
    for path in (root / f"{split}.json" for split in splits):
        content = json.loads(path.read_text(encoding="utf-8"))
        content["categories"] = [{"id": 1, "name": "object"}]
        content["annotations"] = [row | {"category_id": 1} for row in content["annotations"]]
        write_json(path, content)
    return root


def options(data: Path, loss: str, seed: int, rate: float, epochs: int) -> list[str]:
    recipe = ["--config", str(HERE / "unitbox_losses.yaml"), "--data", str(data), "--unitbox.loss", loss]
    return [*recipe, "--seed", str(seed), "--lr", str(rate), "--epochs", str(epochs)]


def measured(runs: list[Path], data: Path, jobs: int, search: bool) -> list[Any]:
    """What `measure_search` or `measure_run` finds of each run, several at a time."""
    with ProcessPoolExecutor(jobs, get_context("spawn"), torch.set_num_threads, (1,)) as pool:
        return list(pool.map(measure_search if search else measure_run, runs, [data] * len(runs)))


def measure_search(run: Path, data: Path) -> list[dict[str, float]]:
    return [recalls_of(run / "last", read_data(data, "val"))]


def measure_run(run: Path, data: Path) -> dict[str, Any]:
    """Both experiments with one trained model."""
    path = run / "study.json"
    if path.exists():
        known: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        return known
    test = read_data(data, "test")
    log = [json.loads(row) for row in (run / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]
    steps = len(read_data(data, "train").records) // 4
    history = []
    for row in log:
        if "ap" in row:
            history.append({"iterations": steps * row["epoch"]} | recalls_of(run / f"epoch-{row['epoch']}", test))
    model = load(run / "last")
    assert isinstance(model, UnitBox)
    ious = {str(size): ious_at_centres(model, test, size) for size in SIZES}
    result = {"history": history, "ious": ious, "minutes": round(log[-1]["train_seconds"] / 60, 1)}
    write_json(path, result)
    print(f"measured: {run}", flush=True)
    return result


def recalls_of(checkpoint: Path, data: DetectionData) -> dict[str, float]:
    return recalls(detect_data(load(checkpoint), data), data, FALSE_POSITIVES)


def recalls(detections: Mapping[int, Detections], data: DetectionData, false_positives: int) -> dict[str, float]:
    """Miss rate with all detections, and recall where there are no more than so many false positives; IoU 0.5."""
    ground_truth = GroundTruth.from_data(data)
    matches = match(ground_truth, Predictions.from_detections(detections, data))
    outcome, order = matches.at(0.5), np.argsort(-matches.scores, kind="stable")
    hit, wrong = outcome.hit[order], outcome.wrong[order]
    objects = max(1, int((~ground_truth.crowd).sum()))
    allowed = wrong.cumsum() <= false_positives
    return {
        "miss": 1 - int(hit.sum()) / objects,
        "recall": int(hit[allowed].sum()) / objects,
        "false_positives": int(wrong.sum()),
    }


@torch.inference_mode()
def ious_at_centres(model: UnitBox, data: DetectionData, size: int) -> list[float]:
    """IoU of every object with the box that is read at its middle, in images resized to `size` pixels."""
    found = []
    dataset = DetectionDataset(data, Preprocess(long_side=size, short_side=size))
    for index in range(len(dataset)):
        image, targets, _ = dataset[0, index]
        pixels, _ = model._normalise(ImageBatch.of([image]).to(model.device))
        distances = model(pixels).distances[0].cpu()
        middle = (targets.boxes[:, :2] + targets.boxes[:, 2:]) / 2
        x, y = middle.long().unbind(1)
        points: Tensor = torch.stack([x, y], dim=1) + 0.5
        found += iou(decode_distances(points, distances[:, y, x].T), targets.boxes).tolist()
    return found


def by_loss(rows: list[dict[str, Any]]) -> Iterator[tuple[str, list[dict[str, Any]]]]:
    for loss in LOSSES:
        yield loss, [row for row in rows if row["loss"] == loss]


def draw_iterations(rows: list[dict[str, Any]], path: Path) -> None:
    """Miss rate and recall over the iterations: a line a seed."""
    figure = Figure(figsize=(10, 4), layout="constrained")
    left, right = figure.subplots(1, 2)
    for colour, (loss, found) in enumerate(by_loss(rows)):
        for number, row in enumerate(found):
            iterations = [point["iterations"] for point in row["history"]]
            for axes, name in ((left, "miss"), (right, "recall")):
                values = [point[name] for point in row["history"]]
                label = LOSSES[loss] if number == 0 else None
                axes.plot(iterations, values, color=f"C{colour}", label=label, alpha=0.8)
    left.set(title="miss rate at IoU 0.5", ylim=(0, 1))
    right.set(title=f"recall with at most {FALSE_POSITIVES} false positives", ylim=(0, 1))
    save(figure, path, "iterations of 4 images")


def draw_sizes(rows: list[dict[str, Any]], path: Path) -> None:
    """IoU of the box at an object's middle by the size of the image: a line a seed."""
    figure = Figure(figsize=(6, 4), layout="constrained")
    axes = figure.subplots()
    for colour, (loss, found) in enumerate(by_loss(rows)):
        for number, row in enumerate(found):
            values = [mean(row["ious"][str(size)]) for size in SIZES]
            axes.plot(SIZES, values, ".-", color=f"C{colour}", label=LOSSES[loss] if number == 0 else None, alpha=0.8)
    axes.set(title="mean IoU of the box at the object's middle", ylim=(0, 1), xticks=SIZES)
    save(figure, path, "pixels of a side; trained at 192")


def save(figure: Figure, path: Path, x: str) -> None:
    for axes in figure.axes:
        axes.set_xlabel(x)
        axes.grid(alpha=0.3)
        axes.legend()
    with atomic_path(path) as temporary:
        figure.savefig(temporary, format="png", dpi=120)


def report(study: dict[str, Any]) -> list[str]:
    rows, (train, val, test) = study["rows"], study["scenes"]
    seeds = len({row["seed"] for row in rows})
    minutes = mean(row["minutes"] for row in rows)
    command = " ".join(["python recipes/unitbox_losses.py", *study["command"]])
    lines = [
        "# UnitBox, measured",
        "",
        f"Written {study['date']} by `{command}`",
        f"from runs that took place: ResNet-18 from random weights, {study['epochs']} epochs of batches of 4, about",
        f"{minutes:.1f} minutes each, {study['jobs']} at a time on {study['machine']}; {train} scenes",
        f"to train on, {val} to choose the learning rate by, {test} for the figures. Mean and standard deviation over",
        f"{seeds} seeds.",
        "",
        "## IoU loss and ℓ2 loss over the iterations (the paper's figure 4)",
        "",
        f"Recall is that with at most {FALSE_POSITIVES} false positives in the {test} test scenes; the miss rate is",
        "that of all detections. A hit has an IoU of 0.5 or more.",
        "",
        "| loss | learning rate | iterations | miss rate | recall | false positives in all |",
        "|---|---|---|---|---|---|",
    ]
    for loss, found in by_loss(rows):
        count = len(found[0]["history"])
        for i in sorted({count // 4, count // 2, count - 1}):
            points = [row["history"][i] for row in found]
            cells = [spread([point[name] for point in points], 3) for name in ("miss", "recall")]
            false = f"{mean(point['false_positives'] for point in points):.0f}"
            start = [LOSSES[loss], f"{study['rates'][loss]:g}", str(points[0]["iterations"])]
            lines.append("| " + " | ".join([*start, *cells, false]) + " |")
    lines += ["", "![miss rate and recall over the iterations](unitbox_iterations.png)", "", "The search:", ""]
    lines += ["| recall on val by learning rate | " + " | ".join(f"{rate:g}" for rate in RATES) + " |"]
    lines += ["|---" * (len(RATES) + 1) + "|"]
    for loss, recalls in study["recalls"].items():
        lines.append(f"| {LOSSES[loss]} | " + " | ".join(f"{recalls[rate]:.3f}" for rate in RATES) + " |")
    objects = len(rows[0]["ious"][str(SIZES[0])])
    lines += [
        "",
        "## The same box at six sizes (the paper's figure 5)",
        "",
        f"IoU of the box that is read at the middle of each of the {objects} objects of the test scenes, whatever the",
        "confidence there, in scenes resized to so many pixels a side: mean, and the share with an IoU above 0.5.",
        "",
        "| loss | | " + " | ".join(str(size) for size in SIZES) + " |",
        "|---" * (len(SIZES) + 2) + "|",
    ]
    for loss, found in by_loss(rows):
        values = [[np.array(row["ious"][str(size)]) for row in found] for size in SIZES]
        means = [spread([float(v.mean()) for v in of_size], 3) for of_size in values]
        shares = [spread([float((v > 0.5).mean()) for v in of_size], 3) for of_size in values]
        lines.append(f"| {LOSSES[loss]} | mean IoU | " + " | ".join(means) + " |")
        lines.append("| | IoU > 0.5 | " + " | ".join(shares) + " |")
    return [*lines, "", "![mean IoU by size](unitbox_sizes.png)"]


if __name__ == "__main__":
    sys.exit(main())
