"""Pascal VOC folders, as downloaded or in that shape."""

from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from xml.etree.ElementTree import Element

from tightbox.data.records import Parsed, RawBox, RawImage, split_names
from tightbox.images import IMAGE_SUFFIXES
from tightbox.reading import is_file, numbers, read_lines, read_xml, shown

LARGEST_DIGITS = 6  # of a width; what claims to be wider is asked for its header


def find_voc(root: Path, split: str) -> Callable[[], Parsed] | None:
    """The parser of the split, if `root` has Pascal VOC's layout and the split is there.

    * `root` is the folder with VOCdevkit in it, VOCdevkit itself, or one folder with Annotations, ImageSets/Main and
      JPEGImages.
    * Where the annotated test images of VOC2007 lie there, the splits are the papers': "train" is trainval of every
      year found (07+12), and "val" is VOC2007's test. Otherwise they are train.txt and val.txt of every year. Any
      other name is that text file of ImageSets/Main.
    * VOC counts pixels from 1 and includes the last one, so 1 is taken from xmin and ymin only: a box from pixel 1 to
      pixel 4 becomes (0, 4), which is 4 wide.
    * Objects marked difficult become crowd: VOC's own protocol counts them neither as hit nor as miss.
    * Classes are those of all annotation files of the years found, alphabetically, which is VOC's own order.
    """
    parents = (root, root / "VOCdevkit")
    years = [root] if _is_year(root) else [y for p in parents for y in sorted(p.glob("VOC*")) if _is_year(y)]
    test2007 = [year for year in years if year.name == "VOC2007" and _has_test(year)]
    if test2007 and split == "train":
        lists = _lists(years, ["trainval"]) or _lists(years, ["train"])
    elif test2007 and split == "val":
        lists = _lists(test2007, ["test"])
    elif split == "test":
        lists = _lists([year for year in years if _has_test(year)], ["test"])
    else:
        lists = _lists(years, split_names(split))
    return partial(_parse, root, split, years, lists) if lists else None


def _is_year(folder: Path) -> bool:
    return (folder / "Annotations").is_dir() and (folder / "ImageSets" / "Main").is_dir()


def _lists(years: Sequence[Path], names: Sequence[str]) -> list[Path]:
    return [path for year in years for name in names if (path := year / "ImageSets" / "Main" / f"{name}.txt").is_file()]


def _has_test(year: Path) -> bool:
    """Whether the test images and their annotations lie there: VOC2012's list comes without either."""
    first = [name for path in _lists([year], ["test"]) for name in read_lines(path)[:1]]
    return any(is_file(year / "Annotations" / f"{name}.xml") and name in _images(year) for name in first)


def _images(year: Path) -> dict[str, Path]:
    """The images of a year by their names without suffix."""
    return {path.stem: path for path in (year / "JPEGImages").glob("*") if path.suffix.lower() in IMAGE_SUFFIXES}


def _parse(root: Path, split: str, years: Sequence[Path], lists: Sequence[Path]) -> Parsed:
    parsed = Parsed(f"Pascal VOC ({', '.join(f'{path.parents[2].name} {path.stem}' for path in lists)})", root, split)
    files = [path for year in years for path in sorted((year / "Annotations").glob("*.xml"))]
    trees = {path: parsed.attempt("xml", read_xml, path) for path in files}
    objects = [o for tree in trees.values() if tree is not None for o in tree.iterfind("object")]
    names = sorted({_text(o, "name") for o in objects} - {""})
    parsed.set_classes(range(len(names)), names, root)
    label_of = {name: label for label, name in enumerate(names)}
    for image_list in lists:
        year = image_list.parents[2]
        image_of = _images(year)
        for name in parsed.attempt("image-list", read_lines, image_list) or ():
            image = image_of.get(name, year / "JPEGImages" / f"{name}.jpg")
            xml = year / "Annotations" / f"{name}.xml"
            if xml not in trees:
                message = f"{image_list} lists {name}, but there is no {xml}"
                parsed.error("missing-annotation", message, "add the file or take the name off the list", image)
                continue
            tree = trees[xml]
            if tree is None:
                continue
            _add_boxes(tree, xml, image, label_of, parsed)
            sides = [_text(tree, f"size/{side}") for side in ("width", "height")]
            known = all(side.isdecimal() and len(side) <= LARGEST_DIGITS and int(side) > 0 for side in sides)
            width, height = map(int, sides) if known else parsed.size_of(image)
            parsed.images.append(RawImage(image, len(parsed.images) + 1, width, height))
    return parsed


def _text(element: Element, path: str) -> str:
    return (element.findtext(path) or "").strip()


def _add_boxes(tree: Element, xml: Path, image: Path, label_of: dict[str, int], parsed: Parsed) -> None:
    for number, entry in enumerate(tree.iterfind("object"), 1):
        name = _text(entry, "name")
        corners = [_text(entry, f"bndbox/{side}") for side in ("xmin", "ymin", "xmax", "ymax")]
        try:
            x1, y1, x2, y2 = numbers(" ".join(corners))
            box = RawBox(len(parsed.images), label_of[name], (x1 - 1, y1 - 1, x2, y2), _text(entry, "difficult") == "1")
        except (ValueError, KeyError):  # not 4 numbers, or no name
            held = ", ".join(corner if len(corner) < 20 else shown(corner) for corner in corners)
            message = f"object {number} ({name or 'without a name'}) in {xml} has the bndbox {held}"
            parsed.error("bndbox", message, "give it a name and 4 numbers: xmin, ymin, xmax, ymax", image)
        else:
            parsed.boxes.append(box)
