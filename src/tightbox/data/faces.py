"""The face data sets WIDER FACE and FDDB as downloaded.

The text files of both hold an image's name, the number of its faces, then one row of numbers for each.

WIDER FACE: A Face Detection Benchmark, https://arxiv.org/abs/1511.06523.
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

from tightbox.data.records import DetectionData, Finding, Parsed, RawBox, RawImage, Severity
from tightbox.errors import UserError
from tightbox.reading import is_file, numbers, read_text, shown

_WIDER_FACE_COLUMNS = 10  # x, y, width, height, blur, expression, illumination, invalid, occlusion, pose
_INVALID = 7
_FDDB_COLUMNS = 6  # major radius, minor radius, angle, centre x, centre y, and a 1
_COUNT_DIGITS = 9

Entry = tuple[str, list[tuple[float, ...]]]  # an image's name, and the rows of its faces


def find_wider_face(root: Path, split: str) -> Callable[[], Parsed] | None:
    """The parser of the split, "train" or "val", if `root` has WIDER FACE's layout and the split is there.

    * `root` is the folder with wider_face_split, WIDER_train and WIDER_val in it; the one class is "face".
    * Faces marked invalid become crowd: they count neither as face nor as background.
    * Faces without width or height, of which there are some, are left out.
    * Image ids count from 1 in the order of the annotation file; sizes are those of the images' headers.
    """
    annotations = root / "wider_face_split" / f"wider_face_{split}_bbx_gt.txt"
    return partial(_parse_wider_face, root, split, annotations) if annotations.is_file() else None


def _parse_wider_face(root: Path, split: str, annotations: Path) -> Parsed:
    folder = root / f"WIDER_{split}" / "images"
    parsed = Parsed(f"WIDER FACE ({annotations.name})", root, split)
    if not _is_there(folder, f"WIDER_{split}.zip", parsed):
        return parsed
    for name, faces in _read_entries(annotations, _WIDER_FACE_COLUMNS, parsed):
        for x, y, width, height, *attributes in faces:
            invalid = attributes[_INVALID - 4] != 0
            parsed.boxes.append(RawBox(len(parsed.images), 0, (x, y, x + width, y + height), invalid))
        parsed.images.append(RawImage(folder / name, len(parsed.images) + 1, *parsed.size_of(folder / name)))
    if invalid_faces := int(parsed.boxes.column("crowd").sum()):
        message = f"{invalid_faces} of {len(parsed.boxes)} faces of the {split} split are marked invalid"
        fix = "nothing: they count neither as face nor as background"
        parsed.findings.append(Finding(Severity.NOTE, "invalid-faces", "", message, fix))
    return parsed


def read_fddb(root: Path, split: str = "test") -> DetectionData:
    """FDDB's images with the bounding boxes of its ellipses and the one class "face".

    * `root` is the folder with FDDB-folds and originalPics in it.
    * "test" and "val" are all folds: FDDB is made to test on. "fold-01" to "fold-10" are single ones.
    * Image ids count from 1 in the order of the folds; areas are those of the ellipses.

    Raises:
        UserError: if there is no such split, or a file makes no sense.
    """
    return _parse_fddb(root, split, _required_folds(root, split)).data()


def read_ellipses(root: Path, split: str = "test") -> list[NDArray[np.float64]]:
    """The annotated ellipses (G, 5) of each image, in the order of `read_fddb`'s records.

    An ellipse is its major radius, its minor radius, the angle of the major axis in radians, from the x axis towards
    the y axis, which points down, and its centre's x and y; all but the angle in pixels.

    Raises:
        UserError: as of `read_fddb`.
    """
    parsed = Parsed("FDDB", root, split)
    entries = _fddb_entries(_required_folds(root, split), parsed)
    for finding in parsed.findings:
        raise UserError(str(finding))
    return [np.array([face[:5] for face in faces], dtype=np.float64).reshape(-1, 5) for _, faces in entries]


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
    return partial(_parse_fddb, root, split, folds) if folds else None


def _folds(root: Path, split: str) -> list[Path]:
    """The ellipse lists of a split."""
    name = "fold-[0-9][0-9]" if split in ("val", "test") else split
    return sorted((root / "FDDB-folds").glob(f"FDDB-{name}-ellipseList.txt"))


def _required_folds(root: Path, split: str) -> list[Path]:
    folds = _folds(root, split)
    if not folds:
        raise UserError(f"{root} has no FDDB split {split!r}; it takes FDDB-folds/FDDB-fold-01-ellipseList.txt")
    return folds


def _parse_fddb(root: Path, split: str, folds: Sequence[Path]) -> Parsed:
    what = folds[0].name if len(folds) == 1 else f"{len(folds)} folds"
    parsed = Parsed(f"FDDB ({what})", root, split)
    folder = root / "originalPics"
    if not _is_there(folder, "originalPics.tar.gz", parsed):
        return parsed
    for name, faces in _fddb_entries(folds, parsed):
        image = folder / f"{name}.jpg"
        for major, minor, angle, x, y, _ in faces:
            if min(major, minor) <= 0:
                message = f"{name} has an ellipse with the radii {major:g} and {minor:g}"
                parsed.error("face-list", message, "correct or remove it", image)
                continue
            box, area = ellipse_box(major, minor, angle, x, y), math.pi * major * minor
            parsed.boxes.append(RawBox(len(parsed.images), 0, box, area=area))
        parsed.images.append(RawImage(image, len(parsed.images) + 1, *parsed.size_of(image)))
    return parsed


def _fddb_entries(folds: Sequence[Path], parsed: Parsed) -> list[Entry]:
    """The images of the folds in order.

    A list that was cut off after a whole image is told by the fold's other file, which lists the images' names.
    """
    entries = []
    for fold in folds:
        found = _read_entries(fold, _FDDB_COLUMNS, parsed)
        names = fold.with_name(fold.name.replace("-ellipseList", ""))
        listed = [name for name, _ in found]
        if is_file(names):
            text = parsed.attempt("face-list", read_text, names)
            if text is None:
                continue
            listed = text.split()
        for line, (name, entry) in enumerate(zip_longest(listed, found), 1):
            if entry is None or name != entry[0]:
                message = f"{names}:{line}: {name or 'the end'} is not what {fold.name} has there"
                parsed.error("face-list", message, "one of the two may be cut off: download them again")
                break
        entries += found
    return entries


def _is_there(folder: Path, archive: str, parsed: Parsed) -> bool:
    """Whether there is the folder of images, to which the one class belongs; notes an error if not."""
    parsed.set_classes([1], ["face"], parsed.root)
    if not folder.is_dir():
        message = f"{parsed.layout} needs the folder of images {folder}, which does not exist"
        parsed.error("no-images", message, f"unpack {archive} there")
    return folder.is_dir()


def _read_entries(path: Path, columns: int, parsed: Parsed) -> list[Entry]:
    """The images of a file in order; what makes no sense becomes an error of `parsed` that names file and line.

    A line with a slash in it is an image's name, so that a wrong count spoils no image but its own.

    Args:
        path: the file.
        columns: how many numbers a row has.
        parsed: takes the errors.
    """
    blocks: list[list[tuple[int, str]]] = []
    for number, line in enumerate((parsed.attempt("face-list", read_text, path) or "").splitlines(), 1):
        text = line.strip()
        if "/" in text:
            blocks.append([(number, text)])
        elif text and blocks:
            blocks[-1].append((number, text))
        elif text:
            message = f"{path}:{number}: {shown(text)} comes before the first image's name"
            parsed.error("face-list", message, "it may be another file: copy or download it again")
            return []
    return [(block[0][1], _rows(path, block, columns, parsed)) for block in blocks]


def _rows(path: Path, block: list[tuple[int, str]], columns: int, parsed: Parsed) -> list[tuple[float, ...]]:
    (number, name), *lines = block
    fix = "the file may be cut off: copy or download it again"
    if not lines or not lines[0][1].isdecimal() or len(lines[0][1]) > _COUNT_DIGITS:
        parsed.error("face-list", f"{path}:{number}: no number of faces follows {name}", fix)
        return []
    (number, count), *lines = lines
    rows = []
    for place, text in lines:
        try:
            row = tuple(numbers(text))
        except ValueError:  # one of them is no finite number
            row = ()
        if len(row) != columns:
            message = f"{path}:{place}: {shown(text)} is not a row of {columns} numbers"
            parsed.error("face-list", message, "correct or remove the line")
            return []
        rows.append(row)
    if int(count) == 0 and rows and not any(rows[0]):
        rows = rows[1:]  # WIDER FACE writes one row of zeros where there is no face
    if len(rows) != int(count):
        message = f"{path}:{number}: {name} should have {count} faces, but has {len(rows)} rows"
        parsed.error("face-list", message, fix)
        return []
    return rows
