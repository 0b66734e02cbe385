"""The progress bar of a training: epoch, time left, losses and images per second."""

from __future__ import annotations

import time
from typing import Self

from rich.console import Console
from rich.progress import BarColumn, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.progress import Progress as RichProgress


class Progress:
    """One bar over all steps; nothing is drawn when `shown` is false.

    Args:
        epochs: of the training.
        batches: of an epoch, for this process.
        shown: whether to draw, so that one process of several does.
    """

    def __init__(self, epochs: int, batches: int, *, shown: bool = True) -> None:
        self.epochs = epochs
        self.batches = batches
        self.shown = shown
        columns = (
            TextColumn("{task.description}"),
            BarColumn(),
            TextColumn("{task.percentage:>3.0f}%"),
            TimeElapsedColumn(),
            TextColumn("left"),
            TimeRemainingColumn(),
            TextColumn("{task.fields[note]}"),
        )
        self._bar = RichProgress(*columns, console=Console(), disable=not shown, refresh_per_second=4)
        self._task = self._bar.add_task("epoch 1", total=epochs * batches, note="")
        self._images = 0
        self._started = time.monotonic()

    def __enter__(self) -> Self:
        self._bar.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._bar.stop()

    def start_epoch(self, epoch: int, batch: int) -> None:
        """Count images anew, and go to this batch of this epoch."""
        self._images = 0
        self._started = time.monotonic()
        description = f"epoch {epoch + 1}/{self.epochs}"
        self._bar.update(self._task, description=description, completed=epoch * self.batches + batch)

    def step(self, losses: dict[str, float], images: int) -> None:
        """One more step; `losses` are shown."""
        self._images += images
        terms = "  ".join(f"{name} {value:.3f}" for name, value in losses.items())
        self._bar.update(self._task, advance=1, note=f"{terms}  {self.rate():.1f} img/s")

    def rate(self) -> float:
        """Images per second since the epoch began."""
        return self._images / max(time.monotonic() - self._started, 1e-9)

    def print(self, line: str) -> None:
        """A line above the bar."""
        if self.shown:
            self._bar.console.print(line, highlight=False)
