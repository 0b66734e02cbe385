from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tightbox.errors import UserError
from tightbox.promises import Margins, grown

BY_IOU = Margins(0.9, "iou", (0.1, 0.2, 0.3, 0.4), (None, 2.0), (0.5, 0.9), (1.0, 0.5), {"by": "hand"})


def test_distances_by_hand() -> None:
    boxes = [[0, 0, 10, 20], [0, 0, 10, 20], [0, 0, 10, 20]]
    # Width 10 and height 20. The first has the knot's factor 1, the second 0.75 between the knots, and label 1 twice
    # of that; NaN is trusted least.
    expected = np.array([[1, 4, 3, 8], [1.5, 6, 4.5, 12], [1, 4, 3, 8]])
    np.testing.assert_allclose(BY_IOU.distances(boxes, [0.2, 0.7, np.nan], [0, 1, 0]), expected)


def test_units() -> None:
    by_size = Margins(0.9, "size", (1.0,) * 4, (), (), (), {})
    pixels = Margins(0.9, "pixels", (1.0, 2.0, 3.0, 4.0), (), (), (), {})
    np.testing.assert_allclose(by_size.distances([[0, 0, 10, 20]], None, [0]), [[10, 20, 10, 20]])
    np.testing.assert_allclose(pixels.distances([[0, 0, 10, 20]], None, [0]), [[1, 2, 3, 4]])
    assert by_size.distances(np.zeros((0, 4)), None, []).shape == (0, 4)
    with pytest.raises(UserError, match="depend on the predicted IoU"):
        BY_IOU.distances([[0, 0, 1, 1]], None, [0])


def test_grown() -> None:
    np.testing.assert_allclose(grown([[10, 10, 20, 20]], [[1, 2, 3, 4]]), [[9, 8, 23, 24]])
    # 10 + 8 and 20 - 6 pass each other: their middle is 16.
    np.testing.assert_allclose(grown([[10, 10, 20, 20]], [[-8, -1, -6, -1]]), [[16, 11, 16, 19]])


@given(st.lists(st.floats(-1, 2) | st.just(math.nan), min_size=1, max_size=20))
def test_more_trust_never_means_wider_margins(raw: list[float]) -> None:
    factor = BY_IOU.factor(raw)
    order = np.argsort(np.nan_to_num(np.array(raw), nan=-9.0))
    assert (np.diff(factor[order]) <= 0).all()
    assert ((factor >= 0.5) & (factor <= 1)).all()


def test_json_and_back() -> None:
    assert Margins.from_json(BY_IOU.to_json()) == BY_IOU


@pytest.mark.parametrize(
    "change",
    [
        {"coverage": 1},
        {"coverage": None},
        {"unit": "miles"},
        {"sides": [1, 1, 1]},
        {"sides": [1, 1, 1, -1]},
        {"sides": [1, 1, 1, math.inf]},
        {"factors": [0.5, 1.0]},
        {"factors": [0.5]},
        {"raw": [], "factors": []},
        {"raw": [0.9, 0.5]},
        {"about": 3},
        {"classes": ["a"]},
    ],
)
def test_damaged_json(change: dict[str, Any]) -> None:
    with pytest.raises(UserError, match="tightbox calibrate"):
        Margins.from_json(BY_IOU.to_json() | change)
