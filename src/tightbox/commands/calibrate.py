"""Make predicted IoUs reliable and boxes guaranteed: learn both from held-out images, and keep that in the card."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from jsonargparse import ArgumentParser, Namespace

from tightbox.commands import on_data
from tightbox.errors import UserError

if TYPE_CHECKING:
    from tightbox.data.records import DetectionData
    from tightbox.evaluation.matching import Matches
    from tightbox.models import Detector

USAGE = "(CHECKPOINT --data DIR | --gt GT.json --dt DT.json --out FILE) [--coverage 0.9] [--miss 0.1]"


def add_arguments(parser: ArgumentParser) -> None:
    """Which detector or results, which images to learn from and to report on, and what to promise."""
    on_data.add_arguments(parser, or_results=True)
    methods = ["auto", "isotonic", "temperature", "linear", "none"]
    what = "any rising map, one parameter, a line, or no change; auto: the simplest that helps on unseen images"
    parser.add_argument("--method", choices=methods, default="auto", help=what)
    parser.add_argument("--report_split", help="split to report on; test if absent and the data set has one")
    parser.add_argument("--coverage", type=float, help="probability with which outer boxes hold their whole object")
    margins = "for --coverage: margins by predicted IoU and size, by size alone, or in pixels (result files only); iou"
    parser.add_argument("--margins", choices=["iou", "size", "pixels"], help=margins)
    parser.add_argument("--inner", action="store_true", help="for --coverage: also boxes that lie in their object")
    parser.add_argument("--per_class", action="store_true", help="for --coverage: each class has its own margins")
    miss = "find the score threshold that misses at most this fraction of objects"
    parser.add_argument("--miss", type=float, help=miss)
    parser.add_argument("--delta", type=float, help="for --miss: probability of missing more; 0.1")
    parser.add_argument("--out", help="for --dt: result file to write, calibrated")
    parser.add_argument("--apply_to", help="for --dt: result file of other images to calibrate; --dt itself if absent")


def run(args: Namespace) -> int:
    """Fit, store, and print the calibration error before and after."""
    # Options that would be ignored, and promises that are none, are refused before anything is read.
    if args.coverage is None:
        usual = {"margins": None, "inner": False, "per_class": False}
        on_data.refuse(args, usual, "belongs to --coverage: give that too, such as 0.9")
    if args.miss is None:
        on_data.refuse(args, {"delta": None}, "belongs to --miss: give that too, such as --miss 0.1")
    for option in ("coverage", "miss", "delta"):
        if args[option] is not None and not 0 < args[option] < 1:
            raise UserError(f"--{option} is {args[option]:g}; it must be more than 0 and less than 1")
    if on_data.of_results(args):
        return _calibrate_results(args)
    on_data.refuse(args, {"out": None, "apply_to": None}, "belongs to --gt and --dt; a checkpoint keeps it in its card")
    if args.margins == "pixels":
        advice = "choose --margins size or iou, or calibrate a result file with --gt and --dt"
        raise UserError(f"margins in pixels would not hold once images are resized for the network: {advice}")
    return _calibrate_checkpoint(args)


def _calibrate_checkpoint(args: Namespace) -> int:
    from tightbox.data.layout import splits

    report_split = args.report_split
    if report_split is None and args.split != "test" and "test" in splits(args.data):
        report_split = "test"
    if report_split == args.split:
        raise UserError(f"--report-split {report_split} is the split it learns from; give another, or leave it out")
    third = None if report_split is None else on_data.read(args, report_split)
    # The estimates to learn from are the raw ones, whatever was learned before and from whatever weights.
    model, data = on_data.open_both(args, calibrated=False)

    if left_out := [name for name in model.class_names if args.classes and name not in args.classes]:
        why = "which the detector finds as well, and its calibration is of all that it finds"
        raise UserError(f"--classes leaves out {', '.join(left_out)}, {why}; name these too, or leave out --classes")

    from tightbox.checkpoint import read_weights, save_calibration, settings_digest, weights_digest
    from tightbox.evaluation.calibration_report import HEADING, before_and_after, promises_kept, reliability_row
    from tightbox.evaluation.fit_calibration import Method, choose_map, fit_calibration

    folder = Path(args.checkpoint)
    matches = _detected(model, data, args)
    choice = choose_map(matches)
    method: Method = choice.method if args.method == "auto" else args.method
    learned = fit_calibration(matches, method, split=args.split, images=len(data.records))
    weights, settings = weights_digest(read_weights(folder)), settings_digest(model.options, model.preprocess)
    calibration = replace(learned, weights=weights, settings=settings, **_promises(args, matches, model.class_names))
    tested = None if third is None else _detected(model, third.with_classes(model.class_names), args)
    save_calibration(calibration, folder)

    print(HEADING, *before_and_after(f"{args.split} (it learned from)", matches, calibration.ious), sep="\n")
    if method in choice.unseen:
        print(reliability_row(f"{args.split}, cross-validated", "after", choice.unseen[method], choice.true_ious))
    if tested is not None:
        print(*before_and_after(f"{report_split}", tested, calibration.ious), sep="\n")
    # Which map was chosen, or that the one asked for makes things worse on images it did not learn from.
    if args.method == "auto":
        kept = "predicted IoUs stay as they are" if method == "none" else f"the map is {method}"
        print(f"{kept}: the simplest that no other beats by more than chance on images it did not learn from")
    elif method not in choice.unseen:
        on_data.warn("too few images to judge the map on unseen ones; --method auto changes nothing")
    elif choice.squared_error(method) > choice.squared_error("none"):
        worse = f"on images it did not learn from, {method} makes predicted IoUs worse"
        on_data.warn(f"{worse}; --method auto would choose {choice.method}")
    lines = promises_kept(calibration, matches, model.class_names, tested, f"on {report_split}")
    print(*lines, f"written: {folder / 'card.json'}", sep="\n")
    return 0


def _calibrate_results(args: Namespace) -> int:
    if args.out is None:
        raise UserError("--out is missing: name the calibrated result file to write")
    usual = {"report_split": None, "method": "auto"}
    on_data.refuse(args, usual, "belongs to a checkpoint and --data; leave it out with --gt and --dt")
    out = Path(args.out)
    beside = out.with_suffix(".calibration.json")
    if {out.resolve(), beside.resolve()} & {Path(path).resolve() for path in (args.gt, args.dt, args.apply_to) if path}:
        written = f"--out {out}, with {beside.name} beside it,"
        raise UserError(f"{written} is one of the files to read, which would be overwritten; choose another name")

    from tightbox.calibration import IOUS
    from tightbox.evaluation.calibrated_results import ResultCalibration, fit_maps
    from tightbox.evaluation.calibration_report import HEADING, before_and_after, promises_kept
    from tightbox.evaluation.coco_files import of_other_images, predictions_from_coco, read_ground_truth
    from tightbox.evaluation.matching import match
    from tightbox.files import write_json
    from tightbox.reading import naming, read_json

    rows, (_, ground_truth) = read_json(Path(args.dt)), read_ground_truth(Path(args.gt))
    with naming(args.dt):
        predictions = predictions_from_coco(rows, ground_truth)
    matches = match(ground_truth, predictions, IOUS)
    by_score, scores, ious = fit_maps(matches)
    trusted = replace(matches, ious=matches.scores) if by_score else matches
    promises = _promises(args, trusted, ground_truth.class_names)
    calibration = ResultCalibration(by_score, scores, ious, ground_truth.category_ids, **promises)
    if args.apply_to is not None:
        rows = read_json(Path(args.apply_to))
        with naming(args.apply_to):
            predictions_from_coco(rows, of_other_images(ground_truth, rows))
    write_json(out, calibration(rows))
    write_json(beside, calibration.to_json())
    judged = "scores in its place" if by_score else "predicted IoUs"
    print(HEADING, *before_and_after(judged, trusted, ious), sep="\n")
    print(*promises_kept(calibration, trusted, ground_truth.class_names), f"written: {out} and {beside}", sep="\n")
    return 0


def _promises(args: Namespace, matches: Matches, class_names: tuple[str, ...]) -> dict[str, Any]:
    """The fields of a calibration that were asked for: margins of outer and inner boxes, and the score threshold."""
    from tightbox.evaluation.fit_margins import fit_margins, matched_boxes
    from tightbox.evaluation.fit_miss_bound import fit_miss_bound

    promises: dict[str, Any] = {}
    if args.coverage is not None:
        found = matched_boxes(matches, class_names)
        own = len(class_names) if args.per_class else 0
        for name in ("outer", "inner") if args.inner else ("outer",):
            inner = name == "inner"
            promises[name] = fit_margins(found, args.coverage, args.margins or "iou", classes=own, inner=inner)
    if args.miss is not None:
        promises["misses"] = fit_miss_bound(matches, args.miss, 0.1 if args.delta is None else args.delta)
    return promises


def _detected(model: Detector, data: DetectionData, args: Namespace) -> Matches:
    from tightbox.calibration import IOUS
    from tightbox.evaluation.inputs import GroundTruth, Predictions
    from tightbox.evaluation.matching import match

    found = on_data.detect(args, model, data)
    if any(detections.ious is None for detections in found.values()):
        why = "this detector predicts no IoU, so there is nothing to calibrate"
        raise UserError(f"{args.checkpoint}: {why}; vfnet, iou_aware_retinanet and iou_net do")
    return match(GroundTruth.from_data(data), Predictions.from_detections(found, data), IOUS)
