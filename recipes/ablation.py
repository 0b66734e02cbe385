"""What helps a small VFNet on few images: each change to the published model alone, and added to those before it.

Trains on one thread until a number of images is seen, so that neither the machine nor its load matters, and writes
`recipes/ablation.json` and, from it, `ablation.md`; trainings in the record are not run again:
`python recipes/ablation.py --data DIR [DIR ...] --images 752 --seeds 0 1 2`.
"""

from __future__ import annotations

import argparse
import datetime
import shlex
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from statistics import mean
from typing import Any

from studies import published
from training import HERE, machine

from budget import FIGURES, Record, Training, spread, train_missing  # isort: skip - found by way of `training`
from tightbox.files import atomic_path

PUBLISHED: dict[str, Any] = {
    "options": published("vfnet", but={"channels"}),
    "backbone": {"zero_init": True},
    "schedule": {"batch_size": 8, "optimizer": "adamw"},
}
# The first group is cumulative: what `tightbox train` does. The second group adds one more change to all of it.
DEFAULTS: dict[str, dict[str, Any]] = {
    "Kaiming initialisation of the stars": {"options": {"star_init": "kaiming"}},
    "a norm after each star": {"options": {"star_norm": True}},
    "batches of 4": {"schedule": {"batch_size": 4}},
    "Muon": {"schedule": {"optimizer": "muon"}},
    "the backbone's norms at one": {"backbone": {"zero_init": False}},
    "box losses without IoU weights": {"options": {"iou_weighted_boxes": False}},
    "the refined box teaches the initial one": {"options": {"refine_gradient": True}},
    "score voting": {"options": {"suppress": "voting"}},
    "norms in the pyramid": {"options": {"neck_norm": True}},
    "distances in strides": {"options": {"distance_unit": "stride"}},
    "5 candidates a level": {"options": {"atss_topk": 5}},
    "norms after the lateral convolutions": {"options": {"lateral_norm": True}},
    "class losses without IoU weights": {"options": {"iou_weighted": False}},
    "box losses at half their weight": {"options": {"box_weight": 0.5}},
    "towers of 1": {"options": {"tower_depth": 1}},
}
TRIED: dict[str, dict[str, Any]] = {
    "no star": {"options": {"star": False}},
    "no star, no refinement": {"options": {"star": False, "refine": False}},
    "batches of 2": {"schedule": {"batch_size": 2}},
    "learning rate 0.006": {"schedule": {"lr": 0.006}},
    "FCOS's assigner, centre sampling": {"options": {"assigner": "fcos", "center_sampling": True}},
    "towers of 2": {"options": {"tower_depth": 2}},
    "towers of 4": {"options": {"tower_depth": 4}},
    "no mosaics": {"augment": {"mosaic": 0.0}},
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", required=True, nargs="+", help="folders of data sets")
    parser.add_argument("--images", type=int, default=752, help="seen by each training")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--rows", nargs="+", metavar="ROW", choices=list(_rows()), default=list(_rows()))
    parser.add_argument("--jobs", type=int, default=2, help="trainings at the same time, one thread each")
    parser.add_argument("--device", default="cpu", help="where they train")
    args = parser.parse_args()
    rows = _rows()
    jobs = {
        f"{Path(data).name} | {args.images} | {row} | {seed}": Training(
            detector="vfnet", data=data, seed=seed, images=args.images, device=args.device, **rows[row]
        )
        for seed in args.seeds
        for data in args.data
        for row in args.rows
    }
    record = train_missing(jobs, HERE / "ablation.json", args.jobs)
    text = "\n".join(_page(record))
    print(text)
    with atomic_path(HERE / "ablation.md") as temporary:
        temporary.write_text(text + "\n", encoding="utf-8")


def _rows() -> dict[str, dict[str, Any]]:
    """Every row's difference from the defaults of `tightbox train`."""
    rows = {"published": PUBLISHED}
    so_far = PUBLISHED
    for name, change in DEFAULTS.items():
        rows[f"{name} alone"] = _with(PUBLISHED, change)
        so_far = _with(so_far, change)
        rows[f"+ {name}"] = so_far
    return rows | {f"all of these, {name}": _with(so_far, change) for name, change in TRIED.items()}


def _with(base: Mapping[str, Any], change: Mapping[str, Any]) -> dict[str, Any]:
    return {part: {**base.get(part, {}), **change.get(part, {})} for part in {*base, *change}}


def _page(record: Record) -> Iterator[str]:
    yield from ("# Which changes help a small VFNet on few images", "")
    command = shlex.join(["python", *sys.argv])
    yield f"Written {datetime.date.today()} by `{command}` on {machine()}: ResNet-18, 64 channels, 320 pixels."
    for data, images in sorted({tuple(key.split(" | ")[:2]) for key in record}):
        yield from ("", f"## {data}, {images} images seen", "")
        yield from (f"Rows are trained by `--data {data} --images {images}`.", "")
        yield from ("| VFNet | AP | AP50 | AP75 | AP90 | CPU seconds | seeds |", "|---|---|---|---|---|---|---|")
        for name in _rows():
            found = [row for key, row in record.items() if key.startswith(f"{data} | {images} | {name} | ")]
            if found:
                figures = " | ".join(spread([row[figure] for row in found]) for figure in FIGURES)
                yield f"| {name} | {figures} | {mean(row['seconds'] for row in found):.0f} | {len(found)} |"


if __name__ == "__main__":
    main()
