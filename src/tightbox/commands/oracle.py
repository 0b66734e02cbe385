"""What AP would be if the detector knew: one output at a time is replaced by the truth, before suppression."""

from dataclasses import asdict
from pathlib import Path

from jsonargparse import ArgumentParser, Namespace

from tightbox.commands import on_data
from tightbox.files import write_json
from tightbox.progress import progress_bar

USAGE = "CHECKPOINT --data DIR [--split val]  |  --gt FILE --dt FILE    [--out oracle]"


def add_arguments(parser: ArgumentParser) -> None:
    """A detector and a data set, or a tool's result file and its truth."""
    on_data.add_arguments(parser, or_results=True)
    parser.add_argument("--out", default="oracle", help="folder for oracle.json and ladder.png")


def run(args: Namespace) -> int:
    """Print the ladder, write it as JSON, and draw it."""
    of_results = on_data.of_results(args)
    if of_results:
        from tightbox.evaluation.coco_files import read_ground_truth, read_predictions
        from tightbox.evaluation.ladder import results_ladder

        _, ground_truth = read_ground_truth(Path(args.gt))
        ladder = results_ladder(ground_truth, read_predictions(Path(args.dt), ground_truth))
    else:
        model, data = on_data.open_both(args)

        from tightbox.inference.candidates import iterate_assigned
        from tightbox.inference.oracle import oracle_study

        with progress_bar("replacing outputs by the truth") as progress:
            images = iterate_assigned(model, data, loading=on_data.loading(args), progress=progress)
            ladder = oracle_study(model, data, images)

    from tightbox.diagnosis.ladder_plot import draw_ladder
    from tightbox.evaluation.figures import percent, percents

    width = max(len(variant.name) for variant in ladder.variants)
    both = any(variant.with_estimate for variant in ladder.variants)
    print(f"{'':{width}}   class score alone" + ("     with estimate" if both else ""))
    print(f"{'':{width}}" + "     AP  AP50  AP75" * (1 + both))
    for variant in ladder.variants:
        columns = [variant.alone, variant.with_estimate][: 1 + both]
        figures = [(None,) * 3 if ap is None else (ap.ap, ap.by_iou["50"], ap.by_iou["75"]) for ap in columns]
        print(f"{variant.name:{width}} " + " ".join(f" {percents(row)}" for row in figures))
    if ladder.lost_to_ranking is not None:
        print(f"\nAP lost to ranking: {percent(ladder.lost_to_ranking, width=0)}")
    for name, value in ladder.correlations.items():
        if value.pearson is not None and value.spearman is not None:
            told = f"Pearson {value.pearson:.3f}, Spearman {value.spearman:.3f}"
            print(f"{name} and true IoU, over {value.pairs} boxes with IoU > 0.5: {told}")
    if of_results:
        known = "Final boxes only: what suppression removed cannot be known, so missed objects stay missed, and nothing"
        print(f"\n{known}")
        print("can take the place of a box whose score falls; a checkpoint with --data shows the whole ladder.")
    out = Path(args.out)
    write_json(out / "oracle.json", asdict(ladder) | {"lost_to_ranking": ladder.lost_to_ranking})
    draw_ladder(ladder, out / "ladder.png")
    print(f"written: {out / 'oracle.json'} and ladder.png")
    return 0
