from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.nn.functional import conv2d
from torchvision.ops import deform_conv2d

from tests.helpers.references import Golden, recordings
from tightbox.errors import UserError
from tightbox.ops import star_conv
from tightbox.ops.star_conv import StarSampling, star_conv2d, star_offsets

pytestmark = pytest.mark.usefixtures("device")


class Case(NamedTuple):
    input: Tensor
    distances: Tensor
    weight: Tensor


def make_case(
    batch: int = 2,
    channels: int = 5,
    size: tuple[int, int] = (6, 7),
    outputs: int = 4,
    reach: float = 24.0,
    dtype: torch.dtype = torch.float32,
) -> Case:
    return Case(
        torch.randn(batch, channels, *size, dtype=dtype),
        reach * torch.rand(batch, 4, *size, dtype=dtype),
        torch.randn(outputs, channels, 3, 3, dtype=dtype) / math.sqrt(9 * channels),
    )


def by_deform_conv2d(case: Case, stride: float) -> Tensor:
    output: Tensor = deform_conv2d(case.input, star_offsets(case.distances, stride), case.weight, padding=1)
    return output


def by_star_conv2d(case: Case, stride: float) -> Tensor:
    return star_conv2d(case.input, StarSampling(case.distances, stride), case.weight)


def value_and_gradients(function: Callable[[Case, float], Tensor], case: Case, stride: float) -> list[Tensor]:
    leaves = Case(*(tensor.clone().requires_grad_() for tensor in case))
    output = function(leaves, stride)
    cotangent = torch.linspace(-1, 1, output.numel(), dtype=output.dtype).view(output.shape)
    return [output.detach(), *torch.autograd.grad(output, leaves, cotangent)]


def assert_equals_deform_conv2d(case: Case, stride: float) -> None:
    ours, theirs = (value_and_gradients(f, case, stride) for f in (by_star_conv2d, by_deform_conv2d))
    exact = case.input.dtype == torch.double
    torch.testing.assert_close(ours[0], theirs[0], rtol=0, atol=1e-12 if exact else 1e-5)
    for our_gradient, their_gradient in zip(ours[1:], theirs[1:], strict=True):
        torch.testing.assert_close(our_gradient, their_gradient, rtol=1e-4, atol=1e-11 if exact else 1e-4)


def pixel(feature: Tensor, y: int, x: int) -> Tensor:
    """(C,): the pixel of a (C, H, W) map, zero outside."""
    inside = 0 <= y < feature.shape[1] and 0 <= x < feature.shape[2]
    return feature[:, y, x] if inside else torch.zeros_like(feature[:, 0, 0])


def bilinear(feature: Tensor, y: float, x: float) -> Tensor:
    top, left = math.floor(y), math.floor(x)
    down, right = y - top, x - left
    return (
        (1 - down) * (1 - right) * pixel(feature, top, left)
        + (1 - down) * right * pixel(feature, top, left + 1)
        + down * (1 - right) * pixel(feature, top + 1, left)
        + down * right * pixel(feature, top + 1, left + 1)
    )


def slow_star_conv2d(case: Case, stride: float) -> Tensor:
    batch, _, height, width = case.input.shape
    output = case.input.new_zeros(batch, len(case.weight), height, width)
    for image in range(batch):
        for y in range(height):
            for x in range(width):
                left, top, right, bottom = (case.distances[image, :, y, x] / stride).tolist()
                for row, tap_y in enumerate((y - top, y, y + bottom)):
                    for column, tap_x in enumerate((x - left, x, x + right)):
                        sample = bilinear(case.input[image], tap_y, tap_x)
                        output[image, :, y, x] += case.weight[:, :, row, column] @ sample
    return output


def test_offsets_by_hand() -> None:
    # l, t, r, b = 10, 20, 30, 40 at stride 8 are 1.25, 2.5, 3.75, 5 steps. Rows of taps lie at y = −2.5, 0, 5, which is
    # −1.5, 0, 4 from the regular −1, 0, 1; columns at x = −1.25, 0, 3.75, which is −0.25, 0, 2.75 from them.
    distances = torch.tensor([10.0, 20.0, 30.0, 40.0]).view(1, 4, 1, 1)
    expected = [-1.5, -0.25, -1.5, 0, -1.5, 2.75, 0, -0.25, 0, 0, 0, 2.75, 4, -0.25, 4, 0, 4, 2.75]
    assert star_offsets(distances, 8).flatten().tolist() == expected


@pytest.mark.parametrize("golden", recordings("star_seed0"), ids=repr)
@pytest.mark.parametrize("stride", [8, 16, 32, 64, 128])
def test_offsets_and_their_gradient_equal_mmdetection(golden: Golden, stride: int) -> None:
    distances = golden[f"stride{stride}/bbox_pred"].requires_grad_()
    offsets = star_offsets(distances, stride)
    torch.testing.assert_close(offsets, golden[f"stride{stride}/offset"], rtol=1e-6, atol=1e-5)
    (gradient,) = torch.autograd.grad(offsets, distances, golden[f"stride{stride}/cotangent"])
    torch.testing.assert_close(0.1 * gradient, golden[f"stride{stride}/grad"])  # its 0.1 is VFNet's gradient_mul


def test_equals_the_slow_loop() -> None:
    case = make_case(dtype=torch.double)
    torch.testing.assert_close(by_star_conv2d(case, 8.0), slow_star_conv2d(case, 8.0), rtol=0, atol=1e-12)


@pytest.mark.parametrize("dtype", [torch.float32, torch.double])
@pytest.mark.parametrize(
    ("batch", "channels", "size", "reach"),
    [
        (2, 5, (6, 7), 24.0),  # within the map and just outside
        (1, 3, (5, 4), 400.0),  # nearly all taps far outside
        (3, 1, (1, 1), 10.0),  # maps of one pixel
        (1, 2, (1, 9), 30.0),  # a single row
        (1, 16, (45, 40), 60.0),  # more locations than one chunk
    ],
)
def test_equals_deform_conv2d(
    batch: int, channels: int, size: tuple[int, int], reach: float, dtype: torch.dtype
) -> None:
    assert_equals_deform_conv2d(make_case(batch, channels, size, reach=reach, dtype=dtype), 8.0)


def test_equals_deform_conv2d_on_pixels_and_borders() -> None:
    # Whole steps put every tap on a pixel, on −1 and on the size itself, where interpolation has its kinks.
    case = make_case(size=(4, 5), dtype=torch.double)
    distances = 8.0 * torch.randint(0, 7, case.distances.shape).double()
    assert_equals_deform_conv2d(case._replace(distances=distances), 8.0)


def test_distances_below_zero_equal_deform_conv2d() -> None:
    case = make_case(dtype=torch.double)
    assert_equals_deform_conv2d(case._replace(distances=case.distances - 12), 8.0)


@settings(max_examples=40, deadline=None)
@given(
    batch=st.integers(0, 3),
    channels=st.integers(1, 4),
    outputs=st.integers(1, 3),
    height=st.integers(1, 6),
    width=st.integers(1, 6),
    stride=st.sampled_from([1, 4, 8, 128, 7.3]),
    steps=st.sampled_from([0, 0.5, 3, 20]),
    channels_last=st.booleans(),
)
def test_equals_deform_conv2d_at_any_size(
    batch: int,
    channels: int,
    outputs: int,
    height: int,
    width: int,
    stride: float,
    steps: float,
    channels_last: bool,
) -> None:
    case = make_case(batch, channels, (height, width), outputs, steps * stride, torch.double)
    if channels_last:
        case = case._replace(input=case.input.to(memory_format=torch.channels_last))
    if batch:
        assert_equals_deform_conv2d(case, stride)
    else:  # which deform_conv2d refuses
        output, *gradients = value_and_gradients(by_star_conv2d, case, stride)
        assert output.shape == (0, outputs, height, width)
        assert [gradient.shape for gradient in gradients] == [tensor.shape for tensor in case]


def test_gradients_in_double() -> None:
    case = make_case(batch=1, channels=2, size=(3, 4), outputs=2, dtype=torch.double)
    # Steps of a whole number and 0.3 keep every tap away from the kinks of interpolation.
    distances = 8 * (torch.randint(0, 4, case.distances.shape) + 0.3).double()
    leaves = [tensor.requires_grad_() for tensor in (case.input, distances, case.weight)]
    assert torch.autograd.gradcheck(lambda x, d, w: star_conv2d(x, StarSampling(d, 8), w), leaves)


@pytest.mark.parametrize("needed", range(3))
def test_gradient_of_one_input_alone(needed: int) -> None:
    case = make_case(dtype=torch.double)
    expected = value_and_gradients(by_star_conv2d, case, 8.0)[1 + needed]
    leaves = Case(*(tensor.clone().requires_grad_(number == needed) for number, tensor in enumerate(case)))
    output = by_star_conv2d(leaves, 8.0)
    cotangent = torch.linspace(-1, 1, output.numel(), dtype=output.dtype).view(output.shape)
    torch.testing.assert_close(torch.autograd.grad(output, leaves[needed], cotangent)[0], expected)


def test_box_of_one_step_is_the_plain_convolution() -> None:
    case = make_case(dtype=torch.double)
    plain = conv2d(case.input, case.weight, padding=1)
    case = case._replace(distances=torch.full_like(case.distances, 16.0))
    torch.testing.assert_close(by_star_conv2d(case, 16.0), plain, rtol=0, atol=1e-12)


def test_two_convolutions_share_one_sampling() -> None:
    case, other = make_case(dtype=torch.double), make_case(channels=3, dtype=torch.double)
    distances = case.distances.requires_grad_()
    star = StarSampling(distances, 8)
    shared = star_conv2d(case.input, star, case.weight) + star_conv2d(other.input, star, other.weight)
    apart = by_star_conv2d(case, 8) + by_star_conv2d(other._replace(distances=distances), 8)
    torch.testing.assert_close(shared, apart, rtol=0, atol=0)
    gradients = (torch.autograd.grad(output.square().sum(), distances)[0] for output in (shared, apart))
    torch.testing.assert_close(*gradients)


def test_batches_do_not_mix() -> None:
    case = make_case(batch=3, reach=200.0)
    alone = [by_star_conv2d(Case(case.input[i : i + 1], case.distances[i : i + 1], case.weight), 8.0) for i in range(3)]
    torch.testing.assert_close(by_star_conv2d(case, 8.0), torch.cat(alone))


def test_chunks_leave_no_seam(monkeypatch: pytest.MonkeyPatch) -> None:
    case = make_case(dtype=torch.double)
    whole = value_and_gradients(by_star_conv2d, case, 8.0)
    monkeypatch.setattr(star_conv, "_LOCATIONS_PER_CHUNK", 5)  # 2·6·7 = 84 locations: 16 chunks and a rest of 4
    for chunked, expected in zip(value_and_gradients(by_star_conv2d, case, 8.0), whole, strict=True):
        torch.testing.assert_close(chunked, expected)


@pytest.mark.parametrize("far", [1e6, 1e30, math.inf])
def test_taps_far_away_are_zero(far: float) -> None:
    case = make_case(dtype=torch.double)
    case = case._replace(distances=torch.full_like(case.distances, far))
    centre = conv2d(case.input, case.weight[:, :, 1:2, 1:2])  # all that is left of the star
    torch.testing.assert_close(by_star_conv2d(case, 8.0), centre)
    gradients = value_and_gradients(by_star_conv2d, case, 8.0)[1:]
    assert all(gradient.isfinite().all() for gradient in gradients)


def test_nan_distance_gives_nan_there_and_nowhere_else() -> None:
    case = make_case()
    expected = by_star_conv2d(case, 8.0)
    case.distances[0, 2, 3, 4] = math.nan
    output = by_star_conv2d(case, 8.0)
    assert output[0, :, 3, 4].isnan().all()
    expected[0, :, 3, 4] = output[0, :, 3, 4] = 0
    assert torch.equal(output, expected)
    value_and_gradients(by_star_conv2d, case, 8.0)  # does not read out of bounds


@pytest.mark.parametrize(("dtype", "unit"), [(torch.bfloat16, 2**-8), (torch.float16, 2**-11)])
def test_half_precision_errs_by_a_few_roundings(dtype: torch.dtype, unit: float) -> None:
    # A rounding errs by `unit` at most, of its number. For a sum of products let A be the same sum of their absolute
    # values. A sample errs by 2 units of its A: its weights (which Triton does not round) and the sample itself are
    # rounded. So the output errs by 3 of A, and the weight's gradient by 4: each chunk is rounded, and their sum. The
    # gradient of a sample errs by 1, so the features' does by 4 (weight, chunk, sum) and the entries' by 2. Float32
    # sums and squares of units are in the last tenth.
    case = Case(*(tensor.to(dtype) for tensor in make_case(channels=40)))._replace(distances=make_case().distances)
    exact = Case(*(tensor.double() for tensor in case))
    absolute = exact._replace(input=exact.input.abs(), weight=exact.weight.abs())

    def run(values: Case, positive: bool) -> list[Tensor]:
        leaves = Case(*(tensor.clone().requires_grad_() for tensor in values))
        star = StarSampling(leaves.distances, 8.0)
        weights = star.matrix[1]
        output = star_conv2d(leaves.input, star, leaves.weight)
        cotangent = torch.linspace(-1, 1, output.numel()).view(output.shape).to(dtype).to(output.dtype)
        cotangent = cotangent.abs() if positive else cotangent
        gradients = torch.autograd.grad(output, (leaves.input, leaves.weight, weights), cotangent)
        return [output.detach(), *gradients]

    actual, expected, bounds = run(case, False), run(exact, False), run(absolute, True)
    assert [tensor.dtype for tensor in actual] == [dtype, dtype, dtype, torch.float32]
    for ours, right, bound, roundings in zip(actual, expected, bounds, (3.1, 4.1, 4.1, 2.1), strict=True):
        assert ((ours.double() - right).abs() <= roundings * unit * bound).all()
    assert (actual[0].double() - expected[0]).abs().max() > 0.1 * unit  # it did not compute in float32


def test_autocast_is_that_of_convolutions() -> None:
    case = make_case()
    rounded = case._replace(input=case.input.bfloat16(), weight=case.weight.bfloat16())
    expected = value_and_gradients(by_star_conv2d, rounded, 8.0)
    device = case.input.device.type
    with torch.autocast(device, torch.bfloat16):
        actual = value_and_gradients(by_star_conv2d, case, 8.0)
        exact = make_case(dtype=torch.double)
        assert by_star_conv2d(exact, 8.0).dtype == torch.double
    assert [tensor.dtype for tensor in actual] == [torch.bfloat16, *[torch.float32] * 3]
    rounding = 0 if device == "cpu" else 2**-7  # a GPU adds up gradients in an order that changes
    for ours, right in zip(actual, expected, strict=True):
        torch.testing.assert_close(ours, right.to(ours.dtype), rtol=rounding, atol=rounding)


@pytest.mark.parametrize("strict", [False, True])
def test_exports(strict: bool) -> None:
    class Module(torch.nn.Module):
        def forward(self, input: Tensor, distances: Tensor, weight: Tensor) -> Tensor:
            return star_conv2d(input, StarSampling(distances, 8), weight)

    case = make_case()
    program = torch.export.export(Module(), tuple(case), strict=strict)
    torch.testing.assert_close(program.module()(*case), by_star_conv2d(case, 8.0), rtol=0, atol=1e-5)


@pytest.mark.parametrize(
    ("distances", "weight", "complaint"),
    [
        ((2, 4, 6, 6), (4, 5, 3, 3), "distances of shape"),  # another width
        ((2, 2, 6, 7), (4, 5, 3, 3), "distances of shape"),  # two distances
        ((2, 4, 6, 7), (4, 6, 3, 3), "a weight of shape"),  # another number of channels
        ((2, 4, 6, 7), (4, 5, 1, 1), "a weight of shape"),  # not 3×3
    ],
)
def test_shapes_that_do_not_fit(distances: tuple[int, ...], weight: tuple[int, ...], complaint: str) -> None:
    with pytest.raises(UserError, match=complaint):
        star_conv2d(torch.randn(2, 5, 6, 7), StarSampling(torch.ones(distances), 8), torch.randn(weight))
