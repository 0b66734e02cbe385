"""YOLO text labels, with boxes or polygons."""

import os
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from tightbox.data.records import Parsed, RawBox, RawImage, split_names
from tightbox.errors import UserError
from tightbox.images import IMAGE_SUFFIXES
from tightbox.reading import any_numbers, exists, is_file, read_lines, read_text, read_yaml, shown

_SLACK = 1e-3  # how far outside the image rounding may put a coordinate


def find_yolo(root: Path, split: str) -> Callable[[], Parsed] | None:
    """The parser of the split, if `root` has a YOLO layout and the split is there.

    * Images are where data.yaml says (folders, or text files of paths), else in images/{split} or {split}/images.
    * The labels of an image are in the text file of its name, in the folder `labels` where its own says `images`, or
      beside it; an image without one has no objects.
    * Class names come from data.yaml or classes.txt; category ids are 0..C-1, image ids count from 1 by path.
    * A line with a polygon, or with four corners, becomes its bounding box.

    Raises:
        UserError: if data.yaml cannot be read.
    """
    settings = _settings(root)
    names = split_names(split)
    entries: Any = next((settings[name] for name in names if settings.get(name)), [])
    texts = [entry for entry in (entries if isinstance(entries, list) else [entries]) if isinstance(entry, str)]
    listed = [_resolve(root, settings, entry) for entry in texts]
    usual = [folder for name in names for folder in (root / "images" / name, root / name / "images")]
    sources = [path for path in listed if path] or [folder for folder in usual if folder.is_dir()][:1]
    return partial(_parse, root, split, settings, sources) if sources else None


def parse_line(line: str, classes: int) -> tuple[int, tuple[float, float, float, float]]:
    """The class and the xyxy box, in fractions of the image, of one line of a label file.

    Raises:
        ValueError: that says what is wrong with the line.
    """
    try:
        number, *values = any_numbers(line)
    except ValueError:
        raise ValueError(f"{shown(line)} is not a row of numbers") from None
    if len(values) != 4 and (len(values) < 6 or len(values) % 2):
        raise ValueError(f"{len(values) + 1} numbers are neither a box (5) nor a polygon (7, 9, 11, ...)")
    if not (0 <= number < classes and number.is_integer()):
        raise ValueError(f"class {number:g} is not in 0..{classes - 1}, the classes that have names")
    outside = [value for value in values if not -_SLACK <= value <= 1 + _SLACK]
    if outside:
        raise ValueError(f"{outside[0]:g} is not a fraction of the image's size, from 0 to 1")
    if len(values) > 4:
        xs, ys = values[::2], values[1::2]
        return int(number), (min(xs), min(ys), max(xs), max(ys))
    x, y, width, height = values
    return int(number), (x - width / 2, y - height / 2, x + width / 2, y + height / 2)


def _settings(root: Path) -> dict[str, Any]:
    """The content of data.yaml, or of another YAML file at the top with such keys; empty if there is none."""
    for path in sorted(root.glob("*.y*ml"), key=lambda path: (path.stem != "data", path)):
        content = read_yaml(path)
        if isinstance(content, dict) and content.keys() & {"names", "train", "val"}:
            return content
    return {}


def _resolve(root: Path, settings: dict[str, Any], entry: str) -> Path | None:
    """Where an entry of data.yaml leads.

    `path` may be left over from another machine, and Roboflow writes "../train/images" for "train/images".
    """
    bases = [root / str(settings.get("path") or ""), root]
    places = [base / text for base in bases for text in (entry, entry.removeprefix("../"))]
    return next((place for place in places if exists(place)), None)


def _names_and_images(settings: dict[str, Any], sources: Sequence[Path], root: Path) -> tuple[list[str], list[Path]]:
    return _class_names(root, settings), sorted({image for source in sources for image in _images(source)})


def _class_names(root: Path, settings: dict[str, Any]) -> list[str]:
    names = settings.get("names")
    if isinstance(names, dict):
        names = [names[key] for key in sorted(names)] if set(names) == set(range(len(names))) else []
    if isinstance(names, list):
        plain = not any(name is None or isinstance(name, (dict, list, set)) for name in names)
        return [str(name) for name in names] if plain else []
    for path in (root / "classes.txt", root / "labels" / "classes.txt"):
        if path.is_file():
            return read_lines(path)
    return []


def _images(source: Path) -> list[Path]:
    """The images of a folder, or those that a text file lists relative to itself."""
    if source.is_dir():
        if source.resolve() == Path(source.anchor or "/"):
            raise UserError(f"{source} is the whole disk, and no folder of images; correct data.yaml")
        return [p for p in source.rglob("*") if p.suffix.lower() in IMAGE_SUFFIXES and not p.name.startswith(".")]
    return [path for line in read_lines(source) if (path := source.parent / line).name]


def _label_file(image: Path) -> Path:
    beside = image.with_suffix(".txt")
    above = [depth for depth, parent in enumerate(beside.parents) if parent.name == "images"]
    if above:
        images = beside.parents[above[0]]
        swapped = images.with_name("labels") / beside.relative_to(images)
        if os.path.isdir(swapped.parent):
            return swapped
    return beside


def _parse(root: Path, split: str, settings: dict[str, Any], sources: Sequence[Path]) -> Parsed:
    parsed = Parsed(f"YOLO ({', '.join(str(path) for path in sources)})", root, split)
    listed = parsed.attempt("yolo-list", partial(_names_and_images, settings, sources), root)
    if listed is None:
        return parsed
    names, images = listed
    if not names:
        message = f"{root} has no list of class names, or one whose numbers are not 0, 1, 2, ..."
        fix = "write data.yaml there with a line such as names: [cat, dog], or classes.txt with one name a line"
        parsed.error("class-names", message, fix)
        return parsed
    parsed.set_classes(range(len(names)), names, root)
    found = False
    for image in images:
        width, height = parsed.size_of(image)
        labels = _label_file(image)
        if is_file(labels):
            found = True
            _add_boxes(labels, image, (width, height), parsed)
        parsed.images.append(RawImage(image, len(parsed.images) + 1, width, height))
    if images and not found:
        message = f"none of the {len(images)} images of {parsed.layout} has a label file"
        parsed.error("no-labels", message, f"put the first one's labels at {_label_file(images[0])}, and so on")
    return parsed


def _add_boxes(labels: Path, image: Path, size: tuple[int, int], parsed: Parsed) -> None:
    width, height = size
    for number, line in enumerate((parsed.attempt("yolo-line", read_text, labels, image) or "").splitlines(), 1):
        if not line.strip():
            continue
        try:
            label, (x1, y1, x2, y2) = parse_line(line, len(parsed.class_names))
        except ValueError as error:
            parsed.error("yolo-line", f"{labels}:{number}: {error}", "correct or remove the line", image)
            continue
        parsed.boxes.append(RawBox(len(parsed.images), label, (x1 * width, y1 * height, x2 * width, y2 * height)))
