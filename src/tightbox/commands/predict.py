"""Find objects in images or videos: annotated copies, crops, and results in the format of the tool that reads them."""

from __future__ import annotations

import glob
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from jsonargparse import ActionYesNo, ArgumentParser, Namespace
from jsonargparse.typing import ClosedUnitInterval

from tightbox.commands import many_images, on_data
from tightbox.errors import UserError

if TYPE_CHECKING:
    from tightbox.calibration import Calibration
    from tightbox.inference.files import Selection
    from tightbox.models import Detector

USAGE = (
    "CHECKPOINT SOURCE [SOURCE ...] --out DIR [--format FORMAT] [--min-iou 0.75] "
    "[--score-threshold 0.3 | --precision 0.95 | --miss 0.1] [--coverage 0.9]"
)
SCORE_THRESHOLD = 0.3
FILES = frozenset({".json", ".jpg", ".jpeg", ".png", ".csv", ".txt"})  # what is no name of a folder
VIDEO_SUFFIXES = frozenset({".mp4", ".mov", ".avi", ".mkv", ".webm", ".m4v"})


def add_arguments(parser: ArgumentParser) -> None:
    """With what, on what, and where to."""
    parser.add_argument("checkpoint", help="folder that `tightbox train` wrote, such as runs/x/best")
    parser.add_argument("source", nargs="*", help="images, folders of images, patterns such as 'a/*.jpg', or videos")
    parser.add_argument("--out", required=True, help="folder for the annotated images and the results")
    formats = Literal["coco", "csv", "json", "yolo", "labelstudio", "parquet", "jsonl"]
    files = "results.json, results.csv, one JSON or YOLO label file for each image, or Label Studio's tasks"
    many = "parquet and jsonl are for any number of images, in part files"
    parser.add_argument("--format", type=formats, default="coco", help=f"{files}; {many}")
    copies = "whether annotated copies are written; yes, but not with parquet and jsonl"
    parser.add_argument("--images", action=ActionYesNo(no_prefix="no_"), default=None, help=copies)
    parser.add_argument("--crops", action="store_true", help="write each box as an image too, in crops/CLASS")
    loosest = "loosest puts the boxes of the lowest predicted IoU first, for a person to check"
    parser.add_argument("--order", type=Literal["score", "loosest"], default="score", help=loosest)
    parser.add_argument("--classes", nargs="+", help="only objects of these")
    lower = "leave out boxes with a lower"
    parser.add_argument("--score_threshold", type=float, help=f"{lower} score; {SCORE_THRESHOLD}")
    parser.add_argument("--min_iou", type=ClosedUnitInterval, help=f"{lower} predicted IoU")
    parser.add_argument("--precision", type=float, help="as calibrated: threshold with this fraction of right boxes")
    parser.add_argument("--at_iou", type=float, help="for --precision: IoU of a right box; 0.5")
    parser.add_argument("--miss", type=float, help="as calibrated: threshold that misses this fraction of objects")
    parser.add_argument("--coverage", type=float, help="as calibrated: also draw the boxes that hold their object")
    on_data.add_views(parser)
    on_data.add_batch_size(parser)
    on_data.add_device(parser)
    many_images.add_arguments(parser)


def run(args: Namespace) -> int:
    """Draw every image; the status is 1 if some of them could not be read."""
    if args.score_threshold is not None and not 0 <= args.score_threshold <= 1:
        raise UserError(f"--score-threshold is {args.score_threshold}; it must be between 0 and 1")
    choosing = [name for name in ("precision", "miss", "score_threshold") if args[name] is not None]
    if len(choosing) > 1:
        one, other = choosing[0], choosing[1].replace("_", "-")
        raise UserError(f"--{one} chooses the score threshold, so leave out --{other}, or the other way round")
    if args.precision is None:
        why = "says which boxes --precision counts as right: give that too, such as --precision 0.95"
        on_data.refuse(args, {"at_iou": None}, why)
    if args.format in ("parquet", "jsonl"):
        if on_data.several_views(args):
            raise UserError("--scales and --flip go with every format but parquet and jsonl")
        return many_images.run(args, selection)
    many_images.refuse_options(args)
    if not args.source:
        raise UserError("predict needs a SOURCE: images, folders of images, patterns such as 'a/*.jpg', or videos")
    sources, out = find_sources(args.source), Path(args.out)
    if out.suffix.lower() in FILES or (out.exists() and not out.is_dir()):
        raise UserError(f"--out {out} is the name of a file; name a folder, such as {out.with_suffix('')}")
    originals = {path.resolve() for path, _ in sources}
    if any((out / name).resolve() in originals for _, name in sources):
        raise UserError(f"--out {out} holds some of the sources, which would be overwritten; choose another folder")
    if args.format == "yolo" and (named := [path for path, name in sources if str(name.with_suffix("")) == "classes"]):
        raise UserError(f"the labels of {named[0]} would be classes.txt, which lists the classes; rename the file")

    from tightbox.images import UnreadableImage
    from tightbox.inference.annotate import Annotator
    from tightbox.inference.formats import write_results
    from tightbox.progress import progress_bar

    model = on_data.open_model(args)
    draw = args.images is not False
    annotator = Annotator(model, selection(args, model), out, args.batch_size, draw=draw, crops=args.crops)
    unreadable = []
    videos = [source for source in sources if _is_video(source[0])]
    images = [source for source in sources if not _is_video(source[0])]
    with progress_bar("images", shown=bool(images)) as progress:
        for done, error in enumerate(annotator.images(images), 1):
            if error is not None:
                unreadable.append(error)
                on_data.warn(str(error))
            if args.order == "loosest" and len(annotator.results) == 1:
                annotator.results[0].loosest_first()  # so that a detector without estimate is refused at once
            progress(done, len(images))
    for path, name in videos:
        try:
            with progress_bar(f"frames of {path.name}") as progress:
                annotator.video(path, name, progress)
        except UnreadableImage as error:
            unreadable.append(error)
            on_data.warn(str(error))
    write_results(args.format, out, annotator.results, model.class_names, args.order)
    # Not before: a detector without predicted IoUs is refused by then, and calibrating would not help it.
    if args.min_iou is not None and model.calibration is None:
        raw = f"the predicted IoUs of {args.checkpoint} are raw, as it was not calibrated"
        on_data.warn(f"{raw}; `tightbox calibrate` makes --min-iou mean what it says")
    boxes = sum(len(result.found) for result in annotator.results)
    print(f"{boxes} boxes in {len(sources) - len(unreadable)} files; see {out}")
    if unreadable:
        on_data.warn(f"{len(unreadable)} files could not be read")
    return int(bool(unreadable))


def selection(args: Namespace, model: Detector) -> Selection:
    """Which detections are reported; the model's own score threshold is lowered to the one asked for.

    Raises:
        UserError: if the detector cannot choose so.
    """
    from tightbox.inference.files import Selection, labels_of

    threshold = score_threshold(args, model)
    if args.coverage is not None:
        _calibration(args, model, "coverage").margins_for(args.coverage)  # refuses another than was learned
    if threshold < model.options.score_threshold:
        model.options = replace(model.options, score_threshold=threshold)
    labels = labels_of(args.classes, model.class_names) if args.classes else None
    return Selection(threshold, args.min_iou, labels, margins=args.coverage is not None)


def score_threshold(args: Namespace, model: Detector) -> float:
    """The threshold asked for, in numbers, by the precision that it is to reach, or by the fraction it may miss.

    Raises:
        UserError: if something is asked of a detector that was not calibrated for it, or cannot reach it.
    """
    if args.miss is not None:
        bound = _calibration(args, model, "miss").miss_bound_for(args.miss)
        missed = f"at most {bound.miss:g} of the objects are missed"
        print(f"score threshold {bound.threshold:.3f}: {missed}, with probability {1 - bound.delta:g}")
        return bound.threshold
    if args.precision is None:
        return SCORE_THRESHOLD if args.score_threshold is None else float(args.score_threshold)
    at_iou = 0.5 if args.at_iou is None else args.at_iou
    threshold = _calibration(args, model, "precision").score_threshold(args.precision, at_iou)
    print(f"score threshold {threshold:.3f} for precision {args.precision:g} at IoU {at_iou:g}")
    return threshold


def _calibration(args: Namespace, model: Detector, option: str) -> Calibration:
    if on_data.several_views(args):
        raise UserError(f"--{option} was learned from single views; leave out --scales and --flip")
    if model.calibration is None:
        advice = f"run `tightbox calibrate {args.checkpoint} --data DIR` first"
        raise UserError(f"{args.checkpoint} was not calibrated, so nothing is known for --{option}; {advice}")
    return model.calibration


def find_sources(given: Sequence[str]) -> list[tuple[Path, Path]]:
    """Every image or video that the arguments name, with the relative path of its output.

    Raises:
        UserError: if an argument names nothing.
    """
    from tightbox.images import IMAGE_SUFFIXES

    found: dict[Path, Path] = {}
    for text in given:
        path = Path(text).expanduser()
        if path.is_dir():
            inside = (p for p in sorted(path.rglob("*")) if p.suffix.lower() in IMAGE_SUFFIXES | VIDEO_SUFFIXES)
            # macOS leaves a file ._a.jpg, which is no image, beside a.jpg on other systems' disks.
            matches = {p: p.relative_to(path) for p in inside if p.is_file() and not p.name.startswith("._")}
        else:
            named = [path] if path.is_file() else map(Path, sorted(glob.glob(str(path), recursive=True)))
            matches = {p: Path(p.name) for p in named if p.is_file()}
        if not matches:
            raise UserError(f"there is no image or video at {text}; give a file, a folder or a pattern in quotes")
        found |= matches
    taken: dict[Path, Path] = {}
    for path, name in found.items():
        output = name.with_suffix(".mp4" if _is_video(path) else ".jpg")
        number = len(taken)
        while output in taken:
            output = output.with_name(f"{path.stem}_{path.suffix[1:]}_{number}{output.suffix}")
            number += 1
        taken[output] = path
    return [(path, output) for output, path in taken.items()]


def _is_video(path: Path) -> bool:
    return path.suffix.lower() in VIDEO_SUFFIXES
