"""A progress bar for work whose length is known; where there is no terminal to draw in, a plain line now and then."""

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Self

Progress = Callable[[int, int], None]  # called with how many are done, and their total
SECONDS = 9.0  # between two plain lines
SHORT = 0.9  # seconds that something must take to be worth one


def silent(done: int, total: int) -> None:
    """The progress that nobody is told."""


@contextmanager
def progress_bar(what: str, *, shown: bool = True) -> Iterator[Progress]:
    """A function to call with (done, total); draws a bar with the time left, from the first call on."""
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    console = Console()
    if not console.is_terminal:
        counted = Counted(what)
        with PlainLines(counted.line, shown=shown):
            yield counted
        return
    columns = (TextColumn(what), BarColumn(), MofNCompleteColumn(), TextColumn("left"), TimeRemainingColumn())
    with Progress(*columns, console=console, disable=not shown) as bar:
        task = bar.add_task(what, total=None, visible=False)  # until there is something to count
        yield lambda done, total: bar.update(task, completed=done, total=total, visible=True)


class PlainLines:
    """Prints a line from time to time while something takes long, whatever the main thread is busy with.

    Args:
        line: gives the line; called from another thread.
        shown: whether to print, so that one process of several does.
        every: seconds between two lines, of this or of what came before it.
    """

    _last = time.monotonic()

    def __init__(self, line: Callable[[], str], *, shown: bool = True, every: float = SECONDS) -> None:
        self.line = line
        self.shown = shown
        self.every = every
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._print, daemon=True)

    def __enter__(self) -> Self:
        if self.shown:
            self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        if self.shown:
            self._thread.join()

    def _print(self) -> None:
        soonest = min(SHORT, self.every)
        while not self._over.wait(max(soonest, PlainLines._last + self.every - time.monotonic())):
            print(self.line(), flush=True)
            PlainLines._last = time.monotonic()


class Counted:
    """How many of how many are done, and how long the rest will take; called with both numbers."""

    def __init__(self, what: str, clock: Callable[[], float] = time.monotonic) -> None:
        self.what = what
        self.clock = clock
        self._state = (0, 0)  # replaced as a whole, as another thread reads it
        self._started = clock()

    def __call__(self, done: int, total: int) -> None:
        """So many are done, of so many."""
        self._state = (done, total)

    def line(self) -> str:
        """Such as "detecting in val: 40 of 100, 0:12 left"."""
        done, total = self._state
        if not done:
            return f"{self.what}: starting"
        if total <= done:
            return f"{self.what}: {done} done"
        return f"{self.what}: {done} of {total}, {time_left(done / total, self.clock() - self._started)} left"


def time_left(fraction: float, seconds: float) -> str:
    """Of work of which this fraction, above 0, took so many seconds, such as 1:02 or 2:01:02."""
    left = max(0, round(seconds * (1 - fraction) / fraction))
    hours, minutes, seconds = left // 3600, left // 60 % 60, left % 60
    return f"{hours}:{minutes:02}:{seconds:02}" if hours else f"{minutes}:{seconds:02}"
