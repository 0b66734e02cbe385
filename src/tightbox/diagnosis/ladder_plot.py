"""The oracle's ladder as a plot."""

from __future__ import annotations

from pathlib import Path

from tightbox.errors import missing_extra
from tightbox.evaluation.ladder import Ladder
from tightbox.files import atomic_path


def draw_ladder(ladder: Ladder, path: Path) -> None:
    """AP of every oracle variant as bars, without and with the detector's localisation estimate, as a PNG.

    Raises:
        UserError: if the extra `viz` is missing, or the disk refuses.
    """
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise missing_extra("matplotlib", "viz") from error
    columns = {
        "class score alone, greedy NMS": [variant.alone for variant in ladder.variants],
        "with the localisation estimate": [variant.with_estimate for variant in ladder.variants],
    }
    columns = {label: values for label, values in columns.items() if any(values)}
    figure = Figure(figsize=(9, 1.2 + 0.55 * len(ladder.variants)), layout="constrained")
    axes = figure.add_subplot()
    thickness = 0.8 / len(columns)
    for number, (label, values) in enumerate(columns.items()):
        axes.barh(0, 0, color=f"C{number}", label=label)  # for the legend, even if there is no AP
        for place, metrics in enumerate(values):
            if metrics is None or metrics.ap is None:
                continue
            y = place - 0.4 + (number + 0.5) * thickness
            axes.barh(y, metrics.ap, thickness, color=f"C{number}")
            axes.text(metrics.ap + 0.005, y, f"{100 * metrics.ap:.1f}", va="center", fontsize=9)
    axes.set_yticks(range(len(ladder.variants)), [variant.name for variant in ladder.variants])
    axes.invert_yaxis()
    axes.set_xlim(0, 1.05)
    axes.set_xlabel("COCO AP")
    axes.spines[["top", "right"]].set_visible(False)
    if len(columns) > 1:
        axes.legend(loc="lower left", bbox_to_anchor=(0, 1), ncols=2, frameon=False)
    with atomic_path(path) as temporary:
        figure.savefig(temporary, format="png", dpi=130)
