from __future__ import annotations

import io
import json
from collections.abc import Sequence
from contextlib import redirect_stdout
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from tests.helpers.results import Json, data_set, matched, random_case, result
from tightbox.evaluation import matching


def slow_overlap(box: Sequence[float], other: Sequence[float], crowd: bool = False) -> float:
    width = min(box[0] + box[2], other[0] + other[2]) - max(box[0], other[0])
    height = min(box[1] + box[3], other[1] + other[3]) - max(box[1], other[1])
    if width <= 0 or height <= 0:
        return 0.0
    union = box[2] * box[3] + other[2] * other[3] - width * height
    return width * height / (box[2] * box[3] if crowd else union)


def pycocotools_matches(
    ground_truth: Json, results: list[Json], thresholds: Sequence[float], max_detections: int
) -> dict[tuple[float, int], tuple[int, bool]]:
    """The annotation (its place in the file, -1 for none) and the ignore flag by threshold and row of the results."""
    with redirect_stdout(io.StringIO()):
        truth = COCO()
        truth.dataset = json.loads(json.dumps(ground_truth))
        for i, row in enumerate(truth.dataset["annotations"]):
            row["id"] = i + 1
        truth.createIndex()
        evaluation = COCOeval(truth, truth.loadRes(json.loads(json.dumps(results))), "bbox")
        evaluation.params.iouThrs = np.array(thresholds)
        evaluation.params.maxDets = [max_detections]
        evaluation.params.areaRng, evaluation.params.areaRngLbl = [[0, 1e10]], ["all"]
        evaluation.evaluate()
    return {
        (threshold, number - 1): (int(image["dtMatches"][t, d]) - 1, bool(image["dtIgnore"][t, d]))
        for image in evaluation.evalImgs
        if image is not None
        for t, threshold in enumerate(thresholds)
        for d, number in enumerate(image["dtIds"])
    }


@pytest.mark.parametrize("max_detections", [100, 2])
# pycocotools takes no empty results.
@pytest.mark.parametrize("seed", [seed for seed in range(20) if random_case(seed, crowd=0.25)[1]])
def test_every_match_is_that_of_pycocotools(seed: int, max_detections: int) -> None:
    ground_truth, results = random_case(seed, crowd=0.25)
    thresholds = (0.1, 0.5, 0.75, 0.9)
    expected = pycocotools_matches(ground_truth, results, thresholds, max_detections)

    matches = matched(ground_truth, results, *thresholds, max_detections=max_detections)

    found = {
        (threshold, row): (to, ignored)
        for threshold, outcome in zip(thresholds, matches.outcomes, strict=True)
        for row, to, ignored in zip(
            matches.rows.tolist(), outcome.matched.tolist(), outcome.ignored.tolist(), strict=True
        )
    }
    assert found == expected


small_box = st.tuples(*[st.integers(0, 4)] * 2, *[st.integers(0, 4)] * 2)


@settings(deadline=None)
@given(
    truths=st.lists(st.tuples(st.integers(1, 2), st.integers(1, 2), small_box, st.booleans()), max_size=6),
    rows=st.lists(st.tuples(st.integers(1, 2), st.integers(1, 2), small_box, st.integers(0, 3)), max_size=8),
    threshold=st.sampled_from([0.0, 0.25, 0.5, 1.0]),
)
def test_boxes_on_a_small_grid_match_by_the_rules_read_aloud(
    truths: list[Any], rows: list[Any], threshold: float
) -> None:
    """Whole numbers make equal overlaps, equal scores, empty boxes and overlaps exactly at the threshold common."""
    ground_truth = data_set(
        *((image, category, *box) for image, category, box, _ in truths),
        crowds=[i for i, row in enumerate(truths, 1) if row[3]],
        images=2,
        classes=2,
    )
    results = [result(score / 3, *box, image=i, category=c) for i, c, box, score in rows]
    taken: set[int] = set()
    expected = {}
    for row in sorted(range(len(results)), key=lambda row: -results[row]["score"]):
        image, category, box, _ = rows[row]
        rivals = [
            (not crowd, slow_overlap(box, other, crowd), at)
            for at, (i, c, other, crowd) in enumerate(truths)
            if (i, c) == (image, category) and at not in taken
        ]
        to = max((r for r in rivals if r[1] > 0 and r[1] >= min(threshold, 1 - 1e-10)), default=(False, 0.0, -1))
        expected[row] = (to[2], to[1])
        if to[0]:
            taken.add(to[2])

    outcome = (matches := matched(ground_truth, results, threshold)).at(threshold)

    found = zip(matches.rows.tolist(), outcome.matched.tolist(), outcome.ious.tolist(), strict=True)
    assert {row: (to, iou) for row, to, iou in found} == expected


@pytest.mark.parametrize("seed", range(10))
@pytest.mark.parametrize("at_once", [1, 7, 1 << 18])
def test_best_boxes_of_the_same_and_of_other_classes(seed: int, at_once: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(matching, "PAIRS_AT_ONCE", at_once)
    ground_truth, results = random_case(seed, crowd=0.2)

    matches = matched(ground_truth, results)

    assert sorted(matches.rows.tolist()) == list(range(len(results)))
    for i, number in enumerate(matches.rows.tolist()):
        row = results[number]
        for same, truth, iou in (
            (True, matches.best_gt[i], matches.best_iou[i]),
            (False, matches.other_gt[i], matches.other_iou[i]),
        ):
            overlap = [
                slow_overlap(row["bbox"], other["bbox"])
                if other["image_id"] == row["image_id"]
                and (other["category_id"] == row["category_id"]) is same
                and not other["iscrowd"]
                else 0.0
                for other in ground_truth["annotations"]
            ]
            best = max(overlap, default=0.0)
            assert iou == best
            assert truth == (overlap.index(best) if best else -1)


def test_detections_stand_by_class_then_score_then_image() -> None:
    rows = [
        result(0.5, 0, 0, 4, 4, image=2),
        result(0.5, 0, 0, 4, 4, image=1),
        result(0.9, 0, 0, 4, 4, image=2),
        result(0.1, 0, 0, 4, 4, image=1, category=2) | {"iou": 0.7},
        result(0.5, 0, 0, 4, 4, image=1),
    ]
    matches = matched(data_set(images=2, classes=3), rows)
    assert matches.rows.tolist() == [2, 1, 4, 0, 3]
    assert matches.labels.tolist() == [0, 0, 0, 0, 1]
    np.testing.assert_array_equal(matches.ious, [np.nan] * 4 + [0.7])
    assert [(found, rows.tolist()) for _, found, rows in matches.counted(0.5)] == [(0, [0, 1, 2, 3]), (0, [4]), (0, [])]


def test_the_better_score_goes_first_and_the_loser_takes_what_is_left() -> None:
    # GroundTruth A = [0, 10) and B = [5, 15) in a strip of height 1; the first detection [2, 12) overlaps both by
    # (8 + 8) / ...: IoU with A = 8 / 12, with B = 7 / 13, so it takes A. The second, A itself, is left with
    # B: 5 / 15 = 1/3 < 0.5 and so with nothing, but at 0.3 it gets B.
    truth = data_set((1, 1, 0, 0, 10, 1), (1, 1, 5, 0, 10, 1))
    matches = matched(truth, [result(0.9, 2, 0, 10, 1), result(0.8, 0, 0, 10, 1)], 0.3, 0.5)
    assert matches.at(0.5).matched.tolist() == [0, -1]
    assert matches.at(0.3).matched.tolist() == [0, 1]
    assert matches.at(0.3).ious.tolist() == pytest.approx([8 / 12, 1 / 3])
    assert matches.best_iou.tolist() == pytest.approx([8 / 12, 1.0])  # whoever took it
    assert matches.at(0.5).hit.tolist() == [True, False]
    assert matches.at(0.5).wrong.tolist() == [False, True]


def test_of_equal_overlaps_the_last_true_box_and_the_first_detection() -> None:
    truth = data_set((1, 1, 0, 0, 10, 10), (1, 1, 0, 0, 10, 10))  # one object annotated twice
    matches = matched(truth, [result(0.5, 0, 0, 10, 10), result(0.5, 0, 0, 10, 10)])
    assert matches.rows.tolist() == [0, 1]
    assert matches.at(0.5).matched.tolist() == [1, 0]


def test_a_crowd_takes_any_number_but_only_what_is_left() -> None:
    # The crowd is [0, 10) x [0, 10), the object its left half. Each detection is the left half: IoU 1 with the object,
    # and wholly inside the crowd. The first takes the object, the other two the crowd.
    truth = data_set((1, 1, 0, 0, 10, 10), (1, 1, 0, 0, 5, 10), crowds=[1])
    outcome = matched(truth, [result(s, 0, 0, 5, 10) for s in (0.9, 0.8, 0.7)]).at(0.5)
    assert outcome.matched.tolist() == [1, 0, 0]
    assert outcome.ignored.tolist() == [False, True, True]
    assert outcome.hit.tolist() == [True, False, False]
    assert not outcome.wrong.any()


def test_nothing_matches_without_overlap_even_at_zero() -> None:
    truth = data_set((1, 1, 0, 0, 10, 10), (1, 1, 100, 100, 0, 0))
    rows = [result(0.9, 10, 0, 10, 10), result(0.8, 100, 100, 0, 0), result(0.7, 9, 9, 10, 10)]
    assert matched(truth, rows, 0.0).at(0.0).matched.tolist() == [-1, -1, 0]


@pytest.mark.parametrize(
    ("truth", "rows"),
    [
        (data_set(images=0, classes=0), []),  # nothing at all
        (data_set(), []),  # an image
        (data_set((1, 1, 0, 0, 4, 4)), []),  # no results
        (data_set(), [result(0.5, 0, 0, 4, 4)]),  # no truth
        (data_set((1, 1, 0, 0, 4, 4), images=2), [result(0.5, 0, 0, 4, 4, image=2)]),  # on another image
        (data_set((1, 1, 0, 0, 4, 4), classes=2), [result(0.5, 9, 9, 4, 4, category=2)]),  # nothing alike
    ],
)
def test_nothing_to_match(truth: Json, rows: list[Json]) -> None:
    matches = matched(truth, rows, 0.0, 0.5)
    assert len(matches) == len(rows)
    for outcome in matches.outcomes:
        assert outcome.matched.tolist() == [-1] * len(rows)
        assert outcome.wrong.all()
    assert matches.best_gt.tolist() == matches.other_gt.tolist() == [-1] * len(rows)


def test_all_crowd_is_no_truth() -> None:
    matches = matched(data_set((1, 1, 0, 0, 10, 10), crowds=[1]), [result(0.5, 0, 0, 4, 4), result(0.4, 90, 0, 4, 4)])
    assert matches.ground_truth.positives.tolist() == [0]
    assert matches.at(0.5).ignored.tolist() == [True, False]
    assert matches.best_iou.tolist() == [0, 0]


def test_max_detections_counts_in_each_image_and_class() -> None:
    rows = [result(0.1 * k, 0, 0, 4, 4, image=i, category=c) for k in (1, 2, 3) for i in (1, 2) for c in (1, 2)]
    matches = matched(data_set(images=2, classes=2), rows, max_detections=2)
    assert len(matches) == 8
    assert matches.scores.min() == pytest.approx(0.2)
    assert len(matched(data_set(images=2, classes=2), rows, max_detections=None)) == 12


def test_an_unmatched_threshold_is_named() -> None:
    with pytest.raises(ValueError, match=r"0\.75"):
        matched(data_set(), [], 0.5).at(0.75)
