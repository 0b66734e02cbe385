from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import tightbox
from tests.helpers.models import tiny_model
from tightbox.calibration import IOUS, Calibration, IouCalibration
from tightbox.checkpoint import save_calibration
from tightbox.errors import UserError
from tightbox.structures import Detections

unit = st.floats(0, 1, allow_subnormal=False)
HALVES = Calibration(IouCalibration((0.0, 1.0), (0.0, 0.5)), ((0.25,) * 51,) * 10, {"method": "by hand"})


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


@settings(deadline=None)
@given(
    st.lists(st.tuples(st.integers(-50, 150), unit), min_size=1, max_size=12, unique_by=lambda pair: pair[0]),
    st.lists(st.floats(-2, 2) | st.just(np.nan)),
)
def test_tensors_are_mapped_like_arrays(knots: list[tuple[int, float]], estimates: list[float]) -> None:
    fit = IouCalibration(tuple(sorted(k[0] / 100 for k in knots)), tuple(sorted(k[1] for k in knots)))
    values = np.array(estimates + list(fit.raw))
    found = fit.of_tensor(torch.from_numpy(values))
    np.testing.assert_allclose(found.numpy(), fit(values), atol=1e-12)
    half = fit.of_tensor(torch.from_numpy(values).half().reshape(1, -1))
    assert half.dtype == torch.float16
    assert half.shape == (1, len(values))


@pytest.mark.parametrize(
    ("estimates", "ious"),
    [
        ([], []),  # no knot
        ([0.1], [0.1, 0.2]),  # of unlike length
        ([0.2, 0.1], [0.1, 0.2]),  # estimates fall
        ([0.1, 0.1], [0.1, 0.2]),  # estimates stand still
        ([0.1, 0.2], [0.2, 0.1]),  # IoUs fall
        ([0.1, 0.2], [-0.1, 0.1]),  # below 0
        ([0.1, 0.2], [0.1, 1.1]),  # above 1
        ([0.1, float("nan")], [0.1, 0.2]),  # no number
        (["a"], [0.1]),  # text
        (None, [0.1]),  # no list
    ],
)
def test_a_spoilt_card_is_refused(estimates: Any, ious: Any) -> None:
    with pytest.raises(UserError, match="calibrate again"):
        IouCalibration.from_json({"estimates": estimates, "ious": ious})
    with pytest.raises(UserError, match="calibrate again"):
        IouCalibration.from_json({})


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
    assert raw.ious is not None
    assert batch.ious is not None
    torch.testing.assert_close(calibrated.ious, 0.5 * raw.ious)
    torch.testing.assert_close(model.detect([image])[0].ious, 0.5 * batch.ious)
    loaded = tightbox.load(model.save(tmp_path))
    assert loaded.calibration == HALVES
    assert calibrated.ious is not None
    again = loaded.predict(image).ious
    assert again is not None
    assert torch.equal(again, calibrated.ious)


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
