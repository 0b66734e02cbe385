"""The one thing the losses need to know of other processes: a mean over all of them."""

from __future__ import annotations

import torch.distributed as dist
from torch import Tensor


def mean_over_processes(value: Tensor) -> Tensor:
    """The mean of a scalar over all training processes, without gradient; the scalar itself when there is one process.

    Losses divided by this, with gradients averaged by DDP, equal those of one process with the whole batch.
    """
    value = value.detach().clone()
    if dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1:
        dist.all_reduce(value)
        value /= dist.get_world_size()
    return value
