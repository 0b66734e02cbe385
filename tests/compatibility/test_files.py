"""Checkpoints and results that earlier code wrote (`files/README.md`)."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch

import tightbox
from tests.compatibility.old_models import FILES, MODELS, image, weights
from tightbox.checkpoint import WEIGHTS, read_card
from tightbox.evaluation.coco import evaluate
from tightbox.evaluation.coco_files import from_coco
from tightbox.models import create_model, start_from
from tightbox.reading import read_json


@pytest.fixture(params=list(MODELS))
def checkpoint(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    """The folder as it was written, its weights drawn anew from their names."""
    files = FILES / request.param
    folder: Path = tmp_path / request.param
    folder.mkdir()
    (folder / "card.json").write_bytes((files / "card.json").read_bytes())
    (folder / "results.json").write_bytes((files / "results.json").read_bytes())
    shapes = json.loads((files / "shapes.json").read_text(encoding="utf-8"))
    (folder / WEIGHTS).write_bytes(safetensors.torch.save(weights(shapes)))
    return folder


def test_an_old_checkpoint_finds_what_it_found(checkpoint: Path) -> None:
    model = tightbox.load(checkpoint)
    found = model.predict(image()).to_coco(7, [11, 12])
    expected = json.loads((checkpoint / "results.json").read_text(encoding="utf-8"))
    assert len(found) == len(expected) > 0
    for row, old in zip(found, expected, strict=True):
        assert row.keys() == old.keys()
        assert (row["image_id"], row["category_id"]) == (old["image_id"], old["category_id"])
        # Boxes are of an image 64 pixels wide; the figures were rounded to three decimals.
        assert row["bbox"] == pytest.approx(old["bbox"], abs=2e-3)
        assert row["score"] == pytest.approx(old["score"], abs=1e-5)
        assert row.get("iou") == pytest.approx(old.get("iou"), abs=1e-5)


def test_an_old_card_says_what_it_said(checkpoint: Path) -> None:
    model, card = tightbox.load(checkpoint), read_card(checkpoint)
    options: dict[str, Any] = dict(MODELS[checkpoint.name])
    if "normaliser" in options:  # whose values have other names now
        options["normaliser"] = {"code": "iou_sum", "paper": "num_positives"}[options["normaliser"]]
    if "positive_share" in options:
        options["positive_fraction"] = options.pop("positive_share")
    assert {name: getattr(model.options, name) for name in options} == options
    assert model.class_names == ("cat", "dog")
    assert model.metrics == {"epoch": 3, "ap": 0.25}
    assert (model.calibration is None) == (card["calibration"] is None)
    if model.calibration is not None:
        assert model.calibration.to_json() == card["calibration"]


def test_an_old_checkpoint_is_saved_and_read_again(checkpoint: Path, tmp_path: Path) -> None:
    model = tightbox.load(checkpoint)
    again = tightbox.load(model.save(tmp_path / "again"))
    assert again.options == model.options
    for name, value in model.state_dict().items():
        assert torch.equal(again.state_dict()[name], value), name


def test_a_new_model_starts_from_an_old_checkpoint(checkpoint: Path) -> None:
    old = tightbox.load(checkpoint)
    model = create_model(
        old.name,
        class_names=["cat", "emu"],
        backbone=old.backbone.options,
        **{name: getattr(old.options, name) for name in vars(old.options)},
    )
    assert not start_from(model, checkpoint)  # other classes, so not all of it
    body = {name: value for name, value in model.state_dict().items() if name.startswith("backbone.")}
    assert body
    assert all(torch.equal(value, old.state_dict()[name]) for name, value in body.items())


def test_old_results_are_evaluated(checkpoint: Path) -> None:
    """As the ground truth of themselves, they are perfect, whatever their scores."""
    rows = read_json(checkpoint / "results.json")
    ground_truth = {
        "images": [{"id": 7, "width": 64, "height": 48}],
        "categories": [{"id": 11, "name": "cat"}, {"id": 12, "name": "dog"}],
        "annotations": [{key: row[key] for key in ("image_id", "category_id", "bbox")} for row in rows],
    }
    assert evaluate(*from_coco(ground_truth, rows)).ap == pytest.approx(1.0)
