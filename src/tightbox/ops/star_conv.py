"""VarifocalNet's star-shaped deformable convolution: nine taps at a box's corners, edge middles and centre."""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import Any, cast

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn.grad import conv2d_weight
from torchvision.ops import deform_conv2d

from tightbox.boxes import at_least_float32
from tightbox.errors import UserError
from tightbox.ops.csr import CSRPattern, uses_triton

# Along each axis a star needs five pixels: two around its first edge, its own, two around its last edge. The 5×5
# pixels are all that bilinear interpolation of the nine taps needs: 4 for a corner, 2 for an edge, 1 for the centre.
# Pixels and taps are numbered row by row.
_TAP_OF_PIXEL = [3 * row + column for row in (0, 0, 1, 2, 2) for column in (0, 0, 1, 2, 2)]
_PIXELS_BY_TAP = sorted(range(25), key=_TAP_OF_PIXEL.__getitem__)

# Locations are processed in chunks whose samples (9·C numbers each) stay small enough for malloc to hand the same
# memory out again, and whose entries (25 each) are enough (32768) for torch.sort to take its fast parallel path. A GPU
# is busy with larger ones only, and 16384 locations of 256 channels are 75 MB in bfloat16.
_LOCATIONS_PER_CHUNK, _LOCATIONS_PER_CHUNK_ON_GPU = 1536, 16384


@dataclass(frozen=True, eq=False)
class StarSampling:
    """Where the stars of one feature map sample; made once for each forward pass and shared by its star convolutions.

    Attributes:
        distances: (B, 4, H, W), the l, t, r, b of each location's box in pixels of the image.
        stride: pixels of the image between two locations.
    """

    distances: Tensor
    stride: float

    @property
    def offsets(self) -> Tensor:
        """`star_offsets`, in float32 at least."""
        return star_offsets(at_least_float32(self.distances), self.stride)

    @cached_property
    def matrix(self) -> tuple[list[CSRPattern], Tensor]:
        """The sparse matrix whose rows are the taps of all locations and whose columns are the pixels.

        Cut into chunks of n locations: a pattern (9·n, B·H·W) for each. The weights are (B·H·W, 25), the entries of
        each location sorted by tap.
        """
        distances = at_least_float32(self.distances)
        batch, _, height, width = distances.shape
        left, top, right, bottom = distances.transpose(0, 1) / self.stride
        rows, columns, images = (torch.arange(size, device=top.device) for size in (height, width, batch))
        y, y_weights = _five_pixels(rows.to(top).view(-1, 1), top, bottom)
        x, x_weights = _five_pixels(columns.to(left), left, right)

        image = images.int().repeat_interleave(height * width)
        row_starts = (image * height + y) * width
        # Pixels first and locations last up to here: these small products are fast along the long axis only.
        indices, weights = _by_tap(row_starts[:, None] + x), _by_tap(y_weights[:, None] * x_weights)
        along = 1 + (torch.arange(3, device=top.device) != 1).int()  # 2, 1, 2 pixels, which no GPU has to wait for
        counts = (along[:, None] * along).flatten()
        chunks = torch.split(indices, _locations_per_chunk(indices))
        return [CSRPattern.of_counts(counts.repeat(len(chunk)), chunk.flatten()) for chunk in chunks], weights


def star_offsets(distances: Tensor, stride: float) -> Tensor:
    """Offsets of the nine taps from the regular 3×3 grid, for a deformable convolution with padding 1.

    Args:
        distances: (B, 4, H, W), l, t, r, b in pixels of the image.
        stride: pixels of the image between two locations.

    Returns:
        (B, 18, H, W) in steps of the feature map: taps row by row, y before x for each.
    """
    left, top, right, bottom = (distances / stride).unbind(1)
    zero = torch.zeros_like(left)
    y = torch.stack((1 - top, zero, bottom - 1), dim=1)  # (B, 3, H, W): one for each row of taps
    x = torch.stack((1 - left, zero, right - 1), dim=1)  # (B, 3, H, W): one for each column of taps
    return torch.stack((y.repeat_interleave(3, dim=1), x.repeat(1, 3, 1, 1)), dim=2).flatten(1, 2)


def star_conv2d(input: Tensor, star: StarSampling, weight: Tensor) -> Tensor:
    """3×3 convolution whose taps lie on the box of each location (VarifocalNet, section 3.2).

    Equals `torchvision.ops.deform_conv2d(input, star.offsets, weight, padding=1)`, many times faster on a CPU, where
    it is one sparse matrix product, for the samples, and one dense one, and on a GPU with Triton. It computes in the
    dtype of autocast, or else of `input`, as a convolution does: of bfloat16 numbers, samples are rounded to bfloat16
    and both products are accumulated in float32.

    Args:
        input: (B, C, H, W); fastest in channels_last memory format.
        star: the sampling of a (B, 4, H, W) map of distances.
        weight: (O, C, 3, 3).

    Returns:
        (B, O, H, W) of the dtype it computed in, in channels_last memory format. Samples outside the map are 0 and
        those of a distance that is not a number are NaN.

    Raises:
        UserError: if the shapes do not fit together.
    """
    batch, channels, height, width = input.shape
    given, wanted = tuple(star.distances.shape), (batch, 4, height, width)
    if given != wanted:
        misfit = f"distances of shape {given} do not fit an input of shape {tuple(input.shape)}"
        raise UserError(f"{misfit}; they must be {wanted}")
    if weight.shape[1:] != (channels, 3, 3):
        misfit = f"a weight of shape {tuple(weight.shape)} does not fit {channels} channels"
        raise UserError(f"{misfit}; it must be (O, {channels}, 3, 3)")
    device, dtype = input.device.type, input.dtype
    if dtype != torch.float64 and torch.is_autocast_enabled(device):
        dtype = torch.get_autocast_dtype(device)
    if torch.compiler.is_compiling() or not (device == "cpu" or uses_triton(input)):
        # No exporter can trace the sparse matrix, and torchvision knows no bfloat16.
        features = at_least_float32(input)
        output = deform_conv2d(features, star.offsets.to(features.dtype), weight.to(features.dtype), padding=1)
        return cast(Tensor, output).to(dtype)
    patterns, entry_weights = star.matrix
    pixels = input.to(dtype).permute(0, 2, 3, 1).reshape(-1, channels)
    taps = weight.to(dtype).permute(0, 2, 3, 1).reshape(-1, 9 * channels)
    output = _StarConv.apply(pixels, taps, patterns, entry_weights.to(at_least_float32(pixels[:0]).dtype))
    return cast(Tensor, output).view(batch, height, width, len(weight)).permute(0, 3, 1, 2)


def _by_tap(pixels: Tensor) -> Tensor:
    """(N, 25), sorted by tap, of (5, 5, N)."""
    # Unbound and not indexed, for the gradient of every index is a map of zeros to fill, to copy into and to add.
    pixel = pixels.flatten(0, 1).unbind()
    return torch.stack([pixel[i] for i in _PIXELS_BY_TAP], dim=1)


def _locations_per_chunk(locations: Tensor) -> int:
    return _LOCATIONS_PER_CHUNK if locations.device.type == "cpu" else _LOCATIONS_PER_CHUNK_ON_GPU


def _five_pixels(own: Tensor, before: Tensor, after: Tensor) -> tuple[Tensor, Tensor]:
    """The pixels along one axis that interpolate at `own - before`, `own` and `own + after`.

    Args:
        own: the coordinate of each location, 0 to its maximum; broadcasts with the next two.
        before: (B, H, W), distance to the first edge in steps of the map.
        after: (B, H, W), distance to the last edge.

    Returns:
        (5, B·H·W) int32 coordinates, clamped to the map, and (5, B·H·W) weights, 0 for pixels outside the map.
    """
    size = own.numel()
    # Beyond one step outside no pixel has weight; the clamp only keeps huge distances within what an integer holds.
    edges = torch.stack((own - before, own + after)).clamp(-2, size)
    low = edges.detach().floor()
    first, last = (edges - low).unbind()
    pixels = torch.stack((low[0], low[0] + 1, own.expand_as(before), low[1], low[1] + 1))
    weights = torch.stack((1 - first, first, torch.ones_like(before), 1 - last, last))
    # A product and not a choice, so that NaN stays NaN.
    weights = weights * ((pixels >= 0) & (pixels < size))
    return pixels.nan_to_num().clamp(0, size - 1).int().flatten(1), weights.flatten(1)


def _as_images(rows: Tensor) -> Tensor:
    """Rows (N, C) as channels-last images of one line, for 1×1 convolutions that stand for matrix products.

    Convolutions run on oneDNN, twice as fast as PyTorch's matrix product (MKL) on processors not made by Intel; with
    one thread, PyTorch hands a 1×1 convolution to oneDNN only from 16 images on.
    """
    images = 16 if len(rows) % 16 == 0 else 1
    return rows.view(images, 1, -1, rows.shape[1]).permute(0, 3, 1, 2)


def _multiply(rows: Tensor, matrix: Tensor) -> Tensor:
    """(N, O): `rows` (N, I) times `matrix` (O, I) transposed."""
    with torch.autocast(rows.device.type, enabled=False):
        if rows.is_cuda:
            return rows @ matrix.T
        return torch.conv2d(_as_images(rows), matrix[:, :, None, None]).permute(0, 2, 3, 1).reshape(-1, len(matrix))


class _StarConv(torch.autograd.Function):
    """A sparse matrix product for the samples and a dense one with the taps' weights, in chunks of locations.

    The samples are computed again for the gradients: keeping them would cost nine feature maps for each convolution,
    and new memory is dearer than the sampling.
    """

    @staticmethod
    def forward(ctx: Any, pixels: Tensor, taps: Tensor, patterns: list[CSRPattern], weights: Tensor) -> Tensor:
        ctx.save_for_backward(pixels, taps, weights)
        ctx.patterns = patterns
        output = pixels.new_empty(len(weights), len(taps))
        for locations, pattern, chunk_weights in _chunks(patterns, weights):
            output[locations] = _multiply(_samples(pixels, pattern, chunk_weights), taps)
        return output

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, Tensor, None, Tensor]:
        pixels, taps, weights = ctx.saved_tensors
        pixels_needed, taps_needed, _, weights_needed = ctx.needs_input_grad
        gradient = gradient.contiguous()
        to_weights = torch.empty_like(weights)
        to_pixels, to_taps = (weights.new_zeros(tensor.shape) for tensor in (pixels, taps))  # contiguous
        tap_rows = taps.T.contiguous()
        for locations, pattern, chunk_weights in _chunks(ctx.patterns, weights):
            if pixels_needed or weights_needed:
                to_samples = _multiply(gradient[locations], tap_rows).reshape(-1, pixels.shape[1])
                if pixels_needed:
                    pattern.add_transposed_matmul(to_pixels, chunk_weights, to_samples)
                if weights_needed:
                    to_weights[locations] = pattern.sampled_matmul(to_samples, pixels).view(-1, 25)
                del to_samples  # before the samples, so that they take its place in memory
            if taps_needed:
                samples = _samples(pixels, pattern, chunk_weights)
                to_taps += _product_over_locations(gradient[locations], samples)
                del samples
        return to_pixels.to(pixels.dtype), to_taps.to(taps.dtype), None, to_weights  # PyTorch drops what is not needed


def _chunks(patterns: list[CSRPattern], weights: Tensor) -> Iterator[tuple[slice, CSRPattern, Tensor]]:
    """The locations, the pattern and the flat weights of each chunk that has any location."""
    start = 0
    for pattern, chunk_weights in zip(patterns, torch.split(weights, _locations_per_chunk(weights)), strict=True):
        if len(chunk_weights):  # torch.split makes one chunk of a tensor without any row
            yield slice(start, start + len(chunk_weights)), pattern, chunk_weights.flatten()
        start += len(chunk_weights)


def _samples(pixels: Tensor, pattern: CSRPattern, weights: Tensor) -> Tensor:
    """(n, 9·C): the nine samples of each of n locations side by side."""
    return pattern.matmul(weights, pixels).view(-1, 9 * pixels.shape[1])


def _product_over_locations(gradient: Tensor, samples: Tensor) -> Tensor:
    """(O, I): `gradient` (N, O) transposed times `samples` (N, I)."""
    if samples.is_cuda:
        return gradient.T @ samples
    shape = (gradient.shape[1], samples.shape[1], 1, 1)
    return cast(Tensor, conv2d_weight(_as_images(samples), shape, _as_images(gradient))[:, :, 0, 0])
