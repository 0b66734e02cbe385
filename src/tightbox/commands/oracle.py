"""What AP would be if the detector knew: one output at a time is replaced by the truth, before suppression."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

from jsonargparse import ArgumentParser, Namespace

from tightbox.commands import on_data
from tightbox.files import write_json

if TYPE_CHECKING:
    from tightbox.evaluation.coco import CocoMetrics
    from tightbox.evaluation.oracle import OracleStudy

USAGE = "CHECKPOINT --data DIR [--split val]  |  --gt FILE --dt FILE    [--out oracle]"


def add_arguments(parser: ArgumentParser) -> None:
    """A detector and a data set, or a tool's result file and its truth."""
    on_data.add_arguments(parser, or_results=True)
    parser.add_argument("--out", default="oracle", help="folder for oracle.json and ladder.png")


def run(args: Namespace) -> int:
    """Print the ladder, write it as JSON, and draw it."""
    of_results = on_data.of_results(args)
    study = _of_results(Path(args.gt), Path(args.dt)) if of_results else _of_model(args)

    from tightbox.evaluation.ladder import draw_ladder

    print(_table(study))
    if of_results:
        print(
            "\nFinal boxes only: what suppression removed cannot be known, so missed objects stay missed, and nothing"
        )
        print("can take the place of a box whose score falls; a checkpoint with --data shows the whole ladder.")
    out = Path(args.out)
    write_json(out / "oracle.json", asdict(study))
    draw_ladder(study, out / "ladder.png")
    print(f"written: {out / 'oracle.json'} and ladder.png")
    return 0


def _of_model(args: Namespace) -> OracleStudy:
    model, data = on_data.open_both(args)

    from tightbox.evaluation.oracle import oracle_study
    from tightbox.progress import progress_bar

    with progress_bar("replacing outputs by the truth") as progress:
        return oracle_study(model, data, on_data.assigned_candidates(args, model, data, progress))


def _of_results(truth: Path, results: Path) -> OracleStudy:
    from tightbox.evaluation.oracle import results_study
    from tightbox.evaluation.results import read_json

    return results_study(read_json(truth), read_json(results))


def _table(study: OracleStudy) -> str:
    width = max(len(rung.name) for rung in study.rungs)
    both = any(rung.with_estimate for rung in study.rungs)
    heading = f"{'':{width}}   class score alone" + ("     with estimate" if both else "")
    lines = [heading, f"{'':{width}}" + "     AP  AP50  AP75" * (1 + both)]
    for rung in study.rungs:
        columns = [rung.alone, rung.with_estimate][: 1 + both]
        lines.append(f"{rung.name:{width}} " + " ".join(_figures(metrics) for metrics in columns))
    if study.lost_to_ranking is not None:
        lines.append(f"\nAP lost to ranking: {100 * study.lost_to_ranking:.1f}")
    for name, value in study.correlations.items():
        if value.pearson is not None and value.spearman is not None:
            figures = f"Pearson {value.pearson:.3f}, Spearman {value.spearman:.3f}"
            lines.append(f"{name} and true IoU, over {value.pairs} boxes with IoU > 0.5: {figures}")
    return "\n".join(lines)


def _figures(metrics: CocoMetrics | None) -> str:
    values = (None,) * 3 if metrics is None else (metrics.ap, metrics.ap50, metrics.ap75)
    return " ".join("    -" if value is None else f"{100 * value:5.1f}" for value in values)
