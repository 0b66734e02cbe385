"""ReLU with a floor: its values and one-way gradient, and dead pixels that recover where ReLU's do not."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import pytest
import torch

from tightbox.losses import unitbox_iou_loss
from tightbox.ops import floored_relu

pytestmark = pytest.mark.usefixtures("device")


@pytest.mark.parametrize(
    ("raw", "pull", "value", "gradient"),
    [
        (3.0, 2.0, 3.0, 2.0),  # above the floor: ReLU
        (3.0, -2.0, 3.0, -2.0),
        (0.5, 2.0, 0.5, 2.0),  # on it
        (-7.0, -2.0, 0.5, -2.0),  # below: descent would raise it
        (-7.0, 2.0, 0.5, 0.0),  # descent would lower it further
    ],
)
def test_value_and_gradient(raw: float, pull: float, value: float, gradient: float) -> None:
    leaf = torch.tensor(raw, requires_grad=True)
    out = floored_relu(leaf)
    (pull * out).backward()
    assert leaf.grad is not None
    assert (out.item(), leaf.grad.item()) == (value, gradient)


def test_zero_floor_is_relu_and_half_is_float32() -> None:
    raw = torch.randn(50)
    assert torch.equal(floored_relu(raw, floor=0.0), raw.relu())
    assert floored_relu(raw.bfloat16()).dtype == torch.float32
    assert floored_relu(torch.tensor([float("nan")])).isnan().all()


def descend(activation: Callable[[torch.Tensor], torch.Tensor], start: Sequence[float]) -> float:
    """Distances after plain gradient descent on the IoU loss."""
    target = torch.tensor([10.0, 6.0, 8.0, 12.0])
    raw = torch.tensor(start, requires_grad=True)
    optimizer = torch.optim.SGD([raw], lr=2.0)
    for _ in range(600):
        optimizer.zero_grad()
        loss = unitbox_iou_loss(activation(raw), target)
        loss.backward()
        assert raw.grad is not None
        assert raw.grad.isfinite().all()
        optimizer.step()
    return loss.item()


@pytest.mark.parametrize("start", [(-5.0, -5.0, -5.0, -5.0), (-30.0, 6.0, 8.0, 12.0), (-1.0, -1.0, 8.0, 12.0)])
def test_dead_pixels_recover_under_gradient_descent(start: Sequence[float]) -> None:
    assert descend(floored_relu, start) < 0.05  # an IoU above 0.95
    assert descend(torch.relu, start) > 0.3
