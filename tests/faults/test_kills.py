"""A few of the kills that `make faults` does by the dozen."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from tests.helpers.commands import TINY
from tests.helpers.data import cats_and_dogs

ROOT = Path(__file__).parents[2]


def test_killed_trainings_end_as_if_nothing_had_been() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "tests.faults.kills", "5", "--seed", "3"], cwd=ROOT, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "| all | | 5 |" in done.stdout


def test_a_second_training_into_the_same_folder_is_refused(tmp_path: Path) -> None:
    fcntl = pytest.importorskip("fcntl", reason="this system has no locks of files")
    data = cats_and_dogs(tmp_path / "data", {"train": range(4)})
    out = tmp_path / "out"
    out.mkdir()
    with open(out / ".lock", "w") as held:
        fcntl.lockf(held, fcntl.LOCK_EX)  # as the first one would
        second = subprocess.run(
            [sys.executable, "-m", "tightbox", "train", "--data", data, "--out", out, *TINY],
            capture_output=True,
            text=True,
        )
    assert second.returncode == 2
    assert f"tightbox: another process is writing to {out}; wait for its end" in second.stderr
    assert "Traceback" not in second.stderr
    assert {path.name for path in out.iterdir()} == {".lock"}
