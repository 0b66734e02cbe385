"""The best detection of each object, where a detection may be the best of several."""

from __future__ import annotations

import pytest

from tests.helpers.results import data_set, matched, result
from tightbox.diagnosis.diagnose import _tightness
from tightbox.diagnosis.evidence import gather_evidence


def test_a_detection_may_be_the_nearest_of_two_objects() -> None:
    # Of the first object it has 82 / 85, of the second, which it is nearer to, 80 / 82; neither has another.
    truth = data_set((1, 1, 0, 0, 100, 85), (1, 1, 0, 0, 100, 80))
    found = gather_evidence(matched(truth, [result(0.9, 0, 0, 100, 82)]), None)
    assert found.nearest.tolist() == [0, 0]
    assert found.nearest_iou.tolist() == pytest.approx([82 / 85, 80 / 82])
    assert found.kept.tolist() == [-1, 0]  # COCO's rules give it to one of them
    assert not found.missed.any()


def test_of_several_detections_the_tightest_is_the_nearest_and_other_classes_are_none() -> None:
    truth = data_set((1, 1, 0, 0, 100, 100), (1, 2, 200, 200, 50, 50), classes=2)
    rows = [result(0.9, 0, 0, 100, 60), result(0.2, 0, 0, 100, 90), result(0.8, 200, 200, 50, 50)]
    found = gather_evidence(matched(truth, rows), None)
    assert found.nearest_iou.tolist() == pytest.approx([0.9, 0])
    assert found.missed.tolist() == [False, True]


def test_an_iou_that_rounding_takes_beyond_1_is_counted() -> None:
    boxes = [(1, 1, 10 * i + 0.07 * i, 10 * i + 0.03 * i, 7.1 + 0.13 * i, 9.3 + 0.11 * i) for i in range(30)]
    rows = [result(0.5, *box[2:]) for box in boxes]
    tightness = _tightness(gather_evidence(matched(data_set(*boxes), rows), None))
    assert sum(tightness.kept) == sum(tightness.best) == 30
