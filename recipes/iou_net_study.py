"""IoU-Net step by step: the paper's ladder, figures 2 to 4, on synthetic scenes or on your data, over several seeds.

Trains what is missing in `runs/iou_net/NAME`, measures the last weights on the validation split, and writes
`recipes/iou_net.json` and, from it, `iou_net.md` and `iou_net.png`:
`python recipes/iou_net_study.py --name bccd --data DIR`.
"""

from __future__ import annotations

import argparse
import datetime
import json
import shlex
import sys
from collections.abc import Iterator, Sequence
from dataclasses import asdict, replace
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from matplotlib.figure import Figure
from torch import Tensor
from training import HERE, machine, scenes, spread, train_all

from tightbox.boxes import pairwise_iou
from tightbox.data.layout import read_data
from tightbox.data.records import DetectionData
from tightbox.evaluation.reliability import correlation
from tightbox.files import atomic_path, write_json
from tightbox.inference.candidates import AssignedCandidates, iterate_assigned
from tightbox.inference.detect import batches, evaluate_detections, evaluate_model
from tightbox.models import IoUNet, load
from tightbox.rank import by_class_score
from tightbox.structures import Detections
from tightbox.suppress import Suppress, greedy_nms, iou_guided_nms, soft_nms

FIGURES = ("ap", "ap50", "ap60", "ap70", "ap80", "ap90")
TRAINED = {"fpn": ["--iou_net.iou_head", "false"], "iou_net": []}
LADDER: dict[str, tuple[str, dict[str, Any]]] = {  # the trained model, and its options at inference
    "FPN": ("fpn", {}),
    "+ IoU head": ("iou_net", {"suppress": "greedy", "refine_steps": 0}),
    "+ IoU-guided NMS": ("iou_net", {"refine_steps": 0}),
    "+ refinement": ("iou_net", {}),
    "IoU head, greedy NMS, refinement": ("iou_net", {"suppress": "greedy"}),
    "all, ranked by score × predicted IoU": ("iou_net", {"rank_by_iou": True}),
}
STEPS = range(11)
EDGES = (0.5, 0.6, 0.7, 0.8, 0.9, 1.0)
EVERY = 10**6  # detections
RULES: dict[str, Suppress] = {
    "no NMS": partial(greedy_nms, iou_threshold=1.0, max_detections=EVERY),
    "greedy": partial(greedy_nms, iou_threshold=0.5, max_detections=EVERY),
    "soft": partial(soft_nms, max_detections=EVERY),
    "IoU-guided": partial(iou_guided_nms, iou_threshold=0.5, max_detections=EVERY),
}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--name", default="scenes", help="of the data, and of its recipe iou_net_NAME.yaml")
    parser.add_argument("--data", default=None, help="folder of a data set; synthetic scenes without it")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--jobs", type=int, default=2, help="trainings at a time, one thread each")
    args = parser.parse_args()
    data = args.data or str(scenes())
    config = HERE / f"iou_net_{args.name}.yaml"
    root = Path("runs") / "iou_net" / args.name
    runs = {
        root / f"{kind}-seed{seed}": ["--config", str(config), "--data", data, "--seed", str(seed), *options]
        for seed in args.seeds
        for kind, options in TRAINED.items()
    }
    train_all(runs, args.jobs)
    path = HERE / "iou_net.json"
    studies = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    seeds = studies.get(args.name, {}).get("seeds", {})
    for seed in args.seeds:
        measured = root / f"iou_net-seed{seed}" / "study.json"  # remove it to measure again
        if not measured.exists():
            models = {kind: cast(IoUNet, load(root / f"{kind}-seed{seed}" / "last")) for kind in TRAINED}
            figures = measure(models, read_data(data, "val").with_classes(models["fpn"].class_names))
            about = {"machine": machine(), "date": str(datetime.date.today())}
            write_json(measured, about | figures)
            print(f"measured: seed {seed}", flush=True)
        seeds[str(seed)] = json.loads(measured.read_text(encoding="utf-8"))
        studies[args.name] = {
            "command": shlex.join(["python", "recipes/iou_net_study.py", *sys.argv[1:]]),
            "images": len(read_data(data, "val").records),
            "seeds": seeds,
        }
        write_json(path, studies)
        with atomic_path(HERE / "iou_net.md") as temporary:
            temporary.write_text(report(studies), encoding="utf-8")
        draw(studies, HERE / "iou_net.png")
    return 0


def measure(models: dict[str, IoUNet], data: DetectionData) -> dict[str, Any]:
    """Everything about the models of one seed."""
    ladder = {}
    for name, (kind, changes) in LADDER.items():
        model, published = models[kind], models[kind].options
        model.options = replace(published, **changes)
        metrics = evaluate_model(model, data)
        model.options = published
        ladder[name] = {figure: getattr(metrics, figure) for figure in FIGURES}
    images = list(iterate_assigned(models["iou_net"], data))
    return {
        "ladder": ladder,
        "correlation": correlations(images),
        "surviving": {name: surviving(models["iou_net"], images, rule) for name, rule in RULES.items()},
        "ap_by_steps": ap_by_steps(models["iou_net"], data),
    }


def correlations(images: Sequence[AssignedCandidates]) -> dict[str, Any]:
    """Of class score and predicted IoU with the true IoU, over candidates that overlap an object of their class."""
    scores, ious, truth = [], [], []
    for image in images:
        best, labels = image.candidates.class_scores.max(dim=1)
        scores.append(best)
        ious.append(cast(Tensor, image.candidates.ious))
        truth.append(own_overlaps(image.candidates.boxes, labels, image).amax(dim=1))
    true = torch.cat(truth).numpy()
    return {
        "class score": asdict(correlation(torch.cat(scores).numpy(), true)),
        "predicted IoU": asdict(correlation(torch.cat(ious).numpy(), true)),
    }


def own_overlaps(boxes: Tensor, labels: Tensor, image: AssignedCandidates) -> Tensor:
    """IoU (K, G) of boxes with the objects of their class, 0 with others; (K, 1) zeros without any object."""
    overlaps = pairwise_iou(boxes, image.targets.boxes) * (labels[:, None] == image.targets.labels)
    return overlaps if overlaps.shape[1] else overlaps.new_zeros(len(boxes), 1)


def surviving(model: IoUNet, images: Sequence[AssignedCandidates], rule: Suppress) -> list[int]:
    """How many objects have a box left, by the IoU of the best that they have, in the bins between `EDGES`."""
    best = []
    for image in images:
        found = model.select(image.candidates, by_class_score, rule)
        if len(found) and len(image.targets):
            best.append(own_overlaps(found.boxes, found.labels, image).amax(dim=0))
    counts, _ = np.histogram(torch.cat(best).clamp(max=1).numpy(), EDGES)
    return cast(list[int], counts.tolist())


@torch.no_grad()
def ap_by_steps(model: IoUNet, data: DetectionData) -> dict[str, list[float | None]]:
    """AP after 0 to 10 steps of refinement by the predicted IoU, and of the R-CNN head's regression repeated."""
    published, model.options = model.options, replace(model.options, refine_steps=0)
    found: dict[str, list[dict[int, Detections]]] = {
        "optimisation": [{} for _ in STEPS],
        "regression": [{} for _ in STEPS],
    }
    for images, _, indices in batches(model, data):
        pyramid = model.features(images)
        start = regressed = model.detect(images)
        for step in STEPS:
            regressed = model.regress(pyramid, regressed) if step else start
            for kind, batch in {"optimisation": model.refine(pyramid, start, step), "regression": regressed}.items():
                for index, size, detections in zip(indices, images.sizes, batch, strict=True):
                    found[kind][step][index] = detections.resized(size, data.records[index].size)
    model.options = published
    return {kind: [evaluate_detections(rows, data).ap for rows in steps] for kind, steps in found.items()}


def report(studies: dict[str, Any]) -> str:
    """All tables, each value as mean ± standard deviation over the seeds."""
    lines = [
        "# IoU-Net, step by step",
        "",
        "Written by `recipes/iou_net_study.py` from runs that took place. AP in per cent;",
    ]
    lines += ["mean ± standard deviation over the seeds. Last weights, validation split.", ""]
    lines += ["![AP by steps, and the objects by the IoU of the best box left, on each data set](iou_net.png)"]
    for name, study in studies.items():
        seeds = list(study["seeds"].values())
        lines += ["", f"## {name}: {study['images']} images, seeds {', '.join(study['seeds'])}", ""]
        measured = sorted({f"{seed['machine']}, {seed['date']}" for seed in seeds})
        lines += [f"`{study['command']}` on {'; '.join(measured)}.", ""]
        lines += table(["", *(figure.upper() for figure in FIGURES)], ladder_rows(seeds))
        lines += [
            "",
            "Correlation with the true IoU, over candidates of IoU above 0.5 (the paper's figure 2). All have a",
        ]
        lines += ["class score above 0.05, which narrows its range and not that of the predicted IoU:", ""]
        lines += table(["", "Pearson", "Spearman", "boxes"], correlation_rows(seeds))
        lines += ["", "Objects by the IoU of the best box that suppression leaves them (figure 3):", ""]
        bins = [f"{low:.1f}-{high:.1f}" for low, high in pairwise(EDGES)]
        lines += table(["", *bins], surviving_rows(seeds))
        lines += ["", "AP by the number of steps, from the boxes that IoU-guided NMS leaves (figure 4):", ""]
        lines += table(["steps", *map(str, STEPS)], step_rows(seeds))
    return "\n".join(lines) + "\n"


def draw(studies: dict[str, Any], path: Path) -> None:
    """The paper's figures 4 and 3, a row for each data set; bars and bands reach one standard deviation."""
    figure = Figure(figsize=(10, 3.4 * len(studies)), layout="constrained")
    panels = figure.subplots(len(studies), 2, squeeze=False)
    for (left, right), (name, study) in zip(panels, studies.items(), strict=True):
        seeds = list(study["seeds"].values())
        for kind in ("optimisation", "regression"):
            values = 100 * np.array([seed["ap_by_steps"][kind] for seed in seeds])
            middle, spread_ = values.mean(axis=0), values.std(axis=0, ddof=min(1, len(seeds) - 1))
            left.plot(STEPS, middle, marker="o", label=kind)
            left.fill_between(STEPS, middle - spread_, middle + spread_, alpha=0.2)
        left.set(xlabel="steps", ylabel="AP", title=f"{name}: boxes moved step by step")
        left.legend()
        for number, rule in enumerate(RULES):
            counts = np.array([seed["surviving"][rule] for seed in seeds])
            places = np.arange(counts.shape[1]) + (number - (len(RULES) - 1) / 2) / (len(RULES) + 1)
            error = counts.std(axis=0, ddof=min(1, len(seeds) - 1))
            right.bar(places, counts.mean(axis=0), 1 / (len(RULES) + 1), yerr=error, label=rule)
        right.set_xticks(range(len(EDGES) - 1), [f"{low:.1f}-{high:.1f}" for low, high in pairwise(EDGES)])
        right.set(xlabel="IoU of the best box left", ylabel="objects", title=f"{name}: after suppression")
        right.legend()
    with atomic_path(path) as temporary:
        figure.savefig(temporary, format="png", dpi=110)


def ladder_rows(seeds: Sequence[Any]) -> Iterator[list[str]]:
    for row in LADDER:
        yield [row, *(spread([100 * seed["ladder"][row][figure] for seed in seeds], 1) for figure in FIGURES)]


def correlation_rows(seeds: Sequence[Any]) -> Iterator[list[str]]:
    for row in ("class score", "predicted IoU"):
        values = [seed["correlation"][row] for seed in seeds]
        yield [
            row,
            *(spread([v[kind] for v in values], 3) for kind in ("pearson", "spearman")),
            spread([v["pairs"] for v in values], 0),
        ]


def surviving_rows(seeds: Sequence[Any]) -> Iterator[list[str]]:
    for row in RULES:
        yield [row, *(spread(counts, 0) for counts in zip(*(seed["surviving"][row] for seed in seeds), strict=True))]


def step_rows(seeds: Sequence[Any]) -> Iterator[list[str]]:
    for row in ("optimisation", "regression"):
        steps = zip(*(seed["ap_by_steps"][row] for seed in seeds), strict=True)
        yield [row, *(spread([100 * value for value in values], 1) for values in steps)]


def table(head: Sequence[str], rows: Iterator[list[str]]) -> list[str]:
    """Lines of a Markdown table."""
    return [f"| {' | '.join(head)} |", "|---" * len(head) + "|", *(f"| {' | '.join(row)} |" for row in rows)]


if __name__ == "__main__":
    sys.exit(main())
