"""Any timm network as a backbone: images in, feature maps at chosen strides out."""

import difflib
from collections.abc import Sequence
from typing import Any, Self, cast

import timm
import torch
from timm.models.res2net import Bottle2neck
from timm.models.resnet import Bottleneck
from torch import Tensor, nn

from tightbox.errors import UserError
from tightbox.ops.modulated_deform_conv import ModulatedDeformConv2d
from tightbox.options import BackboneOptions


class Backbone(nn.Module):
    """A timm network cut to the features a detector needs.

    Args:
        options: which network, and what of it is frozen.
        strides: of the features; (8, 16, 32) are C3, C4 and C5.

    Attributes:
        channels: width of each of the feature maps.
        mean, std: (1, 3, 1, 1) statistics its input is normalised by, for RGB in [0, 1].

    Raises:
        UserError: if timm does not know the name, the network has no such features or layers, or the weights are
            unavailable.
    """

    body: Any  # timm says of its feature networks only that they are modules
    mean: Tensor
    std: Tensor

    def __init__(self, options: BackboneOptions, strides: Sequence[int] = (8, 16, 32)) -> None:
        super().__init__()
        self.options = options
        self.strides = tuple(strides)
        self.body = _timm_features(options, self.strides)
        if not options.pretrained and not options.zero_init:
            for norm in _batch_norms(self.body):
                nn.init.ones_(norm.weight)
        if options.deformable:
            _deform(self.body, options.name)
        if not options.res2net_pool:
            _leave_first_split(self.body, options.name)
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
            frozen += _batch_norms(self)
        for module in frozen:
            module.eval()
        return self

    def forward(self, pixels: Tensor) -> list[Tensor]:
        """Features of normalised pixels (B, 3, H, W): maps (B, channels[i], H / strides[i], W / strides[i])."""
        return cast(list[Tensor], self.body(pixels))


def _batch_norms(module: nn.Module) -> list[nn.modules.batchnorm._BatchNorm]:
    return [m for m in module.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)]


def _timm_features(options: BackboneOptions, strides: Sequence[int]) -> Any:
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
    if not set(strides) <= set(reductions):
        needed = ", ".join(map(str, strides))
        raise UserError(f"{options.name} has features at strides {reductions}, but this detector needs {needed}")
    if getattr(features, "output_fmt", None) == "NHWC":
        raise UserError(f"{options.name} gives features channels last, which no detector here takes; choose another")
    if features.pretrained_cfg.get("fixed_input_size"):
        raise UserError(f"{options.name} takes images of one size only, and those of detectors differ; choose another")
    numbers = features.feature_info.out_indices  # timm's own, which begin at 1 where a network hides its stem
    indices = tuple(numbers[len(reductions) - 1 - reductions[::-1].index(stride)] for stride in strides)
    try:
        return timm.create_model(options.name, pretrained=options.pretrained, features_only=True, out_indices=indices)
    except Exception as error:  # timm passes on whatever the hub's client raises
        if not options.pretrained:
            raise
        raise UserError(
            f"the pretrained weights of {options.name} are unavailable ({type(error).__name__}); "
            "without a network, train from random weights with --pretrained false"
        ) from error


def _deform(body: Any, name: str) -> None:
    """Swaps the 3x3 convolutions of stages 3 to 5 for deformable ones of the same weights."""
    blocks = [block for stage in ("layer2", "layer3", "layer4") for block in getattr(body, stage, [])]
    if not blocks or not all(isinstance(block, (Bottleneck, Bottle2neck)) for block in blocks):
        raise UserError(
            f"deformable convolutions go into the bottlenecks of a ResNet, ResNeXt or Res2Net, and {name} has none; "
            "choose such as resnet50, or deformable=false"
        )
    for block in blocks:
        if isinstance(block, Bottle2neck):
            block.convs = nn.ModuleList(map(ModulatedDeformConv2d.like, block.convs))
        else:
            block.conv2 = ModulatedDeformConv2d.like(block.conv2)


def _leave_first_split(body: Any, name: str) -> None:
    """Takes the 3x3 average, which changes no size there, out of the first block of a Res2Net."""
    first = next(iter(getattr(body, "layer1", [])), None)
    if not isinstance(first, Bottle2neck):
        raise UserError(f"res2net_pool=false is for a Res2Net, which {name} is not; leave it out")
    first.pool = nn.Identity()


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
