from __future__ import annotations

from pathlib import Path

import pytest
import torch

from tightbox.errors import UserError
from tightbox.images import UnreadableImage
from tightbox.inference.files import FileResult
from tightbox.inference.jobs import parts
from tightbox.inference.jobs.parts import Row, read_rows, row_of, write_rows
from tightbox.structures import Detections


def rows() -> list[Row]:
    two = Detections(
        torch.tensor([[1.5, 2, 3, 4], [0, 0, 9, 9]]), torch.tensor([0.1, 0.7]), torch.tensor([1, 0]), torch.rand(2)
    )
    none = Detections(torch.zeros(0, 4), torch.zeros(0), torch.zeros(0, dtype=torch.int64))
    error = UnreadableImage(Path("c.png"), "it is cut off")
    results = [
        FileResult(Path("a.png"), two, (30, 40)),
        FileResult(Path("b.png"), none, (1, 1)),
        FileResult(Path("c.png"), none, (0, 0), error=error),
    ]
    names = ("cat", "dog")
    return [row_of(5 + i, result.path.name, result, names) for i, result in enumerate(results)]


@pytest.mark.parametrize("suffix", ["parquet", "jsonl"])
@pytest.mark.parametrize("chosen", [slice(None), slice(1, 3), slice(0, 0)])
def test_what_is_written_is_read(tmp_path: Path, suffix: str, chosen: slice) -> None:
    path = tmp_path / f"part.{suffix}"
    write_rows(path, rows()[chosen])
    assert [row["index"] for row in read_rows(path)] == [5, 6, 7][chosen]
    assert (
        read_rows(path, ("path", "error"))
        == [
            {"path": "a.png", "error": None},
            {"path": "b.png", "error": None},
            {"path": "c.png", "error": "it is cut off"},
        ][chosen]
    )


@pytest.mark.parametrize("suffix", ["parquet", "jsonl"])
def test_float32_survives(tmp_path: Path, suffix: str) -> None:
    written = rows()
    write_rows(tmp_path / f"part.{suffix}", written)
    assert read_rows(tmp_path / f"part.{suffix}") == written
    assert written[0]["classes"] == ["dog", "cat"]
    assert (written[0]["width"], written[0]["height"]) == (40, 30)
    assert written[2]["width"] is None


@pytest.mark.parametrize("suffix", ["parquet", "jsonl"])
@pytest.mark.parametrize("cut", [0.5, 0.0])
def test_a_damaged_part(tmp_path: Path, suffix: str, cut: float) -> None:
    path = tmp_path / f"part.{suffix}"
    write_rows(path, rows())
    content = path.read_bytes()
    path.write_bytes(content[: int(len(content) * cut)] or b"{}\n")
    with pytest.raises(UserError, match="is damaged or no part; delete it"):
        read_rows(path)


def test_without_pyarrow(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "pyarrow", None)
    with pytest.raises(UserError, match=r"tightbox\[parquet\]"):
        parts.write_rows(tmp_path / "part.parquet", rows())
    write_rows(tmp_path / "part.jsonl", rows())  # needs nothing
