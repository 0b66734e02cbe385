"""A job: its images, what else it is about, kept in `job.json`, and which of its parts are to be done by whom."""

import hashlib
import os
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any, Self

from tightbox.checkpoint import CARD, WEIGHTS
from tightbox.errors import UserError
from tightbox.files import digest_of, write_json
from tightbox.images import IMAGE_SUFFIXES
from tightbox.inference.jobs.parts import Kind, Part
from tightbox.reading import is_file, read_json, read_lines

JOB, FORMAT = "job.json", 1
_SHOWN = 3  # names in a sentence
_MEANING = {
    "manifest": "the images are others",
    "images": "the images are others",
    "checkpoint": "the checkpoint is another",
    "kind": "--format differs",
    "part_size": "--part-size differs",
    "options": "the options that choose boxes differ",
}


@dataclass(frozen=True)
class Manifest:
    """The images of a job.

    Attributes:
        root: the folder that the names start from; it may be elsewhere when the job is resumed.
        names: sorted, all different.
    """

    root: Path
    names: tuple[str, ...]

    @classmethod
    def of_folder(cls, folder: Path) -> Self:
        """All images in a folder and its subfolders.

        Raises:
            UserError: if there is none.
        """
        names = tuple(sorted(_images_in(folder)))
        if not names:
            raise UserError(f"there is no image in {folder}; give a folder of images, or --manifest FILE")
        return cls(folder, names)

    @classmethod
    def of_file(cls, path: Path) -> Self:
        """The images that a text file names, one on each line, relative to the file's folder or absolute.

        Raises:
            UserError: if it cannot be read, names nothing, or an image twice.
        """
        names = sorted(map(os.path.normpath, read_lines(path)))
        if not names:
            raise UserError(f"the manifest {path} names no image; write one path a line")
        doubles = sorted({first for first, second in pairwise(names) if first == second})
        if doubles:
            raise UserError(f"the manifest {path} names {listed(doubles)} more than once; leave one of each")
        return cls(path.parent, tuple(names))

    @property
    def digest(self) -> str:
        """SHA-256 of the names, one a line; merging compares it with the names in the results."""
        return hashlib.sha256(b"".join(map(name_line, self.names))).hexdigest()


@dataclass(frozen=True)
class Shard:
    """The `number`-th of `count` equal shares of a job, counted from 1."""

    number: int = 1
    count: int = 1

    @classmethod
    def parse(cls, text: str) -> Self:
        """`2/8` is the second of eight.

        Raises:
            UserError: if that makes no sense.
        """
        given = re.fullmatch(r"(\d+)/(\d+)", text.strip())
        if given is None or not 1 <= int(given[1]) <= int(given[2]):
            raise UserError(f"--shard is {text}; write which of how many, counted from 1, such as 1/4 to 4/4")
        return cls(int(given[1]), int(given[2]))


@dataclass(frozen=True)
class JobCard:
    """What `job.json` says.

    Attributes:
        manifest: digest of the names.
        images: how many.
        checkpoint: digest of its files.
        kind: of the part files.
        part_size: images of a part.
        class_names: the name of each label.
        options: what else the results depend on.
    """

    manifest: str
    images: int
    checkpoint: str
    kind: Kind
    part_size: int
    class_names: tuple[str, ...]
    options: Mapping[str, Any]

    @property
    def parts(self) -> int:
        """How many there are."""
        return -(-self.images // self.part_size)

    def part_path(self, folder: Path, number: int) -> Path:
        """The file of a part in a folder of the job."""
        return folder / f"part-{number:06d}.{self.kind}"

    @classmethod
    def read(cls, folder: Path) -> Self | None:
        """The card in a folder; None if there is none.

        Raises:
            UserError: if it is damaged, or of a later format.
        """
        path = folder / JOB
        if not is_file(path):
            return None
        content = read_json(path)
        try:
            if content.pop("format") != FORMAT:
                raise UserError(f"{path} was written by another version of tightbox; use that one, or start anew")
            return cls(**content | {"class_names": tuple(content["class_names"])})
        except (TypeError, KeyError, AttributeError) as error:
            raise UserError(f"{path} is damaged; start the job anew in another folder") from error

    def difference(self, other: Self) -> str:
        """In which way another card is of another job; "" if it is the same."""
        return next((why for name, why in _MEANING.items() if getattr(self, name) != getattr(other, name)), "")


@dataclass(frozen=True)
class Job:
    """A job in its folder, as one process sees it."""

    folder: Path
    manifest: Manifest
    card: JobCard
    shard: Shard

    def enter(self, resume: bool) -> None:
        """Write `job.json`, or see that the one there is this job's.

        Args:
            resume: whether parts of this shard may be there already.

        Raises:
            UserError: if the folder is another job's, or there are such parts and nobody expects them.
        """
        there = JobCard.read(self.folder)
        if there is None:
            if resume:
                raise UserError(f"there is nothing to resume in {self.folder}: it has no {JOB}; leave out --resume")
            write_json(self.folder / JOB, {"format": FORMAT} | asdict(self.card))
        elif difference := self.card.difference(there):
            raise UserError(f"{self.folder} is the folder of another job: {difference}; choose another --out")
        done = len(self.finished())
        if done and not resume:
            of = f"of the {self.card.parts} parts"
            raise UserError(f"{done} {of} are in {self.folder} already; add --resume to go on, or choose another --out")

    def numbers(self) -> range:
        """Of this shard's parts."""
        return range(self.shard.number - 1, self.card.parts, self.shard.count)

    def pending(self) -> Iterator[Part]:
        """The parts of this shard that have no file yet."""
        size = self.card.part_size
        for number in self.numbers():
            if not self.card.part_path(self.folder, number).exists():
                start = number * size
                yield Part(number, start, self.manifest.names[start : start + size])

    def finished(self) -> list[Path]:
        """The files of this shard's parts that are there."""
        paths = (self.card.part_path(self.folder, number) for number in self.numbers())
        return [path for path in paths if path.exists()]


def name_line(name: str) -> bytes:
    """What a name adds to the digest; names of files need not be UTF-8."""
    return (name + "\n").encode("utf-8", "surrogateescape")


def refuse_missing(root: Path, names: Iterable[str]) -> None:
    """Look whether the images exist.

    Raises:
        UserError: naming the first ones that do not.
    """
    missing = [name for name in names if not is_file(root / name)]
    if missing:
        raise UserError(
            f"{listed(missing)} of the manifest {'do' if len(missing) > 1 else 'does'} not exist in {root}; "
            "put the files there, or take them off the list and start in another --out"
        )


def listed(names: list[str]) -> str:
    """The first names and how many more there are.

    >>> listed(["a", "b", "c", "d", "e"])
    'a, b, c and 2 more'
    """
    more = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
    return ", ".join(names[:_SHOWN]) + more


def checkpoint_digest(folder: Path) -> str:
    """SHA-256 of the card and the weights of a checkpoint, which was loaded before."""
    return hashlib.sha256(b"".join(name_line(digest_of(folder / name)) for name in (CARD, WEIGHTS))).hexdigest()


def _images_in(folder: Path) -> Iterator[str]:
    """Names relative to the folder; links to folders are not followed, as they may lead back to where they are."""

    def refuse(error: OSError) -> None:
        how = "check the path and its permissions"
        raise UserError(f"cannot list {error.filename}: {error.strerror}; {how}") from error

    for where, _, files in os.walk(folder, onerror=refuse):
        inside = Path(where).relative_to(folder).as_posix()
        for name in files:
            if os.path.splitext(name)[1].lower() in IMAGE_SUFFIXES and not name.startswith("._"):
                yield name if inside == "." else f"{inside}/{name}"
