"""Against the authors' evaluators, whose figures for a small fixed file are in `tests/references`, and by hand."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tightbox.evaluation.calibration_measures import (
    Baseline,
    PlattScaling,
    calibration_measures,
    d_ece,
    fit_platt,
    fit_scores,
    fit_steps,
    laace,
    oce,
    thresholded_protocol,
)
from tightbox.evaluation.coco_files import from_coco
from tightbox.evaluation.inputs import GroundTruth, Predictions
from tightbox.evaluation.matching import match

REFERENCE = json.loads((Path(__file__).parents[1] / "references" / "calibration_measures.json").read_text())
LRP = {"lrp": "error", "lrp_loc": "localisation", "lrp_fp": "false_positives", "lrp_fn": "false_negatives"}


def part(name: str) -> tuple[GroundTruth, Predictions]:
    return from_coco(REFERENCE[name]["ground_truth"], REFERENCE[name]["results"])


def test_measures_are_those_of_the_published_evaluators() -> None:
    measures = calibration_measures(*part("test"))
    for name in ("d_ece", "laece", "laece0", "laace0", "oce"):
        assert getattr(measures, name) == pytest.approx(REFERENCE["expected"]["raw"][name], abs=1e-6), name


@pytest.mark.parametrize("baseline", ["none", "isotonic"])
def test_the_thresholded_protocol_is_the_published_one(baseline: Baseline) -> None:
    found, expected = thresholded_protocol(part("held_out"), part("test"), baseline), REFERENCE["expected"][baseline]
    assert list(found.thresholds.values()) == pytest.approx(expected["thresholds"], abs=1e-6)
    for name in ("d_ece", "laece0", "laace0"):
        assert getattr(found.measures, name) == pytest.approx(expected[name], abs=1e-6), name
    for theirs, ours in LRP.items():
        assert getattr(found.lrp.mean, ours) == pytest.approx(expected["lrp"][theirs], abs=1e-6), theirs


def test_platt_scaling_fits_no_worse_than_the_published_one() -> None:
    """Theirs stops after at most 100 steps in float32, so its parameters differ a little; its loss is never less."""
    ground_truth, predictions = part("held_out")
    first = np.array(REFERENCE["expected"]["platt"]["first"])
    kept = predictions.scores >= first[predictions.labels]
    columns = {n: getattr(predictions, n)[kept] for n in ("images", "labels", "boxes", "scores", "ious")}
    matches = match(ground_truth, Predictions(**columns), (0.0,))
    maps = fit_scores(matches, "platt")
    for label, each in enumerate(maps):
        assert isinstance(each, PlattScaling)
        rows = matches.labels == label
        wanted = np.where(matches.at(0.0).hit, matches.at(0.0).ious, 0.0)[rows]
        theirs = REFERENCE["expected"]["platt"]["params"][str(label)]
        logits = np.log(matches.scores[rows] / (1 - matches.scores[rows]))
        ours_loss, their_loss = (
            np.mean(np.logaddexp(0, a * logits + b) - wanted * (a * logits + b))
            for a, b in ((each.scale, each.shift), theirs)
        )
        assert ours_loss <= their_loss + 1e-7
        assert ours_loss == pytest.approx(their_loss, abs=1e-3)


# By hand


def one_image(objects: list[Any], rows: list[Any]) -> tuple[GroundTruth, Predictions]:
    """Objects as (class, box), or (class, box, 1) for a crowd, and rows as (class, box, score)."""
    truth = [
        {"id": i, "image_id": 1, "category_id": o[0], "bbox": o[1], "iscrowd": int(len(o) > 2)}
        for i, o in enumerate(objects, 1)
    ]
    found = [{"image_id": 1, "category_id": c, "bbox": box, "score": score} for c, box, score in rows]
    names = [{"id": 1, "name": "cat"}, {"id": 2, "name": "dog"}]
    return from_coco({"images": [{"id": 1}], "annotations": truth, "categories": names}, found)


BOX, FAR = [0, 0, 10, 10], [100, 100, 10, 10]


def test_oce_by_hand() -> None:
    # On the cat lie a cat of 0.8 and, at IoU 0.5 only, a dog of 0.4; on the dog nothing, an error of 1 at either IoU.
    ground_truth, predictions = one_image([(1, BOX), (2, FAR)], [(1, BOX, 0.8), (2, [0, 0, 10, 6], 0.4)])
    at_half = ((1 - 0.4) ** 2 + 0.2**2 + 1) / 2  # the means of the two are 0.4 and 0.2
    at_three_quarters = (0.2**2 + 1) / 2
    assert oce(ground_truth, predictions) == pytest.approx((at_half + at_three_quarters) / 2)


def test_laace_by_hand() -> None:
    ground_truth, predictions = one_image([(1, BOX), (2, FAR)], [(1, [0, 0, 10, 6], 0.9), (1, FAR, 0.2), (2, FAR, 0.5)])
    # Cats: |0.9 - 0.6| and |0.2 - 0|; dogs: |0.5 - 1|.
    assert laace(match(ground_truth, predictions, (0.0,))) == pytest.approx(((0.3 + 0.2) / 2 + 0.5) / 2)


def test_d_ece_by_hand() -> None:
    ground_truth, predictions = one_image([(1, BOX), (2, FAR)], [(1, BOX, 0.95), (1, FAR, 0.93), (2, FAR, 0.35)])
    # Bin (0.9, 1]: two boxes, one right, mean score 0.94; bin (0.3, 0.4]: one, right.
    assert d_ece(match(ground_truth, predictions, (0.5,))) == pytest.approx((2 * abs(0.94 - 0.5) + abs(0.35 - 1)) / 3)


def test_crowds_are_no_objects_and_boxes_in_them_no_mistakes() -> None:
    ground_truth, predictions = one_image([(1, BOX), (1, FAR, 1)], [(1, BOX, 0.9), (1, FAR, 0.7)])
    measures = calibration_measures(ground_truth, predictions)
    assert measures.laace0 == pytest.approx(0.1)
    assert measures.d_ece == pytest.approx(0.1)
    assert measures.oce == pytest.approx(0.01)


@pytest.mark.parametrize(("objects", "expected"), [([], None), ([(1, BOX)], 1.0)])
def test_without_detections(objects: list[Any], expected: float | None) -> None:
    measures = calibration_measures(*one_image(objects, []))
    assert (measures.d_ece, measures.laece0, measures.laace0, measures.oce) == (None, None, None, expected)


def test_steps_by_hand() -> None:
    # 0.9 and 0.3 at the scores 0.2 and 0.4 fall, so both become 0.6; the two at 0.8 count as one of 0.9.
    fit = fit_steps([0.2, 0.4, 0.8, 0.8], [0.9, 0.3, 0.8, 1.0])
    np.testing.assert_allclose(fit([0.1, 0.2, 0.3, 0.4, 0.8, 1]), [0.6, 0.6, 0.6, 0.6, 0.9, 0.9])


def test_platt_finds_what_made_the_targets() -> None:
    scores = np.linspace(0.05, 0.95, 50)
    wanted = 1 / (1 + np.exp(-(0.5 * np.log(scores / (1 - scores)) - 0.3)))
    fit = fit_platt(scores, wanted)
    assert (fit.scale, fit.shift) == pytest.approx((0.5, -0.3), abs=1e-4)
