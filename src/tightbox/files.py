"""Writing files so that nobody ever sees half of one."""

from __future__ import annotations

import errno
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
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        yield temporary
        with open(temporary, "rb") as written:
            os.fsync(written.fileno())
        os.replace(temporary, path)
    except OSError as error:
        way_out = (
            "free some space" if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG) else "choose another place"
        )
        raise UserError(f"cannot write {path}: {error.strerror or error}; {way_out}") from error
    finally:
        with suppress(OSError):  # it is gone, or could not be made
            temporary.unlink()


def write_json(path: Path, content: Any) -> None:
    """`content` as readable JSON, whole or not at all."""
    with atomic_path(path) as temporary:
        temporary.write_text(json.dumps(content, indent=2, allow_nan=False) + "\n", encoding="utf-8")
