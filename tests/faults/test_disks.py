"""Disks that are full or read-only, data that vanishes, and processes that die while a command runs."""

from __future__ import annotations

import errno
import json
import os
import resource
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.helpers.commands import TINY, assert_one_sentence, status
from tests.helpers.data import cats_and_dogs
from tests.helpers.models import small_vfnet, tiny_model
from tests.helpers.results import example
from tightbox.data.dataset import DetectionDataset
from tightbox.files import write_json
from tightbox.models import load

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


def filling_disk(monkeypatch: pytest.MonkeyPatch, number: int) -> None:
    """The disk is full at the file of this number, and at every later one."""
    count = 0

    def fsync(file: int) -> None:
        nonlocal count
        count += 1
        if count >= number:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", fsync)


def files_in(folder: Path) -> dict[Path, bytes]:
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


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


@pytest.mark.parametrize(
    ("command", "options", "files"),
    [
        ("predict", ["--crops", "--classes", "cat"], 3),  # a copy, at least one crop, results.json
        ("predict", ["--format", "csv", "--no-images"], 1),
        ("predict", ["--format", "json", "--no-images"], 2),  # of two images
        ("predict", ["--format", "yolo", "--no-images"], 2),
        ("predict", ["--format", "labelstudio", "--no-images"], 1),
        ("predict", ["--format", "jsonl", "--part-size", "1"], 3),  # the job, and two parts
        ("diagnose", [], 2),  # figures and page
        ("eval", [], 2),  # figures and results
        ("oracle", [], 1),
        ("export", ["--format", "mmdet"], 1),
    ],
)
def test_the_disk_fills_at_any_file(
    command: str,
    options: list[str],
    files: int,
    data: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Whatever file is refused: one sentence, nothing half written, and every file as it was."""
    detector = small_vfnet() if command == "export" else tiny_model(nms_iou=1.0)
    model, out = detector.save(tmp_path / "model"), tmp_path / "out"
    if command == "predict":
        for name in ("0.png", "1.png", "2.png", "3.png"):
            (data / "images" / name).unlink()
        arguments = [command, model, data / "images", "--out", out, *options]
    elif command == "export":
        arguments = [command, model, "--out", out / "model.pth", *options]
    else:
        arguments = [command, model, "--data", data, "--out", out, *options]
    assert status(arguments) == 0
    before = files_in(tmp_path)
    number = 0
    while True:
        if "jsonl" in options:  # a job that is done is not done again
            shutil.rmtree(out)
        with monkeypatch.context() as patch:
            filling_disk(patch, number + 1)
            capsys.readouterr()
            code = status(arguments)
        if code == 0:
            break
        assert code == 2
        assert_one_sentence(capsys, "cannot write", "free some space")
        after = files_in(tmp_path)
        assert after == {path: before[path] for path in (after if "jsonl" in options else before)}
        number += 1
    assert number >= files


def test_a_training_whose_disk_fills_at_any_file(
    data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A checkpoint that is there is whole, whichever file was refused."""
    number = 0
    while True:
        out = tmp_path / f"out-{number}"
        with monkeypatch.context() as patch:
            filling_disk(patch, number + 1)
            code = status(["train", "--data", data, "--out", out, *TINY, *VFNET])
        if code == 0:
            break
        assert code == 2
        assert "tightbox: cannot write" in capsys.readouterr().err
        assert not list(out.rglob("*.tmp"))
        for card in out.rglob("card.json"):
            load(card.parent)
        number += 1
    assert number >= 5  # the configuration, and two checkpoints of two files


@pytest.mark.parametrize("kind", ["onnx", "openvino"])
def test_an_export_on_a_full_disk(
    kind: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    onnx = pytest.importorskip("onnx")
    if kind == "openvino":
        pytest.importorskip("openvino")
    value = onnx.helper.make_tensor_value_info("x", onnx.TensorProto.FLOAT, [1000])
    result = onnx.helper.make_tensor_value_info("y", onnx.TensorProto.FLOAT, [1000])
    weights = onnx.helper.make_tensor("w", onnx.TensorProto.FLOAT, [1000], range(1000))
    graph = onnx.helper.make_graph([onnx.helper.make_node("Add", ["x", "w"], ["y"])], "g", [value], [result], [weights])
    network = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 20)], ir_version=10)
    monkeypatch.setattr(f"tightbox.export.{kind}_file.to_onnx", lambda model: network)  # a detector's takes long
    model, out = tiny_model().save(tmp_path / "model"), tmp_path / "out"
    arguments = ["export", model, "--format", kind, "--out", out / ("net.onnx" if kind == "onnx" else "net.xml")]
    assert status(arguments) == 0
    before = files_in(out)
    capsys.readouterr()
    with full_disk(300):
        assert status(arguments) == 2
    assert_one_sentence(capsys, "cannot write", "free some space")
    for number in range(1, len(before) + 1):
        with monkeypatch.context() as patch:
            filling_disk(patch, number)
            assert status(arguments) == 2
        assert_one_sentence(capsys, "cannot write", "free some space")
        assert files_in(out) == before
    assert files_in(out) == before


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


def test_a_read_only_folder(data: Path, tmp_path: Path) -> None:
    model, image, locked = tiny_model().save(tmp_path / "model"), data / "images" / "4.png", tmp_path / "locked"
    locked.mkdir(mode=0o555)
    commands = [
        ["train", "--data", data, "--out", locked, *TINY, *VFNET],
        ["train", "--data", data, "--out", locked / "out", *TINY, *VFNET],
        ["predict", model, image, "--out", locked],
        ["predict", model, data / "images", "--out", locked / "out", "--format", "jsonl"],
        *([name, model, "--data", data, "--out", locked / "out"] for name in ("eval", "diagnose", "oracle")),
        ["doctor", data, "--json", locked / "findings.json"],
    ]
    code = (
        "import json, sys\nfrom tests.helpers.commands import status\n"
        "print([status(arguments) for arguments in json.loads(sys.argv[1])])"
    )
    # Root may write everywhere, but for this.
    drop = ["setpriv", "--bounding-set=-dac_override"] if os.getuid() == 0 else []
    if drop and shutil.which("setpriv") is None:
        pytest.skip("root may write everywhere")
    done = subprocess.run(
        [*drop, sys.executable, "-c", code, json.dumps(commands, default=str)],
        cwd=Path(__file__).parents[2],
        capture_output=True,
        text=True,
    )
    assert done.stdout.splitlines()[-1:] == [str([2] * len(commands))], done.stderr
    refusals = [line for line in done.stderr.splitlines() if line.startswith("tightbox: ")]
    assert len(refusals) == len(commands), done.stderr
    assert all(line.startswith(f"tightbox: cannot write {locked}") for line in refusals), refusals
    assert "Traceback" not in done.stderr
    assert list(locked.iterdir()) == []


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
        return real(self, index)

    real = DetectionDataset._load
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
        return real(self, index)

    real = DetectionDataset._load
    monkeypatch.setattr(DetectionDataset, "_load", die)
    assert status(["train", "--data", data, "--out", tmp_path / "out", *TINY, *VFNET, "--workers", "1"]) == 2
    assert_one_sentence(capsys, "a process that loads images was ended", "--workers")


def test_predict_takes_no_file_for_its_folder(data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    image = next(data.glob("images/*.png"))
    assert status(["predict", "m", image, "--out", tmp_path / "x.json"]) == 2
    assert_one_sentence(capsys, "x.json is the name of a file; name a folder")
    assert not (tmp_path / "x.json").exists()
