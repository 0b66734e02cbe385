from __future__ import annotations

import hashlib
from pathlib import Path

import pytest

from tests.helpers.data import plain_image
from tightbox.errors import UserError
from tightbox.inference.jobs.job import Manifest, Shard, refuse_missing


def test_a_folder_is_listed_sorted_with_its_subfolders(tmp_path: Path) -> None:
    for name in ("b.png", "a.JPG", "deep/c.png"):
        plain_image(tmp_path / name)
    (tmp_path / "notes.txt").write_text("no image")
    manifest = Manifest.of_folder(tmp_path)
    assert manifest == Manifest(tmp_path, ("a.JPG", "b.png", "deep/c.png"))
    assert manifest.digest == hashlib.sha256(b"a.JPG\nb.png\ndeep/c.png\n").hexdigest()


def test_a_file_is_sorted(tmp_path: Path) -> None:
    (tmp_path / "list.txt").write_text("b.png\n\n  a.png\n")
    assert Manifest.of_file(tmp_path / "list.txt") == Manifest(tmp_path, ("a.png", "b.png"))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "names no image"),
        (b"a\nb\na\nb\nb\n", "names a, b more than once; leave one of each"),
        (b"a\xff", "not text at byte 1"),
    ],
)
def test_manifests_that_make_no_sense(tmp_path: Path, content: bytes, message: str) -> None:
    (tmp_path / "list.txt").write_bytes(content)
    with pytest.raises(UserError, match=message):
        Manifest.of_file(tmp_path / "list.txt")


def test_a_name_written_in_two_ways_is_one_image(tmp_path: Path) -> None:
    (tmp_path / "list.txt").write_text("a.png\n./b/../a.png\n")
    with pytest.raises(UserError, match=r"names a.png more than once"):
        Manifest.of_file(tmp_path / "list.txt")


def test_a_link_that_leads_back_is_not_followed(tmp_path: Path) -> None:
    plain_image(tmp_path / "in" / "a.png")
    for name in ("again", "like_an_image.png"):
        (tmp_path / "in" / name).symlink_to(tmp_path / "in", target_is_directory=True)
    assert Manifest.of_folder(tmp_path / "in").names == ("a.png",)


def test_no_manifest(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"cannot read .*list.txt: No such file"):
        Manifest.of_file(tmp_path / "list.txt")
    with pytest.raises(UserError, match="there is no image in"):
        Manifest.of_folder(tmp_path)


def test_missing_files_are_named(tmp_path: Path) -> None:
    plain_image(tmp_path / "a.png")
    refuse_missing(tmp_path, ["a.png"])
    with pytest.raises(UserError, match="b, c, d and 1 more of the manifest do not exist"):
        refuse_missing(tmp_path, ["a.png", "b", "c", "d", "e"])


def test_shards() -> None:
    assert Shard.parse("2/8") == Shard(2, 8)


@pytest.mark.parametrize("text", ["0/4", "5/4", "1/0", "0/0", "-1/4", "1", "a/b", "1/4/2", "1.5/4", ""])
def test_shards_that_make_no_sense(text: str) -> None:
    with pytest.raises(UserError, match=r"--shard is .*, such as 1/4 to 4/4"):
        Shard.parse(text)
