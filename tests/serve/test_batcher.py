"""What is worked on together, and what happens to those who wait."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Sequence

import pytest

from tightbox.serve.batcher import Batcher


class Doubler:
    """Doubles numbers, but fails on negative ones; `go` holds it up."""

    def __init__(self) -> None:
        self.batches: list[list[int]] = []
        self.go = threading.Event()
        self.go.set()

    def __call__(self, items: Sequence[int]) -> list[int]:
        self.batches.append(list(items))
        assert self.go.wait(30)
        if min(items) < 0:
            raise ValueError("negative")
        return [2 * item for item in items]


def test_results_go_to_those_who_asked() -> None:
    async def main() -> list[int]:
        batcher = Batcher(work, max_batch=4, max_wait_s=0)
        batcher.start()
        results = await asyncio.gather(*(batcher(i) for i in range(10)))
        await batcher.stop()
        return list(results)

    work = Doubler()
    assert asyncio.run(main()) == [2 * i for i in range(10)]
    assert work.batches == [[0, 1, 2, 3], [4, 5, 6, 7], [8, 9]]


def test_what_comes_meanwhile_is_the_next_batch() -> None:
    async def main() -> None:
        batcher = Batcher(work, max_batch=8, max_wait_s=0)
        batcher.start()
        work.go.clear()
        first = asyncio.create_task(batcher(0))
        while not work.batches:
            await asyncio.sleep(0.001)
        others = [asyncio.create_task(batcher(i)) for i in (1, 2, 3)]
        await asyncio.sleep(0)
        work.go.set()
        await asyncio.gather(first, *others)
        await batcher.stop()

    work = Doubler()
    asyncio.run(main())
    assert work.batches == [[0], [1, 2, 3]]


def test_a_batch_waits_for_what_is_announced_and_no_longer() -> None:
    async def main() -> None:
        batcher = Batcher(work, max_batch=2, max_wait_s=60)
        batcher.start()
        batcher.announced = 1
        first = asyncio.create_task(batcher(1))
        for _ in range(10):
            await asyncio.sleep(0)
        assert work.batches == []  # it waits for the second
        assert await batcher(2) == 4
        assert await first == 2  # full: the minute is not waited for
        batcher.announced = 0
        assert await batcher(3) == 6  # nothing announced: nor here
        await batcher.stop()

    work = Doubler()
    asyncio.run(asyncio.wait_for(main(), 30))
    assert work.batches == [[1, 2], [3]]


def test_the_longest_wait_ends() -> None:
    async def main() -> None:
        batcher = Batcher(work, max_batch=2, max_wait_s=0.01)
        batcher.start()
        batcher.announced = 1  # which never comes
        assert await batcher(1) == 2
        await batcher.stop()

    work = Doubler()
    asyncio.run(asyncio.wait_for(main(), 30))
    assert work.batches == [[1]]


def test_one_bad_item_does_not_spoil_the_others() -> None:
    async def main() -> list[int | BaseException]:
        batcher = Batcher(work, max_batch=3, max_wait_s=0)
        batcher.start()
        results = await asyncio.gather(batcher(1), batcher(-1), batcher(2), return_exceptions=True)
        assert await batcher(5) == 10
        await batcher.stop()
        return list(results)

    work = Doubler()
    first, bad, last = asyncio.run(main())
    assert (first, last) == (2, 4)
    assert isinstance(bad, ValueError)
    assert work.batches == [[1, -1, 2], [1], [-1], [2], [5]]


def too_few(items: Sequence[int]) -> list[int]:
    return [] if 13 in items else [2 * item for item in items]


def stopping(items: Sequence[int]) -> list[int]:
    if 13 in items:
        raise StopIteration
    return [2 * item for item in items]


@pytest.mark.parametrize(("work", "message"), [(too_few, "gave 0 results for 1 images"), (stopping, "StopIteration")])
def test_work_that_breaks_its_word_ends_nothing(work: Callable[[Sequence[int]], list[int]], message: str) -> None:
    async def main() -> list[int | BaseException]:
        batcher = Batcher(work, max_batch=4, max_wait_s=0)
        batcher.start()
        async with asyncio.timeout(30):
            bad = await asyncio.gather(batcher(13), return_exceptions=True)
            good = await batcher(4)
        await batcher.stop()
        return [*bad, good]

    bad, good = asyncio.run(main())
    assert isinstance(bad, RuntimeError)
    assert message in str(bad)
    assert good == 8


def test_who_gave_up_is_not_worked_for() -> None:
    async def main() -> None:
        batcher = Batcher(work, max_batch=1, max_wait_s=0)
        batcher.start()
        work.go.clear()
        first = asyncio.create_task(batcher(1))
        while not work.batches:
            await asyncio.sleep(0.001)
        gone = asyncio.create_task(batcher(2))
        await asyncio.sleep(0)
        gone.cancel()
        work.go.set()
        assert await first == 2
        assert await batcher(3) == 6
        await batcher.stop()

    work = Doubler()
    asyncio.run(main())
    assert work.batches == [[1], [3]]


def test_nobody_waits_for_ever_for_one_that_stopped() -> None:
    async def main() -> None:
        batcher = Batcher(work, max_batch=1, max_wait_s=0)
        batcher.start()
        work.go.clear()
        waiting = [asyncio.create_task(batcher(i)) for i in range(3)]
        while not work.batches:
            await asyncio.sleep(0.001)
        threading.Timer(0.05, work.go.set).start()
        await batcher.stop()
        for task in waiting:
            with pytest.raises(asyncio.CancelledError):
                await task

    work = Doubler()
    asyncio.run(asyncio.wait_for(main(), 30))
