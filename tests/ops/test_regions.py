"""Regions of a map: drawn ellipses come back, and with a perfect box map so do their boxes."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.helpers.one_image import pixel_regions
from tightbox.boxes import decode_distances
from tightbox.errors import UserError
from tightbox.ops import regions
from tightbox.structures import Targets

pytestmark = pytest.mark.usefixtures("device")


def reference(confidence: torch.Tensor, threshold: float) -> list[tuple[Any, ...]]:
    """Floods one region at a time; its pixels, mean x, y and second moments about them, as sums over pixels."""
    height, width = confidence.shape
    left = {(y, x) for y in range(height) for x in range(width) if confidence[y, x] > threshold}
    found = []
    for start in sorted(left):
        if start not in left:
            continue
        left.remove(start)
        pixels = [start]
        for y, x in pixels:
            around = {(y + dy, x + dx) for dy in (-1, 0, 1) for dx in (-1, 0, 1)} & left
            left -= around
            pixels += around
        cx, cy = (sum(p[i] + 0.5 for p in pixels) / len(pixels) for i in (1, 0))
        xx = sum((x + 0.5 - cx) ** 2 for _, x in pixels) / len(pixels) + 1 / 12
        yy = sum((y + 0.5 - cy) ** 2 for y, _ in pixels) / len(pixels) + 1 / 12
        xy = sum((y + 0.5 - cy) * (x + 0.5 - cx) for y, x in pixels) / len(pixels)
        (small, large), axes = np.linalg.eigh([[xx, xy], [xy, yy]])
        mean = sum(confidence[p].item() for p in pixels) / len(pixels)
        found.append((len(pixels), cx, cy, 2 * math.sqrt(large), 2 * math.sqrt(small), axes[:, 1], mean))
    return found


@settings(deadline=None)
@given(st.integers(0, 10**6), st.sampled_from([(1, 1), (1, 9), (7, 5), (12, 16)]), st.floats(0.1, 0.9))
def test_equals_the_reference(seed: int, size: tuple[int, int], threshold: float) -> None:
    confidence = torch.rand(size, generator=torch.Generator(torch.get_default_device()).manual_seed(seed))
    found, expected = regions(confidence, threshold), reference(confidence, threshold)
    assert len(found.areas) == len(expected)
    for i, (area, cx, cy, major, minor, axis, mean) in enumerate(expected):
        assert found.areas[i] == area
        assert found.ellipses[i, [0, 1, 3, 4]].tolist() == pytest.approx([major, minor, cx, cy], rel=1e-5)
        assert found.mean_confidence[i].item() == pytest.approx(mean, rel=1e-5)
        x, y = found.centres[i].tolist()
        assert x in (math.floor(cx - 1e-9), math.floor(cx + 1e-9))  # the mean of a region may lie between two pixels
        assert y in (math.floor(cy - 1e-9), math.floor(cy + 1e-9))
        assert found.centre_confidence[i] == confidence[y, x]
        if major - minor > 1e-3:  # the axes of a circle say nothing
            angle = found.ellipses[i, 2].item()
            assert abs(math.cos(angle) * axis[0] + math.sin(angle) * axis[1]) == pytest.approx(1, abs=1e-4)


@st.composite
def separate_boxes(draw: st.DrawFn) -> list[tuple[float, float, float, float]]:
    """Up to nine boxes, each within its own cell of a 3x3 grid of 40 pixels, with a free pixel around."""
    cells = draw(st.lists(st.integers(0, 8), unique=True, max_size=9))
    boxes = []
    for cell in cells:
        x, y = 40 * (cell % 3), 40 * (cell // 3)
        x1, y1 = draw(st.floats(1, 30, width=32)), draw(st.floats(1, 30, width=32))
        boxes.append((x + x1, y + y1, x + draw(st.floats(x1 + 0.5, 38)), y + draw(st.floats(y1 + 0.5, 38))))
    return boxes


@settings(deadline=None)
@given(separate_boxes(), st.sampled_from(["ellipse", "box"]))
def test_drawn_objects_come_back_as_exact_boxes(boxes: list[tuple[float, ...]], shape: Any) -> None:
    targets = Targets.of(torch.tensor(boxes), torch.zeros(len(boxes)))
    maps = pixel_regions((120, 120), targets, shape=shape)
    found = regions(0.9 * maps.confidence[0], 0.5)
    assert len(found.areas) == len(boxes)
    x, y = found.centres.unbind(1)
    assert (found.centre_confidence == 0.9).all()
    rebuilt = decode_distances(found.centres + 0.5, maps.distances[:, y, x].T)
    matched = maps.matched[y, x]
    assert sorted(matched.tolist()) == list(range(len(boxes)))
    torch.testing.assert_close(rebuilt, targets.boxes[matched], rtol=0, atol=1e-4)


@pytest.mark.parametrize("angle", [0, 0.7, math.pi / 2, -1.2])
def test_the_ellipse_of_a_drawn_ellipse(angle: float) -> None:
    y, x = torch.meshgrid(torch.arange(120) + 0.5, torch.arange(160) + 0.5, indexing="ij")
    u = (x - 80.2) * math.cos(angle) + (y - 59.7) * math.sin(angle)
    v = (y - 59.7) * math.cos(angle) - (x - 80.2) * math.sin(angle)
    found = regions(((u / 40) ** 2 + (v / 18) ** 2 <= 1).float(), 0.5)
    major, minor, turned, cx, cy = found.ellipses[0].tolist()
    # Pixels on the outline are in or out as a whole: half a pixel at the most.
    assert (major, minor, cx, cy) == pytest.approx((40, 18, 80.2, 59.7), abs=0.25)
    assert math.sin(turned - angle) == pytest.approx(0, abs=0.01)  # the same axis, perhaps the other way


def test_one_pixel_regions_and_the_border() -> None:
    confidence = torch.zeros(6, 9)
    confidence[0, 0] = confidence[5, 8] = 0.7
    confidence[2:4, 8] = 0.8
    found = regions(confidence, 0.5)
    assert found.centres.tolist() == [[0, 0], [8, 3], [8, 5]]
    assert found.areas.tolist() == [1, 2, 1]
    # A square of side 1 has a second moment of 1/12 about each axis: the radius is 2·√(1/12) = 0.577.
    assert found.ellipses[0, [0, 1, 3, 4]].tolist() == pytest.approx([0.57735, 0.57735, 0.5, 0.5], abs=1e-5)
    # Two of them: along the column 1/12 + 1/4, so the radii are 2·√(1/3) and 2·√(1/12).
    assert found.ellipses[1].tolist() == pytest.approx([1.1547, 0.57735, math.pi / 2, 8.5, 3], abs=1e-4)
    assert found.mean_confidence.tolist() == pytest.approx([0.7, 0.8, 0.7])


def test_corners_join() -> None:
    assert regions(torch.eye(4), 0.5).areas.tolist() == [4]


@pytest.mark.parametrize("confidence", [torch.zeros(5, 7), torch.full((5, 7), float("nan")), torch.zeros(0, 7)])
def test_no_region(confidence: torch.Tensor) -> None:
    found = regions(confidence, 0.0)
    assert len(found.areas) == 0
    assert found.centres.shape == (0, 2)
    assert found.ellipses.shape == (0, 5)


def test_nan_pixels_belong_to_no_region() -> None:
    confidence = torch.full((5, 7), float("nan"))
    confidence[2, 1:3] = 0.9
    found = regions(confidence, 0.5)
    assert found.centres.tolist() == [[2, 2]]
    assert found.mean_confidence.tolist() == pytest.approx([0.9])


def test_a_ring_is_read_at_its_centre_off_the_region() -> None:
    confidence = torch.full((7, 7), 0.8)
    confidence[1:6, 1:6] = 0.1
    found = regions(confidence, 0.5)
    assert found.centres.tolist() == [[3, 3]]
    assert found.centre_confidence.tolist() == pytest.approx([0.1])
    assert found.mean_confidence.tolist() == pytest.approx([0.8])


def test_a_map_with_gradients_in_half_precision_and_a_map_of_another_shape() -> None:
    found = regions(torch.full((3, 3), 0.75, dtype=torch.bfloat16, requires_grad=True), 0.5)
    assert found.areas.tolist() == [9]
    assert found.mean_confidence.dtype == torch.float32
    with pytest.raises(UserError, match=r"shape \(1, 3, 3\) cannot have regions; give \(height, width\)"):
        regions(torch.zeros(1, 3, 3), 0.5)
