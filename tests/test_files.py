from __future__ import annotations

import errno
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tightbox.errors import UserError
from tightbox.files import atomic_path, write_json


def full_disk(*_: object) -> None:
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def test_the_file_appears_whole_with_its_folders(tmp_path: Path) -> None:
    target = tmp_path / "a" / "b" / "file.txt"
    with atomic_path(target) as temporary:
        temporary.write_text("new")
        assert temporary.parent == target.parent  # on the same disk, so that renaming is atomic
        assert not target.exists()
    assert target.read_text() == "new"
    assert os.listdir(target.parent) == ["file.txt"]


@pytest.mark.parametrize("mistake", [ValueError("mine"), KeyboardInterrupt()])
def test_an_exception_in_the_block_passes_and_keeps_the_old_file(tmp_path: Path, mistake: BaseException) -> None:
    target = tmp_path / "file.txt"
    target.write_text("old")

    def write() -> None:
        with atomic_path(target) as temporary:
            temporary.write_text("half")
            raise mistake

    with pytest.raises(type(mistake)):
        write()
    assert target.read_text() == "old"
    assert os.listdir(tmp_path) == ["file.txt"]


@pytest.mark.parametrize("call", ["fsync", "replace"])
def test_a_full_disk_is_one_sentence_and_keeps_the_old_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, call: str
) -> None:
    target = tmp_path / "file.txt"
    target.write_text("old")
    monkeypatch.setattr(os, call, full_disk)
    with pytest.raises(UserError, match=r"^cannot write .*file\.txt: No space left on device; free some space"):
        write_json(target, "new")
    assert target.read_text() == "old"
    assert os.listdir(tmp_path) == ["file.txt"]


def test_a_disk_that_really_refuses_keeps_the_old_file(tmp_path: Path) -> None:
    """A process that may write no file beyond 1000 bytes meets the error where the kernel raises it."""
    pytest.importorskip("resource", reason="limits on file sizes are POSIX's")
    target = tmp_path / "file.json"
    target.write_text("old")
    code = (
        "import resource, signal, sys; from pathlib import Path\n"
        "signal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))\n"
        "from tightbox.errors import UserError; from tightbox.files import write_json\n"
        "try: write_json(Path(sys.argv[1]), list(range(10000)))\n"
        "except UserError as error: print(error)\n"
    )
    done = subprocess.run([sys.executable, "-c", code, target], capture_output=True, text=True, check=True)
    assert done.stdout.startswith(f"cannot write {target}: File too large; ")
    assert target.read_text() == "old"
    assert os.listdir(tmp_path) == ["file.json"]


def test_a_folder_that_is_a_file_is_one_sentence(tmp_path: Path) -> None:
    (tmp_path / "taken").write_text("old")
    with pytest.raises(UserError, match=r"^cannot write .*taken/file\.txt"):
        write_json(tmp_path / "taken" / "file.txt", 1)
    assert (tmp_path / "taken").read_text() == "old"


def test_a_file_that_is_a_folder_is_one_sentence(tmp_path: Path) -> None:
    (tmp_path / "taken").mkdir()
    with pytest.raises(UserError, match=r"^cannot write .*taken: "):
        write_json(tmp_path / "taken", 1)
    assert os.listdir(tmp_path) == ["taken"]


def test_json_is_readable_and_refuses_nan(tmp_path: Path) -> None:
    target = tmp_path / "file.json"
    write_json(target, {"a": [1, None]})
    assert target.read_text() == '{\n  "a": [\n    1,\n    null\n  ]\n}\n'
    with pytest.raises(ValueError, match="not JSON compliant"):
        write_json(target, float("nan"))
    assert target.read_text().startswith('{\n  "a"')
    assert os.listdir(tmp_path) == ["file.json"]
