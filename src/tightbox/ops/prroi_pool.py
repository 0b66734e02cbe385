"""Precise RoI pooling (IoU-Net, ECCV 2018): the exact mean of the interpolated features over each bin of a box.

The integral of bilinear interpolation is separable: the weight of a pixel in a bin is the weight of its row times the
weight of its column, and the gradient reaches the box through these.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn.functional import pad

from tightbox.boxes import at_least_float32
from tightbox.errors import UserError
from tightbox.ops.row_bag import Bags, add_rows_gradient, bag_sum, weights_gradient

# Boxes are processed in chunks, whose lists of reads then stay small beside the features and the output. A GPU has the
# memory for larger ones, and each block costs it a wait.
_BLOCK, _BLOCK_ON_GPU = 64, 2048


def prroi_pool(
    input: Tensor,
    boxes: Tensor | Sequence[Tensor],
    output_size: int | tuple[int, int],
    spatial_scale: float = 1.0,
    *,
    aligned: bool = False,
) -> Tensor:
    """Mean of the features over the bins of each box, exact and differentiable once in `input` and `boxes`.

    The features are interpolated linearly between pixels, whose centres lie at whole coordinates, and fade to zero
    within one pixel outside the map; what lies outside counts in the mean as zero. An empty or inverted box pools
    zeros and gets no gradient. Computes in float32 at least.

    Args:
        input: (N, C, H, W); fastest in channels_last memory format.
        boxes: (K, 5), the image's index in the batch and x1, y1, x2, y2; or for each image its (L, 4) boxes.
        output_size: rows and columns of bins, or one number for both.
        spatial_scale: pixels of the map for one unit of the boxes.
        aligned: the centre of the first pixel lies at (0.5, 0.5) and not at (0, 0).

    Returns:
        (K, C, rows, columns) of the dtype of `input`, in channels_last memory format.

    Raises:
        UserError: if arguments do not fit together, a box is not finite or its image is not in the batch. An exported
            model, which cannot raise, pools zeros for such a box.
    """
    rows, columns = (output_size, output_size) if isinstance(output_size, int) else output_size
    if rows < 1 or columns < 1:
        raise UserError(f"output_size is {output_size}; it must be 1 or more along both axes")
    if not 0 < spatial_scale < math.inf:
        raise UserError(f"spatial_scale is {spatial_scale}; it must be a positive number")
    boxes = _as_one_tensor(input, boxes)
    features = at_least_float32(input)
    images = boxes[:, 0].detach()
    x1, y1, x2, y2 = (boxes[:, 1:] * spatial_scale - (0.5 if aligned else 0.0)).unbind(1)
    pool = _pool_whole_maps if torch.compiler.is_exporting() else _pool_bins
    pooled = cast(Tensor, pool(features, _edges(y1, y2, rows), _edges(x1, x2, columns), images))
    return pooled.permute(0, 3, 1, 2).to(input.dtype)


class PrRoIPool(nn.Module):
    """`prroi_pool` with fixed settings."""

    def __init__(
        self, output_size: int | tuple[int, int], spatial_scale: float = 1.0, *, aligned: bool = False
    ) -> None:
        super().__init__()
        self.output_size = output_size
        self.spatial_scale = spatial_scale
        self.aligned = aligned

    def forward(self, input: Tensor, boxes: Tensor | Sequence[Tensor]) -> Tensor:
        """(K, C, rows, columns): the features (N, C, H, W) pooled over `boxes`, (K, 5) or a list of (L, 4)."""
        return prroi_pool(input, boxes, self.output_size, self.spatial_scale, aligned=self.aligned)

    def extra_repr(self) -> str:
        """The settings."""
        return f"output_size={self.output_size}, spatial_scale={self.spatial_scale}, aligned={self.aligned}"


def _as_one_tensor(input: Tensor, boxes: Tensor | Sequence[Tensor]) -> Tensor:
    """(K, 5) boxes in float32 at least, the image's index first; `input` and `boxes` are checked on the way."""
    if input.dim() != 4 or not input.shape[1] or not input.is_floating_point():
        raise UserError(
            f"input is {_kind(input)}; it must be feature maps (N, C, H, W) of one channel or more and of a "
            "floating-point dtype"
        )
    parts = [boxes] if isinstance(boxes, Tensor) else list(boxes)
    numbers = 5 if isinstance(boxes, Tensor) else 4
    for part in parts:
        if part.dim() != 2 or part.shape[1] != numbers or not part.is_floating_point():
            raise UserError(
                f"boxes are {_kind(part)}; they must be (K, 5), image index first, or a list of (L, 4) for each image, "
                "of a floating-point dtype"
            )
        if part.device != input.device:
            raise UserError(f"boxes are on {part.device} but input is on {input.device}; move one to the other")
    if isinstance(boxes, Tensor):
        return at_least_float32(boxes)
    if len(parts) != len(input):
        raise UserError(f"there are boxes for {len(parts)} images but input is a batch of {len(input)}")
    indexed = [pad(at_least_float32(part), (1, 0), value=image) for image, part in enumerate(parts)]
    return torch.cat(indexed) if indexed else input.new_zeros(0, 5, dtype=torch.float32)


def _kind(tensor: Tensor) -> str:
    return f"{tensor.dtype} of shape {tuple(tensor.shape)}"


def _edges(start: Tensor, end: Tensor, bins: int) -> Tensor:
    """(K, bins + 1): where the bins of boxes from `start` (K,) to `end` (K,) meet, in pixels of the map."""
    fractions = torch.arange(bins + 1, dtype=start.dtype, device=start.device) / bins
    return start[:, None] + (end - start)[:, None] * fractions


def _weights(edges: Tensor, size: int) -> Tensor:
    """(K, bins, size): weight of each pixel along one axis in the mean over each bin; zero for a bin of no length."""
    # A pixel's fraction of [a, b] is G(b) − G(a), with G the antiderivative of the hat function max(0, 1 − |t|).
    beyond = (edges[:, :, None] - torch.arange(size, device=edges.device)).clamp(-1, 1)
    return _per_length((beyond * (1 - beyond.abs() / 2)).diff(dim=1), edges)


def _per_length(values: Tensor, edges: Tensor) -> Tensor:
    """`values` (K, bins, size) by the length of each bin; 0 where that is 0, less, or not a number."""
    lengths = edges.diff(dim=1)[:, :, None]
    return torch.where(lengths > 0, values / lengths, 0)


def _edges_gradient(edges: Tensor, weights: Tensor, to_weights: Tensor) -> Tensor:
    """The gradient (K, bins + 1) of the edges for that of the `weights` (K, bins, size).

    A bin whose end moves on takes in the features there, and what it had counts less in the mean.
    """
    hats = (1 - (edges[:, :, None] - torch.arange(weights.shape[2], device=edges.device)).abs()).clamp(min=0)
    to_weights = _per_length(to_weights, edges)
    to_starts = ((weights - hats[:, :-1]) * to_weights).sum(2)
    to_ends = ((hats[:, 1:] - weights) * to_weights).sum(2)
    return pad(to_starts, (0, 1)) + pad(to_ends, (1, 0))


def _pool_whole_maps(features: Tensor, row_edges: Tensor, column_edges: Tensor, images: Tensor) -> Tensor:
    """`_pool_bins` as dense matrix products, whose shapes do not depend on the boxes; for exporters."""
    batch, channels, height, width = features.shape
    own = images[:, None] == torch.arange(batch, device=images.device)
    rows, columns = (
        _weights(edges, size).to(features.dtype) for edges, size in ((row_edges, height), (column_edges, width))
    )
    rows = (rows[:, :, None] * own[:, None, :, None]).flatten(2)  # (K, row of bins, N·H)
    table = features.permute(0, 2, 3, 1).reshape(batch * height, width * channels)
    # One row of bins at a time, to hold one line of the map for each box and no more.
    lines = [columns @ (row @ table).view(-1, width, channels) for row in rows.unbind(1)]
    return torch.stack(lines, dim=1)


# Custom operators rather than an autograd function, so that torch.compile takes them as they are.
@torch.library.custom_op("tightbox::prroi_pool", mutates_args=())
def _pool_bins(features: Tensor, row_edges: Tensor, column_edges: Tensor, images: Tensor) -> Tensor:
    """The mean over each bin as a weighted bag of the pixels it reads.

    Args:
        features: (N, C, H, W).
        row_edges: (K, rows + 1), where the rows of bins of each box meet, in pixels of the map.
        column_edges: (K, columns + 1), where its columns meet.
        images: (K,), the index of each box's image.

    Returns:
        (K, rows, columns, C).
    """
    _check_values(row_edges, column_edges, images, len(features))
    table = _pixels(features)
    pooled = _pooled(features, row_edges, column_edges)
    for block, reads in _blocks(features, row_edges, column_edges, images):
        pooled[block] = bag_sum(table, reads.bags, reads.weights).view_as(pooled[block])
    return pooled


@torch.library.custom_op("tightbox::prroi_pool_to_features", mutates_args=())
def _to_features(gradient: Tensor, features: Tensor, row_edges: Tensor, column_edges: Tensor, images: Tensor) -> Tensor:
    """The gradient of the features for the `gradient` of what `_pool_bins` returns."""
    to_features = _channels_last(features).zero_()
    for block, reads in _blocks(features, row_edges, column_edges, images):
        add_rows_gradient(_pixels(to_features), gradient[block].flatten(0, 2), reads.bags, reads.weights)
    return to_features


@torch.library.custom_op("tightbox::prroi_pool_to_edges", mutates_args=())
def _to_edges(
    gradient: Tensor, features: Tensor, row_edges: Tensor, column_edges: Tensor, images: Tensor
) -> tuple[Tensor, Tensor]:
    """The gradients of the edges."""
    table = _pixels(features)
    to_row_edges, to_column_edges = torch.empty_like(row_edges), torch.empty_like(column_edges)
    for block, reads in _blocks(features, row_edges, column_edges, images):
        to_weights = weights_gradient(gradient[block].flatten(0, 2), table, reads.bags)
        to_rows, to_columns = torch.zeros_like(reads.row_weights), torch.zeros_like(reads.column_weights)
        to_rows.view(-1).index_add_(0, reads.rows, to_weights * reads.of_columns)
        to_columns.view(-1).index_add_(0, reads.columns, to_weights * reads.of_rows)
        to_row_edges[block] = _edges_gradient(row_edges[block], reads.row_weights, to_rows)
        to_column_edges[block] = _edges_gradient(column_edges[block], reads.column_weights, to_columns)
    return to_row_edges, to_column_edges


def _pooled(features: Tensor, row_edges: Tensor, column_edges: Tensor) -> Tensor:
    """Room for what `_pool_bins` returns."""
    return features.new_empty(len(row_edges), row_edges.shape[1] - 1, column_edges.shape[1] - 1, features.shape[1])


def _channels_last(features: Tensor) -> Tensor:
    """Room for as many features, in channels_last memory format whatever their shape."""
    return torch.empty_like(features.permute(0, 2, 3, 1), memory_format=torch.contiguous_format).permute(0, 3, 1, 2)


def _pixels(features: Tensor) -> Tensor:
    """(N·H·W, C): features (N, C, H, W) with a row for each pixel, a view if they are channels_last."""
    return features.permute(0, 2, 3, 1).contiguous().flatten(0, 2)


@_pool_bins.register_fake
def _(features: Tensor, row_edges: Tensor, column_edges: Tensor, images: Tensor) -> Tensor:
    return _pooled(features, row_edges, column_edges)


@_to_features.register_fake
def _(gradient: Tensor, features: Tensor, row_edges: Tensor, column_edges: Tensor, images: Tensor) -> Tensor:
    return _channels_last(features)


@_to_edges.register_fake
def _(
    gradient: Tensor, features: Tensor, row_edges: Tensor, column_edges: Tensor, images: Tensor
) -> tuple[Tensor, Tensor]:
    return torch.empty_like(row_edges), torch.empty_like(column_edges)


def _save(ctx: Any, inputs: tuple[Tensor, ...], output: Tensor) -> None:
    ctx.save_for_backward(*inputs)


def _gradients(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, Tensor | None, Tensor | None, None]:
    to_features = to_row_edges = to_column_edges = None
    if ctx.needs_input_grad[0]:
        to_features = _to_features(gradient, *ctx.saved_tensors)
    if ctx.needs_input_grad[1] or ctx.needs_input_grad[2]:
        to_row_edges, to_column_edges = _to_edges(gradient, *ctx.saved_tensors)
    return to_features, to_row_edges, to_column_edges, None


_pool_bins.register_autograd(_gradients, setup_context=_save)


def _check_values(row_edges: Tensor, column_edges: Tensor, images: Tensor, batch: int) -> None:
    """Raises UserError for a box that is not finite or of no image; waits for the device, as listing reads does too."""
    finite = row_edges.isfinite().all(1) & column_edges.isfinite().all(1)
    known = (images[:, None] == torch.arange(batch, device=images.device)).any(1)
    if (finite & known).all():
        return
    number = int((finite & known).logical_not().nonzero()[0])
    if not finite[number]:
        raise UserError(f"box {number} is not finite; its coordinates must be numbers")
    raise UserError(f"box {number} is of image {float(images[number]):g}, which is not in the batch of {batch}")


@dataclass(frozen=True, eq=False)
class _Reads:
    """Which pixels the bins of a block of boxes read, and their weights.

    Attributes:
        bags: for each bin its pixels, line by line.
        row_weights: (K, rows of bins, H).
        column_weights: (K, columns of bins, W).
        rows: (T,) int32, the place of each read's weight in the flattened weights of rows.
        columns: (T,) int32, its place in those of columns.
    """

    bags: Bags
    row_weights: Tensor
    column_weights: Tensor
    rows: Tensor
    columns: Tensor

    @property
    def of_rows(self) -> Tensor:
        """(T,): the weight of each read's row."""
        return self.row_weights.flatten().index_select(0, self.rows)

    @property
    def of_columns(self) -> Tensor:
        """(T,): the weight of each read's column."""
        return self.column_weights.flatten().index_select(0, self.columns)

    @property
    def weights(self) -> Tensor:
        """(T,): the weight of each read."""
        return self.of_rows * self.of_columns


def _blocks(
    features: Tensor, row_edges: Tensor, column_edges: Tensor, images: Tensor
) -> Iterator[tuple[slice, _Reads]]:
    """Blocks of boxes and what they read."""
    size = _BLOCK if features.device.type == "cpu" else _BLOCK_ON_GPU
    for start in range(0, len(images), size):
        block = slice(start, start + size)
        yield block, _reads(features, row_edges[block], column_edges[block], images[block])


def _reads(features: Tensor, row_edges: Tensor, column_edges: Tensor, images: Tensor) -> _Reads:
    """All reads, bin by bin, line by line, pixel by pixel; the arguments are those of `_pool_bins`."""
    height, width = features.shape[2:]
    first_row, row_counts = _spans(row_edges, height)
    first_column, column_counts = _spans(column_edges, width)
    first_pixel = (images.int()[:, None, None] * height + first_row[:, :, None]) * width + first_column[:, None]

    def of_bins(rows: Tensor, columns: Tensor) -> tuple[Tensor, Tensor]:
        shape = first_pixel.shape  # (K, rows of bins, columns of bins)
        return rows[:, :, None].expand(shape).flatten(), columns[:, None].expand(shape).flatten()

    lines, line_sizes = of_bins(row_counts, column_counts)
    row_places, column_places = of_bins(_places(first_row, height), _places(first_column, width))
    bin_of_line, y = _expand(lines)
    line_of_read, x = _expand(line_sizes.index_select(0, bin_of_line))

    def of_reads(first: Tensor, step: int) -> Tensor:
        """What begins as `first` in each bin and grows by `step` from line to line, for all reads."""
        of_lines = first.index_select(0, bin_of_line) + step * y
        return of_lines.index_select(0, line_of_read)

    return _Reads(
        Bags.of_sizes(of_reads(first_pixel.flatten(), width) + x, lines * line_sizes),
        _weights(row_edges, height).to(features.dtype),
        _weights(column_edges, width).to(features.dtype),
        of_reads(row_places, 1),
        of_reads(column_places, 0) + x,
    )


def _spans(edges: Tensor, size: int) -> tuple[Tensor, Tensor]:
    """First pixel that has weight in each bin, and the number of pixels that have, (K, bins) int32 each."""
    first = edges[:, :-1].floor().clamp(0, size).int()
    last = edges[:, 1:].ceil().clamp(-1, size - 1).int()
    return first, (last + 1 - first).clamp(min=0) * (edges.diff(dim=1) > 0)


def _places(pixels: Tensor, size: int) -> Tensor:
    """The places of the weights of `pixels` (K, bins) in the flattened weights (K, bins, size)."""
    return torch.arange(pixels.numel(), dtype=torch.int32, device=pixels.device).view_as(pixels) * size + pixels


def _expand(sizes: Tensor) -> tuple[Tensor, Tensor]:
    """The owner of each item of lists of these `sizes` (M,), one list after another, and its place in its list."""
    lists = torch.arange(len(sizes), dtype=torch.int32, device=sizes.device)
    owners = lists.repeat_interleave(sizes)
    starts = sizes.cumsum(0, dtype=torch.int32) - sizes
    return owners, torch.arange(len(owners), dtype=torch.int32, device=sizes.device) - starts.index_select(0, owners)
