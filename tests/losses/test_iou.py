"""The IoU family of losses: hand numbers, reference values, gradients and degenerate boxes."""

import math
from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
from hypothesis import example, given
from hypothesis import strategies as st

from tests.helpers.arithmetic import value_and_gradient
from tests.helpers.references import slice_of
from tightbox.boxes import decode_distances
from tightbox.errors import UserError
from tightbox.losses import ciou_loss, diou_loss, giou_loss, iou_loss

pytestmark = pytest.mark.usefixtures("device")


def iou_log(pred: torch.Tensor, target: torch.Tensor, **options: Any) -> torch.Tensor:
    return iou_loss(pred, target, kind="log", **options)


def iou_linear(pred: torch.Tensor, target: torch.Tensor, **options: Any) -> torch.Tensor:
    return iou_loss(pred, target, kind="linear", **options)


LOSSES: dict[str, Callable[..., torch.Tensor]] = {
    "giou": giou_loss,
    "iou_log": iou_log,
    "iou_linear": iou_linear,
    "diou": diou_loss,
    "ciou": ciou_loss,
}
every_loss = pytest.mark.parametrize("loss", LOSSES.values(), ids=LOSSES.keys())
coordinate = st.floats(-1e6, 1e6, width=32) | st.sampled_from([0.0, 1.0, 50.0, 1e-30, 1e9])
box = st.tuples(coordinate, coordinate, coordinate, coordinate)


def test_unitbox_value_and_gradient() -> None:
    # Pixel distances t, b, l, r = 3, 5, 2, 7 against 4, 4, 3, 6: areas 8 * 9 = 72 and 8 * 9 = 72,
    # I = (3 + 4)(2 + 6) = 56, U = 72 + 72 - 56 = 88, and -ln(56/88) = 0.451985.
    # dL/dx = dX/dx / U - (U + I)/(U I) dI/dx; for t: 9/88 - 144/(88 * 56) * 8 = -0.131494, for b: 9/88 = 0.102273,
    # for l: 8/88 - 144/(88 * 56) * 7 = -0.113636, for r: 8/88 = 0.090909.
    ltrb = torch.tensor([2.0, 3.0, 7.0, 5.0], dtype=torch.float64, requires_grad=True)
    point = torch.tensor([100.0, 50.0], dtype=torch.float64)
    target = decode_distances(point, torch.tensor([3.0, 4.0, 6.0, 4.0], dtype=torch.float64))
    loss = iou_loss(decode_distances(point, ltrb), target)
    loss.backward()
    assert loss.item() == pytest.approx(0.451985, abs=1e-6)
    assert ltrb.grad is not None
    left, top, right, bottom = ltrb.grad.tolist()
    assert (top, bottom, left, right) == pytest.approx((-0.131494, 0.102273, -0.113636, 0.090909), abs=1e-6)


@pytest.mark.parametrize(
    ("loss", "pred", "expected"),
    [
        (iou_log, (0, 0, 4, 4), math.log(2)),  # half of the target
        (iou_linear, (0, 0, 4, 4), 0.5),  # half of the target
        (iou_log, (8, 8, 9, 9), -math.log(1e-6)),  # no overlap: the clamp
        (giou_loss, (0, 0, 4, 4), 0.5),  # nested: C is the target, so GIoU = IoU
        (giou_loss, (4, 8, 8, 16), 1.5),  # corner to corner, C = 8 * 16, U = 64: 1 - (0 - 64/128)
        (diou_loss, (0, 0, 4, 4), 0.5 + 4 / 80),  # centres 2 apart, c² = 16 + 64
        (diou_loss, (4, 8, 8, 16), 1 + 80 / 320),  # centres (4, 8) apart, c² = 64 + 256
        # IoU 3/4, centres 1 apart, c² = 80; v = (2/π (atan(4/6) - atan(4/8)))² = 0.0062674 and
        # α = v / (1/4 + v) = 0.0244564
        (ciou_loss, (0, 0, 4, 6), 0.25 + 1 / 80 + 0.0244564 * 0.0062674),
        (ciou_loss, (0, 0, 4, 3), 0.625 + 6.25 / 80),  # IoU 3/8 is under the gate: no shape term
    ],
)
def test_by_hand(loss: Callable[..., torch.Tensor], pred: Any, expected: Any) -> None:
    pred, target = torch.tensor(pred, dtype=torch.float64), torch.tensor([0.0, 0.0, 4.0, 8.0], dtype=torch.float64)
    assert loss(pred, target).item() == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("name", LOSSES)
@pytest.mark.parametrize("dtype", ["f32", "f64"])
def test_reference_values(name: str, dtype: str) -> None:
    golden = slice_of("losses_seed0")  # of these losses all there is
    for boxes, prefix in (("boxes", ""), ("edge", "edge_")):
        pred, target = golden[f"{boxes}/pred"], golden[f"{boxes}/target"]
        if dtype == "f64":
            pred, target = pred.double(), target.double()
        value, gradient = value_and_gradient(LOSSES[name], pred, target)
        expected = golden[f"{name}/{dtype}/{prefix}none"]
        expected_gradient = golden[f"{name}/{dtype}/{prefix}grad_of_sum"]
        # The reference's CIoU of identical boxes is NaN in float32; ours must be 0, with no gradient.
        undefined = expected.isnan()
        assert not undefined.any() or (name == "ciou" and boxes == "edge")
        assert (value[undefined] == 0).all()
        assert (gradient[undefined] == 0).all()
        defined = ~undefined
        # Their loss weight is 2.
        torch.testing.assert_close(2 * value[defined], expected[defined], rtol=1e-4, atol=1e-6)
        torch.testing.assert_close(2 * gradient[defined], expected_gradient[defined], rtol=1e-4, atol=1e-7)


@pytest.mark.parametrize("loss", [iou_log, iou_linear, giou_loss, diou_loss])  # CIoU: see the next test
def test_gradcheck(loss: Callable[..., torch.Tensor]) -> None:
    target = torch.rand(6, 4, dtype=torch.float64) * 10
    target[:, 2:] += target[:, :2] + 15
    pred = (target + torch.randn(6, 4, dtype=torch.float64)).requires_grad_()
    assert torch.autograd.gradcheck(loss, (pred, target))


def test_alpha_of_ciou_is_a_constant_of_the_gradient() -> None:
    target = torch.tensor([0.0, 0.0, 10.0, 20.0], dtype=torch.float64)
    pred = torch.tensor([1.0, -1.0, 10.5, 17.0], dtype=torch.float64)

    def angle(boxes: torch.Tensor) -> torch.Tensor:
        return torch.atan((boxes[2] - boxes[0]) / (boxes[3] - boxes[1]))

    def shape(boxes: torch.Tensor) -> torch.Tensor:
        return (2 / math.pi * (angle(boxes) - angle(target))) ** 2

    overlap = 1 - iou_linear(pred, target).item()
    alpha = shape(pred).item() / (1 - overlap + shape(pred).item())
    _, expected = value_and_gradient(lambda p, t: diou_loss(p, t) + alpha * shape(p), pred, target)
    _, found = value_and_gradient(ciou_loss, pred, target)
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-8)


@every_loss
@given(box, box)
@example((0.0, 0.0, 1e-20, 1e-20), (0.0, 0.0, 1.0, 1.0))  # squares that vanish in float32
def test_any_boxes_give_a_finite_value_and_gradient(
    loss: Callable[..., torch.Tensor], a: Sequence[float], b: Sequence[float]
) -> None:
    for pred, target in ((a, b), (b, a), (a, a)):
        value, gradient = value_and_gradient(loss, torch.tensor(pred), torch.tensor(target))
        assert value.isfinite()
        assert gradient.isfinite().all()


@every_loss
def test_scale_does_not_matter(loss: Callable[..., torch.Tensor]) -> None:
    pred, target = torch.tensor([1.0, 2.0, 30.0, 40.0]).double(), torch.tensor([3.0, 1.0, 35.0, 38.0]).double()
    torch.testing.assert_close(loss(pred * 7, target * 7), loss(pred, target), rtol=1e-6, atol=0)


@every_loss
def test_half_inputs_and_autocast_compute_in_float32(loss: Callable[..., torch.Tensor]) -> None:
    pred, target = torch.tensor([[0.0, 0.0, 320.0, 300.0]]), torch.tensor([[0.0, 10.0, 300.0, 310.0]])
    expected = loss(pred, target)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        torch.testing.assert_close(loss(pred, target), expected, rtol=0, atol=0)
    torch.testing.assert_close(loss(pred.half(), target.half()), expected, rtol=0, atol=0)


@every_loss
def test_each_pair_of_boxes_has_its_own(loss: Callable[..., torch.Tensor]) -> None:
    pred, target = torch.tensor([[0.0, 0.0, 4.0, 4.0]] * 2), torch.tensor([[0.0, 0.0, 4.0, 8.0], [0.0, 0.0, 4.0, 5.0]])
    assert loss(pred, target).tolist() == pytest.approx([loss(pred[i], target[i]).item() for i in range(2)])
    assert loss(pred[:0], target[:0]).shape == (0,)


def test_unknown_kind() -> None:
    with pytest.raises(UserError, match="square"):
        iou_loss(torch.zeros(4), torch.zeros(4), kind="square")  # type: ignore[arg-type]
