"""The plots of the page: SVG whose text is text and whose colours are the style sheet's."""

from __future__ import annotations

import io
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Self

from tightbox.diagnosis.ladder_plot import draw_variants, label_bar, ladder_height
from tightbox.diagnosis.numbers import Diagnosis
from tightbox.diagnosis.sentences import KINDS
from tightbox.errors import import_extra
from tightbox.evaluation.coco import CURVE, AveragePrecision
from tightbox.evaluation.ladder import TRUE_BOX, TRUE_IOU_SCORE
from tightbox.evaluation.reliability import Reliability

if TYPE_CHECKING:
    from matplotlib.axes import Axes

# Colours that matplotlib is told, some of them by plots.mplstyle, and the variables of the style sheet they stand for.
INK, MUTED, GRID, ONE, TWO, THREE = "#010203", "#010204", "#010205", "#010206", "#010207", "#010208"
VARIABLES = {INK: "ink", MUTED: "muted", GRID: "line", ONE: "one", TWO: "two", THREE: "three"}
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
        matplotlib, figures = (import_extra(name, "viz") for name in ("matplotlib", "matplotlib.figure"))
        file = io.StringIO()
        with matplotlib.rc_context({"svg.hashsalt": name}, STYLE):
            figure = figures.Figure(figsize=(WIDTH, height), layout="constrained")
            fill(figure.add_subplot())
            figure.savefig(file, format="svg", transparent=True, metadata={"Date": None})
        return cls(name, caption, _for_page(file.getvalue(), name, caption))


def draw_plots(diagnosis: Diagnosis) -> dict[str, Plot]:
    """Every plot by its name; plots that would show nothing are left out.

    Raises:
        UserError: if the extra `viz` is missing.
    """
    lost = {name: aps.ap for name, aps in diagnosis.lost.items() if aps is not None}
    counts, gains = diagnosis.errors.count, diagnosis.errors.gain
    kinds = {f"{kind.column} ({getattr(counts, name):,})": getattr(gains, name) for name, kind in KINDS.items()}
    parts = {
        "1 − IoU of matches": diagnosis.lrp.localisation,
        "false positives": diagnosis.lrp.false_positives,
        "missed objects": diagnosis.lrp.false_negatives,
    }
    bars = (
        ("lost", "AP that each stage alone costs; they do not add up", lost, "points of AP", 2.2),
        ("lrp", "Parts of optimal LRP, less is better", parts, "per cent", 2.9),
        ("kinds", "AP50 that fixing each kind of mistake alone would give", kinds, "points of AP50", 2.9),
    )
    ladder = partial(draw_variants, variants=diagnosis.ladder, colours=(ONE, TWO))
    plots = [
        *(Plot.draw(name, caption, partial(_bars, rows=rows, unit=unit), h) for name, caption, rows, unit, h in bars),
        Plot.draw("ladder", "AP with one output replaced by the truth", ladder, ladder_height(diagnosis.ladder)),
        Plot.draw("curve", "AP by the IoU that a right box has at least", partial(_curve, diagnosis)),
        Plot.draw("tightness", "Objects by the IoU of their box", partial(_tightness, diagnosis)),
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


def _bars(axes: Axes, *, rows: Mapping[str, float | None], unit: str) -> None:
    """A horizontal bar of each row that is known, in per cent, the first at the top."""
    known = {name: 100 * value for name, value in rows.items() if value is not None}
    axes.barh(range(len(known)), list(known.values()), 0.62, color=ONE)
    for place, value in enumerate(known.values()):
        label_bar(axes, max(value, 0), place, f"{value:.1f}")
    axes.set_yticks(range(len(known)), known, color=INK)
    axes.tick_params(axis="y", length=0)
    axes.invert_yaxis()
    axes.set(xlim=(min([0.0, *known.values()]), 1.15 * max(known.values(), default=0) + 0.5), xlabel=unit)


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
    axes.set(ylim=(0, 103), xlabel="IoU", ylabel="AP")
    axes.set_xticks([iou / 100 for iou in CURVE], [f".{iou}" for iou in CURVE])
    axes.grid(axis="y")
    if axes.lines:
        axes.legend(loc="lower left", fontsize=9)


def _tightness(diagnosis: Diagnosis, axes: Axes) -> None:
    edges = [i / 20 for i in range(21)]
    axes.stairs(diagnosis.tightness.kept, edges, fill=True, color=ONE, alpha=0.55, label="kept box")
    axes.stairs(diagnosis.tightness.best, edges, color=TWO, lw=1.6, label="best box that was there")
    axes.set(xlim=(0, 1), xlabel="IoU with the object", ylabel="objects")
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
    axes.set(xlim=(0, 1), ylim=(-0.18, 1.02), yticks=[0, 0.25, 0.5, 0.75, 1], xlabel=name, ylabel=target)
    axes.legend(loc="upper left", fontsize=9)


def _points(axes: Axes, *, points: Sequence[tuple[float, float]], name: str) -> None:
    axes.plot(*zip(*points, strict=True), "o", color=ONE, ms=2.8, mew=0, alpha=0.4)
    axes.plot([0, 1], [0, 1], color=MUTED, lw=1, ls="--")
    axes.set(xlim=(0, 1.01), ylim=(-0.01, 1.01), xlabel=name, ylabel="true IoU")


def _for_page(svg: str, name: str, title: str) -> str:
    """The drawing without its prologue, as wide as its column, named, with the style sheet's fonts and colours."""
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r"<metadata>.*?</metadata>", "", svg, flags=re.DOTALL)
    svg = re.sub(r"font: ([\d.]+)px [^;\"]*", r"font-size: \1px", svg)
    # Names are unique in their drawing, and must be so on the page.
    svg = re.sub(r' (id|xlink:href)="(#?)', rf' \1="\g<2>{name}-', svg).replace("url(#", f"url(#{name}-")
    for colour, variable in VARIABLES.items():
        svg = svg.replace(colour, f"var(--{variable})")
    head, rest = svg.split(">", 1)
    head = re.sub(r' (width|height|xmlns:xlink|version)="[^"]*"', "", head)
    named = f'class="plot" role="img" aria-labelledby="{name}-title"'
    return f'{head} {named}><title id="{name}-title">{title}</title>{rest}'
