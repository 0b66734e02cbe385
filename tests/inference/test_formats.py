from __future__ import annotations

import contextlib
import csv
import io
import json
from pathlib import Path

import pytest
import torch
from PIL import Image
from pycocotools.coco import COCO

from tests.helpers.data import plain_image
from tightbox.data.layout import read_data
from tightbox.errors import UserError
from tightbox.evaluation.coco_files import ground_truth_from_coco, predictions_from_coco
from tightbox.inference.annotate import crop
from tightbox.inference.formats import ImageResult, Order, labelstudio_task, write_results
from tightbox.structures import Detections

NAMES = ("cat", "dog")


def results(ious: bool = True) -> list[ImageResult]:
    """An image of 40 by 20 with two boxes, an image of 10 by 10 with none, and a frame with one."""

    def found(boxes: list[list[float]], scores: list[float], labels: list[int], values: list[float]) -> Detections:
        tensors = torch.tensor(boxes).reshape(-1, 4), torch.tensor(scores), torch.tensor(labels, dtype=torch.int64)
        return Detections(*tensors, torch.tensor(values) if ious else None)

    two = found([[4, 5, 24, 15], [0, 0, 40, 20]], [0.75, 0.5], [1, 0], [0.5, 0.875])
    one = found([[0, 0, 5, 10]], [0.25], [0], [0.25])
    return [
        ImageResult(1, "in/a.png", Path("a.jpg"), (20, 40), two),
        ImageResult(2, "in/deep/b.png", Path("deep/b.jpg"), (10, 10), found([], [], [], [])),
        ImageResult(3, "in/c.mp4", Path("c.mp4"), (10, 10), one, frame=7),
    ]


def ground_truth() -> dict[str, object]:
    sizes = [(40, 20), (10, 10), (10, 10)]
    images = [{"id": i, "file_name": str(i), "width": w, "height": h} for i, (w, h) in enumerate(sizes, 1)]
    return {"images": images, "annotations": [], "categories": [{"id": 1, "name": "cat"}, {"id": 2, "name": "dog"}]}


def test_coco_is_read_by_pycocotools_and_by_our_reader(tmp_path: Path) -> None:
    write_results("coco", tmp_path, results(), NAMES)
    rows = json.loads((tmp_path / "results.json").read_text())
    assert [(row["image_id"], row["class"], row["bbox"]) for row in rows] == [
        (1, "dog", [4, 5, 20, 10]),  # x, y, width, height
        (1, "cat", [0, 0, 40, 20]),
        (3, "cat", [0, 0, 5, 10]),
    ]
    assert [row.get("frame") for row in rows] == [None, None, 7]
    theirs = COCO()
    theirs.dataset = ground_truth()
    with contextlib.redirect_stdout(io.StringIO()):
        theirs.createIndex()
        loaded = theirs.loadRes(str(tmp_path / "results.json"))
    assert [(a["category_id"], a["area"]) for a in loaded.loadAnns(loaded.getAnnIds())] == [(2, 200), (1, 800), (1, 50)]
    ours = predictions_from_coco(rows, ground_truth_from_coco(ground_truth()))
    assert ours.labels.tolist() == [1, 0, 0]
    assert ours.ious is not None
    assert ours.ious.tolist() == [0.5, 0.875, 0.25]


def test_csv_has_corners_and_sizes(tmp_path: Path) -> None:
    write_results("csv", tmp_path, results(), NAMES)
    with (tmp_path / "results.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert rows[0] == {
        "image_id": "1",
        "file_name": "in/a.png",
        "frame": "",
        "width": "40",
        "height": "20",
        "class": "dog",
        "score": "0.75",
        "iou": "0.5",
        "x1": "4.0",
        "y1": "5.0",
        "x2": "24.0",
        "y2": "15.0",
    }
    assert [row["frame"] for row in rows] == ["", "", "7"]


def test_csv_without_an_estimate(tmp_path: Path) -> None:
    write_results("csv", tmp_path, results(ious=False), NAMES)
    with (tmp_path / "results.csv").open(newline="") as file:
        assert {row["iou"] for row in csv.DictReader(file)} == {""}


def test_json_is_one_file_for_each_image_and_frame(tmp_path: Path) -> None:
    write_results("json", tmp_path, results(), NAMES)
    first = json.loads((tmp_path / "a.json").read_text())
    assert (first["file_name"], first["width"], first["height"]) == ("in/a.png", 40, 20)
    assert first["detections"][0] == {
        "box": [4, 5, 24, 15],
        "score": 0.75,
        "label": 1,
        "class": "dog",
        "iou": 0.5,
    }
    assert json.loads((tmp_path / "deep" / "b.json").read_text())["detections"] == []
    assert json.loads((tmp_path / "c_000007.json").read_text())["frame"] == 7


def test_yolo_labels_are_fractions_of_the_image(tmp_path: Path) -> None:
    write_results("yolo", tmp_path, results(), NAMES)
    labels = tmp_path / "labels"
    # (4, 5, 24, 15) in 40 by 20: centre (14, 10), sides 20 and 10.
    assert (labels / "a.txt").read_text().splitlines() == [
        "1 0.350000 0.500000 0.500000 0.500000",
        "0 0.500000 0.500000 1.000000 1.000000",
    ]
    assert (labels / "deep" / "b.txt").read_text() == ""
    assert (labels / "classes.txt").read_text() == "cat\ndog\n"


def test_yolo_labels_are_read_back_by_our_reader(tmp_path: Path) -> None:
    write_results("yolo", tmp_path, results()[:1], NAMES)
    plain_image(tmp_path / "images" / "a.png", 40, 20)
    (tmp_path / "data.yaml").write_text(f"path: {tmp_path}\ntrain: images\nval: images\nnames: [cat, dog]\n")
    record = read_data(tmp_path, "val").records[0]
    assert record.labels.tolist() == [1, 0]
    assert record.boxes == pytest.approx(results()[0].found.boxes.numpy(), abs=1e-3)


def test_label_studio_tasks(tmp_path: Path) -> None:
    write_results("labelstudio", tmp_path, results(), NAMES)
    tasks = json.loads((tmp_path / "labelstudio.json").read_text())
    prediction = tasks[0]["predictions"][0]
    assert prediction["score"] == 0.5  # the loosest of its boxes
    assert prediction["result"][0] == {
        "id": "1-0",
        "from_name": "label",
        "to_name": "image",
        "type": "rectanglelabels",
        "original_width": 40,
        "original_height": 20,
        "image_rotation": 0,
        "score": 0.75,
        # Percent of 40 by 20.
        "value": {"x": 10, "y": 25, "width": 50, "height": 50, "rotation": 0, "rectanglelabels": ["dog"]},
        "meta": {"text": ["predicted IoU 0.500"], "iou": 0.5},
    }
    assert tasks[1]["predictions"][0]["result"] == []
    assert tasks[0]["data"]["image"] == f"/data/local-files/?d={Path('in/a.png').absolute().as_posix()[1:]}"


def test_label_studio_without_an_estimate_carries_the_score() -> None:
    prediction = labelstudio_task(results(ious=False)[0], NAMES)["predictions"][0]
    assert prediction["score"] == 0.5
    assert "meta" not in prediction["result"][0]


def test_label_studio_takes_the_tasks() -> None:
    # No dependency of the tests: it asks for an older NumPy, and for sixty packages more.
    sdk = pytest.importorskip("label_studio_sdk.label_interface", reason="label-studio-sdk is not installed")
    labels = "".join(f'<Label value="{name}"/>' for name in NAMES)
    boxes = f'<RectangleLabels name="label" toName="image">{labels}</RectangleLabels>'
    interface = sdk.LabelInterface(f'<View><Image name="image" value="$image"/>{boxes}</View>')
    for result in results():
        task = labelstudio_task(result, NAMES)
        assert "image" in task["data"]
        assert interface.validate_prediction(task["predictions"][0], return_errors=True) == []
    other = labelstudio_task(results()[0], ("cat", "horse"))["predictions"][0]
    assert interface.validate_prediction(other, return_errors=True)


@pytest.mark.parametrize("order", ["score", "loosest"])
def test_the_loosest_box_comes_first_on_request(tmp_path: Path, order: Order) -> None:
    for kind in ("coco", "labelstudio"):
        write_results(kind, tmp_path, results(), NAMES, order)
    ious = [row["iou"] for row in json.loads((tmp_path / "results.json").read_text())]
    assert ious == ([0.5, 0.875, 0.25] if order == "score" else [0.25, 0.5, 0.875])
    tasks = json.loads((tmp_path / "labelstudio.json").read_text())
    scores = [task["predictions"][0]["score"] for task in tasks]
    assert scores == ([0.5, 1.0, 0.25] if order == "score" else [0.25, 0.5, 1.0])  # without boxes: nothing to check


def test_loosest_needs_an_estimate(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="--order loosest has nothing to go by"):
        write_results("coco", tmp_path, results(ious=False), NAMES, "loosest")


@pytest.mark.parametrize(
    ("box", "size"),
    [
        ([3.6, 4.0, 9.2, 10.0], (7, 6)),  # 3..10 by 4..10
        ([-5, -5, 100, 100], (40, 30)),
        ([39.5, 29.5, 40, 30], (1, 1)),
        ([40, 30, 40, 30], (1, 1)),  # empty, at the corner
        ([5, 5, 5, 5], (1, 1)),
    ],
)
def test_crops_are_whole_pixels_within_the_image(box: list[float], size: tuple[int, int]) -> None:
    assert crop(Image.new("RGB", (40, 30)), box).size == size
