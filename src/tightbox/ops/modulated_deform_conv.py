"""Modulated deformable convolution (DCNv2): the features predict an offset and a weight for every tap.

Zhu et al., "Deformable ConvNets v2: More Deformable, Better Results", CVPR 2019, section 3.2.
"""

import math
from typing import Any, Self, cast

import torch
from torch import Tensor, nn
from torchvision.ops import deform_conv2d


class ModulatedDeformConv2d(nn.Conv2d):
    """A convolution whose taps are moved by offsets and weighed by a mask, both predicted from its own input.

    The offset branch starts at zero: no tap is moved and every one counts half, as published. Parameters have the names
    and the order of channels of published models: for K taps the branch gives 2K offsets (taps row by row, y before x
    for each) and then K mask logits. Arguments are those of a convolution, whose padding is zeros.
    """

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        geometry: Any = self.kernel_size, self.stride, self.padding, self.dilation
        self.conv_offset = nn.Conv2d(self.in_channels, 3 * math.prod(self.kernel_size), *geometry)
        self.reset_offsets()

    @classmethod
    def like(cls, conv: nn.Conv2d) -> Self:
        """A deformable convolution with the shape and the weights of a plain one."""
        geometry = conv.kernel_size, conv.stride, conv.padding, conv.dilation
        made = cls(conv.in_channels, conv.out_channels, *geometry, conv.groups, conv.bias is not None)
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
