"""A small data set and results in which every figure can be worked out by hand."""

from __future__ import annotations

import copy
from typing import Any

NASTY = "<b>\"cat\" & 'co'</b></script><script>alert(1)</script>"

# One row of objects of 100 by 100 pixels; a box of the same height and x per cent of the width has the IoU x / 100.
GROUND_TRUTH: dict[str, Any] = {
    "images": [{"id": i, "file_name": f"{i}.jpg", "width": 640, "height": 480} for i in (1, 2, 3)],
    "annotations": [
        {"id": 1, "image_id": 1, "category_id": 1, "bbox": [10, 10, 100, 100], "area": 10000, "iscrowd": 0},
        {"id": 2, "image_id": 1, "category_id": 2, "bbox": [300, 10, 100, 100], "area": 10000, "iscrowd": 0},
        {"id": 3, "image_id": 2, "category_id": 1, "bbox": [10, 10, 50, 50], "area": 2500, "iscrowd": 0},
        {"id": 4, "image_id": 3, "category_id": 1, "bbox": [10, 10, 20, 20], "area": 400, "iscrowd": 0},
    ],
    "categories": [{"id": 1, "name": "cat"}, {"id": 2, "name": "dog"}, {"id": 3, "name": "emu"}],
}
RESULTS: list[dict[str, Any]] = [
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


def example() -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """Copies to change."""
    return copy.deepcopy(GROUND_TRUTH), copy.deepcopy(RESULTS)


def nasty_example() -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """The same with a class and an image whose names are HTML."""
    ground_truth, results = example()
    ground_truth["categories"][0]["name"] = NASTY
    ground_truth["images"][0]["file_name"] = f"{NASTY}.jpg"
    return ground_truth, results


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


def many(copies: int = 60) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """The example again and again, one pixel further to the right each time, for a gallery to look around in."""
    ground_truth, results = example()
    images, annotations, rows = [], [], []
    for number in range(copies):
        shift, base = number % 20, 3 * number
        for image in ground_truth["images"]:
            images.append(image | {"id": base + image["id"], "file_name": f"{base + image['id']}.jpg"})
        for row in ground_truth["annotations"]:
            box = [row["bbox"][0] + shift, *row["bbox"][1:]]
            annotations.append(row | {"id": len(annotations) + 1, "image_id": base + row["image_id"], "bbox": box})
        for row in results:
            box = [row["bbox"][0] + shift, row["bbox"][1], row["bbox"][2] - 0.2 * shift, row["bbox"][3]]
            rows.append(row | {"image_id": base + row["image_id"], "bbox": box, "score": row["score"] - 0.001 * number})
    return {"images": images, "annotations": annotations, "categories": ground_truth["categories"]}, rows
