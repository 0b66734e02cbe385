"""UnitBox's two losses on distances: golden values, closed-form gradients and degenerate distances."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from tests.helpers.arithmetic import value_and_gradient
from tightbox.boxes import decode_distances
from tightbox.losses import iou_loss, l2_distance_loss, unitbox_iou_loss

pytestmark = pytest.mark.usefixtures("device")

# The paper's t, b, l, r at the positions of l, t, r, b.
LTRB = [2, 0, 3, 1]


def boxes_iou_loss(pred: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    point = torch.tensor([40.0, 30.0], dtype=pred.dtype)
    return iou_loss(decode_distances(point, pred), decode_distances(point, target))


@pytest.mark.parametrize("loss", [unitbox_iou_loss, boxes_iou_loss])
def test_golden(loss: Callable[..., torch.Tensor]) -> None:
    # Worked out in test_iou.py: X = X̃ = 72, I = 56, U = 88.
    pred = torch.tensor([3.0, 5.0, 2.0, 7.0], dtype=torch.float64)[LTRB]
    target = torch.tensor([4.0, 4.0, 3.0, 6.0], dtype=torch.float64)[LTRB]
    value, gradient = value_and_gradient(loss, pred, target)
    assert value.item() == pytest.approx(0.451985, abs=1e-6)
    expected = torch.tensor([-0.131494, 0.102273, -0.113636, 0.090909], dtype=torch.float64)[LTRB]
    assert gradient.tolist() == pytest.approx(expected.tolist(), abs=1e-6)


def closed_form(x: Sequence[float], y: Sequence[float]) -> tuple[float, list[float]]:
    """Algorithm 1 and equations 3 to 7, side by side as in the paper: t, b, l, r."""
    (t, b, l, r), (t_, b_, l_, r_) = x, y  # noqa: E741
    area, true_area = (t + b) * (l + r), (t_ + b_) * (l_ + r_)
    height, width = min(t, t_) + min(b, b_), min(l, l_) + min(r, r_)
    intersection = height * width
    union = area + true_area - intersection
    area_gradient = [l + r, l + r, t + b, t + b]
    intersection_gradient = [side * (p < q) for side, p, q in zip([width] * 2 + [height] * 2, x, y, strict=True)]
    gradient = [
        da / union - (union + intersection) / (union * intersection) * di
        for da, di in zip(area_gradient, intersection_gradient, strict=True)
    ]
    return -math.log(intersection / union), gradient


distance = st.floats(0.01, 300)
four = st.tuples(distance, distance, distance, distance)


@given(four, four)
def test_closed_form(x: Sequence[float], y: Sequence[float]) -> None:
    if any(p == q for p, q in zip(x, y, strict=True)):
        return  # a kink, where the derivative is one of many
    pred, target = (torch.tensor(side, dtype=torch.float64)[LTRB] for side in (x, y))
    loss, by_hand = closed_form(x, y)
    for function in (unitbox_iou_loss, boxes_iou_loss):
        value, gradient = value_and_gradient(function, pred, target)
        if loss < 13:  # iou_loss ends at 13.8 and loses digits near it, where boxes share a sliver
            assert value.item() == pytest.approx(loss, abs=1e-6)
            assert gradient[[1, 3, 0, 2]].tolist() == pytest.approx(by_hand, rel=1e-6, abs=1e-9)


@given(four, four, st.floats(0.1, 10))
def test_scale_does_not_matter(x: Sequence[float], y: Sequence[float], factor: float) -> None:
    pred, target = torch.tensor(x, dtype=torch.float64), torch.tensor(y, dtype=torch.float64)
    loss = unitbox_iou_loss(pred, target).item()
    assert unitbox_iou_loss(factor * pred, factor * target).item() == pytest.approx(loss, abs=1e-9)


any_distance = st.floats(-1e4, 1e4, width=32) | st.sampled_from([0.0, 1e-30, 1e-7])


@given(st.tuples(*[any_distance] * 4), st.tuples(*[any_distance] * 4))
def test_any_distances_give_a_finite_loss_and_gradient(x: Sequence[float], y: Sequence[float]) -> None:
    value, gradient = value_and_gradient(unitbox_iou_loss, torch.tensor(x), torch.tensor(y))
    assert value.isfinite()
    assert gradient.isfinite().all()


def test_no_overlap() -> None:
    # The prediction ends to the left of its pixel's object: nothing is shared, and the clamps give
    # ln 18 + 2·13.8 − ... : shared width 0 → −ln 1e-6, shared height 3; union 2·3 + 4·3.
    pred, target = torch.tensor([3.0, 1.0, -1.0, 2.0]), torch.tensor([0.0, 1.0, 4.0, 2.0])
    expected = math.log(6 + 12) - math.log(1e-6) - math.log(3)
    assert unitbox_iou_loss(pred, target).item() == pytest.approx(expected, rel=1e-6)


def test_a_thin_overlap_still_pulls() -> None:
    # 1e-3 of a pixel wide and high in a box of 100x100: an IoU of 1e-10, under the clamp of iou_loss.
    pred, target = torch.full((4,), 5e-4), torch.full((4,), 50.0)
    _, gradient = value_and_gradient(unitbox_iou_loss, pred, target)
    assert gradient.tolist() == pytest.approx([-1000] * 4, rel=1e-3)  # −1 / the shared side
    _, gradient = value_and_gradient(boxes_iou_loss, pred, target)
    assert gradient.tolist() == [0] * 4


def test_l2_by_hand() -> None:
    # (3 − 4)² + (5 − 4)² + (2 − 3)² + (7 − 6)² = 4; the gradient is 2(x − x̃).
    pred, target = torch.tensor([[3.0, 5.0, 2.0, 7.0]])[:, LTRB], torch.tensor([[4.0, 4.0, 3.0, 6.5]])[:, LTRB]
    value, gradient = value_and_gradient(l2_distance_loss, pred, target)
    assert value.tolist() == [1 + 1 + 1 + 0.25]
    assert gradient.tolist() == [[-2, -2, 1, 2]]
    assert l2_distance_loss(10 * pred, 10 * target).tolist() == [325]  # 10²: size matters


@pytest.mark.parametrize("loss", [unitbox_iou_loss, l2_distance_loss])
def test_several_boxes_and_half_precision(loss: Callable[..., torch.Tensor]) -> None:
    pred = torch.tensor([[3.0, 5.0, 2.0, 7.0], [300.0, 500.0, 200.0, 700.0]])
    target = torch.tensor([[4.0, 4.0, 3.0, 6.0], [3.0, 4.0, 5.0, 6.0]])
    assert loss(pred, target).tolist() == pytest.approx([loss(pred[i], target[i]).item() for i in range(2)])
    assert loss(pred[:0], target[:0]).shape == (0,)
    torch.testing.assert_close(loss(pred.half(), target.half()), loss(pred, target), rtol=0, atol=0)


@pytest.mark.parametrize("loss", [unitbox_iou_loss, l2_distance_loss])
def test_gradcheck(loss: Callable[..., torch.Tensor]) -> None:
    pred = (torch.rand(5, 4, dtype=torch.float64) * 9 + 1).requires_grad_()
    assert torch.autograd.gradcheck(loss, (pred, torch.rand(5, 4, dtype=torch.float64) * 9 + 1))
