from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import tightbox
from tests.helpers.models import tiny_model
from tightbox.calibration import IOUS, MIN_DETECTIONS, PRECISIONS, Calibration, fit_calibration
from tightbox.checkpoint import save_calibration
from tightbox.errors import UserError
from tightbox.evaluation.calibration import IouCalibration, threshold_for_precision
from tightbox.evaluation.matching import Matches, match
from tightbox.evaluation.results import to_columns
from tightbox.structures import Detections

HALVES = Calibration(IouCalibration((0.0, 1.0), (0.0, 0.5)), ((0.25,) * 51,) * 10, {"method": "by hand"})


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
    return match(*to_columns(content, rows), IOUS)


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
    calibration = fit_calibration(match(*to_columns(content, rows), IOUS))
    assert calibration.score_threshold(0.5, 0.9) == 0.6
    with pytest.raises(UserError, match=r"only 0\.50 was reached"):
        calibration.score_threshold(0.51, 0.9)


def test_a_handful_of_boxes_is_no_evidence() -> None:
    matches = many(150)
    best = np.sort(matches.scores)[-MIN_DETECTIONS]
    thresholds = [t for row in fit_calibration(matches).thresholds for t in row if t is not None]
    assert max(thresholds) <= best


@pytest.mark.parametrize(
    ("precision", "iou", "message"),
    [
        (1.2, 0.5, "the precision is 1.2"),
        (0.3, 0.5, "the precision is 0.3"),
        (0.9, 0.3, "the IoU is 0.3"),
        (0.9, float("nan"), "the IoU is nan"),
    ],
)
def test_out_of_range(precision: float, iou: float, message: str) -> None:
    with pytest.raises(UserError, match=message):
        HALVES.score_threshold(precision, iou)


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


@pytest.mark.parametrize(
    "content",
    [
        {},
        HALVES.to_json() | {"thresholds": {}},
        HALVES.to_json() | {"thresholds": {f"{iou:.2f}": [0.5] for iou in IOUS}},
        HALVES.to_json() | {"ious": {"estimates": [1, 0], "ious": [0, 1]}},
        HALVES.to_json() | {"about": 3},
    ],
)
def test_damaged_json(content: dict[str, Any]) -> None:
    with pytest.raises(UserError, match="calibrate"):
        Calibration.from_json(content)


# In a detector


def test_detections_have_calibrated_ious_and_nothing_else_changes(tmp_path: Path) -> None:
    model = tiny_model().eval()
    image = torch.rand(3, 64, 64)
    raw, batch = model.predict(image), model.detect([image])[0]
    model.calibration = HALVES
    calibrated = model.predict(image)
    assert len(raw) > 0
    for name in ("boxes", "scores", "labels"):
        assert torch.equal(getattr(calibrated, name), getattr(raw, name)), name
    torch.testing.assert_close(calibrated.ious, 0.5 * raw.ious)
    torch.testing.assert_close(model.detect([image])[0].ious, 0.5 * batch.ious)
    loaded = tightbox.load(model.save(tmp_path))
    assert loaded.calibration == HALVES
    assert torch.equal(loaded.predict(image).ious, calibrated.ious)


def test_detections_without_ious_stay_without() -> None:
    found = Detections(torch.zeros(1, 4), torch.ones(1), torch.zeros(1, dtype=torch.int64))
    assert HALVES(found) is found


def test_it_goes_into_the_card_and_the_weights_stay(tmp_path: Path) -> None:
    model = tiny_model()
    folder = model.save(tmp_path)
    weights = (folder / "weights.safetensors").read_bytes()
    before = json.loads((folder / "card.json").read_text())
    assert before.pop("calibration") is None
    save_calibration(HALVES, folder)
    after = json.loads((folder / "card.json").read_text())
    assert after.pop("calibration") == HALVES.to_json()
    assert after == before
    assert (folder / "weights.safetensors").read_bytes() == weights
    assert sorted(path.name for path in folder.iterdir()) == ["card.json", "weights.safetensors"]


def test_a_card_from_before_there_were_calibrations(tmp_path: Path) -> None:
    folder = tiny_model().save(tmp_path)
    card = json.loads((folder / "card.json").read_text())
    del card["calibration"]
    (folder / "card.json").write_text(json.dumps(card))
    assert tightbox.load(folder).calibration is None
