"""The training loop, top to bottom: accelerate supplies devices, precision, processes and exact resume."""

import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, cast

import torch
from accelerate import Accelerator
from accelerate.utils import set_seed
from timm.layers.norm_act import convert_sync_batchnorm
from torch import Tensor, nn
from torch.optim.lr_scheduler import LambdaLR
from torch.optim.swa_utils import AveragedModel
from torch.utils.data import DataLoader

from tightbox.data.dataset import DetectionDataset, EpochBatches, collate
from tightbox.data.records import DetectionData
from tightbox.data.transforms import TrainTransform
from tightbox.distributed import new_accelerator
from tightbox.errors import UserError, import_extra
from tightbox.models import Detector
from tightbox.options import AugmentOptions, TrainOptions
from tightbox.structures import ImageBatch, Targets
from tightbox.training.optimizer import MovingAverage, build_optimizer, learning_rate_factor
from tightbox.training.pace import Clock, Pace, Position, Readings, interruptible
from tightbox.training.progress import Progress
from tightbox.training.run import RESUME, Run, load_state, stopped_early


class _Loss(nn.Module):
    """The model's loss as a forward pass, which is the call that DDP and autocast wrap."""

    def __init__(self, model: Detector) -> None:
        super().__init__()
        self.model = model

    def forward(self, images: ImageBatch, targets: Sequence[Targets]) -> dict[str, Tensor]:
        return self.model.loss(images, targets)


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
    device: torch.device | None = None,
    clock: Clock = time.monotonic,
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
        device: where to train; by default on a GPU if there is one, of several processes each on its own.
        clock: gives seconds, from any beginning, by which the training is timed.

    Returns:
        The model whose weights are evaluated and saved last: an average of them if there is one.

    Raises:
        UserError: if the loss stops being finite, an image cannot be read, the disk refuses, the minutes are over after
            the first step, or there is no state to resume, or one that is damaged, of other data, or of more epochs
            than there are to be; or if batch norms are to be synchronised on a CPU.
        Interrupted: after Ctrl-C, once the state is saved.
    """
    model.metrics, model.calibration = {}, None  # of other weights
    precision = choose_precision(options.precision, device)
    if options.tensorboard:
        import_extra("tensorboard", "track")
    tracker = "tensorboard" if options.tensorboard else None
    settings = {"gradient_accumulation_steps": options.accumulate, "log_with": tracker, "project_dir": str(out)}
    accelerator = new_accelerator(device, mixed_precision=precision, **settings)
    if options.sync_batchnorm:
        synchronise_batch_norms(model, accelerator.device)
    set_seed(options.seed, device_specific=True)  # processes draw different random numbers; the weights they share
    position = Position()
    batches = EpochBatches(len(train.records), options.batch_size, options.seed)
    batches_per_epoch = len(batches) // accelerator.num_processes
    if batches_per_epoch == 0:
        raise UserError(f"{batches.count} training images do not give a batch to each process; add some")
    pace = Pace(options, batches_per_epoch)
    if pace.seconds is not None:
        batches.fraction = lambda: pace.done(position) / pace.total
    loader = _loader(model, train, batches, options, augment)
    optimizer = build_optimizer(model, options)
    steps_per_epoch = -(-batches_per_epoch // options.accumulate)
    scheduler = LambdaLR(optimizer, learning_rate_factor(options, steps_per_epoch, lambda: position.seconds))
    placed = [True, True, False]  # batches are moved as they come
    loss_of, optimizer, loader = accelerator.prepare(_Loss(model), optimizer, loader, device_placement=placed)
    average = MovingAverage(model, options.ema) if options.ema > 0 else None
    result = model if average is None else cast(Detector, average.module)
    # Batch norms' statistics are averaged with the weights.
    swa = AveragedModel(model, use_buffers=True) if options.swa_epochs else None
    accelerator.register_for_checkpointing(scheduler, position, *(part for part in (average, swa) if part is not None))
    if resume:
        load_state(accelerator, out / RESUME, train)
        _check_resumed(pace, position, out, accelerator)
        if swa is not None and position.epoch < (options.epochs or 0):  # of a run that has got more epochs since
            swa.n_averaged.zero_()
    if ready is not None and accelerator.is_main_process:
        ready()
    if options.tensorboard:
        accelerator.init_trackers("tensorboard")

    with Progress(pace.total, pace.epochs, shown=accelerator.is_main_process) as bar, interruptible() as stop:
        run = Run(out, accelerator, model, result, swa, train, val, pace, position, bar)
        run.keep_rows()
        readings = Readings(accelerator, position, clock)
        goes_on = not pace.over(position) and not stopped_early(options, position)
        while goes_on:
            batches.epoch, batches.start = position.epoch, position.batch * accelerator.num_processes
            bar.start_epoch(position.epoch, pace.done(position))
            loss_of.train()
            readings.start()
            for images, targets, _ in loader:
                images = images.to(accelerator.device)
                targets = [target.to(accelerator.device) for target in targets]
                with accelerator.accumulate(loss_of):
                    losses = loss_of(images, targets)
                    accelerator.backward(torch.stack(list(losses.values())).sum())
                    if accelerator.sync_gradients and options.clip > 0:
                        accelerator.clip_grad_norm_(loss_of.parameters(), options.clip)
                    optimizer.step()
                    optimizer.zero_grad()
                if accelerator.sync_gradients:
                    scheduler.step()
                    if average is not None:
                        average.update_parameters(model)
                readings.add(losses)
                bar.step(len(images) * accelerator.num_processes)
                # All processes stop together, and never between batches whose gradients are being added up.
                if accelerator.sync_gradients and readings.due():
                    stopped = readings.read(stop=stop())
                    bar.show(position.mean_losses(), pace.done(position))
                    if stopped and not pace.over(position):  # else it ends now as it would have
                        run.save_state()
                        raise Interrupted(f"stopped in epoch {position.epoch + 1} and saved; go on with --resume")
                    if pace.seconds is not None and pace.over(position):
                        break
            readings.read()
            _refuse_less_than_a_step(pace, position)
            if swa is not None and position.epoch >= (options.epochs or 0):
                swa.update_parameters(model)
            goes_on = run.end_epoch(float(scheduler.get_last_lr()[0]))
    if val is None:
        run.save("best")
    accelerator.end_training()
    return run.model


class Interrupted(UserError):
    """The user pressed Ctrl-C, and the training's state is on disk."""


def choose_precision(precision: str, device: torch.device | None = None) -> str:
    """Accelerate's name for a precision; "auto" is bf16 where the hardware computes in it, else fp16 on a GPU.

    Args:
        precision: fp32, bf16, fp16 or auto.
        device: where the training runs; by default on a GPU if there is one.

    Raises:
        UserError: if it is fp16 and there is no GPU.
    """
    gpu = torch.cuda.is_available() if device is None else device.type == "cuda"
    if precision == "fp16" and not gpu:
        raise UserError("--precision fp16 needs a GPU; use bf16 or fp32")
    if precision != "auto":
        return {"fp32": "no"}.get(precision, precision)
    if gpu:
        return "bf16" if torch.cuda.is_bf16_supported(including_emulation=False) else "fp16"
    return "bf16" if torch.cpu._is_avx512_bf16_supported() else "no"


def synchronise_batch_norms(model: nn.Module, device: torch.device) -> None:
    """Let batch norms take their statistics over the images of all processes; weights and their names stay.

    Raises:
        UserError: if the device is no GPU, as PyTorch synchronises nothing else.
    """
    if device.type != "cuda":
        raise UserError("--sync-batchnorm true needs GPUs; on a CPU use --frozen-norm true instead")
    convert_sync_batchnorm(model)


def _check_resumed(pace: Pace, position: Position, out: Path, accelerator: Accelerator) -> None:
    """Says so where nothing is left to be done, and refuses to have done too much."""
    if not pace.over(position):
        if stopped_early(pace.options, position):
            accelerator.print(f"{out} stopped early; to train on, give --patience a larger number, or 0 for no limit")
        return
    option = "--epochs" if pace.seconds is None else "--minutes"
    done = f"{pace.length(position)} of {out} are done already; to train on, give {option} a larger number"
    if pace.epochs is not None and position.epoch > pace.epochs:
        raise UserError(done)
    accelerator.print(f"all {done}")


def _refuse_less_than_a_step(pace: Pace, position: Position) -> None:
    first = position.epoch == 0 and position.batch <= pace.options.accumulate
    if pace.options.minutes is not None and first and pace.over(position):
        given, took = f"--minutes {pace.options.minutes:g}", f"{position.seconds:.1f} s"
        raise UserError(f"{given} is shorter than the first step, which took {took}; give more")


def _loader(
    model: Detector, train: DetectionData, batches: EpochBatches, options: TrainOptions, augment: AugmentOptions
) -> DataLoader[Any]:
    dataset = DetectionDataset(
        train,
        model.preprocess,
        transform=TrainTransform(augment, model.preprocess),
        seed=options.seed,
        epochs=options.epochs or 0,
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
