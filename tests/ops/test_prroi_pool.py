from __future__ import annotations

import importlib
import math
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import onnxruntime
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.nn.functional import avg_pool2d
from torch.profiler import profile

from tightbox.errors import UserError
from tightbox.ops import prroi_pool

pytestmark = pytest.mark.usefixtures("device")

MODULE = importlib.import_module("tightbox.ops.prroi_pool")  # the package's attribute of this name is the function


class Pool(torch.nn.Module):
    """What an exporter takes."""

    def forward(self, features: Tensor, boxes: Tensor) -> Tensor:
        return prroi_pool(features, boxes, (2, 3), 0.7)


def interpolate(feature: Tensor, y: float, x: float) -> Tensor:
    """(C,): the sum of the pixels of a (C, H, W) map times max(0, 1 − |y − i|)·max(0, 1 − |x − j|)."""
    i, j = (torch.arange(size, dtype=torch.double) for size in feature.shape[1:])
    return feature @ (1 - (x - j).abs()).clamp(min=0) @ (1 - (y - i).abs()).clamp(min=0)


def pieces(start: float, end: float, size: int) -> list[tuple[float, float]]:
    """Middles and lengths of the pieces that the whole numbers cut [start, end] into, as far as the map reaches."""
    low, high = max(start, -1.0), min(end, float(size))
    cuts = sorted({low, high, *(float(whole) for whole in range(-1, size + 1) if low < whole < high)})
    return [((a + b) / 2, b - a) for a, b in pairwise(cuts)] if low < high else []


def slow_prroi_pool(feature: Tensor, box: list[float], rows: int, columns: int) -> Tensor:
    """(C, rows, columns) for one map (C, H, W). In each cell between four pixels the features are linear in x and in y,
    so their integral is exactly the cell's part of the bin times the features in the middle of that part."""
    x1, y1, x2, y2 = box
    pooled = feature.new_zeros(len(feature), rows, columns)
    height, width = (y2 - y1) / rows, (x2 - x1) / columns
    if height <= 0 or width <= 0:
        return pooled
    for row in range(rows):
        for column in range(columns):
            for y, y_length in pieces(y1 + row * height, y1 + (row + 1) * height, feature.shape[1]):
                for x, x_length in pieces(x1 + column * width, x1 + (column + 1) * width, feature.shape[2]):
                    fraction = (y_length / height) * (x_length / width)
                    pooled[:, row, column] += fraction * interpolate(feature, y, x)
    return pooled


def random_boxes(number: int, batch: int, size: tuple[int, int], dtype: torch.dtype = torch.double) -> Tensor:
    """(K, 5): boxes of random images that lie within the map or reach outside it."""
    scale = torch.tensor([size[1], size[0]], dtype=dtype)
    centres, sides = torch.rand(number, 2, dtype=dtype) * scale, torch.rand(number, 2, dtype=dtype) * scale + 0.1
    images = torch.randint(0, batch, (number, 1)).to(dtype)
    return torch.cat((images, centres - sides / 2, centres + sides / 2), dim=1)


def value_and_gradients(function: Callable[..., Tensor], input: Tensor, boxes: Tensor) -> list[Tensor]:
    """The output and the gradients of features and boxes for a fixed gradient of the output."""
    leaves = [input.clone().requires_grad_(), boxes.clone().requires_grad_()]
    output = function(*leaves)
    cotangent = torch.linspace(-1, 1, output.numel(), dtype=output.dtype).view(output.shape)
    return [output.detach(), *torch.autograd.grad(output, leaves, cotangent)]


def test_equals_the_published_average_pooling() -> None:
    # The test of the authors' code: at scale 0.5 the boxes are 7 by 7 steps, so each bin is the unit square between
    # four pixels, whose mean is the mean of the four.
    features = torch.rand(4, 16, 24, 32)
    boxes = torch.tensor([[0.0, 0, 0, 14, 14], [1.0, 14, 14, 28, 28]])
    pooled = prroi_pool(features, boxes, 7, spatial_scale=0.5)
    means = avg_pool2d(features, kernel_size=2, stride=1)
    torch.testing.assert_close(pooled[0], means[0, :, :7, :7])
    torch.testing.assert_close(pooled[1], means[1, :, 7:14, 7:14])


def test_fades_to_zero_outside_the_map() -> None:
    # One pixel of 8: ∫max(0, 1 − |t|) is ½ on either side of it, so each quarter of the box of 2 by 2 holds
    # 8·½·½ = 2 on an area of 1. The box of 4 by 4 holds all 8 on an area of 16, for the area is not reduced.
    boxes = torch.tensor([[0.0, -1, -1, 1, 1], [0.0, -2, -2, 2, 2]])
    pooled = prroi_pool(torch.full((1, 1, 1, 1), 8.0), boxes, 2)
    torch.testing.assert_close(pooled[0], torch.full((1, 2, 2), 2.0))
    torch.testing.assert_close(pooled[1], torch.full((1, 2, 2), 0.5))  # 2 on an area of 4
    whole = prroi_pool(torch.full((1, 1, 1, 1), 8.0), boxes, 1)
    torch.testing.assert_close(whole.flatten(), torch.tensor([2.0, 0.5]))


def test_plane_and_its_gradient_by_hand() -> None:
    # The mean of x + 10·y is its value in the middle of the bin. Along x, bins j = 0, 1 of [1, 4] have their middle at
    # x1 + (x2 − x1)·(2j + 1)/4, which is 1.75 and 3.25; along y the one bin of [2, 3] has it at (y1 + y2)/2 = 2.5.
    y, x = torch.meshgrid(torch.arange(6.0), torch.arange(7.0), indexing="ij")
    boxes = torch.tensor([[0.0, 1, 2, 4, 3]], requires_grad=True)
    pooled = prroi_pool((x + 10 * y)[None, None], boxes, (1, 2))
    torch.testing.assert_close(pooled.flatten(), torch.tensor([26.75, 28.25]))
    # The second bin moves with x1 by 1/4, with x2 by 3/4 and with y1 and y2 by ½ of the slope 10 each.
    (gradient,) = torch.autograd.grad(pooled[0, 0, 0, 1], boxes)
    torch.testing.assert_close(gradient, torch.tensor([[0, 0.25, 5, 0.75, 5]]))


def test_gradient_of_an_edge_is_the_papers() -> None:
    # ∂/∂x1 = pooled/(x2 − x1) − ∫f(x1, y)dy/((x2 − x1)·(y2 − y1)); a box half outside, one bin.
    feature = torch.randn(3, 5, 6, dtype=torch.double)
    x1, y1, x2, y2 = 1.3, -0.8, 3.9, 2.4
    line = sum(length * interpolate(feature, y, x1) for y, length in pieces(y1, y2, 5))
    expected = (slow_prroi_pool(feature, [x1, y1, x2, y2], 1, 1)[:, 0, 0] - line / (y2 - y1)) / (x2 - x1)
    boxes = torch.tensor([[0, x1, y1, x2, y2]], dtype=torch.double, requires_grad=True)
    pooled = prroi_pool(feature[None], boxes, 1).flatten()
    gradient = torch.stack([torch.autograd.grad(value, boxes, retain_graph=True)[0][0, 1] for value in pooled])
    torch.testing.assert_close(gradient, expected)


coordinates = st.one_of(
    st.integers(-4000, 12000).map(lambda thousandths: thousandths / 1000),
    st.integers(-3, 10).map(float),
    st.sampled_from([-50.0, 1e3, 1e30, -1e30]),
)


@settings(max_examples=100, deadline=None)
@given(
    height=st.integers(1, 6),
    width=st.integers(1, 7),
    bins=st.tuples(st.integers(1, 4), st.integers(1, 4)),
    boxes=st.lists(st.lists(coordinates, min_size=4, max_size=4), min_size=1, max_size=4),
)
def test_equals_quadrature(height: int, width: int, bins: tuple[int, int], boxes: list[list[float]]) -> None:
    features = torch.randn(2, 2, height, width, dtype=torch.double)
    images = [number % 2 for number in range(len(boxes))]
    rows = torch.tensor([[image, *box] for image, box in zip(images, boxes, strict=True)], dtype=torch.double)
    pooled, *gradients = value_and_gradients(lambda f, b: prroi_pool(f, b, bins), features, rows)
    for actual, image, box in zip(pooled, images, boxes, strict=True):
        torch.testing.assert_close(actual, slow_prroi_pool(features[image], box, *bins), rtol=0, atol=1e-9)
    assert all(gradient.isfinite().all() for gradient in gradients)


def test_is_as_exact_in_single_precision_as_its_numbers() -> None:
    features, boxes = torch.randn(2, 3, 40, 60), random_boxes(30, 2, (40, 60), torch.float32)
    exact = prroi_pool(features.double(), boxes.double(), 7)
    torch.testing.assert_close(prroi_pool(features, boxes, 7).double(), exact, rtol=0, atol=2e-5)


@pytest.mark.parametrize("aligned", [False, True])
@pytest.mark.parametrize("whole", [False, True])
def test_gradients_in_double(whole: bool, aligned: bool) -> None:
    features = torch.randn(2, 2, 5, 6, dtype=torch.double, requires_grad=True)
    boxes = [random_boxes(2, 1, (5, 6))[:, 1:] for _ in range(2)]
    boxes[1] = torch.cat((boxes[1], torch.tensor([[-9.0, 1.2, 30.3, 4.7], [2.1, 1.3, 2.4, 1.6]])))  # long; small
    if whole:  # edges on pixels, where pieces of the interpolation meet
        boxes = [torch.cat((part[:, :2].round(), part[:, :2].round() + 2), dim=1) for part in boxes]
    leaves = [features, *(part.requires_grad_() for part in boxes)]
    assert torch.autograd.gradcheck(
        lambda f, *b: prroi_pool(f, b, (2, 3), 0.9 if not whole else 1.0, aligned=aligned), leaves
    )


@pytest.mark.parametrize("needed", [0, 1])
def test_gradient_of_one_input_alone(needed: int) -> None:
    arguments = [torch.randn(2, 3, 8, 9, dtype=torch.double), random_boxes(5, 2, (8, 9))]
    expected = value_and_gradients(lambda f, b: prroi_pool(f, b, 3), *arguments)[1 + needed]
    leaves = [tensor.requires_grad_(number == needed) for number, tensor in enumerate(arguments)]
    output = prroi_pool(leaves[0], leaves[1], 3)
    cotangent = torch.linspace(-1, 1, output.numel(), dtype=torch.double).view(output.shape)
    torch.testing.assert_close(torch.autograd.grad(output, leaves[needed], cotangent)[0], expected)


def test_second_gradient_is_refused() -> None:
    boxes = random_boxes(2, 1, (6, 6)).requires_grad_()
    pooled = prroi_pool(torch.randn(1, 2, 6, 6, dtype=torch.double), boxes, 2)
    (gradient,) = torch.autograd.grad(pooled.square().sum(), boxes, create_graph=True)
    with pytest.raises(RuntimeError, match="no autograd formula"):
        gradient.sum().backward()


def test_is_continuous_where_a_box_crosses_a_pixel() -> None:
    features = torch.randn(1, 2, 8, 9, dtype=torch.double)
    at = torch.tensor([[0, 2, 1, 7, 5]], dtype=torch.double)
    step = torch.tensor([[0, 1, 1, 1, 1]], dtype=torch.double) * 1e-9
    on, *others = (
        value_and_gradients(lambda f, b: prroi_pool(f, b, (4, 5)), features, boxes)
        for boxes in (at, at - step, at + step)
    )
    for other in others:
        for value, expected in zip(other, on, strict=True):
            torch.testing.assert_close(value, expected, rtol=0, atol=1e-7)


def test_moves_with_the_features() -> None:
    features, boxes = torch.zeros(1, 2, 20, 20, dtype=torch.double), random_boxes(9, 1, (8, 8))
    features[:, :, 4:9, 4:9] = torch.randn(1, 2, 5, 5, dtype=torch.double)
    moved = prroi_pool(features.roll((3, 2), dims=(2, 3)), boxes + torch.tensor([0, 2, 3, 2, 3]), 3)
    torch.testing.assert_close(moved, prroi_pool(features, boxes, 3), rtol=0, atol=1e-12)


def test_scale_and_alignment_by_hand() -> None:
    features, boxes = torch.randn(1, 2, 8, 9, dtype=torch.double), random_boxes(6, 1, (8, 9))
    scaled = torch.cat((boxes[:, :1], 4 * boxes[:, 1:]), dim=1)
    torch.testing.assert_close(prroi_pool(features, scaled, 3, 0.25), prroi_pool(features, boxes, 3))
    # Half a pixel is half a step of the map, whatever the scale.
    shifted = torch.cat((boxes[:, :1], boxes[:, 1:] - 0.5), dim=1)
    torch.testing.assert_close(prroi_pool(features, scaled, 3, 0.25, aligned=True), prroi_pool(features, shifted, 3))
    of_two_sides = prroi_pool(features, scaled, (2, 3), 0.25, aligned=True)
    torch.testing.assert_close(of_two_sides, prroi_pool(features, shifted, (2, 3)))


def test_list_and_tensor_of_boxes_are_equal() -> None:
    features, boxes = torch.randn(3, 2, 8, 9), random_boxes(6, 1, (8, 9), torch.float32)[:, 1:]
    images = torch.tensor([0.0, 0, 2, 2, 2, 2])[:, None]  # none of the image between
    together = prroi_pool(features, torch.cat((images, boxes), dim=1), 3)
    assert torch.equal(prroi_pool(features, [boxes[:2], boxes[:0], boxes[2:]], 3), together)
    assert torch.equal(prroi_pool(features, (boxes[:2], boxes[:0], boxes[2:]), 3), together)


def test_order_of_boxes_is_kept() -> None:
    features, boxes = torch.randn(3, 2, 8, 9), random_boxes(20, 3, (8, 9), torch.float32)
    order = torch.randperm(20)
    torch.testing.assert_close(prroi_pool(features, boxes[order], 3), prroi_pool(features, boxes, 3)[order])


def test_memory_format_changes_nothing() -> None:
    features, boxes = torch.randn(2, 3, 8, 9), random_boxes(5, 2, (8, 9), torch.float32)
    last = features.to(memory_format=torch.channels_last)
    assert torch.equal(prroi_pool(last, boxes, 3), prroi_pool(features, boxes, 3))


def test_chunks_leave_no_seam(monkeypatch: pytest.MonkeyPatch) -> None:
    arguments = torch.randn(2, 3, 8, 9, dtype=torch.double), random_boxes(11, 2, (8, 9))
    whole = value_and_gradients(lambda f, b: prroi_pool(f, b, 3), *arguments)
    monkeypatch.setattr(MODULE, "_BOXES_PER_CHUNK", 4)
    for chunked, expected in zip(value_and_gradients(lambda f, b: prroi_pool(f, b, 3), *arguments), whole, strict=True):
        torch.testing.assert_close(chunked, expected)


@pytest.mark.parametrize(
    "box",
    [
        [3, 1, 3, 5],  # no width
        [1, 4.3, 5, 4.3],  # no height
        [5, 1, 3, 4],  # inverted along x
        [1, 4, 5, 2],  # inverted along y
        [5, 4, 1, 2],  # inverted along both
        [0, 0, 0, 0],  # padding
        [-9, 1, -1, 5],  # left of the map, up to where the features have faded
        [1, 8, 5, 20],  # below it
        [1e30, 1e30, 2e30, 2e30],  # far away
    ],
)
def test_boxes_of_nothing_pool_zeros_and_get_no_gradient(box: list[float]) -> None:
    features = torch.randn(1, 2, 8, 9)
    pooled, *gradients = value_and_gradients(lambda f, b: prroi_pool(f, b, 3), features, torch.tensor([[0.0, *box]]))
    assert not pooled.any()
    assert not any(gradient.any() for gradient in gradients)


def test_tiny_box_pools_the_features_in_its_middle() -> None:
    features = torch.randn(2, 3, 8, 9)
    boxes = torch.tensor([[1.0, 4.25, 3.5, 4.2501, 3.5001]])
    expected = interpolate(features[1].double(), 3.50005, 4.25005)
    torch.testing.assert_close(prroi_pool(features, boxes, 1).double().flatten(), expected, rtol=0, atol=1e-2)
    torch.testing.assert_close(prroi_pool(features.double(), boxes.double(), 1).flatten(), expected, rtol=0, atol=1e-6)


def here(boxes: Tensor | list[Tensor]) -> Tensor | list[Tensor]:
    """Boxes that are on the CPU on the device of the test."""
    device = torch.get_default_device()
    return boxes.to(device) if isinstance(boxes, Tensor) else [part.to(device) for part in boxes]


@pytest.mark.parametrize("boxes", [torch.zeros(0, 5), [torch.zeros(0, 4), torch.zeros(0, 4)]])
def test_no_boxes(boxes: Tensor | list[Tensor]) -> None:
    features = torch.randn(2, 3, 8, 9, requires_grad=True)
    pooled = prroi_pool(features, here(boxes), (4, 5))
    assert pooled.shape == (0, 3, 4, 5)
    pooled.sum().backward()
    assert features.grad is not None
    assert not features.grad.any()


@pytest.mark.parametrize("shape", [(0, 3, 8, 9), (0, 3, 0, 0)])
def test_no_images(shape: tuple[int, ...]) -> None:
    assert prroi_pool(torch.zeros(shape), [], 2).shape == (0, shape[1], 2, 2)


def test_map_without_pixels() -> None:
    boxes = torch.tensor([[0.0, -1, -1, 2, 2]])
    assert torch.equal(prroi_pool(torch.zeros(1, 2, 0, 5), boxes, 3), torch.zeros(1, 2, 3, 3))


def test_features_that_are_not_a_number_stay_where_they_are() -> None:
    features = torch.randn(1, 2, 9, 9)
    boxes = torch.tensor([[0.0, 0.5, 0.5, 3, 3], [0.0, 2, 2, 6, 6]])
    expected = prroi_pool(features, boxes, 2)
    features[:, :, 5, 5] = math.nan
    pooled = prroi_pool(features, boxes, 2)
    assert pooled[1, :, 1, 1].isnan().all()
    pooled[1, :, 1, 1] = expected[1, :, 1, 1] = 0
    assert torch.equal(pooled, expected)


@pytest.mark.parametrize(("dtype", "unit"), [(torch.bfloat16, 2**-8), (torch.float16, 2**-11)])
def test_half_precision_errs_by_a_few_roundings(dtype: torch.dtype, unit: float) -> None:
    # A rounding errs by `unit` at most, of its number. For a sum of products let A be the same sum of their absolute
    # values: weights are not below 0. The mean errs by 2 units of its A, as its weights (which Triton does not round)
    # and itself are rounded, and the features' gradient by 3, as the sum is rounded, too. Of the gradient of a weight
    # along an axis, sums of entries that are rounded once, the error is 1. Edges get weight minus hat over the length
    # of the bin, both at most 1, of these. Float32 sums are in the last tenth.
    features, boxes = torch.randn(2, 3, 8, 9).to(dtype), random_boxes(5, 2, (8, 9), torch.float32)
    assert prroi_pool(features, boxes, 3).dtype == dtype
    assert prroi_pool(features.float(), boxes.to(dtype), 3).dtype == torch.float32
    cotangent = torch.linspace(-1, 1, 5 * 3 * 9).view(5, 3, 3, 3).to(dtype)

    def run(input: Tensor, cotangent: Tensor) -> list[Tensor]:
        leaves = [input.clone().requires_grad_(), boxes.clone().requires_grad_()]
        output = prroi_pool(leaves[0], leaves[1], 3)
        return [output.detach(), *torch.autograd.grad(output, leaves, cotangent.to(output.dtype))]

    actual, exact = run(features, cotangent), run(features.double(), cotangent)
    absolute = run(features.double().abs(), cotangent.abs())
    assert [tensor.dtype for tensor in actual] == [dtype, dtype, torch.float32]
    for ours, right, bound, roundings in zip(actual[:2], exact, absolute, (2.1, 3.1), strict=False):
        assert ((ours.double() - right).abs() <= roundings * unit * bound + 1e-6).all()
    # An edge gets (weight − hat) / length, at most 1 / length, of the gradients of the weights of its two bins along
    # its axis, which are sums over pixels of gradient times feature, rounded once; a side moves four edges or fewer.
    lengths = (boxes[:, 3:] - boxes[:, 1:3]).amin(dim=1) / 3
    pixels = ((boxes[:, 3:] - boxes[:, 1:3]).amax(dim=1) / 3 + 2) ** 2  # of a bin, at most
    largest = 9 * 3 * pixels * features.abs().amax().double()  # over bins and channels, all gradients being 1 or less
    assert ((actual[2] - exact[2]).abs().amax(dim=1) <= 4 * 1.1 * unit * largest / lengths).all()


def test_autocast_changes_no_digit() -> None:
    arguments = torch.randn(2, 3, 8, 9), random_boxes(5, 2, (8, 9), torch.float32)
    expected = value_and_gradients(lambda f, b: prroi_pool(f, b, 3), *arguments)
    device = arguments[0].device.type
    with torch.autocast(device, torch.bfloat16):
        actual = value_and_gradients(lambda f, b: prroi_pool(f, b, 3), *arguments)
    rounding = 0 if device == "cpu" else 1e-5  # a GPU adds up gradients in an order that changes
    torch.testing.assert_close(actual, expected, rtol=rounding, atol=rounding)


def test_no_allocation_grows_with_boxes_times_the_map() -> None:
    features, boxes = torch.randn(1, 64, 40, 40), random_boxes(96, 1, (40, 40), torch.float32)
    with profile(profile_memory=True) as profiled:
        value_and_gradients(lambda f, b: prroi_pool(f, b, 3), features, boxes)
    empty = [event for event in profiled.events() if event.name.startswith("aten::empty")]
    largest = max(event.cpu_memory_usage + event.device_memory_usage for event in empty)
    assert largest >= 4 * features.numel()  # the profiler saw the features' gradient
    assert largest < 4 * len(boxes) * features.numel() / 20


def test_compiles_whole() -> None:
    arguments = torch.randn(2, 3, 8, 9), random_boxes(5, 2, (8, 9), torch.float32)
    compiled = torch.compile(lambda f, b: prroi_pool(f, b, (2, 3)), fullgraph=True, backend="eager")
    expected = value_and_gradients(lambda f, b: prroi_pool(f, b, (2, 3)), *arguments)
    for actual, value in zip(value_and_gradients(compiled, *arguments), expected, strict=True):
        torch.testing.assert_close(actual, value)


def test_operators_keep_pytorchs_rules() -> None:
    features, images = torch.randn(2, 3, 8, 9), torch.tensor([1.0, 0, 1])
    y_edges, x_edges = torch.tensor([[1.2, 3.4, 5.6]] * 3), torch.tensor([[-1.0, 2, 5, 8]] * 3)
    leaves = [tensor.clone().requires_grad_() for tensor in (features, y_edges, x_edges)]
    torch.library.opcheck(MODULE._pool_bins, (*leaves, images))
    backward = torch.randn(3, 2, 3, 3), features, y_edges, x_edges, images
    torch.library.opcheck(MODULE._features_gradient, backward)
    torch.library.opcheck(MODULE._edges_gradient, backward)


@pytest.mark.parametrize("strict", [False, True])
def test_exports_as_plain_operators(strict: bool) -> None:
    arguments = torch.randn(2, 3, 8, 9), random_boxes(5, 2, (8, 9), torch.float32)
    dynamic = ({0: torch.export.Dim("images")}, {0: torch.export.Dim("boxes")})
    program = torch.export.export(Pool(), arguments, strict=strict, dynamic_shapes=dynamic)
    # Every exporter knows PyTorch's own operators, and none knows ours.
    called = [str(node.target) for node in program.run_decompositions().graph.nodes if node.op == "call_function"]
    assert called
    assert not [name for name in called if "tightbox" in name]
    other = torch.randn(4, 3, 8, 9), random_boxes(11, 4, (8, 9), torch.float32)
    for images, boxes in (arguments, other):
        expected = prroi_pool(images, boxes, (2, 3), 0.7)
        torch.testing.assert_close(program.module()(images, boxes), expected, rtol=0, atol=1e-5)
    wrong = torch.tensor([[0, math.nan, 1, 4, 4], [4, 1, 1, 4, 4], [-1, 1, 1, 4, 4]])
    assert not program.module()(other[0], wrong).any()


def test_onnx_runtime_pools_the_same(tmp_path: Path) -> None:
    arguments = torch.randn(2, 3, 8, 9), random_boxes(5, 2, (8, 9), torch.float32)
    dynamic = ({0: torch.export.Dim("images")}, {0: torch.export.Dim("boxes")})
    path = tmp_path / "prroi_pool.onnx"
    torch.onnx.export(Pool().eval(), arguments, path, dynamo=True, dynamic_shapes=dynamic, verbose=False)
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    names = [argument.name for argument in session.get_inputs()]
    for images, count in ((2, 5), (4, 11), (1, 0)):  # neither number is fixed in the file
        features, boxes = torch.randn(images, 3, 8, 9), random_boxes(count, images, (8, 9), torch.float32)
        (pooled,) = session.run(None, dict(zip(names, (features.cpu().numpy(), boxes.cpu().numpy()), strict=True)))
        expected = prroi_pool(features, boxes, (2, 3), 0.7)
        torch.testing.assert_close(torch.from_numpy(pooled), expected.cpu().contiguous(), rtol=0, atol=1e-5)


BOX = [0.0, 1, 1, 3, 3]


@pytest.mark.parametrize(
    ("boxes", "complaint"),
    [
        (torch.tensor([BOX, [2.0, 1, 1, 3, 3]]), "box 1 is of image 2, which is not in the batch of 2"),
        (torch.tensor([BOX, [-1.0, 1, 1, 3, 3]]), "box 1 is of image -1, which"),
        (torch.tensor([[0.5, 1, 1, 3, 3]]), "box 0 is of image 0.5, which"),
        (torch.tensor([[math.nan, 1, 1, 3, 3]]), "box 0 is of image nan, which"),
        (torch.tensor([BOX, [0.0, 1, math.nan, 3, 3]]), "box 1 is not finite"),
        (torch.tensor([[0.0, -math.inf, 1, math.inf, 3]]), "box 0 is not finite"),
        (torch.tensor([[0.0, 1, 1, 3]]), r"boxes are torch.float32 of shape \(1, 4\)"),
        (torch.tensor(BOX), r"of shape \(5,\)"),
        (torch.tensor([BOX]).long(), "boxes are torch.int64"),
        ([torch.tensor([BOX])] * 2, r"of shape \(1, 5\)"),
        ([torch.zeros(1, 4)], "boxes for 1 images but input is a batch of 2"),
        ([], "boxes for 0 images"),
        (torch.zeros(1, 5, device="meta"), "boxes are on meta but input is on"),
    ],
)
def test_boxes_that_are_wrong(boxes: Tensor | list[Tensor], complaint: str) -> None:
    features = torch.randn(2, 3, 8, 9)
    if isinstance(boxes, list) or not boxes.is_meta:
        boxes = here(boxes)
    if features.is_cuda and ("is of image" in complaint or "is not finite" in complaint):
        assert prroi_pool(features, boxes, 2)[-1].isnan().all()  # to say so, a GPU would have to be waited for
        return
    with pytest.raises(UserError, match=complaint):
        prroi_pool(features, boxes, 2)


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        ((torch.randn(3, 8, 9), torch.tensor([BOX]), 2), r"input is torch.float32 of shape \(3, 8, 9\)"),
        ((torch.randn(1, 0, 8, 9), torch.tensor([BOX]), 2), "one channel or more"),
        ((torch.ones(1, 3, 8, 9).long(), torch.tensor([BOX]), 2), "input is torch.int64"),
        ((torch.randn(1, 3, 8, 9), torch.tensor([BOX]), 0), "output_size is 0"),
        ((torch.randn(1, 3, 8, 9), torch.tensor([BOX]), (2, -1)), r"output_size is \(2, -1\)"),
        ((torch.randn(1, 3, 8, 9), torch.tensor([BOX]), 2, 0.0), "spatial_scale is 0.0"),
        ((torch.randn(1, 3, 8, 9), torch.tensor([BOX]), 2, math.nan), "spatial_scale is nan"),
    ],
)
def test_other_arguments_that_are_wrong(arguments: tuple[Any, ...], complaint: str) -> None:
    with pytest.raises(UserError, match=complaint):
        prroi_pool(*arguments)
