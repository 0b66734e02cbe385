"""COCO AP of a checkpoint on a data set: overall, at single IoUs, by size and by class."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from jsonargparse import ArgumentParser, Namespace

from tightbox.commands import on_data, rules
from tightbox.errors import UserError
from tightbox.files import write_json
from tightbox.progress import progress_bar

if TYPE_CHECKING:
    from tightbox.data.records import DetectionData
    from tightbox.models import Detector
    from tightbox.rank import Rank
    from tightbox.structures import Candidates, Detections

USAGE = "CHECKPOINT --data DIR [--split val] [--out DIR] [--rank RULE] [--suppress RULE]"


def add_arguments(parser: ArgumentParser) -> None:
    """What to evaluate, on what, and by which rules."""
    on_data.add_arguments(parser)
    parser.add_argument("--out", help="folder for metrics.json and the detections in results.json")
    rules.add_arguments(parser)
    on_data.add_views(parser)
    parser.add_argument("--alpha_sweep", action="store_true", help="AP by --rank power at alpha 0, 0.1, ..., 1")


def run(args: Namespace) -> int:
    """Print the table; with --out also write it and the detections.

    Rules other than the detector's own work on candidates that are kept in the checkpoint's folder: the network runs
    once, however many rules are tried. Without the images no box can be refined.
    """
    if args.alpha_sweep and (args.rank != "own" or args.alpha is not None):
        raise UserError("--alpha-sweep goes through the alphas of --rank power by itself: leave out --rank and --alpha")
    by_rules = rules.given(args)
    if on_data.several_views(args) and (by_rules or args.alpha_sweep):
        raise UserError("--scales and --flip go with the detector's own rules: leave out the others")
    model, data = on_data.open_both(args)

    from tightbox.distributed import new_accelerator
    from tightbox.inference.detect import evaluate_detections, to_results

    if (args.alpha_sweep or by_rules) and getattr(model.options, "refine_steps", 0) > 0:
        on_data.warn("boxes are not refined under rules other than the detector's own")
    if args.alpha_sweep:
        return _sweep(args, model, data)
    if by_rules:
        found = _detect_by_rules(args, model, data, _candidates(args, model, data), rules.rank_rule(args))
    else:
        accelerator = new_accelerator() if on_data.several_processes() else None
        first = accelerator is None or accelerator.is_main_process
        if first:
            print(f"found {data.layout}: {len(data.records)} images")
        found = on_data.detect(args, model, data, accelerator)
        if not first:  # which has what all of them found
            return 0
    metrics = evaluate_detections(found, data)
    print(metrics.table())
    if args.out is not None:
        write_json(Path(args.out) / "metrics.json", metrics.to_dict())
        write_json(Path(args.out) / "results.json", to_results(found, data))
        print(f"written: {Path(args.out) / 'metrics.json'} and results.json")
    return 0


def _candidates(args: Namespace, model: Detector, data: DetectionData) -> Path:
    """The folder of the data set's candidates, made if need be."""
    from tightbox.inference.candidates import cache_candidates

    if on_data.several_processes():
        raise UserError("rules other than the detector's own work on kept candidates, in one process: start only one")
    with progress_bar("finding candidates") as progress:
        return cache_candidates(model, Path(args.checkpoint), data, loading=on_data.loading(args), progress=progress)


def _detect_by_rules(
    args: Namespace, model: Detector, data: DetectionData, folder: Path, rank: Rank | None
) -> dict[int, Detections]:
    from tightbox.inference.candidates import read_candidates, select_all

    suppress = rules.suppress_rule(args, model)
    calibration = None if model.calibration is None else model.calibration.without_margins()

    def select(image: Candidates) -> Detections:
        found = model.select(image, rank, suppress)
        return found if calibration is None else calibration(found)

    return select_all(read_candidates(folder), data, select)


def _sweep(args: Namespace, model: Detector, data: DetectionData) -> int:
    """A table of AP by α, from one inference."""
    from tightbox.evaluation.figures import percents
    from tightbox.inference.detect import evaluate_detections
    from tightbox.rank import by_power

    rows, folder = [], _candidates(args, model, data)
    print("alpha    AP  AP50  AP75  AP90")
    for alpha in (step / 10 for step in range(11)):
        found = _detect_by_rules(args, model, data, folder, partial(by_power, alpha=alpha))
        metrics = evaluate_detections(found, data)
        print(f"{alpha:5.1f} {percents((metrics.ap, metrics.ap50, metrics.ap75, metrics.ap90))}", flush=True)
        rows.append({"alpha": alpha} | metrics.to_dict())
    if args.out is not None:
        write_json(Path(args.out) / "alpha_sweep.json", rows)
        print(f"written: {Path(args.out) / 'alpha_sweep.json'}")
    return 0
