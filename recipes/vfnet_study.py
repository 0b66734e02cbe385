"""The tables of VarifocalNet's paper, at small scale: what each part brings, α and γ, and the loss on other heads.

Trains on one thread until a number of images is seen, with the published options but for those of a row and those
without which small networks hardly learn (`studies.NEEDED`), by the schedule of `tightbox train`. Writes
`recipes/vfnet.json` and, from it, `vfnet.md`; trainings in the record are not run again:

    python recipes/vfnet_study.py --data DIR [DIR ...] --images 1504 --seeds 0 1 2
"""

from __future__ import annotations

import argparse
import datetime
import shlex
import sys
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import retrofit
from studies import HERE, Job, Plan
from training import machine, spread

from budget import GROUP_NORM, Record, run_missing, train  # isort: skip - found by way of `training`
from tightbox.files import atomic_path

FOCAL = {"varifocal": False, "star": False, "refine": False}
# name: (Training's arguments, the paper's AP of ResNet-50 on COCO)
LADDER: dict[str, tuple[dict[str, Any], str]] = {
    "FCOS + ATSS, focal loss, centerness": ({"options": {**FOCAL, "centerness": True}}, "39.2"),
    "without the centerness (raw)": ({"options": FOCAL}, "39.0"),
    "+ varifocal loss": ({"options": {**FOCAL, "varifocal": True}}, "40.1"),
    "+ star": ({"options": {"refine": False}}, "40.7"),
    "+ refinement": ({}, "41.6"),
}
LOSS: dict[str, tuple[dict[str, Any], str]] = {
    "γ 1, α 0.5": ({"options": {"varifocal_gamma": 1.0, "varifocal_alpha": 0.5}}, "not known"),
    "γ 1.5, α 0.75": ({"options": {"varifocal_gamma": 1.5, "varifocal_alpha": 0.75}}, "not known"),
    "γ 2, α 0.75": ({}, "41.6"),
    "γ 2.5, α 1.25": ({"options": {"varifocal_gamma": 2.5, "varifocal_alpha": 1.25}}, "not known"),
    "γ 3, α 1": ({"options": {"varifocal_gamma": 3.0, "varifocal_alpha": 1.0}}, "not known"),
    "γ 2, α 0.75, positives of weight 1": ({"options": {"iou_weighted": False}}, "41.2"),
}
RETINANET_HEADS = {
    "varifocal loss": partial(retrofit.VarifocalRetinaNetHead, norm_layer=GROUP_NORM),
    "IoU branch": partial(retrofit.IoURetinaNetHead, norm_layer=GROUP_NORM),
}
HEADS: dict[str, tuple[dict[str, Any], str]] = {
    "torchvision's RetinaNet, focal loss": ({"detector": "retinanet_norm"}, "36.5"),
    "torchvision's RetinaNet, varifocal loss": (
        {"detector": "retinanet_norm", "head": RETINANET_HEADS["varifocal loss"]},
        "37.4",
    ),
    "torchvision's RetinaNet, IoU branch": (
        {"detector": "retinanet_norm", "head": RETINANET_HEADS["IoU branch"]},
        "+1.7 to +1.9",
    ),
    "torchvision's FCOS, focal loss, centerness": ({"detector": "fcos"}, "39.2 with ATSS"),
    "torchvision's FCOS, varifocal loss": (
        {"detector": "fcos", "head": retrofit.VarifocalFCOSHead},
        "40.2 with ATSS",
    ),
    "torchvision's FCOS, IoU instead of centerness": ({"detector": "fcos", "head": retrofit.IoUFCOSHead}, "+0.4"),
    "VFNet, focal loss": ({"options": {"varifocal": False}}, "not known"),
    "VFNet, varifocal loss": ({}, "41.6"),
}
TABLES = {
    "What each part brings (the paper's table 3)": LADDER,
    "α and γ of the varifocal loss (table 2)": LOSS,
    "The loss on other heads (table 5), and an IoU branch on them": HEADS,
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", required=True, nargs="+", help="folders of data sets")
    parser.add_argument("--images", type=int, default=1504, help="seen by each training")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--tables", type=int, nargs="+", choices=(2, 3, 5), default=[3, 5, 2])
    parser.add_argument("--jobs", type=int, default=2, help="trainings at the same time, one thread each")
    parser.add_argument("--device", default="cpu", help="where they train")
    args = parser.parse_args()
    plan = Plan(data=args.data, images=args.images, seeds=args.seeds, device=args.device)
    path = HERE / "vfnet.json"
    record = run_missing({path: jobs(plan, args.tables)}, args.jobs)[path]
    text = "\n".join(page(record))
    print(text)
    with atomic_path(HERE / "vfnet.md") as temporary:
        temporary.write_text(text + "\n", encoding="utf-8")


def jobs(plan: Plan, tables: Sequence[int] = (3, 5, 2)) -> dict[str, Job]:
    """Every training of these tables of the paper."""
    chosen = [{2: LOSS, 3: LADDER, 5: HEADS}[number] for number in tables]
    rows = {_key(row): row for table in chosen for row, _ in table.values()}
    return {
        f"{Path(data).name} | {plan.images} | {key} | {seed}": partial(
            train, plan.training(**{"detector": "vfnet", **row}, data=data, seed=seed, images=plan.images)
        )
        for data in plan.data
        for key, row in rows.items()
        for seed in plan.seeds
    }


def _key(row: Mapping[str, Any]) -> str:
    """What a training does, in words; the same for rows of different tables that are the same training."""
    head = row.get("head")
    name = getattr(head, "func", head)
    parts = [row.get("detector", "vfnet"), *([name.__name__] if name else [])]
    return " ".join([*parts, *(f"{option}={value}" for option, value in sorted(row.get("options", {}).items()))])


def page(record: Record) -> Iterator[str]:
    """The tables."""
    yield from ("# VarifocalNet's tables at small scale", "")
    command = shlex.join(["python", *sys.argv])
    yield f"Written {datetime.date.today()} by `{command}` on {machine()}: ResNet-18 from random weights, 64 channels,"
    yield "320 pixels. Paper: AP of ResNet-50 from ImageNet's weights on COCO val2017, 12 epochs. Unlike the published"
    yield "model all of ours have norms after their stars, whose weights begin by their width, and positives that count"
    yield "alike in the box losses."
    for title, table in TABLES.items():
        for data, images in sorted({tuple(key.split(" | ")[:2]) for key in record}):
            lines = list(_rows(record, f"{data} | {images}", table))
            if lines:
                yield from ("", f"## {title}: {data}, {images} images seen", "")
                yield from ("| detector | AP | AP75 | AP90 | paper | seeds |", "|---|---|---|---|---|---|", *lines)


def _rows(record: Record, prefix: str, table: Mapping[str, tuple[dict[str, Any], str]]) -> Iterator[str]:
    for name, (row, paper) in table.items():
        found = [figures for key, figures in record.items() if key.startswith(f"{prefix} | {_key(row)} | ")]
        if found:
            cells = " | ".join(spread([100 * run[figure] for run in found], 1) for figure in ("ap", "ap75", "ap90"))
            yield f"| {name} | {cells} | {paper} | {len(found)} |"


if __name__ == "__main__":
    main()
