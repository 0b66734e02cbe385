"""Cases by number, in rounds: each round has as many cases of every kind as the kind's weight says."""

from __future__ import annotations

import random
import signal
import time
import traceback
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType

from tests.fuzz.targets import Target
from tightbox.errors import UserError

HANG_SECONDS = 5


class Hang(BaseException):
    """A case that computed for longer than `HANG_SECONDS`; other programs' time does not count."""


@dataclass
class Tally:
    """What came of the cases of one kind."""

    inputs: int = 0
    refused: int = 0
    accepted: int = 0
    slowest: float = 0.0
    slowest_case: int = 0
    seconds: float = 0.0
    faults: dict[str, tuple[int, str]] = field(default_factory=dict)  # by where it happened: a case, and its traceback
    fault_count: int = 0
    hangs: list[int] = field(default_factory=list)

    def add(self, other: Tally) -> None:
        """Count the cases of another tally, too."""
        if other.slowest > self.slowest:
            self.slowest, self.slowest_case = other.slowest, other.slowest_case
        for name in ("inputs", "refused", "accepted", "seconds", "fault_count", "hangs"):
            setattr(self, name, getattr(self, name) + getattr(other, name))
        self.faults = other.faults | self.faults


def run_rounds(targets: Mapping[str, Target], rounds: range) -> dict[str, Tally]:
    """The cases of these rounds, kind by kind within each."""
    warnings.simplefilter("ignore")
    tallies = {kind: Tally() for kind in targets}
    for number in rounds:
        for kind, target in targets.items():
            for case in range(number * target.weight, (number + 1) * target.weight):
                run_case(target, kind, case, tallies[kind])
    return tallies


def run_case(target: Target, kind: str, case: int, tally: Tally) -> None:
    """One case: the same kind and number are the same input again."""
    rng = random.Random(f"{kind} {case}")
    tally.inputs += 1
    start = time.process_time()
    try:
        with _alarm():
            target.run(rng)
        tally.accepted += 1
    except UserError as error:
        tally.refused += 1
        try:
            str(error).encode()
        except UnicodeEncodeError:
            _note(tally, case, "a sentence that cannot be printed")
    except Hang:
        tally.hangs.append(case)
    except Exception as error:
        _note(tally, case, f"{type(error).__name__} at {_place(error)}", traceback.format_exc())
    taken = time.process_time() - start
    tally.seconds += taken
    if taken > tally.slowest:
        tally.slowest, tally.slowest_case = taken, case


def _note(tally: Tally, case: int, where: str, text: str = "") -> None:
    tally.fault_count += 1
    tally.faults.setdefault(where, (case, text))


def _place(error: Exception) -> str:
    """File and line of the innermost frame that is the package's or the harness's own."""
    places = [
        f"{Path(frame.filename).name}:{frame.lineno}"
        for frame in traceback.extract_tb(error.__traceback__)
        if "/tightbox/" in frame.filename or "/fuzz/" in frame.filename
    ]
    return places[-1]


@contextmanager
def _alarm() -> Iterator[None]:
    def ring(number: int, frame: FrameType | None) -> None:
        raise Hang

    before = signal.signal(signal.SIGPROF, ring)
    signal.setitimer(signal.ITIMER_PROF, HANG_SECONDS)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)
        signal.signal(signal.SIGPROF, before)
