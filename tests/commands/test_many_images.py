from __future__ import annotations

import errno
import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from tests.helpers.commands import assert_one_sentence, status
from tests.helpers.data import noise_image
from tests.helpers.models import tiny_model
from tightbox.evaluation.coco_files import predictions_from_coco
from tightbox.inference.jobs.parts import read_rows

COUNT = 10


@pytest.fixture
def images(tmp_path: Path) -> Path:
    """Ten images, of which the fourth and the last are cut off."""
    folder = tmp_path / "images"
    for i in range(COUNT):
        noise_image(folder / f"{i:02d}.png", 60, 40, seed=i)
    for i in (3, 9):
        path = folder / f"{i:02d}.png"
        path.write_bytes(path.read_bytes()[:300])
    return folder


def arguments(checkpoint: Path, images: Path, out: Path, *options: str) -> list[str]:
    common = ["--format", "jsonl", "--part-size", "3", "--score-threshold", "0", "--device", "cpu"]
    return ["predict", str(checkpoint), str(images), "--out", str(out), *common, *options]


def parts_of(out: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(out.glob("part-*"))}


def test_parts_hold_every_image_and_failures_are_rows(
    checkpoint: Path, images: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    assert status(arguments(checkpoint, images, out)) == 1
    written = capsys.readouterr()
    assert "10 images in 4 parts, 2 failed" in written.out
    failed = [line for line in written.err.splitlines() if line.startswith("tightbox: failed: ")]
    assert [line.split(": ")[2] for line in failed] == ["03.png", "09.png"]
    assert sorted(path.name for path in out.iterdir()) == ["job.json", *(f"part-00000{i}.jsonl" for i in range(4))]
    rows = [row for path in sorted(out.glob("part-*")) for row in read_rows(path)]
    assert [(row["index"], row["path"]) for row in rows] == [(i, f"{i:02d}.png") for i in range(COUNT)]
    for row in rows:
        assert (row["error"] is not None) == (row["index"] in (3, 9))
        assert len(row["boxes"]) == (0 if row["error"] else 20)


def test_the_rows_are_those_of_plain_predictions(checkpoint: Path, images: Path, tmp_path: Path) -> None:
    assert status(arguments(checkpoint, images, tmp_path / "many", "--classes", "dog")) == 1
    plain = ["predict", str(checkpoint), str(images), "--out", str(tmp_path / "few"), "--no-images"]
    assert status([*plain, "--score-threshold", "0", "--classes", "dog"]) == 1
    assert status(["merge", tmp_path / "many", "--out", tmp_path / "merged.json"]) == 0
    merged = json.loads((tmp_path / "merged.json").read_text())
    few = json.loads((tmp_path / "few" / "results.json").read_text())
    assert len(merged) == len(few) > 0
    for one, other in zip(merged, few, strict=True):
        assert (one["class"], one["category_id"]) == (other["class"], other["category_id"]) == ("dog", 2)
        assert other["file_name"].endswith(one["file_name"])
        assert one["bbox"] == pytest.approx(other["bbox"], abs=0.01)
        assert one["iou"] == pytest.approx(other["iou"], abs=1e-4)
    content: Any = {
        "images": [{"id": i + 1, "file_name": "", "width": 60, "height": 40} for i in range(COUNT)],
        "annotations": [],
        "categories": [{"id": 1, "name": "cat"}, {"id": 2, "name": "dog"}],
    }
    from tightbox.evaluation.coco_files import ground_truth_from_coco

    assert len(predictions_from_coco(merged, ground_truth_from_coco(content)).scores) == len(merged)


def test_shards_and_a_resumed_shard_make_the_same_parts(checkpoint: Path, images: Path, tmp_path: Path) -> None:
    whole, shared = tmp_path / "whole", tmp_path / "shared"
    assert status(arguments(checkpoint, images, whole)) == 1
    for shard in ("2/3", "1/3", "3/3"):
        status(arguments(checkpoint, images, shared, "--shard", shard))
    assert parts_of(shared) == parts_of(whole)
    (shared / "part-000002.jsonl").unlink()
    assert status(arguments(checkpoint, images, shared, "--resume", "--shard", "1/2")) == 0
    assert parts_of(shared) == parts_of(whole)


def test_more_shards_than_parts(checkpoint: Path, images: Path, tmp_path: Path) -> None:
    assert status(arguments(checkpoint, images, tmp_path / "out", "--shard", "7/9")) == 0
    assert parts_of(tmp_path / "out") == {}


@pytest.mark.parametrize("suffix", ["parquet", "jsonl"])
def test_merging_shards_in_folders_of_their_own(
    checkpoint: Path, images: Path, tmp_path: Path, suffix: str, capsys: pytest.CaptureFixture[str]
) -> None:
    for shard in (1, 2):
        status(arguments(checkpoint, images, tmp_path / str(shard), "--shard", f"{shard}/2"))
    merged = tmp_path / f"all.{suffix}"
    assert status(["merge", tmp_path / "1", tmp_path / "2", "--out", merged]) == 0
    assert "10 images, each once, 2 of them failed, with 160 boxes" in capsys.readouterr().out
    assert [row["index"] for row in read_rows(merged)] == list(range(COUNT))


def test_merging_proves(checkpoint: Path, images: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    one, two, merged = tmp_path / "one", tmp_path / "two", tmp_path / "all.jsonl"
    status(arguments(checkpoint, images, one))
    status(arguments(checkpoint, images, two))
    part = one / "part-000001.jsonl"
    lines = part.read_text().splitlines(keepends=True)

    def refused(*folders: Path) -> str:
        capsys.readouterr()
        assert status(["merge", *folders, "--out", merged]) == 2
        assert not merged.exists()
        error = capsys.readouterr().err
        assert error.count("\n") == 1
        return error

    assert "part-000000.jsonl is in both" in refused(one, two)
    assert "no folder" in refused(tmp_path) or "has no job.json" in refused(tmp_path)
    for wrong in (lines[:2], [*lines, lines[2]], [lines[0], lines[0], lines[2]], [lines[1], lines[0], lines[2]]):
        part.write_text("".join(wrong))
        assert "does not hold the images 3 to 5 of the manifest, each once" in refused(one)
    part.write_text("".join(lines).replace("04.png", "4.png"))
    assert "are not those of the manifest" in refused(one)
    part.write_text("{")
    assert "is damaged or no part" in refused(one)
    part.unlink()
    assert "1 of the 4 parts are missing: part-000001.jsonl" in refused(one)
    status(arguments(checkpoint, images, tmp_path / "other", "--min-iou", "0.5"))
    assert "are not of one job: the options that choose boxes differ" in refused(two, tmp_path / "other")
    assert status(["merge", two, "--out", tmp_path / "all.txt"]) == 2


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ([], "4 of the 4 parts are in"),
        (["--resume", "--score-threshold", "0.5"], "another job: the options that choose boxes differ"),
        (["--resume", "--part-size", "4"], "another job: --part-size differs"),
        (["--resume", "--format", "parquet"], "another job: --format differs"),
    ],
)
def test_the_folder_of_another_job(
    checkpoint: Path,
    images: Path,
    tmp_path: Path,
    options: list[str],
    message: str,
    capsys: pytest.CaptureFixture[str],
) -> None:
    out = tmp_path / "out"
    assert status(arguments(checkpoint, images, out)) == 1
    before = parts_of(out)
    capsys.readouterr()
    assert status(arguments(checkpoint, images, out, *options)) == 2
    assert message in capsys.readouterr().err
    assert parts_of(out) == before


def test_other_images_or_another_checkpoint_are_another_job(
    checkpoint: Path, images: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    status(arguments(checkpoint, images, out))
    capsys.readouterr()
    other = tiny_model(nms_iou=0.5).save(tmp_path / "other")
    assert status(arguments(other, images, out, "--resume")) == 2
    assert_one_sentence(capsys, "another job: the checkpoint is another")
    noise_image(images / "10.png")
    assert status(arguments(checkpoint, images, out, "--resume")) == 2
    assert_one_sentence(capsys, "another job: the images are others")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--shard", "0/2"], "--shard is 0/2"),
        (["--manifest", "list.txt"], "takes one folder of images as SOURCE, or --manifest FILE"),
        (["--resume"], "there is nothing to resume in"),
        (["--crops"], "--crops is for single results"),
        (["--order", "loosest"], "--order is for single results"),
        (["--actors", "2"], "--actors belongs to --engine ray"),
        (["--format", "csv"], "--part-size belongs to --format parquet or jsonl"),
    ],
)
def test_mistakes(
    checkpoint: Path,
    images: Path,
    tmp_path: Path,
    options: list[str],
    message: str,
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert status(arguments(checkpoint, images, tmp_path / "out", *options)) == 2
    assert_one_sentence(capsys, message)
    assert not (tmp_path / "out").exists()


def test_a_manifest_with_missing_files(
    checkpoint: Path, images: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (images / "list.txt").write_text("00.png\ngone.png\n01.png\n")
    given = ["predict", checkpoint, "--manifest", images / "list.txt", "--out", tmp_path / "out", "--format", "jsonl"]
    assert status(given) == 2
    assert_one_sentence(capsys, "gone.png of the manifest does not exist")
    (images / "list.txt").write_text("01.png\n00.png\n")
    assert status(given) == 0
    assert [row["path"] for row in read_rows(tmp_path / "out" / "part-000000.jsonl")] == ["00.png", "01.png"]


def test_annotated_images_are_written_on_request(checkpoint: Path, images: Path, tmp_path: Path) -> None:
    assert status(arguments(checkpoint, images, tmp_path / "out", "--images")) == 1
    drawn = sorted(path.name for path in (tmp_path / "out" / "images").iterdir())
    assert drawn == [f"{i:02d}.png.jpg" for i in range(COUNT) if i not in (3, 9)]
    assert status(arguments(checkpoint, images, images / "out", "--images")) == 2


def test_annotated_images_stay_in_their_folder(checkpoint: Path, tmp_path: Path) -> None:
    noise_image(tmp_path / "in" / "a.png", 64, 48, seed=1)
    listed = tmp_path / "lists" / "list.txt"
    listed.parent.mkdir()
    listed.write_text("../in/a.png\n")
    given = ["predict", checkpoint, "--manifest", listed, "--out", tmp_path / "out", "--format", "jsonl", "--images"]
    assert status(given) == 0
    assert (tmp_path / "out" / "images" / "__" / "in" / "a.png.jpg").is_file()


def test_a_full_disk_loses_nothing(
    checkpoint: Path, images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    out, rename = tmp_path / "out", os.replace

    def full(source: Any, target: Any) -> None:
        if str(target).endswith("part-000002.jsonl"):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        rename(source, target)

    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", full)
        assert status(arguments(checkpoint, images, out)) == 2
    assert "part-000002.jsonl: No space left on device; free some space" in capsys.readouterr().err
    assert list(parts_of(out)) == ["part-000000.jsonl", "part-000001.jsonl"]
    assert status(arguments(checkpoint, images, out, "--resume")) == 1
    assert len(parts_of(out)) == 4


def test_killed_at_random_and_resumed(checkpoint: Path, images: Path, tmp_path: Path) -> None:
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    given = ["--part-size", "1"]
    assert status(arguments(checkpoint, images, whole, *given)) == 1
    chance = random.Random(0)
    for parts in (1, 3, 6):  # killed once so many parts are there, a moment later
        resume = ["--resume"] if (killed / "job.json").exists() else []
        command = [sys.executable, "-m", "tightbox", *arguments(checkpoint, images, killed, *given, *resume)]
        process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        while len(parts_of(killed)) < parts and process.poll() is None:
            time.sleep(0.002)
        time.sleep(chance.uniform(0, 0.02))
        process.send_signal(signal.SIGKILL)
        process.wait()
    half = killed / ".part-000009.jsonl.1.tmp"
    half.write_text("half")  # as a kill in the middle of writing leaves it
    (killed / "part-000009.jsonl").unlink(missing_ok=True)
    assert status(arguments(checkpoint, images, killed, *given, "--resume")) == 1
    assert parts_of(killed) == parts_of(whole)
    assert not half.exists()
