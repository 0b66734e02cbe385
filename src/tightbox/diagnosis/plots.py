"""The plots of the page: SVG whose text is text and whose colours are the style sheet's."""

from __future__ import annotations

import io
import re
from collections.abc import Callable
from dataclasses import dataclass, fields
from functools import partial
from itertools import pairwise
from typing import TYPE_CHECKING

from tightbox.diagnosis.numbers import Diagnosis, Trust
from tightbox.diagnosis.sentences import STAGES, points
from tightbox.errors import missing_extra
from tightbox.evaluation.average_precision import CURVE, AveragePrecision
from tightbox.evaluation.ladder import TRUE_BOX, TRUE_IOU_SCORE

if TYPE_CHECKING:
    from matplotlib.axes import Axes

# Colours that matplotlib is told, and what the style sheet makes of them.
INK, MUTED, GRID, ONE, TWO, THREE = "#010203", "#010204", "#010205", "#010206", "#010207", "#010208"
VARIABLES = {
    INK: "var(--ink)",
    MUTED: "var(--muted)",
    GRID: "var(--line)",
    ONE: "var(--one)",
    TWO: "var(--two)",
    THREE: "var(--three)",
}
SETTINGS = {
    "svg.fonttype": "none",
    "font.family": "sans-serif",
    "font.size": 10,
    "text.color": INK,
    "axes.edgecolor": MUTED,
    "axes.labelcolor": MUTED,
    "xtick.color": MUTED,
    "ytick.color": MUTED,
    "axes.linewidth": 0.6,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "grid.color": GRID,
    "grid.linewidth": 0.6,
    "axes.axisbelow": True,
    "legend.frameon": False,
    "legend.handlelength": 1.4,
}
KIND_NAMES = {
    "classification": "class",
    "localisation": "location",
    "both": "both",
    "duplicate": "duplicate",
    "background": "background",
    "missed": "missed",
}


HEIGHT = 3.1  # inches; all plots are 4.6 wide


@dataclass(frozen=True)
class Plot:
    """A drawing as SVG, to be put into HTML, and its caption."""

    svg: str
    caption: str


def draw_plots(diagnosis: Diagnosis) -> dict[str, Plot]:
    """Every plot by its name; plots that would show nothing are left out.

    Raises:
        UserError: if the extra `viz` is missing.
    """
    rows = len(diagnosis.ladder)
    both = any(rung.with_estimate for rung in diagnosis.ladder)
    plots = {
        "lost": _plot("lost", "AP that each stage alone costs; they do not add up", _lost, diagnosis, 2.2),
        "ladder": _plot(
            "ladder",
            "AP with one output replaced by the truth",
            _ladder,
            diagnosis,
            0.9 + (0.46 if both else 0.38) * rows,
        ),
        "curve": _plot("curve", "AP by the IoU that a right box has at least", _curve, diagnosis),
        "tightness": _plot("tightness", "Objects by the IoU of their box", _tightness, diagnosis),
        "lrp": _plot("lrp", "Parts of optimal LRP, less is better", _lrp, diagnosis, 2.9),
        "kinds": _plot("kinds", "AP50 that fixing each kind of mistake alone would give", _kinds, diagnosis, 2.9),
    }
    for name, words, trust in (("score", "score", diagnosis.score), ("iou", "predicted IoU", diagnosis.predicted_iou)):
        if trust is None or not trust.points:
            continue
        goal = "IoU if right, 0 if not" if name == "score" else "true IoU"
        table = partial(_reliability, trust=trust, words=words, goal=goal)
        plots[f"{name}-table"] = _plot(f"{name}-table", f"What the {words} says, and what comes true", table, diagnosis)
        sample = partial(_points, trust=trust, words=words)
        plots[f"{name}-points"] = _plot(f"{name}-points", f"Boxes by {words} and true IoU, a sample", sample, diagnosis)
    return plots


def _plot(
    name: str, caption: str, draw: Callable[[Diagnosis, Axes], None], diagnosis: Diagnosis, height: float = HEIGHT
) -> Plot:
    try:
        import matplotlib
        from matplotlib.figure import Figure
    except ImportError as error:
        raise missing_extra("matplotlib", "viz") from error
    file = io.StringIO()
    with matplotlib.rc_context(SETTINGS | {"svg.hashsalt": name}):
        figure = Figure(figsize=(4.6, height), layout="constrained")
        draw(diagnosis, figure.add_subplot())
        figure.savefig(file, format="svg", transparent=True, metadata={"Date": None})
    return Plot(_for_page(file.getvalue(), name, caption), caption)


def _lost(diagnosis: Diagnosis, axes: Axes) -> None:
    stages = {name: getattr(diagnosis.lost, name) for name in STAGES}
    _bars(axes, {name: aps.ap for name, aps in stages.items() if aps is not None and aps.ap is not None})
    axes.set_xlabel("points of AP")


def _kinds(diagnosis: Diagnosis, axes: Axes) -> None:
    gain, count = diagnosis.errors.gain, diagnosis.errors.count
    rows = {f"{KIND_NAMES[f.name]} ({getattr(count, f.name):,})": getattr(gain, f.name) for f in fields(gain)}
    _bars(axes, {name: value for name, value in rows.items() if value is not None})
    axes.set_xlabel("points of AP50")


def _lrp(diagnosis: Diagnosis, axes: Axes) -> None:
    names = {"localisation": "1 − IoU of hits", "false_positives": "false boxes", "false_negatives": "missed objects"}
    rows = {name: getattr(diagnosis.lrp, field) for field, name in names.items()}
    _bars(axes, {name: value for name, value in rows.items() if value is not None})
    axes.set_xlabel("per cent")


def _bars(axes: Axes, rows: dict[str, float]) -> None:
    values = [100 * value for value in rows.values()]
    axes.barh(range(len(rows)), values, 0.62, color=ONE)
    for place, value in enumerate(values):
        _label(axes, max(value, 0), place, f"{value:.1f}")
    axes.set_yticks(range(len(rows)), list(rows), color=INK)
    axes.tick_params(axis="y", length=0)
    axes.invert_yaxis()
    axes.set_xlim(min(0.0, *values, 0.0), 1.15 * max(values, default=0) + 0.5)


def _ladder(diagnosis: Diagnosis, axes: Axes) -> None:
    rungs = diagnosis.ladder
    both = any(rung.with_estimate for rung in rungs)
    columns = [("class score alone" if both else "score", ONE, [rung.alone for rung in rungs])]
    if both:
        columns.append(("with the estimate", TWO, [rung.with_estimate for rung in rungs]))
    thickness = 0.72 / len(columns)
    for number, (label, colour, values) in enumerate(columns):
        top = -0.36 + (number + 0.5) * thickness
        there = [(top + i, aps.ap) for i, aps in enumerate(values) if aps is not None and aps.ap is not None]
        axes.barh([y for y, _ in there], [100 * ap for _, ap in there], 0.9 * thickness, color=colour, label=label)
        for y, ap in there:
            _label(axes, 100 * ap, y, points(ap))
    axes.set_yticks(range(len(rungs)), [rung.name.replace(" := ", "\n:= ") for rung in rungs], color=INK, size=9)
    axes.tick_params(axis="y", length=0)
    axes.invert_yaxis()
    axes.set_xlim(0, 112)
    axes.set_xticks(range(0, 101, 25))
    axes.set_xlabel("AP")
    if both:
        axes.figure.legend(loc="outside upper right", ncols=2, fontsize=9)


def _label(axes: Axes, x: float, y: float, text: str) -> None:
    axes.annotate(text, (x, y), (4, 0), textcoords="offset points", va="center", size=9)


def _curve(diagnosis: Diagnosis, axes: Axes) -> None:
    rungs = {rung.name: rung.alone for rung in diagnosis.ladder}
    lines: list[tuple[str, str, str, AveragePrecision | None]] = [
        ("as it is", ONE, "-", diagnosis.aps),
        ("ranked by true IoU", TWO, "--", rungs.get(TRUE_IOU_SCORE)),
        ("with ground-truth boxes", THREE, ":", rungs.get(TRUE_BOX)),
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
    axes.legend(loc="upper left", fontsize=9)


def _reliability(diagnosis: Diagnosis, axes: Axes, *, trust: Trust, words: str, goal: str) -> None:
    """Bars of what comes true, and below them how many boxes make the claim."""
    table = trust.table
    middle = [(low + high) / 2 for low, high in pairwise(table.edges)]
    width = 0.9 * (table.edges[1] - table.edges[0])
    axes.bar(middle, [value or 0 for value in table.actual], width, color=ONE, alpha=0.7, label="what comes true")
    axes.plot([0, 1], [0, 1], color=MUTED, lw=1, ls="--", label="perfect")
    axes.bar(middle, [-0.16 * n / max(table.counts) for n in table.counts], width, color=MUTED, alpha=0.6)
    axes.axhline(0, color=MUTED, lw=0.6)
    axes.text(1, -0.11, "how many", ha="right", color=MUTED, size=9)
    axes.set_xlim(0, 1)
    axes.set_ylim(-0.18, 1.02)
    axes.set_yticks([0, 0.25, 0.5, 0.75, 1])
    axes.set_xlabel(words)
    axes.set_ylabel(goal)
    axes.legend(loc="upper left", fontsize=9)


def _points(diagnosis: Diagnosis, axes: Axes, *, trust: Trust, words: str) -> None:
    axes.plot(*zip(*trust.points, strict=True), "o", color=ONE, ms=2.8, mew=0, alpha=0.4)
    axes.plot([0, 1], [0, 1], color=MUTED, lw=1, ls="--")
    axes.set_xlim(0, 1.01)
    axes.set_ylim(-0.01, 1.01)
    axes.set_xlabel(words)
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
