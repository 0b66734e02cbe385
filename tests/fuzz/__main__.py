"""`python -m tests.fuzz SECONDS`: cases one after another; every traceback is printed with the number of its case."""

from __future__ import annotations

import argparse
import datetime
import platform
import random
import signal
import sys
import tempfile
import time
import traceback
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType

from tests.fuzz.targets import TARGETS, Target
from tightbox.errors import UserError
from tightbox.version import __version__

HANG_SECONDS = 5
PAGE = Path(__file__).parents[2] / "docs" / "robustness.md"


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
        frames = [
            f for f in traceback.extract_tb(error.__traceback__) if "/tightbox/" in f.filename or "/fuzz/" in f.filename
        ]
        last = frames[-1] if frames else None
        where = f"{type(error).__name__} at {last and Path(last.filename).name}:{last and last.lineno}"
        _note(tally, case, where, traceback.format_exc())
    taken = time.process_time() - start
    tally.seconds += taken
    if taken > tally.slowest:
        tally.slowest, tally.slowest_case = taken, case


def _note(tally: Tally, case: int, where: str, text: str = "") -> None:
    tally.fault_count += 1
    tally.faults.setdefault(where, (case, text))


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


def fuzz(
    folder: Path, *, kinds: list[str], first: int, seconds: float = float("inf"), rounds: float = float("inf")
) -> dict[str, Tally]:
    """Cases from `first` on of every kind, by turns, for a time or a number of rounds."""
    warnings.simplefilter("ignore")
    targets = {kind: TARGETS[kind](folder / kind.replace(" ", "_")) for kind in kinds}
    tallies = {kind: Tally() for kind in kinds}
    until, done = time.monotonic() + seconds, 0
    while done < rounds and time.monotonic() < until:
        for kind, target in targets.items():
            for _ in range(target.weight):
                run_case(target, kind, first + tallies[kind].inputs, tallies[kind])
        done += 1
    return tallies


def table(tallies: dict[str, Tally]) -> str:
    """The figures as a Markdown table."""
    lines = ["| input | cases | refused by a sentence | accepted | tracebacks | hangs | slowest, CPU seconds |"]
    lines.append("|---|---|---|---|---|---|---|")
    total = Tally()
    for kind, t in tallies.items():
        lines.append(_row(kind, t))
        total.inputs, total.refused, total.accepted = (
            total.inputs + t.inputs,
            total.refused + t.refused,
            total.accepted + t.accepted,
        )
        total.fault_count, total.slowest = total.fault_count + t.fault_count, max(total.slowest, t.slowest)
        total.hangs += t.hangs
    return "\n".join([*lines, _row("all", total)]) + "\n"


def _row(kind: str, t: Tally) -> str:
    cells = (kind, t.inputs, t.refused, t.accepted, t.fault_count, len(t.hangs), f"{t.slowest:.2f}")
    return "| " + " | ".join(f"{cell:,}" if isinstance(cell, int) else cell for cell in cells) + " |"


def put_into_page(name: str, command: str, content: str) -> None:
    """Replace what stands between the marks of this name in docs/robustness.md, with what it takes to make it again."""
    about = (
        f"`{command}` on {datetime.datetime.now(datetime.UTC):%Y-%m-%d}, tightbox {__version__}, "
        f"Python {platform.python_version()}:"
    )
    start, end = f"<!-- {name} -->\n", f"<!-- /{name} -->\n"
    before, _, rest = PAGE.read_text(encoding="utf-8").partition(start)
    PAGE.write_text(f"{before}{start}{about}\n\n{content.strip()}\n\n{end}{rest.partition(end)[2]}", encoding="utf-8")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("seconds", type=float, nargs="?", default=60)
    parser.add_argument("--first", type=int, default=0, help="number of the first case")
    parser.add_argument("--kinds", nargs="+", choices=list(TARGETS), default=list(TARGETS))
    parser.add_argument("--case", type=int, help="run only this case, of one kind, and show what it raises")
    parser.add_argument("--page", action="store_true", help="write the table into docs/robustness.md")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory(dir="/dev/shm" if Path("/dev/shm").is_dir() else None) as folder:
        if args.case is not None:
            kind = args.kinds[0]
            TARGETS[kind](Path(folder) / "case").run(random.Random(f"{kind} {args.case}"))
            return 0
        tallies = fuzz(Path(folder), kinds=args.kinds, first=args.first, seconds=args.seconds)
    print(table(tallies))
    for kind, tally in tallies.items():
        print(f"{kind}: {tally.seconds:.0f} s in all; slowest case {tally.slowest_case}")
    for kind, tally in tallies.items():
        for where, (case, text) in tally.faults.items():
            print(f"{kind} case {case}: {where}\n{text}")
        for case in tally.hangs:
            print(f"{kind} case {case}: longer than {HANG_SECONDS} s")
    if args.page:
        put_into_page("fuzz", f"make fuzz SECONDS={args.seconds:g} FIRST={args.first}", table(tallies))
    return int(any(tally.faults or tally.hangs for tally in tallies.values()))


if __name__ == "__main__":
    sys.exit(main())
