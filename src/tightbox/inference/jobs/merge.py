"""All parts of a job as one file, and the proof that no image is missing or there twice."""

import hashlib
import json
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from itertools import chain
from pathlib import Path
from typing import BinaryIO, NamedTuple

from tightbox.errors import UserError
from tightbox.files import atomic_path
from tightbox.inference.jobs.job import JOB, JobCard, listed, name_line
from tightbox.inference.jobs.parts import Row, import_pyarrow, json_lines, read_rows, schema, table_of


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
    writers = {".parquet": _write_parquet, ".jsonl": _write_lines, ".json": _write_coco}
    if target.suffix not in writers:
        raise UserError(f"{target} must end in {', '.join(writers)}: the suffix chooses the form")
    card = _common_card(folders)
    parts, count = _parts(folders, card), Counter(images=0, failed=0, boxes=0)
    with atomic_path(target) as temporary, temporary.open("wb") as file:
        writers[target.suffix](file, _proven(parts, card, count), card.class_names)
    return Merged(**count)


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


def _proven(parts: Sequence[Path], card: JobCard, count: Counter[str]) -> Iterator[list[Row]]:
    """The rows of each part, which hold every image of the manifest once, or an error; counts what they hold."""
    digest = hashlib.sha256()
    for path in parts:
        rows, start = read_rows(path), count["images"]
        end = min(start + card.part_size, card.images)
        if [row["index"] for row in rows] != list(range(start, end)):
            raise UserError(
                f"{path} does not hold the images {start} to {end - 1} of the manifest, each once; "
                "delete it and run the job again with --resume"
            )
        for row in rows:
            digest.update(name_line(row["path"]))
            count.update(images=1, failed=row["error"] is not None, boxes=len(row["boxes"]))
        yield rows
    if digest.hexdigest() != card.manifest:
        where = f"the parts of {parts[0].parent}"
        raise UserError(f"the images in {where} are not those of the manifest; run the job anew in another folder")


def _write_lines(file: BinaryIO, parts: Iterable[list[Row]], class_names: Sequence[str]) -> None:
    for rows in parts:
        file.write(json_lines(rows))


def _write_parquet(file: BinaryIO, parts: Iterable[list[Row]], class_names: Sequence[str]) -> None:
    with import_pyarrow().parquet.ParquetWriter(file, schema()) as writer:
        for rows in parts:
            writer.write_table(table_of(rows))


def _write_coco(file: BinaryIO, parts: Iterable[list[Row]], class_names: Sequence[str]) -> None:
    """Rows of a COCO result file; category ids count the detector's classes from 1."""
    ids = {name: number for number, name in enumerate(class_names, 1)}
    before = b"[\n"
    for row in chain.from_iterable(parts):
        ious = row["ious"] or [None] * len(row["boxes"])
        for (x1, y1, x2, y2), score, name, iou in zip(row["boxes"], row["scores"], row["classes"], ious, strict=True):
            found: Row = {"image_id": row["index"] + 1, "category_id": ids[name]}
            found |= {"bbox": [round(v, 3) for v in (x1, y1, x2 - x1, y2 - y1)], "score": score}
            found |= {} if iou is None else {"iou": iou}
            found |= {"file_name": row["path"], "class": name}
            file.write(before + json.dumps(found).encode())
            before = b",\n"
    file.write(b"[]\n" if before == b"[\n" else b"\n]\n")
