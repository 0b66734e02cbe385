"""Every script of the recipes and the benchmarks can be asked what it does, so none has fallen behind the package."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]
SCRIPTS = sorted(path for path in [*ROOT.glob("benchmarks/*.py"), *ROOT.glob("recipes/*.py")])
# One process for all of them, as each would import PyTorch again.
ASK = """
import contextlib, io, runpy, sys
for script in sys.argv[1:]:
    sys.argv, folder = [script, "--help"], script.rpartition("/")[0]
    sys.path[:0] = [folder]
    with contextlib.redirect_stdout(io.StringIO()) as shown, contextlib.suppress(SystemExit):
        runpy.run_path(script, run_name="__main__")
    sys.path.remove(folder)
    print(script, len(shown.getvalue()))
"""


def test_every_script_says_what_it_does() -> None:
    texts = {str(path): path.read_text(encoding="utf-8") for path in SCRIPTS}
    takes = ("ArgumentParser(", "table_options(")  # others, such as claims.py, do at once what they are for
    scripts = [path for path, text in texts.items() if "__main__" in text and any(word in text for word in takes)]
    assert len(scripts) > 20
    done = subprocess.run(
        [sys.executable, "-c", ASK, *scripts], capture_output=True, text=True, timeout=600, check=False
    )
    assert done.returncode == 0, done.stderr[-2000:]
    lengths = dict(line.rsplit(" ", 1) for line in done.stdout.splitlines())
    assert set(lengths) == set(scripts)
    assert all(int(length) > 100 for length in lengths.values()), lengths
