"""What every reader returns, `DetectionData`, and the raw rows and findings that the readers share with the doctor."""

import os
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from enum import StrEnum
from itertools import count, pairwise, starmap
from pathlib import Path
from struct import Struct
from typing import Any, NamedTuple, Self, TypeVar

import numpy as np
from numpy.typing import NDArray

from tightbox.errors import UserError
from tightbox.images import image_size

T = TypeVar("T")


@dataclass(frozen=True, eq=False)
class ImageRecord:
    """One image and its objects.

    Attributes:
        path: the image's file.
        image_id: the data set's own id of it, for result files.
        width: in pixels, as the annotation says, or the image's header where the annotation does not.
        height: likewise.
        boxes: (G, 4) float32 xyxy, clipped to the image; boxes that clipping leaves empty are not here.
        labels: (G,) int64 class of each.
        crowd: (G,) bool: regions that count neither as object nor as background.
        areas: (G,) float32 pixels that COCO's size classes go by: the mask's where the data set gives it.
    """

    path: Path
    image_id: int
    width: int
    height: int
    boxes: NDArray[np.float32]
    labels: NDArray[np.int64]
    crowd: NDArray[np.bool_]
    areas: NDArray[np.float32]

    @property
    def size(self) -> tuple[int, int]:
        """(height, width), as tensors of images have them."""
        return self.height, self.width


@dataclass(frozen=True, eq=False)
class DetectionData:
    """One split of a data set.

    Attributes:
        layout: what was found on the disk, in words.
        root: the folder of the data set.
        split: "train", "val", "test" or the data set's own name.
        class_names: (C,) the name of each label.
        category_ids: (C,) the data set's own id of each label, for result files.
        records: one per image, images without objects too.
        left_out: ids of the data set's other classes, by name, which are not given to anything else.
    """

    layout: str
    root: Path
    split: str
    class_names: tuple[str, ...]
    category_ids: tuple[int, ...]
    records: tuple[ImageRecord, ...]
    left_out: Mapping[str, int] = field(default_factory=dict)

    def with_classes(self, names: Sequence[str]) -> Self:
        """The same images with the labels of `names`, matched by name (a checkpoint's order, or the train split's).

        Names that the data set lacks get ids that it does not use.

        Raises:
            UserError: if there are objects here of a class that is not in `names`.
        """
        label_of = {name: label for label, name in enumerate(names)}
        used = np.unique(np.concatenate([np.empty(0, np.int64), *(record.labels for record in self.records)]))
        unknown = [name for name in (self.class_names[label] for label in used) if name not in label_of]
        if unknown:
            advice = "leave them out with --classes, rename them there, or train with some"
            what = f"objects of classes that were not trained: {', '.join(unknown)}"
            raise UserError(f"the {self.split} split of {self.root} has {what}; {advice}")
        own = {**self.left_out, **dict(zip(self.class_names, self.category_ids, strict=True))}
        fresh = count(max(own.values(), default=0) + 1)
        ids = tuple(own[name] if name in own else next(fresh) for name in names)
        table = np.array([label_of.get(name, -1) for name in self.class_names], dtype=np.int64)
        records = tuple(replace(record, labels=table[record.labels]) for record in self.records)
        left_out = {name: own[name] for name in own if name not in label_of}
        return replace(self, class_names=tuple(names), category_ids=ids, records=records, left_out=left_out)

    def only_classes(self, names: Sequence[str]) -> Self:
        """The same images with the objects of these classes only, labelled in this order.

        Raises:
            UserError: if a name is none of the classes here.
        """
        unknown = [name for name in names if name not in self.class_names]
        if unknown:
            advice = f"choose from {', '.join(self.class_names)}"
            raise UserError(f"the {self.split} split of {self.root} has no class {', '.join(unknown)}; {advice}")
        wanted = [self.class_names.index(name) for name in names]
        records = []
        for record in self.records:
            keep = np.isin(record.labels, wanted)
            columns = {name: getattr(record, name)[keep] for name in ("boxes", "labels", "crowd", "areas")}
            records.append(replace(record, **columns))
        return replace(self, records=tuple(records)).with_classes(names)

    def to_coco(self) -> dict[str, Any]:
        """The content of a COCO JSON file with these images, objects and classes; annotation ids count from 1."""
        images: list[dict[str, Any]] = []
        annotations: list[dict[str, Any]] = []
        for record in self.records:
            size = {"width": record.width, "height": record.height}
            images.append({"id": record.image_id, "file_name": record.path.name, **size})
            boxes = record.boxes.astype(np.float64)
            boxes[:, 2:] -= boxes[:, :2]
            # Three decimals undo float32: COCO's own 38.65 would otherwise come back as 38.65002.
            rows = zip(boxes.round(3).tolist(), record.labels, record.areas.tolist(), record.crowd, strict=True)
            for bbox, label, area, crowd in rows:
                ids = {"id": len(annotations) + 1, "image_id": record.image_id, "category_id": self.category_ids[label]}
                annotations.append({**ids, "bbox": bbox, "area": area, "iscrowd": int(crowd)})
        classes = zip(self.category_ids, self.class_names, strict=True)
        categories = [{"id": number, "name": name} for number, name in classes]
        return {"images": images, "annotations": annotations, "categories": categories}


class Severity(StrEnum):
    """How bad a finding is, by what it leads to."""

    ERROR = "error"
    """Training will crash, or silently learn something false."""
    WARNING = "warning"
    """Training works, but results suffer or mislead."""
    NOTE = "note"
    """Worth knowing."""


@dataclass(frozen=True)
class Finding:
    """One thing wrong with, or worth knowing about, a data set.

    Attributes:
        severity: by its consequence.
        check: a short id, such as "box-outside".
        image: the image's path, or "" if it concerns no single image.
        message: one sentence with the numbers.
        fix: what to do; "" if there is nothing to do.
    """

    severity: Severity
    check: str
    image: str
    message: str
    fix: str = ""

    @classmethod
    def from_error(cls, check: str, error: UserError, image: str = "") -> Self:
        """The error as a finding; its sentence reads "what is wrong; what to do"."""
        message, _, fix = str(error).partition("; ")
        return cls(Severity.ERROR, check, image, message, fix)

    def __str__(self) -> str:
        return f"{self.message}; {self.fix}" if self.fix else self.message


class RawImage(NamedTuple):
    """An image as its annotation describes it."""

    path: Path
    image_id: int
    width: int
    height: int


class RawBox(NamedTuple):
    """A box as annotated: xyxy in pixels, unclipped; `image` is its image's position, `area` nan if not given."""

    image: int
    label: int
    box: tuple[float, float, float, float]
    crowd: bool = False
    area: float = float("nan")


class RawBoxes:
    """Any number of `RawBox`es in 57 bytes each, as millions of Python objects would not fit into memory.

    They are appended and counted as those of a list are.
    """

    _ROW = Struct("<qq4d?d")
    _COLUMNS = np.dtype([("image", "<i8"), ("label", "<i8"), ("box", "<f8", 4), ("crowd", "?"), ("area", "<f8")])

    def __init__(self) -> None:
        self._rows = bytearray()

    def append(self, row: RawBox) -> None:
        """Add one at the end."""
        self._rows += self._ROW.pack(row.image, row.label, *row.box, row.crowd, row.area)

    def __len__(self) -> int:
        return len(self._rows) // self._ROW.size

    def column(self, name: str) -> NDArray[Any]:
        """(N,) or (N, 4) one field of all boxes, as annotated."""
        return np.frombuffer(self._rows, self._COLUMNS)[name].copy()


class Columns(NamedTuple):
    """The boxes of a split as arrays, in order of their images.

    Attributes:
        image: (N,) position of each box's image.
        boxes: (N, 4) float32 as annotated.
        clipped: (N, 4) float32 clipped to the image.
        labels: (N,) int64.
        crowd: (N,) bool.
        areas: (N,) float32.
    """

    image: NDArray[np.int64]
    boxes: NDArray[np.float32]
    clipped: NDArray[np.float32]
    labels: NDArray[np.int64]
    crowd: NDArray[np.bool_]
    areas: NDArray[np.float32]

    @property
    def non_degenerate(self) -> NDArray[np.bool_]:
        """(N,) whether anything is left of the box inside its image."""
        left = self.clipped[:, 2:] > self.clipped[:, :2]
        return left[:, 0] & left[:, 1]


@dataclass
class Parsed:
    """Everything a parser saw in one split, right or wrong: a reader insists on no errors, the doctor lists them."""

    layout: str
    root: Path
    split: str
    class_names: list[str] = field(default_factory=list)
    category_ids: list[int] = field(default_factory=list)
    images: list[RawImage] = field(default_factory=list)
    boxes: RawBoxes = field(default_factory=RawBoxes)
    findings: list[Finding] = field(default_factory=list)

    def error(self, check: str, message: str, fix: str, image: Path | str = "") -> None:
        """Notes something that a reader must refuse."""
        self.findings.append(Finding(Severity.ERROR, check, str(image), message, fix))

    def attempt(self, check: str, read: Callable[[Path], T], path: Path, image: Path | str = "") -> T | None:
        """What `read` makes of the path; None, and an error noted, if it refuses."""
        try:
            return read(path)
        except UserError as error:
            self.findings.append(Finding.from_error(check, error, str(image)))
            return None

    def size_of(self, path: Path) -> tuple[int, int]:
        """(width, height) from the image's header, or (0, 0) and an error noted."""
        return self.attempt("unreadable-image", image_size, path, path) or (0, 0)

    def set_classes(self, ids: Iterable[int], names: Iterable[str], source: Path) -> None:
        """Takes the classes in the order given, noting names that are empty, and names and ids that occur twice."""
        self.category_ids, self.class_names = list(ids), list(names)
        doubles = [repr(name) for name, n in Counter(self.class_names).items() if n > 1]
        doubles += [f"id {number}" for number, n in Counter(self.category_ids).items() if n > 1]
        if doubles:
            message = f"{source} has more than one class with {', '.join(doubles)}"
            self.error("duplicate-class", message, "give every class a name and an id of its own")
        pairs = zip(self.category_ids, self.class_names, strict=True)
        if nameless := [str(number) for number, name in pairs if not name.strip()]:
            message = f"{source} gives an empty name to category id {', '.join(nameless)}"
            self.error("category", message, "give every class a name")

    def all_findings(self) -> list[Finding]:
        """The parser's findings, or the one that there is nothing here."""
        if self.images or self.findings:
            return self.findings
        message = f"the {self.split} split of {self.root}, {self.layout}, has no images"
        return [Finding(Severity.ERROR, "empty-split", "", message, "add images to it, or point to another folder")]

    def columns(self) -> Columns:
        """The boxes as arrays, in order of their images."""
        order = np.argsort(self.boxes.column("image"), kind="stable")
        image, labels, corners, crowd, areas = (self.boxes.column(name)[order] for name in RawBox._fields)
        boxes, areas = corners.astype(np.float32), areas.astype(np.float32)
        sizes = np.array([(i.width, i.height) * 2 for i in self.images], dtype=np.float32).reshape(-1, 4)
        sizes[sizes == 0] = np.inf  # an unreadable image's boxes are clipped by nothing
        clipped = np.clip(boxes, 0, sizes[image])
        own = (clipped[:, 2:] - clipped[:, :2]).prod(axis=1)
        return Columns(image, boxes, clipped, labels, crowd, np.where(np.isnan(areas), own, areas))

    def data(self) -> DetectionData:
        """The split for training and evaluation.

        Only the first image is looked for on the disk: asking for all of COCO's takes too long.

        Raises:
            UserError: at the first error that the parser found, if there is no image, or the first is missing.
        """
        for finding in self.all_findings():
            if finding.severity is Severity.ERROR:
                raise UserError(str(finding))
        first = self.images[0].path
        if not os.path.isfile(first):  # which Path's own raises at, if the name is too long
            missing = f"image {first}" if os.path.isdir(first.parent) else f"folder of images {first.parent}"
            raise UserError(f"{self.layout} needs the {missing}, which does not exist; put the images there")
        table = self.columns()
        columns: list[NDArray[Any]] = [column[table.non_degenerate] for column in table]
        kept = Columns(*columns)
        bounds = np.searchsorted(kept.image, np.arange(len(self.images) + 1))
        records = [
            ImageRecord(*image, kept.clipped[own], kept.labels[own], kept.crowd[own], kept.areas[own])
            for image, own in zip(self.images, starmap(slice, pairwise(bounds)), strict=True)
        ]
        names, ids = tuple(self.class_names), tuple(self.category_ids)
        return DetectionData(self.layout, self.root, self.split, names, ids, tuple(records))


Find = Callable[[Path, str], Callable[[], Parsed] | None]


def split_names(split: str) -> tuple[str, ...]:
    """The names that a split goes by on the disk."""
    return ("val", "valid", "validation") if split == "val" else (split,)
