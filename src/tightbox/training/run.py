"""What happens at the end of an epoch: evaluating, writing figures, saving, and stopping early.

The state that is saved holds everything that is needed to go on exactly.
"""

import json
import shutil
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import torch
from accelerate import Accelerator
from torch.optim.swa_utils import AveragedModel

from tightbox.data.records import DetectionData
from tightbox.distributed import mean_over_processes
from tightbox.errors import UserError
from tightbox.files import digest_of, write_text
from tightbox.inference.detect import Loading, evaluate_model
from tightbox.models import Detector
from tightbox.options import TrainOptions
from tightbox.reading import read_json
from tightbox.training.pace import WAY_OUT, Pace, Position
from tightbox.training.progress import Progress

RESUME, CONTENTS = "resume", "contents.json"
# By the clock, evaluations are at least so many seconds of training apart, and so many times what the last one took.
SECONDS_APART, TIMES_APART = 600.0, 10.0


@dataclass(frozen=True)
class Run:
    """A training's folder and what is written there.

    Args:
        out: the folder.
        accelerator: of the training.
        trained: the model whose weights the optimiser changes.
        main: the model that is evaluated and saved ...
        swa: ... but for that in `swa_epochs`, the mean of the weights at their ends, if there are any.
        train: training records.
        val: validation records, if there are any.
        pace: its length, and the options.
        position: how far it is; moved to the next epoch here.
        bar: says what is going on.
    """

    out: Path
    accelerator: Accelerator
    trained: Detector
    main: Detector
    swa: AveragedModel | None
    train: DetectionData
    val: DetectionData | None
    pace: Pace
    position: Position
    bar: Progress

    @property
    def model(self) -> Detector:
        """The one that is evaluated and saved by now."""
        return cast(Detector, self.swa.module) if self.swa is not None and self.swa.n_averaged > 0 else self.main

    def keep_rows(self) -> None:
        """Of `metrics.jsonl`, those of whole epochs that are done: a resumed training runs the rest again."""
        path = self.out / "metrics.jsonl"
        if not self.accelerator.is_main_process:
            return
        rows = path.read_text(encoding="utf-8").splitlines() if path.is_file() else []
        write_text(path, "".join(row + "\n" for row in rows if _epoch_of(row) <= self.position.epoch))

    def end_epoch(self, lr: float) -> bool:
        """Everything that an epoch's end asks for; whether the training goes on.

        Time can be up within an epoch: then it ends there, and a resumed training goes on with the rest of it.
        """
        position, number = self.position, self.position.epoch + 1
        # Before anything is written: the last steps of an epoch may have ruined the weights.
        if not all(weights.isfinite().all() for weights in self.trained.parameters()):
            raise UserError(f"weights stopped being finite numbers in epoch {number}; {WAY_OUT}")
        over = self.pace.over(position)
        row = {"epoch": number, "lr": lr, **position.mean_losses()}
        row |= {"train_seconds": round(position.seconds, 1), "images_per_second": round(self.bar.rate(), 2)}
        if position.batch >= self.pace.batches:
            position.epoch, position.batch, position.loss_sums = number, 0, {}
        self.model.metrics = {"epoch": number, "train_seconds": round(position.seconds, 1)}
        if self.val is not None and self._evaluates(number, over=over):
            row |= self._evaluate(self.val, number)
        self._write(row)
        self.save("last")
        self.save_state()
        if stopped_early(self.pace.options, position):
            self.bar.print(f"stopped early: no better AP in the last {self.pace.options.patience} evaluations")
            return False
        return not over

    def _evaluates(self, number: int, *, over: bool) -> bool:
        if over or self.pace.seconds is None:
            return over or number % self.pace.options.eval_every == 0
        apart = self.position.seconds - self.position.evaluated
        return apart >= max(SECONDS_APART, TIMES_APART * self.position.evaluation_seconds)

    def _evaluate(self, val: DetectionData, number: int) -> dict[str, Any]:
        """The figures for the epoch's row; the model is saved with them if it is the best so far."""
        position, model, started = self.position, self.model, time.monotonic()
        loading = Loading(self.pace.options.batch_size, self.pace.options.workers, self.pace.options.skip_unreadable)
        with self.bar.evaluating() as progress:
            metrics = evaluate_model(model, val, accelerator=self.accelerator, loading=loading, progress=progress)
        seconds = torch.tensor(time.monotonic() - started, device=self.accelerator.device)
        position.evaluated, position.evaluation_seconds = position.seconds, mean_over_processes(seconds).item()
        figures = metrics.to_dict()
        model.metrics |= figures
        if self.pace.options.keep_all:
            self.save(f"epoch-{number}")
        ap, ap50, ap75 = (figures[name] or 0.0 for name in ("ap", "ap50", "ap75"))
        self.bar.print(f"epoch {number}: AP {ap:.3f}  AP50 {ap50:.3f}  AP75 {ap75:.3f}")
        position.since_best += 1
        if ap > position.best_ap:
            position.best_ap, position.since_best = ap, 0
            self.save("best")
        return {name: value for name, value in figures.items() if name != "per_class"}

    def save(self, name: str) -> None:
        """The model, as a checkpoint in the folder."""
        if self.accelerator.is_main_process:
            self.model.save(self.out / name)

    def save_state(self) -> None:
        """What the training needs to go on exactly, and what `load_state` checks; the one before stays until then.

        Raises:
            UserError: if the disk refuses.
        """
        accelerator, folder = self.accelerator, self.out / RESUME
        fresh, old = _beside(folder, "new"), _beside(folder, "old")
        if accelerator.is_main_process:
            shutil.rmtree(fresh, ignore_errors=True)
        accelerator.wait_for_everyone()
        try:
            accelerator.save_state(str(fresh))
            accelerator.wait_for_everyone()
            if accelerator.is_main_process:
                digests = {path.name: digest_of(path) for path in sorted(fresh.iterdir())}
                data = {"class_names": self.train.class_names, "images": len(self.train.records)}
                (fresh / CONTENTS).write_text(json.dumps(data | {"sha256": digests}, indent=2), encoding="utf-8")
        except (OSError, RuntimeError) as error:  # torch raises RuntimeError when the disk is full
            shutil.rmtree(fresh, ignore_errors=True)
            raise UserError(f"cannot write {folder}: {error}; free some space, then go on with --resume") from error
        if accelerator.is_main_process:
            shutil.rmtree(old, ignore_errors=True)
            if folder.exists():
                folder.rename(old)
            fresh.rename(folder)
            shutil.rmtree(old, ignore_errors=True)
        accelerator.wait_for_everyone()

    def _write(self, row: dict[str, Any]) -> None:
        """One row of figures per epoch, as JSON lines and to the tracker."""
        if self.accelerator.is_main_process:
            path = self.out / "metrics.jsonl"
            try:
                with open(path, "a", encoding="utf-8") as log:
                    log.write(json.dumps(row) + "\n")
            except OSError as error:
                advice = "free some space, then go on with --resume"
                raise UserError(f"cannot write {path}: {error.strerror}; {advice}") from error
        numbers = {name: value for name, value in row.items() if isinstance(value, float)}
        self.accelerator.log(numbers, step=row["epoch"])


def stopped_early(options: TrainOptions, position: Position) -> bool:
    """Whether the last evaluations, as many as the patience, were no better than the best."""
    return options.patience > 0 and position.since_best >= options.patience


def _epoch_of(row: str) -> float:
    """The epoch of a row of the log; infinity for the last one where the machine died while it was written."""
    try:
        return float(json.loads(row)["epoch"])
    except (ValueError, KeyError, TypeError):
        return float("inf")


def load_state(accelerator: Accelerator, folder: Path, train: DetectionData) -> None:
    """Put everything back as it was.

    Raises:
        UserError: if there is no state, it is of other training data, or it is damaged.
    """
    last = folder.parent / "last"
    anew = "start anew in another --out" + (f", from the run's weights with --init {last}" if last.is_dir() else "")
    if not folder.is_dir():  # the machine died between two renames
        folder = _beside(folder, "old")
    if not folder.is_dir():
        advice = anew if last.is_dir() else "start without --resume"
        raise UserError(f"there is nothing to resume in {folder.parent}: no state was saved; {advice}")
    if (folder / CONTENTS).is_file():  # states from before there were such files have none
        _check(folder, train, anew)
    try:
        accelerator.load_state(str(folder))
    except Exception as error:  # accelerate passes on whatever its readers raise, in many lines
        reason = " ".join(str(error).split())[:200]
        raise UserError(f"the state in {folder} cannot be loaded ({reason}); {anew}") from error


def _check(folder: Path, train: DetectionData, anew: str) -> None:
    """Refuses a state that is not whole, which accelerate reads in part without a word, or of other data."""
    try:
        contents = read_json(folder / CONTENTS)
        names, images, digests = tuple(contents["class_names"]), contents["images"], contents["sha256"]
    except (UserError, KeyError, TypeError) as error:
        raise UserError(f"{folder / CONTENTS} is damaged ({error}); {anew}") from error
    if names != train.class_names:
        own, now = ", ".join(names), ", ".join(train.class_names)
        raise UserError(f"this run learns the classes {own}, but {train.root} has {now}; give its own data, or {anew}")
    if images != len(train.records):
        now = f"{train.root} has {len(train.records)}"
        raise UserError(f"this run learns from {images} images, but {now}; give its own data, or {anew}")
    for name, digest in digests.items():
        if not (folder / name).is_file():
            raise UserError(f"{folder / name} is missing; {anew}")
        if digest_of(folder / name) != digest:
            raise UserError(f"{folder / name} is damaged; {anew}")


def _beside(folder: Path, suffix: str) -> Path:
    return folder.with_name(f"{folder.name}.{suffix}")
