"""A server in a thread, and a detector behind it whose answers are known."""

from __future__ import annotations

import io
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
import uvicorn
from PIL import Image

from tightbox.options import ServeOptions
from tightbox.serve.run import configuration, listen
from tightbox.structures import Detections

POISON = (255, 0, 255)  # a colour that the detector below fails on


class KnownPredictor:
    """Finds the same boxes in every image: by default a cat (0.9, IoU 0.8), a dog (0.6, 0.4) and a cat (0.2, 0.7).

    Attributes:
        go: it works only while this is set.
        batches: sizes of those it has seen.
    """

    system = "known"
    class_names: tuple[str, ...] = ("cat", "dog")
    score_threshold = 0.05

    def __init__(self, found: Detections | None = None, calibrated: bool | None = True) -> None:
        boxes = torch.tensor([[4.0, 6.0, 30.0, 40.0], [20.0, 10.0, 60.0, 44.0], [1.0, 1.0, 9.0, 9.0]])
        ious = None if calibrated is None else torch.tensor([0.8, 0.4, 0.7])
        default = Detections(boxes, torch.tensor([0.9, 0.6, 0.2]), torch.tensor([0, 1, 0]), ious)
        self.found = default if found is None else found
        self.calibrated = calibrated
        self.go = threading.Event()
        self.go.set()
        self.batches: list[int] = []

    def prepare(self, image: Image.Image) -> Image.Image:
        return image

    def predict(self, images: Sequence[Image.Image]) -> list[Detections]:
        assert self.go.wait(30)
        self.batches.append(len(images))
        if any(image.getpixel((0, 0)) == POISON for image in images):
            raise RuntimeError("a secret of the server")
        return [self.found for _ in images]


def image_bytes(size: tuple[int, int] = (64, 48), kind: str = "PNG", colour: Any = (90, 120, 30), **save: Any) -> bytes:
    file = io.BytesIO()
    Image.new("RGB", size, colour).save(file, kind, **save)
    return file.getvalue()


@contextmanager
def serving(app: Any) -> Iterator[str]:
    """The address of the application, while it is served on loopback."""
    with listen("127.0.0.1", 0) as listening:
        server = uvicorn.Server(configuration(app, ServeOptions()))
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listening]}, daemon=True)
        thread.start()
        try:
            yield f"http://127.0.0.1:{listening.getsockname()[1]}"
        finally:
            server.should_exit = True
            thread.join(30)
            assert not thread.is_alive()
