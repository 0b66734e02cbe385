from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from tightbox.models import create_model
from tightbox.options import TrainOptions
from tightbox.training.optimizer import MovingAverage, build_optimizer, learning_rate_factor


def test_cosine_after_warm_up() -> None:
    # 10 epochs of 10 steps, 20 of them warm-up from a tenth: halfway up at step 10, 0.1 + 0.9 / 2.
    factor = learning_rate_factor(TrainOptions(epochs=10, warmup=20), steps_per_epoch=10)
    assert factor(0) == pytest.approx(0.1)
    assert factor(10) == pytest.approx(0.55)
    assert factor(20) == pytest.approx(1)
    assert factor(60) == pytest.approx(0.5)  # the middle of the 80 steps of the cosine
    assert factor(100) == pytest.approx(0, abs=1e-12)
    assert factor(101) == pytest.approx(0, abs=1e-12)


@pytest.mark.parametrize(
    ("epochs", "drops"),
    [
        (12, (8, 11)),  # the papers' 1x schedule
        (24, (16, 22)),  # and 2x
    ],
)
def test_step_schedule(epochs: int, drops: tuple[int, int]) -> None:
    factor = learning_rate_factor(TrainOptions(epochs=epochs, schedule="step", warmup=0), steps_per_epoch=7)
    for drop, before in zip(drops, (1, 0.1), strict=True):
        assert factor(7 * drop - 1) == pytest.approx(before)
        assert factor(7 * drop) == pytest.approx(before / 10)


def test_warm_up_as_a_share() -> None:
    factor = learning_rate_factor(TrainOptions(epochs=10, warmup=0.1), steps_per_epoch=10)
    assert factor(9) < 1
    assert factor(10) == pytest.approx(1)


def test_moving_average_by_hand() -> None:
    model = nn.Linear(1, 1, bias=False)
    nn.init.constant_(model.weight, 0.0)
    average = MovingAverage(model, decay=0.15)
    nn.init.constant_(model.weight, 1.0)
    average.update_parameters(model)  # the first update copies
    assert average.module.get_parameter("weight").item() == 1
    nn.init.constant_(model.weight, 3.0)
    # One update so far: decay is min(0.15, (1 + 1) / (10 + 1)) = 0.15, so 0.15 · 1 + 0.85 · 3 = 2.7.
    average.update_parameters(model)
    assert average.module.get_parameter("weight").item() == pytest.approx(2.7)
    slow = MovingAverage(model, decay=0.999)
    slow.update_parameters(model)
    nn.init.constant_(model.weight, 0.0)
    slow.update_parameters(model)  # decay min(0.999, 2 / 11): quick to forget at first
    assert slow.module.get_parameter("weight").item() == pytest.approx(3 * 2 / 11)


def test_moving_average_takes_buffers_along() -> None:
    model = nn.BatchNorm1d(2)
    average = MovingAverage(model, decay=0.9)
    average.update_parameters(model)
    assert model.running_mean is not None
    model.running_mean.fill_(1.0)
    assert model.num_batches_tracked is not None
    model.num_batches_tracked.fill_(7)
    average.update_parameters(model)
    assert average.module.get_buffer("running_mean")[0].item() == pytest.approx(1 - 2 / 11)
    assert average.module.get_buffer("num_batches_tracked").item() == 7


def network() -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4), nn.Conv2d(4, 2, 1))


def test_adamw_spares_vectors_from_decay() -> None:
    decayed, spared = build_optimizer(network(), TrainOptions(weight_decay=0.1)).param_groups
    assert [p.ndim for p in decayed["params"]] == [4, 4]
    assert decayed["weight_decay"] == 0.1
    assert [p.ndim for p in spared["params"]] == [1, 1, 1, 1]
    assert spared["weight_decay"] == 0


def test_muon_changes_hidden_layers_alone() -> None:
    # Smaller sides: stem min(64, 3·9) = 27, hidden 64, wide min(512, 1024) = 512, output 4; Muon takes 32 to 256.
    model = nn.Sequential(
        nn.Conv2d(3, 64, 3), nn.Conv2d(64, 64, 3), nn.BatchNorm2d(64), nn.Conv2d(64, 4, 1), nn.Linear(1024, 512)
    )
    muon, matrices, vectors = build_optimizer(model, TrainOptions(optimizer="muon", lr=0.3)).param_groups
    assert [p.shape for p in muon["params"]] == [(64, 64, 3, 3)]
    assert [p.shape for p in matrices["params"]] == [(64, 3, 3, 3), (4, 64, 1, 1), (512, 1024)]
    assert (muon["lr"], matrices["lr"], vectors["lr"]) == pytest.approx((0.3, 0.1, 0.1))
    assert (muon["weight_decay"], matrices["weight_decay"], vectors["weight_decay"]) == (0.05, 0.05, 0)
    assert len(vectors["params"]) == 6  # four biases; weight and bias of the norm


@pytest.mark.parametrize("name", ["vfnet", "iou_aware_retinanet", "iou_net", "unitbox"])
def test_muon_leaves_what_tells_classes_apart_to_adamw_however_many_there_are(name: str) -> None:
    model = create_model(name, num_classes=80, backbone="resnet18", pretrained_backbone=False, **small(name))
    muon, matrices, _ = build_optimizer(model, TrainOptions(optimizer="muon", lr=0.3)).param_groups
    names = {parameter: name for name, parameter in model.named_parameters()}
    outputs = [name for name in names.values() if name.startswith(model.class_layers) and name.endswith("weight")]
    assert any("classes" in name for name in outputs)
    assert set(outputs) <= {names[parameter] for parameter in matrices["params"]}
    assert not set(outputs) & {names[parameter] for parameter in muon["params"]}


def small(name: str) -> dict[str, Any]:
    """Narrow enough for Muon to take every layer between; 80 classes are wide enough for it, too."""
    return {} if name == "unitbox" else {"channels": 64} | ({"fc_channels": 256} if name == "iou_net" else {})


def test_sgd_has_biases_of_both_kinds_of_layers_at_twice_the_rate() -> None:
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Linear(4, 2))
    _, biases = build_optimizer(model, TrainOptions(optimizer="sgd", lr=0.1)).param_groups
    assert [p.shape for p in biases["params"]] == [(4,), (2,)]
    assert (biases["lr"], biases["weight_decay"]) == (0.2, 0)


def test_muon_makes_the_update_orthogonal() -> None:
    torch.manual_seed(0)
    layer = nn.Conv2d(40, 48, 3, bias=False)
    before = layer.weight.detach().clone()
    optimizer = build_optimizer(layer, TrainOptions(optimizer="muon", lr=0.01, weight_decay=0))
    layer.weight.grad = torch.randn_like(layer.weight) * torch.logspace(0, -2, 48).view(-1, 1, 1, 1)
    optimizer.step()
    singular = torch.linalg.svdvals((layer.weight - before).flatten(1)) / 0.01
    # Five Newton-Schulz steps bring singular values into [0.68, 1.14] (those of the gradient span two decades); the
    # update is then scaled to AdamW's size, by 0.2·sqrt(larger side) = 0.2·sqrt(360).
    scale = 0.2 * 360**0.5
    assert 0.6 * scale < singular.min() < singular.max() < 1.25 * scale


def test_learning_rate_by_optimizer() -> None:
    assert [TrainOptions(optimizer=name).lr for name in ("adamw", "muon", "sgd")] == [0.001, 0.003, 0.01]
    assert TrainOptions(optimizer="muon", lr=0.5).lr == 0.5


def test_sgd_as_published() -> None:
    options = TrainOptions(optimizer="sgd", lr=0.01, weight_decay=1e-4)
    rest, biases = build_optimizer(network(), options).param_groups
    assert len(biases["params"]) == 2  # of the convolutions; the norm's bias is with the rest
    assert (biases["lr"], biases["weight_decay"]) == (0.02, 0)
    assert len(rest["params"]) == 4
    assert (rest["lr"], rest["weight_decay"], rest["momentum"]) == (0.01, 1e-4, 0.9)


def test_frozen_weights_are_left_out() -> None:
    model = network()
    model[0].requires_grad_(False)
    count = sum(len(group["params"]) for group in build_optimizer(model, TrainOptions()).param_groups)
    assert count == len(list(model[1:].parameters()))


def test_buffers_and_weights_are_copies() -> None:
    model = network()
    average = MovingAverage(model, 0.9)
    average.update_parameters(model)
    with torch.no_grad():
        model.get_parameter("0.weight").add_(1)
    assert not torch.equal(average.module.get_parameter("0.weight"), model.get_parameter("0.weight"))
