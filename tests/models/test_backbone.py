from __future__ import annotations

import pytest
import timm
import torch
from torch import nn

from tightbox.errors import UserError
from tightbox.models.backbone import Backbone
from tightbox.ops.modulated_deform_conv import ModulatedDeformConv2d
from tightbox.options import BackboneOptions


def backbone(name: str, **options: object) -> Backbone:
    return Backbone(BackboneOptions(name=name, pretrained=False, **options))  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "name", ["resnet18", "test_resnet.r160_in1k", "convnext_atto", "mobilenetv3_small_100", "dla34", "tresnet_m"]
)
def test_features_at_strides_8_16_and_32(name: str) -> None:
    """The last two hide their stem, and number their features from 1."""
    network = backbone(name).eval()
    with torch.no_grad():
        maps = network(torch.zeros(1, 3, 64, 96))
    assert [tuple(m.shape) for m in maps] == [
        (1, width, 64 // stride, 96 // stride) for width, stride in zip(network.channels, (8, 16, 32), strict=True)
    ]
    config = timm.get_pretrained_cfg(name)
    assert network.mean.flatten().tolist() == pytest.approx(config.mean)
    assert network.std.flatten().tolist() == pytest.approx(config.std)
    assert "mean" not in network.state_dict()


def test_a_level_is_the_last_of_its_stride() -> None:
    """resnet18's layer2 gives stride 8; its 128 channels are in the feature table only once."""
    assert backbone("resnet18").channels == [128, 256, 512]


@pytest.mark.parametrize(
    ("name", "sentence"),
    [
        ("resnet81", r"no model named 'resnet81'; did you mean .*resnet18"),
        ("qqqqqqqq", r"no model named 'qqqqqqqq'; see timm.list_models\(\)"),
        ("vit_tiny_patch16_224", r"strides \[16, 16, 16\], but this detector needs 8, 16, 32"),
        ("swin_tiny_patch4_window7_224", "features channels last"),
        ("maxvit_tiny_rw_224", "takes images of one size only"),
        ("resnet18.no_such_tag", "no_such_tag"),
    ],
)
def test_what_cannot_be_a_backbone_is_one_sentence(name: str, sentence: str) -> None:
    with pytest.raises(UserError, match=sentence) as caught:
        backbone(name)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("stages", [0, 1, 2])
def test_frozen_stages_are_the_stem_and_the_first_ones(stages: int) -> None:
    network = backbone("resnet18", frozen_stages=stages)
    frozen = {name.split(".")[0] for name, p in network.body.named_parameters() if not p.requires_grad}
    assert frozen == [set(), {"conv1", "bn1", "layer1"}, {"conv1", "bn1", "layer1", "layer2"}][stages]
    for _ in range(2):  # as built, and after a switch to evaluation and back
        training = {
            name.split(".")[0]
            for name, m in network.body.named_modules()
            if m.training and isinstance(m, nn.BatchNorm2d)
        }
        assert training == {"bn1", "layer1", "layer2", "layer3", "layer4"} - frozen
        network.eval().train()


def test_frozen_stages_do_not_change_in_training() -> None:
    network = backbone("resnet18", frozen_stages=1).train()
    before = {name: value.clone() for name, value in network.state_dict().items()}
    torch.stack([m.sum() for m in network(torch.rand(2, 3, 64, 64))]).sum().backward()
    torch.optim.SGD([p for p in network.parameters() if p.requires_grad], 0.1).step()
    moved = {name.split(".")[1] for name, value in network.state_dict().items() if not value.equal(before[name])}
    assert moved == {"layer2", "layer3", "layer4"}  # running means count as moving


def test_frozen_norm_keeps_statistics_but_trains_weights() -> None:
    network = backbone("test_resnet", frozen_norm=True).train()
    norms = [m for m in network.modules() if isinstance(m, nn.BatchNorm2d)]
    assert norms
    assert not any(m.training for m in norms)
    assert network.body.training
    assert norms[0].running_mean is not None
    before = norms[0].running_mean.clone()
    network(torch.rand(2, 3, 64, 64))
    assert norms[0].running_mean is not None
    assert norms[0].running_mean.equal(before)
    assert norms[0].weight.requires_grad


@pytest.mark.parametrize(("name", "stages"), [("resnet18", 5), ("mobilenetv3_small_100", 1)])
def test_stages_that_cannot_be_told_are_one_sentence(name: str, stages: int) -> None:
    with pytest.raises(UserError, match=f"cannot tell where stage {stages} .*frozen_stages=0"):
        backbone(name, frozen_stages=stages)
    with pytest.raises(UserError, match="frozen_stages is -1; it must be 0 or more"):
        backbone(name, frozen_stages=-1)


def test_no_network_for_pretrained_weights_is_one_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    real = timm.create_model

    def offline(*args: object, pretrained: bool = False, **kwargs: object) -> object:
        if pretrained:
            raise ConnectionError("a long story\nin several lines")
        return real(*args, **kwargs)

    monkeypatch.setattr(timm, "create_model", offline)
    with pytest.raises(UserError, match=r"weights of resnet18 are unavailable .*--pretrained false") as caught:
        Backbone(BackboneOptions(name="resnet18", pretrained=True))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("name", "per_block"),
    [
        ("resnet50", 1),
        ("resnext50_32x4d", 1),  # grouped
        ("res2net50_26w_4s", 3),  # three convolutions side by side in each block
    ],
)
def test_deformable_convolutions_in_stages_3_to_5(name: str, per_block: int) -> None:
    plain, network = backbone(name), backbone(name, deformable=True)
    stages = [n.split(".")[1] for n, m in network.named_modules() if isinstance(m, ModulatedDeformConv2d)]
    blocks = {"layer2": 4, "layer3": 6, "layer4": 3}
    assert stages == [stage for stage, count in blocks.items() for _ in range(count * per_block)]
    strange = {n for n in network.state_dict() if n not in plain.state_dict()}
    assert all(".conv_offset." in n for n in strange)  # timm's own weights find their places
    own = {n: m for n, m in plain.named_modules() if isinstance(m, nn.Conv2d)}
    for n, m in network.named_modules():
        if isinstance(m, ModulatedDeformConv2d):
            for what in ("stride", "padding", "dilation", "groups"):
                assert getattr(m, what) == getattr(own[n], what), (n, what)
    with torch.no_grad():
        shapes = [tuple(x.shape[1:]) for x in network.eval()(torch.rand(1, 3, 64, 64))]
    assert shapes == [(512, 8, 8), (1024, 4, 4), (2048, 2, 2)]


def test_deformable_convolutions_start_from_the_pretrained_weights(monkeypatch: pytest.MonkeyPatch) -> None:
    real = timm.create_model
    made = []

    def create(*args: object, pretrained: bool = False, **kwargs: object) -> nn.Module:
        made.append(real(*args, **kwargs))
        if pretrained:
            nn.init.constant_(made[-1].layer4[0].conv2.weight, 7)
        model: nn.Module = made[-1]
        return model

    monkeypatch.setattr(timm, "create_model", create)
    network = Backbone(BackboneOptions(name="resnet50", pretrained=True, deformable=True))
    assert (network.body.layer4[0].conv2.weight == 7).all()
    assert (network.body.layer4[1].conv2.weight != 7).all()


@pytest.mark.parametrize("name", ["resnet18", "convnext_atto"])
def test_deformable_convolutions_need_bottlenecks(name: str) -> None:
    with pytest.raises(
        UserError, match=f"go into the bottlenecks of a ResNet, ResNeXt or Res2Net, and {name} has none"
    ):
        backbone(name, deformable=True)


def test_res2net_without_the_average_of_its_first_block() -> None:
    pooled, plain = backbone("res2net50d").eval(), backbone("res2net50d", res2net_pool=False).eval()
    plain.load_state_dict(pooled.state_dict())
    first = {name: network.body.layer1[0] for name, network in (("pooled", pooled), ("plain", plain))}
    for block in first.values():
        nn.init.ones_(block.bn3.weight)  # timm starts with zeros, and so with nothing to see
    x = torch.rand(1, 64, 8, 8)
    assert not first["pooled"](x).allclose(first["plain"](x))
    # The average is over the last quarter of the channels alone: without them, both are the same.
    for block in first.values():
        nn.init.zeros_(block.conv3.weight[:, -26:])
    torch.testing.assert_close(first["pooled"](x), first["plain"](x))
    with pytest.raises(UserError, match="is for a Res2Net, which resnet18 is not"):
        backbone("resnet18", res2net_pool=False)
