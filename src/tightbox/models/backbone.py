"""Any timm network as a backbone: pictures in, feature maps at strides 8, 16 and 32 out."""

from __future__ import annotations

import difflib
from typing import Any, Self

import timm
import torch
from torch import Tensor, nn

from tightbox.errors import UserError
from tightbox.options import BackboneOptions

STRIDES = (8, 16, 32)


class Backbone(nn.Module):
    """A timm network cut to its C3, C4 and C5 features.

    Attributes:
        channels: width of each of the three feature maps.
        mean, std: (1, 3, 1, 1) statistics its input is normalised by, for RGB in [0, 1].

    Raises:
        UserError: if timm does not know the name, the network has no such features, or the weights cannot be had.
    """

    body: Any  # timm says of its feature networks only that they are modules
    mean: Tensor
    std: Tensor

    def __init__(self, options: BackboneOptions) -> None:
        super().__init__()
        self.options = options
        self.body = _timm_features(options)
        self.channels: list[int] = self.body.feature_info.channels()
        config = self.body.pretrained_cfg
        self.register_buffer("mean", torch.tensor(config["mean"]).view(1, 3, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(config["std"]).view(1, 3, 1, 1), persistent=False)
        for module in _first_stages(self.body, options.frozen_stages):
            module.requires_grad_(False)
        self.train()

    def train(self, mode: bool = True) -> Self:
        """Training mode, except for what is frozen."""
        super().train(mode)
        frozen = _first_stages(self.body, self.options.frozen_stages)
        if self.options.frozen_norm:
            frozen += [m for m in self.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)]
        for module in frozen:
            module.eval()
        return self

    def forward(self, pixels: Tensor) -> list[Tensor]:
        """Features of normalised pixels (B, 3, H, W): three maps (B, channels[i], H / stride, W / stride)."""
        features: list[Tensor] = self.body(pixels)
        return features


def _timm_features(options: BackboneOptions) -> Any:
    if not timm.is_model(options.name):
        close = difflib.get_close_matches(options.name, timm.list_models(), n=3)
        hint = f"did you mean {', '.join(close)}?" if close else "see timm.list_models()"
        raise UserError(f"timm has no model named {options.name!r}; {hint}")
    try:
        with torch.device("meta"):  # only its table of features is wanted
            features = timm.create_model(options.name, features_only=True)
        reductions = features.feature_info.reduction()
    except RuntimeError as error:
        raise UserError(f"timm cannot make a network of feature maps of {options.name}: {error}") from error
    if not set(STRIDES) <= set(reductions):
        raise UserError(f"{options.name} has features at strides {reductions}, but a detector needs 8, 16 and 32")
    if getattr(features, "output_fmt", None) == "NHWC":
        raise UserError(f"{options.name} gives features channels last, which no detector here takes; choose another")
    indices = tuple(len(reductions) - 1 - reductions[::-1].index(stride) for stride in STRIDES)
    try:
        return timm.create_model(options.name, pretrained=options.pretrained, features_only=True, out_indices=indices)
    except Exception as error:  # timm passes on whatever the hub's client raises
        if not options.pretrained:
            raise
        raise UserError(
            f"the pretrained weights of {options.name} cannot be had ({type(error).__name__}); "
            "without a network, train from random weights with --pretrained false"
        ) from error


def _first_stages(body: Any, count: int) -> list[nn.Module]:
    """The stem and the first `count` stages of a timm feature network, in order of use."""
    if count == 0:
        return []
    reduction = 2 ** (count + 1)  # the first stage ends at stride 4 in every such network
    ends = [info["module"].replace(".", "_") for info in body.feature_info.info if info["reduction"] == reduction]
    modules = []
    for name, module in body.named_children():
        modules.append(module)
        if ends and name == ends[-1]:
            return modules
    raise UserError(f"cannot tell where stage {count} of this backbone ends; use frozen_stages=0")
