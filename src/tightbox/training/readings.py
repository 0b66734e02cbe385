"""The losses and the seconds of training steps, as the process learns them."""

import time
from collections.abc import Callable, Mapping
from math import isfinite

import torch
from accelerate import Accelerator
from torch import Tensor

from tightbox.distributed import mean_over_processes
from tightbox.errors import UserError
from tightbox.training.pace import Position

Clock = Callable[[], float]
# Of a training that diverged.
WAY_OUT = "start anew with a lower --lr or a longer --warmup, or --resume with --precision fp32; checkpoints are intact"
STEPS = 10  # between two readings on a device that works ahead; fetching a number makes the process wait for it


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
