"""Train VFNet and torchvision's FCOS and RetinaNet from random weights on equal budgets, and compare their AP.

Budgets are CPU minutes on one thread, which tell what a user gets for his time, and images seen, which tell learning
from speed. The peers train by the optimiser and the group norms that VFNet has, FCOS also without those of the pyramid,
and as torchvision has them (SGD at 0.01 for 16 images; norms in FCOS's head, none in RetinaNet's); the best is the one
to beat. Everything else is the same for all (`budget.py`), and images have the size that `tightbox train` takes for the
data set. Trainings that `equal_minutes.json` holds already are not run again:

    python benchmarks/equal_minutes.py --data DIR [DIR ...] --minutes 4 25 --images 3000 --seeds 0 1 2
"""

from __future__ import annotations

import argparse
from collections.abc import Iterable, Mapping
from pathlib import Path
from statistics import mean
from typing import Any

from budget import FIGURES, Record, Training, spread, train_missing
from machine import measured

from tightbox.data.input_size import input_size_of
from tightbox.data.layout import read_data
from tightbox.files import atomic_path

HERE = Path(__file__).parent
BATCH = 4
OWN = {"optimizer": "sgd", "lr": 0.01 * BATCH / 16, "weight_decay": 1e-4}
CONTENDERS: dict[str, dict[str, Any]] = {
    "VFNet, tightbox": {"detector": "vfnet"},
    "FCOS, our schedule and norms": {"detector": "fcos", "neck_norm": True},
    "FCOS, our schedule": {"detector": "fcos"},
    "FCOS, its own": {"detector": "fcos", "schedule": OWN},
    "RetinaNet, our schedule": {"detector": "retinanet_norm"},
    "RetinaNet, its own": {"detector": "retinanet", "schedule": OWN},
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", required=True, nargs="+", help="folders of data sets")
    parser.add_argument("--minutes", type=float, nargs="*", default=[], help="budgets of CPU time")
    parser.add_argument("--images", type=int, nargs="*", default=[], help="budgets of images seen")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--contenders", nargs="+", choices=list(CONTENDERS), default=list(CONTENDERS))
    parser.add_argument("--jobs", type=int, default=2, help="trainings at the same time, one thread each")
    parser.add_argument("--device", default="cpu", help="where they train")
    parser.add_argument("--out", type=Path, default=HERE / "equal_minutes", help="record and table, without suffix")
    args = parser.parse_args()
    budgets = [{"minutes": m} for m in args.minutes] + [{"images": n} for n in args.images]
    sizes = {data: input_size_of(read_data(data, "train")).long_side for data in args.data}
    jobs = {
        _key(name, data, budget, seed): _training(name, data, budget, seed, sizes[data], args.device)
        for budget in budgets
        for seed in args.seeds
        for data in args.data
        for name in args.contenders
    }
    record = train_missing(jobs, args.out.with_suffix(".json"), args.jobs)
    lines = [measured(), "", *_tables(record)]
    print("\n".join(lines))
    with atomic_path(args.out.with_suffix(".md")) as temporary:
        temporary.write_text("\n".join(lines) + "\n", encoding="utf-8")


def _training(name: str, data: str, budget: Mapping[str, Any], seed: int, size: int, device: str) -> Training:
    contender = {**CONTENDERS[name], "schedule": {"batch_size": BATCH, **CONTENDERS[name].get("schedule", {})}}
    return Training(**contender, data=data, seed=seed, size=size, device=device, **budget)


def _key(name: str, data: str, budget: Mapping[str, Any], seed: int) -> str:
    """What tells a training from all others, for people and for the record."""
    amount = f"{budget['minutes']:g} CPU minutes" if "minutes" in budget else f"{budget['images']} images"
    return f"{Path(data).name} | {amount} | {name} | {seed}"


def _tables(record: Record) -> Iterable[str]:
    """A table for every data set and budget in the record: mean ± standard deviation over its seeds."""
    parts = [key.split(" | ") for key in record]
    for data, budget in sorted({(data, budget) for data, budget, _, _ in parts}):
        amount, unit = budget.split(" ", 1)
        flag = "images" if unit == "images" else "minutes"
        yield from (f"## {data}, {budget}", "", f"Rows are trained by `--data {data} --{flag} {amount}`.", "")
        yield "| detector | AP | AP50 | AP75 | AP90 | images seen | seeds |"
        yield "|---|---|---|---|---|---|---|"
        for name in CONTENDERS:
            rows = [row for key, row in record.items() if key.startswith(f"{data} | {budget} | {name} | ")]
            if rows:
                figures = " | ".join(spread([row[figure] for row in rows]) for figure in FIGURES)
                yield f"| {name} | {figures} | {mean(row['images'] for row in rows):.0f} | {len(rows)} |"
        yield ""


if __name__ == "__main__":
    main()
