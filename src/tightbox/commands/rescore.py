"""Predicted IoUs for the boxes of any tool's COCO result file: rank, thin out and refine them by these."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from jsonargparse import ArgumentParser, Namespace
from jsonargparse.typing import ClosedUnitInterval, NonNegativeInt, PositiveInt

from tightbox.errors import UserError
from tightbox.files import write_json

if TYPE_CHECKING:
    from tightbox.evaluation.coco import CocoMetrics
    from tightbox.suppress import Suppress

USAGE = "--model CHECKPOINT --data DIR --dt results.json --out better.json [--nms iou_guided]"
FIGURES = ("ap", "ap50", "ap75", "ap90")


def add_arguments(parser: ArgumentParser) -> None:
    """Whose judgement, of which boxes, and what is done with it."""
    parser.add_argument("--model", required=True, help="folder of an iou_net checkpoint, standalone or whole")
    parser.add_argument("--data", required=True, help="folder of the data set")
    parser.add_argument("--split", default="val", help="which split of it")
    parser.add_argument("--dt", required=True, help="COCO result file; before its tool's suppression, for --nms")
    parser.add_argument("--out", required=True, help="result file to write; its rows also have a predicted `iou`")
    parser.add_argument("--rank", choices=["class", "power"], default="class", help="by p, or by p^alpha u^(1-alpha)")
    parser.add_argument("--alpha", type=ClosedUnitInterval, default=0.5, help="weight of the score p in --rank power")
    parser.add_argument("--nms", choices=["none", "iou_guided", "greedy"], default="none", help="what thins them out")
    parser.add_argument("--nms_iou", type=ClosedUnitInterval, default=0.5, help="overlap of suppression")
    parser.add_argument("--score_threshold", type=ClosedUnitInterval, default=0.05, help="lowest score that --nms sees")
    parser.add_argument("--max_detections", type=PositiveInt, default=100, help="most boxes of a picture after --nms")
    parser.add_argument(
        "--refine_steps",
        type=NonNegativeInt,
        default=None,
        help="steps towards a higher predicted IoU; if absent, as many as the model takes on its own boxes",
    )
    parser.add_argument("--batch_size", type=PositiveInt, default=8, help="pictures at a time")


def run(args: Namespace) -> int:
    """Write the better results, and print their AP beside that of the given ones."""
    from tightbox.data.layout import read_data

    data = read_data(args.data, args.split)

    from tightbox.distributed import new_accelerator
    from tightbox.evaluation.coco import evaluate
    from tightbox.evaluation.rescore import by_record, rescore_data
    from tightbox.evaluation.results import read_json, to_columns
    from tightbox.evaluation.run import to_results
    from tightbox.models import load
    from tightbox.models.iou_net import IoUNet
    from tightbox.progress import counting
    from tightbox.rank import by_class_score, by_power

    model = load(args.model)
    if not isinstance(model, IoUNet) or model.iou_head is None:
        raise UserError(
            f"{args.model} cannot judge boxes; train a model for it with `tightbox train --model iou_net --standalone`"
        )
    known = data.with_classes(model.class_names)
    results = read_json(Path(args.dt))
    truth, given = to_columns(data.to_coco(), results)
    detections = by_record(given, truth, known)
    model.to(new_accelerator().device)
    with counting("rescoring") as progress:
        found = rescore_data(
            model,
            known,
            detections,
            rank=partial(by_power, alpha=args.alpha) if args.rank == "power" else by_class_score,
            suppress=_suppress_rule(args),
            refine_steps=args.refine_steps,
            batch_size=args.batch_size,
            progress=progress,
        )
    better = to_results(found, known)
    print("         AP  AP50  AP75  AP90   boxes")
    for name, rows in (("before", results), ("after", better)):
        print(f"{name:6}{_figures(evaluate(known.to_coco(), rows))} {len(rows):7d}")
    write_json(Path(args.out), better)
    print(f"written: {args.out}")
    return 0


def _suppress_rule(args: Namespace) -> Suppress | None:
    from tightbox.suppress import greedy_nms, iou_guided_nms

    if args.nms == "none":
        return None
    return partial(
        iou_guided_nms if args.nms == "iou_guided" else greedy_nms,
        iou_threshold=args.nms_iou,
        score_threshold=args.score_threshold,
        max_detections=args.max_detections,
    )


def _figures(metrics: CocoMetrics) -> str:
    values = (getattr(metrics, figure) for figure in FIGURES)
    return "".join("     -" if value is None else f"{100 * value:6.1f}" for value in values)
