"""Pascal VOC 07+12 as it is downloaded trains by one command."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from tests.helpers.commands import TINY, forget_settings
from tests.helpers.data import VOC_SIZE, noise_image, voc_image, voc_object
from tightbox.cli import main


def devkit(root: Path) -> Path:
    """VOCdevkit with trainval of both years and test of 2007; 2012's test is a list without images, as published."""
    size = VOC_SIZE.replace("40", "64").replace("30", "64")
    images = [("VOC2007", "trainval"), ("VOC2012", "trainval"), ("VOC2012", "trainval"), ("VOC2007", "test")]
    for i, (year, split) in enumerate(images):
        lists = ("train", "trainval") if split == "trainval" else (split,)
        objects = voc_object("dog", (5, 5, 40, 50)) + voc_object("cat", (20, 10, 60, 60), "<difficult>1</difficult>")
        voc_image(root / year, f"00000{i}", objects + voc_object("cat", (8, 8, 30, 30)), lists, size)
        noise_image(root / year / "JPEGImages" / f"00000{i}.jpg", 64, 64, seed=i)
    (root / "VOC2012" / "ImageSets" / "Main" / "test.txt").write_text("2008_000001\n")
    return root


def test_voc_as_downloaded_trains_by_one_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data, out = devkit(tmp_path / "VOCdevkit"), tmp_path / "out"
    tiny = [*TINY, "--iou-aware-retinanet.channels", "32", "--iou-aware-retinanet.tower-depth", "1"]
    tiny += ["--batch-size", "3", "--mosaic", "0"]
    command = ["train", "--data", str(data), "--out", str(out), "--model", "iou_aware_retinanet", *tiny]
    assert main(command) == 0
    shown = " ".join(capsys.readouterr().out.split())
    assert "3 training images, classes cat, dog" in shown
    assert "1 validation images" in shown  # 2007's test
    card = json.loads((out / "last" / "card.json").read_text())
    assert (card["model"], card["class_names"]) == ("iou_aware_retinanet", ["cat", "dog"])
    assert card["options"]["iou_head"] is True
    epoch = json.loads((out / "metrics.jsonl").read_text().splitlines()[-1])
    assert np.isfinite([value for value in epoch.values() if isinstance(value, float)]).all()
    forget_settings()
    assert main(["eval", str(out / "last"), "--data", str(data), "--split", "test", "--rank", "power"]) == 0
