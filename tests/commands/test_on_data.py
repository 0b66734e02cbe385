"""What every command that runs a checkpoint on a data set takes."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.helpers.commands import status

COMMANDS = pytest.mark.parametrize("command", ["eval", "oracle", "diagnose", "calibrate"])


def arguments(command: str, checkpoint: Path, data: Path, tmp_path: Path) -> list[str]:
    out = [] if command == "calibrate" else ["--out", str(tmp_path / "out")]
    return [command, str(checkpoint), "--data", str(data), *out]


@COMMANDS
def test_classes_that_the_detector_does_not_know_can_be_left_out(
    command: str, checkpoint: Path, data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for split in ("val", "test"):
        content = json.loads((data / f"{split}.json").read_text())
        content["categories"].append({"id": 3, "name": "bird"})
        content["annotations"][0]["category_id"] = 3
        (data / f"{split}.json").write_text(json.dumps(content))
    given = arguments(command, checkpoint, data, tmp_path)
    assert status(given) == 2
    error = capsys.readouterr().err
    assert "were not trained: bird" in error
    assert "--classes" in error
    assert status([*given, "--classes", "cat", "dog"]) == 0


@COMMANDS
def test_unreadable_images_can_be_passed_over(
    command: str, checkpoint: Path, data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (data / "images" / "1.png").write_bytes(b"not an image")
    given = arguments(command, checkpoint, data, tmp_path)
    assert status(given) == 2
    assert "--skip-unreadable true" in capsys.readouterr().err
    assert status([*given, "--skip-unreadable", "true"]) == 0


@pytest.mark.parametrize("command", ["oracle", "diagnose"])
@pytest.mark.parametrize("extra", [["--classes", "cat"], ["--skip-unreadable", "true"], ["--workers", "2"]])
def test_result_files_do_not_take_what_belongs_to_a_data_set(
    command: str, extra: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert status([command, "--gt", "gt.json", "--dt", "dt.json", *extra]) == 2
    assert f"{extra[0]} belongs to a checkpoint and --data" in capsys.readouterr().err
