"""The command `tightbox-runtime`."""

from __future__ import annotations

import argparse
import json
import os
import sys
import warnings
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from tightbox_runtime.errors import UserError
from tightbox_runtime.version import __version__


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command; the status is 2 after a mistake, 1 if images could not be read."""
    args = _parser().parse_args(arguments)
    try:
        return _predict(args)
    except UserError as error:
        print(f"tightbox-runtime: {error}", file=sys.stderr)
        return 2


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="tightbox-runtime", description="Runs detectors that tightbox exported.")
    parser.add_argument("--version", action="version", version=f"tightbox-runtime {__version__}")
    commands = parser.add_subparsers(required=True, metavar="predict")
    predict = commands.add_parser("predict", help="find objects in images and write them as JSON")
    predict.add_argument("model", help="file that `tightbox export --format onnx` wrote")
    predict.add_argument("images", nargs="+", help="image files")
    predict.add_argument("--out", help="file to write; left out, the output stream")
    predict.add_argument(
        "--score-threshold",
        type=float,
        default=0.3,
        help="leave out boxes with a lower score; 0.3. Those below the model's own are not in its file",
    )
    return parser


def _predict(args: argparse.Namespace) -> int:
    if not 0 <= args.score_threshold <= 1:
        raise UserError(f"--score-threshold is {args.score_threshold}; it must be between 0 and 1")

    from tightbox_runtime.detector import Detector

    warnings.filterwarnings("ignore", "Image size .* exceeds limit")  # Pillow's, of images that are read all the same
    detector = Detector(args.model)
    rows: list[dict[str, Any]] = []
    unreadable = 0
    for image in args.images:
        try:
            found = detector.predict(image)
        except UserError as error:
            print(f"tightbox-runtime: {error}", file=sys.stderr)
            unreadable += 1
            continue
        found = found[found.scores >= args.score_threshold]
        ious = [None] * len(found) if found.ious is None else found.ious.tolist()
        columns = found.boxes.tolist(), found.scores.tolist(), found.labels.tolist(), ious
        for (left, top, right, bottom), score, label, iou in zip(*columns, strict=True):
            row = {"file": str(image), "class": detector.class_names[label], "label": label}
            row |= {"bbox": [left, top, right - left, bottom - top], "score": score}
            rows.append(row if iou is None else row | {"iou": iou})
    text = json.dumps(rows, indent=2) + "\n"
    if args.out is None:
        sys.stdout.write(text)
    else:
        _write(Path(args.out), text)
    return int(unreadable > 0)


def _write(path: Path, text: str) -> None:
    """The file, whole or not at all."""
    temporary = path.with_name(f".{path.name[-40:]}.{os.getpid()}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary.write_text(text, encoding="utf-8")
        os.replace(temporary, path)
    except OSError as error:
        with suppress(OSError):
            temporary.unlink()
        raise UserError(f"cannot write {path}: {error.strerror or error}; choose another place") from error
