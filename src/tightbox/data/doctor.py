"""What is wrong with a data set, all of it at once: the readers stop at the first error, this does not."""

from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from tightbox.data.input_size import NEEDED, input_size
from tightbox.data.layout import parse_data, splits
from tightbox.data.records import Finding, Parsed, RawImage, Severity
from tightbox.errors import UserError
from tightbox.files import digest_of
from tightbox.images import IMAGE_SUFFIXES, UnreadableImage, open_image, read_header
from tightbox.progress import Progress, silent
from tightbox.reading import is_file

__all__ = ["Finding", "Report", "Severity", "SplitSummary", "examine", "print_report"]

_FEW = 10  # examples of a class in training below which it is worth a note
_ROWS = 20  # findings of one check that are printed
_ROUNDING = 0.5  # pixels that a box may reach outside its image without a word


@dataclass(frozen=True)
class SplitSummary:
    """The size of one split: images, boxes (crowd ones among them), and boxes of each class without crowd ones."""

    split: str
    layout: str
    images: int
    boxes: int
    crowd: int
    class_counts: dict[str, int]


@dataclass(frozen=True)
class Report:
    """The findings, worst first, and the size of every split."""

    findings: list[Finding]
    splits: list[SplitSummary]


def examine(root: Path | str, progress: Progress = silent) -> Report:
    """Everything wrong with, or worth knowing about, the data set in a folder, and the counts of every split.

    Args:
        root: the folder.
        progress: called with the number of images that are done, and that of all.
    """
    try:
        parsed = [parse_data(root, split) for split in splits(root)]
    except UserError as error:
        return Report([Finding.from_error("layout", error)], [])
    findings = [finding for split in parsed for finding in (*split.all_findings(), *_boxes(split), *_empty(split))]
    findings += [*_files(parsed, progress), *_unused(parsed)]
    for train in (split for split in parsed if split.split == "train"):
        findings += [*_classes(train, parsed), *_small_objects(train)]
    order = list(Severity)
    # dict.fromkeys: splits that share a broken file would report it once each.
    unique = sorted(dict.fromkeys(findings), key=lambda finding: (order.index(finding.severity), finding.check))
    return Report(unique, [_summary(split) for split in parsed])


def print_report(report: Report) -> None:
    """Prints the counts and the findings, the first 20 of each check."""
    from rich.console import Console
    from rich.table import Table

    console = Console()
    for summary in report.splits:
        line = f"{summary.split}: {summary.images} images, {summary.boxes} boxes ({summary.crowd} crowd)"
        console.print(f"{line}, {summary.layout}", markup=False, highlight=False, soft_wrap=True)
    if report.splits:
        table = Table("class", *(summary.split for summary in report.splits))
        for name in dict.fromkeys(name for summary in report.splits for name in summary.class_counts):
            table.add_row(name, *(str(summary.class_counts.get(name, 0)) for summary in report.splits))
        console.print(table)
    colours = {Severity.ERROR: "bold red", Severity.WARNING: "yellow", Severity.NOTE: "cyan"}
    for (severity, check), group in groupby(report.findings, key=lambda finding: (finding.severity, finding.check)):
        rows = list(group)
        console.print(f"{severity.upper()} {check} ({len(rows)})", style=colours[severity], markup=False)
        for finding in rows[:_ROWS]:
            console.print(f"  {finding}", markup=False, highlight=False, soft_wrap=True)
        if len(rows) > _ROWS:
            console.print(f"  and {len(rows) - _ROWS} more")
    counts = Counter(finding.severity for finding in report.findings)
    console.print(", ".join(f"{counts[severity]} {severity}s" for severity in Severity))


def _summary(parsed: Parsed) -> SplitSummary:
    crowd = parsed.boxes.column("crowd")
    counts = np.bincount(parsed.boxes.column("label")[~crowd], minlength=len(parsed.class_names)).tolist()
    per_class = {name: counts[label] for label, name in enumerate(parsed.class_names)}
    return SplitSummary(parsed.split, parsed.layout, len(parsed.images), len(parsed.boxes), int(crowd.sum()), per_class)


def _boxes(parsed: Parsed) -> Iterator[Finding]:
    """Boxes that are outside, empty, tiny or there twice. All are warnings: a reader clips or drops them."""
    table = parsed.columns()
    sized = np.array([image.width > 0 for image in parsed.images], dtype=np.bool_)[table.image]
    sides = table.boxes[:, 2:] - table.boxes[:, :2]
    empty = sized & (sides <= 0).any(axis=1)
    reach = np.abs(table.boxes - table.clipped).max(axis=1, initial=0)
    outside = sized & ~empty & (reach > _ROUNDING)
    tiny = sized & ~empty & table.non_degenerate & (sides < 1).any(axis=1)
    checks = (
        ("box-degenerate", empty, "is {w:g} wide and {h:g} high, so it is left out", "draw it again or remove it"),
        ("box-outside", outside, "reaches {reach:g} px outside its image of {size}", "check that its units are pixels"),
        ("box-tiny", tiny, "is {w:g} wide and {h:g} high, under 1 px", "remove it unless it is meant"),
    )
    for check, rows, what, fix in checks:
        for row in np.flatnonzero(rows):
            image, (width, height) = parsed.images[table.image[row]], sides[row]
            box = ", ".join(f"{side:g}" for side in table.boxes[row])
            text = what.format(w=width, h=height, reach=reach[row], size=f"{image.width}x{image.height}")
            message = f"the {parsed.class_names[table.labels[row]]} at ({box}) in {image.path} {text}"
            yield Finding(Severity.WARNING, check, str(image.path), message, fix)
    corners, labels, images = parsed.boxes.column("box"), parsed.boxes.column("label"), parsed.boxes.column("image")
    for first, times in _repeated(np.column_stack([images, labels, corners])):
        if (image := parsed.images[images[first]]).width:
            box = ", ".join(f"{side:g}" for side in corners[first])
            message = f"the {parsed.class_names[labels[first]]} at ({box}) in {image.path} is annotated {times} times"
            yield Finding(Severity.WARNING, "box-duplicate", str(image.path), message, "keep one of them")


def _repeated(rows: NDArray[np.float64]) -> Iterator[tuple[int, int]]:
    """Where each of the (N, K) rows that are there more than once is first, and how often it is there."""
    _, firsts, times = np.unique(rows, axis=0, return_index=True, return_counts=True)
    for at in np.argsort(firsts):
        if times[at] > 1:
            yield int(firsts[at]), int(times[at])


def _empty(parsed: Parsed) -> Iterator[Finding]:
    empty = len(parsed.images) - len(np.unique(parsed.boxes.column("image")))
    if empty:
        counted = f"{empty} of {len(parsed.images)} images ({empty / len(parsed.images):.1%})"
        message = f"{counted} of the {parsed.split} split have no boxes"
        fix = "nothing, if they are meant as background; otherwise annotate them"
        yield Finding(Severity.NOTE, "empty-images", "", message, fix)


def _files(parsed: Sequence[Parsed], progress: Progress) -> Iterator[Finding]:
    """Looks at every image file once, then at which of them are the same.

    One file under two entries is an error: each entry teaches that the other's objects are background. Copies within a
    split, or in train and another split, are warnings: training works, but the figures flatter.
    """
    entries: dict[Path, dict[str, list[RawImage]]] = defaultdict(lambda: defaultdict(list))
    for split in parsed:
        for image in split.images:
            entries[image.path][split.split].append(image)
    copies: dict[str, list[Path]] = defaultdict(list)
    for done, (path, per_split) in enumerate(entries.items(), 1):
        for name, images in per_split.items():
            if len(images) > 1:
                message = f"{path} has {len(images)} entries in the {name} split"
                yield Finding(Severity.ERROR, "duplicate-file", str(path), message, "merge them into one")
        progress(done, len(entries))
        sizes = {(image.width, image.height) for images in per_split.values() for image in images}
        if sizes == {(0, 0)}:
            continue  # the parser wanted its size and has reported why there is none
        if is_file(path):
            copies[digest_of(path)].append(path)
            yield from _image(path, sizes)
        else:
            message = f"the image {path} does not exist"
            yield Finding(Severity.ERROR, "missing-image", str(path), message, "put it there or remove its entry")
    for paths in copies.values():
        names = {path: ", ".join(entries[path]) for path in paths}
        places = " and ".join(f"{path} ({split})" for path, split in names.items())
        found_in = {split for path in paths for split in entries[path]}
        if "train" in found_in and len(found_in) > 1:
            fix = "take it out of one of the splits: scores on images seen in training mislead"
            yield Finding(Severity.WARNING, "split-overlap", str(paths[0]), f"the same image is {places}", fix)
        elif len(paths) > len(found_in):
            yield Finding(Severity.WARNING, "same-image", str(paths[0]), f"the same image is {places}", "keep one")


def _image(path: Path, sizes: set[tuple[int, int]]) -> Iterator[Finding]:
    """Whether the file opens, in the size that each entry says."""
    for size in sorted(sizes):
        try:
            open_image(path, size if all(size) else None)
        except UnreadableImage as error:
            yield Finding.from_error("unreadable-image", error, str(path))
            return
        except UserError as error:
            yield Finding.from_error("size-mismatch", error, str(path))
    header = read_header(path)
    if header.orientation != 1:
        message = f"{path} is stored turned (EXIF orientation {header.orientation})"
        fix = "nothing, if the boxes were drawn on the upright image; other tools may show it turned"
        yield Finding(Severity.NOTE, "exif-orientation", str(path), message, fix)
    if header.mode not in ("RGB", "L"):
        message = f"{path} has pixels of mode {header.mode}, which are converted to RGB"
        yield Finding(Severity.NOTE, "image-mode", str(path), message, "nothing, if all images are alike")


def _classes(train: Parsed, parsed: Sequence[Parsed]) -> Iterator[Finding]:
    """Classes against those of the train split, if these could be read."""
    if not train.class_names:
        return
    for name, count in _summary(train).class_counts.items():
        if count == 0:
            message = f"class {name} has no example in train"
            fix = "add examples, or remove the class: it can only be predicted wrongly"
            yield Finding(Severity.WARNING, "class-missing", "", message, fix)
        elif count < _FEW:
            message = f"class {name} has only {count} example{'s' * (count > 1)} in train"
            yield Finding(Severity.NOTE, "class-rare", "", message, "add more if it matters")
    for other in parsed:
        labels, counts = np.unique(other.boxes.column("label"), return_counts=True)
        for label, count in zip(labels.tolist(), counts.tolist(), strict=True):
            if (name := other.class_names[label]) not in train.class_names:
                message = f"class {name} has {count} boxes in {other.split} but train does not know it"
                fix = "rename it as train does, or add it there"
                yield Finding(Severity.ERROR, "class-unknown", "", message, fix)


def _small_objects(train: Parsed) -> Iterator[Finding]:
    """The size of images that `tightbox train` takes, if it is not the least because objects are small."""
    table = train.columns()
    sizes = np.array([(image.width, image.height) for image in train.images], dtype=np.float64).reshape(-1, 2)
    counted = table.non_degenerate & ~table.crowd
    fitting = input_size(table.clipped[counted], sizes[table.image[counted]])
    if fitting.at_first < NEEDED:
        fix = f"tightbox train resizes images to {fitting.long_side} px, unless --long-side is given"
        yield Finding(Severity.NOTE, "small-objects", "", f"in train, {fitting}", fix)


def _unused(parsed: Sequence[Parsed]) -> Iterator[Finding]:
    """Images that lie among those of the data set but belong to no split."""
    known = {image.path for split in parsed for image in split.images}
    for folder in sorted({path.parent for path in known}):
        there = folder.iterdir() if folder.is_dir() else ()
        images = (p for p in there if p.suffix.lower() in IMAGE_SUFFIXES and not p.name.startswith("."))
        unused = sorted(path for path in images if path not in known)
        if unused:
            message = f"{len(unused)} images in {folder} are in no split, the first of them {unused[0].name}"
            yield Finding(Severity.NOTE, "unused-images", "", message, "nothing, if they are left out on purpose")
