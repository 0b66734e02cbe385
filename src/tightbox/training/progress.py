"""What a training shows while it runs: epoch, time left, losses and images per second."""

import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from typing import Self

from rich.console import Console
from rich.progress import BarColumn, RenderableColumn
from rich.progress import Progress as RichProgress
from rich.text import Text

from tightbox.progress import Counted, PlainLines, time_left


class Progress:
    """A line of text with a bar over all of a training, or line after line where there is no terminal.

    Nothing when `shown` is false.

    Args:
        total: length of the training, in any unit.
        epochs: of the training, if their number is known.
        shown: whether to draw, so that one process of several does.
        console: where to.
    """

    def __init__(self, total: float, epochs: int | None, *, shown: bool = True, console: Console | None = None) -> None:
        self.total = total
        self.epochs = epochs
        self.shown = shown
        self.console = console or Console()
        drawn = shown and self.console.is_terminal
        columns = BarColumn(), RenderableColumn(self)
        self._bar = RichProgress(*columns, console=self.console, disable=not drawn, refresh_per_second=4)
        self._task = self._bar.add_task("", total=total)
        self._plain = PlainLines(self.line, shown=shown and not drawn)
        self._open = ExitStack()
        self._evaluation: Counted | None = None
        self._epoch, self._note = "epoch 1", "starting"
        self._first: float | None = None  # how much was done at the beginning, and ...
        self._done, self._began = 0.0, time.monotonic()  # ... is now; and when that was
        self._images = 0
        self._started = time.monotonic()

    def __enter__(self) -> Self:
        self._open.enter_context(self._bar)
        self._open.enter_context(self._plain)
        return self

    def __exit__(self, *_: object) -> None:
        self._open.close()

    def __rich__(self) -> Text:
        """The line, beside the bar whenever that is drawn."""
        return Text(self.line())

    def start_epoch(self, epoch: int, done: float) -> None:
        """Count images anew, in this epoch, with so much of the training done."""
        self._images = 0
        self._started = time.monotonic()
        self._epoch = f"epoch {epoch + 1}" + (f"/{self.epochs}" if self.epochs else "")
        self._done = done
        if self._first is None:
            self._first, self._began = done, self._started
        self._bar.update(self._task, completed=done)

    def step(self, images: int) -> None:
        """So many more images were trained on."""
        self._images += images

    def show(self, losses: Mapping[str, float], done: float) -> None:
        """The losses, and how much of the training is done."""
        terms = "  ".join(f"{name} {value:.3f}" for name, value in losses.items())
        self._done, self._note = done, f"{terms}  {self.rate():.1f} images/s"
        self._bar.update(self._task, completed=done)

    def rate(self) -> float:
        """Images per second since the epoch began."""
        return self._images / max(time.monotonic() - self._started, 1e-9)

    @contextmanager
    def evaluating(self) -> Iterator[Callable[[int, int], None]]:
        """A function to call with (images done, their total) while the training waits for an evaluation."""
        self._evaluation = Counted("evaluating")
        try:
            yield self._evaluation
        finally:
            self._evaluation = None

    def line(self) -> str:
        """All of it in one line, such as "epoch 2/9, 17 %: box 0.412  class 0.801  38.2 images/s, 1:02 left"."""
        evaluation = self._evaluation
        if evaluation is not None:
            return evaluation.line()
        fraction = min(1.0, self._done / self.total)
        own = (self._done - (self._first or 0.0)) / (self.total - (self._first or 0.0) or 1)
        left = f", {time_left(min(own, 1.0), time.monotonic() - self._began)} left" if own > 0 else ""
        return f"{self._epoch}, {100 * fraction:.0f} %: {self._note}{left}"

    def print(self, line: str) -> None:
        """A line above the bar."""
        if self.shown:
            self._bar.console.print(line, highlight=False)
