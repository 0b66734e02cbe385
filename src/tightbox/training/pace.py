"""How far a training is, what its steps tell, and when it is over: by its epochs, by the clock, or by Ctrl-C."""

import signal
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from math import isfinite
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor

from tightbox.distributed import mean_over_processes
from tightbox.errors import UserError
from tightbox.options import TrainOptions

Clock = Callable[[], float]
# Of a training that diverged.
WAY_OUT = "start anew with a lower --lr or a longer --warmup, or --resume with --precision fp32; checkpoints are intact"
STEPS = 10  # between two readings on a device that works ahead; fetching a number makes the process wait for it


@dataclass
class Position:
    """How far the training is; saved with its state.

    Attributes:
        epoch: whole epochs that are done.
        batch: batches of the next one that are done, of each process.
        best_ap: of all evaluations.
        since_best: evaluations since then.
        seconds: of training so far, without evaluating and saving.
        loss_sums: over the epoch's batches so far.
        evaluated: `seconds` at the last evaluation.
        evaluation_seconds: what that one took.
    """

    epoch: int = 0
    batch: int = 0
    best_ap: float = -1.0
    since_best: int = 0
    seconds: float = 0.0
    loss_sums: dict[str, float] = field(default_factory=dict)
    evaluated: float = 0.0
    evaluation_seconds: float = 0.0

    def mean_losses(self) -> dict[str, float]:
        """Of the epoch so far."""
        return {name: round(total / self.batch, 5) for name, total in self.loss_sums.items()}

    def state_dict(self) -> dict[str, Any]:
        """For accelerate, which saves it."""
        return asdict(self)

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """The opposite; what an earlier version did not save stays as it is."""
        for name, value in state.items():
            setattr(self, name, value)


@dataclass(frozen=True)
class Pace:
    """The length of a training, in epochs or in seconds.

    Args:
        options: which of the two, and how much.
        batches: of an epoch, for each process.
    """

    options: TrainOptions
    batches: int

    @property
    def epochs(self) -> int | None:
        """Passes over the data, where they decide."""
        return None if self.options.epochs is None else self.options.epochs + self.options.swa_epochs

    @property
    def seconds(self) -> float | None:
        """Of training, where they decide."""
        return None if self.options.minutes is None else 60 * self.options.minutes

    @property
    def total(self) -> float:
        """The length in batches or in seconds."""
        return (self.epochs or 0) * self.batches if self.seconds is None else self.seconds

    def done(self, position: Position) -> float:
        """How much of `total` is over."""
        return position.epoch * self.batches + position.batch if self.seconds is None else position.seconds

    def over(self, position: Position) -> bool:
        """Whether the training is."""
        return self.done(position) >= self.total

    def length(self, position: Position) -> str:
        """What is done of a training that is over, in words."""
        return f"{position.epoch} epochs" if self.seconds is None else f"{position.seconds / 60:.3g} minutes"


class Readings:
    """Keeps losses where they were computed, and reads those of several steps at once into the position.

    A reading is the mean over the processes, so that it is that of the whole batch, and that all of them stop, and go
    on, at the same step.

    Args:
        accelerator: whose device and processes.
        position: to which batches, losses and seconds are added.
        clock: gives seconds, from any beginning.
    """

    def __init__(self, accelerator: Accelerator, position: Position, clock: Clock = time.monotonic) -> None:
        self.position = position
        self.clock = clock
        self.device = accelerator.device
        self.steps = 1 if self.device.type == "cpu" else STEPS
        self._names: list[str] = []
        self._unread: list[Tensor] = []
        self._since = clock()

    def start(self) -> None:
        """Count the time from here on, after something that is no training."""
        self._since = self.clock()

    def add(self, losses: Mapping[str, Tensor]) -> None:
        """Those of one more batch; nothing waits for them."""
        self._names = list(losses)
        self._unread.append(torch.stack(list(losses.values())).detach())
        self.position.batch += 1

    def due(self) -> bool:
        """Whether it is time to read: the first batch of each epoch, then every few."""
        return len(self._unread) >= self.steps or self.position.batch == len(self._unread)

    def read(self, *, stop: bool = False) -> bool:
        """Fetch what was added, and the time; whether any process was asked to stop.

        Raises:
            UserError: if a loss is no finite number, in any process.
        """
        position, first = self.position, self.position.batch - len(self._unread)
        rows = mean_over_processes(torch.stack(self._unread)).tolist() if self._unread else []
        self._unread = []
        now = self.clock()
        seconds, stops = mean_over_processes(torch.tensor([now - self._since, stop], device=self.device)).tolist()
        self._since = now
        for number, row in enumerate(rows, first + 1):
            losses = dict(zip(self._names, row, strict=True))
            if not isfinite(sum(row)):  # in any process, as it would not vanish from a mean
                terms = ", ".join(f"{name} {value:.3g}" for name, value in losses.items())
                where = f"epoch {position.epoch + 1}, batch {number} ({terms})"
                raise UserError(f"the loss stopped being a finite number in {where}; {WAY_OUT}")
            for name, value in losses.items():
                position.loss_sums[name] = position.loss_sums.get(name, 0.0) + value
        position.seconds += seconds
        return bool(stops > 0)


@contextmanager
def interruptible() -> Iterator[Callable[[], bool]]:
    """Gives a function that tells whether Ctrl-C was pressed; a second Ctrl-C is immediate."""
    pressed = False

    def note(*_: object) -> None:
        nonlocal pressed
        pressed = True
        signal.signal(signal.SIGINT, before)

    try:
        before = signal.signal(signal.SIGINT, note)
    except ValueError:  # not the main thread: signals belong to whoever runs it
        yield lambda: False
        return
    try:
        yield lambda: pressed
    finally:
        signal.signal(signal.SIGINT, before)
