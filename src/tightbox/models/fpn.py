"""Feature pyramid network: the backbone's features in, levels of one width out."""

from collections import OrderedDict
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tightbox.boxes import at_least_float32
from tightbox.models.dense import group_norm
from tightbox.ops.modulated_deform_conv import ModulatedDeformConv2d
from tightbox.options import PyramidOptions

STRIDES = (8, 16, 32, 64, 128)


class FPN(nn.Module):
    """Lateral 1x1 convolutions, nearest top-down sums, 3x3 output convolutions, and coarser levels on top.

    With a bottom-up path (PAFPN as VFNet-X has it) each output but the finest then adds the next finer one through a
    strided 3x3 convolution, and every sum goes through one more 3x3 convolution.

    Args:
        in_channels: width of each feature map.
        options: width of every output level, bottom-up path, norms.
        extra: what is added above the last level. "p5": strided P6 from P5's output and P7 after a ReLU (VFNet, FCOS);
            "c5": strided P6 from the backbone's C5 and P7 without ReLU (RetinaNet); "pool": P6 is every second cell of
            P5 (Faster R-CNN).

    Lin et al., "Feature Pyramid Networks for Object Detection", CVPR 2017.
    Liu et al., "Path Aggregation Network for Instance Segmentation", CVPR 2018.
    """

    def __init__(
        self, in_channels: list[int], options: PyramidOptions, extra: Literal["p5", "c5", "pool"] = "p5"
    ) -> None:
        super().__init__()
        self.extra = extra
        channels, norm = options.channels, options.neck_norm
        self.lateral = nn.ModuleList(_conv(c, channels, 1, norm=options.lateral_norm) for c in in_channels)
        self.output = nn.ModuleList(_conv(channels, channels, norm=norm) for _ in in_channels)
        if options.neck == "pafpn":
            self.down = nn.ModuleList(_conv(channels, channels, stride=2, norm=norm) for _ in in_channels[1:])
            self.bottom_up = nn.ModuleList(
                _conv(channels, channels, norm=norm, deformable=options.neck_deformable) for _ in in_channels
            )
        if extra != "pool":
            self.p6 = _conv(channels if extra == "p5" else in_channels[-1], channels, stride=2, norm=norm)
            self.p7 = _conv(channels, channels, stride=2, norm=norm)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.xavier_uniform_(module.weight)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)
        for module in self.modules():
            if isinstance(module, ModulatedDeformConv2d):
                module.reset_offsets()

    def forward(self, features: list[Tensor]) -> list[Tensor]:
        """Maps (B, channels, h, w) at the features' strides, then one ("pool") or two that halve in size."""
        laterals = [conv(feature) for conv, feature in zip(self.lateral, features, strict=True)]
        for lower, upper in zip(reversed(laterals[:-1]), reversed(laterals[1:]), strict=True):
            lower += F.interpolate(upper, size=lower.shape[-2:], mode="nearest")
        levels = [conv(lateral) for conv, lateral in zip(self.output, laterals, strict=True)]
        if hasattr(self, "bottom_up"):
            for i, conv in enumerate(self.down):
                levels[i + 1] = levels[i + 1] + conv(levels[i])
            levels = [conv(level) for conv, level in zip(self.bottom_up, levels, strict=True)]
        if self.extra == "pool":
            return [*levels, levels[-1][..., ::2, ::2]]
        # In bf16, oneDNN 3.13 returns uninitialised memory as the weight gradient of a strided 3x3 convolution on a 1x1
        # map. These two maps are small: float32 costs nothing.
        with torch.autocast(levels[-1].device.type, enabled=False):
            p6 = self.p6(at_least_float32((levels if self.extra == "p5" else features)[-1]))
            p7 = self.p7(F.relu(p6) if self.extra == "p5" else p6)
        return [*levels, p6, p7]


def _conv(
    inputs: int, outputs: int, side: int = 3, *, stride: int = 1, norm: bool, deformable: bool = False
) -> nn.Module:
    """Square, of this side; with a norm, without bias."""
    kind = ModulatedDeformConv2d if deformable else nn.Conv2d
    conv = kind(inputs, outputs, side, stride, padding=side // 2, bias=not norm)
    return nn.Sequential(OrderedDict(conv=conv, norm=group_norm(outputs))) if norm else conv
