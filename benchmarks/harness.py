"""What the benchmarks share: steps that take turns, and the table as a file."""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from tightbox.errors import UserError
from tightbox.files import atomic_path


def fastest_interleaved(steps: Sequence[Callable[[], object]], repeats: int) -> list[float]:
    """Seconds of each step at its fastest; taking turns lets a busy moment of the machine fall on all of them."""
    fastest = [float("inf")] * len(steps)
    for step in steps:
        step()
    for _ in range(repeats):
        for number, step in enumerate(steps):
            start = time.perf_counter()
            step()
            fastest[number] = min(fastest[number], time.perf_counter() - start)
    return fastest


def write_table(path: Path | None, lines: list[str], parser: argparse.ArgumentParser) -> None:
    """Write the lines to the file of `--markdown`, if there is one; what the disk says is the parser's error."""
    if path is None:
        return
    try:
        with atomic_path(path) as temporary:
            temporary.write_text("\n".join(lines) + "\n", encoding="utf-8")
    except UserError as error:
        parser.error(str(error))
