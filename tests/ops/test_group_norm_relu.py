"""Group norm and ReLU in one against PyTorch's, one after the other; on a GPU, and interpreted, these are Triton's."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tightbox.ops.group_norm_relu import GroupNorm, group_norm_relu

pytestmark = pytest.mark.usefixtures("device")


def norm(groups: int, channels: int) -> nn.GroupNorm:
    made = nn.GroupNorm(groups, channels)
    nn.init.normal_(made.weight)
    nn.init.normal_(made.bias)
    return made


# More than one tile of 8192 numbers, the last of them cut off; groups that are no power of two; one pixel.
@pytest.mark.parametrize(("shape", "groups"), [((2, 256, 7, 11), 32), ((1, 12, 3, 5), 3), ((2, 8, 1, 1), 4)])
def test_values_and_gradients_are_those_of_both(shape: tuple[int, ...], groups: int) -> None:
    layer = norm(groups, shape[1])
    input = (3 + 2 * torch.randn(shape)).to(memory_format=torch.channels_last).requires_grad_()
    leaves = [input, layer.weight, layer.bias]

    def both(output: Tensor) -> list[Tensor]:
        weights = torch.linspace(-1, 1, output.numel()).view(output.shape)
        return [output, *torch.autograd.grad((output * weights).sum(), leaves)]

    for ours, theirs in zip(both(group_norm_relu(input, layer)), both(F.relu(layer(input))), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("layout", [torch.channels_last, torch.contiguous_format])
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-5), (torch.bfloat16, 2e-2)])
def test_the_layer_is_pytorchs(layout: torch.memory_format, dtype: torch.dtype, tolerance: float) -> None:
    plain = norm(4, 8)
    layer = GroupNorm(4, 8)
    layer.load_state_dict(plain.state_dict())
    input = torch.randn(2, 8, 5, 7).to(dtype).to(memory_format=layout).requires_grad_()
    results = []
    for module in (layer.to(dtype), plain):
        output = module(input if module is layer else input.float())
        weights = torch.linspace(-1, 1, output.numel()).view(output.shape)
        leaves = [input, *module.parameters()]
        results.append([output, *torch.autograd.grad((output.float() * weights).sum(), leaves)])
    for ours, theirs in zip(*results, strict=True):
        assert (ours.float() - theirs.float()).norm() <= tolerance * theirs.float().norm()
    if layout == torch.channels_last:
        assert results[0][0].is_contiguous(memory_format=torch.channels_last)


def test_bfloat16_is_rounded_once() -> None:
    layer, input = norm(4, 16), torch.randn(2, 16, 5, 6).bfloat16()
    expected = F.relu(F.group_norm(input.float(), 4, layer.weight, layer.bias, layer.eps))
    torch.testing.assert_close(group_norm_relu(input, layer.bfloat16()).float(), expected, rtol=2e-2, atol=2e-2)


def test_a_value_that_is_not_a_number_shows() -> None:
    input = torch.randn(2, 8, 2, 2)
    input[0, 0, 0, 0] = torch.nan
    output = group_norm_relu(input, norm(4, 8))
    assert output[0, :2].isnan().all()
    assert not output[0, 2:].isnan().any()
    assert not output[1].isnan().any()


def test_no_images() -> None:
    assert group_norm_relu(torch.zeros(0, 8, 2, 2), norm(4, 8)).shape == (0, 8, 2, 2)
