"""Group norm and ReLU in one, which on a GPU is a pass over the maps where PyTorch makes six."""

from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from tightbox.ops.csr import uses_triton


class GroupNorm(nn.GroupNorm):
    """PyTorch's, and in bfloat16 on a CPU channels_last maps learn by way of plain ones.

    PyTorch's own gradient of such maps takes up to twenty times as long, with the copies; float32 would win little.
    """

    def forward(self, input: Tensor) -> Tensor:
        """(B, C, H, W) to the same shape."""
        if input.device.type != "cpu" or input.dtype != torch.bfloat16 or not torch.is_grad_enabled():
            return super().forward(input)
        return super().forward(input.contiguous()).contiguous(memory_format=torch.channels_last)


def group_norm_relu(input: Tensor, norm: nn.GroupNorm) -> Tensor:
    """`relu(norm(input))` of maps (B, C, H, W).

    On a GPU with Triton it takes and gives channels_last maps of the input's dtype, and has the statistics in float32.
    PyTorch's group norm is of other layout there, and under autocast of float32, so that maps would be copied four
    times on the way from one convolution to the next.
    """
    groups, width = norm.num_groups, norm.num_channels // norm.num_groups
    fits = groups & (groups - 1) == 0 and width & (width - 1) == 0 and input.numel() > 0
    if torch.compiler.is_compiling() or not uses_triton(input) or input.dtype == torch.float64 or not fits:
        return F.relu(norm(input))
    return cast(Tensor, _GroupNormReLU.apply(input, norm.weight, norm.bias, groups, norm.eps))


class _GroupNormReLU(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, input: Tensor, weight: Tensor, bias: Tensor, groups: int, epsilon: float) -> Tensor:
        from tightbox.ops import group_norm_relu_triton as kernels

        table = input.permute(0, 2, 3, 1).contiguous()
        statistics = kernels.statistics(table, groups, epsilon)
        ctx.save_for_backward(table, statistics, weight, bias)
        return kernels.normalised(table, statistics, weight, bias).permute(0, 3, 1, 2)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, Tensor, Tensor, None, None]:
        from tightbox.ops import group_norm_relu_triton as kernels

        rows = gradient.permute(0, 2, 3, 1).contiguous()
        to_table, to_weight, to_bias = kernels.gradients(rows, *ctx.saved_tensors)
        return to_table.permute(0, 3, 1, 2), to_weight, to_bias, None, None
