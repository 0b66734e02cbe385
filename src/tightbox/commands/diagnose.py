"""One page that says how tight the boxes are, how reliable their scores are, and where AP is lost."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from jsonargparse import ArgumentParser, Namespace

from tightbox.commands import on_data
from tightbox.errors import UserError
from tightbox.files import write_json
from tightbox.progress import progress_bar

if TYPE_CHECKING:
    from collections.abc import Collection

    from tightbox.data.records import DetectionData
    from tightbox.diagnosis.numbers import Diagnosis
    from tightbox.evaluation.inputs import GroundTruth, Predictions
    from tightbox.inference.detect import Loading
    from tightbox.models import Detector
    from tightbox.structures import Detections

USAGE = "CHECKPOINT --data DIR [--split val]  |  --gt FILE --dt FILE [--images DIR]    [--out diagnosis]"


def add_arguments(parser: ArgumentParser) -> None:
    """A detector and a data set, or any tool's result file and its ground truth."""
    on_data.add_arguments(parser, or_results=True)
    parser.add_argument("--images", help="folder of the images of --gt; if absent, the usual ones")
    parser.add_argument("--out", default="diagnosis", help="folder for diagnosis.html and diagnosis.json")


def run(args: Namespace) -> int:
    """Write the page and its numbers, and print the sentences that head the page."""
    of_results = on_data.of_results(args)
    if args.images is not None and not of_results:
        raise UserError("--images belongs to --gt and --dt; a data set says itself where its images are")
    if of_results:
        diagnosis, images = _of_results(args)
    else:
        model, data = on_data.open_both(args)
        title = f"{'/'.join(Path(args.checkpoint).parts[-2:])} on {args.split} of {Path(args.data).resolve().name}"
        diagnosis, images = of_detector(model, data, title, on_data.loading(args))

    from tightbox.diagnosis.page import write_page
    from tightbox.diagnosis.sentences import sentences

    out = Path(args.out)
    with progress_bar("crop out images") as progress:
        write_page(diagnosis, images, out / "diagnosis.html", progress)
    write_json(out / "diagnosis.json", diagnosis.to_json())
    print("\n".join(sentences(diagnosis).values()))
    print(f"written: {out / 'diagnosis.html'} and diagnosis.json")
    return 0


def of_detector(
    model: Detector, data: DetectionData, title: str, loading: Loading
) -> tuple[Diagnosis, dict[int, Path]]:
    """What is to be said of a detector on a data set, and where its images are."""
    from tightbox.diagnosis.diagnose import diagnose_results
    from tightbox.evaluation.inputs import GroundTruth, Predictions
    from tightbox.inference.before_suppression import look_before_suppression

    with progress_bar(f"detecting in {data.split}") as progress:
        before = look_before_suppression(model, data, loading=loading, progress=progress)
    ground_truth, predictions = GroundTruth.from_data(data), Predictions.from_detections(before.detections, data)
    notes = [*_calibrated(model, data.split), *_promised(model, ground_truth, predictions, before.detections.values())]
    with progress_bar("measuring") as progress:
        diagnosis = diagnose_results(
            ground_truth, predictions, title=title, before=before, notes=notes, progress=progress
        )
    return diagnosis, {record.image_id: record.path for record in data.records}


def _calibrated(model: Detector, split: str) -> list[str]:
    """What has to be known of the predicted IoUs."""
    if model.calibration is None:
        return []
    learned = model.calibration.about.get("split")
    flattered = "; on that very split they look better than they are" if learned == split else ""
    return [f"Predicted IoUs are calibrated, by {learned}{flattered}."]


def _promised(
    model: Detector, ground_truth: GroundTruth, predictions: Predictions, detections: Collection[Detections]
) -> list[str]:
    """What outer boxes promise, under which assumptions, and how many keep it here."""
    calibration = model.calibration
    if calibration is None or calibration.outer is None or not detections:
        return []
    import numpy as np

    from tightbox.evaluation.fit_margins import outer_coverage
    from tightbox.evaluation.matching import match

    around = [each.outer.double().numpy() for each in detections if each.outer is not None]
    held, matched = outer_coverage(match(ground_truth, predictions), np.concatenate([np.empty((0, 4)), *around]))
    here = f"; here {held:,} of {matched:,} do ({held / matched:.1%})" if matched else ""
    promise = (
        f"Outer boxes hold their whole object with a probability of {calibration.outer.coverage:.0%}{here}. That is "
        "promised for boxes that lie on an object (IoU 0.5), in images like those of "
        f"{calibration.about.get('split')}, from which it was learned: it says nothing of boxes on no object, and does "
        "not hold where images differ."
    )
    return [promise]


def _of_results(args: Namespace) -> tuple[Diagnosis, dict[int, Path]]:
    from tightbox.diagnosis.crops import find_images
    from tightbox.diagnosis.diagnose import diagnose_results
    from tightbox.evaluation.coco_files import read_ground_truth, read_predictions

    gt, dt = Path(args.gt), Path(args.dt)
    content, ground_truth = read_ground_truth(gt)
    predictions = read_predictions(dt, ground_truth)
    with progress_bar("measuring") as progress:
        diagnosis = diagnose_results(ground_truth, predictions, title=f"{dt.name} against {gt.name}", progress=progress)
    return diagnosis, find_images(content, gt, None if args.images is None else Path(args.images))
