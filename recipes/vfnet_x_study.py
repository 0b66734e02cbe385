"""The parts of VFNet-X at small scale, alone and together, and ways to merge what is found in several views.

Trains on one thread, or a GPU, until a number of images is seen, with the options of `tightbox train` but for those of
a row, and writes `recipes/vfnet_x.json` and, from it, `vfnet_x.md`; trainings in the record are not run again:

    python recipes/vfnet_x_study.py --data DIR [DIR ...] --images 3008 --seeds 0 1 2 [--device cuda --jobs 14]
"""

from __future__ import annotations

import argparse
import contextlib
import datetime
import io
import json
import multiprocessing
import shlex
import sys
import tempfile
from collections.abc import Iterator, Mapping
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from studies import Part
from training import HERE, machine, spread

from budget import FIGURES, Training, trained  # isort: skip - found by way of `training`
from tightbox.commands.train import small
from tightbox.data.layout import read_data
from tightbox.data.records import DetectionData
from tightbox.files import atomic_path, write_json
from tightbox.inference.detect import evaluate_model
from tightbox.inference.views import Merge, Views, see
from tightbox.models import Detector
from tightbox.options import AugmentOptions, TrainOptions
from tightbox.training.fit import fit

PATH = {"neck": "pafpn"}
NECK = {**PATH, "neck_norm": True, "neck_deformable": True}
WIDE = {"tower_depth": 4, "channels": 96}  # as many times 64 as 384 is times 256
CROP, CUTOUT = {"side_crop": 0.5}, {"cutout": 0.5}
PLAIN, TOGETHER = "VFNet", "all of these"
SCALES = (0.75, 1.0, 1.25)
LONGEST_CYCLE = 0.3  # of all images seen, so that the averaging's two cycles leave some to learn from before them
MERGES: tuple[tuple[str, Merge], ...] = (
    ("soft-NMS", "soft_linear"),
    ("box voting, all alike", "vote"),
    ("box voting by score", "vote_score"),
    ("box voting by predicted IoU", "vote_iou"),
)
Figures = dict[str, dict[str, float]]  # of one training, by how it was tested


@dataclass(frozen=True, kw_only=True)
class Row:
    """What a training has that the plain one has not.

    Attributes:
        detector: which.
        options: of the detector.
        augment: random changes to the images.
        averaging: whether the last quarter of the images, two cycles at least, is seen in cycles of an epoch whose
            weights are averaged; where an epoch is longer than `LONGEST_CYCLE`, a cycle is so many images of it.
        viewed: whether it is also tested with several views.
    """

    detector: str = "vfnet"
    options: Mapping[str, Any]
    augment: Mapping[str, Any]
    averaging: bool = False
    viewed: bool = False


def row(options: Mapping[str, Any] | None = None, augment: Mapping[str, Any] | None = None, **more: Any) -> Row:
    # Norms are a part to be measured, and a default of `tightbox train`.
    return Row(options={"neck_norm": False, "lateral_norm": False, **(options or {})}, augment=augment or {}, **more)


ROWS = {
    PLAIN: row(viewed=True),
    "bottom-up path": row(PATH),
    "norms in the neck": row({"neck_norm": True}),
    "bottom-up path, norms": row({**PATH, "neck_norm": True}),
    "bottom-up path, norms, DCNv2": row(NECK),
    "DCNv2 at the end of the towers": row({"deformable": True}),
    "towers of four, half as wide again": row(WIDE),
    "crop": row(augment=CROP),
    "cutout": row(augment=CUTOUT),
    "weight averaging": row(averaging=True),
    TOGETHER: row({**NECK, **WIDE, "deformable": True}, {**CROP, **CUTOUT}, averaging=True, viewed=True),
    "IoU-aware RetinaNet": row(detector="iou_aware_retinanet", viewed=True),
    "IoU-aware RetinaNet, VFNet-X's neck": row(NECK, detector="iou_aware_retinanet"),
    "IoU-Net": row({"iou_weight": 5.0}, detector="iou_net", viewed=True),
    "IoU-Net, VFNet-X's neck": row({**NECK, "iou_weight": 5.0}, detector="iou_net"),
}
OWN, BEFORE, SOFT, FLIP = "own", "before the averaging", "soft-NMS at 0.65", "mirrored too, box voting by predicted IoU"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", required=True, nargs="+", help="folders of data sets")
    parser.add_argument("--images", type=int, default=3008, help="seen by each training")
    parser.add_argument("--size", type=int, default=320, help="longer side of the images")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--rows", nargs="+", choices=list(ROWS), default=list(ROWS))
    parser.add_argument("--jobs", type=int, default=2, help="trainings at the same time, one thread each")
    parser.add_argument("--views", action=argparse.BooleanOptionalAction, default=True, help="test several views too")
    parser.add_argument("--device", default="cpu", help="where they train")
    parser.add_argument("--out", type=Path, default=HERE, help="folder of the record and the page")
    args = parser.parse_args()
    path = args.out / "vfnet_x.json"
    record: dict[str, Figures] = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    with ProcessPoolExecutor(args.jobs, mp_context=multiprocessing.get_context("spawn")) as pool:
        running = {}
        for seed in args.seeds:  # the whole table of one seed before the next
            for data in args.data:
                for name in args.rows:
                    key = f"{Path(data).name} | {args.images} | {name} | {seed}"
                    if key not in record:
                        job = _training(ROWS[name], data, seed, args.images, args.size, args.device)
                        running[pool.submit(measure, ROWS[name], job, args.views)] = key
        for done in as_completed(running):
            record[running[done]] = done.result()
            write_json(path, record)
            print(running[done], json.dumps(record[running[done]][OWN]), flush=True)
    text = "\n".join(_page(record, args.size))
    print(text)
    with atomic_path(args.out / "vfnet_x.md") as temporary:
        temporary.write_text(text + "\n", encoding="utf-8")


def _training(row: Row, data: str, seed: int, images: int, size: int, device: str) -> Training:
    return Training(
        detector=row.detector,
        data=data,
        seed=seed,
        images=images,
        size=size,
        options=row.options,
        augment=row.augment,
        device=device,
    )


def measure(row: Row, job: Training, views: bool = True) -> Figures:
    """Train, and test in every way that is asked for; with several views only if they are."""
    assert job.images is not None
    found: Figures = {}
    if row.averaging:
        train = read_data(job.data, "train")
        cycle = Part(fraction=min(1.0, LONGEST_CYCLE * job.images / len(train.records)), seed=job.seed)(train)
        cycles = max(2, round(job.images / 4 / len(cycle.records)))
        model, _ = trained(replace(job, images=max(1, job.images - cycles * len(cycle.records))))
        found[BEFORE] = _test(model, job)
        model = averaged(model, job, cycle, cycles)
    else:
        model, _ = trained(job)
    found[OWN] = _test(model, job)
    plain, own = model.options, model.preprocess
    model.options = replace(plain, suppress="soft_linear", nms_iou=0.65)
    found[SOFT] = _test(model, job)
    model.options = plain
    if row.viewed and views:
        ways = {FLIP: Views(flip=True, merge="vote_iou")}
        ways |= {name: Views(scales=SCALES, flip=True, merge=merge) for name, merge in MERGES}
        for name, chosen in ways.items():
            see(model, chosen)
            found[name] = _test(model, job)
            model.preprocess, model.views = own, None
    return found


def averaged(model: Detector, job: Training, cycle: DetectionData, cycles: int) -> Detector:
    """The mean of the weights at the ends of cycles; without mosaics, as at the end of the others."""
    defaults = small()
    options = TrainOptions(
        epochs=0,
        swa_epochs=cycles,
        batch_size=defaults["batch_size"],
        optimizer=defaults["optimizer"],
        ema=0,
        workers=0,
        seed=job.seed,
    )
    augment = AugmentOptions(**{"vertical_flip": 0.5, **job.augment})
    device = torch.empty(0, device=job.device).device
    with tempfile.TemporaryDirectory() as folder, contextlib.redirect_stdout(io.StringIO()):
        return fit(model, cycle, None, Path(folder), options, augment, device=device)


def _test(model: Detector, job: Training) -> dict[str, float]:
    metrics = evaluate_model(model, read_data(job.data, "val").with_classes(model.class_names))
    return {figure: getattr(metrics, figure) or 0.0 for figure in FIGURES}


def _page(record: Mapping[str, Figures], size: int) -> Iterator[str]:
    yield from ("# The parts of VFNet-X at small scale", "")
    command = shlex.join(["python", *sys.argv])
    yield f"Written {datetime.date.today()} by `{command}` on {machine()}: ResNet-18 from random weights, 64 channels,"
    yield f"{size} pixels, equally many images seen; where weights are averaged, about a quarter of them in its cycles,"
    yield f"but no less than two. A cycle is an epoch, or {100 * LONGEST_CYCLE:.0f} % of all images seen where that is"
    yield "less. AP in percent, mean ± standard deviation over the seeds."
    for data, images in sorted({tuple(key.split(" | ")[:2]) for key in record}):
        runs = {name: _runs(record, f"{data} | {images} | {name} | ") for name in ROWS}
        yield from ("", f"## Each part: {data}, {images} images seen", "")
        yield from (f"| detector | AP | AP75 | AP90 | AP by {SOFT} | AP {BEFORE} | seeds |", "|---" * 7 + "|")
        for name, of_row in runs.items():
            if of_row:
                cells = [_cell(of_row, OWN, figure) for figure in ("ap", "ap75", "ap90")]
                cells += [_cell(of_row, test, "ap") for test in (SOFT, BEFORE)]
                yield f"| {name} | {' | '.join(cells)} | {len(of_row)} |"
        viewed = {name: seen for name, of_row in runs.items() if (seen := [run for run in of_row if FLIP in run])}
        if viewed:
            scales = ", ".join(map(str, SCALES))
            yield from ("", f"## Several views: {data}, {images} images seen", "")
            yield f"AP / AP90. The last four see each image at {scales} of its size and mirrored. VFNet's score is its"
            yield "predicted IoU, so that weighing by either is the same for it."
            yield from ("", f"| tested | {' | '.join(viewed)} |", "|---" * (1 + len(viewed)) + "|")
            for test in (OWN, SOFT, FLIP, *(name for name, _ in MERGES)):
                cells = [f"{_cell(r, test, 'ap')} / {_cell(r, test, 'ap90')}" for r in viewed.values()]
                yield f"| {test} | {' | '.join(cells)} |"


def _runs(record: Mapping[str, Figures], start: str) -> list[Figures]:
    return [figures for key, figures in record.items() if key.startswith(start)]


def _cell(runs: list[Figures], test: str, figure: str) -> str:
    values = [100 * run[test][figure] for run in runs if test in run]
    return spread(values, 1) if values else ""


if __name__ == "__main__":
    main()
