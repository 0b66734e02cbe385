"""The ladder as bars: for the page, and as a PNG for `tightbox oracle`."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from tightbox.errors import import_extra
from tightbox.evaluation.figures import percent
from tightbox.evaluation.ladder import Ladder, OracleVariant
from tightbox.files import atomic_path

if TYPE_CHECKING:
    from matplotlib.axes import Axes

COLOURS = "#2a6fab", "#b3560b"  # those of the page on white


def draw_ladder(ladder: Ladder, path: Path) -> None:
    """AP of every oracle variant as bars, without and with the detector's localisation estimate, as a PNG.

    Raises:
        UserError: if the extra `viz` is missing, or the disk refuses.
    """
    matplotlib, figures = (import_extra(name, "viz") for name in ("matplotlib", "matplotlib.figure"))
    with matplotlib.rc_context({"axes.spines.top": False, "axes.spines.right": False, "legend.frameon": False}):
        figure = figures.Figure(figsize=(6.5, ladder_height(ladder.variants)), layout="constrained")
        draw_variants(figure.add_subplot(), ladder.variants, COLOURS)
    with atomic_path(path) as temporary:
        figure.savefig(temporary, format="png", dpi=150)


def draw_variants(axes: Axes, variants: Sequence[OracleVariant], colours: tuple[str, str]) -> None:
    """One bar for each AP of each variant, in per cent, the first variant at the top.

    Args:
        axes: what to draw on.
        variants: of a ladder.
        colours: of AP by the class score alone, and with the localisation estimate.
    """
    import matplotlib

    columns = [("class score alone", [variant.alone for variant in variants])]
    if _both(variants):
        columns.append(("with the localisation estimate", [variant.with_estimate for variant in variants]))
    thickness = 0.72 / len(columns)
    for number, ((label, values), colour) in enumerate(zip(columns, colours, strict=False)):
        top = -0.36 + (number + 0.5) * thickness
        bars = [(top + row, ap.ap) for row, ap in enumerate(values) if ap is not None and ap.ap is not None]
        axes.barh([y for y, _ in bars], [100 * ap for _, ap in bars], 0.9 * thickness, color=colour, label=label)
        for y, ap in bars:
            label_bar(axes, 100 * ap, y, percent(ap, width=0))
    names = [variant.name.replace(" := ", "\n:= ") for variant in variants]
    axes.set_yticks(range(len(variants)), names, color=matplotlib.rcParams["text.color"], size=9)
    axes.tick_params(axis="y", length=0)
    # There is room for the figure beside a bar of 100.
    axes.set(xlim=(0, 112), xticks=range(0, 101, 25), ylim=(len(variants) - 0.5, -0.5), xlabel="AP")
    if _both(variants):
        axes.figure.legend(loc="outside upper right", ncols=2, fontsize=9)


def ladder_height(variants: Sequence[OracleVariant]) -> float:
    """Inches that a plot of these variants needs, so that no two labels touch."""
    return 0.9 + (0.46 if _both(variants) else 0.38) * len(variants)


def label_bar(axes: Axes, x: float, y: float, text: str) -> None:
    """A figure beside the end of a horizontal bar."""
    axes.annotate(text, (x, y), (4, 0), textcoords="offset points", va="center", size=9)


def _both(variants: Sequence[OracleVariant]) -> bool:
    return any(variant.with_estimate for variant in variants)
