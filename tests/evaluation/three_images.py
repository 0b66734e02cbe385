"""Two images of known objects, as every test of an evaluation needs them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image

from tightbox.data.records import DetectionData, ImageRecord

BOXES = [[(4, 4, 40, 36), (30, 20, 60, 60)], [(10, 8, 50, 40)], []]


def three_images(root: Path) -> DetectionData:
    """Noise of 64 by 64 pixels with two objects, one and none; a cat is every first object, a dog every second."""
    records = []
    for i, boxes in enumerate(BOXES):
        path = root / f"{i}.png"
        pixels = np.random.default_rng(i).integers(0, 256, (64, 64, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(path)
        corners = np.array(boxes, np.float32).reshape(-1, 4)
        area = (corners[:, 2] - corners[:, 0]) * (corners[:, 3] - corners[:, 1])
        labels = np.arange(len(boxes), dtype=np.int64) % 2
        records.append(ImageRecord(path, 10 + i, 64, 64, corners, labels, np.zeros(len(boxes), bool), area))
    return DetectionData("test", root, "val", ("cat", "dog"), (1, 2), tuple(records))
