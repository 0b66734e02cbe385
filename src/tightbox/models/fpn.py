"""Feature pyramid network: C3-C5 in, P3-P7 of one width out."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

STRIDES = (8, 16, 32, 64, 128)


class FPN(nn.Module):
    """Lateral 1x1 convolutions, nearest top-down sums, 3x3 output convolutions, and two strided levels above P5.

    P6 is made from P5's output, and a ReLU stands before P7 only, as in VFNet and FCOS. No norms.

    Args:
        in_channels: width of C3, C4 and C5.
        channels: width of every output level.

    Lin et al., "Feature Pyramid Networks for Object Detection", 2017.
    """

    def __init__(self, in_channels: list[int], channels: int) -> None:
        super().__init__()
        self.lateral = nn.ModuleList(nn.Conv2d(c, channels, 1) for c in in_channels)
        self.output = nn.ModuleList(nn.Conv2d(channels, channels, 3, padding=1) for _ in in_channels)
        self.p6 = nn.Conv2d(channels, channels, 3, stride=2, padding=1)
        self.p7 = nn.Conv2d(channels, channels, 3, stride=2, padding=1)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.xavier_uniform_(module.weight)
                nn.init.zeros_(module.bias)  # type: ignore[arg-type]

    def forward(self, features: list[Tensor]) -> list[Tensor]:
        """Five maps (B, channels, H / stride, W / stride) at strides 8, 16, 32, 64 and 128."""
        laterals = [conv(feature) for conv, feature in zip(self.lateral, features, strict=True)]
        for lower, upper in zip(reversed(laterals[:-1]), reversed(laterals[1:]), strict=True):
            lower += F.interpolate(upper, size=lower.shape[-2:], mode="nearest")
        levels = [conv(lateral) for conv, lateral in zip(self.output, laterals, strict=True)]
        # In bf16, oneDNN 3.13 returns uninitialised memory as the weight gradient of a strided 3x3 convolution on a 1x1
        # map. These two maps are small: float32 costs nothing.
        with torch.autocast(levels[-1].device.type, enabled=False):
            p6 = self.p6(levels[-1].float())
            p7 = self.p7(F.relu(p6))
        return [*levels, p6, p7]
