"""What happens to an image between its arrival and its boxes, whatever protocol it came by."""

import asyncio
import logging
import math
from collections.abc import AsyncIterator, Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from functools import partial
from typing import Any, TypeVar

from PIL import Image

from tightbox.inference.files import Selection
from tightbox.options import ServeOptions
from tightbox.serve.batcher import Batcher
from tightbox.serve.decode import Refusal
from tightbox.serve.metrics import Metrics
from tightbox.serve.predictor import Predictor
from tightbox.structures import Detections

T = TypeVar("T")

LOG = logging.getLogger(__name__)
RETRY_SECONDS = 1
DECODERS = 2  # threads; Pillow decodes without holding Python's lock


class Service:
    """Accepts images, up to a number; decodes and resizes them in threads; has the network see them in batches.

    Args:
        predictor: finds the boxes.
        options: the limits.

    Attributes:
        metrics: where batches and places are counted.
        ready: whether the network has been warmed up.
        failed: whether it could not be.
        accepted: images that were given places since the start.
    """

    def __init__(self, predictor: Predictor, options: ServeOptions) -> None:
        self.predictor = predictor
        self.options = options
        self.metrics = Metrics()
        self.ready = self.failed = False
        self.accepted = self._places_taken = 0
        self._decoders = ThreadPoolExecutor(DECODERS, thread_name_prefix="decode")
        # Decoded images are much larger than their files, so only as many wait as two batches need.
        self._decoded = asyncio.Semaphore(2 * options.max_batch)
        most, wait = options.max_batch, options.max_wait_ms / 1000
        self._batcher: Batcher[Any, Detections] = Batcher(
            predictor.predict, max_batch=most, max_wait_s=wait, on_batch=self.metrics.note_batch
        )

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """Work within this block; warm up first."""
        self._batcher.start()
        warming = asyncio.create_task(self._warm_up())
        try:
            yield
        finally:
            self.ready = False
            warming.cancel()
            await self._batcher.stop()
            self._decoders.shutdown()

    async def _warm_up(self) -> None:
        """The first batches of a network are slow, and say whether it runs at all."""
        try:
            blank = self.predictor.prepare(Image.new("RGB", (640, 480)))
            for size in {1, self.options.max_batch}:
                await asyncio.gather(*(self._batcher(blank) for _ in range(size)))
            self.ready = True
        except Exception:
            self.failed = True
            LOG.exception("the detector failed on a blank image; nothing can be served")

    @asynccontextmanager
    async def places(self, images: int = 1) -> AsyncIterator[None]:
        """Hold places for images that are about to be read.

        Raises:
            Refusal: 503 if the detector is not ready, or there are not enough places.
        """
        if not self.ready:
            raise Refusal(503, "the detector is not ready yet; try again", RETRY_SECONDS)
        if self._places_taken + images > self.options.max_queue:
            raise Refusal(503, "too many images are waiting; try again", RETRY_SECONDS)
        self.accepted += images
        self.metrics.accepted.inc(images)
        self._places_taken += images
        self.metrics.waiting.set(self._places_taken)
        try:
            yield
        finally:
            self._places_taken -= images
            self.metrics.waiting.set(self._places_taken)

    async def detect(
        self, decode: Callable[[], Image.Image], threshold: float, min_iou: float | None
    ) -> tuple[Image.Image, Detections]:
        """An image, and those boxes in it that are asked for.

        Args:
            decode: gives the image; called in a thread.
            threshold: boxes with a lower score are left out.
            min_iou: boxes with a lower predicted IoU are left out.

        Raises:
            Refusal: if there is no such image, or the detector predicts no IoU and a lowest one is asked for.
        """
        if min_iou is not None and self.predictor.calibrated is None:
            raise Refusal(422, "this detector predicts no IoU; leave out min_iou")
        async with self._decoded:
            self._batcher.announced += 1
            try:
                image, prepared = await self.in_thread(partial(self._open, decode))
            finally:
                self._batcher.announced -= 1
            found = Selection(threshold, min_iou)(await self._batcher(prepared))
        self.metrics.boxes.inc(len(found))
        return image, found

    def _open(self, decode: Callable[[], Image.Image]) -> tuple[Image.Image, Any]:
        image = decode()
        return image, self.predictor.prepare(image)

    async def in_thread(self, function: Callable[[], T]) -> T:
        """Work that would hold up other requests."""
        return await asyncio.get_running_loop().run_in_executor(self._decoders, function)


def fraction(text: object, name: str) -> float:
    """A number between 0 and 1 that a request gives.

    Raises:
        Refusal: 422 if it is none.
    """
    try:
        value = math.nan if isinstance(text, bool) else float(text)  # type: ignore[arg-type]
    except (TypeError, ValueError, OverflowError):
        value = math.nan
    if not 0 <= value <= 1:
        raise Refusal(422, f"{name} must be a number between 0 and 1")
    return value
