"""The plots of the page: SVG whose text is text and whose colours are the style sheet's."""

from __future__ import annotations

import io
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Self

from tightbox.diagnosis.kinds import KINDS
from tightbox.diagnosis.ladder_plot import draw_variants, label_bar, ladder_height
from tightbox.diagnosis.numbers import Diagnosis
from tightbox.diagnosis.sentences import STAGES
from tightbox.errors import missing_extra
from tightbox.evaluation.average_precision import CURVE, AveragePrecision
from tightbox.evaluation.ladder import TRUE_BOX, TRUE_IOU_SCORE
from tightbox.evaluation.reliability import Reliability

if TYPE_CHECKING:
    from matplotlib.axes import Axes

# Colours that matplotlib is told, some of them by plots.mplstyle, and what the style sheet makes of them.
INK, MUTED, GRID, ONE, TWO, THREE = "#010203", "#010204", "#010205", "#010206", "#010207", "#010208"
VARIABLES = {
    INK: "var(--ink)",
    MUTED: "var(--muted)",
    GRID: "var(--line)",
    ONE: "var(--one)",
    TWO: "var(--two)",
    THREE: "var(--three)",
}
STYLE = Path(__file__).with_name("plots.mplstyle")
WIDTH, HEIGHT = 4.6, 3.1  # inches


@dataclass(frozen=True)
class Plot:
    """A drawing as SVG, to be put into HTML, with its name and caption."""

    name: str
    caption: str
    svg: str

    @classmethod
    def draw(cls, name: str, caption: str, fill: Callable[[Axes], None], height: float = HEIGHT) -> Self:
        """What `fill` puts on axes, `height` inches high.

        Raises:
            UserError: if the extra `viz` is missing.
        """
        try:
            import matplotlib
            from matplotlib.figure import Figure
        except ImportError as error:
            raise missing_extra("matplotlib", "viz") from error
        file = io.StringIO()
        with matplotlib.rc_context({"svg.hashsalt": name}, STYLE):
            figure = Figure(figsize=(WIDTH, height), layout="constrained")
            fill(figure.add_subplot())
            figure.savefig(file, format="svg", transparent=True, metadata={"Date": None})
        return cls(name, caption, _for_page(file.getvalue(), name, caption))


def draw_plots(diagnosis: Diagnosis) -> dict[str, Plot]:
    """Every plot by its name; plots that would show nothing are left out.

    Raises:
        UserError: if the extra `viz` is missing.
    """
    plots = [
        Plot.draw("lost", "AP that each stage alone costs; they do not add up", partial(_lost, diagnosis), 2.2),
        Plot.draw(
            "ladder",
            "AP with one output replaced by the truth",
            partial(draw_variants, variants=diagnosis.ladder, colours=(ONE, TWO)),
            ladder_height(diagnosis.ladder),
        ),
        Plot.draw("curve", "AP by the IoU that a right box has at least", partial(_curve, diagnosis)),
        Plot.draw("tightness", "Objects by the IoU of their box", partial(_tightness, diagnosis)),
        Plot.draw("lrp", "Parts of optimal LRP, less is better", partial(_lrp, diagnosis), 2.9),
        Plot.draw("kinds", "AP50 that fixing each kind of mistake alone would give", partial(_kinds, diagnosis), 2.9),
    ]
    for key, name, target, reliability in (
        ("score", "score", "IoU if right, 0 if not", diagnosis.score),
        ("iou", "predicted IoU", "true IoU", diagnosis.predicted_iou),
    ):
        if reliability is not None and reliability.points:
            table = partial(_reliability, table=reliability.table, name=name, target=target)
            points = partial(_points, points=reliability.points, name=name)
            plots += [
                Plot.draw(f"{key}-table", f"Reliability of the {name}: predicted and actual", table),
                Plot.draw(f"{key}-points", f"Boxes by {name} and true IoU, a sample", points),
            ]
    return {plot.name: plot for plot in plots}


def _lost(diagnosis: Diagnosis, axes: Axes) -> None:
    stages = {name: getattr(diagnosis.lost, name) for name in STAGES}
    _bars(axes, {name: aps.ap for name, aps in stages.items() if aps is not None and aps.ap is not None})
    axes.set_xlabel("points of AP")


def _kinds(diagnosis: Diagnosis, axes: Axes) -> None:
    gain, count = diagnosis.errors.gain, diagnosis.errors.count
    rows = {f"{KINDS[f.name].column} ({getattr(count, f.name):,})": getattr(gain, f.name) for f in fields(gain)}
    _bars(axes, {name: value for name, value in rows.items() if value is not None})
    axes.set_xlabel("points of AP50")


def _lrp(diagnosis: Diagnosis, axes: Axes) -> None:
    names = {
        "localisation": "1 − IoU of matches",
        "false_positives": "false positives",
        "false_negatives": "missed objects",
    }
    rows = {name: getattr(diagnosis.lrp, field) for field, name in names.items()}
    _bars(axes, {name: value for name, value in rows.items() if value is not None})
    axes.set_xlabel("per cent")


def _bars(axes: Axes, rows: dict[str, float]) -> None:
    values = [100 * value for value in rows.values()]
    axes.barh(range(len(rows)), values, 0.62, color=ONE)
    for place, value in enumerate(values):
        label_bar(axes, max(value, 0), place, f"{value:.1f}")
    axes.set_yticks(range(len(rows)), list(rows), color=INK)
    axes.tick_params(axis="y", length=0)
    axes.invert_yaxis()
    axes.set_xlim(min(0.0, *values, 0.0), 1.15 * max(values, default=0) + 0.5)


def _curve(diagnosis: Diagnosis, axes: Axes) -> None:
    variants = {variant.name: variant.alone for variant in diagnosis.ladder}
    lines: list[tuple[str, str, str, AveragePrecision | None]] = [
        ("as it is", ONE, "-", diagnosis.aps),
        ("ranked by true IoU", TWO, "--", variants.get(TRUE_IOU_SCORE)),
        ("with ground-truth boxes", THREE, ":", variants.get(TRUE_BOX)),
    ]
    for label, colour, style, aps in lines:
        there = [] if aps is None else [(i / 100, 100 * v) for i in CURVE if (v := aps.by_iou[str(i)]) is not None]
        if there:
            axes.plot(*zip(*there, strict=True), style, color=colour, label=label, marker="o", ms=3, lw=1.6)
    axes.set_ylim(0, 103)
    axes.set_xticks([iou / 100 for iou in CURVE], [f".{iou}" for iou in CURVE])
    axes.set_xlabel("IoU")
    axes.set_ylabel("AP")
    axes.grid(axis="y")
    if axes.lines:
        axes.legend(loc="lower left", fontsize=9)


def _tightness(diagnosis: Diagnosis, axes: Axes) -> None:
    edges = [i / 20 for i in range(21)]
    axes.stairs(diagnosis.tightness.kept, edges, fill=True, color=ONE, alpha=0.55, label="kept box")
    axes.stairs(diagnosis.tightness.best, edges, color=TWO, lw=1.6, label="best box that was there")
    axes.set_xlim(0, 1)
    axes.set_xlabel("IoU with the object")
    axes.set_ylabel("objects")
    axes.grid(axis="y")
    axes.legend(loc="best", fontsize=9)  # wherever no bar is tall: many missed objects make the first one so


def _reliability(axes: Axes, *, table: Reliability, name: str, target: str) -> None:
    """Bars of what is actually there for each prediction, and below them how many boxes have it."""
    middle = [(low + high) / 2 for low, high in pairwise(table.edges)]
    width = 0.9 * (table.edges[1] - table.edges[0])
    axes.bar(middle, [value or 0 for value in table.actual], width, color=ONE, alpha=0.7, label="actual")
    axes.plot([0, 1], [0, 1], color=MUTED, lw=1, ls="--", label="perfect")
    axes.bar(middle, [-0.16 * n / max(table.counts) for n in table.counts], width, color=MUTED, alpha=0.6)
    axes.axhline(0, color=MUTED, lw=0.6)
    fewer_left = sum(table.counts[: len(middle) // 2]) < sum(table.counts[-(len(middle) // 2) :])
    side = (0.01, "left") if fewer_left else (0.99, "right")  # where the bars are short
    axes.text(side[0], -0.13, "how many boxes", ha=side[1], color=MUTED, size=9)
    axes.set_xlim(0, 1)
    axes.set_ylim(-0.18, 1.02)
    axes.set_yticks([0, 0.25, 0.5, 0.75, 1])
    axes.set_xlabel(name)
    axes.set_ylabel(target)
    axes.legend(loc="upper left", fontsize=9)


def _points(axes: Axes, *, points: Sequence[tuple[float, float]], name: str) -> None:
    axes.plot(*zip(*points, strict=True), "o", color=ONE, ms=2.8, mew=0, alpha=0.4)
    axes.plot([0, 1], [0, 1], color=MUTED, lw=1, ls="--")
    axes.set_xlim(0, 1.01)
    axes.set_ylim(-0.01, 1.01)
    axes.set_xlabel(name)
    axes.set_ylabel("true IoU")


def _for_page(svg: str, name: str, title: str) -> str:
    """The drawing without its prologue, as wide as its column, named, with the style sheet's fonts and colours."""
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r"<metadata>.*?</metadata>", "", svg, flags=re.DOTALL)
    svg = re.sub(r"font: ([\d.]+)px [^;\"]*", r"font-size: \1px", svg)
    # Names are unique in their drawing, and must be so on the page.
    svg = re.sub(r' (id|xlink:href)="(#?)', rf' \1="\g<2>{name}-', svg).replace("url(#", f"url(#{name}-")
    for colour, variable in VARIABLES.items():
        svg = svg.replace(colour, variable)
    head, rest = svg.split(">", 1)
    head = re.sub(r' (width|height|xmlns:xlink|version)="[^"]*"', "", head)
    return (
        f'{head} class="plot" role="img" aria-labelledby="{name}-title"><title id="{name}-title">{title}</title>{rest}'
    )
