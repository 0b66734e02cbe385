"""IoU-aware RetinaNet against RetinaNet: the paper's ablations on synthetic scenes or your data, over several seeds."""

from __future__ import annotations

import argparse
import datetime
import json
import sys
from functools import partial
from pathlib import Path
from statistics import mean
from typing import Any

from training import HERE, machine, scenes, spread, train_all

from tightbox.data.layout import read_data
from tightbox.diagnosis.ladder_plot import draw_ladder
from tightbox.evaluation.ladder import Ladder
from tightbox.files import atomic_path, write_json
from tightbox.inference.candidates import cache_candidates, read_candidates, select_all
from tightbox.inference.detect import evaluate_detections
from tightbox.inference.oracle import oracle_study
from tightbox.models import load
from tightbox.rank import by_class_score, by_power

HEAD = "--iou_aware_retinanet."
VARIANTS: dict[str, tuple[str, list[str]]] = {
    "retinanet": ("RetinaNet", [f"{HEAD}iou_head=false"]),
    "detached": ("+ IoU head, target detached", [f"{HEAD}detach_target=true"]),
    "gradient": ("+ IoU head, gradient through the target", []),
    "l1": ("+ IoU head, target detached, L1", [f"{HEAD}detach_target=true", f"{HEAD}iou_loss=l1"]),
    "l2": ("+ IoU head, target detached, L2", [f"{HEAD}detach_target=true", f"{HEAD}iou_loss=l2"]),
}
FIGURES = ("ap", "ap50", "ap75", "ap90")
ALPHAS = tuple(i / 10 for i in range(11))
LADDERS = ("retinanet", "gradient")  # the variants whose oracle ladder is computed, for it takes a while


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", default=None, help="folder of a data set; synthetic scenes without it")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--variants", nargs="+", choices=list(VARIANTS), default=list(VARIANTS))
    parser.add_argument("--jobs", type=int, default=2, help="trainings at a time, one thread each")
    args = parser.parse_args()
    name = Path(args.data).name if args.data else "scenes"
    data = args.data or str(scenes())
    recipe = HERE / ("iou_aware_photos.yaml" if args.data else "iou_aware_scenes.yaml")
    folders = {(v, s): Path("runs") / "iou_aware" / name / f"{v}-seed{s}" for s in args.seeds for v in args.variants}
    train_all(
        {
            out: ["--config", str(recipe), "--data", data, "--seed", str(seed), *VARIANTS[variant][1]]
            for (variant, seed), out in folders.items()
        },
        args.jobs,
    )
    rows = []
    for (variant, seed), out in folders.items():
        rows.append({"data": name, "variant": variant, "seed": seed} | measure(out / "last", data, variant in LADDERS))
        print(f"measured: {out}", flush=True)
    record(name, rows)
    return 0


def measure(checkpoint: Path, data_folder: str, ladder: bool) -> dict[str, Any]:
    """AP by class score and for every α, correlations and the ladder of one trained model."""
    path = checkpoint.parent / "study.json"
    if path.exists():
        measured: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        return measured
    model = load(checkpoint)
    data = read_data(data_folder, "val").with_classes(model.class_names)
    folder = cache_candidates(model, checkpoint, data)
    ranks = {"class": by_class_score}
    if model.options.iou_head:
        ranks |= {f"{alpha:.1f}": partial(by_power, alpha=alpha) for alpha in ALPHAS}
    result: dict[str, Any] = {"by_rank": {}}
    for name, rank in ranks.items():
        found = select_all(read_candidates(folder), data, partial(model.select, rank=rank))
        metrics = evaluate_detections(found, data)
        result["by_rank"][name] = {figure: getattr(metrics, figure) for figure in FIGURES}
    if ladder:
        study = oracle_study(model, data)
        draw_ladder(study, checkpoint.parent / "ladder.png")
        result["ladder"] = _plain(study)
    result |= {"minutes": round(model.metrics["train_seconds"] / 60, 1), "date": str(datetime.date.today())}
    write_json(path, result)
    return result


def _plain(study: Ladder) -> dict[str, Any]:
    return {
        "variants": {v.name: [getattr(m, "ap", None) for m in (v.alone, v.with_estimate)] for v in study.variants},
        "lost_to_ranking": study.lost_to_ranking,
        "pearson": {name: value.pearson for name, value in study.correlations.items()},
    }


def record(data: str, rows: list[dict[str, Any]]) -> None:
    """Put the rows of this data set in the place of earlier ones, and write the tables anew."""
    path = HERE / "iou_aware.json"
    old = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    studies = old | {data: {"rows": rows, "machine": machine(), "date": str(datetime.date.today())}}
    write_json(path, studies)
    lines = [
        "# IoU-aware RetinaNet, measured",
        "",
        "Written by `python recipes/iou_aware_study.py [--data DIR]` from runs that took place. Mean and standard",
        "deviation over the seeds, on the validation split, in per cent, of the last weights; α is that of the ranking",
        "p^α·u^(1−α). Several trainings shared the machine, so minutes are an upper bound.",
        "",
        "In the ladders, a class score of 1 for every candidate that learns an object is worse than the predicted",
        "score: assignment by overlap gives an object dozens of anchors, and with all of them at 1 suppression keeps",
        "any. With the IoU estimate to tell them apart the same replacement is a gain, as in VFNet's table 1.",
    ]
    for name, study in studies.items():
        lines += ["", f"## {name}: {study['machine']}, {study['date']}", "", *tables(study["rows"])]
    with atomic_path(HERE / "iou_aware.md") as temporary:
        temporary.write_text("\n".join(lines) + "\n", encoding="utf-8")


def tables(rows: list[dict[str, Any]]) -> list[str]:
    """Ablation, α sweep, and ladder."""
    by_variant = {v: [row for row in rows if row["variant"] == v] for v in VARIANTS}
    by_variant = {v: found for v, found in by_variant.items() if found}
    lines = [
        "| detector | ranked by | AP | AP50 | AP75 | AP90 | seeds | minutes each |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for variant, found in by_variant.items():
        minutes = f"{mean(row['minutes'] for row in found):.1f}"
        for rank, shown in (("class", "class score"), ("0.5", "α = 0.5")):
            if rank in found[0]["by_rank"]:
                cells = [spread([100 * row["by_rank"][rank][figure] for row in found], 1) for figure in FIGURES]
                cells = [VARIANTS[variant][0], shown, *cells, str(len(found)), minutes]
                lines.append("| " + " | ".join(cells) + " |")
    lines += ["", *directions(by_variant)]
    if "gradient" in by_variant:
        lines += ["", "α sweep (gradient through the target; one inference per seed):", ""]
        lines += ["| α | AP | AP50 | AP75 | AP90 |", "|---|---|---|---|---|"]
        for alpha in ALPHAS:
            found = [row["by_rank"][f"{alpha:.1f}"] for row in by_variant["gradient"]]
            cells = [spread([100 * row[figure] for row in found], 1) for figure in FIGURES]
            lines.append(f"| {alpha:.1f} | " + " | ".join(cells) + " |")
    for variant in LADDERS:
        if variant in by_variant:
            lines += ["", f"Oracle ladder, {VARIANTS[variant][0]} (AP):", "", *ladder_table(by_variant[variant])]
    return lines


def directions(by_variant: dict[str, list[dict[str, Any]]]) -> list[str]:
    """Whether each of the paper's directions holds, as paired differences over the seeds."""
    claims = [
        ("the IoU head helps (detached)", ("detached", "0.5"), ("retinanet", "class")),
        ("the IoU head helps (with gradient)", ("gradient", "0.5"), ("retinanet", "class")),
        ("the gradient through the target helps", ("gradient", "0.5"), ("detached", "0.5")),
        ("BCE is better than L1", ("detached", "0.5"), ("l1", "0.5")),
        ("BCE is better than L2", ("detached", "0.5"), ("l2", "0.5")),
    ]
    lines = ["| the paper's direction | AP | AP75 | AP90 | seeds where AP rises |", "|---|---|---|---|---|"]
    for claim, (better, its), (worse, their) in claims:
        if better not in by_variant or worse not in by_variant:
            continue
        pairs = list(zip(by_variant[better], by_variant[worse], strict=True))
        differences = {f: [100 * (a["by_rank"][its][f] - b["by_rank"][their][f]) for a, b in pairs] for f in FIGURES}
        cells = [spread(differences[figure], 1, sign=True) for figure in ("ap", "ap75", "ap90")]
        rises = f"{sum(d > 0 for d in differences['ap'])} of {len(pairs)}"
        lines.append(f"| {claim} | " + " | ".join([*cells, rises]) + " |")
    return lines


def ladder_table(found: list[dict[str, Any]]) -> list[str]:
    ladders = [row["ladder"] for row in found]
    lines = ["| replaced before suppression | class score alone | with the IoU estimate |", "|---|---|---|"]
    for variant in ladders[0]["variants"]:
        cells = [[ladder["variants"][variant][column] for ladder in ladders] for column in (0, 1)]
        shown = [spread([100 * value for value in values], 1) if None not in values else "" for values in cells]
        lines.append(f"| {variant} | {shown[0]} | {shown[1]} |")
    lost = spread([100 * ladder["lost_to_ranking"] for ladder in ladders], 1)
    pearson = {name: spread([ladder["pearson"][name] for ladder in ladders], 2) for name in ladders[0]["pearson"]}
    told = ", ".join(f"{name} {value}" for name, value in pearson.items())
    return [*lines, "", f"AP lost to ranking: {lost}. Pearson correlation with the true IoU, where above 0.5: {told}."]


if __name__ == "__main__":
    sys.exit(main())
