"""Box geometry against hand-derived numbers and a slow reference."""

import math
from collections.abc import Sequence
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from tests.helpers.arithmetic import iou_of_two
from tightbox.boxes import (
    area,
    centerness,
    clip_boxes,
    decode_deltas,
    decode_distances,
    encode_deltas,
    encode_distances,
    intersection_union,
    iou,
    pairwise_iou,
)

pytestmark = pytest.mark.usefixtures("device")

coordinate = st.floats(-1e4, 1e4, width=32) | st.sampled_from([0.0, 1.0, 1e-30])
box = st.tuples(coordinate, coordinate, coordinate, coordinate)
corner, side = st.floats(-1e3, 1e3), st.floats(0.1, 1e3)
sound_box = st.builds(lambda x, y, width, height: (x, y, x + width, y + height), corner, corner, side, side)


@pytest.mark.parametrize(
    ("a", "b", "expected"),
    [
        ((0, 0, 4, 4), (0, 0, 4, 4), 1.0),  # identical
        ((0, 0, 4, 4), (2, 0, 6, 4), 1 / 3),  # 8 shared of 16 + 16 - 8
        ((0, 0, 4, 4), (1, 1, 3, 3), 0.25),  # nested: 4 of 16
        ((0, 0, 4, 4), (4, 0, 8, 4), 0.0),  # touching
        ((0, 0, 4, 4), (9, 9, 10, 10), 0.0),  # apart in both directions: two negative sides make no area
        ((1, 1, 1, 1), (1, 1, 1, 1), 0.0),  # both points
        ((0, 0, 4, 4), (3, 3, 1, 1), 0.0),  # inverted inside
        ((0, 0, 1e-4, 1e-4), (0, 0, 1e-4, 1e-4), 1.0),  # tiny is still tight
    ],
)
def test_iou_by_hand(a: Sequence[float], b: Sequence[float], expected: Any) -> None:
    left, right = torch.tensor(a, dtype=torch.float32), torch.tensor(b, dtype=torch.float32)
    assert iou(left, right).item() == pytest.approx(expected)
    assert iou(right, left).item() == pytest.approx(expected)


@given(st.lists(box, min_size=1, max_size=4), st.lists(box, min_size=1, max_size=3))
def test_pairwise_iou_is_that_of_each_pair(a: Sequence[Sequence[float]], b: Sequence[Sequence[float]]) -> None:
    found = pairwise_iou(torch.tensor(a, dtype=torch.float64), torch.tensor(b, dtype=torch.float64))
    expected = torch.tensor([[iou_of_two(x, y) for y in b] for x in a], dtype=torch.float64)
    torch.testing.assert_close(found, expected)
    assert ((found >= 0) & (found <= 1)).all()


@given(box, box)
def test_float32_iou_stays_in_range(a: Sequence[float], b: Sequence[float]) -> None:
    found = iou(torch.tensor(a), torch.tensor(b))
    assert 0 <= found <= 1


def test_pairwise_iou_has_gradients() -> None:
    boxes = torch.tensor([[0.0, 0, 4, 4], [1, 2, 6, 5], [9, 9, 12, 11]], dtype=torch.float64)
    others = torch.tensor([[0.5, 1, 5, 3], [2, 0.25, 3, 7]], dtype=torch.float64)
    assert torch.autograd.gradcheck(pairwise_iou, (boxes.requires_grad_(), others.requires_grad_()))


def test_pairwise_iou_of_nothing() -> None:
    assert pairwise_iou(torch.zeros(0, 4), torch.zeros(3, 4)).shape == (0, 3)
    assert pairwise_iou(torch.zeros(3, 4), torch.zeros(0, 4)).shape == (3, 0)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_computed_in_float32(dtype: torch.dtype) -> None:
    # 300 * 300 = 90000 is beyond float16's largest number, 65504.
    boxes = torch.tensor([[0.0, 0.0, 300.0, 300.0]], dtype=dtype)
    assert area(boxes).dtype == torch.float32
    assert area(boxes).item() == 90000
    assert pairwise_iou(boxes, boxes).item() == 1
    assert clip_boxes(boxes, (200, 200)).dtype == torch.float32


def test_double_stays_double() -> None:
    boxes = torch.rand(3, 4, dtype=torch.float64)
    assert {t.dtype for t in (area(boxes), iou(boxes, boxes), clip_boxes(boxes, (1, 1)))} == {torch.float64}
    assert {t.dtype for t in intersection_union(boxes, boxes)} == {torch.float64}


def test_distances_go_to_boxes_and_back() -> None:
    points = torch.rand(5, 1, 2, dtype=torch.float64) * 100
    distances = torch.rand(5, 3, 4, dtype=torch.float64) * 50
    boxes = decode_distances(points.expand(5, 3, 2), distances)
    torch.testing.assert_close(encode_distances(points, boxes.reshape(5, 3, 4)), distances)


def test_distances_by_hand() -> None:
    # From (10, 20): left 10 - 4 = 6, top 20 - 5 = 15, right 12 - 10 = 2, bottom 50 - 20 = 30.
    assert encode_distances(torch.tensor([10, 20]), torch.tensor([4, 5, 12, 50])).tolist() == [6, 15, 2, 30]


@pytest.mark.parametrize("size", [(30, 20), torch.tensor([30, 20])])
def test_clip_takes_height_first(size: Any) -> None:
    boxes = torch.tensor([[-5.0, -5.0, 50.0, 50.0], [25.0, 35.0, 26.0, 36.0], [1.0, 2.0, 3.0, 4.0]])
    # A box wholly outside becomes a point on the border.
    expected = [[0, 0, 20, 30], [20, 30, 20, 30], [1, 2, 3, 4]]
    assert clip_boxes(boxes, size).tolist() == expected
    assert clip_boxes(boxes[None], size).tolist() == [expected]


def test_clip_to_a_size_for_each_box() -> None:
    boxes = torch.tensor([[-5.0, -5.0, 50.0, 50.0]] * 2)
    assert clip_boxes(boxes, torch.tensor([[30, 20], [10, 40]])).tolist() == [[0, 0, 20, 30], [0, 0, 40, 10]]


def test_clip_exports_with_the_size_as_an_input() -> None:
    class Clip(torch.nn.Module):
        def forward(self, boxes: torch.Tensor, size: torch.Tensor) -> torch.Tensor:
            return clip_boxes(boxes, size)

    inputs = torch.rand(4, 4) * 50, torch.tensor([30, 20])
    exported = torch.export.export(Clip(), inputs).module()
    other = torch.tensor([10, 5])
    torch.testing.assert_close(exported(inputs[0], other), clip_boxes(inputs[0], (10, 5)))


def test_deltas_by_hand() -> None:
    # The anchor is 10 wide and 20 high around (5, 10); the box 20 wide and 5 high around (20, 12.5).
    # It moves 15 / 10 and 2.5 / 20 of the anchor, and its sides are 2 and 1/4 of the anchor's.
    anchor, box = torch.tensor([0, 0, 10, 20]), torch.tensor([10, 10, 30, 15])
    found = encode_deltas(anchor, box)
    assert found.tolist() == pytest.approx([1.5, 0.125, math.log(2), math.log(0.25)])
    assert decode_deltas(anchor, found).tolist() == pytest.approx([10, 10, 30, 15])
    assert decode_deltas(anchor, torch.zeros(4)).tolist() == [0, 0, 10, 20]


@given(sound_box, sound_box)
def test_deltas_go_to_boxes_and_back(anchor: Any, box: Any) -> None:
    anchor, box = torch.tensor(anchor, dtype=torch.float64), torch.tensor(box, dtype=torch.float64)
    deltas = encode_deltas(anchor, box)
    found = decode_deltas(anchor, deltas)
    side = (box - anchor).abs().max() + (box[2:] - box[:2]).max() + (anchor[2:] - anchor[:2]).max()
    if deltas[2:].max() <= math.log(1000 / 16):
        torch.testing.assert_close(found, box, rtol=0, atol=1e-12 * (side.item() + 1e3))
    else:
        assert (found[2:] - found[:2] < box[2:] - box[:2]).any()


def test_growth_is_bounded() -> None:
    # exp() of at most ln(1000 / 16): 10 pixels become 625, around their middle. Nothing bounds how a box shrinks.
    anchor = torch.tensor([0.0, 0.0, 10.0, 10.0])
    assert decode_deltas(anchor, torch.tensor([0.0, 0.0, 99.0, math.inf])).tolist() == pytest.approx(
        [5 - 312.5, 5 - 312.5, 5 + 312.5, 5 + 312.5]
    )
    assert decode_deltas(anchor, torch.tensor([0.0, 0.0, -math.inf, -99.0])).tolist() == [5, 5, 5, 5]


def test_deltas_have_gradients() -> None:
    torch.manual_seed(0)
    corners = torch.rand(5, 2, dtype=torch.float64) * 50
    anchors = torch.cat([corners, corners + 5 + torch.rand(5, 2, dtype=torch.float64) * 50], dim=1)
    deltas = torch.randn(5, 4, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda d: decode_deltas(anchors, d), [deltas])
    boxes = decode_deltas(anchors, deltas).detach().requires_grad_()
    assert torch.autograd.gradcheck(lambda b: encode_deltas(anchors, b), [boxes])


def test_the_bound_stops_the_gradient_of_the_side_alone() -> None:
    deltas = torch.tensor([0.1, 0.1, 9.0, 1.0], requires_grad=True)
    decode_deltas(torch.tensor([0.0, 0.0, 10.0, 10.0]), deltas)[2:].sum().backward()
    # right = 5 + 10 dx + 5 e^dw and bottom = 5 + 10 dy + 5 e^dh.
    assert deltas.grad is not None
    assert deltas.grad.tolist() == pytest.approx([10, 10, 0, 5 * math.e])


def test_deltas_of_no_boxes() -> None:
    assert encode_deltas(torch.zeros(0, 4), torch.zeros(0, 4)).shape == (0, 4)
    assert decode_deltas(torch.zeros(0, 4), torch.zeros(0, 4)).shape == (0, 4)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_deltas_are_computed_in_float32(dtype: torch.dtype) -> None:
    anchor = torch.tensor([0.0, 0.0, 512.0, 512.0], dtype=dtype)
    assert decode_deltas(anchor, torch.zeros(4, dtype=dtype)).dtype == torch.float32
    assert encode_deltas(anchor, anchor).dtype == torch.float32
    # 512 · e⁴ / 2 + 256 = 14233.35, of which half precision keeps 3 digits.
    found = decode_deltas(anchor, torch.tensor([0, 0, 4, 4], dtype=dtype))
    assert found[2].item() == pytest.approx(256 + 256 * math.exp(4), rel=1e-6)


@pytest.mark.parametrize(
    ("point", "box", "expected"),
    [
        ((5, 5), (0, 0, 10, 10), 1.0),  # the middle
        ((2, 5), (0, 0, 10, 10), 0.5),  # sqrt(2 / 8)
        ((2, 1), (0, 0, 10, 10), 1 / 6),  # sqrt(2/8 · 1/9)
        ((25, 10), (0, 0, 100, 50), math.sqrt(25 / 75 * 10 / 40)),  # not square
        ((0, 5), (0, 0, 10, 10), 0.0),  # on the edge
        ((10, 10), (0, 0, 10, 10), 0.0),  # on the corner
        ((-1, 5), (0, 0, 10, 10), 0.0),  # outside
        ((-1, -1), (0, 0, 10, 10), 0.0),  # outside both ways: two negative ratios make no positive one
        ((5, 5), (10, 10, 0, 0), 0.0),  # inverted
        ((5, 5), (5, 5, 5, 5), 0.0),  # no area: 0, not 0 / 0
        ((0.5, 0.5), (0, 0, 1, 1), 1.0),  # one pixel
    ],
)
def test_centerness_by_hand(point: Sequence[float], box: Sequence[float], expected: Any) -> None:
    found = centerness(torch.tensor([point]), torch.tensor([box]))
    assert found.shape == (1,)
    assert found.item() == pytest.approx(expected)


def test_centerness_of_no_points() -> None:
    assert centerness(torch.zeros(0, 2), torch.zeros(0, 4)).shape == (0,)
