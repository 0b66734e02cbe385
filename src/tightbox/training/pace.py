"""How far a training is, and when it is over: by its epochs, by the clock, or by Ctrl-C."""

import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from typing import Any

from tightbox.options import TrainOptions


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
