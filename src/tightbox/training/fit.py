"""The training loop, top to bottom: accelerate supplies devices, precision, processes and exact resume."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from importlib.util import find_spec
from pathlib import Path
from typing import Any, cast

import torch
from accelerate import Accelerator
from accelerate.utils import set_seed
from torch import Tensor, nn
from torch.optim.lr_scheduler import LambdaLR
from torch.utils.data import DataLoader

from tightbox.data.dataset import DetectionDataset, EpochBatches, collate
from tightbox.data.records import DetectionData
from tightbox.data.transforms import TrainTransform
from tightbox.distributed import mean_over_processes, new_accelerator
from tightbox.errors import UserError, missing_extra
from tightbox.files import atomic_path
from tightbox.inference.batches import Loading
from tightbox.inference.detect import evaluate_model
from tightbox.models import Detector
from tightbox.options import AugmentOptions, TrainOptions
from tightbox.structures import ImageBatch, Targets
from tightbox.training.interrupt import interruptible
from tightbox.training.optimizer import build_optimizer, learning_rate_factor, moving_average
from tightbox.training.progress import Progress
from tightbox.training.state import load_state, save_state

RESUME = "resume"


class _Loss(nn.Module):
    """The model's loss as a forward pass, which is the call that DDP and autocast wrap."""

    def __init__(self, model: Detector) -> None:
        super().__init__()
        self.model = model

    def forward(self, images: ImageBatch, targets: Sequence[Targets]) -> dict[str, Tensor]:
        return self.model.loss(images, targets)


@dataclass
class _Position:
    """How far the training is; saved with its state."""

    epoch: int = 0
    batch: int = 0
    best_ap: float = -1.0
    since_best: int = 0
    seconds: float = 0.0
    loss_sums: dict[str, float] = field(default_factory=dict)  # over the epoch's batches so far

    def mean_losses(self) -> dict[str, float]:
        """Of the epoch so far."""
        return {name: round(total / self.batch, 5) for name, total in self.loss_sums.items()}

    def state_dict(self) -> dict[str, Any]:
        return asdict(self)

    def load_state_dict(self, state: dict[str, Any]) -> None:
        for name, value in state.items():
            setattr(self, name, value)


def fit(
    model: Detector,
    train: DetectionData,
    val: DetectionData | None,
    out: Path,
    options: TrainOptions,
    augment: AugmentOptions,
    *,
    resume: bool = False,
    ready: Callable[[], None] | None = None,
) -> Detector:
    """Train a detector; leaves `last` and `best` checkpoints, `metrics.jsonl` and a resumable state in `out`.

    Args:
        model: trained in place.
        train: training records.
        val: validation records with the same classes; without them nothing is evaluated and `best` is the last.
        out: the run's folder.
        options: schedule and engine.
        augment: random changes to the images.
        resume: continue exactly where the run in `out` stopped.
        ready: called by the main process before anything is written, once a resumed state has proved to be loadable.

    Returns:
        The model whose weights are evaluated and saved: the moving average if there is one.

    Raises:
        UserError: if the loss stops being finite, an image cannot be read, the disk refuses, or there is no state to
            resume, or one that is damaged, of other data, or of more epochs than there are to be.
        Interrupted: after Ctrl-C, once the state is saved.
    """
    accelerator = new_accelerator(
        mixed_precision=choose_precision(options.precision),
        gradient_accumulation_steps=options.accumulate,
        log_with=_tracker() if options.tensorboard else None,
        project_dir=str(out),
    )
    set_seed(options.seed, device_specific=True)  # processes draw different random numbers; the weights they share
    batches = EpochBatches(len(train.records), options.batch_size, options.seed)
    batches_per_epoch = len(batches) // accelerator.num_processes
    if batches_per_epoch == 0:
        raise UserError(f"{batches.count} training images do not give a batch to each process; add some")
    loader = _loader(model, train, batches, options, augment)
    optimizer = build_optimizer(model, options)
    scheduler = LambdaLR(optimizer, learning_rate_factor(options, -(-batches_per_epoch // options.accumulate)))
    loss_of, optimizer, loader = accelerator.prepare(
        _Loss(model), optimizer, loader, device_placement=[True, True, False]
    )
    average = moving_average(model, options.ema) if options.ema > 0 else None
    result = model if average is None else cast(Detector, average.module)
    position = _Position()
    accelerator.register_for_checkpointing(scheduler, position, *([average] if average is not None else []))
    if resume:
        load_state(accelerator, out / RESUME, train)
        done = f"{position.epoch} epochs of {out} are done already; to train on, give --epochs a larger number"
        if position.epoch > options.epochs:
            raise UserError(done)
        if position.epoch == options.epochs:
            accelerator.print(f"all {done}")
    if ready is not None and accelerator.is_main_process:
        ready()
    if options.tensorboard:
        accelerator.init_trackers("tensorboard")
    log = _Log(out / "metrics.jsonl", accelerator, epochs_done=position.epoch)

    with Progress(options.epochs, batches_per_epoch, shown=accelerator.is_main_process) as bar, interruptible() as stop:
        while position.epoch < options.epochs:
            batches.epoch, batches.start = position.epoch, position.batch * accelerator.num_processes
            bar.start_epoch(position.epoch, position.batch)
            loss_of.train()
            clock = time.monotonic()
            for images, targets, _ in loader:
                images = images.to(accelerator.device)
                targets = [target.to(accelerator.device) for target in targets]
                with accelerator.accumulate(loss_of):
                    losses = loss_of(images, targets)
                    total = torch.stack(list(losses.values())).sum()
                    if not torch.isfinite(total):
                        raise UserError(_diverged(position, losses))
                    accelerator.backward(total)
                    if accelerator.sync_gradients and options.clip > 0:
                        accelerator.clip_grad_norm_(loss_of.parameters(), options.clip)
                    optimizer.step()
                    optimizer.zero_grad()
                if accelerator.sync_gradients:
                    scheduler.step()
                    if average is not None:
                        average.update_parameters(model)
                for name, value in losses.items():
                    position.loss_sums[name] = position.loss_sums.get(name, 0.0) + value.item()
                position.batch += 1
                position.seconds, clock = position.seconds + time.monotonic() - clock, time.monotonic()
                bar.step(position.mean_losses(), len(images) * accelerator.num_processes)
                # All processes stop together, and never between batches whose gradients are being added up.
                if accelerator.sync_gradients and mean_over_processes(total.new_tensor(stop())) > 0:
                    save_state(accelerator, out / RESUME, train)
                    raise Interrupted(f"stopped in epoch {position.epoch + 1} and saved; go on with --resume")
            row = {"epoch": position.epoch + 1, "lr": scheduler.get_last_lr()[0], **position.mean_losses()}
            position.epoch, position.batch, position.loss_sums = position.epoch + 1, 0, {}
            row |= {"train_seconds": round(position.seconds, 1), "images_per_second": round(bar.rate(), 2)}
            if val is not None and (position.epoch % options.eval_every == 0 or position.epoch == options.epochs):
                loading = Loading(options.batch_size, options.workers, options.skip_unreadable)
                figures = evaluate_model(result, val, accelerator=accelerator, loading=loading).to_dict()
                result.metrics = {"epoch": position.epoch, "train_seconds": row["train_seconds"], **figures}
                row |= {name: value for name, value in figures.items() if name != "per_class"}
                if options.keep_all:
                    _save(accelerator, result, out / f"epoch-{position.epoch}")
                ap = figures["ap"] or 0.0
                bar.print(
                    f"epoch {position.epoch}: AP {ap:.3f}  AP50 {row['ap50'] or 0:.3f}  AP75 {row['ap75'] or 0:.3f}"
                )
                position.since_best += 1
                if ap > position.best_ap:
                    position.best_ap, position.since_best = ap, 0
                    _save(accelerator, result, out / "best")
            log.write(row)
            _save(accelerator, result, out / "last")
            save_state(accelerator, out / RESUME, train)
            if options.patience and position.since_best >= options.patience:
                bar.print(f"stopped early: no better AP in the last {options.patience} evaluations")
                break
    if val is None:
        _save(accelerator, result, out / "best")
    accelerator.end_training()
    return result


class Interrupted(UserError):
    """The user pressed Ctrl-C, and the training's state is on disk."""


def choose_precision(precision: str) -> str:
    """Accelerate's name for a precision; "auto" is bf16 where the hardware computes in it.

    Raises:
        UserError: if it is fp16 and there is no GPU.
    """
    if precision == "fp16" and not torch.cuda.is_available():
        raise UserError("--precision fp16 needs a GPU; use bf16 or fp32")
    if precision != "auto":
        return {"fp32": "no"}.get(precision, precision)
    if torch.cuda.is_available():
        return "bf16" if torch.cuda.is_bf16_supported(including_emulation=False) else "fp16"
    return "bf16" if torch.cpu._is_avx512_bf16_supported() else "no"


def _loader(
    model: Detector, train: DetectionData, batches: EpochBatches, options: TrainOptions, augment: AugmentOptions
) -> DataLoader[Any]:
    dataset = DetectionDataset(
        train,
        model.preprocess,
        transform=TrainTransform(augment, model.preprocess),
        seed=options.seed,
        epochs=options.epochs,
        cache_mb=options.cache // max(1, options.workers),
        skip_unreadable=options.skip_unreadable,
    )
    return DataLoader(
        dataset,
        batch_sampler=batches,
        collate_fn=collate,
        num_workers=options.workers,
        persistent_workers=options.workers > 0,
        pin_memory=torch.cuda.is_available(),
        # Each iteration draws a number for its workers; from the shared generator, a resumed training would draw more.
        generator=torch.Generator().manual_seed(options.seed),
    )


def _save(accelerator: Accelerator, model: Detector, folder: Path) -> None:
    if accelerator.is_main_process:
        model.save(folder)


def _diverged(position: _Position, losses: dict[str, Tensor]) -> str:
    terms = ", ".join(f"{name} {value.item():.3g}" for name, value in losses.items())
    return (
        f"the loss stopped being a finite number in epoch {position.epoch + 1}, batch {position.batch + 1} ({terms}); "
        "start anew with a lower --lr or a longer --warmup, or --resume with --precision fp32; checkpoints are intact"
    )


def _tracker() -> str:
    if find_spec("tensorboard") is None:
        raise missing_extra("tensorboard", "track")
    return "tensorboard"


class _Log:
    """One row of figures per epoch, as JSON lines and to the tracker."""

    def __init__(self, path: Path, accelerator: Accelerator, *, epochs_done: int) -> None:
        self.path = path
        self.accelerator = accelerator
        if not accelerator.is_main_process:
            return
        rows = path.read_text(encoding="utf-8").splitlines() if path.is_file() else []
        # A resumed training runs the rest again.
        kept = [row for row in rows if _epoch_of(row) <= epochs_done]
        with atomic_path(path) as temporary:
            temporary.write_text("".join(row + "\n" for row in kept), encoding="utf-8")

    def write(self, row: dict[str, Any]) -> None:
        if self.accelerator.is_main_process:
            try:
                with open(self.path, "a", encoding="utf-8") as log:
                    log.write(json.dumps(row) + "\n")
            except OSError as error:
                raise UserError(
                    f"cannot write {self.path}: {error.strerror}; free some space, then go on with --resume"
                ) from error
        numbers = {name: value for name, value in row.items() if isinstance(value, float)}
        self.accelerator.log(numbers, step=row["epoch"])


def _epoch_of(row: str) -> float:
    """The epoch of a row of the log; infinity for the last one where the machine died while it was written."""
    try:
        return float(json.loads(row)["epoch"])
    except (ValueError, KeyError, TypeError):
        return float("inf")
