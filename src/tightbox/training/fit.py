"""The training loop, top to bottom: accelerate supplies devices, precision, processes and exact resume."""

from __future__ import annotations

import json
import shutil
import signal
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import set_seed
from torch import Tensor, nn
from torch.optim.lr_scheduler import LambdaLR
from torch.utils.data import DataLoader

from tightbox.checkpoint import save
from tightbox.data.dataset import DetectionDataset, EpochBatches, collate
from tightbox.data.records import DetectionData
from tightbox.data.transforms import TrainTransform
from tightbox.errors import UserError, missing_extra
from tightbox.evaluation.run import evaluate_model
from tightbox.files import atomic_path
from tightbox.models import Detector
from tightbox.options import AugmentOptions, TrainOptions
from tightbox.structures import ImageBatch, Targets
from tightbox.training.optimizer import build_optimizer, learning_rate_factor, moving_average
from tightbox.training.progress import Progress

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
) -> Detector:
    """Train a detector; leaves `last` and `best` checkpoints, `metrics.jsonl` and a resumable state in `out`.

    Args:
        model: trained in place.
        train: training records.
        val: validation records with the same classes; without them nothing is evaluated and `best` is the last.
        out: the run's folder.
        options: schedule and engine.
        augment: random changes to the pictures.
        resume: continue exactly where the run in `out` stopped.

    Returns:
        The model whose weights are evaluated and saved: the moving average if there is one.

    Raises:
        UserError: if the loss stops being finite, a picture cannot be read, or the disk refuses.
        Interrupted: after Ctrl-C, once the state is saved.
    """
    accelerator = Accelerator(
        mixed_precision=choose_precision(options.precision),
        gradient_accumulation_steps=options.accumulate,
        log_with=_tracker() if options.tensorboard else None,
        project_dir=str(out),
    )
    set_seed(options.seed)
    dataset = DetectionDataset(
        train,
        model.preprocess,
        transform=TrainTransform(augment, model.preprocess),
        seed=options.seed,
        epochs=options.epochs,
        cache_mb=options.cache // max(1, options.workers),
        skip_unreadable=options.skip_unreadable,
    )
    batches = EpochBatches(len(dataset), options.batch_size, options.seed)
    loader: DataLoader[Any] = DataLoader(
        dataset,
        batch_sampler=batches,
        collate_fn=collate,
        num_workers=options.workers,
        persistent_workers=options.workers > 0,
        pin_memory=accelerator.device.type == "cuda",
    )
    optimizer = build_optimizer(model, options)
    steps_per_epoch = -(-(len(batches) // accelerator.num_processes) // options.accumulate)
    if steps_per_epoch == 0:
        raise UserError(f"{len(dataset)} pictures do not fill one batch for each of {accelerator.num_processes} processes")
    scheduler = LambdaLR(optimizer, learning_rate_factor(options, steps_per_epoch))
    loss_of, optimizer, loader = accelerator.prepare(_Loss(model), optimizer, loader, device_placement=[True, True, False])
    average = moving_average(model, options.ema) if options.ema > 0 else None
    result: Detector = average.module if average is not None else model
    position = _Position()
    accelerator.register_for_checkpointing(scheduler, position, *([average] if average is not None else []))
    if resume:
        _load_state(accelerator, out / RESUME)
    if options.tensorboard:
        accelerator.init_trackers("tensorboard")
    _keep_rows(out / "metrics.jsonl", position.epoch)

    with Progress(options.epochs, len(batches) // accelerator.num_processes, shown=accelerator.is_main_process) as bar:
        for epoch in range(position.epoch, options.epochs):
            batches.epoch, batches.start = epoch, position.batch * accelerator.num_processes
            started = time.monotonic()
            loss_of.train()
            bar.start_epoch(epoch, position.batch)
            with _interruptible() as interrupted:
                for images, targets, _ in loader:
                    images = images.to(accelerator.device)
                    targets = [target.to(accelerator.device) for target in targets]
                    with accelerator.accumulate(loss_of):
                        losses = loss_of(images, targets)
                        total = torch.stack(list(losses.values())).sum()
                        if not torch.isfinite(total):
                            raise UserError(_diverged(epoch, position.batch, losses))
                        accelerator.backward(total)
                        if accelerator.sync_gradients and options.clip > 0:
                            accelerator.clip_grad_norm_(loss_of.parameters(), options.clip)
                        optimizer.step()
                        optimizer.zero_grad()
                    if accelerator.sync_gradients:
                        scheduler.step()
                        if average is not None:
                            average.update_parameters(model)
                    position.batch += 1
                    bar.step({name: v.item() for name, v in losses.items()}, len(images) * accelerator.num_processes)
                    if interrupted():
                        position.seconds += time.monotonic() - started
                        _save_state(accelerator, out / RESUME)
                        raise Interrupted(f"stopped in epoch {epoch + 1}, and saved; go on with --resume")
            position.epoch, position.batch = epoch + 1, 0
            position.seconds += time.monotonic() - started

            row: dict[str, Any] = {"epoch": epoch + 1, "lr": scheduler.get_last_lr()[0], **bar.means()}
            row |= {"train_seconds": round(position.seconds, 1), "images_per_second": round(bar.rate(), 2)}
            last = epoch + 1 == options.epochs
            if val is not None and (last or (epoch + 1) % options.eval_every == 0):
                metrics = evaluate_model(result, val, accelerator=accelerator, batch_size=options.batch_size)
                figures = metrics.to_dict()
                result.metrics = {"epoch": epoch + 1, "train_seconds": round(position.seconds, 1), **figures}
                row |= {name: value for name, value in figures.items() if name != "per_class"}
                bar.print(f"epoch {epoch + 1}: AP {metrics.ap or 0:.3f}  AP50 {metrics.ap50 or 0:.3f}  AP75 {metrics.ap75 or 0:.3f}")
                position.since_best += 1
                if (metrics.ap or 0.0) > position.best_ap:
                    position.best_ap, position.since_best = metrics.ap or 0.0, 0
                    if accelerator.is_main_process:
                        save(result, out / "best")
            if accelerator.is_main_process:
                with open(out / "metrics.jsonl", "a", encoding="utf-8") as log:
                    log.write(json.dumps(row) + "\n")
                save(result, out / "last")
            accelerator.log({k: v for k, v in row.items() if isinstance(v, float)}, step=epoch + 1)
            _save_state(accelerator, out / RESUME)
            if options.patience and position.since_best >= options.patience:
                bar.print(f"stopped: no better AP in the last {options.patience} evaluations")
                break
    if val is None and accelerator.is_main_process:
        save(result, out / "best")
    accelerator.end_training()
    return result


class Interrupted(UserError):
    """The user pressed Ctrl-C, and the training's state is on disk."""


def choose_precision(precision: str) -> str:
    """Accelerate's name for a precision; "auto" is bf16 where the hardware computes in it."""
    if precision != "auto":
        return {"fp32": "no"}.get(precision, precision)
    if torch.cuda.is_available():
        return "bf16" if torch.cuda.is_bf16_supported(including_emulation=False) else "fp16"
    return "bf16" if torch.cpu._is_avx512_bf16_supported() else "no"


@contextmanager
def _interruptible() -> Iterator[Any]:
    """Turn the first Ctrl-C into a question that the loop asks between steps; a second one is immediate."""
    pressed: list[int] = []

    def note(number: int, frame: Any) -> None:
        pressed.append(number)
        signal.signal(signal.SIGINT, before)

    try:
        before = signal.signal(signal.SIGINT, note)
    except ValueError:  # not the main thread: leave signals to whoever owns them
        yield lambda: False
        return
    try:
        yield lambda: bool(pressed)
    finally:
        signal.signal(signal.SIGINT, before)


def _diverged(epoch: int, batch: int, losses: dict[str, Tensor]) -> str:
    terms = ", ".join(f"{name} {value.item():.3g}" for name, value in losses.items())
    return (
        f"the loss stopped being a finite number in epoch {epoch + 1}, batch {batch + 1} ({terms}); "
        "lower --train.lr, lengthen --train.warmup or use --train.precision fp32; earlier checkpoints are intact"
    )


def _tracker() -> str:
    try:
        import tensorboard  # noqa: F401
    except ImportError as error:
        raise missing_extra("tensorboard", "track") from error
    return "tensorboard"


def _save_state(accelerator: Accelerator, folder: Path) -> None:
    """Everything needed to go on exactly; the previous state stays until the new one is whole."""
    fresh, old = folder.with_name(folder.name + ".new"), folder.with_name(folder.name + ".old")
    if accelerator.is_main_process:
        shutil.rmtree(fresh, ignore_errors=True)
    accelerator.wait_for_everyone()
    try:
        accelerator.save_state(str(fresh))
    except (OSError, RuntimeError) as error:  # torch raises RuntimeError when the disk is full
        shutil.rmtree(fresh, ignore_errors=True)
        raise UserError(f"cannot write {folder}: {error}; free some space, then go on with --resume") from error
    accelerator.wait_for_everyone()
    if accelerator.is_main_process:
        shutil.rmtree(old, ignore_errors=True)
        if folder.exists():
            folder.rename(old)
        fresh.rename(folder)
        shutil.rmtree(old, ignore_errors=True)
    accelerator.wait_for_everyone()


def _load_state(accelerator: Accelerator, folder: Path) -> None:
    old = folder.with_name(folder.name + ".old")
    if not folder.is_dir() and old.is_dir():  # the machine died between two renames
        folder = old
    if not folder.is_dir():
        raise UserError(f"there is nothing to resume in {folder.parent}; start without --resume")
    accelerator.load_state(str(folder))


def _keep_rows(log: Path, epochs: int) -> None:
    """Drop rows of epochs that a resumed training will run again."""
    rows = log.read_text(encoding="utf-8").splitlines() if log.is_file() else []
    kept = [row for row in rows if json.loads(row)["epoch"] <= epochs]
    with atomic_path(log) as temporary:
        temporary.write_text("".join(row + "\n" for row in kept), encoding="utf-8")
