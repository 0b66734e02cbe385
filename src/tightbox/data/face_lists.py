"""The text files of the face data sets: an image's name, the number of its faces, then one row of numbers for each."""

from pathlib import Path
from typing import NamedTuple

from tightbox.data.records import Parsed
from tightbox.reading import numbers, read_text, shown

_COUNT_DIGITS = 9


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
    for number, line in enumerate((parsed.attempt("face-list", read_text, path) or "").splitlines(), 1):
        text = line.strip()
        if "/" in text:
            blocks.append([(number, text)])
        elif text and blocks:
            blocks[-1].append((number, text))
        elif text:
            message = f"{path}:{number}: {shown(text)} comes before the first image's name"
            parsed.error("face-list", message, "it may be another file: copy or download it again")
            return []
    return [Entry(block[0][1], _rows(path, block, columns, parsed)) for block in blocks]


def _rows(path: Path, block: list[tuple[int, str]], columns: int, parsed: Parsed) -> list[tuple[float, ...]]:
    (number, name), *lines = block
    fix = "the file may be cut off: copy or download it again"
    if not lines or not lines[0][1].isdecimal() or len(lines[0][1]) > _COUNT_DIGITS:
        parsed.error("face-list", f"{path}:{number}: no number of faces follows {name}", fix)
        return []
    (number, count), *lines = lines
    rows = []
    for place, text in lines:
        row = _numbers(text)
        if len(row) != columns:
            message = f"{path}:{place}: {shown(text)} is not a row of {columns} numbers"
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
        return tuple(numbers(text))
    except ValueError:
        return ()
