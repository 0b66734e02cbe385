from __future__ import annotations

import json
import math
from typing import Any

import pytest

from tests.helpers.references import DATA_SETS
from tests.helpers.results import Json, data_set, matched, random_case, real_case, result
from tightbox.evaluation.lrp import Lrp, LrpReport, lrp, optimal_lrp
from tightbox.evaluation.matching import Matches

COMPONENTS = ("error", "localisation", "false_positives", "false_negatives")


def slow_lrp(matches: Matches, label: int, score_threshold: float, tau: float) -> Lrp:
    """The definition: LRP of the detections of a class that have at least some score."""
    outcome = matches.at(tau)
    chosen = [i for i in range(len(matches)) if matches.labels[i] == label and matches.scores[i] >= score_threshold]
    ious = [float(outcome.ious[i]) for i in chosen if outcome.hit[i]]
    false = sum(bool(outcome.wrong[i]) for i in chosen)
    missed = int(matches.ground_truth.positives[label]) - len(ious)
    total = sum((1 - iou) / (1 - tau) for iou in ious) + false + missed
    return Lrp(
        error=total / (len(ious) + false + missed),
        localisation=sum(1 - iou for iou in ious) / len(ious) if ious else None,
        false_positives=false / (len(ious) + false) if ious or false else None,
        false_negatives=missed / (len(ious) + missed),
        threshold=score_threshold,
    )


def assert_same(found: Lrp, expected: Lrp) -> None:
    for name in (*COMPONENTS, "threshold"):
        value = getattr(expected, name)
        assert getattr(found, name) == (None if value is None else pytest.approx(value, abs=1e-12)), name


def test_a_hit_a_false_alarm_and_a_miss() -> None:
    # Two objects; detections of falling score: the left 8 of the first one's 10 columns (IoU 0.8), a false alarm, the
    # second one exactly (IoU 1).
    # From 0.9: 1 hit, 0 false, 1 missed: (0.2 / 0.5 + 0 + 1) / 2 = 0.7
    # From 0.8: 1 hit, 1 false, 1 missed: (0.4 + 1 + 1) / 3 = 0.8
    # From 0.7: 2 hits, 1 false, 0 missed: (0.4 + 0 + 1) / 3 = 0.4667, the least.
    truth = data_set((1, 1, 0, 0, 10, 10), (1, 1, 100, 0, 10, 10))
    matches = matched(truth, [result(0.9, 0, 0, 8, 10), result(0.8, 50, 50, 9, 9), result(0.7, 100, 0, 10, 10)])

    best = Lrp(1.4 / 3, localisation=0.1, false_positives=1 / 3, false_negatives=0.0, threshold=0.7)
    assert_same(optimal_lrp(matches).per_class[1], best)
    assert_same(lrp(matches, 0.9).per_class[1], Lrp(0.7, 0.2, 0.0, 0.5, 0.9))
    assert_same(lrp(matches, 0.75).per_class[1], Lrp(0.8, 0.2, 0.5, 0.5, 0.75))
    assert_same(lrp(matches, 0.95).per_class[1], Lrp(1.0, None, None, 1.0))
    assert_same(lrp(matches).per_class[1], Lrp(1.4 / 3, 0.1, 1 / 3, 0.0, 0.0))


def test_perfect_results_have_no_error() -> None:
    truth = data_set((1, 1, 0, 0, 10, 10), (2, 2, 5, 5, 20, 20), images=3, classes=2)
    rows = [result(0.9, *r["bbox"], image=r["image_id"], category=r["category_id"]) for r in truth["annotations"]]
    report = optimal_lrp(matched(truth, rows))
    assert_same(report.mean, Lrp(0.0, 0.0, 0.0, 0.0))
    assert_same(report.per_class[2], Lrp(0.0, 0.0, 0.0, 0.0, 0.9))


def test_a_threshold_never_parts_equal_scores() -> None:
    # The hit alone would be perfect, but the false alarm has its score: (0 + 1 + 0) / 2.
    truth = data_set((1, 1, 0, 0, 10, 10))
    matches = matched(truth, [result(0.5, 0, 0, 10, 10), result(0.5, 50, 50, 9, 9)])
    assert_same(optimal_lrp(matches).per_class[1], Lrp(0.5, 0.0, 0.5, 0.0, 0.5))


def test_of_equal_thresholds_the_higher() -> None:
    # From 0.9: 1 hit of IoU 0.5, 1 missed: (1 + 0 + 1) / 2 = 1; so it is whatever else is found at IoU 0.5.
    truth = data_set((1, 1, 0, 0, 10, 10), (1, 1, 100, 0, 10, 10))
    matches = matched(truth, [result(0.9, 0, 0, 5, 10), result(0.8, 100, 0, 5, 10)])
    assert_same(optimal_lrp(matches).per_class[1], Lrp(1.0, 0.5, 0.0, 0.5, 0.9))


def test_components_are_averaged_over_the_classes_that_have_them() -> None:
    # Class 1 is perfect, class 2 found nothing but a false alarm, class 3 has no truth, class 4 no detection.
    truth = data_set((1, 1, 0, 0, 10, 10), (1, 2, 0, 0, 10, 10), (1, 4, 0, 0, 10, 10), classes=4)
    rows = [result(0.9, 0, 0, 10, 10), result(0.8, 90, 90, 9, 9, category=2), result(0.8, 0, 0, 9, 9, category=3)]
    report = optimal_lrp(matched(truth, rows))
    assert_same(report.per_class[2], Lrp(1.0, None, None, 1.0))
    assert_same(report.per_class[3], Lrp(None, None, None, None))
    assert_same(report.per_class[4], Lrp(1.0, None, None, 1.0))
    assert_same(report.mean, Lrp(2 / 3, 0.0, 0.0, 2 / 3))


@pytest.mark.parametrize(
    ("truth", "rows"),
    [
        (data_set(images=0, classes=0), []),  # nothing at all
        (data_set(), [result(0.5, 0, 0, 4, 4)]),  # no truth
        (data_set((1, 1, 0, 0, 9, 9), crowds=[1]), [result(0.5, 0, 0, 4, 4)]),  # all crowd
    ],
)
def test_without_truth_there_is_no_error(truth: Json, rows: list[Json]) -> None:
    for report in (optimal_lrp(matched(truth, rows)), lrp(matched(truth, rows))):
        assert_same(report.mean, Lrp(None, None, None, None))


def test_a_crowd_is_neither_false_nor_missed() -> None:
    truth = data_set((1, 1, 0, 0, 10, 10), (1, 1, 50, 50, 40, 40), crowds=[2])
    matches = matched(truth, [result(0.9, 55, 55, 10, 10), result(0.8, 0, 0, 10, 10)])
    assert_same(optimal_lrp(matches).per_class[1], Lrp(0.0, 0.0, 0.0, 0.0, 0.8))


@pytest.mark.parametrize("tau", [0.1, 0.5, 0.75])
@pytest.mark.parametrize("seed", range(12))
def test_the_optimum_is_the_least_over_all_thresholds(seed: int, tau: float) -> None:
    matches = matched(*random_case(seed), tau)
    report = optimal_lrp(matches, tau)
    assert len(report.per_class) == len(matches.ground_truth.category_ids)
    for label, found in enumerate(report.per_class.values()):
        if not matches.ground_truth.positives[label]:
            assert_same(found, Lrp(None, None, None, None))
            continue
        scores = {float(s) for s in matches.scores[matches.labels == label]}
        choices = [slow_lrp(matches, label, score, tau) for score in sorted(scores, reverse=True)]
        if not any(choice.localisation is not None for choice in choices):
            assert_same(found, Lrp(1.0, None, None, 1.0))
        else:
            least = min(choice.error for choice in choices if choice.error is not None)
            best = next(choice for choice in choices if choice.error == pytest.approx(least, abs=1e-12))
            assert_same(found, best)
        assert_same(lrp(matches, 0.4, tau).per_class[label + 1], slow_lrp(matches, label, 0.4, tau))


def published(ground_truth: Json, results: list[Json]) -> tuple[list[float], dict[int, list[float]]]:
    """vernier's optimal LRP: mean and classes, each as our components and the threshold; NaN for None."""
    instance = pytest.importorskip("vernier.instance")
    files = (json.dumps(part).encode() for part in (ground_truth, results))
    report: Any = instance.optimal_lrp(*files, tau_grid=sorted({row["score"] for row in results} | {0.0}))
    per_class = {c.category_id: [c.olrp, c.olrp_loc, c.olrp_fp, c.olrp_fn, c.tau] for c in report.per_class}
    for row in per_class.values():
        if math.isnan(row[1]):
            row[2] = math.nan  # without a hit it names the false positives of one threshold or another
        row[1] /= 2  # it divides by 1 - τ = 0.5
    false = [row[2] for row in per_class.values() if not math.isnan(row[2])]
    return [report.olrp, report.loc / 2, sum(false) / len(false) if false else math.nan, report.fn], per_class


def assert_as_published(report: LrpReport, ground_truth: Json, results: list[Json]) -> None:
    mean, per_class = published(ground_truth, results)
    assert as_list(report.mean)[:4] == pytest.approx(mean, abs=1e-9, nan_ok=True)
    assert list(report.per_class) == list(per_class)
    for category, row in report.per_class.items():
        assert as_list(row) == pytest.approx(per_class[category], abs=1e-9, nan_ok=True)


def as_list(row: Lrp) -> list[float]:
    return [math.nan if (v := getattr(row, name)) is None else v for name in (*COMPONENTS, "threshold")]


@pytest.mark.parametrize("seed", set(range(20)) - {5})  # 5 has no truth, of which vernier says 0 and we None
def test_agrees_with_a_published_evaluator(seed: int) -> None:
    ground_truth, results = random_case(seed)
    assert_as_published(optimal_lrp(matched(ground_truth, results)), ground_truth, results)


@pytest.mark.parametrize("name", DATA_SETS)
def test_agrees_with_a_published_evaluator_on_real_truth(name: str) -> None:
    ground_truth, results = real_case(name)
    assert_as_published(optimal_lrp(matched(ground_truth, results)), ground_truth, results)
