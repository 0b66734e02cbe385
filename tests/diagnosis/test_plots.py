from __future__ import annotations

from pathlib import Path

import pytest
from matplotlib.axes import Axes
from matplotlib.colors import to_hex
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from PIL import Image

from tightbox.diagnosis.ladder_plot import COLOURS, draw_ladder, draw_variants, ladder_height
from tightbox.evaluation.coco import AveragePrecision
from tightbox.evaluation.ladder import Ladder, OracleVariant


def ap(value: float | None) -> AveragePrecision:
    return AveragePrecision(value, {}, {}, {})


ALONE = (OracleVariant("as predicted", ap(0.4), None), OracleVariant("class score := 1", ap(0.25), None))
BOTH = (OracleVariant("as predicted", ap(0.4), ap(0.42)), OracleVariant("predicted IoU := true IoU", None, ap(0.5)))


def drawn(variants: tuple[OracleVariant, ...]) -> Axes:
    axes = Figure().add_subplot()
    draw_variants(axes, variants, COLOURS)
    return axes


def bars(axes: Axes) -> list[Rectangle]:
    return [patch for patch in axes.patches if isinstance(patch, Rectangle)]


def test_one_bar_for_each_ap() -> None:
    axes = drawn(ALONE)
    assert [bar.get_width() for bar in bars(axes)] == pytest.approx([40, 25])
    assert [text.get_text() for text in axes.texts] == ["40.0", "25.0"]
    assert [label.get_text() for label in axes.get_yticklabels()] == ["as predicted", "class score\n:= 1"]
    assert axes.figure.legends == []  # there is nothing to tell apart


def test_two_columns_where_there_is_an_estimate() -> None:
    axes = drawn(BOTH)
    # The first column: 40; the second: 42 and 50. What a replacement cannot change has no bar.
    assert [bar.get_width() for bar in bars(axes)] == pytest.approx([40, 42, 50])
    assert [to_hex(bar.get_facecolor()) for bar in axes.patches] == [
        COLOURS[0],
        COLOURS[1],
        COLOURS[1],
    ]
    assert [text.get_text() for text in axes.figure.legends[0].get_texts()] == [
        "class score alone",
        "with the localisation estimate",
    ]
    middle = [bar.get_y() + bar.get_height() / 2 for bar in bars(axes)]
    assert middle == pytest.approx([-0.18, 0.18, 1.18])  # above and below each variant's place
    assert axes.get_ylim() == (1.5, -0.5)  # the first at the top


def test_without_objects_there_are_no_bars() -> None:
    assert list(drawn((OracleVariant("as predicted", ap(None), None),)).patches) == []


def test_the_png_is_as_high_as_its_variants_need(tmp_path: Path) -> None:
    for number, variants in enumerate((ALONE, BOTH)):
        draw_ladder(Ladder(variants, {}), tmp_path / f"{number}.png")
        image = Image.open(tmp_path / f"{number}.png")
        assert image.height == pytest.approx(150 * ladder_height(variants), abs=1)
    assert ladder_height(BOTH) > ladder_height(ALONE)
