"""Part files: one row for each image, with all of its boxes, in Parquet or as JSON lines."""

from __future__ import annotations

import io
import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, Literal

from tightbox.errors import UserError, missing_extra
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
    failed = result.error is not None
    return {
        "index": index,
        "path": name,
        "width": None if failed else width,
        "height": None if failed else height,
        "error": result.error.reason if result.error is not None else None,
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
    import_pyarrow()
    import pyarrow.parquet as pq

    buffer = io.BytesIO()
    pq.write_table(table_of(rows), buffer)
    return buffer.getvalue()


def table_of(rows: Sequence[Row]) -> Any:
    """The rows as a pyarrow table."""
    pa = import_pyarrow()
    numbers = pa.list_(pa.float32())
    kinds = {
        "index": pa.int64(),
        "path": pa.string(),
        "width": pa.int32(),
        "height": pa.int32(),
        "error": pa.string(),
        "boxes": pa.list_(pa.list_(pa.float32(), 4)),
        "scores": numbers,
        "classes": pa.list_(pa.string()),
        "ious": numbers,
    }
    return pa.Table.from_pylist(list(rows), schema=pa.schema([(name, kinds[name]) for name in COLUMNS]))


def read_rows(path: Path, columns: Sequence[str] = COLUMNS) -> list[Row]:
    """The rows of a part.

    Raises:
        UserError: if it is damaged or cannot be read, or pyarrow is not installed.
    """
    damaged = f"the part {path} is damaged or no part; delete it and run the job again with --resume"
    try:
        if path.suffix == ".parquet":
            import_pyarrow()
            import pyarrow.parquet as pq

            rows: list[Row] = pq.read_table(path, columns=list(columns)).to_pylist()
        else:
            parsed = (json.loads(line) for line in path.read_text(encoding="utf-8").splitlines())
            rows = [{name: row[name] for name in columns} for row in parsed]
    except UserError:
        raise
    except FileNotFoundError as error:
        raise UserError(f"the part {path} is gone; run the job again with --resume") from error
    except Exception as error:  # pyarrow's own errors are of many kinds
        raise UserError(damaged) from error
    return rows


def import_pyarrow() -> Any:
    """The module pyarrow.

    Raises:
        UserError: if it is not installed.
    """
    try:
        import pyarrow
    except ImportError as error:
        raise missing_extra("pyarrow, which writes Parquet files,", "parquet") from error
    return pyarrow
