"""Writing files so that nobody ever sees half of one."""

import errno
import hashlib
import json
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from tightbox.errors import UserError


@contextmanager
def atomic_path(path: Path) -> Iterator[Path]:
    """A temporary path beside `path` to write to; it takes the name of `path` only if the block ends well.

    Raises:
        UserError: if the disk refuses (full, read-only); `path` keeps its earlier content.
    """
    with atomic_paths(path) as (temporary,):
        yield temporary


@contextmanager
def atomic_paths(*paths: Path) -> Iterator[list[Path]]:
    """The same for files of one folder that belong together: none gets its name before all are on the disk."""
    # Of a long name a part, as the temporary one is longer still.
    temporaries = [path.with_name(f".{path.name[-40:]}.{os.getpid()}.tmp") for path in paths]
    try:
        paths[0].parent.mkdir(parents=True, exist_ok=True)
        yield temporaries
        for temporary in temporaries:
            with open(temporary, "rb") as written:
                os.fsync(written.fileno())
        for temporary, path in zip(temporaries, paths, strict=True):
            os.replace(temporary, path)
    except OSError as error:
        full = error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
        way_out = "free some space" if full else "choose another place"
        raise UserError(f"cannot write {paths[0]}: {error.strerror or error}; {way_out}") from error
    finally:
        for temporary in temporaries:
            with suppress(OSError):  # it is gone, or could not be made
                temporary.unlink()


def write_json(path: Path, content: Any) -> None:
    """`content` as readable JSON, whole or not at all."""
    write_text(path, json_text(content))


def json_text(content: Any) -> str:
    """`content` as readable JSON."""
    return json.dumps(content, indent=2, allow_nan=False) + "\n"


def write_text(path: Path, text: str) -> None:
    """`text` in UTF-8, whole or not at all."""
    with atomic_path(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def digest_of(path: Path) -> str:
    """SHA-256 of a file's content, in hexadecimal; at no time is all of it in memory."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


@contextmanager
def only_writer(folder: Path) -> Iterator[None]:
    """Within it, no other process is let in for the same folder; where the system has no such locks, all are.

    The lock is the process's own: it is gone with the process, however that ends, and processes that it started do not
    hold it on, as they would if it were of the open file.

    Raises:
        UserError: if another process is in, or the disk refuses.
    """
    try:
        import fcntl
    except ImportError:  # Windows
        yield
        return
    try:
        folder.mkdir(parents=True, exist_ok=True)
        held = open(folder / ".lock", "w")  # noqa: SIM115
    except OSError as error:
        raise UserError(f"cannot write {folder}: {error.strerror}; choose another place") from error
    with held:
        try:
            fcntl.lockf(held, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            if error.errno in (errno.EACCES, errno.EAGAIN):
                way_out = "wait for its end, or choose another --out"
                raise UserError(f"another process is writing to {folder}; {way_out}") from error
            # A file system without locks.
        yield
