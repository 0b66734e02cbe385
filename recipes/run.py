"""Run a recipe and enter what came out into recipes/README.md: `python recipes/run.py bccd_cpu --data DIR`."""

from __future__ import annotations

import argparse
import datetime
import json
import sys
from pathlib import Path

import yaml

from tightbox.checkpoint import read_card
from tightbox.cli import main as tightbox
from tightbox.data.layout import read_data, splits
from tightbox.files import atomic_path

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE.parent / "benchmarks"))

from machine import machine  # noqa: E402 - a script beside the benchmarks, not a package

FIGURES = ("ap", "ap50", "ap75", "ap90")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("recipe", choices=sorted(path.stem for path in HERE.glob("*.yaml")))
    parser.add_argument("--data", required=True, help="folder of the recipe's data set")
    parser.add_argument("--out", default=None, help="run folder; runs/RECIPE-seedSEED by default")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    out = Path(args.out or f"runs/{args.recipe}-seed{args.seed}")
    recipe = HERE / f"{args.recipe}.yaml"
    train = ["train", "--config", str(recipe), "--data", args.data, "--out", str(out)]
    if status := tightbox([*train, "--seed", str(args.seed)]):
        return status
    rows = []
    for split in ("val", "test"):
        if split not in splits(args.data):
            continue
        # The last weights, not the best: choosing an epoch by its validation AP would flatter that AP.
        command = ["eval", str(out / "last"), "--data", args.data, "--split", split, "--out", str(out / split)]
        if classes := yaml.safe_load(recipe.read_text(encoding="utf-8")).get("classes"):
            command += ["--classes", *classes]
        if status := tightbox(command):
            return status
        metrics = json.loads((out / split / "metrics.json").read_text(encoding="utf-8"))
        rows.append(
            {
                "recipe": args.recipe,
                "seed": args.seed,
                "split": f"{split} ({len(read_data(args.data, split).records)})",
                **{name: metrics[name] for name in FIGURES},
                "minutes": round(read_card(out / "last")["metrics"]["train_seconds"] / 60, 1),
                "machine": machine(),
                "date": str(datetime.date.today()),
            }
        )
    record(rows)
    return 0


def record(rows: list[dict[str, object]]) -> None:
    """Put rows in the place of earlier ones of the same recipe, seed and split, and write the table anew."""
    path = HERE / "results.json"
    old = json.loads(path.read_text(encoding="utf-8")) if path.exists() else []
    key = ("recipe", "seed", "split")
    fresh = {tuple(row[k] for k in key): row for row in [*old, *rows]}
    kept = [fresh[k] for k in sorted(fresh)]
    with atomic_path(path) as temporary:
        temporary.write_text(json.dumps(kept, indent=1) + "\n", encoding="utf-8")
    lines = [
        "# Recipes",
        "",
        "Each `.yaml` file here is one training; its header says of what, and whether it was run here.",
        "This table is written by `python recipes/run.py RECIPE --data DIR --seed SEED` from runs that took place;",
        "figures are of the last weights, minutes are those of the training steps.",
        "",
        "| recipe | seed | split (images) | AP | AP50 | AP75 | AP90 | minutes | machine | date |",
        "|---|---|---|---|---|---|---|---|---|---|",
    ]
    for row in kept:
        figures = " | ".join(f"{row[name]:.3f}" for name in FIGURES)
        cells = (row["recipe"], row["seed"], row["split"], figures, row["minutes"], row["machine"], row["date"])
        lines.append("| " + " | ".join(str(cell) for cell in cells) + " |")
    with atomic_path(HERE / "README.md") as temporary:
        temporary.write_text("\n".join(lines) + "\n", encoding="utf-8")


if __name__ == "__main__":
    sys.exit(main())
