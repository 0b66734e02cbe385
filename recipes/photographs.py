"""The papers' claims on photographs: all four systems, several seeds, in one pool.

Each study has a record, `recipes/photographs_STUDY.json`, and from it a page of tables, `.md`; what is in the record is
not run again, so that what one run has no time for can be done by the next:

    python recipes/photographs.py --data DIR [DIR ...] --images 3008 --seeds 0 1 2 --jobs 2
    python recipes/photographs.py --data DIR [DIR ...] --images 1504 --device cuda --jobs 14 --minutes 3

A data set called `scenes`, rendered if it is not there, is for IoU-Net alone, which is trained on parts of it.
"""

from __future__ import annotations

import argparse
import datetime
import math
import shlex
import sys
from functools import partial
from pathlib import Path
from typing import Any

import photographs_iou_aware
import photographs_iou_net
import photographs_oracle
import photographs_rescoring
import photographs_unitbox
import vfnet_study
from studies import HERE, Job, Plan
from training import machine, scenes

from budget import run_missing  # isort: skip - found by way of `training`
from tightbox.files import atomic_path

COMMAND = shlex.join(["python", *sys.argv])
STUDIES: dict[str, Any] = {
    "rescoring": photographs_rescoring,  # first: its jobs are the longest
    "unitbox": photographs_unitbox,
    "iou_aware": photographs_iou_aware,
    "iou_net": photographs_iou_net,
    "oracle": photographs_oracle,
    "vfnet": vfnet_study,  # its tables, and the retrofits
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", required=True, nargs="+", help="folders of data sets")
    parser.add_argument("--studies", nargs="+", choices=list(STUDIES), default=list(STUDIES))
    parser.add_argument("--images", type=int, default=3008, help="seen by each training")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--jobs", type=int, default=2, help="trainings at the same time, one thread each")
    parser.add_argument("--minutes", type=float, default=math.inf, help="no training begins later than this")
    parser.add_argument("--device", default="cpu", help="where they train")
    parser.add_argument("--smoke", action="store_true", help="tiny trainings, only to see whether all runs")
    parser.add_argument("--out", type=Path, default=HERE, help="folder of records and tables")
    args = parser.parse_args()
    if args.smoke and args.out == HERE:
        parser.error("--smoke is for another --out: its records look like those of real trainings")
    for folder in map(Path, args.data):
        if folder.name == "scenes":
            scenes(folder)
    jobs = {}
    for name in args.studies:
        of_study = STUDIES[name].jobs(_plan(name, args))
        noted = {key: partial(_noted, job, COMMAND) for key, job in of_study.items()}
        jobs[args.out / f"{_record(name)}.json"] = noted
    records = run_missing(jobs, args.jobs, args.minutes)
    for name, record in zip(args.studies, records.values(), strict=True):
        page = vfnet_study.page(record) if name == "vfnet" else _page(STUDIES[name], record)
        with atomic_path(args.out / f"{_record(name)}.md") as temporary:
            temporary.write_text("\n".join(page) + "\n", encoding="utf-8")


def _record(study: str) -> str:
    """The name of its record and its page; that of VFNet's tables is shared with its own script."""
    return study if study == "vfnet" else f"photographs_{study}"


def _noted(job: Job, command: str) -> dict[str, Any]:
    """What the job gives, and where it did."""
    return {**job(), "machine": machine(), "date": str(datetime.date.today()), "command": command}


def _plan(study: str, args: argparse.Namespace) -> Plan:
    data = [folder for folder in args.data if study == "iou_net" or Path(folder).name != "scenes"]
    if study == "rescoring":
        data = data[:1]
    return Plan(data=data, images=args.images, seeds=args.seeds, device=args.device, smoke=args.smoke)


def _page(study: Any, record: dict[str, Any]) -> list[str]:
    where = sorted({f"`{r['command']}` on {r['machine']}, {r['date']}" for r in record.values()})
    return [
        f"# {study.TITLE} on photographs",
        "",
        *(f"{line}.\n" for line in where),
        "ResNet-18 from random weights, 64 channels, 320 pixels, the defaults of `tightbox train` but where",
        "`recipes/studies.py` has what is published. Figures of the validation split, mean ± standard deviation over",
        "the seeds, in per cent.",
        "",
        *study.page(record),
    ]


if __name__ == "__main__":
    main()
