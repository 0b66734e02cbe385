"""Disks that are full or read-only, data that vanishes, and processes that die while a command runs."""

from __future__ import annotations

import os
import resource
import shutil
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.helpers.commands import TINY, assert_one_sentence, status
from tests.helpers.data import cats_and_dogs
from tests.helpers.models import tiny_model
from tests.helpers.results import example
from tightbox.data.dataset import DetectionDataset
from tightbox.files import write_json

VFNET = ["--vfnet.channels", "32", "--vfnet.tower_depth", "1"]


@contextmanager
def full_disk(limit: int) -> Iterator[None]:
    """No file grows beyond `limit` bytes: writing fails as it does on a full disk."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    ignored = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
        signal.signal(signal.SIGXFSZ, ignored)


@pytest.fixture
def data(tmp_path: Path) -> Path:
    return cats_and_dogs(tmp_path / "data", {"train": range(4), "val": range(4, 6)})


@pytest.mark.parametrize("limit", [0, 100, 2_000, 20_000, 200_000, 800_000])
def test_a_training_on_a_full_disk(
    limit: int, data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "out"
    with full_disk(limit):
        assert status(["train", "--data", data, "--out", out, *TINY, *VFNET]) == 2
    error = capsys.readouterr().err
    assert "Traceback" not in error
    assert "tightbox: cannot write" in error
    assert not list(out.rglob("*.tmp"))


@pytest.mark.parametrize("command", ["predict", "diagnose", "eval"])
def test_earlier_files_survive_a_full_disk(
    command: str, data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model, out = tiny_model(nms_iou=1.0).save(tmp_path / "model"), tmp_path / "out"
    given = [model, *data.glob("images/4.png")] if command == "predict" else [model, "--data", data]
    arguments = [command, *given, "--out", out]
    assert status(arguments) == 0
    before = {path: path.read_bytes() for path in out.rglob("*") if path.is_file()}
    capsys.readouterr()
    with full_disk(300):
        assert status(arguments) == 2
    assert "tightbox: cannot write" in capsys.readouterr().err
    assert {path: path.read_bytes() for path in out.rglob("*") if path.is_file()} == before


def test_results_against_ground_truth_on_a_full_disk(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    truth, rows = example()
    write_json(tmp_path / "gt.json", truth)
    write_json(tmp_path / "dt.json", rows)
    with full_disk(300):
        assert (
            status(["diagnose", "--gt", tmp_path / "gt.json", "--dt", tmp_path / "dt.json", "--out", tmp_path / "o"])
            == 2
        )
    assert "tightbox: cannot write" in capsys.readouterr().err


def test_a_read_only_folder(data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    if os.getuid() == 0:
        pytest.skip("root may write everywhere")
    (tmp_path / "locked").mkdir(mode=0o555)
    assert status(["train", "--data", data, "--out", tmp_path / "locked" / "out", *TINY, *VFNET]) == 2
    assert "tightbox: cannot write" in capsys.readouterr().err


@pytest.mark.parametrize("out", ["/proc/nowhere/out", "/dev/null/out"])
def test_a_place_that_takes_no_folder(out: str, data: Path, capsys: pytest.CaptureFixture[str]) -> None:
    if not Path(out).parents[1].exists():
        pytest.skip(f"this system has no {Path(out).parents[1]}")
    assert status(["train", "--data", data, "--out", out, *TINY, *VFNET]) == 2
    assert f"tightbox: cannot write {out}" in capsys.readouterr().err


@pytest.mark.parametrize("workers", ["0", "1"])
def test_data_that_vanishes(
    workers: str, data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def vanish(self: DetectionDataset, index: int) -> object:
        shutil.rmtree(data / "images", ignore_errors=True)
        return load(self, index)

    load = DetectionDataset._load
    monkeypatch.setattr(DetectionDataset, "_load", vanish)
    tiny = [*TINY, *VFNET, "--workers", workers]
    assert status(["train", "--data", data, "--out", tmp_path / "out", *tiny]) == 2
    assert_one_sentence(capsys, "there is no such file")


def test_a_worker_that_is_killed(
    data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    own = os.getpid()

    def die(self: DetectionDataset, index: int) -> object:
        if os.getpid() != own:
            os.kill(os.getpid(), signal.SIGKILL)
        return load(self, index)

    load = DetectionDataset._load
    monkeypatch.setattr(DetectionDataset, "_load", die)
    assert status(["train", "--data", data, "--out", tmp_path / "out", *TINY, *VFNET, "--workers", "1"]) == 2
    assert_one_sentence(capsys, "a process that loads images was ended", "--workers")


def test_predict_takes_no_file_for_its_folder(data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    image = next(data.glob("images/*.png"))
    assert status(["predict", "m", image, "--out", tmp_path / "x.json"]) == 2
    assert_one_sentence(capsys, "x.json is the name of a file; name a folder")
    assert not (tmp_path / "x.json").exists()
