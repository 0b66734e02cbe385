"""The state of a training on disk: everything that is needed to go on exactly."""

from __future__ import annotations

import shutil
from pathlib import Path

from accelerate import Accelerator

from tightbox.errors import UserError


def save_state(accelerator: Accelerator, folder: Path) -> None:
    """Write the state; the previous one stays until the new one is whole.

    Raises:
        UserError: if the disk refuses.
    """
    fresh, old = _beside(folder, "new"), _beside(folder, "old")
    if accelerator.is_main_process:
        shutil.rmtree(fresh, ignore_errors=True)
    accelerator.wait_for_everyone()
    try:
        accelerator.save_state(str(fresh))
    except (OSError, RuntimeError) as error:  # torch raises RuntimeError when the disk is full
        shutil.rmtree(fresh, ignore_errors=True)
        raise UserError(f"cannot write {folder}: {error}; free some space, then go on with --resume") from error
    accelerator.wait_for_everyone()
    if accelerator.is_main_process:
        shutil.rmtree(old, ignore_errors=True)
        if folder.exists():
            folder.rename(old)
        fresh.rename(folder)
        shutil.rmtree(old, ignore_errors=True)
    accelerator.wait_for_everyone()


def load_state(accelerator: Accelerator, folder: Path) -> None:
    """Put everything back as it was.

    Raises:
        UserError: if there is no state.
    """
    if not folder.is_dir():  # the machine died between two renames
        folder = _beside(folder, "old")
    if not folder.is_dir():
        raise UserError(f"there is nothing to resume in {folder.parent}; start without --resume")
    accelerator.load_state(str(folder))


def _beside(folder: Path, suffix: str) -> Path:
    return folder.with_name(f"{folder.name}.{suffix}")
