from __future__ import annotations

import numpy as np

from tightbox.evaluation.coco_files import from_coco
from tightbox.evaluation.coverage import outer_coverage
from tightbox.evaluation.matching import match


def test_held_and_matched() -> None:
    """Three objects in three images: one held, one held but for its right side, one without a detection on it."""
    boxes = [[0, 0, 10, 10], [0, 0, 10, 10], [50, 50, 10, 10]]
    content = {
        "images": [{"id": i} for i in (1, 2, 3)],
        "annotations": [{"id": i, "image_id": i, "category_id": 1, "bbox": [0, 0, 10, 10]} for i in (1, 2, 3)],
        "categories": [{"id": 1, "name": "cat"}],
    }
    rows = [
        {"image_id": i, "category_id": 1, "bbox": box, "score": 0.1 * i}
        for i, box in zip((1, 2, 3), boxes, strict=True)
    ]
    outer = np.array([[-1.0, 0, 11, 10], [-1, -1, 9.9, 11], [0, 0, 100, 100]])
    matches = match(*from_coco(content, rows))
    assert outer_coverage(matches, outer) == (1, 2)
    assert outer_coverage(match(*from_coco(content, [])), np.empty((0, 4))) == (0, 0)
