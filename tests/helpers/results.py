"""Ground truth and results in COCO's form: by hand, at random, and around real annotations."""

from __future__ import annotations

import copy
import json
from collections.abc import Sequence
from typing import Any

import numpy as np

from tests.helpers.references import DATA_ROOTS
from tightbox.evaluation.coco_files import from_coco
from tightbox.evaluation.matching import Matches, match

Json = dict[str, Any]


def data_set(*boxes: tuple[float, ...], crowds: Sequence[int] = (), images: int = 1, classes: int = 1) -> Json:
    """A data set with ids from 1; each box is (image, class, x, y, w, h), the numbers in `crowds` are crowds."""
    return {
        "images": [{"id": i, "width": 400, "height": 400} for i in range(1, images + 1)],
        "categories": [{"id": i, "name": f"class {i}"} for i in range(1, classes + 1)],
        "annotations": [
            {
                "id": i,
                "image_id": b[0],
                "category_id": b[1],
                "bbox": list(b[2:]),
                "area": b[4] * b[5],
                "iscrowd": int(i in crowds),
            }
            for i, b in enumerate(boxes, 1)
        ],
    }


def result(score: float, *box: float, image: int = 1, category: int = 1) -> Json:
    return {"image_id": image, "category_id": category, "bbox": list(box), "score": score}


def matched(ground_truth: Json, results: list[Json], *thresholds: float, **options: Any) -> Matches:
    return match(*from_coco(ground_truth, results), thresholds or (0.5,), **options)


def random_results(ground_truth: Json, seed: int, *, ties: bool = False) -> list[Json]:
    """Detections around the ground-truth boxes, some of them of a wrong class or of nothing, in no order."""
    rng = np.random.default_rng(seed)
    categories = [row["id"] for row in ground_truth["categories"]]

    def score() -> float:
        return float(rng.integers(1, 10) / 10 if ties else rng.random())

    rows = []
    for truth in ground_truth["annotations"]:
        for _ in range(rng.integers(0, 4)):
            box = np.array(truth["bbox"]) + rng.normal(0, 0.12 * min(truth["bbox"][2:]), 4)
            category = truth["category_id"] if rng.random() < 0.8 else int(rng.choice(categories))
            box = np.maximum(box, 1e-3).tolist()
            rows.append(result(score(), *box, image=truth["image_id"], category=category))
    for image in ground_truth["images"]:
        for _ in range(rng.integers(0, 3)):
            box = rng.uniform((0, 0, 5, 5), (200, 200, 160, 160)).tolist()
            rows.append(result(score(), *box, image=image["id"], category=int(rng.choice(categories))))
    rng.shuffle(rows)
    return rows


def random_case(seed: int, *, crowd: float = 0.1) -> tuple[Json, list[Json]]:
    """A random data set and results; odd seeds have many equal scores. The last class is empty at times."""
    rng = np.random.default_rng(seed)
    images, classes = int(rng.integers(1, 9)), int(rng.integers(1, 5))
    boxes = []
    for _ in range(rng.integers(0, 5 * images)):
        box = rng.uniform((0, 0, 5, 5), (200, 200, 160, 160)).tolist()
        boxes.append((int(rng.integers(images)) + 1, int(rng.integers(max(1, classes - seed % 2))) + 1, *box))
    crowds = np.flatnonzero(rng.random(len(boxes)) < crowd) + 1
    ground_truth = data_set(*boxes, crowds=crowds.tolist(), images=images, classes=classes)
    return ground_truth, random_results(ground_truth, seed, ties=seed % 2 == 1)


def real_case(name: str) -> tuple[Json, list[Json]]:
    """The first 60 validation images of a real data set, and made-up results."""
    ground_truth = json.loads((DATA_ROOTS[0] / name / "val.json").read_bytes())
    return ground_truth, random_results(ground_truth, seed=1)


# A small data set and results in which every figure can be worked out by hand

NASTY = "<b>\"cat\" & 'co'</b></script><script>alert(1)</script>"

# One row of objects of 100 by 100 pixels; a box of the same height and x per cent of the width has the IoU x / 100.
TRUTH: Json = {
    "images": [{"id": i, "file_name": f"{i}.jpg", "width": 640, "height": 480} for i in (1, 2, 3)],
    "annotations": [
        {"id": 1, "image_id": 1, "category_id": 1, "bbox": [10, 10, 100, 100], "area": 10000, "iscrowd": 0},
        {"id": 2, "image_id": 1, "category_id": 2, "bbox": [300, 10, 100, 100], "area": 10000, "iscrowd": 0},
        {"id": 3, "image_id": 2, "category_id": 1, "bbox": [10, 10, 50, 50], "area": 2500, "iscrowd": 0},
        {"id": 4, "image_id": 3, "category_id": 1, "bbox": [10, 10, 20, 20], "area": 400, "iscrowd": 0},
    ],
    "categories": [{"id": 1, "name": "cat"}, {"id": 2, "name": "dog"}, {"id": 3, "name": "emu"}],
}
RESULTS: list[Json] = [
    # Object 1: the loose box is kept, as its score is higher, and the tight one is out-ranked.
    {"image_id": 1, "category_id": 1, "bbox": [10, 10, 60, 100], "score": 0.9, "iou": 0.7},
    {"image_id": 1, "category_id": 1, "bbox": [10, 10, 95, 100], "score": 0.6, "iou": 0.8},
    # Object 2: found as it is.
    {"image_id": 1, "category_id": 2, "bbox": [300, 10, 80, 100], "score": 0.8, "iou": 0.8},
    # Object 3: too loose a box. Object 4: nothing.
    {"image_id": 2, "category_id": 1, "bbox": [10, 10, 20, 50], "score": 0.7, "iou": 0.5},
    # On no object, of a class without objects.
    {"image_id": 3, "category_id": 3, "bbox": [400, 300, 50, 50], "score": 0.5, "iou": 0.3},
]


def example() -> tuple[Json, list[Json]]:
    """Copies to change."""
    return copy.deepcopy(TRUTH), copy.deepcopy(RESULTS)


def nasty_example() -> tuple[Json, list[Json]]:
    """The same with a class and an image whose names are HTML."""
    truth, results = example()
    truth["categories"][0]["name"] = NASTY
    truth["images"][0]["file_name"] = f"{NASTY}.jpg"
    return truth, results


def many(copies: int = 60) -> tuple[Json, list[Json]]:
    """The example again and again, one pixel further to the right each time, for a gallery to look around in."""
    truth, results = example()
    images: list[dict[str, Any]] = []
    annotations: list[dict[str, Any]] = []
    rows: list[dict[str, Any]] = []
    for number in range(copies):
        shift, base = number % 20, 3 * number
        for image in truth["images"]:
            images.append(image | {"id": base + image["id"], "file_name": f"{base + image['id']}.jpg"})
        for row in truth["annotations"]:
            box = [row["bbox"][0] + shift, *row["bbox"][1:]]
            annotations.append(row | {"id": len(annotations) + 1, "image_id": base + row["image_id"], "bbox": box})
        for row in results:
            box = [row["bbox"][0] + shift, row["bbox"][1], row["bbox"][2] - 0.2 * shift, row["bbox"][3]]
            rows.append(row | {"image_id": base + row["image_id"], "bbox": box, "score": row["score"] - 0.001 * number})
    return {"images": images, "annotations": annotations, "categories": truth["categories"]}, rows


def eighty_classes() -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """80 classes as COCO has, one of them with a long name and one with a word that cannot be broken at a space."""
    names = [f"class {number}" for number in range(1, 79)] + ["a class whose name is a whole sentence", 45 * "x"]
    images, annotations, rows = [], [], []
    for number in range(1, 81):
        place = {"image_id": number, "category_id": number}
        images.append({"id": number, "file_name": f"{number}.jpg", "width": 640, "height": 480})
        box = [10, 10, 100, 100]
        annotations.append(place | {"id": number, "bbox": box, "area": 10000, "iscrowd": 0})
        rows.append(place | {"bbox": [10, 10, 60 + number % 40, 100], "score": number / 100, "iou": 0.8})
    categories = [{"id": number, "name": name} for number, name in enumerate(names, 1)]
    return {"images": images, "annotations": annotations, "categories": categories}, rows
