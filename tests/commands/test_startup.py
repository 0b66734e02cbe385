"""What `tightbox predict` imports: nothing that only trainings, evaluations, pages or UnitBox's regions need."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from tests.helpers.data import plain_image

NOT_NEEDED = ("accelerate", "av", "matplotlib", "scipy", "supervision", "tensorboard")


def test_prediction_imports_only_what_it_needs(checkpoint: Path, tmp_path: Path) -> None:
    code = (
        "import sys; from tightbox.cli import main; status = main(sys.argv[1:]); "
        "print(*sorted({name.partition('.')[0] for name in sys.modules})); sys.exit(status)"
    )
    plain_image(tmp_path / "image.jpg", 64, 48)
    command = ["predict", str(checkpoint), str(tmp_path / "image.jpg"), "--out", str(tmp_path / "out")]
    done = subprocess.run([sys.executable, "-c", code, *command], capture_output=True, text=True, check=True)
    imported = done.stdout.splitlines()[-1].split()
    assert "torch" in imported
    assert [name for name in NOT_NEEDED if name in imported] == []
