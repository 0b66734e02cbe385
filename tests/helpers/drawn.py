"""Tensors that PyTorch's CPU generator drew, kept as their place in its stream and what rounding changed.

The programs that recorded the reference values called `torch.manual_seed`, so that most of what they started from, two
thirds of it numbers which no compression makes smaller, can be drawn again. Here NumPy does so, whose `RandomState` is
frozen: the same Mersenne Twister, the same Box-Muller in blocks of 16, every step rounded to float32. A logarithm or a
cosine may come out one unit in the last place apart from PyTorch's own, so that the difference of the bit patterns,
mostly zero, is kept beside it: what is read is what was recorded, bit by bit.
"""

from __future__ import annotations

from functools import lru_cache
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float32]

NORMAL, UNIFORM, OCTAVES = range(3)
_OCTAVES = ((64, 1.0), (16, 0.6), (4, 0.4), (1, 0.2))  # size of a cell in pixels, and how much of its noise is added
_CLOSE = 1e-4  # of numbers from a stream of some million, eight in a row are never so close by chance


class Place(NamedTuple):
    """Where a tensor was drawn, and how.

    Attributes:
        kind: NORMAL, times `scale`; UNIFORM between `-scale` and `scale`; OCTAVES, an image of `octaves`.
        seed: of the generator.
        start: words of the stream before the first that the tensor takes.
        scale: see `kind`.
    """

    kind: int
    seed: int
    start: int
    scale: float


def encode(values: Floats, place: Place) -> NDArray[np.uint8]:
    """(P, N): the differences from what `place` draws, their bytes apart (lowest first) as they compress so."""
    difference = values.ravel().view(np.int32) - draw(place, values.shape).ravel().view(np.int32)
    unsigned = ((difference << 1) ^ (difference >> 31)).view(np.uint32)  # 0, -1, 1, -2, ... to 0, 1, 2, 3, ...
    planes = unsigned.astype("<u4").view(np.uint8).reshape(-1, 4).T
    return np.ascontiguousarray(planes[: 1 + max(np.flatnonzero(planes.any(axis=1)), default=0)])


def decode(planes: NDArray[np.uint8], place: Place, shape: tuple[int, ...]) -> Floats:
    """The tensor of that shape."""
    unsigned = sum(plane.astype(np.uint32) << np.uint32(8 * i) for i, plane in enumerate(planes))
    difference = (unsigned >> 1).view(np.int32) ^ -(unsigned & 1).view(np.int32)
    numbers: NDArray[np.float32] = (draw(place, shape).ravel().view(np.int32) + difference).view(np.float32)
    return numbers.reshape(shape)


def draw(place: Place, shape: tuple[int, ...]) -> Floats:
    """What the generator gave at that place, but for rounding."""
    count = int(np.prod(shape))
    if place.kind == OCTAVES:
        return octaves(place.seed, *shape)
    if place.kind == NORMAL:
        return (normal(place.seed, place.start, count) * np.float32(place.scale)).reshape(shape)
    # One rounding at the end, as by a fused multiply-add.
    unit = _words(place.seed, place.start + count)[place.start :].astype(np.float64)
    bound = float(np.float32(place.scale))
    return (unit * (2 * bound) - bound).astype(np.float32).reshape(shape)


def octaves(seed: int, batch: int, channels: int, height: int, width: int) -> Floats:
    """The recorded images: normal noise of four sizes, from coarse to fine, enlarged bilinearly."""
    image = np.zeros((batch, channels, height, width), np.float32)
    start = 0
    for cell, gain in _OCTAVES:
        shape = (batch, channels, height // cell, width // cell)
        count = int(np.prod(shape))
        noise = normal(seed, start, count).reshape(shape)
        start += count + (16 if count % 16 else 0)
        for axis, size in ((3, width), (2, height)):
            noise = _enlarged(noise, axis, size)
        image = image + np.float32(gain) * noise
    return image


def normal(seed: int, start: int, count: int) -> Floats:
    """Standard normal numbers; a tensor that does not end with a block of 16 has its last 16 drawn again."""
    words = _words(seed, start + count + 16)[start:]
    whole = count // 16 * 16
    numbers = np.empty(count, np.float32)
    numbers[:whole] = _box_muller(words[:whole])
    if whole < count:
        numbers[-16:] = _box_muller(words[count : count + 16])
    return numbers


def find(values: Floats, seed: int, words: int) -> Place | None:
    """The place in the first `words` of a stream where a tensor of normal or uniform numbers was drawn, if any.

    The scale is not known beforehand: of normal numbers the first 8 and the next 8 are r cos a and r sin a, so that the
    angle gives the word; of uniform ones, ratios to the largest of the first 8 are compared.
    """
    numbers = values.ravel().astype(np.float64)
    if len(numbers) < 64:
        return None
    stream = _words(seed, words).astype(np.float64)
    angles = np.arctan2(numbers[8:16], numbers[:8]) / (2 * np.pi) % 1
    for start in _hits(stream, angles) - 8:
        drawn = normal(seed, int(start), len(numbers)).astype(np.float64)
        scale = float(drawn @ numbers / (drawn @ drawn))
        if np.allclose(numbers, scale * drawn, rtol=0, atol=_CLOSE * scale):
            return Place(NORMAL, seed, int(start), scale)
    largest = int(np.abs(numbers[:8]).argmax())
    signed = 2 * stream - 1
    close = np.ones(len(signed) - 8, np.bool_)
    for i in range(8):
        ratio = numbers[i] / numbers[largest]
        close &= np.abs(signed[i : i - 8] - ratio * signed[largest : largest - 8]) < _CLOSE
    for start in np.flatnonzero(close):
        drawn = signed[start : start + len(numbers)]
        scale = float(drawn @ numbers / (drawn @ drawn))
        if len(drawn) == len(numbers) and np.allclose(numbers, scale * drawn, rtol=0, atol=_CLOSE * scale):
            return Place(UNIFORM, seed, int(start), scale)
    return None


def _hits(stream: NDArray[np.float64], pattern: NDArray[np.float64]) -> NDArray[np.intp]:
    hits = np.flatnonzero(np.abs(stream[: -len(pattern)] - pattern[0]) < _CLOSE)
    for i, number in enumerate(pattern):
        hits = hits[np.abs(stream[hits + i] - number) < _CLOSE]
    return hits[hits >= 8]


@lru_cache(maxsize=4)
def _stream(seed: int) -> Floats:
    # As torch.rand: the lowest 24 bits of each word.
    words = np.frombuffer(np.random.RandomState(seed).bytes(4 * 2_500_000), "<u4")
    return (words & 0xFFFFFF).astype(np.float32) * np.float32(2**-24)


def _words(seed: int, count: int) -> Floats:
    stream = _stream(seed)
    if count > len(stream):
        raise ValueError(f"{count} words of a stream of {len(stream)}")
    return stream[:count]


def _box_muller(words: Floats) -> Floats:
    """Two normal numbers of each two words, in blocks of 16."""
    first, second = words.reshape(-1, 2, 8).transpose(1, 0, 2)
    radius = np.sqrt(np.float32(-2) * np.log((1 - first).astype(np.float64)).astype(np.float32))
    angle = (np.float32(2 * np.pi) * second).astype(np.float64)
    both = [radius * np.cos(angle).astype(np.float32), radius * np.sin(angle).astype(np.float32)]
    return np.stack(both, axis=1).reshape(-1)


def _enlarged(map_: Floats, axis: int, size: int) -> Floats:
    """As `F.interpolate(mode="bilinear")` along one axis: the second product is rounded, the first is not."""
    cells = map_.shape[axis]
    at = (np.arange(size, dtype=np.float32) + np.float32(0.5)) * np.float32(cells / size) - np.float32(0.5)
    at = np.maximum(at, 0)
    low = at.astype(np.intp)
    high = np.minimum(low + 1, cells - 1)
    along = [1, 1, 1, 1]
    along[axis] = size
    fraction = (at - low.astype(np.float32)).reshape(along)
    second = (map_.take(high, axis) * fraction).astype(np.float64)
    between: NDArray[np.float32] = (map_.take(low, axis).astype(np.float64) * (1 - fraction) + second).astype(
        np.float32
    )
    return between
