from __future__ import annotations

import json
import math
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate import Accelerator
from torch import Tensor

import tightbox
from tests.helpers.models import frozen_norm_vfnet
from tightbox.calibration import Calibration, IouCalibration
from tightbox.data.records import DetectionData
from tightbox.errors import UserError
from tightbox.models import Detector
from tightbox.options import AugmentOptions, TrainOptions
from tightbox.training import fit as fit_module
from tightbox.training.fit import Interrupted, choose_precision, fit, synchronise_batch_norms

NewModel = Callable[[], Detector]
OPTIONS = TrainOptions(epochs=3, batch_size=2, eval_every=3, workers=0, precision="fp32", lr=1e-3, warmup=2)
AUGMENT = AugmentOptions(mosaic=0.5, crop=0.5, vertical_flip=0.5)


def rows(out: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]


def timeless(out: Path) -> list[dict[str, Any]]:
    return [{k: v for k, v in row.items() if k not in ("train_seconds", "images_per_second")} for row in rows(out)]


def stop_after(steps: int) -> Any:
    """Stands in for `interruptible`: Ctrl-C comes during the given step."""
    count = iter(range(10**9))

    @contextmanager
    def interruptible() -> Iterator[Callable[[], bool]]:
        yield lambda: next(count) + 1 >= steps

    return interruptible


def change_losses(
    monkeypatch: Any, model: Detector, call: int, change: Callable[[dict[str, Tensor]], dict[str, Tensor]]
) -> None:
    """Let `change` make something else of the losses of one call, counted from 0."""
    original, calls = model.loss, iter(range(100))

    def loss(*args: Any) -> dict[str, Tensor]:
        losses = original(*args)
        return change(losses) if next(calls) == call else losses

    monkeypatch.setattr(model, "loss", loss)


def assert_same_weights(a: Detector, b: Detector) -> None:
    for name, value in a.state_dict().items():
        assert torch.equal(value, b.state_dict()[name]), name


def test_a_training_leaves_checkpoints_metrics_and_state(
    tmp_path: Path, train: DetectionData, val: DetectionData, new_model: NewModel
) -> None:
    trained = fit(new_model(), train, val, tmp_path, OPTIONS, AUGMENT)
    assert [row["epoch"] for row in rows(tmp_path)] == [1, 2, 3]
    assert set(rows(tmp_path)[-1]) >= {"lr", "box", "initial_box", "class", "images_per_second", "ap", "ap75"}
    assert "ap" not in rows(tmp_path)[0]  # evaluated every third epoch only
    assert {path.name for path in tmp_path.iterdir()} == {"best", "last", "metrics.jsonl", "resume"}
    assert_same_weights(tightbox.load(tmp_path / "last"), trained)
    card = json.loads((tmp_path / "best" / "card.json").read_text())
    assert card["class_names"] == list(train.class_names)
    assert card["metrics"]["epoch"] == 3
    assert set(card["metrics"]["per_class"]) == set(train.class_names)


def test_box_losses_fall(tmp_path: Path, train: DetectionData, new_model: NewModel) -> None:
    # Always the same two images, unchanged: whatever learns at all must learn these.
    two = replace(train, records=train.records[:2])
    options = replace(OPTIONS, epochs=30, lr=3e-3, ema=0)
    fit(new_model(), two, None, tmp_path, options, AugmentOptions(flip=0, scale_min=1, scale_max=1, color=0))
    first, last = rows(tmp_path)[0], rows(tmp_path)[-1]
    assert last["box"] < 0.7 * first["box"]
    assert last["initial_box"] < 0.7 * first["initial_box"]
    # The varifocal loss rises at first, as its targets, the IoUs, do.


@pytest.mark.parametrize(
    ("steps", "accumulate"),
    [
        (1, 1),  # in the first step
        (4, 1),  # in the last step of an epoch
        (7, 1),  # inside the second epoch
        (5, 2),  # in the first of two batches whose gradients are added up: it stops after the second
    ],
)
def test_resuming_is_exact(
    steps: int,
    accumulate: int,
    tmp_path: Path,
    train: DetectionData,
    val: DetectionData,
    new_model: NewModel,
    monkeypatch: Any,
) -> None:
    options = replace(OPTIONS, accumulate=accumulate, eval_every=1)
    whole = fit(new_model(), train, val, tmp_path / "whole", options, AUGMENT)
    with monkeypatch.context() as patch:
        patch.setattr(fit_module, "interruptible", stop_after(steps))
        with pytest.raises(Interrupted, match="--resume"):
            fit(new_model(), train, val, tmp_path / "parts", options, AUGMENT)
    torch.manual_seed(99)  # whatever happened in between
    resumed = fit(
        frozen_norm_vfnet(train.class_names, seed=5), train, val, tmp_path / "parts", options, AUGMENT, resume=True
    )
    assert_same_weights(resumed, whole)
    assert timeless(tmp_path / "parts")[1:] == timeless(tmp_path / "whole")[1:]


def test_ctrl_c_in_the_last_batch_ends_the_training_as_it_would_have(
    tmp_path: Path, train: DetectionData, val: DetectionData, new_model: NewModel, monkeypatch: Any
) -> None:
    monkeypatch.setattr(fit_module, "interruptible", stop_after(4))  # of four steps
    fit(new_model(), train, val, tmp_path, replace(OPTIONS, epochs=1), AUGMENT)
    assert "ap" in rows(tmp_path)[-1]
    assert (tmp_path / "best").is_dir()
    assert (tmp_path / "last").is_dir()


def test_resuming_with_nothing_there(tmp_path: Path, train: DetectionData, new_model: NewModel) -> None:
    with pytest.raises(UserError, match="nothing to resume"):
        fit(new_model(), train, None, tmp_path, OPTIONS, AUGMENT, resume=True)


def _cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-100])


def _zero(path: Path) -> None:
    path.write_bytes(bytes(path.stat().st_size))


def _cut_unlisted(path: Path) -> None:
    """As in a state from before its files were listed."""
    (path.parent / "contents.json").unlink()
    path.write_bytes(path.read_bytes()[:1000])


def snapshot(folder: Path) -> dict[Path, bytes]:
    return {path.relative_to(folder): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_a_state_that_cannot_be_resumed_is_one_sentence_and_stays(
    tmp_path: Path, train: DetectionData, new_model: NewModel
) -> None:
    fit(new_model(), train, None, tmp_path / "run", replace(OPTIONS, epochs=2), AUGMENT)
    more = replace(OPTIONS, epochs=3)
    other = replace(train, class_names=("other", *train.class_names[1:]))
    anew = "start anew in another --out, from the run's weights with --init"
    cases: list[tuple[str, Callable[[Path], object], DetectionData, TrainOptions, str]] = [
        ("optimizer.bin", _cut, train, more, f"optimizer.bin is damaged; {anew}"),
        ("model.safetensors", _cut, train, more, f"model.safetensors is damaged; {anew}"),
        ("random_states_0.pkl", _zero, train, more, f"random_states_0.pkl is damaged; {anew}"),
        ("random_states_0.pkl", Path.unlink, train, more, f"random_states_0.pkl is missing; {anew}"),
        ("contents.json", _cut, train, more, "contents.json is damaged"),
        ("optimizer.bin", _cut_unlisted, train, more, "the state in .* cannot be loaded"),
        ("model.safetensors", _cut_unlisted, train, more, "the state in .* cannot be loaded"),
        (
            "model.safetensors",
            Path.exists,
            replace(train, records=train.records[1:]),
            more,
            "from 8 images, but .* 7;",
        ),
        ("model.safetensors", Path.exists, other, more, "learns the classes .*, but .* has other"),
        (
            "model.safetensors",
            Path.exists,
            train,
            replace(OPTIONS, epochs=1),
            "2 epochs .* done already.* larger number",
        ),
    ]
    for i, (name, damage, data, options, sentence) in enumerate(cases):
        out = tmp_path / str(i)
        shutil.copytree(tmp_path / "run", out)
        damage(out / "resume" / name)
        before = snapshot(out)
        with pytest.raises(UserError, match=sentence) as caught:
            fit(new_model(), data, None, out, options, AUGMENT, resume=True, ready=pytest.fail)
        assert "\n" not in str(caught.value)
        assert snapshot(out) == before


def test_resuming_a_finished_run_says_so(
    tmp_path: Path, train: DetectionData, new_model: NewModel, capsys: pytest.CaptureFixture[str]
) -> None:
    options = replace(OPTIONS, epochs=1)
    trained = fit(new_model(), train, None, tmp_path, options, AUGMENT)
    capsys.readouterr()
    resumed = fit(frozen_norm_vfnet(train.class_names, seed=5), train, None, tmp_path, options, AUGMENT, resume=True)
    assert_same_weights(resumed, trained)
    assert "are done already; to train on, give --epochs a larger number" in capsys.readouterr().out


def test_a_state_is_found_after_dying_between_two_renames(
    tmp_path: Path, train: DetectionData, new_model: NewModel
) -> None:
    fit(new_model(), train, None, tmp_path, replace(OPTIONS, epochs=1), AUGMENT)
    (tmp_path / "resume").rename(tmp_path / "resume.old")
    fit(new_model(), train, None, tmp_path, replace(OPTIONS, epochs=2), AUGMENT, resume=True)
    assert [row["epoch"] for row in rows(tmp_path)] == [1, 2]


def test_same_seed_same_weights_whatever_the_workers(tmp_path: Path, train: DetectionData, new_model: NewModel) -> None:
    options = replace(OPTIONS, epochs=1)
    alone = fit(new_model(), train, None, tmp_path / "a", options, AUGMENT)
    helped = fit(new_model(), train, None, tmp_path / "b", replace(options, workers=2), AUGMENT)
    other = fit(new_model(), train, None, tmp_path / "c", replace(options, seed=1), AUGMENT)
    assert_same_weights(alone, helped)
    with pytest.raises(AssertionError):
        assert_same_weights(alone, other)


def test_a_loss_that_is_not_finite_stops_with_a_sentence(
    tmp_path: Path, train: DetectionData, new_model: NewModel, monkeypatch: Any
) -> None:
    model = new_model()
    change_losses(monkeypatch, model, 5, lambda losses: losses | {"box": losses["box"] * math.nan})
    with pytest.raises(UserError, match=r"epoch 2, batch 2 \(box nan, .*--lr.*checkpoints are intact"):
        fit(model, train, None, tmp_path, OPTIONS, AUGMENT)
    assert tightbox.load(tmp_path / "last").class_names == train.class_names


def test_weights_that_the_last_batch_ruins_are_not_saved(
    tmp_path: Path, train: DetectionData, new_model: NewModel, monkeypatch: Any
) -> None:
    """A finite loss may have gradients that are none; no later loss shows it at the end of an epoch."""
    model = new_model()

    def ruined(losses: dict[str, Tensor]) -> dict[str, Tensor]:
        zero = model.backbone.mean.new_zeros(1, requires_grad=True) * next(model.parameters()).sum()
        return losses | {"box": losses["box"] + (zero * zero).sum().sqrt() * 0}  # the gradient of √ at 0 is infinite

    change_losses(monkeypatch, model, 7, ruined)  # the last of the second epoch
    with pytest.raises(UserError, match=r"weights stopped being finite .* in epoch 2; .*checkpoints are intact"):
        fit(model, train, None, tmp_path, OPTIONS, AUGMENT)
    assert tightbox.load(tmp_path / "last").metrics["epoch"] == 1
    assert [row["epoch"] for row in rows(tmp_path)] == [1]


def test_what_a_model_carried_is_not_of_the_new_weights(
    tmp_path: Path, train: DetectionData, new_model: NewModel
) -> None:
    model = new_model()
    ious = IouCalibration((0.0, 1.0), (0.0, 1.0))
    model.metrics, model.calibration = {"ap": 0.9}, Calibration(ious, ((0.25,) * 51,) * 10, {"weights": "others"})
    fit(model, train, None, tmp_path, replace(OPTIONS, epochs=1), AUGMENT)
    best = tightbox.load(tmp_path / "best")
    assert best.calibration is None
    assert set(best.metrics) == {"epoch", "train_seconds"}


def test_the_last_checkpoint_has_no_figures_of_an_earlier_one(
    tmp_path: Path, train: DetectionData, val: DetectionData, new_model: NewModel, monkeypatch: Any
) -> None:
    class Stop(Exception):
        """After the third epoch of four, of which the second and the last are evaluated."""

    def stop(_: dict[str, Tensor]) -> dict[str, Tensor]:
        raise Stop

    model = new_model()
    change_losses(monkeypatch, model, 12, stop)
    with pytest.raises(Stop):
        fit(model, train, val, tmp_path, replace(OPTIONS, epochs=4, eval_every=2), AUGMENT)
    assert set(tightbox.load(tmp_path / "last").metrics) == {"epoch", "train_seconds"}
    assert tightbox.load(tmp_path / "last").metrics["epoch"] == 3
    assert tightbox.load(tmp_path / "best").metrics["epoch"] == 2


def test_a_full_disk_keeps_the_earlier_state(
    tmp_path: Path, train: DetectionData, new_model: NewModel, monkeypatch: Any
) -> None:
    fit(new_model(), train, None, tmp_path, replace(OPTIONS, epochs=1), AUGMENT)

    def full(self: Accelerator, folder: str) -> None:
        Path(folder).mkdir()
        raise RuntimeError("PytorchStreamWriter failed writing file: no space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(Accelerator, "save_state", full)
        with pytest.raises(UserError, match=r"cannot write .*no space left.*free some space"):
            fit(new_model(), train, None, tmp_path, replace(OPTIONS, epochs=2), AUGMENT, resume=True)
    assert not (tmp_path / "resume.new").exists()
    fit(new_model(), train, None, tmp_path, replace(OPTIONS, epochs=2), AUGMENT, resume=True)
    assert [row["epoch"] for row in rows(tmp_path)] == [1, 2]


def test_early_stopping(
    tmp_path: Path,
    train: DetectionData,
    val: DetectionData,
    new_model: NewModel,
    capsys: pytest.CaptureFixture[str],
) -> None:
    # A learning rate of next to nothing: no evaluation is better than the first, so two more are waited for.
    options = replace(OPTIONS, epochs=9, eval_every=1, patience=2, lr=1e-12)
    fit(new_model(), train, val, tmp_path, options, AUGMENT)
    assert len(rows(tmp_path)) == 3
    capsys.readouterr()
    fit(new_model(), train, val, tmp_path, options, AUGMENT, resume=True)
    assert "stopped early; to train on, give --patience a larger number" in capsys.readouterr().out
    assert len(rows(tmp_path)) == 3


def test_the_weights_of_every_evaluation_are_kept_on_demand(
    tmp_path: Path, train: DetectionData, val: DetectionData, new_model: NewModel
) -> None:
    options = replace(OPTIONS, epochs=3, eval_every=2, keep_all=True)
    fit(new_model(), train, val, tmp_path, options, AUGMENT)
    assert sorted(path.name for path in tmp_path.glob("epoch-*")) == ["epoch-2", "epoch-3"]
    assert_same_weights(tightbox.load(tmp_path / "epoch-3"), tightbox.load(tmp_path / "last"))
    assert tightbox.load(tmp_path / "epoch-2").metrics["epoch"] == 2


def test_accumulation_changes_the_weights_less_often(tmp_path: Path, train: DetectionData, new_model: NewModel) -> None:
    # 4 batches an epoch, 3 epochs: 12 changes, or 6 with two batches each. After the warm-up of 2 changes the
    # learning rate of a cosine over n changes ends at 0 only if all n were counted.
    fit(new_model(), train, None, tmp_path, replace(OPTIONS, accumulate=2), AUGMENT)
    assert rows(tmp_path)[-1]["lr"] == pytest.approx(0, abs=1e-9)
    # After the first epoch 2 of 6 changes are done: the warm-up is just over, at full rate.
    assert rows(tmp_path)[0]["lr"] == pytest.approx(1e-3)


def test_bf16(tmp_path: Path, train: DetectionData, new_model: NewModel) -> None:
    trained = fit(new_model(), train, None, tmp_path, replace(OPTIONS, precision="bf16", epochs=1), AUGMENT)
    assert {p.dtype for p in trained.parameters()} == {torch.float32}
    assert all(math.isfinite(value) for value in rows(tmp_path)[0].values())


def test_precision_by_hardware(monkeypatch: Any) -> None:
    assert choose_precision("fp32") == "no"
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert choose_precision("fp16") == "fp16"
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(UserError, match="fp16 needs a GPU; use bf16 or fp32"):
        choose_precision("fp16")
    for supported, expected in ((True, "bf16"), (False, "no")):
        monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda supported=supported: supported)
        assert choose_precision("auto") == expected


def test_tensorboard(tmp_path: Path, train: DetectionData, new_model: NewModel) -> None:
    pytest.importorskip("tensorboard", reason="the extra `track` is not installed")
    fit(new_model(), train, None, tmp_path, replace(OPTIONS, epochs=1, tensorboard=True), AUGMENT)
    assert list(tmp_path.rglob("events.out.tfevents.*"))


def test_tensorboard_missing(tmp_path: Path, train: DetectionData, new_model: NewModel, monkeypatch: Any) -> None:
    monkeypatch.setitem(sys.modules, "tensorboard", None)
    with pytest.raises(UserError, match=r"tightbox\[track\]"):
        fit(new_model(), train, None, tmp_path, replace(OPTIONS, tensorboard=True), AUGMENT)


def test_batch_norms_over_all_processes(
    tmp_path: Path, train: DetectionData, new_model: NewModel, monkeypatch: Any
) -> None:
    with pytest.raises(UserError, match="--sync-batchnorm true needs GPUs; on a CPU use --frozen-norm true instead"):
        fit(new_model(), train, None, tmp_path, replace(OPTIONS, sync_batchnorm=True), AUGMENT)
    assert not list(tmp_path.iterdir())
    model, as_before = new_model(), new_model()
    norms = [name for name, m in model.named_modules() if isinstance(m, torch.nn.BatchNorm2d)]
    synchronise_batch_norms(model, torch.device("cuda"))
    assert norms
    assert all(isinstance(model.get_submodule(name), torch.nn.SyncBatchNorm) for name in norms)
    assert_same_weights(model, as_before)
    assert model.state_dict().keys() == as_before.state_dict().keys()


def test_fewer_images_than_a_batch(tmp_path: Path, train: DetectionData, new_model: NewModel) -> None:
    one = replace(train, records=train.records[:1])
    fit(new_model(), one, None, tmp_path, replace(OPTIONS, batch_size=8, epochs=1), AUGMENT)
    assert len(rows(tmp_path)) == 1


def run_processes(count: int, scenes: Path, out: Path, batch_size: int) -> None:
    """`fit` in one or two gloo processes, as `accelerate launch` starts them."""
    program = Path(__file__).with_name("two_processes.py")
    launch = ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={count}"] if count > 1 else []
    command = [sys.executable, *launch, str(program), str(scenes), str(out), str(batch_size)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr[-3000:]


def test_two_processes_end_in_the_weights_of_one(tmp_path: Path, scenes: Path) -> None:
    run_processes(1, scenes, tmp_path / "one", batch_size=4)
    run_processes(2, scenes, tmp_path / "two", batch_size=2)
    one, two = (tightbox.load(tmp_path / name / "last") for name in ("one", "two"))
    start = frozen_norm_vfnet(one.class_names).state_dict()
    moved = 0.0
    for name, value in one.state_dict().items():
        # Sums in another order differ by float32's rounding; the steps themselves are a thousand times as large.
        torch.testing.assert_close(two.state_dict()[name], value, rtol=1e-4, atol=1e-6, msg=name)
        moved = max(moved, (value - start[name]).abs().max().item())
    assert moved > 1e-3
    ours, theirs = rows(tmp_path / "two"), rows(tmp_path / "one")
    assert len(ours) == len(theirs) == 2  # one process writes
    assert ours[-1]["ap"] == pytest.approx(theirs[-1]["ap"], abs=1e-3)
    for two_row, one_row in zip(ours, theirs, strict=True):
        for name in ("box", "initial_box", "class"):
            # The same sums in another order, about 1 in size, are within 1e-5; five decimals are written.
            assert two_row[name] == pytest.approx(one_row[name], abs=2e-5), name

    # Three images over two processes: each is evaluated once, and the figures are the same to the last bit.
    whole = json.loads((tmp_path / "one" / "evaluated-0.json").read_text())
    spread = [json.loads((tmp_path / "two" / f"evaluated-{rank}.json").read_text()) for rank in (0, 1)]
    assert (whole["images"], spread[0]["images"]) == ([3], [2, 1])
    assert len(whole["rows"]) > 3
    assert spread[0] == spread[1] == whole | {"images": [2, 1]}


def test_ctrl_c_saves_and_the_command_resumes(tmp_path: Path, scenes: Path) -> None:
    out = tmp_path / "run"
    command = [sys.executable, "-m", "tightbox", "train", "--data", str(scenes), "--out", str(out)]
    options = ["--backbone", "test_efficientnet", "--pretrained", "false", "--long-side", "64", "--epochs", "400"]
    options += ["--batch-size", "2", "--workers", "1", "--vfnet.channels", "32", "--eval-every", "400"]
    process = subprocess.Popen([*command, *options], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    deadline = time.monotonic() + 120
    while not (out / "last" / "card.json").exists() and time.monotonic() < deadline:
        time.sleep(0.1)
    process.send_signal(signal.SIGINT)
    _, error = process.communicate(timeout=120)
    assert process.returncode == 130
    assert error.strip().splitlines()[-1].startswith("tightbox: stopped in epoch")
    assert "Traceback" not in error
    done = rows(out)[-1]["epoch"]
    resumed = [*command[:4], "--out", str(out), "--resume", "--epochs", str(done + 1)]
    finished = subprocess.run(resumed, capture_output=True, text=True, timeout=120, check=False)
    assert finished.returncode == 0, finished.stderr[-2000:]
    assert [row["epoch"] for row in rows(out)] == list(range(1, done + 2))


def test_the_run_folder_can_be_moved(tmp_path: Path, train: DetectionData, new_model: NewModel) -> None:
    fit(new_model(), train, None, tmp_path / "a", replace(OPTIONS, epochs=1), AUGMENT)
    shutil.move(tmp_path / "a", tmp_path / "b")
    fit(new_model(), train, None, tmp_path / "b", replace(OPTIONS, epochs=2), AUGMENT, resume=True)
    assert len(rows(tmp_path / "b")) == 2
