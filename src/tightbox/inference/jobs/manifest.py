"""Which images a job is about: their names, sorted, each once."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

from tightbox.errors import UserError
from tightbox.images import IMAGE_SUFFIXES
from tightbox.reading import is_file, read_lines

_SHOWN = 3  # names in a sentence


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
    def of_folder(cls, folder: Path) -> Manifest:
        """All images in a folder and its subfolders.

        Raises:
            UserError: if there is none.
        """
        names = tuple(sorted(_images_in(folder, "")))
        if not names:
            raise UserError(f"there is no image in {folder}; give a folder of images, or --manifest FILE")
        return cls(folder, names)

    @classmethod
    def of_file(cls, path: Path) -> Manifest:
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


def _images_in(folder: Path, prefix: str) -> Iterator[str]:
    """Names relative to the first folder, without an object for each path."""
    try:
        with os.scandir(folder) as entries:
            for entry in entries:
                if entry.is_dir(follow_symlinks=False):  # a link may lead back to where it is
                    yield from _images_in(Path(entry.path), f"{prefix}{entry.name}/")
                elif os.path.splitext(entry.name)[1].lower() in IMAGE_SUFFIXES and not entry.name.startswith("._"):
                    yield prefix + entry.name
    except OSError as error:
        raise UserError(f"cannot list {folder}: {error.strerror}; check the path and its permissions") from error
