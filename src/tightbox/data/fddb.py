"""FDDB as downloaded: faces as ellipses, in ten folds.

FDDB: A Benchmark for Face Detection in Unconstrained Settings, technical report UM-CS-2010-009,
https://people.cs.umass.edu/~elm/papers/fddb.pdf.
"""

import math
from collections.abc import Callable, Sequence
from functools import partial
from itertools import zip_longest
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from tightbox.data.face_lists import Entry, read_entries
from tightbox.data.records import DetectionData, Parsed, RawBox, RawImage
from tightbox.errors import UserError
from tightbox.reading import is_file, read_text

_COLUMNS = 6  # major radius, minor radius, angle, centre x, centre y, and a 1


def read_fddb(root: Path, split: str = "test") -> DetectionData:
    """FDDB's images with the bounding boxes of its ellipses and the one class "face".

    * `root` is the folder with FDDB-folds and originalPics in it.
    * "test" and "val" are all folds: FDDB is made to test on. "fold-01" to "fold-10" are single ones.
    * Image ids count from 1 in the order of the folds; areas are those of the ellipses.

    Raises:
        UserError: if there is no such split, or a file makes no sense.
    """
    return _parse(root, split, _required_folds(root, split)).data()


def read_ellipses(root: Path, split: str = "test") -> list[NDArray[np.float64]]:
    """The annotated ellipses (G, 5) of each image, in the order of `read_fddb`'s records.

    An ellipse is its major radius, its minor radius, the angle of the major axis in radians, from the x axis towards
    the y axis, which points down, and its centre's x and y; all but the angle in pixels.

    Raises:
        UserError: as of `read_fddb`.
    """
    parsed = Parsed("FDDB", root, split)
    entries = _entries(_required_folds(root, split), parsed)
    for finding in parsed.findings:
        raise UserError(str(finding))
    return [np.array([row[:5] for row in entry.rows], dtype=np.float64).reshape(-1, 5) for entry in entries]


def ellipse_box(major: float, minor: float, angle: float, x: float, y: float) -> tuple[float, float, float, float]:
    """The bounding box xyxy of an ellipse: its extreme points are where the derivative by the parameter is 0.

    A point of the ellipse is x + a·cos θ·cos t − b·sin θ·sin t, a sum of a cosine and a sine of the same t, whose
    amplitude is √(a²cos²θ + b²sin²θ); likewise for y with cosine and sine of θ exchanged.

    >>> ellipse_box(4.0, 2.0, 0.0, 10.0, 20.0)
    (6.0, 18.0, 14.0, 22.0)
    """
    cos, sin = math.cos(angle), math.sin(angle)
    half_width, half_height = math.hypot(major * cos, minor * sin), math.hypot(major * sin, minor * cos)
    return x - half_width, y - half_height, x + half_width, y + half_height


def find_fddb(root: Path, split: str) -> Callable[[], Parsed] | None:
    """The parser of the split, if `root` has FDDB's layout and the split is there."""
    folds = _folds(root, split)
    return partial(_parse, root, split, folds) if folds else None


def _folds(root: Path, split: str) -> list[Path]:
    """The ellipse lists of a split."""
    name = "fold-[0-9][0-9]" if split in ("val", "test") else split
    return sorted((root / "FDDB-folds").glob(f"FDDB-{name}-ellipseList.txt"))


def _required_folds(root: Path, split: str) -> list[Path]:
    folds = _folds(root, split)
    if not folds:
        raise UserError(f"{root} has no FDDB split {split!r}; it takes FDDB-folds/FDDB-fold-01-ellipseList.txt")
    return folds


def _parse(root: Path, split: str, folds: Sequence[Path]) -> Parsed:
    what = folds[0].name if len(folds) == 1 else f"{len(folds)} folds"
    parsed = Parsed(f"FDDB ({what})", root, split)
    parsed.set_classes([1], ["face"], root)
    folder = root / "originalPics"
    if not folder.is_dir():
        message = f"{parsed.layout} needs the folder of images {folder}, which does not exist"
        parsed.error("no-images", message, "unpack originalPics.tar.gz there")
        return parsed
    for entry in _entries(folds, parsed):
        for major, minor, angle, x, y, _ in entry.rows:
            if min(major, minor) <= 0:
                message = f"{entry.name} has an ellipse with the radii {major:g} and {minor:g}"
                parsed.error("face-list", message, "correct or remove it", folder / f"{entry.name}.jpg")
                continue
            box, area = ellipse_box(major, minor, angle, x, y), math.pi * major * minor
            parsed.boxes.append(RawBox(len(parsed.images), 0, box, area=area))
        image = folder / f"{entry.name}.jpg"
        parsed.images.append(RawImage(image, len(parsed.images) + 1, *parsed.size_of(image)))
    return parsed


def _entries(folds: Sequence[Path], parsed: Parsed) -> list[Entry]:
    """The images of the folds in order.

    A list that was cut off after a whole image is told by the fold's other file, which lists the images' names.
    """
    entries = []
    for fold in folds:
        found = read_entries(fold, _COLUMNS, parsed)
        names = fold.with_name(fold.name.replace("-ellipseList", ""))
        listed = [name for name, _ in found]
        if is_file(names):
            text = parsed.attempt("face-list", read_text, names)
            if text is None:
                continue
            listed = text.split()
        for line, (name, entry) in enumerate(zip_longest(listed, found), 1):
            if entry is None or name != entry.name:
                message = f"{names}:{line}: {name or 'the end'} is not what {fold.name} has there"
                parsed.error("face-list", message, "one of the two may be cut off: download them again")
                break
        entries += found
    return entries
