"""COCO AP of a checkpoint on a data set: overall, at single IoUs, by size and by class."""

from __future__ import annotations

from pathlib import Path

from jsonargparse import ArgumentParser, Namespace
from jsonargparse.typing import NonNegativeInt, PositiveInt

from tightbox.files import write_json

USAGE = "CHECKPOINT --data DIR [--split val] [--out DIR]"


def add_arguments(parser: ArgumentParser) -> None:
    """What to evaluate, and on what."""
    parser.add_argument("checkpoint", help="folder that `tightbox train` wrote, such as runs/x/best")
    parser.add_argument("--data", required=True, help="folder of the data set")
    parser.add_argument("--split", default="val", help="which split of it")
    parser.add_argument("--out", default=None, help="folder for metrics.json and the detections in results.json")
    parser.add_argument("--batch_size", type=PositiveInt, default=8, help="pictures at a time")
    parser.add_argument("--workers", type=NonNegativeInt, default=0, help="processes that load pictures")
    parser.add_argument("--skip_unreadable", type=bool, default=False, help="count objects of such pictures as missed")


def run(args: Namespace) -> int:
    """Print the table; with --out also write it and the detections."""
    from tightbox.data.layout import read_data

    data = read_data(args.data, args.split)

    from tightbox.checkpoint import load
    from tightbox.distributed import new_accelerator
    from tightbox.evaluation.coco import evaluate
    from tightbox.evaluation.run import detect_data, to_results
    from tightbox.progress import counting

    model = load(args.checkpoint)
    data = data.with_classes(model.class_names)
    accelerator = new_accelerator()
    accelerator.print(f"found {data.layout}: {len(data.records)} pictures")
    with counting("detecting", shown=accelerator.is_main_process) as progress:
        found = detect_data(
            model.to(accelerator.device),
            data,
            accelerator=accelerator,
            batch_size=args.batch_size,
            workers=args.workers,
            skip_unreadable=args.skip_unreadable,
            progress=progress,
        )
    if accelerator.is_main_process:
        results = to_results(found, data)
        metrics = evaluate(data.to_coco(), results)
        print(metrics.table())
        if args.out is not None:
            write_json(Path(args.out) / "metrics.json", metrics.to_dict())
            write_json(Path(args.out) / "results.json", results)
            print(f"written: {Path(args.out) / 'metrics.json'} and results.json")
    return 0
