from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.helpers.arithmetic import threshold_for_precision
from tightbox.calibration import IOUS, PRECISIONS, Calibration, IouCalibration
from tightbox.errors import UserError
from tightbox.evaluation.coco_files import from_coco
from tightbox.evaluation.fit_calibration import (
    MIN_DETECTIONS,
    choose_of_pairs,
    fit_calibration,
    fit_isotonic,
    fit_linear,
    fit_temperature,
)
from tightbox.evaluation.matching import Matches, match
from tightbox.evaluation.reliability import reliability

unit = st.floats(0, 1, allow_subnormal=False)


def many(count: int = 300, **changes: Any) -> Matches:
    """One object and one box of a known IoU in each image: the box has the object's height, and iou of its width."""
    rng = np.random.default_rng(0)
    ious = rng.uniform(0.3, 1, count).round(3)
    scores = (0.5 * ious + rng.uniform(0, 0.5, count)).round(3)
    images = [{"id": i} for i in range(count)]
    truth = [{"id": i + 1, "image_id": i, "category_id": 1, "bbox": [0, 0, 100, 10]} for i in range(count)]
    rows = [
        {"image_id": i, "category_id": 1, "bbox": [0, 0, 100 * iou, 10], "score": score, "iou": 0.5 * iou} | changes
        for i, (iou, score) in enumerate(zip(ious.tolist(), scores.tolist(), strict=True))
    ]
    content = {"images": images, "annotations": truth, "categories": [{"id": 1, "name": "cat"}]}
    return match(*from_coco(content, rows), IOUS)


def test_estimates_of_half_the_iou_are_doubled() -> None:
    calibration = fit_calibration(many(), "isotonic", split="val")
    # Boxes of the IoUs 0.4, 0.6 and 0.9 were said to have half of that.
    assert calibration.ious([0.2, 0.3, 0.45]) == pytest.approx([0.4, 0.6, 0.9], abs=0.02)
    assert calibration.about == {"method": "isotonic", "detections": 300, "split": "val"}


@pytest.mark.parametrize(("precision", "iou"), [(0.5, 0.5), (0.8, 0.75), (0.9, 0.75), (0.95, 0.5), (0.7, 0.85)])
def test_thresholds_are_those_of_the_slow_reference(precision: float, iou: float) -> None:
    matches = many()
    expected = threshold_for_precision(matches.scores, matches.at(iou).ious, precision, iou)
    assert expected is not None
    assert np.count_nonzero(matches.scores >= expected) >= MIN_DETECTIONS  # else the table rightly has another one
    assert fit_calibration(matches).score_threshold(precision, iou) == expected


def test_a_precision_between_the_known_ones_is_rounded_up() -> None:
    calibration = fit_calibration(many())
    assert calibration.score_threshold(0.843, 0.71) == calibration.score_threshold(0.85, 0.75)
    assert calibration.score_threshold(0.85, 0.75) > calibration.score_threshold(0.84, 0.7)


def test_a_second_box_on_an_object_is_wrong() -> None:
    # 40 images, in each the object's own box twice: at most one half is right.
    images = [{"id": i} for i in range(60)]
    truth = [{"id": i + 1, "image_id": i, "category_id": 1, "bbox": [0, 0, 10, 10]} for i in range(60)]
    rows = [
        {"image_id": i, "category_id": 1, "bbox": [0, 0, 10, 10], "score": 0.6, "iou": 0.9}
        for i in range(60)
        for _ in range(2)
    ]
    content = {"images": images, "annotations": truth, "categories": [{"id": 1, "name": "cat"}]}
    calibration = fit_calibration(match(*from_coco(content, rows), IOUS))
    assert calibration.score_threshold(0.5, 0.9) == 0.6
    with pytest.raises(UserError, match=r"only 0\.50 was reached"):
        calibration.score_threshold(0.51, 0.9)


def test_a_handful_of_boxes_is_no_evidence() -> None:
    matches = many(150)
    best = np.sort(matches.scores)[-MIN_DETECTIONS]
    thresholds = [t for row in fit_calibration(matches).thresholds for t in row if t is not None]
    assert max(thresholds) <= best


def test_a_detector_without_estimates_cannot_be_calibrated() -> None:
    with pytest.raises(UserError, match="predicts no IoU"):
        fit_calibration(many(iou=None))


def test_too_few_detections() -> None:
    with pytest.raises(UserError, match="at least 100"):
        fit_calibration(many(20))


def test_json_round_trip() -> None:
    calibration = fit_calibration(many())
    again = Calibration.from_json(json.loads(json.dumps(calibration.to_json())))
    assert again == calibration
    assert len(again.thresholds) == len(IOUS)
    assert {len(row) for row in again.thresholds} == {len(PRECISIONS)}


def test_isotonic_by_hand() -> None:
    # Four estimates of 10 pairs each, their mean IoUs 0.2, 0.6, 0.4, 0.9: the middle two are pooled to 0.5 at the
    # middle of their estimates, 0.5.
    estimates = np.repeat([0.1, 0.4, 0.6, 0.9], 10)
    ious = np.repeat([0.2, 0.6, 0.4, 0.9], 10) + np.tile([-0.1, 0.1], 20)
    fit = fit_isotonic(estimates, ious, minimum=40)
    assert fit.raw == pytest.approx((0.1, 0.5, 0.9))
    assert fit.ious == pytest.approx((0.2, 0.5, 0.9))
    assert fit([0.0, 0.3, 0.5, 0.7, 1.0, np.nan]) == pytest.approx([0.2, 0.35, 0.5, 0.7, 0.9, np.nan], nan_ok=True)


def test_isotonic_pools_by_the_number_of_pairs() -> None:
    # 30 pairs at 0.4 have the IoU 0.6 and 10 at 0.6 have 0.4: together 0.55, at the estimate (30 * 0.4 + 6) / 40.
    fit = fit_isotonic([0.4] * 30 + [0.6] * 10, [0.6] * 30 + [0.4] * 10, minimum=40)
    assert fit.raw == pytest.approx((0.45,))
    assert fit.ious == pytest.approx((0.55,))


@pytest.mark.parametrize("method", [fit_isotonic, fit_temperature])
def test_too_few_pairs_are_refused(method: Any) -> None:
    estimates = [0.5] * 20 + [np.nan] * 20
    with pytest.raises(UserError, match=r"at least 30 detections .* there are 20"):
        method(estimates, [0.5] * 40, minimum=30)
    assert method(estimates, [0.5] * 40, minimum=20)(0.5) == pytest.approx(0.5, abs=1e-3)


pairs = st.lists(st.tuples(st.floats(-2, 2, allow_subnormal=False) | unit, unit | st.just(np.nan)), min_size=1)


@settings(deadline=None)
@given(pairs, st.integers(1, 70))
def test_maps_rise_within_0_and_1_with_few_knots(pairs: list[tuple[float, float]], knots: int) -> None:
    estimates, ious = np.repeat(np.array(pairs), 5, axis=0).T
    if np.isnan(ious).all():
        return
    fit = fit_isotonic(estimates, ious, minimum=1, knots=knots)
    assert 1 <= len(fit.raw) <= knots
    values = fit(np.linspace(-3, 3, 101))
    assert (np.diff(values) >= 0).all()
    assert values.min() >= np.nanmin(ious) - 1e-12
    assert values.max() <= np.nanmax(ious) + 1e-12
    assert IouCalibration.from_json(json.loads(json.dumps(fit.to_json(), allow_nan=False))) == fit


def test_calibrated_on_one_half_it_holds_on_the_other() -> None:
    rng = np.random.default_rng(0)
    ious = rng.beta(4, 2, 20000)
    raw = np.clip(0.5 * ious + 0.1 + rng.normal(0, 0.05, len(ious)), 0, 1)  # far too low, but well ordered
    fit = fit_isotonic(raw[::2], ious[::2])
    before, after = (reliability(claims, ious[1::2]) for claims in (raw[1::2], fit(raw[1::2])))
    assert before.error is not None
    assert after.error is not None
    assert before.error > 0.2
    # Each of about 15 bins holds about 700 pairs, whose mean strays by 0.1 / √700 = 0.004 or so.
    assert after.error < 0.012
    assert len(fit.raw) <= 64


@pytest.mark.parametrize("temperature", [0.3, 1.0, 2.5])
def test_temperature_is_recovered(temperature: float) -> None:
    logits = np.linspace(-5, 5, 2001)
    raw, ious = 1 / (1 + np.exp(-logits)), 1 / (1 + np.exp(-logits / temperature))
    fit = fit_temperature(raw, ious)
    np.testing.assert_allclose(fit(raw), ious, atol=0.01)  # what the table's lines leave
    assert fit([0.0, 1.0]).tolist() == [0.0, 1.0]
    assert len(fit.raw) <= 68


def noisy_pairs(count: int, images: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Predictions that are right on average, off by 0.1 for a box and by 0.1 for all boxes of an image."""
    rng = np.random.default_rng(seed)
    of_image = rng.integers(0, images, count)
    raw = rng.uniform(0.2, 0.9, count)
    off = rng.normal(0, 0.1, images)[of_image] + rng.normal(0, 0.1, count)
    return raw, np.clip(raw + off, 0, 1), of_image


def test_with_few_images_most_choices_are_no_change() -> None:
    chosen = [choose_of_pairs(*noisy_pairs(300, 10, seed)).method for seed in range(30)]
    assert chosen.count("none") > 20


@pytest.mark.parametrize("power", [0.4, 3.0])
def test_what_is_wrong_is_put_right(power: float) -> None:
    rng = np.random.default_rng(0)
    raw = rng.uniform(0.1, 1, 3000)
    true_ious = np.clip(raw**power + rng.normal(0, 0.03, 3000), 0, 1)
    choice = choose_of_pairs(raw, true_ious, np.arange(3000) // 10)
    assert choice.method == "isotonic"
    # The noise's variance is 0.0009; no change leaves the mean of (raw^power - raw)² as well, which is far more.
    assert choice.squared_error("isotonic") < 0.0012 < choice.squared_error("none") / 5


def test_a_line_is_enough_for_a_line() -> None:
    rng = np.random.default_rng(0)
    raw = rng.uniform(0, 1, 2000)
    choice = choose_of_pairs(raw, 0.2 + 0.5 * raw + rng.normal(0, 0.05, 2000), np.arange(2000) // 10)
    assert choice.method == "linear"


@pytest.mark.parametrize(("count", "images"), [(0, 1), (200, 1), (200, 4), (10, 10)])
def test_too_few_to_judge(count: int, images: int) -> None:
    assert choose_of_pairs(*noisy_pairs(count, images)).method == "none"


def test_linear_by_hand() -> None:
    # Through (0, -0.5) and (1, 1.5): 2 x - 0.5, cut off at 0.25 and at 0.75.
    raw = np.linspace(0, 1, 101)
    fit = fit_linear(raw, 2 * raw - 0.5, minimum=1)
    np.testing.assert_allclose(fit([0, 0.25, 0.3, 0.5, 0.75, 1]), [0, 0, 0.1, 0.5, 1, 1], atol=1e-12)
    level = fit_linear(raw, 1 - raw, minimum=1)
    np.testing.assert_allclose(level([0, 1]), [0.5, 0.5])
    np.testing.assert_allclose(fit_linear([0.3] * 5, [0.6] * 5, minimum=1)([0.3]), [0.6])
