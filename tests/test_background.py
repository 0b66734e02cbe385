from __future__ import annotations

import threading
from collections.abc import Iterator

import pytest

from tightbox.background import in_background


def test_results_come_in_order() -> None:
    """Whichever is finished first: each item waits for the one after it, as far as two workers allow."""
    done = [threading.Event() for _ in range(4)]

    def slow(i: int) -> int:
        if i % 2 == 0:
            assert done[i + 1].wait(10)
        done[i].set()
        return i * i

    assert list(in_background(slow, range(4), ahead=4)) == [0, 1, 4, 9]


@pytest.mark.parametrize("ahead", [0, 1, 3])
def test_no_more_items_are_drawn_than_asked_for(ahead: int) -> None:
    drawn = 0

    def items() -> Iterator[int]:
        nonlocal drawn
        while True:
            drawn += 1
            yield drawn

    results = in_background(lambda x: x, items(), ahead=ahead)
    assert drawn == 0
    for expected in (1, 2, 3):
        assert next(results) == expected
        assert drawn == expected + ahead


def test_an_error_comes_in_its_place() -> None:
    def invert(x: int) -> float:
        return 1 / x

    results = in_background(invert, [1, 2, 0, 4], ahead=10)
    assert [next(results), next(results)] == [1, 0.5]
    with pytest.raises(ZeroDivisionError):
        next(results)


def test_nothing() -> None:
    assert list(in_background(str, [], ahead=2)) == []


def test_whoever_leaves_early_ends_the_work() -> None:
    release, started = threading.Event(), []

    def work(i: int) -> int:
        started.append(i)
        release.wait(10)
        return i

    results = in_background(work, range(50), ahead=20)
    threading.Timer(0.2, release.set).start()
    assert next(results) == 0
    results.close()
    assert len(started) < 50
