from __future__ import annotations

import os
import signal
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.helpers.commands import assert_one_sentence, status
from tests.helpers.data import noise_image
from tests.helpers.models import tiny_model
from tightbox.errors import UserError
from tightbox.inference.jobs.parts import read_rows
from tightbox.integrations import ray as on_ray

COUNT = 8


@pytest.fixture(scope="module")
def ray() -> Iterator[Any]:
    """A cluster of two workers on this machine."""
    module = pytest.importorskip("ray", reason="needs the extra ray")
    module.init("local", num_cpus=2, include_dashboard=False, log_to_driver=False, object_store_memory=100 * 2**20)
    yield module
    module.shutdown()


@pytest.fixture
def images(tmp_path: Path) -> Path:
    folder = tmp_path / "images"
    for i in range(COUNT):
        noise_image(folder / f"{i}.png", seed=i)
    (folder / "5.png").write_bytes(b"no image")
    return folder


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    return tiny_model(nms_iou=1.0).save(tmp_path / "model")


def arguments(checkpoint: Path, images: Path, out: Path, *options: str) -> list[object]:
    common = ["--format", "jsonl", "--part-size", "2", "--score-threshold", "0", "--device", "cpu"]
    return ["predict", checkpoint, images, "--out", out, *common, *options]


@pytest.mark.usefixtures("ray")
def test_two_actors_write_what_one_process_writes(checkpoint: Path, images: Path, tmp_path: Path) -> None:
    local, spread = tmp_path / "local", tmp_path / "ray"
    assert status(arguments(checkpoint, images, local)) == 1
    assert status(arguments(checkpoint, images, spread, "--engine", "ray", "--actors", "2")) == 1
    assert (local / "job.json").read_text() == (spread / "job.json").read_text()
    (spread / "part-000001.jsonl").unlink()
    assert status(arguments(checkpoint, images, spread, "--engine", "ray", "--resume")) == 1
    for number in range(4):
        name = f"part-{number:06d}.jsonl"
        rows, expected = read_rows(spread / name), read_rows(local / name)
        for row, other in zip(rows, expected, strict=True):
            # Another process may use other kernels of a convolution, so that figures differ by rounding.
            for numbers in ("scores", "ious"):
                assert row.pop(numbers) == pytest.approx(other.pop(numbers), abs=1e-4)
            for box, same in zip(row.pop("boxes"), other.pop("boxes"), strict=True):
                assert box == pytest.approx(same, abs=0.01)
            assert row == other


def test_predictor_in_map_batches(ray: Any, checkpoint: Path, images: Path) -> None:
    paths = [{"path": f"{i}.png", "tag": i} for i in range(COUNT)]
    found = ray.data.from_items(paths).map_batches(
        on_ray.Predictor,
        fn_constructor_args=(str(checkpoint),),
        fn_constructor_kwargs={"root": str(images), "threshold": 0.0, "device": "cpu", "classes": ["dog"]},
        batch_size=4,
        compute=ray.data.ActorPoolStrategy(size=2),
    )
    rows = sorted(found.take_all(), key=lambda row: row["tag"])
    assert [row["tag"] for row in rows] == list(range(COUNT))
    for row in rows:
        if row["tag"] == 5:
            assert "not an image" in row["error"]
            assert len(row["boxes"]) == 0
            continue
        assert row["error"] is None
        assert (row["width"], row["height"]) == (60, 40)
        assert len(row["boxes"]) == len(row["ious"]) == len(row["scores"]) > 0
        assert set(row["classes"]) == {"dog"}


@pytest.mark.usefixtures("ray")
def test_a_worker_that_fails_is_a_sentence(
    checkpoint: Path, images: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    out.mkdir()
    (out / "images").write_text("a file where the folder of copies should be")
    assert status(arguments(checkpoint, images, out, "--engine", "ray", "--images")) == 2
    last = capsys.readouterr().err.splitlines()[-1]  # after what Ray itself says
    assert last.startswith(f"tightbox: cannot write {out / 'images'}")
    assert last.endswith("; choose another place")


def dying(folder: Path, times: int) -> Any:
    """Stands in for `run_parts`: the process that works on the second part is killed, so many times."""

    class Dying:  # within a function, as Ray then sends its code too
        def __init__(self, work: Any) -> None:
            self.work = work
            vars(self).update(vars(work))

        def run(self, model: Any, part: Any, target: Path) -> None:
            deaths = len(list(folder.iterdir()))
            if part.number == 1 and deaths < times:
                (folder / str(deaths)).touch()
                os.kill(os.getpid(), signal.SIGKILL)
            self.work.run(model, part, target)

    run_parts = on_ray.run_parts
    return lambda checkpoint, job, work, **how: run_parts(checkpoint, job, Dying(work), **how)  # type: ignore[arg-type]


@pytest.mark.usefixtures("ray")
@pytest.mark.parametrize("times", [1, 1000])
def test_an_actor_that_dies_loses_nothing(
    times: int,
    checkpoint: Path,
    images: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    out, deaths = tmp_path / "out", tmp_path / "deaths"
    deaths.mkdir()
    with monkeypatch.context() as patch:
        patch.setattr(on_ray, "run_parts", dying(deaths, times))
        ended = status(arguments(checkpoint, images, out, "--engine", "ray"))
    if times == 1:  # another takes its place
        assert ended == 1  # for the image that cannot be read
        assert len(list(deaths.iterdir())) == 1
    else:  # a part that kills every actor ends the run
        assert ended == 2
        last = capsys.readouterr().err.splitlines()[-1]
        assert last.startswith("tightbox: a worker of Ray failed (")
        assert last.endswith("finished parts are kept: run again with --resume")
        assert len(list(deaths.iterdir())) == 1 + on_ray.RETRIES
        assert status(arguments(checkpoint, images, out, "--resume")) == 1
    indices = [row["index"] for path in sorted(out.glob("part-*")) for row in read_rows(path)]
    assert indices == list(range(COUNT))


def test_predictor_alone(checkpoint: Path, images: Path) -> None:
    batch = {"path": [str(images / "0.png"), str(images / "5.png")]}
    found = on_ray.Predictor(str(checkpoint), threshold=0.0, device="cpu")(batch)
    assert list(found) == ["path", "width", "height", "error", "boxes", "scores", "classes", "ious"]
    assert len(found["boxes"][0]) == 20
    assert "not an image" in found["error"][1]


def test_without_ray(
    checkpoint: Path, images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(UserError, match=r"tightbox\[ray\]"):
        on_ray.import_ray()
    assert status(arguments(checkpoint, images, tmp_path / "out", "--engine", "ray")) == 2
    assert_one_sentence(capsys, "tightbox[ray]")
    assert not (tmp_path / "out").exists()
