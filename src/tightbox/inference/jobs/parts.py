"""Part files: one row for each image, with all of its boxes, in Parquet or as JSON lines."""

import io
import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, Literal

from tightbox.errors import UserError, import_extra
from tightbox.files import atomic_path
from tightbox.inference.files import FileResult

Kind = Literal["parquet", "jsonl"]
Row = dict[str, Any]

COLUMNS = ("index", "path", "width", "height", "error", "boxes", "scores", "classes", "ious")


def row_of(index: int, name: str, result: FileResult, class_names: Sequence[str]) -> Row:
    """The row of one image.

    Args:
        index: its position in the manifest.
        name: as the manifest has it.
        result: what was found; its boxes stay [x1, y1, x2, y2] in pixels.
        class_names: the name of each label.
    """
    found, (height, width) = result.found, result.size
    return {
        "index": index,
        "path": name,
        "width": width or None,
        "height": height or None,
        "error": None if result.error is None else result.error.reason,
        "boxes": found.boxes.tolist(),
        "scores": found.scores.tolist(),
        "classes": [class_names[label] for label in found.labels.tolist()],
        "ious": None if found.ious is None else found.ious.tolist(),
    }


def write_rows(path: Path, rows: Sequence[Row]) -> None:
    """Write a part, whole or not at all; the form is that of its suffix.

    Raises:
        UserError: if the disk refuses, or pyarrow is not installed.
    """
    content = parquet_bytes(rows) if path.suffix == ".parquet" else json_lines(rows)
    with atomic_path(path) as temporary:
        temporary.write_bytes(content)


def json_lines(rows: Iterable[Row]) -> bytes:
    """One JSON object a line."""
    return "".join(json.dumps(row, allow_nan=False) + "\n" for row in rows).encode()


def parquet_bytes(rows: Sequence[Row]) -> bytes:
    """A Parquet file, made in memory so that the disk's errors are met where all files are written."""
    buffer = io.BytesIO()
    import_pyarrow().parquet.write_table(table_of(rows), buffer)
    return buffer.getvalue()


def table_of(rows: Sequence[Row]) -> Any:
    """The rows as a pyarrow table."""
    return import_pyarrow().Table.from_pylist(list(rows), schema=schema())


def schema() -> Any:
    """The type of each of the `COLUMNS` in Parquet."""
    pa = import_pyarrow()
    number, text = pa.float32(), pa.string()
    columns = {"index": pa.int64(), "path": text, "width": pa.int32(), "height": pa.int32(), "error": text}
    columns |= {"boxes": pa.list_(pa.list_(number, 4)), "scores": pa.list_(number), "classes": pa.list_(text)}
    return pa.schema(columns | {"ious": pa.list_(number)})


def read_rows(path: Path, columns: Sequence[str] = COLUMNS) -> list[Row]:
    """The rows of a part.

    Raises:
        UserError: if it is damaged or cannot be read, or pyarrow is not installed.
    """
    try:
        if path.suffix == ".parquet":
            rows: list[Row] = import_pyarrow().parquet.read_table(path, columns=list(columns)).to_pylist()
            return rows
        parsed = (json.loads(line) for line in path.read_text(encoding="utf-8").splitlines())
        return [{name: row[name] for name in columns} for row in parsed]
    except UserError:
        raise
    except FileNotFoundError as error:
        raise UserError(f"the part {path} is gone; run the job again with --resume") from error
    except Exception as error:  # pyarrow's own errors are of many kinds
        how = "delete it and run the job again with --resume"
        raise UserError(f"the part {path} is damaged or no part; {how}") from error


def import_pyarrow() -> Any:
    """The module pyarrow, with its `parquet`.

    Raises:
        UserError: if it is not installed.
    """
    name = "pyarrow, which writes Parquet files,"
    pyarrow = import_extra("pyarrow", "parquet", name)
    import_extra("pyarrow.parquet", "parquet", name)
    return pyarrow
