"""WIDER FACE as downloaded.

WIDER FACE: A Face Detection Benchmark, https://arxiv.org/abs/1511.06523.
"""

from collections.abc import Callable
from functools import partial
from pathlib import Path

from tightbox.data.face_lists import read_entries
from tightbox.data.records import DetectionData, Finding, Parsed, RawBox, RawImage, Severity, read_split

_COLUMNS = 10  # x, y, width, height, blur, expression, illumination, invalid, occlusion, pose
_INVALID = 7


def read_wider_face(root: Path, split: str) -> DetectionData:
    """One split of WIDER FACE, "train" or "val", with the one class "face".

    * `root` is the folder with wider_face_split, WIDER_train and WIDER_val in it.
    * Faces marked invalid become crowd: they count neither as face nor as background.
    * Faces without width or height, of which there are some, are left out.
    * Image ids count from 1 in the order of the annotation file; sizes are those of the images' headers.

    Raises:
        UserError: if there is no such split, or its annotation file makes no sense.
    """
    return read_split(find_wider_face, "WIDER FACE", root, split, str(_annotations(Path(), split)))


def find_wider_face(root: Path, split: str) -> Callable[[], Parsed] | None:
    """The parser of the split, if `root` has WIDER FACE's layout and the split is there."""
    return partial(_parse, root, split) if _annotations(root, split).is_file() else None


def _annotations(root: Path, split: str) -> Path:
    return root / "wider_face_split" / f"wider_face_{split}_bbx_gt.txt"


def _parse(root: Path, split: str) -> Parsed:
    annotations, folder = _annotations(root, split), root / f"WIDER_{split}" / "images"
    parsed = Parsed(f"WIDER FACE ({annotations.name})", root, split)
    parsed.set_classes([1], ["face"], annotations)
    if not folder.is_dir():
        message = f"{parsed.layout} needs the folder of images {folder}, which does not exist"
        parsed.error("no-images", message, f"unpack WIDER_{split}.zip there")
        return parsed
    for entry in read_entries(annotations, _COLUMNS, parsed):
        image = folder / entry.name
        for x, y, width, height, *attributes in entry.rows:
            invalid = attributes[_INVALID - 4] != 0
            parsed.boxes.append(RawBox(len(parsed.images), 0, (x, y, x + width, y + height), invalid))
        parsed.images.append(RawImage(image, len(parsed.images) + 1, *parsed.size_of(image)))
    if invalid_faces := int(parsed.boxes.column("crowd").sum()):
        message = f"{invalid_faces} of {len(parsed.boxes)} faces of the {split} split are marked invalid"
        fix = "nothing: they count neither as face nor as background"
        parsed.findings.append(Finding(Severity.NOTE, "invalid-faces", "", message, fix))
    return parsed
