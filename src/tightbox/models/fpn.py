"""Feature pyramid network: the backbone's features in, levels of one width out."""

from __future__ import annotations

from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

STRIDES = (8, 16, 32, 64, 128)


class FPN(nn.Module):
    """Lateral 1x1 convolutions, nearest top-down sums, 3x3 output convolutions, and coarser levels on top. No norms.

    Args:
        in_channels: width of each feature map.
        channels: width of every output level.
        extra: what is added above the last level. "p5": strided P6 from P5's output and P7 after a ReLU (VFNet, FCOS);
            "c5": strided P6 from the backbone's C5 and P7 without ReLU (RetinaNet); "pool": P6 is every second cell of
            P5 (Faster R-CNN).

    Lin et al., "Feature Pyramid Networks for Object Detection", 2017.
    """

    def __init__(self, in_channels: list[int], channels: int, extra: Literal["p5", "c5", "pool"] = "p5") -> None:
        super().__init__()
        self.extra = extra
        self.lateral = nn.ModuleList(nn.Conv2d(c, channels, 1) for c in in_channels)
        self.output = nn.ModuleList(nn.Conv2d(channels, channels, 3, padding=1) for _ in in_channels)
        if extra != "pool":
            self.p6 = nn.Conv2d(channels if extra == "p5" else in_channels[-1], channels, 3, stride=2, padding=1)
            self.p7 = nn.Conv2d(channels, channels, 3, stride=2, padding=1)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.xavier_uniform_(module.weight)
                nn.init.zeros_(module.bias)  # type: ignore[arg-type]

    def forward(self, features: list[Tensor]) -> list[Tensor]:
        """Maps (B, channels, h, w) at the features' strides, then one ("pool") or two that halve in size."""
        laterals = [conv(feature) for conv, feature in zip(self.lateral, features, strict=True)]
        for lower, upper in zip(reversed(laterals[:-1]), reversed(laterals[1:]), strict=True):
            lower += F.interpolate(upper, size=lower.shape[-2:], mode="nearest")
        levels = [conv(lateral) for conv, lateral in zip(self.output, laterals, strict=True)]
        if self.extra == "pool":
            return [*levels, levels[-1][..., ::2, ::2]]
        # In bf16, oneDNN 3.13 returns uninitialised memory as the weight gradient of a strided 3x3 convolution on a 1x1
        # map. These two maps are small: float32 costs nothing.
        with torch.autocast(levels[-1].device.type, enabled=False):
            p6 = self.p6((levels if self.extra == "p5" else features)[-1].float())
            p7 = self.p7(F.relu(p6) if self.extra == "p5" else p6)
        return [*levels, p6, p7]
