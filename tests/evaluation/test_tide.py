from __future__ import annotations

import json
import math
from dataclasses import astuple
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.helpers.references import DATA_SETS
from tests.helpers.results import Json, data_set, matched, random_case, real_case, result
from tightbox.evaluation.coco import evaluate
from tightbox.evaluation.coco_files import from_coco
from tightbox.evaluation.tide import KINDS, Errors, error_kinds, tide

HALF = 51 / 101  # AP of a perfect detector that finds one of two objects: the recalls 0.00, 0.01, ..., 0.50 of 101


def kinds(ground_truth: Json, results: list[Json]) -> list[str]:
    """The error of each result, in the order of the results."""
    matches = matched(ground_truth, results)
    names = dict(zip(matches.rows.tolist(), error_kinds(matches).tolist(), strict=True))
    return ["" if names[i] < 0 else KINDS[names[i]] for i in range(len(results))]


@pytest.mark.parametrize(
    ("row", "kind"),
    [
        (result(0.5, 0, 0, 10, 10), ""),  # the object of its class: IoU 1
        (result(0.5, 0, 0, 5, 10), ""),  # half of it: IoU 50 / 100, just enough
        (result(0.5, 0, 0, 4.9, 10), "localisation"),  # IoU 0.49
        (result(0.5, 0, 0, 1, 10), "localisation"),  # IoU 0.1, just enough
        (result(0.5, 0, 0, 0.9, 10), "background"),  # IoU 0.09
        (result(0.5, 200, 200, 9, 9), "background"),  # on nothing
        (result(0.5, 100, 0, 10, 10), "classification"),  # the other class's object
        (result(0.5, 100, 0, 5, 10), "classification"),  # half of that: IoU 0.5
        (result(0.5, 100, 0, 4.9, 10), "both"),  # IoU 0.49 with the other class's object
        (result(0.5, 100, 0, 1, 10), "background"),  # IoU 0.1 with it, at most the background's
        (result(0.5, 0, 0, 10, 10, category=3), "classification"),  # of a class without objects
    ],
)
def test_what_is_wrong_with_a_detection(row: Json, kind: str) -> None:
    truth = data_set((1, 1, 0, 0, 10, 10), (1, 2, 100, 0, 10, 10), classes=3)
    assert kinds(truth, [row]) == [kind]


def test_the_second_on_an_object_is_a_duplicate() -> None:
    rows = [result(0.8, 0, 0, 10, 9), result(0.9, 0, 0, 10, 10), result(0.7, 0, 0, 4, 10)]
    assert kinds(data_set((1, 1, 0, 0, 10, 10)), rows) == ["duplicate", "", "localisation"]


def test_place_is_blamed_before_class_before_duplicate() -> None:
    # Objects of class 1 at [0, 10) and of class 2 at [0, 8), all of height 10. A box [0, 4) of class 1 has IoU 0.4
    # with its own and 0.5 with the other. A second box [0, 8) of class 1 has 0.8 with its own, taken, and 1 with it.
    truth = data_set((1, 1, 0, 0, 10, 10), (1, 2, 0, 0, 8, 10), classes=2)
    rows = [result(0.9, 0, 0, 10, 10), result(0.8, 0, 0, 8, 10), result(0.7, 0, 0, 4, 10)]
    assert kinds(truth, rows) == ["", "classification", "localisation"]


def test_a_crowd_is_no_object() -> None:
    truth = data_set((1, 1, 0, 0, 10, 10), (1, 2, 100, 0, 10, 10), crowds=[1, 2], classes=2)
    rows = [result(0.9, 0, 0, 5, 5), result(0.8, 100, 0, 5, 5), result(0.7, 7, 7, 10, 10)]
    assert kinds(truth, rows) == ["", "background", "background"]  # in its crowd; in another's; 9% in its crowd


def test_each_error_mended_alone() -> None:
    # Class 1 has the objects A at x = 0 and B at 100, class 2 C at 200 and D at 300. By score:
    # class 1: 0.95 on nothing (background), 0.9 A (hit), 0.8 A again (duplicate), 0.7 the left 0.3 of C (both),
    #          0.6 the left 0.4 of B (localisation)
    # class 2: 0.9 C (hit), 0.5 nothing of its class: it is on B (classification)
    # D is missed. B is not: two detections would find it if they were fixed.
    # Class 1: false, hit, false, false, false of 2 objects: precision 1/2 up to recall 1/2: AP = HALF / 2.
    # Class 2: hit, false of 2 objects: AP = HALF.
    truth = data_set(
        (1, 1, 0, 0, 10, 10), (1, 1, 100, 0, 10, 10), (1, 2, 200, 0, 10, 10), (1, 2, 300, 0, 10, 10), classes=2
    )
    rows = [
        result(0.95, 50, 50, 9, 9),
        result(0.9, 0, 0, 10, 10),
        result(0.8, 0, 0, 10, 10),
        result(0.7, 200, 0, 3, 10),
        result(0.6, 100, 0, 4, 10),
        result(0.9, 200, 0, 10, 10, category=2),
        result(0.5, 100, 0, 10, 10, category=2),
    ]
    report = tide(matched(truth, rows))

    assert report.count == Errors(1, 1, 1, 1, 1, 1)
    assert report.per_class[1].count == Errors(0, 1, 1, 1, 1, 0)
    assert report.per_class[2].count == Errors(1, 0, 0, 0, 0, 1)
    assert report.ap == pytest.approx(0.75 * HALF)
    # B goes to the localisation error, which has the better score; so fixing the class only removes that detection.
    # Localisation, class 1: false, hit, false, false, hit: precision 1/2 up to recall 1/2, then 2/5 for 50 recalls.
    # Both or duplicate removed: false, hit, false, false: no change. Background: hit, false, false, false: AP = HALF.
    # Missed: class 2 is left with C: AP = 1.
    first = {"localisation": 50 / 101 * 2 / 5, "background": HALF / 2}
    second = {"missed": 1 - HALF}
    for i, kind in enumerate(KINDS):
        gains = first.get(kind, 0.0), second.get(kind, 0.0)
        assert astuple(report.per_class[1].gain)[i] == pytest.approx(gains[0], abs=1e-12), kind
        assert astuple(report.per_class[2].gain)[i] == pytest.approx(gains[1], abs=1e-12), kind
        assert astuple(report.gain)[i] == pytest.approx(sum(gains) / 2, abs=1e-12), kind


def test_a_mended_class_counts_for_the_right_class() -> None:
    # The one detection is B's, an object of class 2, but says class 1: fixed, class 2 is perfect. Class 1 stays at 0.
    truth = data_set((1, 1, 0, 0, 10, 10), (1, 2, 100, 0, 10, 10), classes=2)
    report = tide(matched(truth, [result(0.5, 100, 0, 10, 10)]))
    assert report.ap == 0.0
    assert report.gain.classification == pytest.approx(0.5)
    assert [report.per_class[k].gain.classification for k in (1, 2)] == [0.0, pytest.approx(1.0)]
    assert report.count == Errors(1, 0, 0, 0, 0, 1)  # the object of class 1 is missed


def test_of_equal_scores_the_first_in_the_file_is_mended() -> None:
    truth = data_set((1, 2, 100, 0, 10, 10), (1, 1, 300, 0, 9, 9), classes=2)
    loose, of_wrong_class = result(0.5, 100, 0, 4, 10, category=2), result(0.5, 100, 0, 10, 10, category=1)
    gain = tide(matched(truth, [loose, of_wrong_class])).gain
    assert gain.localisation == pytest.approx(0.5)
    assert gain.classification == 0.0
    gain = tide(matched(truth, [of_wrong_class, loose])).gain
    # The loose one stays behind the fixed one: hit, false in class 2, whose AP is 1.
    assert gain.localisation == 0.0
    assert gain.classification == pytest.approx(0.5)


def test_a_class_with_all_objects_missed_is_not_counted_once_they_are_forgiven() -> None:
    truth = data_set((1, 1, 0, 0, 10, 10), (1, 2, 100, 0, 10, 10), classes=2)
    report = tide(matched(truth, [result(0.5, 0, 0, 10, 10)]))
    assert report.ap == pytest.approx(0.5)
    assert report.gain.missed == pytest.approx(0.5)  # class 1 alone: AP 1
    assert report.per_class[2].gain.missed is None


@pytest.mark.parametrize(
    ("truth", "rows", "count"),
    [
        (data_set(images=0, classes=0), [], Errors(0, 0, 0, 0, 0, 0)),  # nothing at all
        (data_set(), [result(0.5, 0, 0, 4, 4)], Errors(0, 0, 0, 0, 1, 0)),  # no truth
        (data_set((1, 1, 0, 0, 9, 9), crowds=[1]), [result(0.5, 0, 0, 4, 4)], Errors(0, 0, 0, 0, 0, 0)),  # all crowd
    ],
)
def test_without_truth_there_is_no_ap_to_gain(truth: Json, rows: list[Json], count: Errors) -> None:
    report = tide(matched(truth, rows))
    assert report.ap is None
    assert report.gain == Errors(None, None, None, None, None, None)
    assert report.count == count


def test_no_results_miss_everything() -> None:
    report = tide(matched(data_set((1, 1, 0, 0, 10, 10)), []))
    assert (report.ap, report.gain.background, report.gain.missed) == (0.0, 0.0, None)
    assert report.count.missed == 1


@pytest.mark.parametrize("seed", range(12))
def test_ap_is_cocos_and_no_gain_is_negative(seed: int) -> None:
    ground_truth, results = random_case(seed, crowd=0.2)
    report = tide(matched(ground_truth, results))
    metrics = evaluate(*from_coco(ground_truth, results))
    assert report.ap == (None if metrics.ap50 is None else pytest.approx(metrics.ap50, abs=1e-12))
    for row, expected in zip(report.per_class.values(), metrics.per_class.values(), strict=True):
        assert row.ap == (None if expected.ap50 is None else pytest.approx(expected.ap50, abs=1e-12))
        assert all(gain is None or gain >= -1e-12 for gain in astuple(row.gain))


def test_sums_over_classes_are_the_whole() -> None:
    report = tide(matched(*random_case(6)))
    for i in range(len(KINDS)):
        assert astuple(report.count)[i] == sum(astuple(row.count)[i] for row in report.per_class.values())
    assert sum(astuple(report.count)) > 0


def cases() -> dict[str, tuple[Json, list[Json]]]:
    """Without crowds, which the published evaluators treat each in its own way."""
    made = {str(seed): random_case(seed, crowd=0.0) for seed in range(0, 80, 2)}  # no equal scores: none has a rule
    made |= {name: real_case(name) for name in DATA_SETS}
    for ground_truth, _ in made.values():
        ground_truth["annotations"] = [row for row in ground_truth["annotations"] if not row["iscrowd"]]
    return {name: case for name, case in made.items() if case[0]["annotations"] and case[1]}


def test_agrees_with_hotcoco(tmp_path: Path) -> None:
    hotcoco: Any = pytest.importorskip("hotcoco")
    names = dict(zip(KINDS, ("Cls", "Loc", "Both", "Dupe", "Bkg", "Miss"), strict=True))
    for name, (ground_truth, results) in cases().items():
        (tmp_path / "gt.json").write_text(json.dumps(ground_truth))
        (tmp_path / "dt.json").write_text(json.dumps(results))
        coco = hotcoco.COCO(str(tmp_path / "gt.json"))
        evaluation = hotcoco.COCOeval(coco, coco.load_res(str(tmp_path / "dt.json")), "bbox")
        evaluation.evaluate()
        theirs = evaluation.tide_errors(0.5, 0.1)

        report = tide(matched(ground_truth, results))

        assert report.ap == pytest.approx(theirs["ap_base"], abs=1e-9)
        for kind, short in names.items():
            assert getattr(report.count, kind) == theirs["counts"][short], (name, kind)
            # Where all objects of a class are missed, hotcoco leaves its AP at 0 and we leave the class out.
            if not (
                kind == "missed"
                and any(row.ap is not None and row.gain.missed is None for row in report.per_class.values())
            ):
                assert getattr(report.gain, kind) == pytest.approx(theirs["delta_ap"][short], abs=1e-9), (name, kind)


def test_agrees_with_vernier_where_it_means_the_same() -> None:
    """Its gains are of AP over all thresholds, and its order of blame differs, but for the background."""
    published: Any = pytest.importorskip("vernier._tide")
    for name, (ground_truth, results) in cases().items():
        files = [json.dumps(part).encode() for part in (ground_truth, results)]
        histogram = published.fp_iou_histogram(*files)
        theirs = published.error_decomposition(*files)

        matches = matched(ground_truth, results)

        wrong = matches.at(0.5).wrong
        ours = sorted(zip(matches.best_iou[wrong], matches.other_iou[wrong], strict=True))
        np.testing.assert_allclose(ours, sorted(zip(histogram.iou_same, histogram.iou_cross, strict=True)), atol=1e-12)
        dropped = set(matches.rows[error_kinds(matches) == KINDS.index("background")].tolist())
        before = evaluate(*from_coco(ground_truth, results)).ap
        kept = [row for i, row in enumerate(results) if i not in dropped]
        after = evaluate(*from_coco(ground_truth, kept)).ap
        assert before is not None
        assert after is not None
        assert math.isclose(after - before, theirs.delta["bkg"], abs_tol=1e-9), name
