"""The losses and the seconds of training steps, as the process learns them."""

from __future__ import annotations

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
STEPS = 10  # between two readings on a device that works ahead; fetching a number makes the process wait for it


class Readings:
    """Keeps losses where they were computed, and reads those of several steps at once into the position.

    A reading is agreed over the processes, so that all of them stop, and go on, at the same step.

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
        rows: list[list[float]] = torch.stack(self._unread).tolist() if self._unread else []
        self._unread = []
        broken = [i for i, row in enumerate(rows) if not isfinite(sum(row))]
        now = self.clock()
        own = torch.tensor([now - self._since, stop, bool(broken)], device=self.device)
        self._since = now
        seconds, stops, breaks = mean_over_processes(own).tolist()
        if breaks > 0:
            i = broken[0] if broken else len(rows) - 1
            raise UserError(_diverged(position.epoch + 1, first + i + 1, dict(zip(self._names, rows[i], strict=True))))
        position.seconds += seconds
        for row in rows:
            for name, value in zip(self._names, row, strict=True):
                position.loss_sums[name] = position.loss_sums.get(name, 0.0) + value
        return bool(stops > 0)


def _diverged(epoch: int, batch: int, losses: Mapping[str, float]) -> str:
    terms = ", ".join(f"{name} {value:.3g}" for name, value in losses.items())
    return (
        f"the loss stopped being a finite number in epoch {epoch}, batch {batch} ({terms}); "
        "start anew with a lower --lr or a longer --warmup, or --resume with --precision fp32; checkpoints are intact"
    )
