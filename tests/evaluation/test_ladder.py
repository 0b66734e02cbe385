from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
from scipy.stats import pearsonr, spearmanr

from tests.helpers.data import BOXES, three_images
from tests.helpers.results import data_set, result
from tightbox.data.records import DetectionData
from tightbox.errors import UserError
from tightbox.evaluation.coco_files import from_coco
from tightbox.evaluation.ladder import Ladder, results_ladder


@pytest.fixture
def data(tmp_path: Path) -> DetectionData:
    return three_images(tmp_path)


def study_of(content: Any, rows: Any) -> Ladder:
    return results_ladder(*from_coco(content, rows))


def row(image: int, category: int, box: tuple[float, ...], score: float, **more: float) -> dict[str, Any]:
    left, top, right, bottom = box
    sides = {"bbox": [left, top, right - left, bottom - top]}
    return {"image_id": image, "category_id": category, "score": score} | sides | more


A, B, C = BOXES[0][0], BOXES[0][1], BOXES[1][0]
LOOSE_A, LOOSE_C = (4, 4, 40, 28), (10, 8, 50, 36)  # 24 of 32 and 28 of 32 rows: IoU 0.75 and 0.875
RESULTS = [row(10, 1, LOOSE_A, 0.9), row(11, 1, LOOSE_C, 0.8), row(10, 1, A, 0.3), row(10, 2, B, 0.5)]


def test_results_by_hand(data: DetectionData) -> None:
    """The dog is perfect throughout, so AP is the mean of 1 and the cats'.

    As they are: LOOSE_A, LOOSE_C, A. Up to IoU 0.75, 6 thresholds, the first two are right: 1. At 0.80 and 0.85 the
    last two are, and precision is 2/3 at every recall. At 0.90 and 0.95 only the last: 1/3 at 51 of 101 recalls.
    By true IoU: A, LOOSE_C, LOOSE_A. The first two are right at 8 thresholds, and the first at the last two: 51/101.
    With ground-truth boxes: A, C and A again, after all is found.
    """
    study = study_of(data.to_coco(), RESULTS)
    found = {variant.name: variant.alone.ap for variant in study.variants if variant.alone is not None}
    before, after = (6 + 2 * 2 / 3 + 2 * 51 / 303) / 10, (8 + 2 * 51 / 101) / 10
    assert list(found) == ["as predicted", "box := ground-truth box", "class score := 1", "class score := true IoU"]
    assert found["as predicted"] == pytest.approx((1 + before) / 2)
    assert found["box := ground-truth box"] == pytest.approx(1)
    assert found["class score := true IoU"] == pytest.approx((1 + after) / 2)
    assert study.lost_to_ranking == pytest.approx((after - before) / 2)
    assert all(variant.with_estimate is None for variant in study.variants)
    scores, truth = [0.9, 0.8, 0.3, 0.5], [0.75, 0.875, 1, 1]
    assert study.correlations["score"].pearson == pytest.approx(pearsonr(scores, truth).statistic)
    assert study.correlations["score"].pairs == 4
    assert set(study.correlations) == {"score"}


def test_results_with_predicted_ious(data: DetectionData) -> None:
    rows = [r | {"iou": iou} for r, iou in zip(RESULTS, (0.7, 0.8, 0.9, 1.0), strict=True)]
    found = study_of(data.to_coco(), rows).correlations["predicted IoU"]
    assert found.spearman == pytest.approx(spearmanr([0.7, 0.8, 0.9, 1.0], [0.75, 0.875, 1, 1]).statistic)


def test_a_box_of_another_class_stands_for_nothing(data: DetectionData) -> None:
    study = study_of(data.to_coco(), [row(11, 2, C, 0.9), row(11, 1, (50, 40, 60, 50), 0.8)])
    assert [variant.alone.ap for variant in study.variants if variant.alone is not None] == [0, 0, 0, 0]
    assert study.correlations["score"].pairs == 0
    assert study.correlations["score"].pearson is None


def test_no_results(data: DetectionData) -> None:
    study = study_of(data.to_coco(), [])
    assert all(variant.alone is not None and variant.alone.ap == 0 for variant in study.variants)
    assert study.lost_to_ranking == 0
    assert study.correlations == {}


def test_no_truth(data: DetectionData) -> None:
    study = study_of(data.to_coco() | {"annotations": []}, RESULTS)
    assert len(study.variants) == 4
    assert study.lost_to_ranking is None
    assert study.correlations["score"].pairs == 0


def test_results_on_a_crowd_keep_their_scores(data: DetectionData) -> None:
    truth = data.to_coco()
    for annotation in truth["annotations"]:
        annotation["iscrowd"] = int(annotation["category_id"] == 2)
    study = study_of(truth, RESULTS)
    assert study.correlations["score"].pairs == 3
    # A second dog in the crowd is not counted either way, and the cats are as before.
    assert study.variants[0].alone is not None
    assert study.variants[0].alone.ap == pytest.approx((6 + 2 * 2 / 3 + 2 * 51 / 303) / 10)


def test_results_that_make_no_sense(data: DetectionData) -> None:
    for bad in ({"image_id": 99}, {"category_id": 7}, {"score": math.nan}, {"bbox": [1, 2]}):
        with pytest.raises(UserError, match="result 1 "):
            study_of(data.to_coco(), [RESULTS[0] | bad])


def test_results_are_checked_as_for_a_diagnosis(data: DetectionData) -> None:
    truth = data.to_coco()
    with pytest.raises(UserError, match="divide percentages by 100"):
        study_of(truth, [r | {"score": 100 * r["score"]} for r in RESULTS])
    with pytest.raises(UserError, match="look like corners"):
        study_of(
            data_set(*((image, 1, 200, 200, 100, 100) for image in (1, 2, 3, 4)), images=4),
            [result(0.9, 200, 200, 300, 300, image=image) for image in (1, 2, 3, 4)],
        )
    truth["annotations"][0]["iscrowd"] = "0"
    with pytest.raises(UserError, match="annotation 1 has the iscrowd '0'"):
        study_of(truth, RESULTS)


def test_large_ids_change_nothing_of_the_study(data: DetectionData) -> None:
    truth, k = data.to_coco(), 2**53
    for key, field in (("images", "id"), ("annotations", "image_id")):
        for row_ in truth[key]:
            row_[field] += k
    assert study_of(truth, [r | {"image_id": r["image_id"] + k} for r in RESULTS]) == study_of(data.to_coco(), RESULTS)
