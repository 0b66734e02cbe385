"""The parts of a job, and their files: one row for each image, with all of its boxes, in Parquet or as JSON lines."""

import io
import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

from tightbox.draw import draw_detections
from tightbox.errors import UserError, import_extra
from tightbox.files import atomic_path
from tightbox.images import write_image
from tightbox.inference.files import DECODERS, FileResult, Selection, detect_files
from tightbox.models import Detector

Kind = Literal["parquet", "jsonl"]
Row = dict[str, Any]

COLUMNS = ("index", "path", "width", "height", "error", "boxes", "scores", "classes", "ious")


@dataclass(frozen=True)
class Part:
    """Consecutive images of a manifest, whose results are one file.

    Attributes:
        number: from 0.
        start: position of its first image in the manifest.
        names: of its images.
    """

    number: int
    start: int
    names: tuple[str, ...]


@dataclass(frozen=True)
class Work:
    """How the images of a part become its file; it can be sent to another process.

    Attributes:
        root: where the names of images start.
        select: which detections are reported.
        batch_size: images that the network sees together.
        workers: threads that decode ahead.
        drawn: folder of the annotated copies; None writes none.
    """

    root: Path
    select: Selection
    batch_size: int = 8
    workers: int = DECODERS
    drawn: Path | None = None

    def rows(self, model: Detector, names: Sequence[str], start: int = 0) -> Iterator[Row]:
        """The row of each image, once its annotated copy is written.

        Args:
            model: on its device.
            names: of the images.
            start: position of the first in the manifest.
        """
        paths, keep = (self.root / name for name in names), self.drawn is not None
        results = detect_files(model, paths, batch_size=self.batch_size, workers=self.workers, keep_images=keep)
        for index, (name, result) in enumerate(zip(names, results, strict=True), start):
            selected = replace(result, found=self.select(result.found))
            if self.drawn is not None and result.image is not None:
                # The whole name and not its stem, as a.png may lie beside a.jpg; and none leads out of the folder.
                copy = self.drawn / f"{name.lstrip('/').replace('../', '__/')}.jpg"
                write_image(copy, draw_detections(result.image, selected.found, model.class_names))
            yield row_of(index, name, selected, model.class_names)

    def run(self, model: Detector, part: Part, target: Path, progress: Callable[[], None] = lambda: None) -> None:
        """Detect in the images of a part, and write its file.

        Args:
            model: on its device.
            part: what to do.
            target: the file.
            progress: called after each image.

        Raises:
            UserError: if the disk refuses.
        """
        # What a process that was killed while writing this part left behind; nobody else writes it.
        for half in target.parent.glob(f".{target.name}.*.tmp"):
            with suppress(OSError):
                half.unlink()
        rows = []
        for row in self.rows(model, part.names, part.start):
            rows.append(row)
            progress()
        write_rows(target, rows)


def failures_in(parts: Iterable[Path]) -> Iterator[str]:
    """A sentence on each image that failed in finished parts.

    Raises:
        UserError: if a part is damaged.
    """
    for path in parts:
        for row in read_rows(path, ("path", "error")):
            if row["error"] is not None:
                yield f"{row['path']}: {row['error']}"


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
    content = io.BytesIO()  # in memory, so that the disk's errors are met where all files are written
    if path.suffix == ".parquet":
        import_pyarrow().parquet.write_table(table_of(rows), content)
    else:
        content.write(json_lines(rows))
    with atomic_path(path) as temporary:
        temporary.write_bytes(content.getbuffer())


def json_lines(rows: Iterable[Row]) -> bytes:
    """One JSON object a line."""
    return "".join(json.dumps(row, allow_nan=False) + "\n" for row in rows).encode()


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
    import_extra("pyarrow.parquet", "parquet", name)
    return import_extra("pyarrow", "parquet", name)
