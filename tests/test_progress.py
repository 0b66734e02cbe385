from __future__ import annotations

import threading
import time

import pytest

from tightbox.progress import Counted, PlainLines, progress_bar, time_left


@pytest.mark.parametrize(
    ("fraction", "seconds", "left"),
    [
        (0.5, 62, "1:02"),  # as long again
        (0.25, 2420, "2:01:00"),  # three times as long: 7260 s
        (1.0, 10, "0:00"),
    ],
)
def test_time_left(fraction: float, seconds: float, left: str) -> None:
    assert time_left(fraction, seconds) == left


def test_what_is_counted_in_words() -> None:
    times = iter([100.0, 108.0])
    counted = Counted("detecting", clock=lambda: next(times))
    assert counted.line() == "detecting: starting"
    counted(40, 100)
    assert counted.line() == "detecting: 40 of 100, 0:12 left"  # 40 took 8 s, so 60 take 12
    counted(100, 100)
    assert counted.line() == "detecting: 100 done"
    counted(7, 0)  # a video whose length is not known
    assert counted.line() == "detecting: 7 done"


def test_plain_lines_come_while_the_work_goes_on(capsys: pytest.CaptureFixture[str]) -> None:
    asked = threading.Semaphore(0)

    def line() -> str:
        asked.release()
        return "so far so good"

    with PlainLines(line, every=0.001):
        for _ in range(3):
            assert asked.acquire(timeout=60)
    assert capsys.readouterr().out.splitlines()[:2] == ["so far so good"] * 2
    with PlainLines(line, every=0.001, shown=False):
        pass
    assert capsys.readouterr().out == ""


def test_without_a_terminal_short_work_is_silent(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(PlainLines, "_last", time.monotonic() + 3600)  # as if a line had just been printed
    with progress_bar("reading") as progress:
        progress(1, 2)
    assert capsys.readouterr().out == ""
