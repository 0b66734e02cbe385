"""The text files of the face data sets: an image's name, the number of its faces, then one row of numbers for each."""

from __future__ import annotations

from math import isfinite
from pathlib import Path
from typing import NamedTuple

from tightbox.data.records import Parsed


class Entry(NamedTuple):
    """One image of such a file: its name and the rows of its faces."""

    name: str
    rows: list[tuple[float, ...]]


def read_entries(path: Path, columns: int, parsed: Parsed) -> list[Entry]:
    """The images of a file in order; what makes no sense becomes an error of `parsed` that names file and line.

    A line with a slash in it is an image's name, so that a wrong count spoils no image but its own.

    Args:
        path: the file.
        columns: how many numbers a row has.
        parsed: takes the errors.
    """
    blocks: list[list[tuple[int, str]]] = []
    for number, line in enumerate(path.read_text(encoding="utf-8-sig", errors="replace").splitlines(), 1):
        text = line.strip()
        if "/" in text:
            blocks.append([(number, text)])
        elif text and blocks:
            blocks[-1].append((number, text))
        elif text:
            message = f"{path}:{number}: {text!r} comes before the first image's name"
            parsed.error("face-list", message, "it may be another file: copy or download it again")
            return []
    return [Entry(block[0][1], _rows(path, block, columns, parsed)) for block in blocks]


def _rows(path: Path, block: list[tuple[int, str]], columns: int, parsed: Parsed) -> list[tuple[float, ...]]:
    (number, name), *lines = block
    fix = "the file may be cut off: copy or download it again"
    if not lines or not lines[0][1].isdecimal():
        parsed.error("face-list", f"{path}:{number}: no number of faces follows {name}", fix)
        return []
    (number, count), *lines = lines
    rows = []
    for place, text in lines:
        row = _numbers(text)
        if len(row) != columns:
            message = f"{path}:{place}: {text!r} is not a row of {columns} numbers"
            parsed.error("face-list", message, "correct or remove the line")
            return []
        rows.append(row)
    if int(count) == 0 and rows and not any(rows[0]):
        rows = rows[1:]  # WIDER FACE writes one row of zeros where there is no face
    if len(rows) != int(count):
        message = f"{path}:{number}: {name} should have {count} faces, but has {len(rows)} rows"
        parsed.error("face-list", message, fix)
        return []
    return rows


def _numbers(text: str) -> tuple[float, ...]:
    """The numbers of a line; none if one of them is no finite number."""
    try:
        numbers = tuple(map(float, text.split()))
    except ValueError:
        return ()
    return numbers if all(map(isfinite, numbers)) else ()
