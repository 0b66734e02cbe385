from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from tightbox.models.fpn import FPN, STRIDES
from tightbox.ops.group_norm_relu import GroupNorm
from tightbox.options import PyramidOptions

pytestmark = pytest.mark.usefixtures("device")
NARROW = PyramidOptions(channels=16)


def features(height: int, width: int, channels: tuple[int, ...] = (4, 6, 8)) -> list[Tensor]:
    """What a backbone gives: sides divided by 8, 16 and 32, rounded up."""
    return [torch.randn(2, c, -(-height // s), -(-width // s)) for c, s in zip(channels, (8, 16, 32), strict=True)]


def plain(fpn: FPN, maps: list[Tensor]) -> list[Tensor]:
    """The pyramid written out, the upsampling as an index: row y of a finer map reads row floor(y·h / H)."""
    c3, c4, c5 = maps

    def raised(coarse: Tensor, fine: Tensor) -> Tensor:
        rows = [y * coarse.shape[2] // fine.shape[2] for y in range(fine.shape[2])]
        columns = [x * coarse.shape[3] // fine.shape[3] for x in range(fine.shape[3])]
        return coarse[:, :, rows][:, :, :, columns]

    m5 = fpn.lateral[2](c5)
    m4 = fpn.lateral[1](c4)
    m4 = m4 + raised(m5, m4)
    m3 = fpn.lateral[0](c3)
    m3 = m3 + raised(m4, m3)
    p3, p4, p5 = (conv(m) for conv, m in zip(fpn.output, (m3, m4, m5), strict=True))
    p6 = fpn.p6(p5)
    return [p3, p4, p5, p6, fpn.p7(p6.clamp(min=0))]


@pytest.mark.parametrize("size", [(64, 64), (300, 300), (40, 100), (1, 1)])
@pytest.mark.parametrize("norms", [{}, {"lateral_norm": True}, {"neck_norm": True, "lateral_norm": True}])
def test_equals_the_pyramid_written_out(size: tuple[int, int], norms: dict[str, Any]) -> None:
    fpn = FPN([4, 6, 8], PyramidOptions(channels=32, **norms))
    maps = features(*size)
    with torch.no_grad():
        for ours, theirs in zip(fpn([m.clone() for m in maps]), plain(fpn, maps), strict=True):
            torch.testing.assert_close(ours, theirs)


def test_sides_of_a_300_pixel_image() -> None:
    levels = FPN([4, 6, 8], NARROW)(features(300, 300))
    assert [tuple(level.shape) for level in levels] == [(2, 16, side, side) for side in (38, 19, 10, 5, 3)]
    assert [math.ceil(300 / stride) for stride in STRIDES] == [38, 19, 10, 5, 3]


def test_retinanets_pyramid_goes_on_from_c5_and_without_relu() -> None:
    fpn = FPN([4, 6, 8], NARROW, extra="c5")
    assert fpn.p6.weight.shape == (16, 8, 3, 3)
    maps = features(96, 96)
    found = fpn([m.clone() for m in maps])
    p6 = fpn.p6(maps[2])
    assert (p6 < 0).any()
    torch.testing.assert_close(found[3], p6)
    torch.testing.assert_close(found[4], fpn.p7(p6))
    assert not fpn.p7(p6).allclose(fpn.p7(p6.relu()))
    other = FPN([4, 6, 8], NARROW)
    other.lateral, other.output = fpn.lateral, fpn.output
    for ours, theirs in zip(found[:3], plain(other, maps)[:3], strict=True):
        torch.testing.assert_close(ours, theirs)


def test_poolings_p6_is_every_second_cell_of_p5() -> None:
    fpn = FPN([4, 6, 8], NARROW, extra="pool")
    assert not hasattr(fpn, "p6")
    found = fpn(features(160, 96))  # P5 has 5 x 3 cells
    assert [tuple(level.shape[2:]) for level in found] == [(20, 12), (10, 6), (5, 3), (3, 2)]
    assert found[3].equal(found[2][:, :, [0, 2, 4]][:, :, :, [0, 2]])


def test_weights_start_as_xavier_says_and_there_are_no_norms() -> None:
    fpn = FPN([32, 64, 128], PyramidOptions(channels=64))
    assert all(isinstance(m, (FPN, nn.ModuleList, nn.Conv2d)) for m in fpn.modules())
    convolutions = [m for m in fpn.modules() if isinstance(m, nn.Conv2d)]
    assert len(convolutions) == 8
    for conv in convolutions:
        kernel = conv.kernel_size[0] * conv.kernel_size[1]
        # Glorot: uniform within ±sqrt(6 / (fan in + fan out)).
        bound = math.sqrt(6 / (kernel * (conv.in_channels + conv.out_channels)))
        assert 0.95 * bound < conv.weight.abs().max() <= bound
        assert conv.bias is not None
        assert not conv.bias.any()


@pytest.mark.parametrize("option", ["neck_norm", "lateral_norm"])
def test_where_the_norms_are(option: str) -> None:
    """With a norm a convolution's bias would be in vain."""
    options: dict[str, Any] = {option: True}
    fpn = FPN([4, 6, 8], PyramidOptions(channels=64, **options))
    normed = {"neck_norm": [*fpn.output, fpn.p6, fpn.p7], "lateral_norm": list(fpn.lateral)}[option]
    for part in (*fpn.lateral, *fpn.output, fpn.p6, fpn.p7):
        kinds = [type(m) for m in part.modules() if not list(m.children())]
        assert kinds == ([nn.Conv2d, GroupNorm] if part in normed else [nn.Conv2d])
        conv = next(m for m in part.modules() if isinstance(m, nn.Conv2d))
        assert (conv.bias is None) == (part in normed)
        assert conv.kernel_size == ((1, 1) if part in list(fpn.lateral) else (3, 3))


def test_the_inputs_are_left_alone() -> None:
    fpn, maps = FPN([4, 6, 8], NARROW), features(64, 64)
    copies = [m.clone() for m in maps]
    fpn(maps)
    assert all(a.equal(b) for a, b in zip(maps, copies, strict=True))
