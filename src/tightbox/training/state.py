"""The state of a training on disk: everything that is needed to go on exactly."""

import json
import shutil
from pathlib import Path

from accelerate import Accelerator

from tightbox.data.records import DetectionData
from tightbox.errors import UserError
from tightbox.files import digest_of
from tightbox.reading import read_json

CONTENTS = "contents.json"


def save_state(accelerator: Accelerator, folder: Path, train: DetectionData) -> None:
    """Write the state, with what `load_state` checks; the previous one stays until the new one is whole.

    Raises:
        UserError: if the disk refuses.
    """
    fresh, old = _beside(folder, "new"), _beside(folder, "old")
    if accelerator.is_main_process:
        shutil.rmtree(fresh, ignore_errors=True)
    accelerator.wait_for_everyone()
    try:
        accelerator.save_state(str(fresh))
        accelerator.wait_for_everyone()
        if accelerator.is_main_process:
            digests = {path.name: digest_of(path) for path in sorted(fresh.iterdir())}
            data = {"class_names": train.class_names, "images": len(train.records)}
            (fresh / CONTENTS).write_text(json.dumps(data | {"sha256": digests}, indent=2), encoding="utf-8")
    except (OSError, RuntimeError) as error:  # torch raises RuntimeError when the disk is full
        shutil.rmtree(fresh, ignore_errors=True)
        raise UserError(f"cannot write {folder}: {error}; free some space, then go on with --resume") from error
    if accelerator.is_main_process:
        shutil.rmtree(old, ignore_errors=True)
        if folder.exists():
            folder.rename(old)
        fresh.rename(folder)
        shutil.rmtree(old, ignore_errors=True)
    accelerator.wait_for_everyone()


def load_state(accelerator: Accelerator, folder: Path, train: DetectionData) -> None:
    """Put everything back as it was.

    Raises:
        UserError: if there is no state, it is of other training data, or it is damaged.
    """
    last = folder.parent / "last"
    anew = "start anew in another --out" + (f", from the run's weights with --init {last}" if last.is_dir() else "")
    if not folder.is_dir():  # the machine died between two renames
        folder = _beside(folder, "old")
    if not folder.is_dir():
        advice = anew if last.is_dir() else "start without --resume"
        raise UserError(f"there is nothing to resume in {folder.parent}: no state was saved; {advice}")
    if (folder / CONTENTS).is_file():  # states from before there were such files have none
        _check(folder, train, anew)
    try:
        accelerator.load_state(str(folder))
    except Exception as error:  # accelerate passes on whatever its readers raise, in many lines
        reason = " ".join(str(error).split())[:200]
        raise UserError(f"the state in {folder} cannot be loaded ({reason}); {anew}") from error


def _check(folder: Path, train: DetectionData, anew: str) -> None:
    """Refuses a state that is not whole, which accelerate reads in part without a word, or of other data."""
    try:
        contents = read_json(folder / CONTENTS)
        names, images, digests = tuple(contents["class_names"]), contents["images"], contents["sha256"]
    except (UserError, KeyError, TypeError) as error:
        raise UserError(f"{folder / CONTENTS} is damaged ({error}); {anew}") from error
    if names != train.class_names:
        own, now = ", ".join(names), ", ".join(train.class_names)
        raise UserError(f"this run learns the classes {own}, but {train.root} has {now}; give its own data, or {anew}")
    if images != len(train.records):
        now = f"{train.root} has {len(train.records)}"
        raise UserError(f"this run learns from {images} images, but {now}; give its own data, or {anew}")
    for name, digest in digests.items():
        if not (folder / name).is_file():
            raise UserError(f"{folder / name} is missing; {anew}")
        if digest_of(folder / name) != digest:
            raise UserError(f"{folder / name} is damaged; {anew}")


def _beside(folder: Path, suffix: str) -> Path:
    return folder.with_name(f"{folder.name}.{suffix}")
