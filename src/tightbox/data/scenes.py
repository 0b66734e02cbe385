"""Synthetic scenes to train on: textured shapes that overlap, crowd and hide, with boxes exact to the pixel.

A pixel belongs to a shape that covers at least half of it. A box is tight around the pixels of its object that remain
visible when everything is painted: x2 and y2 are one past the last of them.
"""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.random import Generator
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFilter, ImageFont

from tightbox.data.records import DetectionData, ImageRecord
from tightbox.errors import UserError
from tightbox.files import write_json
from tightbox.images import write_image
from tightbox.progress import Progress, silent

CLASS_NAMES = ("disc", "rectangle", "triangle", "star", "ring")
SMALLEST, LARGEST = 10.0, 200.0  # longer side of an object in pixels
MIN_VISIBLE = 0.6  # fraction of every object that shows
TYPICAL = 0.9  # fraction of the objects that have their class's hue; nothing else in a scene keeps to one
SUPERSAMPLING = 3  # subpixels along each side of a pixel
LETTERS = list("AEFHKLMNTVXYZ1247")  # none of them round, as a ring is

Floats = NDArray[np.floating[Any]]
Coverage = tuple[NDArray[np.uint8], tuple[int, int]]  # (h, w) fraction of each pixel, 0..255, and x, y of the window


def render_scene(seed: int, size: tuple[int, int] = (256, 256)) -> tuple[Image.Image, Floats, NDArray[np.int64]]:
    """One scene, always the same for the same seed and size.

    Args:
        seed: any non-negative integer.
        size: width and height of the image, at least 64 pixels each.

    Returns:
        The RGB image, its (G, 4) float32 boxes, xyxy in pixels, and its (G,) labels, indices of `CLASS_NAMES`.

    Raises:
        UserError: if the size is too small to hold the shapes.
    """
    image, boxes, labels, _ = _render(seed, size)
    return image, boxes, labels


def write_scenes(
    root: Path,
    splits: Mapping[str, int],
    seed: int = 0,
    size: tuple[int, int] = (256, 256),
    progress: Progress = silent,
) -> dict[str, Path]:
    """Writes scenes as a COCO data set: `root/<split>.json` and the images in `root/images`.

    A scene depends on `seed`, its split and its number only, so a longer split begins with the scenes of a shorter one.

    Args:
        root: the folder to write to; it is created if need be.
        splits: how many scenes each split gets, such as `{"train": 400, "val": 100}`.
        seed: chooses the scenes.
        size: width and height of each image.
        progress: called after each scene with the number done and the number of all.

    Returns:
        The path of each split's JSON file, which appears when all its images are there.

    Raises:
        UserError: if an image cannot be written.
    """
    category_ids = tuple(range(1, len(CLASS_NAMES) + 1))
    done, paths = 0, dict[str, Path]()
    for split, count in splits.items():
        scene_seeds = np.random.SeedSequence([seed, *split.encode()]).generate_state(count, np.uint64).tolist()
        records = []
        for number, scene_seed in enumerate(scene_seeds, 1):
            image, boxes, labels = render_scene(scene_seed, size)
            path = root / "images" / f"{split}_{number:05d}.jpg"
            write_image(path, image)
            areas = (boxes[:, 2:] - boxes[:, :2]).prod(axis=1)
            records.append(ImageRecord(path, number, *size, boxes, labels, np.zeros(len(labels), np.bool_), areas))
            done += 1
            progress(done, sum(splits.values()))
        paths[split] = root / f"{split}.json"
        data = DetectionData("scenes", root, split, CLASS_NAMES, category_ids, tuple(records))
        write_json(paths[split], data.to_coco())
    return paths


def _render(seed: int, size: tuple[int, int]) -> tuple[Image.Image, Floats, NDArray[np.int64], NDArray[np.bool_]]:
    """The scene, with the (G, H, W) pixels of each object that show, around which its box is tight."""
    if min(size) < 64:
        raise UserError(f"a scene of {size[0]} x {size[1]} pixels is too small; ask for at least 64 x 64")
    rng = np.random.default_rng(seed)
    canvas = _Canvas(_background(rng, size))
    for _ in range(rng.integers(0, 3)):
        _add_mark(rng, canvas)
    _add_objects(rng, canvas)
    for _ in range(rng.integers(1, 3) if rng.random() < 0.3 else 0):
        _add_mark(rng, canvas)

    labels = np.array(canvas.labels[1:], np.int64)
    masks = canvas.owner == np.arange(1, len(canvas.labels))[:, None, None]  # [G, H, W]
    boxes = np.array([Image.fromarray(mask).getbbox() for mask in masks], np.float32).reshape(-1, 4)
    return _photograph(rng, canvas.pixels), boxes, labels, masks


class _Canvas:
    """An image in the making that knows whose each pixel is: 0 is nobody, i the i-th object."""

    def __init__(self, pixels: Floats) -> None:
        self.pixels = pixels  # (H, W, 3) in 0..255
        self.owner: NDArray[np.int64] = np.zeros(pixels.shape[:2], np.int64)
        self.labels = [-1]  # of each owner
        self.needed = np.zeros(1)  # pixels of each owner that must show
        self.showing = np.zeros(1)  # and those that do

    def paint(self, coverage: Coverage, texture: Floats, label: int | None) -> None:
        """Puts a shape on top, unless it, or an object below it, would show less than `MIN_VISIBLE` of itself.

        Args:
            coverage: the shape; a part of its window may lie outside the image.
            texture: (h, w, 3) colours of the window.
            label: class of an object; None for what is no object and only hides.
        """
        alpha, (x, y) = coverage
        height, width = self.owner.shape
        needed = MIN_VISIBLE * np.count_nonzero(alpha >= 128)
        window = np.s_[max(y, 0) : max(y + alpha.shape[0], 0), max(x, 0) : max(x + alpha.shape[1], 0)]
        inside = np.s_[max(-y, 0) : max(height - y, 0), max(-x, 0) : max(width - x, 0)]
        alpha, texture = alpha[inside], texture[inside]
        covered = alpha >= 128
        showing = self.showing - np.bincount(self.owner[window][covered], minlength=len(self.showing))
        if (showing[1:] < self.needed[1:]).any() or (label is not None and np.count_nonzero(covered) < needed):
            return
        if label is not None:
            self.labels.append(label)
            self.needed = np.append(self.needed, needed)
            showing = np.append(showing, np.count_nonzero(covered))
        self.showing = showing
        self.owner[window][covered] = 0 if label is None else len(self.labels) - 1
        self.pixels[window] += (texture - self.pixels[window]) * (alpha[..., None] / np.float32(255))

    def colour_around(self, centre: tuple[float, float], size: float) -> Floats:
        """The (3,) mean colour of what the image has in this square."""
        (x1, y1), (x2, y2) = (np.maximum(np.array(centre) + d * size, 0).astype(int) for d in (-0.5, 0.5))
        return np.asarray(self.pixels[y1 : y2 + 1 : 2, x1 : x2 + 1 : 2].mean((0, 1)))


def _add_objects(rng: Generator, canvas: _Canvas) -> None:
    """None in one scene of twenty, a crowd of small ones in another, else a few of all sizes."""
    height, width = canvas.owner.shape
    kind = rng.random()
    if kind < 0.05:
        return
    crowded = kind < 0.09
    low, high = (SMALLEST, 40.0) if crowded else (36.0, min(LARGEST, 0.65 * min(height, width)))
    for _ in range(rng.integers(14, 25) if crowded else rng.integers(3, 13)):
        label = int(rng.integers(len(CLASS_NAMES)))
        size = math.exp(rng.uniform(math.log(low), math.log(high)))
        rim = 0.3 * size  # so that few objects are cut by the image's edge, and none by much
        centre = rng.uniform(rim, width - rim), rng.uniform(rim, height - rim)
        alpha, corner = _shape(rng, CLASS_NAMES[label], size, centre)
        colours = _two_colours(rng, canvas.colour_around(centre, size), label)
        canvas.paint((alpha, corner), _blend(colours, _pattern(rng, alpha.shape)), label)


def _shape(rng: Generator, name: str, size: float, centre: tuple[float, float]) -> Coverage:
    """A shape of the class, turned and squeezed at random, its longer side `size` pixels."""
    radii = {"rectangle": [1.0] * 4, "triangle": [1.0] * 3, "star": [1.0, 0.45] * 5}.get(name, [1.0] * 64)
    turn = math.pi / 4 if name == "rectangle" else 0.0  # so that squeezing gives no rhombus
    points = _polar(radii, turn) * (1.0, rng.uniform(0.55, 1.0)) @ _rotation(rng)
    points *= size / np.ptp(points, axis=0).max()
    return _rasterise([points, 0.55 * points] if name == "ring" else [points], centre)


def _add_mark(rng: Generator, canvas: _Canvas) -> None:
    """A line, cross, chevron, arc, scribble or a few letters: none is an object, and all may hide a part of one."""
    height, width = canvas.owner.shape
    size = rng.uniform(12, 0.7 * min(height, width))
    centre = rng.uniform(0, width), rng.uniform(0, height)
    kind = rng.integers(6)
    if kind == 5:
        coverage = _letters("".join(rng.choice(LETTERS, rng.integers(2, 6))), min(size / 3, 30), centre)
    else:
        strokes = [
            [[[-1, 0], [1, 0]]],
            [[[-1, 0], [1, 0]], [[0, -1], [0, 1]]],
            [[[-1, -0.6], [0, 0.6], [1, -0.6]]],
            [_polar([1.0] * 64)[: rng.integers(16, 40)]],
            [0.4 * rng.normal(size=(9, 2)).cumsum(0)],
        ][kind]
        turned = 0.5 * size * np.array(strokes) @ _rotation(rng)
        coverage = _rasterise(list(turned), centre, thickness=rng.uniform(1.2, 2.5 + 0.03 * size))
    colour, _ = _two_colours(rng, canvas.colour_around(centre, size))
    canvas.paint(coverage, np.broadcast_to(colour, (*coverage[0].shape, 3)), None)


def _letters(text: str, size: float, centre: tuple[float, float]) -> Coverage:
    font = ImageFont.load_default(size)
    width, height = map(math.ceil, font.getbbox(text)[2:])
    window = Image.new("L", (width, height))
    ImageDraw.Draw(window).text((0, 0), text, fill=255, font=font)
    return np.asarray(window), (int(centre[0] - width / 2), int(centre[1] - height / 2))


def _rasterise(parts: Sequence[Floats], centre: tuple[float, float], thickness: float | None = None) -> Coverage:
    """A polygon with a hole for each further part, or lines along all parts if they have a thickness.

    Parts are (N, 2) x, y in pixels from the centre, which is in pixels of the image.
    """
    points = np.concatenate(parts) + centre
    margin = 1 + math.ceil(thickness or 0)
    corner = np.floor(points.min(0)).astype(int) - margin
    width, height = (np.ceil(points.max(0)).astype(int) + margin - corner).tolist()
    window = Image.new("L", (SUPERSAMPLING * width, SUPERSAMPLING * height))
    pen = ImageDraw.Draw(window)
    for i, part in enumerate(parts):
        # Pillow's coordinates name the middle of a subpixel, ours its corner: they differ by half a subpixel.
        place = (SUPERSAMPLING * (part + centre - corner) - 0.5).ravel().tolist()
        if thickness is None:
            pen.polygon(place, fill=0 if i else 255)
        else:
            pen.line(place, fill=255, width=round(SUPERSAMPLING * thickness), joint="curve")
    return np.asarray(window.reduce(SUPERSAMPLING)), (int(corner[0]), int(corner[1]))


def _polar(radii: Sequence[float], start: float = 0.0) -> Floats:
    """(N, 2) points at these distances from the origin and evenly spaced angles."""
    angles = start + np.arange(len(radii)) * (2 * math.pi / len(radii))
    return np.stack([radii * np.cos(angles), radii * np.sin(angles)], 1)


def _rotation(rng: Generator) -> Floats:
    angle = rng.uniform(0, 2 * math.pi)
    return np.array([[math.cos(angle), math.sin(angle)], [-math.sin(angle), math.cos(angle)]])


def _colour(rng: Generator, max_saturation: float, label: int | None = None) -> Floats:
    """An RGB colour in 0..255; most objects of a class, as in life, are near a hue of their own."""
    hue, saturation, value = rng.random(), rng.uniform(0.1, max_saturation), rng.uniform(0.2, 0.95)
    if label is not None and rng.random() < TYPICAL:
        hue, saturation = (label / len(CLASS_NAMES) + 0.04 * rng.normal()) % 1, rng.uniform(0.5, 0.9)
    channels = np.clip(np.abs((hue * 6 + np.array([0.0, 4.0, 2.0])) % 6 - 3) - 1, 0, 1)
    return np.asarray(255 * value * (1 - saturation * (1 - channels)), np.float32)


def _two_colours(rng: Generator, behind: Floats, label: int | None = None) -> tuple[Floats, Floats]:
    """A colour that stands out against the one behind, and another to pattern it with, away from both."""

    def contrast(colour: Floats, *others: Floats) -> float:
        return float(min(np.linalg.norm(colour - other) for other in others))

    first = _colour(rng, 0.8, label)
    while contrast(first, behind) < 100:
        first = _colour(rng, 0.8, label)
    second = max((_colour(rng, 0.8) for _ in range(4)), key=lambda colour: contrast(colour, behind, first))
    return first, first + 0.35 * (second - first)  # a strong pattern would itself look like discs and rectangles


def _blend(colours: tuple[Floats, Floats], field: Floats) -> Floats:
    """(h, w, 3) colours: the first where the (h, w) field is 0, the second where it is 1."""
    return np.asarray(colours[0] + field[..., None] * (colours[1] - colours[0]))


def _pattern(rng: Generator, shape: tuple[int, ...]) -> Floats:
    """A field in [0, 1]: plain, gradient, stripes, dots or checks, at any angle."""
    rows, columns = (axis.astype(np.float32) for axis in np.ogrid[: shape[0], : shape[1]])
    cos, sin = _rotation(rng)[0].astype(np.float32)
    u, v = columns * cos + rows * sin, rows * cos - columns * sin
    wavelength = max(shape) * rng.uniform(0.12, 0.4)
    u, v = (np.float32(2 * math.pi / wavelength) * axis for axis in (u, v))
    kind = rng.integers(5 if wavelength > 4 else 2)  # finer ones would only hide the shape
    if kind == 0:
        return np.zeros(shape, np.float32)
    if kind == 1:
        return np.asarray((u - u.min()) / np.ptp(u))
    wave = (np.sin(u), np.cos(u) + np.cos(v) - 0.6, 2 * np.sin(u) * np.sin(v))[kind - 2]
    return np.asarray(np.clip(2 * wave + 0.5, 0, 1))  # steep, but not so steep that its edges are jagged


def _background(rng: Generator, size: tuple[int, int]) -> Floats:
    """Two colours not too far apart, mixed by noise of several octaves and a pattern."""
    noise: Floats = np.zeros((size[1], size[0]), np.float32)
    roughness = rng.uniform(0.4, 0.9)
    for octave in range(6):
        cells = Image.fromarray(rng.random((2 << octave, 2 << octave), np.float32))
        noise += roughness**octave * (np.asarray(cells.resize(size, Image.Resampling.BICUBIC)) - 0.5)
    blend = rng.uniform(0.3, 1.0)
    field = blend * (0.5 + 0.5 * noise / np.abs(noise).max()) + (1 - blend) * _pattern(rng, noise.shape)
    first = _colour(rng, 0.5)
    return _blend((first, first + rng.uniform(0.25, 0.6) * (_colour(rng, 0.5) - first)), field.astype(np.float32))


def _photograph(rng: Generator, pixels: Floats) -> Image.Image:
    """The finished image: contrast, brightness, grain and sharpness vary as if cameras did."""
    pixels = (pixels - 128) * rng.uniform(0.75, 1.1) + 128 + rng.uniform(-20, 20)
    pixels += rng.uniform(0, 9) * rng.standard_normal(pixels.shape, np.float32)
    image = Image.fromarray(np.clip(pixels, 0, 255).astype(np.uint8))
    return image.filter(ImageFilter.GaussianBlur(rng.uniform(0.4, 1.0))) if rng.random() < 0.4 else image
