"""Predicted IoUs for the boxes of any tool's COCO result file: rank, suppress and refine them by these."""

from functools import partial
from pathlib import Path

from jsonargparse import ArgumentParser, Namespace
from jsonargparse.typing import NonNegativeInt

from tightbox.commands import on_data, rules
from tightbox.errors import UserError
from tightbox.files import write_json
from tightbox.progress import progress_bar

USAGE = "CHECKPOINT --data DIR --dt results.json --out better.json [--suppress iou_guided]"
THRESHOLDS = {"iou_threshold": 0.5, "score_threshold": 0.05, "max_detections": 100}
FIGURES = ("ap", "ap50", "ap75", "ap90")


def add_arguments(parser: ArgumentParser) -> None:
    """Whose judgement, of which boxes, and what is done with it."""
    parser.add_argument("checkpoint", help="folder of an iou_net checkpoint, standalone or whole")
    on_data.add_data(parser)
    parser.add_argument("--dt", required=True, help="COCO result file; before its tool's suppression, for --suppress")
    parser.add_argument("--out", required=True, help="result file to write; its rows also have a predicted `iou`")
    parser.add_argument("--rank", choices=["class", "power"], default="class", help="by p, or by p^alpha u^(1-alpha)")
    parser.add_argument("--suppress", choices=["none", "greedy", "iou_guided"], default="none", help="how, if at all")
    rules.add_numbers(parser, *map(str, THRESHOLDS.values()))
    steps = "steps towards a higher predicted IoU; if absent, as many as the model takes on its own boxes"
    parser.add_argument("--refine_steps", type=NonNegativeInt, help=steps)
    on_data.add_loading(parser)
    on_data.add_device(parser)


def run(args: Namespace) -> int:
    """Write the better results, and print their AP beside that of the given ones."""
    rules.alpha(args)
    if args.suppress == "none":
        why = "belongs to suppression: also give --suppress, iou_guided or greedy"
        on_data.refuse(args, dict.fromkeys(rules.THRESHOLDS), why)
    out = Path(args.out)
    if out.is_dir():
        raise UserError(f"--out {out} is a folder; name the file to write, such as {out / 'better.json'}")
    data = on_data.read(args)

    from tightbox.evaluation.coco import evaluate
    from tightbox.evaluation.coco_files import read_predictions
    from tightbox.evaluation.figures import percents
    from tightbox.evaluation.inputs import GroundTruth, Predictions
    from tightbox.inference.detect import to_results
    from tightbox.inference.rescore import by_record, rescore_data
    from tightbox.models.iou_net import IoUNet

    model = on_data.open_model(args)
    if not isinstance(model, IoUNet) or model.iou_head is None:
        way_out = "train a model for it with `tightbox train --model iou_net --standalone`"
        raise UserError(f"{args.checkpoint} cannot judge boxes; {way_out}")
    known = data.with_classes(model.class_names)
    # The file may have detections of classes that --classes leaves out, or that the model does not know.
    whole = GroundTruth.from_data(data.with_classes((*data.class_names, *data.left_out)))
    given = read_predictions(Path(args.dt), whole)
    detections = by_record(given, whole, known)
    numbers = THRESHOLDS | rules.thresholds(args)
    suppress = None if args.suppress == "none" else rules.suppression(args.suppress, numbers)
    judged = partial(rescore_data, rank=rules.rank_rule(args), suppress=suppress, refine_steps=args.refine_steps)
    with progress_bar("rescoring") as progress:
        found = judged(model, known, detections, loading=on_data.loading(args), progress=progress)
    print("         AP  AP50  AP75  AP90   boxes")
    after = GroundTruth.from_data(known), Predictions.from_detections(found, known)
    for name, (ground_truth, predictions) in (("before", (whole, given)), ("after", after)):
        metrics = evaluate(ground_truth, predictions)
        print(f"{name:6} {percents(getattr(metrics, figure) for figure in FIGURES)} {len(predictions):7d}")
    write_json(out, to_results(found, known))
    print(f"written: {args.out}")
    return 0
