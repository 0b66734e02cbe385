"""Small data sets in every layout, written by the tests that read them."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from tightbox.data.records import DetectionData, ImageRecord

BOXES = [[(4, 4, 40, 36), (30, 20, 60, 60)], [(10, 8, 50, 40)], []]


def noise_image(path: Path, width: int = 60, height: int = 40, seed: int = 0, **save: Any) -> Path:
    """An image file of random pixels; its folder is made."""
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(path, **save)
    return path


def plain_image(path: Path, width: int = 40, height: int = 30, color: tuple[int, int, int] = (0, 0, 0)) -> Path:
    """An image file of one colour; its folder is made."""
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (width, height), color).save(path)
    return path


def write_video(path: Path, frames: Sequence[Any], codec: str = "libx264", pix_fmt: str = "yuv420p") -> Path:
    """A video file of such frames (H, W, 3), ten a second; skips the test without PyAV."""
    av = pytest.importorskip("av", reason="needs the extra video")
    with av.open(str(path), "w") as file:
        stream = file.add_stream(codec, rate=10)
        stream.height, stream.width = frames[0].shape[:2]
        stream.pix_fmt = pix_fmt
        for pixels in frames:
            file.mux(stream.encode(av.VideoFrame.from_ndarray(pixels, format="rgb24")))
        file.mux(stream.encode())
    return path


def three_images(root: Path) -> DetectionData:
    """Noise of 64 by 64 pixels with two objects, one and none; a cat is every first object, a dog every second."""
    records = []
    for i, boxes in enumerate(BOXES):
        path = noise_image(root / f"{i}.png", 64, 64, seed=i)
        corners = np.array(boxes, np.float32).reshape(-1, 4)
        area = (corners[:, 2] - corners[:, 0]) * (corners[:, 3] - corners[:, 1])
        labels = np.arange(len(boxes), dtype=np.int64) % 2
        records.append(ImageRecord(path, 10 + i, 64, 64, corners, labels, np.zeros(len(boxes), bool), area))
    return DetectionData("test", root, "val", ("cat", "dog"), (1, 2), tuple(records))


def annotation(number: int, image: int, bbox: Any, category: int = 1, **more: Any) -> dict[str, Any]:
    """A row of COCO's `annotations`."""
    return {"id": number, "image_id": image, "category_id": category, "bbox": bbox, "iscrowd": 0} | more


def categories_of(names: Sequence[str]) -> list[dict[str, Any]]:
    """COCO's `categories` with ids from 1."""
    return [{"id": number, "name": name} for number, name in enumerate(names, 1)]


def cats_and_dogs(root: Path, splits: Mapping[str, range]) -> Path:
    """A COCO folder of images of noise, 60 by 40, with one object each: cats in the even ones, dogs in the odd."""
    for split, numbers in splits.items():
        for i in numbers:
            noise_image(root / "images" / f"{i}.png", seed=i)
        content = {
            "images": [{"id": i, "file_name": f"{i}.png", "width": 60, "height": 40} for i in numbers],
            "annotations": [annotation(i + 1, i, [5, 5, 40, 30], 1 + i % 2, area=1200) for i in numbers],
            "categories": categories_of(["cat", "dog"]),
        }
        (root / f"{split}.json").write_text(json.dumps(content))
    return root


def one_image_coco(
    file: Path,
    image: Path,
    names: Sequence[str] = ("cat",),
    bbox: Sequence[float] = (0, 0, 4, 4),
    size: tuple[int, int] = (40, 30),
) -> None:
    """An annotation file of one black image of (width, height), and one object of the first class."""
    plain_image(image, *size)
    content = {
        "images": [{"id": 1, "file_name": image.name, "width": size[0], "height": size[1]}],
        "annotations": [annotation(1, 1, list(bbox))],
        "categories": categories_of(names),
    }
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(json.dumps(content))


# Pascal VOC

VOC_SIZE = "<size><width>40</width><height>30</height><depth>3</depth></size>"


def voc_object(name: str, box: tuple[object, object, object, object], extra: str = "") -> str:
    """An `object` element."""
    sides = "".join(f"<{k}>{v}</{k}>" for k, v in zip(("xmin", "ymin", "xmax", "ymax"), box, strict=True))
    return f"<object><name>{name}</name>{extra}<bndbox>{sides}</bndbox></object>"


def voc_image(
    year: Path, name: str, objects: str, lists: tuple[str, ...], size: str = VOC_SIZE, suffix: str = "jpg"
) -> None:
    """One annotated image of a year, put on the lists named."""
    for folder in ("Annotations", "ImageSets/Main"):
        (year / folder).mkdir(parents=True, exist_ok=True)
    plain_image(year / "JPEGImages" / f"{name}.{suffix}")
    (year / "Annotations" / f"{name}.xml").write_text(f"<annotation>\n{size}\n{objects}\n</annotation>")
    for split in lists:
        with (year / "ImageSets" / "Main" / f"{split}.txt").open("a") as file:
            file.write(f"{name}\n")


# Faces

# As in WIDER FACE's file that is downloaded: one space after every number, and a row of zeros under a count of 0.
WIDER_FACES = """0--Parade/a.jpg
3
4 3 12 14 0 0 0 0 0 0 
20 10 5 6 2 0 0 1 2 0 
30 5 4 0 1 0 0 0 0 1 
0--Parade/0_Parade_Parade_0_452.jpg
0
0 0 0 0 0 0 0 0 0 0 
1--Handshaking/b.jpg
1
30 20 30 5 0 1 1 0 1 0 
"""


def wider_face(root: Path, train: str = WIDER_FACES, val: str | None = None) -> Path:
    """WIDER FACE's folders for its annotation texts, with black images."""
    (root / "wider_face_split").mkdir()
    for split, text in (("train", train), ("val", val)):
        if text is None:
            continue
        (root / "wider_face_split" / f"wider_face_{split}_bbx_gt.txt").write_text(text)
        for line in text.removeprefix("\ufeff").splitlines():
            if "/" in line:
                plain_image(root / f"WIDER_{split}" / "images" / line)
    return root


def fddb(root: Path, *folds: str) -> Path:
    """FDDB's folders for the texts of its folds, with black images of 60 by 40."""
    (root / "FDDB-folds").mkdir()
    (root / "originalPics").mkdir()
    for number, text in enumerate(folds, 1):
        names = [line for line in text.splitlines() if "/" in line]
        (root / "FDDB-folds" / f"FDDB-fold-{number:02d}.txt").write_text("".join(f"{name}\n" for name in names))
        (root / "FDDB-folds" / f"FDDB-fold-{number:02d}-ellipseList.txt").write_text(text)
        for name in names:
            plain_image(root / "originalPics" / f"{name}.jpg", 60, 40)
    return root
