"""Drawings of boxes that a person can read: on one image, and ground truth beside prediction for many."""

import math
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageColor, ImageDraw, ImageFont

from tightbox.errors import UserError

# Okabe and Ito's colours, which people of any colour vision tell apart.
PALETTE = ("#E69F00", "#56B4E9", "#009E73", "#F0E442", "#0072B2", "#D55E00", "#CC79A7")
INK, PAPER = "#111111", "#F4F4F2"
CROWDED = 12  # from this many boxes on, class names move from the boxes into a legend


def draw_detections(image: Image.Image, found: Any, class_names: Sequence[str]) -> Image.Image:
    """A copy of the image with a line around each box, and a tag such as "fish 0.83 IoU 0.71".

    The predicted IoU is shown where it reads differently from the score. Outer and inner boxes are drawn as dashed
    lines, but for those without area; a box that is not finite is left out. From 12 boxes on, lines are thinner, tags
    give the score only, and a legend of the classes is added below.

    Args:
        image: any Pillow image.
        found: `tightbox.structures.Detections`, or the like with arrays or lists.
        class_names: name of each class.

    Raises:
        UserError: if a label has no class name.
    """
    labels = _labels(found.labels, class_names)
    crowded = len(labels) >= CROWDED
    margins = [_array(boxes) for boxes in (found.outer, found.inner) if boxes is not None]
    drawn = _annotate(_dashed(image, margins, labels) if margins else image, found, class_names, crowded)
    return _with_legend(drawn, labels, class_names) if crowded else drawn


def image_grid(
    rows: Iterable[tuple[Image.Image, Any, Any]], class_names: Sequence[str], pairs: int = 2, width: int = 384
) -> Image.Image:
    """Images with their ground-truth boxes on the left and the predicted ones on the right.

    Args:
        rows: image, ground truth and detections of each; the latter two have `boxes` and `labels`, and the scores and
            predicted IoUs are drawn of those that have `scores` and `ious`, as for `draw_detections`.
        class_names: name of each class.
        pairs: how many images stand side by side.
        width: of every image in the grid, in pixels; smaller images are enlarged and larger ones reduced.

    Raises:
        UserError: if a label has no class name, or there is no image.
    """
    content = [(image, (ground_truth, found)) for image, ground_truth, found in rows]
    if not content:
        raise UserError("there is no image to draw; give at least one image")
    crowded = any(len(side.labels) >= CROWDED for _, sides in content for side in sides)
    cells = []
    for image, sides in content:
        scale = width / image.width
        resized = image.convert("RGB").resize((width, max(1, round(scale * image.height))), Image.Resampling.LANCZOS)
        cells += [_annotate(resized, side, class_names, crowded, scale) for side in sides]

    columns, gap, header = 2 * min(pairs, len(content)), max(8, width // 32), max(24, width // 12)
    lefts = [gap + i * (width + gap) + (i // 2) * 2 * gap for i in range(columns)]  # pairs stand a little apart
    bands = [cells[i : i + columns] for i in range(0, len(cells), columns)]
    heights = [max(cell.height for cell in band) for band in bands]
    grid = Image.new("RGB", (lefts[-1] + width + gap, header + sum(heights) + gap * len(bands)), PAPER)
    pen, font, top = ImageDraw.Draw(grid), ImageFont.load_default(0.55 * header), header
    for i, left in enumerate(lefts):
        title = "prediction" if i % 2 else "ground truth"
        pen.text((left + width / 2, header / 2), title, fill=INK, font=font, anchor="mm")
    for band, height in zip(bands, heights, strict=True):
        for left, cell in zip(lefts, band, strict=False):
            grid.paste(cell, (left, top))
        top += height + gap
    everything = np.concatenate([_labels(side.labels, class_names) for _, sides in content for side in sides])
    return _with_legend(grid, everything, class_names) if crowded else grid


def _annotate(image: Image.Image, found: Any, names: Sequence[str], crowded: bool, scale: float = 1) -> Image.Image:
    """A copy of the image, with lines that enclose the boxes and tags that avoid each other and the other boxes."""
    canvas = image.convert("RGB").copy()
    pen, limits = ImageDraw.Draw(canvas), np.array(canvas.size * 2)
    side = math.sqrt(canvas.width * canvas.height)
    line, size = max(1, round(side / (240 if crowded else 160))), max(10.0, side / (36 if crowded else 28))
    font = ImageFont.load_default(size)
    labels, boxes = _labels(found.labels, names), (scale * _array(found.boxes)).reshape(-1, 4).astype(float)
    columns = (getattr(found, name, None) for name in ("scores", "ious"))
    scores, ious = (None if values is None else _array(values) for values in columns)
    drawn = [i for i, box in enumerate(boxes) if np.isfinite(box).all()]
    whole = np.clip(boxes[drawn].round(), 0, limits).astype(int)
    for i, (x1, y1, x2, y2) in zip(drawn, whole.tolist(), strict=True):
        for grow, colour in ((line + 1, _ink_on(_colour(labels[i]))), (line, _colour(labels[i]))):  # rim, then line
            outer = np.array([x1 - grow, y1 - grow, max(x2 - 1, x1) + grow, max(y2 - 1, y1) + grow])
            pen.rectangle(np.clip(outer, 0, limits - 1).tolist(), outline=colour, width=grow)

    plates = np.zeros((0, 4), int)
    for i, box in zip(drawn, whole, strict=True):
        words = _words(i, None if crowded else names[labels[i]], scores, None if crowded else ious)
        while words and font.getlength(" ".join(words)) + 0.6 * size > canvas.width:
            words.pop()
        width, height = math.ceil(font.getlength(" ".join(words)) + 0.6 * size), math.ceil(1.3 * size)
        (x, y), hidden = _place(width, height, box, whole, plates, canvas.size)
        if words and not (crowded and hidden > 0.5 * width * height):
            pen.rectangle([x, y, x + width - 1, y + height - 1], fill=_colour(labels[i]))
            middle = x + width / 2, y + height / 2
            pen.text(middle, " ".join(words), fill=_ink_on(_colour(labels[i])), font=font, anchor="mm")
            plates = np.concatenate([plates, [[x, y, x + width, y + height]]])
    return canvas


def _dashed(image: Image.Image, margins: Sequence[NDArray[Any]], labels: NDArray[np.int64]) -> Image.Image:
    """A copy of the image with a dashed rectangle for each of the boxes that has an area."""
    canvas = image.convert("RGB").copy()
    pen = ImageDraw.Draw(canvas)
    dash = max(3, round(math.sqrt(canvas.width * canvas.height) / 100))
    for boxes in margins:
        for label, box in zip(labels, boxes.reshape(-1, 4).astype(float), strict=True):
            if not (np.isfinite(box).all() and box[0] < box[2] and box[1] < box[3]):
                continue
            x1, y1, x2, y2 = np.clip(box.round(), 0, np.array(canvas.size * 2) - 1).astype(int).tolist()
            level = [[x, y, min(x + dash, x2), y] for x in range(x1, x2, dash) for y in (y1, y2)]
            upright = [[x, y, x, min(y + dash, y2)] for y in range(y1, y2, dash) for x in (x1, x2)]
            for dashes in (level, upright):  # two at a time: those of opposite sides
                for number, ends in enumerate(dashes):
                    gap = number // 2 % 2
                    pen.line(ends, fill=_ink_on(_colour(label)) if gap else _colour(label), width=1 if gap else 2)
    return canvas


def _words(i: int, name: str | None, scores: Any, ious: Any) -> list[str]:
    """The words of the tag of box i."""
    score = None if scores is None else f"{float(scores[i]):.2f}"
    iou = None if ious is None else f"{float(ious[i]):.2f}"
    return [word for word in (name, score, None if iou in (None, score) else f"IoU {iou}") if word is not None]


def _place(
    width: int, height: int, box: NDArray[Any], boxes: NDArray[Any], plates: NDArray[Any], size: tuple[int, int]
) -> tuple[tuple[int, int], float]:
    """The corner of a plate at a box where it hides least, and how many pixels it hides, those of plates twice."""
    x1, y1, x2, y2 = box.tolist()
    around = (boxes[:, :2] <= box[:2]).all(1) & (boxes[:, 2:] >= box[2:]).all(1)  # itself too: a tag does no harm there
    others = np.concatenate([boxes[~around], plates, plates])
    beside = [(x1, y1 - height), (x2 - width, y1 - height), (x1, y2), (x2 - width, y2), (x2, y1), (x1 - width, y1)]
    places = []
    for x, y in (*beside, (x1, y1), (x1, y2 - height)):
        x, y = max(0, min(x, size[0] - width)), max(0, min(y, size[1] - height))
        shared = np.minimum([x + width, y + height], others[:, 2:]) - np.maximum([x, y], others[:, :2])  # [O, 2]
        places.append(((x, y), float(np.clip(shared, 0, None).prod(1).sum())))
    return min(places, key=lambda place: place[1])


def _with_legend(image: Image.Image, labels: NDArray[Any], class_names: Sequence[str]) -> Image.Image:
    """The image with the classes that it shows listed below."""
    size = min(max(11.0, image.width / 45), 20.0)
    font = ImageFont.load_default(size)
    places: list[tuple[int, float, float]] = []
    x, y = 0.6 * size, image.height + 1.2 * size
    for label in sorted(set(labels.tolist())):
        width = 2.6 * size + font.getlength(class_names[label])
        if x + width > image.width and places:
            x, y = 0.6 * size, y + 1.8 * size
        places.append((label, x, y))
        x += width
    taller = Image.new("RGB", (image.width, math.ceil(y + 1.2 * size)), PAPER)
    taller.paste(image)
    pen = ImageDraw.Draw(taller)
    for label, x, y in places:
        pen.rectangle((x, y - size / 2, x + size, y + size / 2), fill=_colour(label), outline=INK)
        pen.text((x + 1.4 * size, y), class_names[label], fill=INK, font=font, anchor="lm")
    return taller


def _colour(label: int) -> str:
    return PALETTE[label % len(PALETTE)]


def _ink_on(colour: str) -> str:
    """Dark or white text, whichever contrasts more by WCAG's relative luminance."""
    luminance = np.dot((np.array(ImageColor.getrgb(colour)) / 255) ** 2.2, (0.2126, 0.7152, 0.0722))
    return INK if luminance > 0.2 else "#FFFFFF"


def _array(values: Any) -> NDArray[Any]:
    """An array of a tensor on any device, an array or a list."""
    return np.asarray(values.detach().cpu() if hasattr(values, "detach") else values)


def _labels(values: Any, class_names: Sequence[str]) -> NDArray[np.int64]:
    labels = _array(values).astype(np.int64).reshape(-1)
    for label in labels.tolist():
        if not 0 <= label < len(class_names):
            raise UserError(f"a box has label {label}, but there are names for {len(class_names)} classes only")
    return labels
