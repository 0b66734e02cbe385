"""Several processes, by way of accelerate and torch.distributed."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
import torch.distributed as dist
from torch import Tensor

if TYPE_CHECKING:
    from accelerate import Accelerator


def new_accelerator(device: torch.device | None = None, **options: Any) -> Accelerator:
    """An accelerator with these options, on this device, or on whatever speeds up torch, else on the CPU."""
    # Here, since every model imports this file and only a training needs accelerate.
    from accelerate import Accelerator
    from accelerate.state import AcceleratorState

    # A second training of one Python session may want another precision, or another device, than the first.
    AcceleratorState._reset_state(reset_partial_state=not (dist.is_available() and dist.is_initialized()))
    if device is not None and device.type == "cuda" and device.index is not None:
        torch.cuda.set_device(device)
    # Processes on CPUs find each other only if told that they are meant to be on CPUs.
    cpu = not torch.accelerator.is_available() if device is None else device.type == "cpu"
    return Accelerator(cpu=cpu, **options)


def mean_over_processes(value: Tensor) -> Tensor:
    """The mean of a tensor over all training processes, without gradient; the tensor itself when there is one process.

    Losses divided by this, with gradients averaged by DDP, equal those of one process with the whole batch.
    """
    value = value.detach().clone()
    if dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1:
        dist.all_reduce(value)
        value /= dist.get_world_size()
    return value
