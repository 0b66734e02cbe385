"""COCO JSON annotations."""

from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, TypeGuard

from tightbox.data.records import DetectionData, Finding, Parsed, RawBox, RawImage, Severity
from tightbox.reading import LARGEST_INTEGER, LARGEST_NUMBER, is_file, read_json, shown

LARGEST_SIDE = 1_000_000  # pixels; what claims to be wider is asked for its header
_DOCTOR = "tightbox doctor lists every such case"


def read_coco(json_path: Path, image_dir: Path, *, root: Path | None = None, split: str = "") -> DetectionData:
    """The data set of one COCO JSON file; classes in order of their category ids, whatever those are.

    Args:
        json_path: the annotations.
        image_dir: the folder that `file_name` starts from.
        root: the data set's folder, to name in messages; the JSON file's own by default.
        split: the split's name; the JSON file's stem by default.

    Raises:
        UserError: if the file is cut off, lacks a part, or an annotation makes no sense.
    """
    return parse_coco(json_path, [image_dir], root=root or json_path.parent, split=split or json_path.stem).data()


def parse_coco(json_path: Path, image_dirs: Sequence[Path], *, root: Path, split: str) -> Parsed:
    """All that can be understood of a COCO JSON file; the images' folder is the likeliest of `image_dirs`."""
    layout = json_path.relative_to(root) if json_path.is_relative_to(root) else json_path
    parsed = Parsed(f"COCO ({layout})", root, split)
    content: Any = parsed.attempt("json", partial(read_json, each_object=_without_mask), json_path)
    if parsed.findings:
        return parsed
    keys = ("images", "annotations", "categories")
    missing = [key for key in keys if not isinstance(content, dict) or not isinstance(content.get(key), list)]
    if missing:
        message = f"{json_path} is not a COCO data set: it has no list named {', '.join(missing)}"
        parsed.error("json", message, "export it again as COCO instances")
        return parsed
    label_of = _categories(content["categories"], json_path, parsed)
    position_of = _images(content["images"], json_path, image_dirs, parsed)
    seen: set[int | str] = set()
    for number, annotation in enumerate(content["annotations"], 1):
        if not isinstance(annotation, dict):
            parsed.error("annotation", f"entry {number} of the annotations in {json_path} is no object", "remove it")
            continue
        own = annotation.get("id")
        if not _is_id(own):
            own = shown(own) if "id" in annotation else f"number {number}"
        if own in seen:
            message = f"{json_path} has annotation id {own} more than once, and pycocotools would keep only the last"
            parsed.findings.append(Finding(Severity.NOTE, "duplicate-annotation-id", "", message, "number them anew"))
        seen.add(own)
        image_id, category = annotation.get("image_id"), annotation.get("category_id")
        position = position_of.get(image_id) if _is_id(image_id) else None
        label = label_of.get(category) if _is_id(category) else None
        box, crowd = _xyxy(annotation.get("bbox")), crowd_flag(annotation)
        if position is None or label is None or box is None or crowd is None:
            path = "" if position is None else parsed.images[position].path
            where = f"annotation {own} of image {shown(image_id)} in {json_path}"
            parsed.error(*_fault(annotation, where, position, label, box), path)
        else:
            parsed.boxes.append(RawBox(position, label, box, crowd, _area(annotation.get("area"))))
    return parsed


def _fault(
    annotation: dict[str, Any], where: str, position: int | None, label: int | None, box: object
) -> tuple[str, str, str]:
    """The check, the message and the fix for what is wrong with an annotation; without any of them, its iscrowd is."""
    if position is None:
        fix = f"remove the annotation or add its image; {_DOCTOR}"
        return "unknown-image", f"{where} names an image id that is not in images", fix
    if label is None:
        message = f"{where} names category id {shown(annotation.get('category_id'))}, which is not in categories"
        return "unknown-category", message, f"add the category or correct the annotation; {_DOCTOR}"
    if box is None:
        message = f"{where} has the bbox {shown(annotation.get('bbox'))}, which is not 4 finite numbers"
        return "bbox", message, f"give it [x, y, width, height] in pixels; {_DOCTOR}"
    message = f"{where} has the iscrowd {shown(annotation['iscrowd'])}, which is neither 0 nor 1"
    return "iscrowd", message, f"write it as one of these numbers; {_DOCTOR}"


def crowd_flag(annotation: Mapping[str, Any]) -> bool | None:
    """Whether `iscrowd` marks a crowd; null and none do not. None if it is neither 0 nor 1, false nor true."""
    value = annotation.get("iscrowd")
    return bool(value) if value is None or value in (0, 1) else None


def _without_mask(entry: dict[str, Any]) -> dict[str, Any]:
    """An object without its polygon, which fills most of the file and would fill most of the memory."""
    entry.pop("segmentation", None)
    return entry


def _categories(rows: list[Any], json_path: Path, parsed: Parsed) -> dict[int, int]:
    """Fills in the classes by ascending id; the label of each category id."""
    objects = [row for row in rows if isinstance(row, dict)]
    whole = [row for row in objects if _is_id(row.get("id")) and isinstance(row.get("name"), str)]
    if len(whole) < len(rows):
        message = f"{len(rows) - len(whole)} categories of {json_path} lack a whole-number id or a name"
        parsed.error("category", message, "give every category both")
    if not rows:
        parsed.error("category", f"{json_path} has no categories", "export it again with at least one class")
    whole.sort(key=lambda row: row["id"])
    parsed.set_classes((row["id"] for row in whole), (row["name"] for row in whole), json_path)
    return {number: label for label, number in enumerate(parsed.category_ids)}


def _images(rows: list[Any], json_path: Path, image_dirs: Sequence[Path], parsed: Parsed) -> dict[int, int]:
    """Fills in the images; the position of each image id."""
    position_of: dict[int, int] = {}
    names = [row["file_name"] for row in rows[:20] if isinstance(row, dict) and isinstance(row.get("file_name"), str)]
    # Judged by several images, because the first may be the one that is missing; ties go to the usual folder.
    folder = max(image_dirs, key=lambda folder: sum(is_file(folder / name) for name in names))
    for number, row in enumerate(rows, 1):
        if not isinstance(row, dict) or not _is_id(row.get("id")) or not isinstance(row.get("file_name"), str):
            message = f"entry {number} of the images in {json_path} lacks a whole-number id or a file_name"
            parsed.error("image-entry", message, "give it both or remove it")
            continue
        path = folder / row["file_name"]
        if row["id"] in position_of:
            other = parsed.images[position_of[row["id"]]].path.name
            message = f"{json_path} gives image id {row['id']} to both {other} and {path.name}"
            parsed.error("duplicate-image-id", message, "number the images anew, and their annotations with them", path)
        width, height = row.get("width"), row.get("height")
        if not (_is_id(width) and _is_id(height) and 0 < min(width, height) <= max(width, height) <= LARGEST_SIDE):
            width, height = parsed.size_of(path)
        position_of.setdefault(row["id"], len(parsed.images))
        parsed.images.append(RawImage(path, row["id"], width, height))
    return position_of


def _is_id(value: object) -> TypeGuard[int]:
    return isinstance(value, int) and not isinstance(value, bool) and abs(value) <= LARGEST_INTEGER


def _is_number(value: object) -> TypeGuard[float]:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and abs(value) < LARGEST_NUMBER


def _xyxy(bbox: object) -> tuple[float, float, float, float] | None:
    if not isinstance(bbox, list) or len(bbox) != 4 or not all(map(_is_number, bbox)):
        return None
    x, y, width, height = bbox
    return (x, y, x + width, y + height)


def _area(value: object) -> float:
    """The annotated area; nan, which stands for the box's own, if there is none worth the name."""
    return value if _is_number(value) and value > 1e-6 else float("nan")
