"""The images of the gallery: found on the disk, cut out around the boxes, and small enough to be embedded."""

import base64
import io
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import Any

from PIL import Image

from tightbox.diagnosis.numbers import Card, CardImage
from tightbox.errors import UserError
from tightbox.images import open_image
from tightbox.progress import Progress, silent
from tightbox.reading import is_file

MAX_SIZE = 480, 360  # pixels of a crop
MARGIN = 0.35  # around the boxes, in parts of their extent
MIN_SIDE = 48.0  # pixels of the image that a crop shows, each way
MAX_BYTES = 12 << 20  # of all crops together; what comes later has outlines only
PROBED_IMAGES = 20  # that are looked for in a folder before another one is tried


@dataclass(frozen=True)
class Crop:
    """A part of an image.

    Attributes:
        view: x, y, width and height of the part, in pixels of the image.
        source: the part as a data URI, None if the image was unavailable.
    """

    view: tuple[float, float, float, float]
    source: str | None


def find_images(ground_truth: Mapping[str, Any], file: Path, folder: Path | None) -> dict[int, Path]:
    """Where the images of a COCO file should be, by their id; empty if the usual folders do not have them.

    Args:
        ground_truth: its content.
        file: where it lies.
        folder: where the user says they are.

    Raises:
        UserError: if the user's folder does not have them.
    """
    names = {row["id"]: row["file_name"] for row in ground_truth["images"] if isinstance(row.get("file_name"), str)}
    first = list(names.values())[:PROBED_IMAGES]
    split = file.stem.removeprefix("instances_")
    usual = [file.parent / "images" / split, file.parent / "images", file.parent / split, file.parent]
    usual += [file.parent.parent / part for part in (split, f"images/{split}", "images")]
    for place in usual if folder is None else [folder]:
        if any(is_file(place / name) for name in first):
            return {number: place / name for number, name in names.items()}
    if folder is not None:
        example = f" such as {first[0]}" if first else ", which name no files"
        raise UserError(f"--images {folder} has none of the images of {file}{example}; give the folder they are in")
    return {}


def crop_images(cards: Iterable[Card], images: Mapping[int, Path], progress: Progress = silent) -> list[Crop]:
    """The part of its image that each card needs, every image opened once."""
    cards = list(cards)
    crops = [Crop(view_of(card), None) for card in cards]
    spent = 0
    by_image = sorted(range(len(cards)), key=lambda i: (cards[i].image.id, i))
    opened = lru_cache(maxsize=1)(_open)
    for done, i in enumerate(by_image, 1):
        image = opened(cards[i].image, images.get(cards[i].image.id))
        if image is not None and spent < MAX_BYTES:
            source = _encode(image, crops[i].view)
            spent += len(source)
            crops[i] = replace(crops[i], source=source)
        progress(done, len(cards))
    return crops


def view_of(card: Card) -> tuple[float, float, float, float]:
    """What to show of an image, four wide to three high: the boxes of a card and their surroundings."""
    boxes = [each.box for each in (card.ground_truth, card.kept, card.better) if each is not None]
    left, top = (min(box[axis] for box in boxes) for axis in (0, 1))
    right, bottom = (max(box[axis] + box[axis + 2] for box in boxes) for axis in (0, 1))
    width, height = (max((1 + 2 * MARGIN) * side, MIN_SIDE) for side in (right - left, bottom - top))
    width, height = max(width, height * MAX_SIZE[0] / MAX_SIZE[1]), max(height, width * MAX_SIZE[1] / MAX_SIZE[0])
    spans = []
    for low, high, side, limit in ((left, right, width, card.image.width), (top, bottom, height, card.image.height)):
        side = side if limit is None else min(side, limit)
        start = (low + high - side) / 2
        spans.append((start if limit is None else min(max(start, 0.0), limit - side), side))
    return round(spans[0][0], 2), round(spans[1][0], 2), round(spans[0][1], 2), round(spans[1][1], 2)


def _open(image: CardImage, path: Path | None) -> Image.Image | None:
    """The image, None if it is unavailable: a page with outlines is better than none."""
    size = None if image.width is None or image.height is None else (int(image.width), int(image.height))
    try:
        return None if path is None else open_image(path, size)
    except UserError:
        return None


def _encode(image: Image.Image, view: tuple[float, float, float, float]) -> str:
    x, y, width, height = view
    scale = min(1.0, MAX_SIZE[0] / width, MAX_SIZE[1] / height)
    size = max(1, round(width * scale)), max(1, round(height * scale))
    edges = zip((x, y, x + width, y + height), image.size * 2, strict=True)
    x1, y1, x2, y2 = (min(max(v, 0.0), float(limit)) for v, limit in edges)
    inside = (x1, y1, x2, y2) if x2 - x1 >= 1 and y2 - y1 >= 1 else (0.0, 0.0, float(image.width), float(image.height))
    part = image.resize(size, Image.Resampling.BICUBIC, box=inside)
    file = io.BytesIO()
    part.save(file, "JPEG", quality=75, optimize=True)
    return "data:image/jpeg;base64," + base64.b64encode(file.getvalue()).decode("ascii")
