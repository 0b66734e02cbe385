"""Modulated deformable convolution (DCNv2): the features predict an offset and a weight for every tap.

Zhu et al., "Deformable ConvNets v2: More Deformable, Better Results", CVPR 2019, section 3.2.
"""

from __future__ import annotations

from typing import Self, cast

import torch
from torch import Tensor, nn
from torchvision.ops import deform_conv2d


class ModulatedDeformConv2d(nn.Conv2d):
    """A convolution whose taps are moved by offsets and weighed by a mask, both predicted from its own input.

    The offset branch starts at zero: no tap is moved and every one counts half, as published. Parameters have the names
    and the order of channels of published models: for K taps the branch gives 2K offsets (taps row by row, y before x
    for each) and then K mask logits.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int,
        stride: int = 1,
        padding: int = 0,
        dilation: int = 1,
        groups: int = 1,
        bias: bool = True,
    ) -> None:
        super().__init__(in_channels, out_channels, kernel_size, stride, padding, dilation, groups, bias)
        self.conv_offset = nn.Conv2d(in_channels, 3 * kernel_size**2, kernel_size, stride, padding, dilation)
        self.reset_offsets()

    @classmethod
    def like(cls, conv: nn.Conv2d) -> Self:
        """A deformable convolution with the shape and the weights of a plain one, which is square."""
        made = cls(
            conv.in_channels,
            conv.out_channels,
            conv.kernel_size[0],
            conv.stride[0],
            int(conv.padding[0]),
            conv.dilation[0],
            conv.groups,
            conv.bias is not None,
        )
        made.load_state_dict(conv.state_dict(), strict=False)
        return made

    def reset_offsets(self) -> None:
        """Set the offset branch to zero."""
        nn.init.zeros_(self.conv_offset.weight)
        nn.init.zeros_(cast(Tensor, self.conv_offset.bias))

    def forward(self, input: Tensor) -> Tensor:
        """(B, C, H, W) to (B, O, h, w), of the dtype of the input; computes in the dtype of the weights."""
        # Autocast would round the offsets: to eighths of a pixel at 16 pixels, in bfloat16.
        with torch.autocast(input.device.type, enabled=False):
            features = input.to(self.weight.dtype)
            raw = self.conv_offset(features)
            offsets, mask = raw.split((2 * raw.shape[1] // 3, raw.shape[1] // 3), dim=1)
            output = deform_conv2d(
                features, offsets, self.weight, self.bias, self.stride, self.padding, self.dilation, mask.sigmoid()
            )
        return cast(Tensor, output).to(input.dtype)
