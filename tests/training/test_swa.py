from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.optim.swa_utils import AveragedModel

import tightbox
from tests.helpers.models import frozen_norm_vfnet
from tests.training.test_fit import AUGMENT, OPTIONS, assert_same_weights, rows, stop_after, timeless
from tightbox.data.records import DetectionData
from tightbox.data.transforms import TrainTransform
from tightbox.errors import UserError
from tightbox.models import Detector
from tightbox.options import TrainOptions
from tightbox.training import fit as fit_module
from tightbox.training.fit import Interrupted, fit
from tightbox.training.optimizer import learning_rate_factor

NewModel = Callable[[], Detector]
SWA = replace(OPTIONS, epochs=1, swa_epochs=2, eval_every=1)  # epochs of four steps


def test_the_rate_falls_in_every_cycle_by_hand() -> None:
    options = TrainOptions(epochs=2, swa_epochs=3, schedule="step", warmup=0, first_drop=0.5, second_drop=0.9)
    factor = learning_rate_factor(options, steps_per_epoch=10)
    assert [factor(step) for step in (9, 10, 19)] == pytest.approx([1, 0.1, 0.1])
    # From 1 to 0.01 by half a cosine over ten steps: 0.01 + 0.99 (1 + cos(π / 2)) / 2 in the middle.
    for cycle in (20, 30, 40):
        assert factor(cycle) == pytest.approx(1)
        assert factor(cycle + 5) == pytest.approx(0.505)
    assert factor(49) == pytest.approx(0.01 + 0.99 * (1 - 0.9510565) / 2)  # cos(0.9 π)
    assert learning_rate_factor(TrainOptions(epochs=0, swa_epochs=1), 10)(0) == pytest.approx(1)


def test_the_mean_of_the_weights_at_the_ends_of_the_cycles_is_saved(
    tmp_path: Path, train: DetectionData, val: DetectionData, new_model: NewModel, monkeypatch: Any
) -> None:
    ends: list[dict[str, torch.Tensor]] = []
    update = AveragedModel.update_parameters

    def recording(self: Any, model: Any) -> None:
        if type(self) is AveragedModel:  # and not the moving average, which is one of these
            ends.append({name: value.clone() for name, value in model.state_dict().items()})
        update(self, model)

    monkeypatch.setattr(AveragedModel, "update_parameters", recording)
    trained = fit(new_model(), train, val, tmp_path, SWA, AUGMENT)
    assert len(ends) == 2
    saved = tightbox.load(tmp_path / "last").state_dict()
    for name, value in trained.state_dict().items():
        assert saved[name].equal(value)
        if value.is_floating_point():
            torch.testing.assert_close(value, (ends[0][name] + ends[1][name]) / 2)
    assert [row["epoch"] for row in rows(tmp_path)] == [1, 2, 3]
    best = max(rows(tmp_path), key=lambda row: row["ap"])  # the first of equal ones
    assert json.loads((tmp_path / "best" / "card.json").read_text())["metrics"]["epoch"] == best["epoch"]


@pytest.mark.parametrize("steps", [2, 5, 8, 11])  # before, in the first cycle, at its end, in the second
def test_resuming_is_exact(
    steps: int, tmp_path: Path, train: DetectionData, val: DetectionData, new_model: NewModel, monkeypatch: Any
) -> None:
    whole = fit(new_model(), train, val, tmp_path / "whole", SWA, AUGMENT)
    with monkeypatch.context() as patch:
        patch.setattr(fit_module, "interruptible", stop_after(steps))
        with pytest.raises(Interrupted):
            fit(new_model(), train, val, tmp_path / "parts", SWA, AUGMENT)
    other = frozen_norm_vfnet(train.class_names, seed=5)
    assert_same_weights(fit(other, train, val, tmp_path / "parts", SWA, AUGMENT, resume=True), whole)
    assert timeless(tmp_path / "parts") == timeless(tmp_path / "whole")


def test_more_epochs_before_the_averaging_start_it_anew(
    tmp_path: Path, train: DetectionData, new_model: NewModel
) -> None:
    more = replace(SWA, epochs=4)
    fit(new_model(), train, None, tmp_path, SWA, AUGMENT)  # three epochs, two of them averaged
    resumed = fit(new_model(), train, None, tmp_path, more, AUGMENT, resume=True)
    assert [row["epoch"] for row in rows(tmp_path)] == [1, 2, 3, 4, 5, 6]
    assert_same_weights(tightbox.load(tmp_path / "best"), resumed)  # without validation the last is the best


def test_averaging_alone(tmp_path: Path, train: DetectionData, new_model: NewModel) -> None:
    model = new_model()
    before = model.get_parameter("head.box.weight").clone()
    trained = fit(model, train, None, tmp_path, replace(SWA, epochs=0), AUGMENT)
    assert len(rows(tmp_path)) == 2
    assert not trained.get_parameter("head.box.weight").equal(before)


def test_a_finished_averaging_has_nothing_to_do(
    tmp_path: Path, train: DetectionData, new_model: NewModel, capsys: pytest.CaptureFixture[str]
) -> None:
    trained = fit(new_model(), train, None, tmp_path, SWA, AUGMENT)
    assert_same_weights(fit(new_model(), train, None, tmp_path, SWA, AUGMENT, resume=True), trained)
    assert "3 epochs" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"epochs": 0}, "epochs is 0; it must be at least 1, or swa_epochs"),
        ({"epochs": -1}, "epochs is -1; it must be 0 or more"),
        ({"minutes": 1.0, "swa_epochs": 2}, "swa_epochs come after epochs, not after minutes"),
        ({"swa_epochs": -1}, "swa_epochs is -1"),
        ({"first_drop": 1.5}, "first_drop is 1.5"),
    ],
)
def test_options_that_make_no_sense(options: dict[str, Any], sentence: str) -> None:
    with pytest.raises(UserError, match=sentence):
        TrainOptions(**options)


def test_the_cycles_alone_see_the_images_as_the_end_of_a_training_does(
    tmp_path: Path, train: DetectionData, new_model: NewModel, monkeypatch: Any
) -> None:
    """Without mosaics: the fraction of the training that is over is all of it."""
    seen: list[float] = []
    apply = TrainTransform.__call__

    def noting(self: TrainTransform, load: Any, index: int, count: int, progress: float) -> Any:
        seen.append(progress)
        return apply(self, load, index, count, progress)

    monkeypatch.setattr(TrainTransform, "__call__", noting)
    fit(new_model(), train, None, tmp_path, replace(SWA, epochs=0), AUGMENT)
    assert set(seen) == {1.0}
