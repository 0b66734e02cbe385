from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.helpers.data import three_images
from tightbox.data.records import DetectionData, ImageRecord
from tightbox.evaluation.coco_files import ground_truth_from_coco, predictions_from_coco
from tightbox.evaluation.inputs import GroundTruth, Predictions
from tightbox.inference.detect import to_results
from tightbox.structures import Detections


def assert_same(found: GroundTruth | Predictions, expected: GroundTruth | Predictions) -> None:
    for name, value in vars(expected).items():
        if isinstance(value, np.ndarray):
            np.testing.assert_array_equal(getattr(found, name), value, err_msg=name)
        else:
            assert getattr(found, name) == value, name


def shuffled(data: DetectionData, seed: int) -> DetectionData:
    """The same with ids of images and classes in any order, with gaps, and some crowds and masks."""
    rng = np.random.default_rng(seed)
    image_ids = rng.choice(1000, len(data.records), replace=False).tolist()
    category_ids = tuple(rng.choice(90, len(data.class_names), replace=False).tolist())

    def changed(record: ImageRecord, image_id: int) -> ImageRecord:
        count = len(record.boxes)
        boxes = (record.boxes + rng.uniform(0, 0.3, record.boxes.shape)).astype(np.float32)
        return replace(
            record,
            image_id=image_id,
            boxes=boxes,
            crowd=rng.random(count) < 0.3,
            areas=(record.areas * rng.uniform(0.5, 1, count)).astype(np.float32),
        )

    records = tuple(changed(record, image_id) for record, image_id in zip(data.records, image_ids, strict=True))
    return replace(data, records=records, category_ids=category_ids)


@pytest.fixture
def data(tmp_path: Path) -> DetectionData:
    return three_images(tmp_path)


@pytest.mark.parametrize("seed", range(8))
def test_a_data_set_gives_what_its_coco_file_gives(data: DetectionData, seed: int) -> None:
    data = shuffled(data, seed)
    assert_same(GroundTruth.from_data(data), ground_truth_from_coco(data.to_coco()))


def test_a_data_set_without_images_or_objects(data: DetectionData) -> None:
    for records in ((), data.records[2:]):
        part = replace(data, records=records)
        assert_same(GroundTruth.from_data(part), ground_truth_from_coco(part.to_coco()))


coordinates = st.floats(0, 60, width=32)
detection = st.tuples(coordinates, coordinates, st.floats(0, 1, width=32), st.integers(0, 1))


@settings(deadline=None)
@given(st.lists(st.lists(detection, max_size=4), min_size=3, max_size=3), st.integers(0, 3), st.booleans())
def test_detections_give_what_their_result_file_gives(
    images: list[list[tuple[float, float, float, int]]], seed: int, has_ious: bool
) -> None:
    """Up to a rounding of the third decimal, where a number lies in the middle between two."""
    empty = np.empty((0, 4), np.float32)
    nothing = empty[:, 0]
    records = tuple(
        ImageRecord(Path(f"{i}.png"), i, 64, 64, empty, nothing.astype(np.int64), nothing.astype(bool), nothing)
        for i in range(3)
    )
    data = shuffled(DetectionData("test", Path(), "val", ("cat", "dog"), (1, 2), records), seed)
    found = {}
    for index, rows in enumerate(images):
        columns = torch.tensor(rows).reshape(-1, 4)
        boxes = torch.cat([columns[:, :2], columns[:, :2] + 4], dim=1)
        found[index] = Detections(boxes, columns[:, 2], columns[:, 3].long(), columns[:, 2] if has_ious else None)
    direct = Predictions.from_detections(found, data)
    by_file = predictions_from_coco(to_results(found, data), GroundTruth.from_data(data))
    assert len(direct) == sum(map(len, images))
    np.testing.assert_allclose(direct.boxes, by_file.boxes, atol=1.1e-3, rtol=0)
    assert_same(replace(direct, boxes=by_file.boxes), by_file)


def test_positives_leave_out_crowds(data: DetectionData) -> None:
    first = replace(data.records[0], crowd=data.records[0].labels == 1)
    part = GroundTruth.from_data(replace(data, records=(first, *data.records[1:])))
    assert part.positives.tolist() == [2, 0]
