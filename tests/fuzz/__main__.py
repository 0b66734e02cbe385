"""`python -m tests.fuzz SECONDS`: rounds of cases; every traceback is printed with the number of its case.

With `--tally FILE` a run goes on where the file's last one ended and adds to its figures, as long as the package and
the harness are the same to the letter.
"""

from __future__ import annotations

import argparse
import dataclasses
import hashlib
import json
import multiprocessing
import random
import sys
import tempfile
import time
from collections import deque
from concurrent.futures import Future, ProcessPoolExecutor
from pathlib import Path
from typing import Any

from tests.fuzz.cases import HANG_SECONDS, Tally, run_rounds
from tests.fuzz.targets import TARGETS, Target
from tests.helpers.robustness_page import put_into_page
from tightbox.files import write_json

ROOT = Path(__file__).parents[2]
ROUNDS_AT_ONCE = 5
_targets: dict[str, Target] = {}


@dataclasses.dataclass
class Run:
    """Rounds from `first` to before `next`, of one version of the sources, over any number of starts."""

    source: str
    first: int
    next: int
    tallies: dict[str, Tally]

    @classmethod
    def from_json(cls, content: dict[str, Any]) -> Run:
        tallies = {kind: Tally(**values) for kind, values in content["tallies"].items()}
        return cls(**content | {"tallies": tallies})


def digest_of_sources() -> str:
    """A short hash of the package and of the harness: figures are added up within one version only."""
    digest = hashlib.sha256()
    for path in sorted([*ROOT.glob("src/tightbox/**/*.py"), *ROOT.glob("tests/fuzz/*.py")]):
        digest.update(path.relative_to(ROOT).as_posix().encode() + b"\n" + path.read_bytes())
    return digest.hexdigest()[:12]


def fuzz(run: Run, *, seconds: float, jobs: int, tally: Path | None) -> None:
    """Further rounds of a run, for a time, in processes of which each has its own folders."""
    until, number = time.monotonic() + seconds, run.next
    waiting: deque[tuple[int, Future[dict[str, Tally]]]] = deque()
    with (
        tempfile.TemporaryDirectory(dir="/dev/shm" if Path("/dev/shm").is_dir() else None) as folder,
        ProcessPoolExecutor(jobs, multiprocessing.get_context("fork"), _prepare, (folder, list(run.tallies))) as pool,
    ):
        while True:
            while len(waiting) <= jobs and time.monotonic() < until:
                waiting.append((number + ROUNDS_AT_ONCE, pool.submit(_rounds, number, number + ROUNDS_AT_ONCE)))
                number += ROUNDS_AT_ONCE
            if not waiting:
                return
            run.next, future = waiting.popleft()
            for kind, more in future.result().items():
                run.tallies[kind].add(more)
            if tally is not None:
                write_json(tally, dataclasses.asdict(run))


def _prepare(folder: str, kinds: list[str]) -> None:
    own = Path(tempfile.mkdtemp(dir=folder))
    _targets.update((kind, TARGETS[kind](own / kind.replace(" ", "_"))) for kind in kinds)


def _rounds(first: int, end: int) -> dict[str, Tally]:
    return run_rounds(_targets, range(first, end))


def table(tallies: dict[str, Tally]) -> str:
    """The figures as a Markdown table."""
    total = Tally()
    for tally in tallies.values():
        total.add(tally)
    head = ["input", "cases", "refused by a sentence", "accepted", "tracebacks", "hangs", "slowest, CPU seconds"]
    rows = [head, ["---"] * len(head)]
    for kind, t in [*tallies.items(), ("all", total)]:
        counts = (t.inputs, t.refused, t.accepted, t.fault_count, len(t.hangs))
        rows.append([kind, *(f"{count:,}" for count in counts), f"{t.slowest:.2f}"])
    return "\n".join(f"| {' | '.join(row)} |" for row in rows) + "\n"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("seconds", type=float, nargs="?", default=60, help="no round is begun after them")
    parser.add_argument("--first", type=int, default=0, help="number of the first round")
    parser.add_argument("--jobs", type=int, default=1, help="number of processes")
    parser.add_argument("--tally", type=Path, help="a JSON file of figures that this run goes on with")
    parser.add_argument("--kinds", nargs="+", choices=list(TARGETS), default=list(TARGETS))
    parser.add_argument("--case", type=int, help="run only this case, of one kind, and show what it raises")
    parser.add_argument("--page", action="store_true", help="write the table into docs/robustness.md")
    args = parser.parse_args()
    if args.case is not None:
        with tempfile.TemporaryDirectory() as folder:
            TARGETS[args.kinds[0]](Path(folder) / "case").run(random.Random(f"{args.kinds[0]} {args.case}"))
        return 0
    run = Run(digest_of_sources(), args.first, args.first, {kind: Tally() for kind in args.kinds})
    if args.tally is not None and args.tally.exists():
        earlier = Run.from_json(json.loads(args.tally.read_text(encoding="utf-8")))
        if earlier.source != run.source:
            parser.error(f"{args.tally} is of other sources ({earlier.source}, not {run.source}); name a new file")
        run = earlier
    fuzz(run, seconds=args.seconds, jobs=args.jobs, tally=args.tally)
    print(table(run.tallies))
    for kind, tally in run.tallies.items():
        print(f"{kind}: {tally.seconds:.0f} s in all; slowest case {tally.slowest_case}")
        for where, (case, text) in tally.faults.items():
            print(f"{kind} case {case}: {where}\n{text}")
        for case in tally.hangs:
            print(f"{kind} case {case}: longer than {HANG_SECONDS} s")
    if args.page:
        about = f"Rounds {run.first:,} to {run.next - 1:,} of sources {run.source}, in one run or several."
        put_into_page("fuzz", f"make fuzz FIRST={run.first}", f"{about}\n\n{table(run.tallies)}")
    return int(any(tally.faults or tally.hangs for tally in run.tallies.values()))


if __name__ == "__main__":
    sys.exit(main())
