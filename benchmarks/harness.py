"""What the benchmarks share: their options, steps that take turns, and the table as a file."""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import torch

from tightbox.errors import UserError
from tightbox.files import atomic_path


def table_options(
    description: str | None, repeats: int, own: Callable[[argparse.ArgumentParser], object] = lambda parser: None
) -> tuple[argparse.ArgumentParser, argparse.Namespace]:
    """The parser and the options of a benchmark that times rows of a table; PyTorch has the threads from now on.

    `own` adds the benchmark's own options.
    """
    parser = argparse.ArgumentParser(description=description)
    own(parser)
    parser.add_argument("--repeats", type=int, default=repeats, help="rounds through each row; the fastest counts")
    parser.add_argument("--threads", type=int, help="threads of PyTorch; left out, what PyTorch chooses")
    parser.add_argument("--markdown", type=Path, metavar="FILE", help="also write the table to FILE")
    options = parser.parse_args()
    if options.repeats < 1 or (options.threads is not None and options.threads < 1):
        parser.error("--repeats and --threads must be 1 or more")
    if options.threads:
        torch.set_num_threads(options.threads)
    return parser, options


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
