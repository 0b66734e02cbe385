from __future__ import annotations

import copy
import io
import json
import warnings
from contextlib import redirect_stdout
from typing import Any

import numpy as np
import pytest
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from tests.helpers.results import Json, result
from tightbox.errors import UserError
from tightbox.evaluation.coco import CocoMetrics, evaluate
from tightbox.evaluation.coco_files import from_coco

SCALARS = ("ap", "ap50", "ap60", "ap70", "ap75", "ap80", "ap90", "ap_small", "ap_medium", "ap_large", "ar")


def truth_of(*boxes: tuple[float, ...], images: int = 1) -> Json:
    """A data set of one class; each box is (image_id, x, y, w, h)."""
    return {
        "images": [{"id": i} for i in range(1, images + 1)],
        "categories": [{"id": 1, "name": "cell"}],
        "annotations": [
            {"id": i, "image_id": b[0], "category_id": 1, "bbox": list(b[1:]), "area": b[3] * b[4], "iscrowd": 0}
            for i, b in enumerate(boxes, 1)
        ],
    }


def evaluated(ground_truth: Json, results: list[Json], max_detections: int = 100) -> CocoMetrics:
    return evaluate(*from_coco(ground_truth, results), max_detections)


def case_with_gaps(seed: int) -> tuple[Json, list[Json]]:
    """A data set with gaps in its ids, crowds, empty images and classes, and jittered detections with tied scores."""
    rng = np.random.default_rng(seed)
    images = sorted(rng.choice(1000, rng.integers(1, 12), replace=False).tolist())
    categories = sorted(rng.choice(90, rng.integers(1, 5), replace=False).tolist())
    annotations: list[Json] = []
    results = []
    for image in images[: rng.integers(1, len(images) + 1)]:
        for _ in range(rng.integers(0, 9)):
            x, y, w, h = rng.uniform((0, 0, 5, 5), (200, 200, 160, 160))
            crowd = int(rng.random() < 0.15)
            category = int(rng.choice(categories[: max(1, len(categories) - 1)]))
            box = [x, y, w, h]
            annotation = {"image_id": image, "category_id": category, "bbox": box, "area": w * h * rng.uniform(0.5, 1)}
            annotations.append(annotation | {"id": 7 * len(annotations) + 1, "iscrowd": crowd})
            for _ in range(rng.integers(0, 4)):
                jitter = box + rng.normal(0, 0.08 * min(w, h), 4)
                found = result(round(rng.random(), 1), *np.maximum(jitter, 1).tolist(), image=image, category=category)
                results.append(found)
        results.append(result(rng.random(), 0, 0, 30, 30, image=image, category=categories[-1]))
    return {
        "images": [{"id": i, "width": 400, "height": 400} for i in images],
        "categories": [{"id": c, "name": f"class {c}"} for c in categories],
        "annotations": annotations,
    }, results


def mean(values: np.ndarray) -> float | None:
    there = values[values > -1]
    return float(there.mean()) if there.size else None


def oracle(ground_truth: Json, results: list[Json], max_detections: int) -> tuple[Json, dict[str, list[float | None]]]:
    """pycocotools' figures: its own summary where it has one, else from its precision array."""
    with redirect_stdout(io.StringIO()):
        truth = COCO()
        truth.dataset = copy.deepcopy(ground_truth)
        truth.createIndex()
        evaluation = COCOeval(truth, truth.loadRes(copy.deepcopy(results)), "bbox")
        evaluation.params.maxDets = [1, 2, max_detections]
        evaluation.evaluate()
        evaluation.accumulate()
    p = evaluation.eval["precision"][..., 2]  # [T, R, K, A]
    figures = {f"ap{50 + 5 * t}": mean(p[t, :, :, 0]) for t in (0, 2, 4, 5, 6, 8)}
    figures |= {"ap": mean(p[..., 0]), "ar": mean(evaluation.eval["recall"][:, :, 0, 2])}
    figures |= {"ap_small": mean(p[..., 1]), "ap_medium": mean(p[..., 2]), "ap_large": mean(p[..., 3])}
    if max_detections == 100:
        with redirect_stdout(io.StringIO()):
            evaluation.summarize()
        for name, i in {"ap": 0, "ap50": 1, "ap75": 2, "ap_small": 3, "ap_medium": 4, "ap_large": 5, "ar": 8}.items():
            stat = evaluation.stats[i]
            assert figures[name] == (None if stat == -1 else pytest.approx(stat))
    per_class = {
        category["name"]: [mean(p[..., k, 0]), mean(p[0, :, k, 0]), mean(p[5, :, k, 0])]
        for k, category in enumerate(ground_truth["categories"])
    }
    return figures, per_class


@pytest.mark.parametrize("max_detections", [100, 5])
@pytest.mark.parametrize("seed", range(20))
def test_every_figure_is_that_of_pycocotools(seed: int, max_detections: int) -> None:
    ground_truth, results = case_with_gaps(seed)
    figures, per_class = oracle(ground_truth, results, max_detections)

    metrics = evaluated(ground_truth, results, max_detections)

    for name in SCALARS:
        assert getattr(metrics, name) == pytest.approx(figures[name], abs=1e-6), name
    assert list(metrics.per_class) == list(per_class)
    for name, row in metrics.per_class.items():
        assert [row.ap, row.ap50, row.ap75] == [pytest.approx(v, abs=1e-6) for v in per_class[name]]


def test_perfect_results_are_perfect() -> None:
    ground_truth = truth_of((1, 0, 0, 10, 10), (1, 50, 50, 60, 60), (2, 5, 5, 100, 120), images=3)
    results = [result(0.9, *row["bbox"], image=row["image_id"]) for row in ground_truth["annotations"]]

    metrics = evaluated(ground_truth, results)

    assert [getattr(metrics, name) for name in SCALARS] == [pytest.approx(1.0)] * len(SCALARS)
    assert metrics.per_class["cell"].ap == pytest.approx(1.0)
    assert metrics.per_class["cell"].boxes == 3


def test_a_false_alarm_between_two_hits() -> None:
    # By score: hit, miss, hit. Recall after each: 1/2, 1/2, 1; precision: 1, 1/2, 2/3. The envelope is 1 up to recall
    # 0.50 (the 51 points 0.00 ... 0.50) and 2/3 beyond (the 50 points 0.51 ... 1.00): AP = (51 + 50 * 2/3) / 101.
    ground_truth = truth_of((1, 0, 0, 10, 10), (1, 100, 0, 10, 10))
    results = [result(0.9, 0, 0, 10, 10), result(0.8, 50, 50, 10, 10), result(0.7, 100, 0, 10, 10)]

    metrics = evaluated(ground_truth, results)

    expected = (51 + 50 * 2 / 3) / 101  # the same at each threshold, as the hits are exact
    assert metrics.ap == pytest.approx(expected)
    assert metrics.ap90 == pytest.approx(expected)
    assert metrics.ar == pytest.approx(1.0)


def test_a_box_counts_up_to_its_own_iou() -> None:
    # The result is the left 8 of the truth's 10 columns: IoU = 80 / 100. It counts at 0.50, 0.55, ..., 0.80, which are
    # 7 of the 10 thresholds, and there it is the only result and a hit: AP = 7/10.
    metrics = evaluated(truth_of((1, 0, 0, 10, 10)), [result(0.5, 0, 0, 8, 10)])

    assert metrics.ap == pytest.approx(0.7)
    assert metrics.ap80 == pytest.approx(1.0)
    assert metrics.ap90 == pytest.approx(0.0)
    assert metrics.ar == pytest.approx(0.7)


def test_max_detections_keeps_the_best() -> None:
    results = [result(0.1, 0, 0, 10, 10), result(0.9, 50, 50, 10, 10)]
    assert evaluated(truth_of((1, 0, 0, 10, 10)), results, max_detections=1).ap == 0
    # the miss comes first: precision at every recall is 1/2
    assert evaluated(truth_of((1, 0, 0, 10, 10)), results, max_detections=2).ap == pytest.approx(0.5)


def test_no_results_score_zero() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        metrics = evaluated(truth_of((1, 0, 0, 10, 10)), [])
    assert (metrics.ap, metrics.ap50, metrics.ap_small, metrics.ar) == (0, 0, 0, 0)
    assert metrics.ap_large is None


@pytest.mark.parametrize(
    ("ground_truth", "results"),
    [
        (truth_of(), []),  # an image, no boxes, no results
        (truth_of(), [result(0.5, 0, 0, 4, 4)]),  # a result where nothing is
        (truth_of(images=0), []),  # no image
        ({"images": [], "categories": [], "annotations": []}, []),  # nothing at all
    ],
)
def test_without_truth_there_is_no_figure(ground_truth: Json, results: list[Json]) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        metrics = evaluated(ground_truth, results)
    assert [getattr(metrics, name) for name in SCALARS] == [None] * len(SCALARS)
    assert "null" in json.dumps(metrics.to_dict(), allow_nan=False)
    assert "-" in metrics.table()


def test_annotation_id_zero_and_missing_area_are_fine() -> None:
    ground_truth = truth_of((1, 0, 0, 10, 10))
    ground_truth["annotations"][0]["id"] = 0
    del ground_truth["annotations"][0]["area"], ground_truth["annotations"][0]["iscrowd"]
    metrics = evaluated(ground_truth, [result(0.5, 0, 0, 10, 10)])
    assert metrics.ap == metrics.ap_small == pytest.approx(1.0)
    assert metrics.ap_medium is None


@pytest.mark.parametrize("first", [2**53, 2**62, 10**30])
def test_ids_of_any_size_give_the_figures_of_small_ones(first: int) -> None:
    small, rows = case_with_gaps(3)
    # Neighbours, of which float64 holds every second one at best.
    image_at, category_at = (
        {row["id"]: first + i for i, row in enumerate(small[key])} for key in ("images", "categories")
    )

    def moved(row: Json) -> Json:
        return row | {"image_id": image_at[row["image_id"]], "category_id": category_at[row["category_id"]]}

    large = {
        "images": [row | {"id": image_at[row["id"]]} for row in small["images"]],
        "categories": [row | {"id": category_at[row["id"]]} for row in small["categories"]],
        "annotations": [moved(row) | {"id": first + row["id"]} for row in small["annotations"]],
    }
    expected = evaluated(small, rows)
    assert expected.ap
    assert evaluated(large, [moved(row) for row in rows]) == expected


def test_a_null_area_is_that_of_the_box() -> None:
    ground_truth = truth_of((1, 0, 0, 10, 10))
    ground_truth["annotations"][0]["area"] = None
    metrics = evaluated(ground_truth, [result(0.5, 0, 0, 10, 10)])
    assert metrics.ap_small == pytest.approx(1.0)
    assert metrics.ap_medium is None


@pytest.mark.parametrize(("value", "boxes"), [(None, 2), (0, 2), (False, 2), (1, 1), (True, 1)])
def test_what_is_a_crowd(value: Any, boxes: int) -> None:
    ground_truth = truth_of((1, 0, 0, 10, 10), (1, 50, 50, 40, 40))
    ground_truth["annotations"][1]["iscrowd"] = value
    assert evaluated(ground_truth, []).per_class["cell"].boxes == boxes


def test_a_crowd_is_neither_hit_nor_miss() -> None:
    ground_truth = truth_of((1, 0, 0, 10, 10), (1, 50, 50, 40, 40))
    ground_truth["annotations"][1]["iscrowd"] = 1
    metrics = evaluated(ground_truth, [result(0.9, 55, 55, 10, 10), result(0.5, 0, 0, 10, 10)])
    assert metrics.ap == pytest.approx(1.0)
    assert metrics.per_class["cell"].boxes == 1


def test_two_classes_of_one_name_stay_apart() -> None:
    ground_truth = truth_of((1, 0, 0, 10, 10))
    ground_truth["categories"].append({"id": 2, "name": "cell"})
    assert list(evaluated(ground_truth, []).per_class) == ["cell", "cell (2)"]


def test_inputs_stay_as_they_were() -> None:
    ground_truth, results = case_with_gaps(3)
    before = copy.deepcopy((ground_truth, results))
    evaluated(ground_truth, results)
    assert (ground_truth, results) == before


@pytest.mark.parametrize(
    ("row", "message"),
    [
        (result(float("nan"), 0, 0, 4, 4), "result 1 has the score nan"),  # score that is no number
        (result(0.5, 0, 0, float("inf"), 4), "result 1 .*finite"),  # endless box
        (result(0.5, 0, 0, 4), "result 1 must have"),  # three coordinates
        ({"image_id": 1, "category_id": 1, "bbox": [0, 0, 4, 4]}, "result 1 has the score None"),  # no score
        (result(0.5, 0, 0, 4, 10**400), "result 1 must have"),  # too large for a float
        (result(0.5, 0, 0, 4, 4) | {"image_id": [1]}, r"result 1 has the image_id \[1\]"),  # a list
        (result(0.5, 0, 0, 4, 4, image=9), "image_id 9, which .* check that the files belong together"),  # unknown
        (result(0.5, 0, 0, 4, 4, category=9), "category_id 9"),  # unknown category
    ],
)
def test_bad_results_are_named(row: Json, message: str) -> None:
    with pytest.raises(UserError, match=message):
        evaluated(truth_of((1, 0, 0, 10, 10)), [row])


def test_bad_annotations_are_named() -> None:
    ground_truth = truth_of((1, 0, 0, 10, 10), (7, 0, 0, 10, 10))
    with pytest.raises(UserError, match=r"annotation 2 has the image_id 7, which .* not know"):
        evaluated(ground_truth, [])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"iscrowd": "0"}, "annotation 1 has the iscrowd '0', which is neither 0 nor 1; write"),  # text
        ({"iscrowd": 2}, "annotation 1 has the iscrowd 2"),  # another number
        ({"area": "large"}, "annotation 1 must have a number as its area"),  # text
        ({"area": float("nan")}, "annotation 1 has the area nan, which must be finite"),  # NaN
    ],
)
def test_bad_fields_of_annotations_are_named(change: Json, message: str) -> None:
    ground_truth = truth_of((1, 0, 0, 10, 10))
    ground_truth["annotations"][0] |= change
    with pytest.raises(UserError, match=message):
        evaluated(ground_truth, [])


def test_a_category_without_a_name_is_named() -> None:
    ground_truth = truth_of((1, 0, 0, 10, 10)) | {"categories": [{"id": 1}]}
    with pytest.raises(UserError, match="the category with the id 1 has no name; add one"):
        evaluated(ground_truth, [])


def test_table_and_dictionary_tell_the_same() -> None:
    metrics = evaluated(truth_of((1, 0, 0, 10, 10)), [result(0.5, 0, 0, 8, 10)])
    assert metrics.to_dict()["per_class"]["cell"] == pytest.approx({"ap": 0.7, "ap50": 1.0, "ap75": 1.0, "boxes": 1})
    lines = metrics.table().splitlines()
    assert lines[2].split() == ["cell", "70.0", "100.0", "100.0", "1"]
    assert len(lines[0]) == len(lines[1]) == len(lines[2])


def test_nothing_is_printed(capfd: pytest.CaptureFixture[str]) -> None:
    evaluated(*case_with_gaps(1))
    assert capfd.readouterr() == ("", "")
