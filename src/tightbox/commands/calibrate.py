"""Make predicted IoUs reliable: fit them to the true ones of held-out images, and keep that in the card."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from jsonargparse import ArgumentParser, Namespace

from tightbox.commands import on_data
from tightbox.errors import UserError

if TYPE_CHECKING:
    from tightbox.calibration import IouCalibration
    from tightbox.data.records import DetectionData
    from tightbox.evaluation.matching import Matches
    from tightbox.models import Detector

USAGE = "CHECKPOINT --data DIR [--split val] [--method isotonic] [--report-split test]"


def add_arguments(parser: ArgumentParser) -> None:
    """Which detector, and which images to learn from and to report on."""
    on_data.add_arguments(parser)
    parser.add_argument(
        "--method", choices=["isotonic", "temperature"], default="isotonic", help="any rising map, or one parameter"
    )
    parser.add_argument(
        "--report_split", default=None, help="split to report on; test if absent and the data set has one"
    )


def run(args: Namespace) -> int:
    """Fit, store, and print the calibration error before and after."""
    from tightbox.data.layout import splits

    report_split = args.report_split
    if report_split is None and args.split != "test" and "test" in splits(args.data):
        report_split = "test"
    if report_split == args.split:
        raise UserError(f"--report-split {report_split} is the split it learns from; give another, or leave it out")
    third = None if report_split is None else on_data.read(args, report_split)
    model, data = on_data.open_both(args)

    from tightbox.checkpoint import save_calibration
    from tightbox.evaluation.fit_calibration import fit_calibration

    folder = Path(args.checkpoint)
    model.calibration = None  # the estimates to learn from are the raw ones
    matches = _detected(model, data, args)
    calibration = fit_calibration(matches, args.method, split=args.split, images=len(data.records))
    save_calibration(calibration, folder)

    print("predicted IoU against true IoU     boxes  error  worst  predicted actual")
    _report(f"{args.split} (it learned from)", matches, calibration.ious)
    if third is not None:
        _report(f"{report_split}", _detected(model, third.with_classes(model.class_names), args), calibration.ious)
    print(f"written: {folder / 'card.json'}")
    return 0


def _detected(model: Detector, data: DetectionData, args: Namespace) -> Matches:
    from tightbox.calibration import IOUS
    from tightbox.evaluation.inputs import GroundTruth, Predictions
    from tightbox.evaluation.matching import match

    found = on_data.detect(args, model, data)
    if any(detections.ious is None for detections in found.values()):
        raise UserError(
            f"{args.checkpoint}: this detector predicts no IoU, so there is nothing to calibrate; "
            "vfnet, iou_aware_retinanet and iou_net do"
        )
    return match(GroundTruth.from_data(data), Predictions.from_detections(found, data), IOUS)


def _report(split: str, matches: Matches, calibrated: IouCalibration) -> None:
    from tightbox.calibration import IOUS
    from tightbox.evaluation.reliability import reliability

    counted = ~matches.at(IOUS[0]).ignored
    raw, actual = matches.ious[counted], matches.best_iou[counted]
    for name, predicted in (("before", raw), ("after", calibrated(raw))):
        table = reliability(predicted, actual)
        figures = [table.error, table.worst, *(float(v.mean()) if len(v) else None for v in (predicted, actual))]
        row = "".join("      -" if v is None else f"{v:7.3f}" for v in figures)
        print(f"{split:24} {name:6} {len(raw):8d} {row}")
