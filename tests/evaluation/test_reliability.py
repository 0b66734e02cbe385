from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.helpers.arithmetic import threshold_for_precision
from tests.helpers.results import Json, data_set, matched, random_case, result
from tightbox.errors import UserError
from tightbox.evaluation.matching import Matches
from tightbox.evaluation.reliability import (
    Correlation,
    correlation,
    laece,
    reliability,
)

unit = st.floats(0, 1, allow_subnormal=False)


def test_reliability_by_hand() -> None:
    # Bins [0, 0.5] and (0.5, 1]. The first holds 0, 0.3 and 0.5: mean 0.8 / 3 against (0 + 0.5 + 0.6) / 3 = 1.1 / 3,
    # 0.1 too low. The second holds 0.9 against 0.5, 0.4 too high. Error (3 * 0.1 + 0.4) / 4, bias (-0.3 + 0.4) / 4.
    table = reliability([0.3, 0.9, 0.0, 0.5, np.nan, 0.7], [0.5, 0.5, 0.0, 0.6, 0.9, np.nan], bins=2)
    assert table.edges == (0, 0.5, 1)
    assert table.counts == (3, 1)
    assert table.predicted == pytest.approx((0.8 / 3, 0.9))
    assert table.actual == pytest.approx((1.1 / 3, 0.5))
    assert (table.error, table.bias, table.worst) == pytest.approx((0.175, 0.025, 0.4))


def test_empty_bins_have_no_means() -> None:
    table = reliability([0.95], [1.0], bins=2)
    assert (table.counts, table.predicted, table.actual) == ((0, 1), (None, 0.95), (None, 1.0))
    table = reliability([], [], bins=3)
    assert table.counts == (0, 0, 0)
    assert table.error is table.bias is table.worst is None


@pytest.mark.parametrize("claim", [-0.1, 1.5])
def test_claims_outside_0_and_1_are_refused(claim: float) -> None:
    with pytest.raises(UserError, match=str(claim)):
        reliability([0.5, claim], [0.5, 0.5])


@settings(deadline=None)
@given(st.lists(st.tuples(unit, unit), max_size=30), st.integers(1, 12))
def test_bins_share_out_all_claims(pairs: list[tuple[float, float]], bins: int) -> None:
    claimed, true = np.array(pairs).reshape(-1, 2).T
    table = reliability(claimed, true, bins)
    assert sum(table.counts) == len(pairs)
    for low, high, n, mean in zip(table.edges[:-1], table.edges[1:], table.counts, table.predicted, strict=True):
        inside = claimed[((claimed > low) | (low == 0)) & (claimed <= high)]
        assert n == len(inside)
        assert mean == (pytest.approx(inside.mean()) if n else None)
    if pairs:
        assert table.bias == pytest.approx(claimed.mean() - true.mean(), abs=1e-9)


def slow_laece(matches: Matches, tau: float, bins: int) -> float | None:
    """The papers' words: in each bin, precision times the mean IoU of the true positives."""
    outcome = matches.at(tau)
    errors = []
    for label in np.flatnonzero(matches.ground_truth.positives):
        counted = [i for i in range(len(matches)) if matches.labels[i] == label and not outcome.ignored[i]]
        error = 0.0
        for b in range(bins):
            inside = [i for i in counted if b / bins < matches.scores[i] <= (b + 1) / bins]
            hits = [i for i in inside if outcome.hit[i]]
            if inside:
                mean_iou = float(np.mean([outcome.ious[i] for i in hits])) if hits else 0.0
                mean_score = float(np.mean([matches.scores[i] for i in inside]))
                error += len(inside) / len(counted) * abs(mean_score - len(hits) / len(inside) * mean_iou)
        if counted:
            errors.append(error)
    return float(np.mean(errors)) if errors else None


@pytest.mark.parametrize("tau", [0.0, 0.1, 0.5])
@pytest.mark.parametrize("seed", range(0, 20, 2))  # odd seeds have scores on the edges of bins
def test_laece_is_the_papers(seed: int, tau: float) -> None:
    matches = matched(*random_case(seed), tau)
    expected = slow_laece(matches, tau, 25)
    assert laece(matches, tau).error == (None if expected is None else pytest.approx(expected, abs=1e-12))


def test_laece_by_hand() -> None:
    # Class 1: scores 0.81 and 0.83 in one of the bins of width 0.04, (0.80, 0.84]: a hit of IoU 0.8 and a false alarm:
    # |0.82 - 1/2 * 0.8| = 0.42. Class 2: a hit of IoU 1 at 0.9: 0.1. Class 3 has no truth, class 4 no detection.
    truth = data_set((1, 1, 0, 0, 10, 10), (1, 2, 50, 0, 10, 10), (1, 4, 0, 0, 9, 9), classes=4)
    rows = [
        result(0.81, 0, 0, 8, 10),
        result(0.83, 90, 90, 9, 9),
        result(0.9, 50, 0, 10, 10, category=2),
        result(0.9, 0, 0, 9, 9, category=3),
    ]
    matches = matched(truth, rows, 0.1)
    report = laece(matches)
    assert report.error == pytest.approx(0.26)
    assert {c: table.error for c, table in report.per_class.items()} == pytest.approx({1: 0.42, 2: 0.1})
    # All classes in one table: (0.80, 0.84] as before, and in (0.88, 0.92] scores of 0.9 against (1 + 0) / 2.
    assert reliability(matches.scores, matches.at(0.1).earned, 25).error == pytest.approx((0.42 + 0.4) / 2)


@pytest.mark.parametrize(
    ("truth", "rows"),
    [
        (data_set(images=0, classes=0), []),  # nothing at all
        (data_set((1, 1, 0, 0, 9, 9)), []),  # no results
        (data_set(), [result(0.5, 0, 0, 4, 4)]),  # no truth
        (data_set((1, 1, 0, 0, 9, 9), crowds=[1]), [result(0.5, 0, 0, 4, 4)]),  # all crowd
    ],
)
def test_no_laece_without_truth_and_detections(truth: Json, rows: list[Json]) -> None:
    assert laece(matched(truth, rows, 0.1)).error is None


@pytest.mark.parametrize("seed", range(0, 12, 2))
def test_pooled_precision_calibration_agrees_with_published_evaluators(seed: int, tmp_path: Any) -> None:
    instance: Any = pytest.importorskip("vernier.instance")
    hotcoco: Any = pytest.importorskip("hotcoco")
    ground_truth, results = random_case(seed, crowd=0.1)
    # vernier spreads its bins from the least score to the largest: let them be 0 and 1.
    image = ground_truth["images"][0]["id"]
    results += [result(0.0, 390, 390, 2, 2, image=image), result(1.0, 395, 395, 2, 2, image=image)]
    (tmp_path / "gt.json").write_text(json.dumps(ground_truth))
    (tmp_path / "dt.json").write_text(json.dumps(results))
    dataset = instance.CocoDataset.from_json((tmp_path / "gt.json").read_bytes())
    evaluator = instance.Evaluator(iou=instance.Bbox())
    theirs = evaluator.evaluate(dataset, (tmp_path / "dt.json").read_bytes(), calibration=True).calibration(
        iou=0.5, n_bins=10, binning="equal_width", min_score=0.0
    )
    coco = hotcoco.COCO(str(tmp_path / "gt.json"))
    evaluation = hotcoco.COCOeval(coco, coco.load_res(str(tmp_path / "dt.json")), "bbox")
    evaluation.evaluate()
    others = evaluation.calibration(n_bins=10, iou_threshold=0.5)

    matches = matched(ground_truth, results)
    outcome = matches.at(0.5)
    table = reliability(matches.scores[~outcome.ignored], outcome.hit[~outcome.ignored], bins=10)

    assert (table.error, table.worst) == pytest.approx((theirs.ece, theirs.mce), abs=1e-9)
    assert (table.error, table.worst) == pytest.approx((others["ece"], others["mce"]), abs=1e-9)


def test_correlation_of_what_overlaps_well() -> None:
    # The pair at 0.2 would reverse the order. Of the rest, ranks (1, 2, 3) against (1, 3, 2): Spearman
    # 1 - 6 * (0 + 1 + 1) / (3 * 8) = 0.5. Estimates deviate from their mean by (-1, 0, 1) / 10, the IoUs from theirs,
    # 0.7, by (-1, 1, 0) / 10: Pearson (1 + 0 + 0) / (√2 √2) = 0.5.
    found = correlation([0.9, 0.1, 0.2, 0.3, np.nan], [0.2, 0.6, 0.8, 0.7, 0.9])
    assert found.pearson == pytest.approx(0.5)
    assert found.spearman == pytest.approx(0.5)
    assert found.pairs == 3
    assert correlation([0.9, 0.1], [0.2, 0.6], above=0.1).pearson == pytest.approx(-1)


@pytest.mark.parametrize(
    ("estimates", "ious", "pairs"),
    [
        ([], [], 0),  # nothing
        ([0.5], [0.9], 1),  # one pair
        ([0.5, 0.5], [0.8, 0.9], 2),  # estimates all alike
        ([0.4, 0.5], [0.9, 0.9], 2),  # IoUs all alike
        ([0.4, 0.5], [0.5, 0.1], 0),  # none above 0.5
    ],
)
def test_no_correlation_of_too_little(estimates: list[float], ious: list[float], pairs: int) -> None:
    assert correlation(estimates, ious) == Correlation(None, None, pairs)


def test_the_lowest_threshold_of_a_precision() -> None:
    # Shares of IoU >= 0.75 from each score on: 0.9: 1/1, 0.8: 1/2, 0.7: 2/3, 0.6: 3/4, 0.5: 3/5.
    scores, ious = [0.5, 0.8, 0.9, 0.7, 0.6, np.nan], [0.1, 0.74, 0.75, 1.0, 0.8, 1.0]
    assert threshold_for_precision(scores, ious, precision=0.6) == 0.5
    assert threshold_for_precision(scores, ious, precision=0.75) == 0.6
    assert threshold_for_precision(scores, ious, precision=0.76) == 0.9
    assert threshold_for_precision(scores, ious, precision=0.81, at_iou=0.7) == 0.6  # 4/4, then 4/5
    assert threshold_for_precision(scores, ious, precision=0.76, at_iou=0.9) is None
    assert threshold_for_precision([], []) is None
    assert threshold_for_precision([0.5, 0.5], [1.0, np.nan], precision=0.6) is None  # they stand or fall together


@settings(deadline=None)
@given(st.lists(st.tuples(st.integers(0, 6), unit), max_size=20), unit)
def test_no_lower_threshold_has_the_precision(pairs: list[tuple[int, float]], precision: float) -> None:
    scores, ious = np.array(pairs, dtype=float).reshape(-1, 2).T
    good = [
        s for s in set(scores.tolist()) if (ious[scores >= s] >= 0.75).sum() >= precision * (scores >= s).sum() - 1e-9
    ]
    assert threshold_for_precision(scores, ious, precision) == min(good, default=None)
