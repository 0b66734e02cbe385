from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.helpers.data import plain_image
from tests.helpers.references import DATA_ROOTS, real_data
from tightbox.data.coco import parse_coco, read_coco
from tightbox.data.records import DetectionData, ImageRecord
from tightbox.errors import UserError


def content(**changes: Any) -> dict[str, Any]:
    """Two images of 40x30, three boxes of two classes; the second image has none."""
    whole: dict[str, Any] = {
        "images": [
            {"id": 7, "file_name": "a.png", "width": 40, "height": 30},
            {"id": 3, "file_name": "b.png", "width": 40, "height": 30},
        ],
        "categories": [{"id": 90, "name": "cat"}, {"id": 0, "name": "dog"}],
        "annotations": [
            {"id": 1, "image_id": 7, "category_id": 90, "bbox": [1, 2, 3, 4], "area": 5.5, "iscrowd": 0},
            {"id": 2, "image_id": 7, "category_id": 0, "bbox": [30, 20, 20, 5], "iscrowd": 1},
            {"id": 3, "image_id": 7, "category_id": 0, "bbox": [10, 10, 0, 5]},
        ],
    }
    return whole | changes


def read(folder: Path, data: Any) -> DetectionData:
    for name in ("a.png", "b.png"):
        plain_image(folder / name)
    (folder / "train.json").write_text(data if isinstance(data, str) else json.dumps(data))
    return read_coco(folder / "train.json", folder)


def with_annotation(**changes: Any) -> dict[str, Any]:
    whole = content()
    whole["annotations"][1] |= changes
    return whole


def test_reads_ids_boxes_crowd_and_areas(tmp_path: Path) -> None:
    data = read(tmp_path, content())
    assert (data.class_names, data.category_ids) == (("dog", "cat"), (0, 90))  # ascending id
    first, second = data.records
    assert (first.path, first.image_id, first.width, first.height) == (tmp_path / "a.png", 7, 40, 30)
    # The third box has no width and goes; the second is clipped at x = 40, which leaves 10 x 5.
    assert first.boxes.tolist() == [[1, 2, 4, 6], [30, 20, 40, 25]]
    assert first.labels.tolist() == [1, 0]
    assert first.crowd.tolist() == [False, True]
    assert first.areas.tolist() == [5.5, 50]  # as given; the box's own
    dtypes = (first.boxes.dtype, first.labels.dtype, first.crowd.dtype, first.areas.dtype)
    assert [dtype.name for dtype in dtypes] == ["float32", "int64", "bool", "float32"]
    assert second.image_id == 3
    assert second.boxes.shape == (0, 4)


@pytest.mark.parametrize("area", [0, -1, 1e-320, 1e-7, 1e300, True, "5.5", None])
def test_an_area_that_is_none_gives_way_to_that_of_the_box(area: object, tmp_path: Path) -> None:
    """Areas are kept in 32 bits, where 1e-320 would be 0: no area at all."""
    data = read(tmp_path, with_annotation(area=area))
    assert data.records[0].areas.tolist() == [5.5, 50]


def test_boxes_of_interleaved_annotations_reach_their_own_images(tmp_path: Path) -> None:
    rows = [{"id": i, "image_id": (7, 3)[i % 2], "category_id": 0, "bbox": [i, 0, 1, 1]} for i in range(6)]
    data = read(tmp_path, content(annotations=rows))
    assert [record.boxes[:, 0].tolist() for record in data.records] == [[0, 2, 4], [1, 3, 5]]


def test_size_comes_from_the_image_where_the_annotation_has_none(tmp_path: Path) -> None:
    data = read(tmp_path, content(images=[{"id": 7, "file_name": "a.png"}]))
    assert (data.records[0].width, data.records[0].height) == (40, 30)


def test_to_coco_gives_back_what_was_read(tmp_path: Path) -> None:
    rows = [{"id": 5, "image_id": 7, "category_id": 90, "bbox": [0.13, 1.27, 38.65, 2.01], "area": 9.5, "iscrowd": 0}]
    back = read(tmp_path, content(annotations=rows)).to_coco()
    assert back["annotations"] == [rows[0] | {"id": 1}]
    assert back["categories"] == [{"id": 0, "name": "dog"}, {"id": 90, "name": "cat"}]
    assert back["images"] == content()["images"]
    json.dumps(back)


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (json.dumps(content())[:-40], r"train\.json is not valid JSON at line 1 column \d+ \(character \d+ of \d+\)"),
        ("\xff", "is not valid JSON at line 1"),  # text, but no JSON
        ("[]", "no list named images, annotations, categories"),
        (content(images=None), "no list named images; export"),
        ({"images": [], "annotations": []}, "no list named categories"),
        (content(images=[]), "names an image id that is not in images"),
        (content(images=[], annotations=[]), "has no images"),
        (content(images=[{"id": 1}]), "entry 1 of the images .* lacks a whole-number id or a file_name"),
        (content(images=[content()["images"][0]] * 2), r"gives image id 7 to both a\.png and a\.png"),
        (content(categories=[{"id": 1, "name": "cat"}, {"id": 2, "name": "cat"}]), "more than one class with 'cat'"),
        (content(categories=[{"id": 1, "name": "cat"}, {"id": 1, "name": "dog"}]), "more than one class with id 1"),
        (content(categories=[]), r"train\.json has no categories; export it again with at least one class"),
        (content(categories=[{"id": 1, "name": ""}]), r"train\.json gives an empty name to category id 1; give every"),
        (content(categories=[{"id": 1, "name": " "}]), "gives an empty name to category id 1"),  # white space
        (with_annotation(iscrowd="0"), "annotation 2 of image 7 .* has the iscrowd '0', which is neither 0 nor 1"),
        (with_annotation(iscrowd=2), "annotation 2 of image 7 .* has the iscrowd 2"),
        (content(categories=[{"name": "cat"}]), "1 categories .* lack a whole-number id or a name"),
        (content(annotations=[3]), "entry 1 of the annotations .* is no object"),
        (with_annotation(image_id=8), r"annotation 2 of image 8 in .*train\.json names an image id .*tightbox doctor"),
        (with_annotation(image_id=[8]), "annotation 2 of image .* names an image id"),  # not even hashable
        (
            with_annotation(category_id=4),
            r"annotation 2 of image 7 in .*train\.json names category id 4.*tightbox doctor",
        ),
        (with_annotation(bbox=[1, 2, 3]), r"annotation 2 of image 7 .* bbox \[1, 2, 3\], which is not 4 finite"),
        (with_annotation(bbox=[1, 2, 3, float("nan")]), "annotation 2 .* not 4 finite numbers"),
        (with_annotation(bbox=[1, 2, 3, float("inf")]), "annotation 2 .* not 4 finite numbers"),
        (with_annotation(bbox=[1, 2, 3, 10**400]), "annotation 2 .* not 4 finite numbers"),  # beyond float
        (with_annotation(bbox=["1", "2", "3", "4"]), "annotation 2 .* not 4 finite numbers"),
        (with_annotation(bbox=None), "annotation 2 .* not 4 finite numbers"),
    ],
)
def test_bad_files_are_refused(tmp_path: Path, data: Any, message: str) -> None:
    with pytest.raises(UserError, match=message):
        read(tmp_path, data)


def test_text_in_no_encoding_is_refused(tmp_path: Path) -> None:
    (tmp_path / "a.json").write_bytes(b'{"images": "\xff\xfe\xff"}')
    with pytest.raises(UserError, match=r"a\.json is not text at byte 12"):
        read_coco(tmp_path / "a.json", tmp_path)


def test_a_missing_file_and_missing_images_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"cannot read .*none\.json: No such file"):
        read_coco(tmp_path / "none.json", tmp_path)
    (tmp_path / "train.json").write_text(json.dumps(content()))
    with pytest.raises(UserError, match=r"the folder of images .*images, which does not exist"):
        read_coco(tmp_path / "train.json", tmp_path / "images")
    with pytest.raises(UserError, match=r"the image .*a\.png, which does not exist"):
        read_coco(tmp_path / "train.json", tmp_path)


@pytest.mark.parametrize(("value", "crowd"), [(None, False), (0, False), (False, False), (1, True), (True, True)])
def test_what_is_a_crowd(tmp_path: Path, value: Any, crowd: bool) -> None:
    data = read(tmp_path, with_annotation(iscrowd=value))
    assert data.records[0].crowd.tolist() == [False, crowd]


def test_the_parser_sees_every_problem_at_once(tmp_path: Path) -> None:
    whole = content()
    whole["annotations"] += [{"id": i, "image_id": 7, "category_id": i, "bbox": [0, 0, 1, 1]} for i in (50, 51, 90)]
    (tmp_path / "train.json").write_text(json.dumps(whole))
    parsed = parse_coco(tmp_path / "train.json", [tmp_path], root=tmp_path, split="train")
    assert [finding.check for finding in parsed.findings] == ["unknown-category"] * 2
    assert len(parsed.boxes) == 4


def test_annotation_ids_that_repeat_do_no_harm(tmp_path: Path) -> None:
    data = read(tmp_path, with_annotation(id=1))
    assert len(data.records[0].boxes) == 2
    assert [row["id"] for row in data.to_coco()["annotations"]] == [1, 2]


NAMES = st.lists(st.text(min_size=1, max_size=4).filter(str.strip), min_size=1, max_size=6, unique=True)


@given(names=NAMES, data=st.data())
def test_any_category_ids_map_to_classes_by_name(tmp_path_factory: Any, names: list[str], data: st.DataObject) -> None:
    folder = tmp_path_factory.mktemp("coco")
    ids = data.draw(st.lists(st.integers(0, 10**6), min_size=len(names), max_size=len(names), unique=True))
    name_of = dict(zip(ids, names, strict=True))
    used = data.draw(st.lists(st.sampled_from(ids), max_size=8))
    rows = [{"id": i, "image_id": 7, "category_id": c, "bbox": [0, 0, 1, 1]} for i, c in enumerate(used)]
    categories = [{"id": number, "name": name} for number, name in name_of.items()]
    got = read(folder, content(annotations=rows, categories=categories))
    order = data.draw(st.permutations([*names, "not in this split"]))
    moved = got.with_classes(order)
    assert [got.class_names[label] for label in got.records[0].labels] == [name_of[c] for c in used]
    assert [order[label] for label in moved.records[0].labels] == [name_of[c] for c in used]
    assert [moved.category_ids[label] for label in moved.records[0].labels] == used
    assert moved.class_names == tuple(order)
    assert len(set(moved.category_ids)) == len(order)
    assert moved.category_ids[order.index("not in this split")] not in ids


def small(names: tuple[str, ...], labels: list[int]) -> DetectionData:
    boxes = np.tile(np.array([0, 0, 1, 1], np.float32), (len(labels), 1))
    crowd, areas = np.zeros(len(labels), np.bool_), np.ones(len(labels), np.float32)
    record = ImageRecord(Path("a.png"), 1, 4, 4, boxes, np.array(labels, np.int64), crowd, areas)
    return DetectionData("COCO", Path("shapes"), "val", names, tuple(range(len(names))), (record,))


def test_classes_that_were_not_trained_are_refused_by_name_only_if_used() -> None:
    data = small(("cat", "dog", "eel"), [0, 0])
    assert data.with_classes(["cat"]).records[0].labels.tolist() == [0, 0]
    data = small(("cat", "dog", "eel"), [0, 1, 2])
    with pytest.raises(UserError, match=r"the val split of shapes has objects of .* not trained: dog, eel; leave"):
        data.with_classes(["cat"])


def test_with_classes_of_no_images_and_no_classes() -> None:
    empty = DetectionData("COCO", Path("shapes"), "val", (), (), ())
    assert empty.with_classes(["cat", "dog"]).category_ids == (1, 2)


COUNTS = [  # of what is in the slices, and of the whole sets: split, images, boxes and classes
    [
        ("bccd", "train", 6, 109, 3),
        ("bccd", "val", 60, 782, 3),
        ("aquarium", "val", 60, 470, 7),
        ("coco-mini", "val", 52, 388, 80),
    ],
    [
        ("bccd", "train", 205, 2804, 3),
        ("bccd", "val", 87, 1137, 3),
        ("aquarium", "train", 448, 3323, 7),
        ("coco-mini", "val", 52, 388, 80),
    ],
]


@pytest.mark.parametrize(
    ("root", "name", "split", "images", "boxes", "classes"),
    [(root, *row) for root, rows in zip(DATA_ROOTS, COUNTS, strict=False) for row in rows],
)
def test_real_sets(root: Path, name: str, split: str, images: int, boxes: int, classes: int, tmp_path: Path) -> None:
    folder = real_data(root, name, tmp_path)
    data = read_coco(folder / f"{split}.json", folder / "images")
    assert (len(data.records), len(data.class_names)) == (images, classes)
    assert sum(len(record.boxes) for record in data.records) == boxes
    truth = json.loads((folder / f"{split}.json").read_text())
    back = data.to_coco()
    by_image = {image["id"]: [] for image in truth["images"]}  # type: dict[int, list[Any]]
    for row in truth["annotations"]:
        by_image[row["image_id"]].append(row)
    expected = [row for rows in by_image.values() for row in rows]
    assert len(back["annotations"]) == len(expected)
    for ours, theirs in zip(back["annotations"], expected, strict=True):
        assert [ours[k] for k in ("image_id", "category_id", "iscrowd")] == [
            theirs[k] for k in ("image_id", "category_id", "iscrowd")
        ]
        # Boxes have 2 decimals and some end up to 0.01 px outside, which clipping takes away.
        assert ours["bbox"] == pytest.approx(theirs["bbox"], abs=0.011)


def test_real_coco_has_gaps_and_crowds(tmp_path: Path) -> None:
    folder = real_data(DATA_ROOTS[0], "coco-mini", tmp_path)
    data = read_coco(folder / "val.json", folder / "images")
    assert (data.category_ids[0], data.category_ids[-1], data.class_names[0]) == (1, 90, "person")
    assert set(range(1, 91)) - set(data.category_ids) == {12, 26, 29, 30, 45, 66, 68, 69, 71, 83}  # COCO's own gaps
    assert sum(int(record.crowd.sum()) for record in data.records) == 4
