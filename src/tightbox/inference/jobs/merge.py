"""All parts of a job as one file, and the proof that no image is missing or there twice."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

from tightbox.errors import UserError
from tightbox.files import atomic_path
from tightbox.inference.jobs.job import JOB, JobCard
from tightbox.inference.jobs.manifest import listed, name_line
from tightbox.inference.jobs.parts import Row, import_pyarrow, json_lines, read_rows, table_of

SUFFIXES = (".parquet", ".jsonl", ".json")


class Merged(NamedTuple):
    """What a merged file holds."""

    images: int
    failed: int
    boxes: int


def merge(folders: Sequence[Path], target: Path) -> Merged:
    """Write the rows of all parts in the order of the manifest; one part is in memory at a time.

    Args:
        folders: of the job's shards, or the one that they share.
        target: `.parquet` and `.jsonl` hold the rows as the parts do, `.json` is a COCO result file of the boxes, with
            an image's position in the manifest plus 1 as its id.

    Raises:
        UserError: if the folders are not of one job, or a part or an image is missing, there twice or damaged; then
            nothing is written.
    """
    if target.suffix not in SUFFIXES:
        raise UserError(f"{target} must end in {', '.join(SUFFIXES)}: the suffix chooses the form")
    card = _common_card(folders)
    parts = _parts(folders, card)
    images = failed = boxes = 0
    with atomic_path(target) as temporary, temporary.open("wb") as file:
        writer = _writer(target.suffix, file, card)
        for rows in _proven(parts, card):
            writer.write(rows)
            images += len(rows)
            failed += sum(row["error"] is not None for row in rows)
            boxes += sum(len(row["boxes"]) for row in rows)
        writer.close()
    return Merged(images, failed, boxes)


def _writer(suffix: str, file: BinaryIO, card: JobCard) -> _JsonLines | _Parquet | _Coco:
    if suffix == ".json":
        return _Coco(file, card.class_names)
    return _Parquet(file) if suffix == ".parquet" else _JsonLines(file)


def _common_card(folders: Sequence[Path]) -> JobCard:
    cards: list[JobCard] = []
    for folder in folders:
        card = JobCard.read(folder)
        if card is None:
            raise UserError(f"{folder} is not the folder of a job: it has no {JOB}")
        if cards and (difference := cards[0].difference(card)):
            raise UserError(f"{folders[0]} and {folder} are not of one job: {difference}; merge each on its own")
        cards.append(card)
    return cards[0]


def _parts(folders: Sequence[Path], card: JobCard) -> list[Path]:
    """The file of each part, in order."""
    parts, missing = [], []
    for number in range(card.parts):
        found = [path for path in (card.part_path(folder, number) for folder in folders) if path.exists()]
        if len(found) > 1:
            raise UserError(f"{found[0].name} is in both {found[0].parent} and {found[1].parent}; leave one out")
        parts += found
        if not found:
            missing.append(card.part_path(Path(), number).name)
    if missing:
        raise UserError(
            f"{len(missing)} of the {card.parts} parts are missing: {listed(missing)}; finish the job with --resume, "
            "or name the folders of the other shards too"
        )
    return parts


def _proven(parts: Sequence[Path], card: JobCard) -> Iterator[list[Row]]:
    """The rows of each part, which hold every image of the manifest once, or an error."""
    digest, images = hashlib.sha256(), 0
    for path in parts:
        rows = read_rows(path)
        size = min(card.part_size, card.images - images)
        if [row["index"] for row in rows] != list(range(images, images + size)):
            raise UserError(
                f"{path} does not hold the images {images} to {images + size - 1} of the manifest, each once; "
                "delete it and run the job again with --resume"
            )
        for row in rows:
            digest.update(name_line(row["path"]))
        images += size
        yield rows
    if digest.hexdigest() != card.manifest:
        raise UserError(
            f"the images in the parts of {parts[0].parent} are not those of the manifest; run the job anew in another "
            "folder"
        )


class _JsonLines:
    def __init__(self, file: BinaryIO) -> None:
        self.file = file

    def write(self, rows: list[Row]) -> None:
        self.file.write(json_lines(rows))

    def close(self) -> None:
        pass


class _Parquet:
    def __init__(self, file: BinaryIO) -> None:
        import_pyarrow()
        self.file = file
        self.writer: Any = None

    def write(self, rows: list[Row]) -> None:
        import pyarrow.parquet as pq

        table = table_of(rows)
        self.writer = self.writer or pq.ParquetWriter(self.file, table.schema)
        self.writer.write_table(table)

    def close(self) -> None:
        self.writer.close()


class _Coco:
    """Rows of a COCO result file; category ids count the detector's classes from 1."""

    def __init__(self, file: BinaryIO, class_names: Sequence[str]) -> None:
        self.file = file
        self.ids = {name: number for number, name in enumerate(class_names, 1)}
        self.before = b"[\n"

    def write(self, rows: list[Row]) -> None:
        for row in rows:
            ious = row["ious"] or [None] * len(row["boxes"])
            columns = zip(row["boxes"], row["scores"], row["classes"], ious, strict=True)
            for (x1, y1, x2, y2), score, name, iou in columns:
                found: Row = {"image_id": row["index"] + 1, "category_id": self.ids[name]}
                found |= {"bbox": [round(v, 3) for v in (x1, y1, x2 - x1, y2 - y1)], "score": score}
                found |= {} if iou is None else {"iou": iou}
                found |= {"file_name": row["path"], "class": name}
                self.file.write(self.before + json.dumps(found).encode())
                self.before = b",\n"

    def close(self) -> None:
        self.file.write(b"[]\n" if self.before == b"[\n" else b"\n]\n")
