from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.helpers.references import DATA_SETS
from tests.helpers.results import Json, data_set, random_case, random_results, real_case, result
from tightbox.errors import UserError
from tightbox.evaluation.coco_files import from_coco
from tightbox.reading import read_json

TRUTH = data_set((1, 1, 0, 0, 10, 10), (2, 2, 5, 5, 20, 30), crowds=[2], images=2, classes=2)


def test_columns_hold_what_the_files_do() -> None:
    ground_truth = copy.deepcopy(TRUTH)
    ground_truth["images"] = [{"id": 70, "width": 640, "height": 480}, {"id": 9}]
    ground_truth["categories"] = [{"id": 5, "name": "b"}, {"id": 3, "name": "a"}]
    for annotation, image, category in zip(ground_truth["annotations"], (70, 9), (3, 5), strict=True):
        annotation |= {"image_id": image, "category_id": category}
    del ground_truth["annotations"][0]["iscrowd"]
    rows = [result(0.25, 1, 2, 3, 4, image=70, category=5) | {"iou": 0.5}, result(1, 0, 0, 1, 1, image=9, category=3)]

    truth, found = from_coco(ground_truth, rows)

    assert truth.image_ids == (9, 70)
    assert truth.category_ids == (3, 5)
    np.testing.assert_array_equal(truth.sizes, [[np.nan, np.nan], [640, 480]])
    assert truth.images.tolist() == [1, 0]
    assert truth.labels.tolist() == [0, 1]
    assert truth.boxes.tolist() == [[0, 0, 10, 10], [5, 5, 20, 30]]
    assert truth.crowd.tolist() == [False, True]
    assert truth.positives.tolist() == [1, 0]
    assert found.images.tolist() == [1, 0]
    assert found.labels.tolist() == [1, 0]
    assert found.boxes.tolist() == [[1, 2, 3, 4], [0, 0, 1, 1]]
    assert found.scores.tolist() == [0.25, 1.0]
    np.testing.assert_array_equal(found.ious, [0.5, np.nan])


@pytest.mark.parametrize("ground_truth", [TRUTH, data_set(), data_set(images=0, classes=0)])
def test_empty_results_are_fine(ground_truth: Json) -> None:
    truth, found = from_coco(ground_truth, [])
    assert len(truth.boxes) == len(ground_truth["annotations"])
    assert found.boxes.shape == (0, 4)
    assert len(found.scores) == len(found.ious) == len(found.images) == 0


@pytest.mark.parametrize(
    ("names", "expected"),
    [
        (["cat", "dog", "cat"], ("cat", "dog", "cat (3)")),
        (["cat", "cat (3)", "cat"], ("cat", "cat (3)", "cat (3) (3)")),  # not the name of another class
    ],
)
def test_classes_of_one_name_are_told_apart_by_their_ids(names: list[str], expected: tuple[str, ...]) -> None:
    categories = [{"id": i, "name": name} for i, name in enumerate(names, 1)]
    truth, _ = from_coco({"images": [], "annotations": [], "categories": categories}, [])
    assert truth.class_names == expected


def test_rounding_outside_0_and_1_is_clipped() -> None:
    _, found = from_coco(TRUTH, [result(1 + 1e-7, 0, 0, 4, 4) | {"iou": -1e-7}])
    assert (found.scores[0], found.ious[0]) == (1.0, 0.0)


def without(row: Json, field: str) -> Json:
    return {key: value for key, value in row.items() if key != field}


GOOD = result(0.5, 0, 0, 4, 4)


@pytest.mark.parametrize(
    ("row", "message"),
    [
        (GOOD | {"image_id": 7}, r"result 2 has the image_id 7, .* such as 1"),  # unknown image
        (GOOD | {"image_id": "1"}, r"result 2 has the image_id '1', .* such as 1"),  # text for a number
        (GOOD | {"image_id": [1]}, r"result 2 has the image_id \[1\]"),  # a list
        (GOOD | {"category_id": 0}, r"result 2 has the category_id 0, .* such as 1"),  # counted from 0
        (without(GOOD, "image_id"), "result 2 must be an object with the field image_id"),  # no image
        (without(GOOD, "category_id"), "result 2 must be an object with the field category_id"),  # no class
        (without(GOOD, "bbox"), "result 2 must have a bbox .* but has None"),  # no box
        (without(GOOD, "score"), "result 2 has the score None, but needs a number"),  # no score
        ("row", "result 2 must be an object"),  # no object
        (None, "result 2 must be an object"),  # null
        (GOOD | {"bbox": [0, 0, 4]}, r"result 2 must have a bbox .* but has \[0, 0, 4\]"),  # three numbers
        (GOOD | {"bbox": [0, 0, 4, float("nan")]}, "result 2 must have a bbox .* finite"),  # NaN
        (GOOD | {"bbox": [0, 0, 4, float("inf")]}, "result 2 must have a bbox .* finite"),  # endless
        (GOOD | {"bbox": [0, 0, 4, None]}, "result 2 must have a bbox .* finite"),  # null
        (GOOD | {"bbox": "0 0 4 4"}, "result 2 must have a bbox .* but has '0 0 4 4'"),  # text
        (GOOD | {"score": float("nan")}, "result 2 has the score nan"),  # NaN
        (GOOD | {"score": None}, "result 2 has the score None"),  # null
        (GOOD | {"score": 10**400}, "result 2 must have a number as its score"),  # too large for a float
        (GOOD | {"bbox": [10**400, 0, 4, 4]}, "result 2 must have a bbox"),  # likewise
        (GOOD | {"score": "high"}, "result 2 must have a number as its score"),  # text
        (GOOD | {"score": [0.5]}, "result 2 must have a number as its score"),  # a list
        (GOOD | {"score": 87.5}, "result 2 has the score 87.5, .* divide percentages by 100"),  # per cent
        (GOOD | {"score": -3.2}, "result 2 has the score -3.2, .* sigmoid"),  # a logit
        (GOOD | {"score": "0.5"}, "result 2 must have a number as its score, but has '0.5'"),  # a number as text
        (GOOD | {"score": True}, "result 2 must have a number as its score, but has True"),
        (GOOD | {"iou": True}, "result 2 must have a number as its iou"),
        (GOOD | {"image_id": True}, "result 2 has the image_id True"),
        (GOOD | {"category_id": True}, "result 2 has the category_id True"),
        (GOOD | {"bbox": ["0", "0", "4", "4"]}, "result 2 must have a bbox"),
        (GOOD | {"bbox": [True, 0, 4, 4]}, "result 2 must have a bbox"),
        (GOOD | {"bbox": [8, 8, -4, 4]}, "result 2 has the bbox .* whose width or height is negative"),
        (GOOD | {"iou": 1.2}, "result 2 has the iou 1.2"),  # an IoU above 1
        (GOOD | {"iou": -0.2}, "result 2 has the iou -0.2"),  # below 0
        (GOOD | {"iou": "tight"}, "result 2 must have a number as its iou"),  # text
    ],
)
def test_bad_results_are_named_in_one_sentence(row: Any, message: str) -> None:
    with pytest.raises(UserError, match=message) as caught:
        from_coco(TRUTH, [GOOD, row, GOOD])
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("results", "message"),
    [
        ({"images": [], "annotations": []}, "must be a list of detections, but are one object with the keys images"),
        ({}, "must be a list of detections, but are one object with the keys none"),  # empty object
        (None, "must be a list of detections, but are None"),  # null
        ("text", "must be a list of detections, but are 'text'"),  # text
        ([without(GOOD, "bbox") | {"segmentation": {}}], "segmentation but no bbox"),  # masks
    ],
)
def test_other_files_than_results_are_told(results: Any, message: str) -> None:
    with pytest.raises(UserError, match=message):
        from_coco(TRUTH, results)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"images": None}, "no list images"),
        ({"annotations": {}}, "no list annotations"),
        ({"categories": [{"name": "cat"}]}, "categories must be objects that each have a whole number as id"),
        ({"images": [{"id": True}]}, "images must be objects that each have a whole number as id"),
        ({"images": ["a.jpg"]}, "images must be objects that each have a whole number as id"),
        ({"images": [{"id": 1}, {"id": "2"}]}, "images must be objects that each have a whole number as id"),
        ({"images": [{"id": 1}]}, "annotation 2 has the image_id 2, .* such as 1"),
        ({"images": [], "annotations": TRUTH["annotations"]}, "annotation 1 has the image_id 1, .* not know;"),
        ({"categories": [{"id": 2}]}, "annotation 1 has the category_id 1"),
        ({"annotations": [without(TRUTH["annotations"][0], "bbox")]}, "annotation 1 must have a bbox"),
    ],
)
def test_bad_truth_is_named(change: Json, message: str) -> None:
    with pytest.raises(UserError, match=message):
        from_coco(TRUTH | change, [])


CROWD = TRUTH["annotations"][1]


@pytest.mark.parametrize(
    ("annotation", "crowd"),
    [
        (without(CROWD, "iscrowd"), False),
        (CROWD | {"iscrowd": None}, False),
        (CROWD | {"iscrowd": 0}, False),
        (CROWD | {"iscrowd": False}, False),
        (CROWD | {"iscrowd": 1}, True),
        (CROWD | {"iscrowd": True}, True),
    ],
)
def test_what_is_a_crowd(annotation: Json, crowd: bool) -> None:
    truth, _ = from_coco(TRUTH | {"annotations": [annotation]}, [])
    assert truth.crowd.tolist() == [crowd]


@pytest.mark.parametrize("value", ["0", "1", "", 2, -1, 0.5, [], {}])
def test_what_is_neither_crowd_nor_none_is_named(value: Any) -> None:
    with pytest.raises(UserError, match=r"annotation 2 has the iscrowd .*, which is neither 0 nor 1; write it as") as e:
        from_coco(TRUTH | {"annotations": [TRUTH["annotations"][0], CROWD | {"iscrowd": value}]}, [])
    assert repr(value) in str(e.value)


def test_results_in_place_of_truth_are_told() -> None:
    with pytest.raises(UserError, match="the ground truth is a list"):
        from_coco([GOOD], [GOOD])
    with pytest.raises(UserError, match="no list images"):
        from_coco(None, [GOOD])


def as_corners(rows: list[Json]) -> list[Json]:
    return [
        row
        | {"bbox": [row["bbox"][0], row["bbox"][1], row["bbox"][0] + row["bbox"][2], row["bbox"][1] + row["bbox"][3]]}
        for row in rows
    ]


@pytest.mark.parametrize("name", DATA_SETS)
def test_corners_are_found_out(name: str) -> None:
    ground_truth, results = real_case(name)
    from_coco(ground_truth, results)
    with pytest.raises(UserError, match="look like corners") as caught:
        from_coco(ground_truth, as_corners(results))
    assert "end outside their image" in str(caught.value)
    for image in ground_truth["images"]:
        image.pop("width")
    with pytest.raises(UserError, match="look like corners") as caught:
        from_coco(ground_truth, as_corners(results))
    assert "outside" not in str(caught.value)  # nobody knows


def test_the_evidence_for_corners_is_in_numbers() -> None:
    # Four objects of 100 x 100 pixels in images of 400. As they are, the corners [200, 200, 300, 300] and three alike
    # are boxes of 300 x 300 up to 500, which hold the object: IoU 1 / 9. Read as corners they are the objects.
    truth = data_set(*((i, 1, 200, 200, 100, 100) for i in (1, 2, 3, 4)), images=4)
    rows = [result(0.9, 200, 200, 300, 300, image=i) for i in (1, 2, 3, 4)]
    with pytest.raises(
        UserError, match=r"meet 100% of the ground-truth boxes instead of 0%, and 100% of them end outside"
    ):
        from_coco(truth, rows)
    from_coco(truth, rows[:2])  # two boxes may be chance


def test_large_boxes_at_the_left_edge_are_no_corners() -> None:
    # Every box is wider than its distance from the left and the top edge, as corners are; but they fit as they are.
    truth = data_set(*((i, 1, 10, 10, 300, 300) for i in range(1, 7)), images=6)
    from_coco(truth, [result(0.9, 10, 10, 300, 300, image=i) for i in range(1, 7)])
    # Nor do boxes that fit in neither way.
    from_coco(truth, [result(0.9, 0, 0, 30, 30, image=i) for i in range(1, 7)])


@pytest.mark.parametrize("seed", range(20))
def test_made_up_results_are_no_corners(seed: int) -> None:
    from_coco(*random_case(seed))


def test_inputs_stay_as_they_were() -> None:
    results = random_results(TRUTH, 0)
    before = copy.deepcopy((TRUTH, results))
    from_coco(TRUTH, results)
    assert (TRUTH, results) == before


def test_files_are_read(tmp_path: Path) -> None:
    path = tmp_path / "results.json"
    path.write_text(json.dumps([GOOD]))
    assert read_json(path) == [GOOD]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", r"results\.json is empty; .* written as \[\]"),  # nothing
        (b" \n", "is empty"),  # white space
        (b'[{"image_id": 1', "is not valid JSON.* cut off"),  # cut off
        (b"\xff\xfe\x00", "is not text at byte"),
        (b"\xff", "is not text at byte 0; save it as UTF-8"),
    ],
)
def test_unreadable_files_are_told(content: bytes, message: str, tmp_path: Path) -> None:
    (tmp_path / "results.json").write_bytes(content)
    with pytest.raises(UserError, match=message):
        read_json(tmp_path / "results.json")


def test_missing_files_are_told(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"cannot read .*nowhere\.json: No such file"):
        read_json(tmp_path / "nowhere.json")
    with pytest.raises(UserError, match="cannot read"):
        read_json(tmp_path)
