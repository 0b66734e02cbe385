"""Find objects in images or a video: annotated images and a COCO result file."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from jsonargparse import ArgumentParser, Namespace
from jsonargparse.typing import ClosedUnitInterval

from tightbox.commands import on_data
from tightbox.errors import UserError

if TYPE_CHECKING:
    from tightbox.images import UnreadableImage
    from tightbox.models import Detector

USAGE = "CHECKPOINT SOURCE [SOURCE ...] --out DIR [--score-threshold 0.3 | --precision 0.95] [--min-iou 0.75]"
SCORE_THRESHOLD = 0.3
VIDEO_SUFFIXES = frozenset({".mp4", ".mov", ".avi", ".mkv", ".webm", ".m4v"})


def add_arguments(parser: ArgumentParser) -> None:
    """With what, on what, and where to."""
    parser.add_argument("checkpoint", help="folder that `tightbox train` wrote, such as runs/x/best")
    parser.add_argument("source", nargs="+", help="images, folders of images, patterns such as 'a/*.jpg', or videos")
    parser.add_argument("--out", required=True, help="folder for the annotated images and results.json")
    parser.add_argument(
        "--score_threshold", type=float, default=None, help=f"leave out boxes with a lower score; {SCORE_THRESHOLD}"
    )
    parser.add_argument(
        "--min_iou", type=ClosedUnitInterval, default=None, help="leave out boxes with a lower predicted IoU"
    )
    parser.add_argument(
        "--precision", type=float, default=None, help="score threshold with this fraction of right boxes, as calibrated"
    )
    parser.add_argument("--at_iou", type=float, default=None, help="for --precision: IoU of a right box; 0.5")
    on_data.add_batch_size(parser)
    on_data.add_device(parser)


def run(args: Namespace) -> int:
    """Draw every image; the status is 1 if some of them could not be read."""
    if args.score_threshold is not None and not 0 <= args.score_threshold <= 1:
        raise UserError(f"--score-threshold is {args.score_threshold}; it must be between 0 and 1")
    if args.score_threshold is not None and args.precision is not None:
        raise UserError(
            "--precision chooses the score threshold, so leave out --score-threshold, or the other way round"
        )
    if args.at_iou is not None and args.precision is None:
        raise UserError(
            "--at-iou says which boxes --precision counts as right: give that too, such as --precision 0.95"
        )
    sources, out = find_sources(args.source), Path(args.out)
    originals = {path.resolve() for path, _ in sources}
    if any((out / name).resolve() in originals for _, name in sources):
        raise UserError(f"--out {out} holds some of the sources, which would be overwritten; choose another folder")

    from tightbox.files import write_json
    from tightbox.images import UnreadableImage
    from tightbox.inference.annotate import Annotator
    from tightbox.models import load
    from tightbox.progress import progress_bar

    model = load(args.checkpoint)
    threshold = score_threshold(args, model)
    if threshold < model.options.score_threshold:
        model.options = replace(model.options, score_threshold=threshold)
    annotator = Annotator(model.to(on_data.find_device(args.device)), threshold, args.min_iou, args.batch_size)
    unreadable = 0

    def note(error: UnreadableImage | None) -> None:
        nonlocal unreadable
        if error is not None:
            unreadable += 1
            print(f"tightbox: {error}", file=sys.stderr)

    videos = [source for source in sources if source[0].suffix.lower() in VIDEO_SUFFIXES]
    images = [(path, out / name) for path, name in sources if (path, name) not in videos]
    with progress_bar("images", shown=bool(images)) as progress:
        for done, error in enumerate(annotator.images(images), 1):
            note(error)
            progress(done, len(images))
    for path, name in videos:
        try:
            with progress_bar(f"frames of {path.name}") as progress:
                annotator.video(path, out / name, progress)
        except UnreadableImage as error:
            note(error)
    write_json(out / "results.json", annotator.rows)
    # Not before: a detector without predicted IoUs is refused by then, and calibrating would not help it.
    if args.min_iou is not None and model.calibration is None:
        print(
            f"tightbox: the predicted IoUs of {args.checkpoint} are raw, as it was not calibrated; "
            "`tightbox calibrate` makes --min-iou mean what it says",
            file=sys.stderr,
        )
    print(f"{len(annotator.rows)} boxes in {len(sources) - unreadable} files; see {out}")
    if unreadable:
        print(f"{unreadable} files could not be read", file=sys.stderr)
    return int(unreadable > 0)


def score_threshold(args: Namespace, model: Detector) -> float:
    """The threshold asked for, in numbers or by the precision that it is to reach.

    Raises:
        UserError: if a precision is asked of a detector that was not calibrated, or cannot reach it.
    """
    if args.precision is None:
        return SCORE_THRESHOLD if args.score_threshold is None else float(args.score_threshold)
    if model.calibration is None:
        raise UserError(
            f"{args.checkpoint} was not calibrated, so no threshold is known for --precision; run "
            f"`tightbox calibrate {args.checkpoint} --data DIR` first"
        )
    at_iou = 0.5 if args.at_iou is None else args.at_iou
    threshold = model.calibration.score_threshold(args.precision, at_iou)
    print(f"score threshold {threshold:.3f} for precision {args.precision:g} at IoU {at_iou:g}")
    return threshold


def find_sources(given: Sequence[str]) -> list[tuple[Path, Path]]:
    """Every image or video that the arguments name, with the relative path of its output.

    Raises:
        UserError: if an argument names nothing, or two sources would be written to the same file.
    """
    from tightbox.images import IMAGE_SUFFIXES

    found: dict[Path, Path] = {}
    for text in given:
        path = Path(text).expanduser()
        if path.is_dir():
            inside = [p for p in sorted(path.rglob("*")) if p.suffix.lower() in IMAGE_SUFFIXES | VIDEO_SUFFIXES]
            matches = {p: p.relative_to(path) for p in inside}
        elif path.is_file():
            matches = {path: Path(path.name)}
        else:
            import glob

            files = (Path(p) for p in sorted(glob.glob(str(path), recursive=True)))
            matches = {p: Path(p.name) for p in files if p.is_file()}
        if not matches:
            raise UserError(f"there is no image or video at {text}; give a file, a folder or a pattern in quotes")
        found |= matches
    taken: dict[Path, Path] = {}
    for path, name in found.items():
        output = name.with_suffix(".mp4" if path.suffix.lower() in VIDEO_SUFFIXES else ".jpg")
        if output in taken:
            output = output.with_name(f"{path.stem}_{path.suffix[1:]}_{len(taken)}{output.suffix}")
        taken[output] = path
    return [(path, output) for output, path in taken.items()]
