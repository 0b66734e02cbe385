"""The optimiser, its learning rate over time, and the moving average of the weights."""

import math
from collections.abc import Callable, Iterator
from itertools import chain
from typing import Any, cast

import torch
from timm.optim import Muon
from torch import Tensor, nn
from torch.optim import SGD, AdamW, Optimizer
from torch.optim.swa_utils import AveragedModel

from tightbox.options import TrainOptions

SWA_LOWEST = 0.01  # fraction of the rate at the end of each cycle of the weight averaging
MUON_SIDES = 32, 256  # of the weights that Muon changes, as matrices of one row for each output, the smaller side
MUON_ADAMW_RATE = 1 / 3  # what AdamW changes beside Muon learns at this fraction of the rate


def build_optimizer(model: nn.Module, options: TrainOptions) -> Optimizer:
    """Muon or AdamW without decay on vectors, or SGD as the papers' code has it: biases at twice the rate, no decay."""
    assert options.lr is not None  # the options see to it
    trained = [(name, p) for name, p in model.named_parameters() if p.requires_grad]
    if options.optimizer == "sgd":
        # The published rule spares the biases of norms.
        layers = {name for name, m in model.named_modules() if isinstance(m, (nn.Conv2d, nn.Linear))}
        biases = [p for name, p in trained if name.removesuffix(".bias") in layers]
        others = [p for name, p in trained if name.removesuffix(".bias") not in layers]
        decayed: dict[str, Any] = {"params": others, "weight_decay": options.weight_decay}
        faster: dict[str, Any] = {"params": biases, "weight_decay": 0.0, "lr": 2 * options.lr}
        return SGD([decayed, faster], lr=options.lr, momentum=0.9, fused=True)
    # Whatever the number of classes, which would otherwise decide about the layers that tell them apart.
    classes, by_muon = getattr(model, "class_layers", ()), options.optimizer == "muon"
    hidden = {name: p for name, p in trained if by_muon and _is_hidden(p) and not name.startswith(classes)}
    matrices = [p for name, p in trained if p.ndim > 1 and name not in hidden]
    vectors = [p for _, p in trained if p.ndim <= 1]
    by_adamw = [{"params": matrices, "weight_decay": options.weight_decay}, {"params": vectors, "weight_decay": 0.0}]
    if options.optimizer == "adamw":
        return AdamW(by_adamw, lr=options.lr, fused=True)
    rates = {"lr": MUON_ADAMW_RATE * options.lr, "use_fallback": True}
    groups = [{"params": list(hidden.values()), "weight_decay": options.weight_decay}, *(g | rates for g in by_adamw)]
    return cast(Optimizer, Muon(groups, lr=options.lr, nesterov=True, betas=(0.9, 0.999)))


def _is_hidden(parameter: Tensor) -> bool:
    """Whether Muon changes it, unless it tells classes apart: layers whose update does not cost a step.

    Muon makes the update orthogonal, at a cost of the smaller side squared times the larger.
    """
    rows, columns = parameter.shape[0], parameter[0].numel()
    return parameter.ndim > 1 and MUON_SIDES[0] <= min(rows, columns) <= MUON_SIDES[1]


def learning_rate_factor(
    options: TrainOptions, steps_per_epoch: int, seconds: Callable[[], float] = lambda: 0.0
) -> Callable[[int], float]:
    """The factor on the learning rate as a function of the step: linear warm-up, then cosine or two drops; then cycles.

    Args:
        options: the schedule, and the length of the training in epochs or minutes.
        steps_per_epoch: changes of the weights, not batches.
        seconds: how long the training has taken so far; with minutes, the factor depends on this and not on the step.
    """
    fractions = options.first_drop, options.second_drop
    if options.minutes is None:
        epochs = options.epochs or 0
        total: float = epochs * steps_per_epoch
        drops: list[float] = [steps_per_epoch * round(epochs * fraction) for fraction in fractions]
        warmup: float = int(options.warmup if options.warmup >= 1 else options.warmup * total)
    else:
        total = 60 * options.minutes
        drops = [total * fraction for fraction in fractions]
        warmup = options.warmup * total

    def factor(step: int) -> float:
        done = step if options.minutes is None else seconds()
        if options.swa_epochs and done >= total:
            cycle = (done - total) % steps_per_epoch / steps_per_epoch
            return SWA_LOWEST + (1 - SWA_LOWEST) * 0.5 * (1 + math.cos(math.pi * cycle))
        if done < warmup:
            return 0.1 + 0.9 * done / warmup
        if options.schedule == "cosine":
            return 0.5 * (1 + math.cos(math.pi * min(1.0, (done - warmup) / (total - warmup or 1))))
        return float(0.1 ** sum(done >= drop for drop in drops))

    return factor


class MovingAverage(AveragedModel):
    """An average of the weights over time, quick to forget at first; buffers such as batch norm's are averaged too.

    As PyTorch's, but the number of steps stays on the CPU, so that no GPU has to be waited for.
    """

    def __init__(self, model: nn.Module, decay: float) -> None:
        super().__init__(model)
        self.decay = decay

    @torch.no_grad()
    def update_parameters(self, model: nn.Module) -> None:
        """Move towards the model by a fraction that shrinks with the steps; the first copies."""
        steps = int(self.n_averaged)
        fraction = 1 - min(self.decay, (1 + steps) / (10 + steps)) if steps else 1.0
        numbers: tuple[list[Tensor], list[Tensor]] = ([], [])
        for pair in zip(_tensors(self.module), _tensors(model), strict=True):
            if pair[0].is_floating_point():
                numbers[0].append(pair[0])
                numbers[1].append(pair[1])
            else:
                pair[0].copy_(pair[1])
        torch._foreach_lerp_(*numbers, fraction)
        self.n_averaged += 1


def _tensors(model: nn.Module) -> Iterator[Tensor]:
    return chain(model.parameters(), model.buffers())
