from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor, nn

from tests.helpers.references import Golden, recordings
from tightbox.ops.modulated_deform_conv import ModulatedDeformConv2d

pytestmark = pytest.mark.usefixtures("device")

GEOMETRY = {
    "s1": {"stride": 1, "padding": 1, "dilation": 1},
    "s2": {"stride": 2, "padding": 1, "dilation": 1},
    "d2": {"stride": 1, "padding": 2, "dilation": 2},
}


class Fixed(nn.Module):
    """An offset branch that gives what it is told."""

    def __init__(self, raw: Tensor) -> None:
        super().__init__()
        self.raw = nn.Parameter(raw)

    def forward(self, x: Tensor) -> Tensor:
        return self.raw


@pytest.mark.parametrize("file", recordings("dcn_seed0"), ids=repr)
@pytest.mark.parametrize("version", ["v1", "v2"])  # v1 has no mask: here one of ones, which are sigmoids of infinity
@pytest.mark.parametrize("case", GEOMETRY)
def test_values_and_gradients_of_mmcv(file: Golden, case: str, version: str) -> None:
    golden = file.whole(f"{case}/{version}/")
    conv = ModulatedDeformConv2d(8, 6, 3, **GEOMETRY[case], bias=version == "v2")
    mask = golden.get("mask", torch.ones(2, 9, *golden["offset"].shape[2:]))
    fixed = Fixed(torch.cat([golden["offset"], torch.logit(mask)], dim=1))
    conv.conv_offset = fixed  # type: ignore[assignment]
    with torch.no_grad():
        conv.weight.copy_(golden["weight"])
        if version == "v2":
            assert conv.bias is not None
            conv.bias.copy_(golden["bias"])
    x = golden["x"].requires_grad_()
    y = conv(x)
    expected = file.recorded(f"{case}/{version}/y")
    torch.testing.assert_close(expected.of(y), expected.values, rtol=1e-4, atol=1e-5)
    y.backward(golden["cotangent"])
    gradient = fixed.raw.grad
    assert gradient is not None
    ours = {"x": x.grad, "weight": conv.weight.grad, "offset": gradient[:, :18]}
    if version == "v2":
        assert conv.bias is not None
        ours |= {"bias": conv.bias.grad, "mask": gradient[:, 18:]}
    for name, value in ours.items():
        expected = file.recorded(f"{case}/{version}/grad_{name}")
        assert value is not None
        slope = mask * (1 - mask) if name == "mask" else torch.ones_like(value)  # of the sigmoid
        assert value is not None
        torch.testing.assert_close(expected.of(value), expected.values * expected.of(slope), rtol=1e-3, atol=1e-4)


def slow(conv: ModulatedDeformConv2d, x: Tensor) -> Tensor:
    """Every output number by its definition, tap by tap, with offsets as (y, x) pairs and then the masks."""
    raw = nn.functional.conv2d(
        x, conv.conv_offset.weight, conv.conv_offset.bias, conv.stride, conv.padding, conv.dilation
    )
    batch, _, height, width = raw.shape
    out = x.new_zeros(batch, conv.out_channels, height, width)
    per_group, in_group = conv.out_channels // conv.groups, conv.in_channels // conv.groups

    def pixel(b: int, c: int, row: int, column: int) -> float:
        inside = 0 <= row < x.shape[2] and 0 <= column < x.shape[3]
        return x[b, c, row, column].item() if inside else 0.0

    for b, o, i, j in torch.cartesian_prod(*map(torch.arange, out.shape)).tolist():
        for tap in range(9):
            y = i * conv.stride[0] - conv.padding[0] + tap // 3 * conv.dilation[0] + raw[b, 2 * tap, i, j].item()
            z = j * conv.stride[1] - conv.padding[1] + tap % 3 * conv.dilation[1] + raw[b, 2 * tap + 1, i, j].item()
            top, left = math.floor(y), math.floor(z)
            share = 1 / (1 + math.exp(-raw[b, 18 + tap, i, j].item()))
            for c in range(in_group):
                channel = o // per_group * in_group + c
                value = sum(
                    pixel(b, channel, top + dy, left + dz) * (1 - abs(y - top - dy)) * (1 - abs(z - left - dz))
                    for dy in (0, 1)
                    for dz in (0, 1)
                )
                out[b, o, i, j] += share * value * conv.weight[o, c, tap // 3, tap % 3].item()
    return out


@pytest.mark.parametrize(
    ("stride", "padding", "dilation", "groups"),
    [
        (1, 1, 1, 1),
        (2, 1, 1, 2),  # ResNeXt's groups, at the start of a stage
        (1, 2, 2, 1),
    ],
)
def test_equals_the_definition(stride: int, padding: int, dilation: int, groups: int) -> None:
    conv = ModulatedDeformConv2d(4, 4, 3, stride, padding, dilation, groups, bias=False).double()
    for parameter in conv.conv_offset.parameters():
        nn.init.normal_(parameter, std=0.4)
    x = torch.randn(1, 4, 5, 6, dtype=torch.float64)
    torch.testing.assert_close(conv(x), slow(conv, x))


def test_gradients() -> None:
    conv = ModulatedDeformConv2d(2, 2, 3, padding=1).double()
    for parameter in conv.conv_offset.parameters():
        nn.init.normal_(parameter, std=0.3)
    x = torch.randn(1, 2, 4, 4, dtype=torch.float64, requires_grad=True)
    weights = tuple(conv.parameters())

    def call(x: Tensor, *parameters: Tensor) -> Tensor:
        named = dict(zip(dict(conv.named_parameters()), parameters, strict=True))
        output: torch.Tensor = torch.func.functional_call(conv, named, (x,))
        return output

    assert torch.autograd.gradcheck(call, (x, *weights), nondet_tol=1e-10)  # of the order in which a GPU adds up


def test_starts_as_half_the_plain_convolution() -> None:
    plain = nn.Conv2d(6, 4, 3, stride=2, padding=2, dilation=2, groups=2, bias=False)
    conv = ModulatedDeformConv2d.like(plain)
    assert conv.weight.equal(plain.weight)
    x = torch.randn(2, 6, 9, 7)
    torch.testing.assert_close(conv(x), plain(x) / 2)  # sigmoid(0) = 1/2
    assert sorted(conv.state_dict()) == ["conv_offset.bias", "conv_offset.weight", "weight"]
    assert conv.conv_offset.weight.shape == (27, 6, 3, 3)


def test_autocast_does_not_round_the_offsets() -> None:
    conv = ModulatedDeformConv2d(2, 2, 3, padding=1)
    assert conv.conv_offset.bias is not None
    nn.init.constant_(conv.conv_offset.bias, 1.01)  # a bfloat16 knows 1.0078 and 1.0156 only
    x = torch.randn(1, 2, 8, 8).bfloat16()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        y = conv(x)
    assert y.dtype == torch.bfloat16
    assert y.equal(conv(x.float()).bfloat16())


def test_nothing_in_nothing_out() -> None:
    assert ModulatedDeformConv2d(3, 5, 3, padding=1)(torch.zeros(0, 3, 8, 8)).shape == (0, 5, 8, 8)
    assert ModulatedDeformConv2d(3, 5, 3, padding=1)(torch.ones(1, 3, 1, 1)).isfinite().all()
