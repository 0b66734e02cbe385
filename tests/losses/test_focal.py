"""Focal loss: hand numbers, reference gradient, stability."""

import math
from typing import Any

import pytest
import torch
import torch.nn.functional as F

from tests.helpers.references import recordings
from tightbox.errors import UserError
from tightbox.losses import focal_loss

pytestmark = pytest.mark.usefixtures("device")


@pytest.mark.parametrize(
    ("probability", "target", "expected"),
    [
        (0.5, 1.0, 0.25 * 0.5**2 * math.log(2)),  # positive: α (1 - p)² · -ln p
        (0.5, 0.0, 0.75 * 0.5**2 * math.log(2)),  # negative: (1 - α) p² · -ln(1 - p)
        (0.9, 1.0, 0.25 * 0.1**2 * -math.log(0.9)),  # easy positive
        (0.9, 0.0, 0.75 * 0.9**2 * -math.log(0.1)),  # hard negative
    ],
)
def test_by_hand(probability: float, target: Any, expected: Any) -> None:
    logit = torch.tensor(probability, dtype=torch.float64).logit()
    assert focal_loss(logit, torch.tensor(target)).item() == pytest.approx(expected)


def test_without_focus_it_is_weighted_cross_entropy() -> None:
    logits, target = torch.randn(50), torch.rand(50)
    weight = 0.3 * target + 0.7 * (1 - target)
    expected = weight * F.binary_cross_entropy_with_logits(logits, target, reduction="none")
    torch.testing.assert_close(focal_loss(logits, target, alpha=0.3, gamma=0), expected)


@pytest.mark.parametrize("golden", recordings("losses_seed0"), ids=repr)
def test_reference_value_and_gradient(golden: Any) -> None:
    logits = golden["vfl/pred"].requires_grad_()
    target = F.one_hot(golden["focal/labels"], 21)[:, :20]  # label 20 is the background
    loss = focal_loss(logits, target).sum() / 75
    loss.backward()
    torch.testing.assert_close(loss, golden["focal/avg_factor75"], rtol=1e-4, atol=0)
    gradient = golden.recorded("focal/grad")
    torch.testing.assert_close(gradient.of(logits.grad), gradient.values, rtol=1e-4, atol=1e-8)


def test_gradcheck() -> None:
    logits = torch.randn(8, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(focal_loss, (logits, torch.rand(8, dtype=torch.float64)))


@pytest.mark.parametrize("gamma", [0.0, 1.0, 2.0])
def test_extreme_logits_stay_finite(gamma: float) -> None:
    logits = torch.tensor([-1e4, -100.0, 100.0, 1e4] * 2, requires_grad=True)
    loss = focal_loss(logits, torch.tensor([0.0] * 4 + [1.0] * 4), gamma=gamma)
    loss.sum().backward()
    assert loss.isfinite().all()
    assert logits.grad is not None
    assert logits.grad.isfinite().all()


def test_half_inputs_and_autocast_compute_in_float32() -> None:
    logits, target = torch.tensor([-3.0, 0.5, 2.0]), torch.tensor([0.0, 1.0, 1.0])
    expected = focal_loss(logits, target)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        torch.testing.assert_close(focal_loss(logits.bfloat16(), target.bfloat16()), expected, rtol=0, atol=0)


@pytest.mark.parametrize("wrong", [{"alpha": -1.0}, {"alpha": math.nan}, {"gamma": 0.5}])
def test_wrong_options(wrong: dict[str, Any]) -> None:
    with pytest.raises(UserError, match=next(iter(wrong))):
        focal_loss(torch.zeros(2), torch.zeros(2), **wrong)
