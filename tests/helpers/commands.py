"""The command line, run within the process of the tests."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
from accelerate.state import AcceleratorState

from tightbox.cli import main

# Options of a training of one epoch on images of 64 pixels.
TINY = [
    *("--backbone", "test_resnet", "--pretrained", "false", "--long-side", "64", "--short-side", "64"),
    *("--epochs", "1", "--workers", "0", "--precision", "fp32"),
]


def status(arguments: Sequence[object]) -> int:
    """The exit status, whether returned or raised."""
    forget_settings()
    try:
        return main([str(argument) for argument in arguments])
    except SystemExit as stop:
        return int(stop.code or 0)


def forget_settings() -> None:
    """Accelerate keeps the settings of a process's first run, and here one process runs many commands."""
    AcceleratorState._reset_state(reset_partial_state=True)


def assert_one_sentence(capsys: pytest.CaptureFixture[str], *parts: str) -> None:
    """What was written to stderr is one line from the program that holds all parts."""
    error = capsys.readouterr().err
    assert error.count("\n") == 1, error
    assert error.startswith("tightbox: ")
    assert "Traceback" not in error
    for part in parts:
        assert part in error
