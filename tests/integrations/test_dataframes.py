"""The programs for Spark and Daft on the page about many images, run as they stand where these are installed."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.helpers.data import noise_image
from tests.helpers.models import tiny_model

PAGE = Path(__file__).parents[2] / "docs" / "howto" / "many_images.md"
REPORT = """
import json
print(json.dumps([{"path": row["path"], "scores": list(row["scores"])} for row in rows]))
"""


def run(package: str, folder: Path) -> list[dict[str, Any]]:
    """The rows of the program on the page that uses a package, run in a folder with a detector and an image."""
    (program,) = (text for text in re.findall(r"^```py\n(.*?)^```$", PAGE.read_text(), re.M | re.S) if package in text)
    tiny_model(nms_iou=1.0).save(folder / "runs" / "first" / "best")
    noise_image(folder / "image.jpg")
    (folder / "program.py").write_text(program.replace('best")', 'best", threshold=0.0)') + REPORT)
    environment = os.environ | {"PYSPARK_PYTHON": sys.executable}  # else its workers run what `python3` is
    done = subprocess.run(
        [sys.executable, "program.py"], cwd=folder, env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr[-3000:]
    rows: list[dict[str, Any]] = json.loads(done.stdout.splitlines()[-1])
    return rows


@pytest.mark.parametrize("package", ["pyspark", "daft"])
def test_the_program_on_the_page(package: str, tmp_path: Path) -> None:
    pytest.importorskip(package, reason=f"{package} is not installed")
    if package == "pyspark" and shutil.which("java") is None:
        pytest.skip("Spark needs Java")
    found, missing = run(package, tmp_path)
    assert (found["path"], missing) == ("image.jpg", {"path": "missing.jpg", "scores": []})
    assert len(found["scores"]) == 20
