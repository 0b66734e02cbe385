"""UnitBox's own data sets through the command line: trained on WIDER FACE, tested on FDDB."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
import torch
from PIL import Image

from tests.helpers.commands import TINY
from tests.helpers.data import WIDER_FACES, fddb, noise_image, wider_face
from tests.helpers.models import tiny_unitbox
from tightbox.cli import main

# The whole image of 60 x 40 is the box of the one ellipse in the first, the second has no face at all.
FOLD = "2002/08/11/big/img_1\n1\n30.0 20.0 0.0 30.0 20.0  1\n2002/08/11/big/img_2\n0\n"


def detector(folder: Path, name: str = "face") -> Path:
    """One that takes every image for one face, whose box it reads as the whole image."""
    model = tiny_unitbox(class_names=[name])
    torch.nn.init.zeros_(model.head.classes.weight)
    assert model.head.classes.bias is not None
    torch.nn.init.constant_(model.head.classes.bias, 2.0)
    assert model.head.distances.bias is not None
    torch.nn.init.constant_(model.head.distances.bias, 100.0)
    return model.save(folder)


def test_curves_of_known_detections(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    checkpoint, data, out = detector(tmp_path / "model"), fddb(tmp_path, FOLD), tmp_path / "out"
    assert main(["fddb", str(checkpoint), "--data", str(data), "--out", str(out)]) == 0
    curves = json.loads((out / "fddb.json").read_text())
    # Both images have the same score: one point, with the face found and one false positive.
    assert curves["thresholds"] == pytest.approx([1 / (1 + math.exp(-2))])
    assert (curves["faces"], curves["false_positives"], curves["discrete"]) == (1, [1], [1])
    # An ellipse has π/4 of its box; as drawn, with half a pixel more all round, up to π 30.5 20.5 / (60 40).
    assert math.pi / 4 < curves["continuous"][0] < math.pi * 30.5 * 20.5 / 2400
    assert Image.open(out / "fddb.png").size[0] > 100
    printed = capsys.readouterr().out
    assert "2 images, 1 faces, 2 detections" in printed
    assert "at    0 false          0.000       0.000" in printed
    assert "at  100 false          1.000       0.8" in printed


@pytest.mark.parametrize(
    ("name", "split", "sentence"),
    [
        ("cat", "test", "detects cat; FDDB needs a detector with the class face"),
        ("face", "fold-07", "has no FDDB split 'fold-07'"),
    ],
)
def test_fddb_refuses(tmp_path: Path, capsys: pytest.CaptureFixture[str], name: str, split: str, sentence: str) -> None:
    checkpoint, out = detector(tmp_path / "model", name), tmp_path / "out"
    given = ["--data", str(fddb(tmp_path, FOLD)), "--split", split, "--out", str(out)]
    assert main(["fddb", str(checkpoint), *given]) == 2
    assert sentence in capsys.readouterr().err
    assert not out.exists()


def test_trained_on_wider_face_it_is_tested_on_fddb(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data, out = wider_face(tmp_path, val=WIDER_FACES), tmp_path / "run"
    for seed, path in enumerate(sorted(tmp_path.rglob("*.jpg"))):
        noise_image(path, 40, 30, seed)
    tiny = [*TINY, "--batch-size", "3", "--mosaic", "0"]
    assert main(["train", "--model", "unitbox", "--data", str(data), "--out", str(out), *tiny]) == 0
    assert "found WIDER FACE" in capsys.readouterr().out
    row = json.loads((out / "metrics.jsonl").read_text())
    assert row.keys() >= {"confidence", "box", "ap"}
    command = ["fddb", str(out / "last"), "--data", str(fddb(tmp_path, FOLD)), "--out", str(tmp_path / "curves")]
    assert main(command) == 0
    assert json.loads((tmp_path / "curves" / "fddb.json").read_text())["faces"] == 1
