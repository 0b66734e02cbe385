"""FDDB's curves against painted pixels, an exhaustive matching, and cases done by hand."""

from __future__ import annotations

import json
import math
import sys
from itertools import permutations
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from tightbox.errors import UserError
from tightbox.evaluation.fddb import FddbCurves, drawn, fddb_curves, plot_fddb, region_ious

SIZE = (60, 80)
none = np.zeros((0, 4))


def painted(region: np.ndarray, fine: int = 16) -> np.ndarray:
    """Which of many points on the centre lines of the rows of pixels are in a region."""
    y, x = np.mgrid[: SIZE[0], : SIZE[1] * fine] + 0.5
    x /= fine
    if len(region) == 4:
        in_box: NDArray[Any] = (x >= region[0]) & (x <= region[2]) & (y >= region[1]) & (y <= region[3])
        return in_box
    a, b, angle, cx, cy = region
    u = (x - cx) * math.cos(angle) + (y - cy) * math.sin(angle)
    v = (y - cy) * math.cos(angle) - (x - cx) * math.sin(angle)
    inside: NDArray[Any] = (u / a) ** 2 + (v / b) ** 2 <= 1
    return inside


box = st.tuples(*[st.floats(-5, 60)] * 2, *[st.floats(10, 40)] * 2).map(
    lambda b: (b[0], b[1], b[0] + b[2], b[1] + b[3])
)
radius, place = st.floats(6, 25), st.floats(0, 60)
ellipse = st.tuples(radius, radius, st.floats(-4, 4), place, place)


@settings(max_examples=40, deadline=None)
@given(ellipse, box | ellipse)
def test_iou_equals_painted_regions(truth: tuple[float, ...], found: tuple[float, ...]) -> None:
    a, b = (painted(np.array(region)) for region in (truth, found))
    expected = (a & b).sum() / max((a | b).sum(), 1)
    iou = region_ious(np.array([truth]), np.array([found]), SIZE).item()
    # Each end of a row is up to half a point off: 1/32 of regions 10 pixels wide or more.
    assert iou == pytest.approx(expected, abs=0.01)


@pytest.mark.parametrize(
    ("a", "b", "expected"),
    [
        ((20, 10, 0, 40, 30), (20, 20, 60, 40), math.pi / 4),  # inscribed: πab of 4ab
        ((10, 20, math.pi / 2, 40, 30), (20, 20, 60, 40), math.pi / 4),  # the same, turned
        ((20, 10, 0, 40, 30), (40, 20, 60, 40), math.pi / 4 / (1 + math.pi / 4)),  # half of it: π/2 of 2 + π/2
        ((20, 20, 0, 40, 30), (10, 10, 1, 40, 30), 0.25),  # concentric circles
        ((20, 20, 0, 80, 30), (60, 10, 80, 50), math.pi / 4),  # half of both is off the image
        ((10, 10, 0, 20, 30), (50, 20, 70, 40), 0),  # apart
        ((0, 0, 0, 20, 30), (10, 20, 30, 40), 0),  # a point
    ],
)
def test_iou_by_hand(a: tuple[float, ...], b: tuple[float, ...], expected: float) -> None:
    assert region_ious(np.array([a]), np.array([b]), SIZE).item() == pytest.approx(expected, abs=0.005)


def test_regions_are_drawn_in_whole_pixels() -> None:
    # The program rounds the corners 10.4 + 5 = 15.4 to 15, and fills the pixels 10 to 15: from 10 to 16.
    assert drawn(np.array([[10.4, 5.6, 15.4, 8.5]])).tolist() == [[10, 6, 16, 9]]
    # Radii 12.9 and 7.2 are cut to 12 and 7, and the outline's pixels are filled too; the centre of pixel 30 is 30.5.
    assert drawn(np.array([[12.9, 7.2, 1.1, 30.4, 19.6]])).tolist() == [[12.5, 7.5, 1.1, 30.5, 20.5]]


def test_curves_by_hand() -> None:
    # Drawn, an ellipse of radii 9.5 in pixel 20 is a circle of radius 9.5 around 20.5, and the box from 11 to 29 is
    # (11, 11, 30, 30): IoU π/4 = 0.785 (of pixels: 0.78).
    face, other = (9.0, 9.0, 0.0, 20.0, 20.0), (9.0, 9.0, 0.0, 60.0, 40.0)
    hit, miss = (11.0, 11.0, 29.0, 29.0), (51.0, 1.0, 69.0, 19.0)
    half = (11.0, 11.0, 29.0, 19.0)  # the upper 9 of 19 rows: IoU under 0.5
    quality = region_ious(drawn(np.array([face])), drawn(np.array([hit, half])), SIZE)[0]
    assert quality[0] == pytest.approx(math.pi / 4, abs=0.01)
    assert 0 < quality[1] < 0.5
    curves = fddb_curves(
        [np.array([face, other]), np.array([face])],
        [np.array([miss, hit]), np.array([half, hit])],
        [np.array([0.9, 0.8]), np.array([0.8, 0.3])],
        [SIZE, SIZE],
    )
    assert curves.faces == 3
    assert curves.thresholds.tolist() == [0.9, 0.8, 0.3]
    # 0.9: the miss. 0.8: the hit of the first image and, in the second, half a face, which is a false positive but
    # counts in the continuous score. 0.3: the whole face takes the half one's place.
    assert curves.false_positives.tolist() == [1, 2, 2]
    assert curves.discrete.tolist() == pytest.approx([0, 1 / 3, 2 / 3])
    assert curves.continuous.tolist() == pytest.approx([0, sum(quality) / 3, 2 * quality[0] / 3])
    assert curves.at(0) == (0, 0)
    assert curves.at(1) == (0, 0)
    assert curves.at(2) == pytest.approx((2 / 3, 2 * quality[0] / 3))


def test_ellipses_may_be_detected_too() -> None:
    truth = np.array([[12.0, 8.0, 0.4, 30.0, 30.0], [10.0, 6.0, 1.4, 60.0, 20.0]])
    curves = fddb_curves([truth], [truth], [np.array([1.0, 0.5])], [SIZE])
    assert curves.discrete.tolist() == [0.5, 1]
    assert curves.continuous.tolist() == pytest.approx([0.5, 1])
    assert curves.false_positives.tolist() == [0, 0]


def reference(
    truths: list[np.ndarray], regions: list[np.ndarray], scores: list[np.ndarray]
) -> list[tuple[float, int, float, float]]:
    """For every threshold, every one-to-one matching of every image."""
    faces = sum(map(len, truths))
    points = []
    for threshold in sorted({s for score in scores for s in score.tolist()}, reverse=True):
        found, sums = 0, np.zeros(2)
        for truth, region, score in zip(truths, regions, scores, strict=True):
            reached = region[score >= threshold]
            found += len(reached)
            ious = region_ious(drawn(truth), drawn(reached), SIZE)
            ious = ious if len(truth) <= len(reached) else ious.T
            rows = np.arange(len(ious))
            matchings = [ious[rows, list(columns)] for columns in permutations(range(ious.shape[1]), len(ious))]
            best = max(matchings, key=lambda pairs: pairs.sum())
            sums += (best > 0.5).sum(), best.sum()
        points.append((threshold, int(found - sums[0]), sums[0] / faces, sums[1] / faces))
    return points


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 10**6))
def test_equals_the_reference(seed: int) -> None:
    random = np.random.default_rng(seed)
    truths, regions, scores = [], [], []
    for _ in range(3):
        count, found = random.integers(0, 4), random.integers(0, 6)
        truth = np.c_[
            random.uniform(5, 12, (count, 2)), random.uniform(-2, 2, count), random.uniform(10, 40, (count, 2))
        ]
        near = truth[random.integers(0, count, found), 3:] if count else np.full((found, 2), 20.0)
        corner = near - random.uniform(4, 12, (found, 2))
        truths.append(truth)
        regions.append(np.c_[corner, corner + random.uniform(10, 24, (found, 2))])
        scores.append(random.integers(1, 5, found) / 10)
    truths[0] = np.r_[truths[0], [[8.0, 6.0, 0.0, 20.0, 20.0]]]
    curves = fddb_curves(truths, regions, scores, [SIZE] * 3)
    points = list(zip(*(v.tolist() for v in list(vars(curves).values())[1:]), strict=True))
    for point, wanted in zip(points, reference(truths, regions, scores), strict=True):
        assert point == pytest.approx(wanted)


def test_nothing_found_and_nothing_to_find() -> None:
    face = np.array([[9.0, 9.0, 0.0, 20.0, 20.0]])
    curves = fddb_curves([face], [none], [np.zeros(0)], [SIZE])
    assert len(curves.thresholds) == len(curves.discrete) == 0
    assert curves.at(1000) == (0, 0)
    with pytest.raises(UserError, match="no annotated faces"):
        fddb_curves([np.zeros((0, 5))], [np.array([[11, 11, 29, 29]])], [np.ones(1)], [SIZE])
    # An image without faces has only false positives.
    both = fddb_curves(
        [face, np.zeros((0, 5))], [none, np.array([[11, 11, 29, 29]])], [np.zeros(0), np.ones(1)], [SIZE] * 2
    )
    assert both.false_positives.tolist() == [1]


@pytest.mark.parametrize(
    ("region", "score"),
    [
        (np.full((1, 4), np.nan), np.ones(1)),  # no number
        (np.zeros((1, 4)), np.array([np.inf])),  # a score without end
        (np.zeros((2, 4)), np.ones(1)),  # one score for two
        (np.zeros((1, 6)), np.ones(1)),  # neither box nor ellipse
    ],
)
def test_bad_detections_are_named(region: np.ndarray, score: np.ndarray) -> None:
    face = np.array([[9.0, 9.0, 0.0, 20.0, 20.0]])
    with pytest.raises(UserError, match="image 2 has regions of shape"):
        fddb_curves([face] * 2, [none, region], [np.zeros(0), score], [SIZE] * 2)


def test_plot_and_json(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    curves = FddbCurves(2, np.array([0.9, 0.8]), np.array([0, 3]), np.array([0.5, 1.0]), np.array([0.4, 0.8]))
    assert json.loads(json.dumps(curves.to_dict())) == {
        "faces": 2,
        "thresholds": [0.9, 0.8],
        "false_positives": [0, 3],
        "discrete": [0.5, 1.0],
        "continuous": [0.4, 0.8],
    }
    plot_fddb(
        {"UnitBox": curves, "nothing": fddb_curves([np.ones((1, 5))], [none], [np.zeros(0)], [SIZE])},
        tmp_path / "a.png",
    )
    assert (tmp_path / "a.png").read_bytes().startswith(b"\x89PNG")
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    with pytest.raises(UserError, match=r"pip install 'tightbox\[viz\]'"):
        plot_fddb({"UnitBox": curves}, tmp_path / "b.png")
