"""Varifocal loss: hand numbers, reference values and gradients, stability."""

import math
from typing import Any

import pytest
import torch

from tests.helpers.references import recordings
from tightbox.losses import varifocal_loss

pytestmark = pytest.mark.usefixtures("device")


@pytest.mark.parametrize(
    ("probability", "target", "expected"),
    [
        (0.5, 0.8, 0.554518),  # 0.8 · ln 2
        (0.8, 0.8, 0.400322),  # 0.8 · entropy of 0.8: a perfect estimate still costs
        (0.5, 0.0, 0.129965),  # 0.75 · 0.5² · ln 2
        (0.01, 0.0, 7.5377e-7),  # 0.75 · 0.01² · -ln 0.99
    ],
)
def test_by_hand(probability: float, target: Any, expected: Any) -> None:
    logit = torch.tensor(probability, dtype=torch.float64).logit()
    assert varifocal_loss(logit, torch.tensor(target)).item() == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("golden", recordings("losses_seed0"), ids=repr)
@pytest.mark.parametrize("dtype", ["f32", "f64"])
@pytest.mark.parametrize(
    ("case", "options"),
    [
        ("default", {}),
        ("not_weighted", {"iou_weighted": False}),
        ("alpha25_gamma15", {"alpha": 0.25, "gamma": 1.5}),
    ],
)
def test_reference_values(golden: Any, case: str, options: dict[str, Any], dtype: str) -> None:
    pred, target = golden["vfl/pred"], golden["vfl/target"]
    if dtype == "f64":
        pred, target = pred.double(), target.double()
    pred.requires_grad_()
    loss = varifocal_loss(pred, target, **options)
    loss.sum().backward()
    for name, ours in (("none", loss), ("grad_of_sum", pred.grad)):
        theirs = golden.recorded(f"vfl/{case}/{dtype}/{name}")
        torch.testing.assert_close(theirs.of(ours), theirs.values, rtol=1e-4, atol=1e-9)
    torch.testing.assert_close(loss.sum() / 75, golden[f"vfl/{case}/{dtype}/avg_factor75"], rtol=1e-4, atol=0)


def test_gradcheck() -> None:
    logits = torch.randn(8, dtype=torch.float64, requires_grad=True)
    target = torch.tensor([0.0, 0.0, 0.0, 0.2, 0.5, 0.9, 1.0, 1e-6], dtype=torch.float64)
    assert torch.autograd.gradcheck(varifocal_loss, (logits, target))


@pytest.mark.parametrize("gamma", [0.0, 0.5, 2.0])
def test_extreme_logits_stay_finite(gamma: float) -> None:
    logits = torch.tensor([-1e4, -200.0, 200.0, 1e4] * 2, requires_grad=True)
    loss = varifocal_loss(logits, torch.tensor([0.0] * 4 + [0.7] * 4), gamma=gamma)
    loss.sum().backward()
    assert loss.isfinite().all()
    assert logits.grad is not None
    assert logits.grad.isfinite().all()
    # Surely background: nothing to pay. Surely object yet background: α · -ln(1 - p) = 0.75 · 200.
    assert loss[1].item() == 0
    assert loss[2].item() == pytest.approx(150)


def test_half_inputs_and_autocast_compute_in_float32() -> None:
    logits, target = torch.tensor([-3.0, 0.5, 2.0]), torch.tensor([0.0, 0.5, 0.75])
    expected = varifocal_loss(logits, target)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        torch.testing.assert_close(varifocal_loss(logits.bfloat16(), target.bfloat16()), expected, rtol=0, atol=0)


def test_each_logit_has_its_own() -> None:
    logits, target = torch.tensor([0.0, 0.0]), torch.tensor([1.0, 0.0])
    # ln 2 for the positive and 0.75 / 4 · ln 2 for the negative.
    assert varifocal_loss(logits, target).tolist() == pytest.approx([math.log(2), 0.1875 * math.log(2)])
    assert varifocal_loss(logits[:0], target[:0]).shape == (0,)
