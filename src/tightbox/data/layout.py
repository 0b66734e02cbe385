"""Reading a data set by its folder alone: which layout it has is found by looking."""

from collections.abc import Callable
from functools import partial
from pathlib import Path

from tightbox.data.coco import parse_coco
from tightbox.data.faces import find_fddb, find_wider_face
from tightbox.data.records import DetectionData, Find, Parsed, split_names
from tightbox.data.voc import find_voc
from tightbox.data.yolo import find_yolo
from tightbox.errors import UserError

SPLITS = ("train", "val", "test")

_LOOKED_FOR = (
    "COCO (train.json, annotations/instances_train2017.json or train/_annotations.coco.json), "
    "Pascal VOC (VOCdevkit or Annotations with ImageSets/Main), "
    "YOLO (data.yaml, images/train or train/images), "
    "WIDER FACE (wider_face_split), FDDB (FDDB-folds)"
)


def read_data(root: Path | str, split: str) -> DetectionData:
    """One split of the data set in a folder, in whichever known layout it is.

    The layouts are COCO, Roboflow, Pascal VOC, YOLO, WIDER FACE and FDDB.
    "val" also finds a split called "valid" or "validation".

    Raises:
        UserError: if the folder is missing or in no known layout, has no such split, or its content makes no sense.
    """
    return parse_data(root, split).data()


def splits(root: Path | str) -> list[str]:
    """Which of train, val and test the data set in a folder has.

    Raises:
        UserError: if the folder is missing or in no known layout.
    """
    folder, find = _finder(root)
    return [split for split in SPLITS if find(folder, split)]


def parse_data(root: Path | str, split: str) -> Parsed:
    """What `read_data` reads, with the findings of the parser instead of a refusal.

    Raises:
        UserError: if the folder is missing or in no known layout, or has no such split.
    """
    folder, find = _finder(root)
    parse = find(folder, split)
    if parse is None:
        there = ", ".join(splits(root))
        raise UserError(f"{folder} has no split {split!r}; it has {there}: choose one of these or add {split}")
    return parse()


def find_coco(root: Path, split: str) -> Callable[[], Parsed] | None:
    """The parser of the split, if `root` has a COCO or Roboflow layout and the split is there."""
    for name in split_names(split):
        plain = (root / f"{name}.json", root / "annotations" / f"{name}.json")
        # Years in order of their names; the latest, if several lie side by side.
        dated = sorted(root.glob(f"annotations/instances_{name}[0-9]*.json"), reverse=True)
        dated.append(root / "annotations" / f"instances_{name}.json")
        roboflow = root / name / "_annotations.coco.json"
        usual = dict.fromkeys(plain, root / "images")
        usual |= {path: root / path.stem.removeprefix("instances_") for path in dated} | {roboflow: root / name}
        for path, folder in usual.items():
            if path.is_file():
                others = (root / name, root / "images" / name, root / "images" / folder.name, root / "images", root)
                return partial(parse_coco, path, [folder, *others, path.parent], root=root, split=split)
    return None


def data_folder(root: Path | str) -> Path:
    """The folder of a data set.

    Raises:
        UserError: if it is missing or no folder.
    """
    folder = Path(root).expanduser()
    if folder.is_file():
        raise UserError(f"{folder} is a file, not the folder of a data set; give the folder that it is in")
    if not folder.is_dir():
        raise UserError(f"the data folder {folder} does not exist; check the path")
    return folder


def _finder(root: Path | str) -> tuple[Path, Find]:
    """The folder and the first layout that any split of it has: one layout for all splits."""
    folder = data_folder(root)
    for find in (find_coco, find_voc, find_yolo, find_wider_face, find_fddb):
        if any(find(folder, split) for split in SPLITS):
            return folder, find
    raise UserError(f"no data set was recognised in {folder}; looked for {_LOOKED_FOR}")
