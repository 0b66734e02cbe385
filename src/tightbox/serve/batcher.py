"""Single images from many requests become batches for one network, which runs in one thread."""

import asyncio
import logging
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import KW_ONLY, dataclass
from typing import Generic, NamedTuple, TypeVar

T = TypeVar("T")
R = TypeVar("R")

LOG = logging.getLogger(__name__)


class _Waiting(NamedTuple, Generic[T, R]):
    item: T
    future: asyncio.Future[R]


@dataclass(eq=False)
class Batcher(Generic[T, R]):
    """Collects items and works on them together.

    A batch starts when it is full, when no further item is announced, or when the longest wait is over, whichever comes
    first. So one client alone never waits, and while a batch is being worked on the next one fills by itself.

    Args:
        work: from items to as many results; called in a thread of its own, never twice at a time.
        max_batch: most items together.
        max_wait_s: longest time that a started batch waits for items that were announced, in seconds.
        on_batch: told the size of each batch and the seconds it took.
    """

    work: Callable[[Sequence[T]], Sequence[R]]
    _: KW_ONLY
    max_batch: int
    max_wait_s: float
    on_batch: Callable[[int, float], None] = lambda size, seconds: None

    def __post_init__(self) -> None:
        self._queue: asyncio.Queue[_Waiting[T, R]] = asyncio.Queue()
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="network")
        self._loop: asyncio.Task[None] | None = None
        self.announced = 0  # items that will come soon, such as images being decoded

    def start(self) -> None:
        """Begin to work; within a running event loop."""
        self._loop = asyncio.create_task(self._forever())

    async def stop(self) -> None:
        """End at once; whoever still waits for a result gets `CancelledError`."""
        if self._loop is not None:
            self._loop.cancel()
            await asyncio.gather(self._loop, return_exceptions=True)
        while not self._queue.empty():
            self._queue.get_nowait().future.cancel()
        self._thread.shutdown()

    async def __call__(self, item: T) -> R:
        """The result of one item, or the exception that the work on it raised."""
        future: asyncio.Future[R] = asyncio.get_running_loop().create_future()
        self._queue.put_nowait(_Waiting(item, future))
        return await future

    async def _forever(self) -> None:
        while True:
            batch = await self._collect()
            if wanted := [waiting for waiting in batch if not waiting.future.done()]:  # some gave up meanwhile
                try:
                    await self._do(wanted)
                finally:  # cancelled: nobody is left waiting
                    for waiting in wanted:
                        waiting.future.cancel()

    async def _collect(self) -> list[_Waiting[T, R]]:
        batch = [await self._queue.get()]
        with suppress(TimeoutError):
            async with asyncio.timeout(self.max_wait_s):
                while len(batch) < self.max_batch and (self.announced or not self._queue.empty()):
                    batch.append(await self._queue.get())
        return batch

    async def _do(self, batch: list[_Waiting[T, R]]) -> None:
        loop = asyncio.get_running_loop()
        start = loop.time()
        try:
            results = await loop.run_in_executor(self._thread, self._results, [waiting.item for waiting in batch])
        except Exception as error:
            if len(batch) > 1:  # one bad item does not spoil the others
                LOG.warning("a batch of %d failed (%s); its images are tried one by one", len(batch), error)
                for waiting in batch:
                    await self._do([waiting])
            elif not batch[0].future.done():
                batch[0].future.set_exception(error)
            return
        self.on_batch(len(batch), loop.time() - start)
        for waiting, result in zip(batch, results, strict=True):
            if not waiting.future.done():
                waiting.future.set_result(result)

    def _results(self, items: list[T]) -> Sequence[R]:
        """As many as there are items, or an exception that a future can carry, which a StopIteration is not."""
        try:
            results = self.work(items)
        except StopIteration as error:
            raise RuntimeError("the detector raised StopIteration") from error
        if len(results) != len(items):
            raise RuntimeError(f"the detector gave {len(results)} results for {len(items)} images")
        return results
