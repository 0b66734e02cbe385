"""Work on a sequence that goes on in threads while the results before are being used."""

from collections import deque
from collections.abc import Callable, Generator, Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

T = TypeVar("T")
R = TypeVar("R")


def in_background(
    function: Callable[[T], R], items: Iterable[T], *, ahead: int, workers: int = 2
) -> Generator[R, None, None]:
    """`map`, computed in threads up to `ahead` items before the one that is asked for.

    Threads and not processes, as decoding and resizing images leave Python to others while they run. The items are
    drawn in the caller's thread; an exception comes out in its item's place.

    >>> list(in_background(len, ["a", "bb", "ccc"], ahead=2))
    [1, 2, 3]
    """
    with ThreadPoolExecutor(workers) as pool:
        waiting: deque[Future[R]] = deque()
        try:
            for item in items:
                waiting.append(pool.submit(function, item))
                if len(waiting) > ahead:
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()
        finally:  # after an exception, or if nobody asks for the rest
            for future in waiting:
                future.cancel()
