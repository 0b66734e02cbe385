"""ReLU for distances, whose gradient does not vanish for good below its floor."""

from typing import Any, cast

import torch
from torch import Tensor

from tightbox.boxes import at_least_float32


def floored_relu(raw: Tensor, floor: float = 0.5) -> Tensor:
    """The greater of `raw` and `floor`, with a gradient below the floor as well if descent would raise `raw`.

    UnitBox has ReLU here. A pixel whose distances it all cuts to 0 learns no more: ReLU's gradient is 0, and so is that
    of the intersection, as to one side it is the length of the other. With a floor of half a pixel a box always holds
    its own pixel, so that −ln IoU is finite and has a gradient. A distance below the floor gets that unchanged where
    descent would raise it, however far below it is. Above the floor this is ReLU. With a bias that starts at a typical
    distance, most pixels are above the floor from the first step on.

    Args:
        raw: (...) outputs of a convolution.
        floor: in pixels; 0 is ReLU itself with the same gradient.

    >>> floored_relu(torch.tensor([-3.0, 0.0, 0.7, 40.0]))
    tensor([ 0.5000,  0.5000,  0.7000, 40.0000])
    """
    return cast(Tensor, _FlooredReLU.apply(at_least_float32(raw), floor))


class _FlooredReLU(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, raw: Tensor, floor: float) -> Tensor:
        ctx.save_for_backward(raw >= floor)
        return raw.clamp(min=floor)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        (above,) = ctx.saved_tensors
        return torch.where(above | (gradient < 0), gradient, 0), None
