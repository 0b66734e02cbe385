"""The table of published checkpoints against what is known of them."""

from __future__ import annotations

import re
from pathlib import Path

from tightbox.models.mmdet.variants import _TITLES

DOCS = Path(__file__).parents[2] / "docs" / "published_checkpoints.md"


def rows() -> list[list[str]]:
    lines = [line for line in DOCS.read_text(encoding="utf-8").splitlines() if "| `tightbox import" in line]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]


def test_all_thirteen_are_there() -> None:
    assert len(rows()) == 13
    assert {(row[0], row[1]) for row in rows()} == {
        (title, deformable) for title in _TITLES.values() if title != "ResNet-18" for deformable in ("", "yes")
    }
    assert [(row[3], row[4]) for row in rows() if row[0] == "ResNet-50"] == [
        ("41.6", "41.6"),
        ("44.5", "44.8"),
        ("47.8", "48.0"),
    ]
    assert max(float(row[4]) for row in rows()) == 51.3


def test_file_names_fit_their_rows() -> None:
    marks = {
        "ResNet-50": "_r50_",
        "ResNet-101": "_r101_",
        "ResNeXt-101 32x4d": "_x101_32x4d_",
        "ResNeXt-101 64x4d": "_x101_64x4d_",
    }
    named = 0
    for backbone, deformable, schedule, _, _, line in rows():
        match = re.fullmatch(r"`tightbox import (\S+)\.pth --out (\S+)`( ²)?", line)
        assert match is not None
        file, out = match.group(1, 2)
        assert out.startswith("vfnet_")
        if file == "FILE":
            assert line.endswith("²")
            continue
        named += 1
        assert marks[backbone] in file
        assert ("_mdconv_c3-c5_" in file) == (deformable == "yes")
        assert ("_mstrain_2x_" in file) == (schedule == "2x, multi-scale")
    assert named == 8
    assert len({row[5] for row in rows()}) == 13
