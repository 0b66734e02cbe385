"""VFNet-X's neck, from the names of its published weights: every step once more in plain PyTorch."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tests.helpers.models import image_batch, objects, small_vfnet, tiny_iou_net, tiny_model, tiny_retinanet
from tightbox.errors import UserError
from tightbox.models import Detector
from tightbox.models.fpn import FPN
from tightbox.models.mmdet import export_state, import_checkpoint
from tightbox.models.mmdet.names import to_published
from tightbox.options import PyramidOptions, VFNetOptions

X: dict[str, Any] = {"neck": "pafpn", "neck_norm": True, "neck_deformable": True}
WEIGHTS = ("conv.weight", "gn.weight", "gn.bias")


def randomise(module: nn.Module) -> None:
    """Numbers other than those of the start, under which norms and offsets do nothing."""
    for parameter in module.parameters():
        nn.init.normal_(parameter, std=0.2)


def normed(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """Group norm over 32 groups by its formula."""
    groups = x.view(x.shape[0], 32, -1)
    centred = groups - groups.mean(dim=2, keepdim=True)
    scaled = (centred / (centred.square().mean(dim=2, keepdim=True) + 1e-5).sqrt()).view_as(x)
    return scaled * weight[:, None, None] + bias[:, None, None]


def deformed(x: Tensor, weight: Tensor, raw: Tensor) -> Tensor:
    """DCNv2, tap by tap: each reads where its offset (y before x) points, bilinearly, times its mask."""
    height, width = x.shape[2:]
    y, x_at = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
    total = torch.zeros(x.shape[0], weight.shape[0], height, width)
    for tap in range(9):
        rows = y + tap // 3 - 1 + raw[:, 2 * tap]
        columns = x_at + tap % 3 - 1 + raw[:, 2 * tap + 1]
        places = torch.stack([2 * columns / (width - 1) - 1, 2 * rows / (height - 1) - 1], dim=-1)
        seen = F.grid_sample(x, places, padding_mode="zeros", align_corners=True)
        total += torch.einsum("oc,bchw->bohw", weight[:, :, tap // 3, tap % 3], seen * raw[:, 18 + tap, None].sigmoid())
    return total


def published_neck(weights: dict[str, Tensor], c3: Tensor, c4: Tensor, c5: Tensor) -> list[Tensor]:
    """Lateral 1x1 without norm, top-down, 3x3, bottom-up, DCNv2, then P6 from P5 and P7 from P6 after a ReLU."""

    def step(x: Tensor, name: str, stride: int = 1) -> Tensor:
        weight, scale, bias = (weights[f"neck.{name}.{part}"] for part in WEIGHTS)
        if f"neck.{name}.conv.conv_offset.weight" in weights:
            offset = f"neck.{name}.conv.conv_offset"
            raw = F.conv2d(x, weights[f"{offset}.weight"], weights[f"{offset}.bias"], padding=1)
            return normed(deformed(x, weight, raw), scale, bias)
        return normed(F.conv2d(x, weight, stride=stride, padding=1), scale, bias)

    def lateral(x: Tensor, i: int) -> Tensor:
        return F.conv2d(x, weights[f"neck.lateral_convs.{i}.conv.weight"], weights[f"neck.lateral_convs.{i}.conv.bias"])

    def doubled(x: Tensor) -> Tensor:
        return x.repeat_interleave(2, dim=2).repeat_interleave(2, dim=3)

    m5 = lateral(c5, 2)
    m4 = lateral(c4, 1) + doubled(m5)
    m3 = lateral(c3, 0) + doubled(m4)
    n3 = step(m3, "fpn_convs.0")
    n4 = step(m4, "fpn_convs.1") + step(n3, "downsample_convs.0", stride=2)
    n5 = step(m5, "fpn_convs.2") + step(n4, "downsample_convs.1", stride=2)
    p3, p4, p5 = (step(n, f"pafpn_convs.{i}") for i, n in enumerate((n3, n4, n5)))
    p6 = step(p5, "fpn_convs.3", stride=2)
    return [p3, p4, p5, p6, step(p6.clamp(min=0), "fpn_convs.4", stride=2)]


def features() -> list[Tensor]:
    return [torch.randn(2, 128, 16, 24), torch.randn(2, 256, 8, 12), torch.randn(2, 512, 4, 6)]


@pytest.mark.parametrize("deformable", [False, True])
def test_a_published_file_computes_what_its_names_say(deformable: bool, tmp_path: Any) -> None:
    made = small_vfnet(**X | {"neck_deformable": deformable}, tower_depth=4)
    randomise(made.fpn)
    state = export_state(made)
    neck = sorted(name for name in state if name.startswith("neck."))
    convs = [f"fpn_convs.{i}" for i in range(5)] + ["downsample_convs.0", "downsample_convs.1"]
    convs += [f"pafpn_convs.{i}" for i in range(3)]
    names = [f"{conv}.{part}" for conv in convs for part in WEIGHTS]
    names += [f"lateral_convs.{i}.conv.{part}" for i in range(3) for part in ("weight", "bias")]
    if deformable:
        names += [f"pafpn_convs.{i}.conv.conv_offset.{part}" for i in range(3) for part in ("weight", "bias")]
    assert neck == sorted(f"neck.{name}" for name in names)
    torch.save({"meta": {}, "state_dict": state}, tmp_path / "x.pth")
    model = import_checkpoint(tmp_path / "x.pth", ["a", "b", "c"])
    assert model.options == VFNetOptions(
        channels=64, tower_depth=4, **X | {"neck_deformable": deformable}, suppress="soft_linear", nms_iou=0.65
    )
    maps = features()
    with torch.no_grad():
        for ours, theirs in zip(model.fpn([m.clone() for m in maps]), published_neck(state, *maps), strict=True):
            torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-4)


def test_towers_and_neck_of_384_channels() -> None:
    # 384 channels in 32 groups of 12.
    model = tiny_model(channels=384, tower_depth=4, deformable=True, **X)
    norms = [m for m in model.modules() if isinstance(m, nn.GroupNorm)]
    # 10 in the neck, 4 in each tower, 1 before the initial box.
    assert [(norm.num_groups, norm.num_channels) for norm in norms] == [(32, 384)] * 19
    names = set(to_published(model.state_dict()))
    assert {"bbox_head.cls_convs.3.conv.conv_offset.weight", "bbox_head.reg_convs.3.gn.bias"} <= names


def test_a_bottom_up_path_without_norm_starts_as_xavier_says_and_without_offsets() -> None:
    fpn = FPN([4, 6, 8], PyramidOptions(channels=16, neck="pafpn", neck_deformable=True))
    maps = [torch.randn(1, c, s, s) for c, s in ((4, 16), (6, 8), (8, 4))]
    plain = FPN([4, 6, 8], PyramidOptions(channels=16))
    plain.load_state_dict({name: value for name, value in fpn.state_dict().items() if name in plain.state_dict()})
    n3, n4, _, *_ = plain([m.clone() for m in maps])
    p3, p4, *_ = fpn([m.clone() for m in maps])
    # A tap without offset reads its own cell, and its mask is sigmoid(0) = 1/2.
    for i, (output, total) in enumerate(((p3, n3), (p4, n4 + fpn.down[0](n3)))):
        weight, bias = (fpn.get_parameter(f"bottom_up.{i}.{part}") for part in ("weight", "bias"))
        torch.testing.assert_close(output, F.conv2d(total, weight / 2, bias, padding=1))


@pytest.mark.parametrize("build", [tiny_model, tiny_retinanet, tiny_iou_net])
def test_every_detector_with_a_pyramid_learns_through_it(build: Any) -> None:
    model: Detector = build(**X, channels=32)
    model.train()
    losses = model.loss(image_batch((64, 64)), [objects((5.0, 5.0, 40.0, 50.0))])
    torch.stack(list(losses.values())).sum().backward()
    for part in ("lateral.0", "output.0.conv", "down.0.conv", "bottom_up.1.conv", "bottom_up.1.norm"):
        gradient = model.get_parameter(f"fpn.{part}.weight").grad
        assert gradient is not None
        assert gradient.abs().sum() > 0
    model.eval()
    assert len(model.detect(image_batch((64, 48)))) == 1


def test_options_that_make_no_sense() -> None:
    with pytest.raises(UserError, match="neck=pafpn"):
        PyramidOptions(neck_deformable=True)
    with pytest.raises(UserError, match="with neck_norm or lateral_norm it must be a multiple of 32"):
        PyramidOptions(channels=40, neck_norm=True)
