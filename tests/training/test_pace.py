"""Trainings whose length is given in minutes, by a clock that the test moves."""

from __future__ import annotations

import io
import json
import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from rich.console import Console

from tests.helpers.models import frozen_norm_vfnet
from tests.training.test_fit import assert_same_weights, rows, stop_after
from tightbox.data.dataset import EpochBatches
from tightbox.data.records import DetectionData
from tightbox.errors import UserError
from tightbox.models import Detector
from tightbox.options import AugmentOptions, TrainOptions
from tightbox.training import fit as fit_module
from tightbox.training.fit import Interrupted, fit
from tightbox.training.optimizer import learning_rate_factor
from tightbox.training.pace import Pace, Position, Readings
from tightbox.training.progress import Progress

NewModel = Callable[[], Detector]
AUGMENT = AugmentOptions()
# 6 seconds, and with the clock below that is 6 steps: one epoch of 4 and half of the next.
MINUTES = TrainOptions(minutes=0.1, batch_size=2, workers=0, precision="fp32", warmup=0.0)


class Ticking:
    """A clock that goes on by a second for every step, and is also looked at when an epoch starts."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now = 1000.0
        add = Readings.add

        def slow(readings: Readings, losses: Any) -> None:
            add(readings, losses)
            self.now += 1

        monkeypatch.setattr(Readings, "add", slow)

    def __call__(self) -> float:
        return self.now


def test_the_schedule_by_the_clock() -> None:
    # 100 s, 10 of them warm-up from a tenth; the cosine's middle is at 10 + 90 / 2 = 55 s. Steps do not matter.
    options = TrainOptions(minutes=100 / 60, warmup=0.1)
    for now, value in {0.0: 0.1, 5.0: 0.55, 10.0: 1.0, 55.0: 0.5, 100.0: 0.0, 103.0: 0.0}.items():
        factor = learning_rate_factor(options, 7, lambda now=now: now)  # type: ignore[misc]
        assert factor(int(now) * 31) == pytest.approx(value, abs=1e-9)


def test_the_drops_by_the_clock() -> None:
    options = TrainOptions(minutes=2, warmup=0, schedule="step")
    for now, value in {0.0: 1, 79.0: 1, 80.5: 0.1, 109.0: 0.1, 110.5: 0.01}.items():  # 2/3 and 11/12 of 120 s
        assert learning_rate_factor(options, 7, lambda now=now: now)(0) == pytest.approx(value)  # type: ignore[misc]


def test_a_pace_by_epochs_and_by_the_clock() -> None:
    position = Position(epoch=1, batch=2, seconds=45.0)
    epochs, minutes = Pace(TrainOptions(epochs=2), 4), Pace(TrainOptions(minutes=0.75), 4)
    assert (epochs.done(position), epochs.total, epochs.over(position)) == (6, 8, False)
    assert (minutes.done(position), minutes.total, minutes.over(position)) == (45, 45, True)


def test_keys_say_how_far_a_timed_training_is() -> None:
    fractions = iter([0.25, 0.5])
    batches = EpochBatches(4, 2, seed=0, fraction=lambda: next(fractions))
    assert [[key[2:] for key in batch] for batch in batches] == [[(0.25,)] * 2, [(0.5,)] * 2]


def test_minutes_end_a_training_within_an_epoch(
    tmp_path: Path, train: DetectionData, val: DetectionData, new_model: NewModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    trained = fit(new_model(), train, val, tmp_path, MINUTES, AUGMENT, clock=Ticking(monkeypatch))
    first, last = rows(tmp_path)
    assert (first["train_seconds"], last["train_seconds"]) == (4, 6)
    assert "ap" not in first  # once, at the end
    assert "ap" in last
    # The last change was made at the rate of 5 of 6 s, and the schedule ended there.
    assert last["lr"] == pytest.approx(1e-3 * 0.5 * (1 + math.cos(math.pi * 5 / 6)))
    assert trained.metrics["epoch"] == 2
    assert json.loads((tmp_path / "best" / "card.json").read_text())["metrics"]["train_seconds"] == 6


def test_resuming_goes_on_with_the_seconds_already_spent(
    tmp_path: Path, train: DetectionData, new_model: NewModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = Ticking(monkeypatch)
    whole = fit(new_model(), train, None, tmp_path / "whole", MINUTES, AUGMENT, clock=clock)
    with monkeypatch.context() as patch:
        patch.setattr(fit_module, "interruptible", stop_after(3))
        with pytest.raises(Interrupted):
            fit(new_model(), train, None, tmp_path / "parts", MINUTES, AUGMENT, clock=clock)
    clock.now += 500  # what happened in between does not count
    other = frozen_norm_vfnet(train.class_names, seed=5)
    resumed = fit(other, train, None, tmp_path / "parts", MINUTES, AUGMENT, resume=True, clock=clock)
    assert_same_weights(resumed, whole)
    assert [row["train_seconds"] for row in rows(tmp_path / "parts")] == [4, 6]
    # More minutes go on within the epoch that was not finished, whose row is written anew.
    more = replace(MINUTES, minutes=0.15)
    fit(new_model(), train, None, tmp_path / "parts", more, AUGMENT, resume=True, clock=clock)
    assert [row["train_seconds"] for row in rows(tmp_path / "parts")] == [4, 8, 9]


def test_resuming_when_the_minutes_are_over_says_so(
    tmp_path: Path, train: DetectionData, new_model: NewModel, monkeypatch: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    clock = Ticking(monkeypatch)
    fit(new_model(), train, None, tmp_path, MINUTES, AUGMENT, clock=clock)
    fit(new_model(), train, None, tmp_path, MINUTES, AUGMENT, resume=True, clock=clock)
    assert "all 0.1 minutes of" in (said := capsys.readouterr().out)
    assert "give --minutes a larger number" in said


def test_minutes_shorter_than_a_step(
    tmp_path: Path, train: DetectionData, new_model: NewModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    options = replace(MINUTES, minutes=0.01)
    with pytest.raises(
        UserError, match=r"--minutes 0\.01 is shorter than the first step, which took 1\.0 s; give more"
    ):
        fit(new_model(), train, None, tmp_path, options, AUGMENT, clock=Ticking(monkeypatch))
    assert not (tmp_path / "last").exists()


@pytest.mark.parametrize(
    ("given", "sentence"),
    [
        ({"minutes": 0.0}, "minutes is 0.0; it must be more than 0"),
        ({"minutes": -1.0}, "minutes is -1.0; it must be more than 0"),
        ({"minutes": math.nan}, "minutes is nan; it must be a finite number"),
        ({"minutes": math.inf}, "minutes is inf; it must be a finite number"),
        ({"minutes": 1.0, "epochs": 100}, "give either --minutes or --epochs, not both"),
        ({"minutes": 1.0, "warmup": 500.0}, "warmup must be below 1"),
    ],
)
def test_lengths_that_make_no_sense(given: dict[str, Any], sentence: str) -> None:
    with pytest.raises(UserError, match=sentence):
        TrainOptions(**given)


def test_a_length_that_is_not_given() -> None:
    assert TrainOptions().epochs == 100
    assert TrainOptions(minutes=1).epochs is None


class OnDevice:
    """What `Readings` asks of an accelerator; "meta" stands for a device that works ahead."""

    def __init__(self, kind: str) -> None:
        self.device = torch.device(kind)


def test_losses_are_read_every_few_steps_where_the_device_works_ahead() -> None:
    position = Position()
    readings = Readings(OnDevice("cpu"), position, clock=lambda: 0.0)
    readings.steps = 3
    read = []
    for step in range(1, 9):
        readings.add({"box": torch.tensor(float(step)), "class": torch.tensor(1.0)})
        if readings.due():
            readings.read()
            read.append((step, dict(position.loss_sums)))
    # The first, then every third: 1; 1+2+3+4; 1+...+7.
    assert read == [(1, {"box": 1, "class": 1}), (4, {"box": 10, "class": 4}), (7, {"box": 28, "class": 7})]
    readings.read()
    assert position.mean_losses() == {"box": 4.5, "class": 1}
    assert Readings(OnDevice("meta"), position).steps == 10


def test_a_reading_names_the_batch_whose_loss_broke() -> None:
    readings = Readings(OnDevice("cpu"), Position(epoch=2, batch=5), clock=lambda: 0.0)
    for value in (1.0, math.inf, 1.0):
        readings.add({"box": torch.tensor(value)})
    with pytest.raises(UserError, match=r"epoch 3, batch 7 \(box inf\)"):
        readings.read()


def test_a_reading_asks_whether_to_stop() -> None:
    readings = Readings(OnDevice("cpu"), Position(), clock=lambda: 0.0)
    assert readings.read(stop=True)
    assert not readings.read()


def test_a_training_in_one_line_without_a_terminal() -> None:
    console = Console(file=io.StringIO(), force_terminal=False)
    with Progress(8, 2, console=console) as bar:
        bar.start_epoch(1, 4)
        assert bar.line() == "epoch 2/2, 50 %: starting"
        bar.step(2)
        bar.show({"box": 0.25}, 5)
        assert bar.line().startswith("epoch 2/2, 62 %: box 0.250  ")
        assert bar.line().endswith(" left")
        with bar.evaluating() as progress:
            progress(3, 0)
            assert bar.line() == "evaluating: 3 done"
    assert console.file.getvalue() == ""  # type: ignore[attr-defined]
