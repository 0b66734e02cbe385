"""A whole training on a GPU, in bfloat16, and the same one stopped and resumed."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.training.test_fit import stop_after
from tightbox.data.records import DetectionData
from tightbox.models import Detector
from tightbox.options import AugmentOptions, TrainOptions
from tightbox.training import fit as fit_module
from tightbox.training.fit import Interrupted, fit

pytestmark = pytest.mark.gpu
OPTIONS = TrainOptions(epochs=3, batch_size=2, eval_every=3, workers=1, lr=1e-3, warmup=2)
AUGMENT = AugmentOptions()


def rows(out: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]


def test_a_stopped_training_goes_on_where_it_was(
    tmp_path: Path,
    train: DetectionData,
    val: DetectionData,
    new_model: Callable[[], Detector],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    whole = fit(new_model(), train, val, tmp_path / "whole", OPTIONS, AUGMENT)
    assert whole.device.type == "cuda"
    with monkeypatch.context() as patch:
        # Asked after the first of an epoch's four batches: it stops within the second epoch.
        patch.setattr(fit_module, "interruptible", stop_after(2))
        with pytest.raises(Interrupted, match="--resume"):
            fit(new_model(), train, val, tmp_path / "parts", OPTIONS, AUGMENT)
    torch.manual_seed(99)
    fit(new_model(), train, val, tmp_path / "parts", OPTIONS, AUGMENT, resume=True)
    expected, found = rows(tmp_path / "whole"), rows(tmp_path / "parts")
    assert [row["lr"] for row in found] == [row["lr"] for row in expected]
    # The sums of gradients are of an order that changes, so the weights are equal but for rounding, which grows.
    for name in ("class", "box", "initial_box"):
        assert [row[name] for row in found] == pytest.approx([row[name] for row in expected], rel=0.02)


@pytest.mark.parametrize("optimizer", ["muon", "sgd"])
def test_every_optimiser_trains(
    optimizer: Any, tmp_path: Path, train: DetectionData, new_model: Callable[[], Detector]
) -> None:
    fit(new_model(), train, None, tmp_path, replace(OPTIONS, optimizer=optimizer, epochs=2), AUGMENT)
    assert len(rows(tmp_path)) == 2
