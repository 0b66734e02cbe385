"""Precise RoI pooling (IoU-Net, ECCV 2018): the exact mean of the interpolated features over each bin of a box.

Bilinear interpolation weighs the pixel at p with the hat function max(0, 1 − |t − p|) along each axis. In the mean over
a bin, the weight of a pixel along an axis is the mean of its hat over the bin, and its weight in the map is the product
of those along y and along x. So pooling is a sparse matrix, with a row for each bin and a column for each pixel, times
the features of the pixels. The weights along the axes are sparse matrices too; their product for each box, a Kronecker
product, is that matrix. The gradient reaches the boxes through the weights.

An example: on a map of 2×3 pixels, a box has one bin along y, from 0 to 1, and two along x, from 0.5 to 1.5 and from
1.5 to 2.5. A hat has the area 1, and every bin here the length 1, so that a pixel's weight is the part of the area of
its hat that lies over the bin. From 0 to 1 along y this is 1/2 for the pixels 0 and 1. From 0.5 to 1.5 along x it is
3/4 for pixel 1 and 1/8 for the two beside it. From 1.5 to 2.5 it is the same around pixel 2, but there is no pixel 3:
outside the map its 1/8 counts as zero.

>>> y_edges, x_edges = torch.tensor([[0.0, 1.0]]), torch.tensor([[0.5, 1.5, 2.5]])
>>> y, y_weights = _axis_matrix(y_edges, 2, torch.float32)
>>> x, x_weights = _axis_matrix(x_edges, 3, torch.float32)
>>> y.indptr.tolist(), y.indices.tolist(), y_weights.tolist()
([0, 2], [0, 1], [0.5, 0.5])
>>> x.indptr.tolist(), x.indices.tolist(), x_weights.tolist()
([0, 3, 5], [0, 1, 2, 1, 2], [0.125, 0.75, 0.125, 0.125, 0.75])

The pixels of the map are numbered row by row: 0, 1, 2 and 3, 4, 5. The first bin has weights for all six and the
second for the four on the right. Each weight is the product of one along y and one along x, whose places are returned.

>>> bins, y_entries, x_entries = _kronecker(y, x, torch.tensor([0]), slice(0, 1), (2, 3))
>>> bins.indptr.tolist(), bins.indices.tolist()
([0, 6, 10], [0, 1, 2, 3, 4, 5, 1, 2, 4, 5])
>>> (y_weights[y_entries] * x_weights[x_entries]).tolist()
[0.0625, 0.375, 0.0625, 0.0625, 0.375, 0.0625, 0.0625, 0.375, 0.0625, 0.375]
"""

import math
from collections.abc import Iterator, Sequence
from typing import Any, cast

import torch
from torch import Tensor
from torch.nn.functional import pad

from tightbox.boxes import area, at_least_float32
from tightbox.errors import UserError
from tightbox.ops.csr import CSRPattern, uses_triton

# Boxes are pooled in chunks, whose sparse matrices then stay small beside the features and the output. A GPU has the
# memory for larger ones, and has to wait in each chunk until the number of entries is known.
_BOXES_PER_CHUNK, _BOXES_PER_CHUNK_ON_GPU = 64, 2048
AxisMatrix = tuple[CSRPattern, Tensor]  # and the weights of its entries


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
    zeros and gets no gradient. Weights and sums are of float32 at least; on a CPU each weight is rounded to the dtype
    of `input` for its product.

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
            model, which cannot raise, pools zeros for such a box; a GPU with Triton, which nothing here waits for, NaN.
    """
    rows, columns = (output_size, output_size) if isinstance(output_size, int) else output_size
    if rows < 1 or columns < 1:
        raise UserError(f"output_size is {output_size}; it must be 1 or more along both axes")
    if not 0 < spatial_scale < math.inf:
        raise UserError(f"spatial_scale is {spatial_scale}; it must be a positive number")
    boxes = _as_one_tensor(input, boxes)
    images = boxes[:, 0].detach()
    x1, y1, x2, y2 = (boxes[:, 1:] * spatial_scale - (0.5 if aligned else 0.0)).unbind(1)
    pool = _pool_whole_maps if torch.compiler.is_exporting() else _pool_bins
    pooled = cast(Tensor, pool(input, _edges(y1, y2, rows), _edges(x1, x2, columns), images))
    return pooled.permute(0, 3, 1, 2)


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


def _weights(start: Tensor, end: Tensor, pixel: Tensor) -> Tensor:
    """Weight of a pixel along one axis in the mean over the bin from `start` to `end`; 0 if the bin has no length.

    The three broadcast with one another, and the weights have their common shape.
    """
    length = end - start
    return torch.where(length > 0, (_hat_integral(end - pixel) - _hat_integral(start - pixel)) / length, 0)


def _hat_integral(t: Tensor) -> Tensor:
    """The integral of `_hat` from 0 to each of `t` (...)."""
    t = t.clamp(-1, 1)
    return t * (1 - t.abs() / 2)


def _hat(t: Tensor) -> Tensor:
    """max(0, 1 − |t|) of each of `t` (...)."""
    return (1 - t.abs()).clamp(min=0)


def _pool_whole_maps(features: Tensor, y_edges: Tensor, x_edges: Tensor, images: Tensor) -> Tensor:
    """`_pool_bins` with dense matrices, whose shapes do not depend on the boxes; for exporters."""
    batch, channels, height, width = features.shape
    y, x = (
        _weights(edges[:, :-1, None], edges[:, 1:, None], torch.arange(size, device=edges.device)).to(features.dtype)
        for edges, size in ((y_edges, height), (x_edges, width))
    )
    own = images[:, None] == torch.arange(batch, device=images.device)
    y = (y[:, :, None] * own[:, None, :, None]).flatten(2)  # (K, rows, N·H): zero in the images of other boxes
    table = features.permute(0, 2, 3, 1).reshape(batch * height, width * channels)
    # One row of bins at a time, so that for each box only one row of pixels is held, and not one for each row of bins.
    pooled = [x @ (y_row @ table).view(-1, width, channels) for y_row in y.unbind(1)]
    return torch.stack(pooled, dim=1)


# Custom operators rather than an autograd function, so that torch.compile takes them as they are.
@torch.library.custom_op("tightbox::prroi_pool", mutates_args=())
def _pool_bins(features: Tensor, y_edges: Tensor, x_edges: Tensor, images: Tensor) -> Tensor:
    """The mean over each bin, as a sparse matrix times the pixels.

    Args:
        features: (N, C, H, W).
        y_edges: (K, rows + 1), where the bins of each box meet along y, in pixels of the map.
        x_edges: (K, columns + 1), where they meet along x.
        images: (K,), the index of each box's image.

    Returns:
        (K, rows, columns, C).
    """
    if uses_triton(features):
        from tightbox.ops import prroi_pool_triton  # here, as importing Triton takes time and needs it to be installed

        return prroi_pool_triton.pool(features, y_edges, x_edges, images)
    _check_values(y_edges, x_edges, images, len(features))
    (y, y_weights), (x, x_weights) = _axis_matrices(features, y_edges, x_edges)
    table, pooled = _pixel_table(features), _empty_pooled(features, y_edges, x_edges)
    for boxes, bins, y_entries, x_entries in _chunks(features, y, x, images):
        weights = y_weights.index_select(0, y_entries) * x_weights.index_select(0, x_entries)
        pooled[boxes] = bins.matmul(weights, table).view_as(pooled[boxes])
    return pooled


@torch.library.custom_op("tightbox::prroi_pool_features_gradient", mutates_args=())
def _features_gradient(gradient: Tensor, features: Tensor, y_edges: Tensor, x_edges: Tensor, images: Tensor) -> Tensor:
    """The gradient of the features for the `gradient` of what `_pool_bins` returns."""
    if uses_triton(features):
        from tightbox.ops import prroi_pool_triton

        return prroi_pool_triton.features_gradient(gradient, features, y_edges, x_edges, images)
    (y, y_weights), (x, x_weights) = _axis_matrices(features, y_edges, x_edges)
    to_features = _empty_channels_last(features).to(y_weights.dtype).zero_()
    table = _pixel_table(to_features)  # a view
    for boxes, bins, y_entries, x_entries in _chunks(features, y, x, images):
        weights = y_weights.index_select(0, y_entries) * x_weights.index_select(0, x_entries)
        bins.add_transposed_matmul(table, weights, gradient[boxes].flatten(0, 2))
    return to_features.to(features.dtype)


@torch.library.custom_op("tightbox::prroi_pool_edges_gradient", mutates_args=())
def _edges_gradient(
    gradient: Tensor, features: Tensor, y_edges: Tensor, x_edges: Tensor, images: Tensor
) -> tuple[Tensor, Tensor]:
    """The gradients of the edges along y and along x."""
    if uses_triton(features):
        from tightbox.ops import prroi_pool_triton

        return prroi_pool_triton.edges_gradient(gradient, features, y_edges, x_edges, images)
    (y, y_weights), (x, x_weights) = _axis_matrices(features, y_edges, x_edges)
    table, to_y_weights, to_x_weights = _pixel_table(features), torch.zeros_like(y_weights), torch.zeros_like(x_weights)
    for boxes, bins, y_entries, x_entries in _chunks(features, y, x, images):
        to_weights = bins.sampled_matmul(gradient[boxes].flatten(0, 2), table).to(y_weights.dtype)
        # The product rule: a weight is one along y times one along x, and each of these is a factor of several weights.
        to_y_weights.index_add_(0, y_entries, to_weights * x_weights.index_select(0, x_entries))
        to_x_weights.index_add_(0, x_entries, to_weights * y_weights.index_select(0, y_entries))
    to_y_edges = _axis_edges_gradient(y_edges, y, y_weights, to_y_weights)
    return to_y_edges, _axis_edges_gradient(x_edges, x, x_weights, to_x_weights)


def _empty_pooled(features: Tensor, y_edges: Tensor, x_edges: Tensor) -> Tensor:
    """Room for what `_pool_bins` returns."""
    return features.new_empty(len(y_edges), y_edges.shape[1] - 1, x_edges.shape[1] - 1, features.shape[1])


def _empty_channels_last(features: Tensor) -> Tensor:
    """Room for as many features, in channels_last memory format whatever their shape."""
    return torch.empty_like(features.permute(0, 2, 3, 1), memory_format=torch.contiguous_format).permute(0, 3, 1, 2)


def _pixel_table(features: Tensor) -> Tensor:
    """(N·H·W, C): features (N, C, H, W) with a row for each pixel, a view if they are channels_last."""
    return features.permute(0, 2, 3, 1).contiguous().flatten(0, 2)


@_pool_bins.register_fake
def _(features: Tensor, y_edges: Tensor, x_edges: Tensor, images: Tensor) -> Tensor:
    return _empty_pooled(features, y_edges, x_edges)


@_features_gradient.register_fake
def _(gradient: Tensor, features: Tensor, y_edges: Tensor, x_edges: Tensor, images: Tensor) -> Tensor:
    return _empty_channels_last(features)


@_edges_gradient.register_fake
def _(gradient: Tensor, features: Tensor, y_edges: Tensor, x_edges: Tensor, images: Tensor) -> tuple[Tensor, Tensor]:
    return torch.empty_like(y_edges), torch.empty_like(x_edges)


def _save(ctx: Any, inputs: tuple[Tensor, ...], output: Tensor) -> None:
    ctx.save_for_backward(*inputs)


def _gradients(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, Tensor | None, Tensor | None, None]:
    to_features = to_y_edges = to_x_edges = None
    if ctx.needs_input_grad[0]:
        to_features = _features_gradient(gradient, *ctx.saved_tensors)
    if ctx.needs_input_grad[1] or ctx.needs_input_grad[2]:
        to_y_edges, to_x_edges = _edges_gradient(gradient, *ctx.saved_tensors)
    return to_features, to_y_edges, to_x_edges, None


_pool_bins.register_autograd(_gradients, setup_context=_save)


def _check_values(y_edges: Tensor, x_edges: Tensor, images: Tensor, batch: int) -> None:
    """Raises UserError for a box that is not finite or of no image; waits for the device, as the sparse matrices do."""
    finite = y_edges.isfinite().all(1) & x_edges.isfinite().all(1)
    known = (images[:, None] == torch.arange(batch, device=images.device)).any(1)
    if (finite & known).all():
        return
    number = int((finite & known).logical_not().nonzero()[0])
    if not finite[number]:
        raise UserError(f"box {number} is not finite; its coordinates must be numbers")
    raise UserError(f"box {number} is of image {float(images[number]):g}, which is not in the batch of {batch}")


def _axis_matrices(features: Tensor, y_edges: Tensor, x_edges: Tensor) -> tuple[AxisMatrix, AxisMatrix]:
    """The weights of the pixels along y and along x, in float32, or in float64 where the features are."""
    dtype = torch.float64 if features.dtype == torch.float64 else torch.float32
    return _axis_matrix(y_edges, features.shape[2], dtype), _axis_matrix(x_edges, features.shape[3], dtype)


def _axis_matrix(edges: Tensor, size: int, dtype: torch.dtype) -> AxisMatrix:
    """The weights of the pixels along one axis in each bin, as a sparse matrix (K·bins, size).

    Args:
        edges: (K, bins + 1), where the bins of each box meet along the axis.
        size: number of pixels along the axis.
        dtype: of the weights, which are computed in that of the edges.

    Returns:
        The pattern of the matrix and the weights (T,) of its entries.
    """
    start, end = edges[:, :-1].flatten(), edges[:, 1:].flatten()
    # The hat of pixel p reaches from p − 1 to p + 1: into the bin from a to b if floor(a) ≤ p ≤ ceil(b).
    first = start.floor().clamp(0, size).int()
    last = end.ceil().clamp(-1, size - 1).int()
    counts = (last + 1 - first).clamp(min=0) * (end - start > 0)
    pattern = CSRPattern.of_ranges(first, counts)
    bins = pattern.row_of_entry
    weights = _weights(start.index_select(0, bins), end.index_select(0, bins), pattern.indices)
    return pattern, weights.to(dtype)


def _axis_edges_gradient(edges: Tensor, axis: CSRPattern, weights: Tensor, to_weights: Tensor) -> Tensor:
    """The gradient of the `edges` (K, bins + 1) that `_axis_matrix` was given, for that of its weights (T,).

    A weight is the integral of a hat from a to b, divided by b − a. Its derivative is (hat(b) − weight) / (b − a) with
    respect to b, and (weight − hat(a)) / (b − a) with respect to a.
    """
    # Number of the edge that each entry's bin starts at, which is not the bin's: a box has one edge more than bins.
    starts = axis.row_of_entry + axis.row_of_entry // (edges.shape[1] - 1)
    start, end = edges.flatten().index_select(0, starts), edges.flatten().index_select(0, starts + 1)
    to_integral = to_weights / (end - start)  # bins without length have no entries
    to_edges = to_integral.new_zeros(edges.numel())
    to_edges.index_add_(0, starts, (weights - _hat(start - axis.indices)) * to_integral)
    to_edges.index_add_(0, starts + 1, (_hat(end - axis.indices) - weights) * to_integral)
    return to_edges.view_as(edges).to(edges.dtype)


def _chunks(
    features: Tensor, y: CSRPattern, x: CSRPattern, images: Tensor
) -> Iterator[tuple[slice, CSRPattern, Tensor, Tensor]]:
    """For each chunk of boxes which ones these are, and what `_kronecker` returns for them."""
    size = _BOXES_PER_CHUNK if features.device.type == "cpu" else _BOXES_PER_CHUNK_ON_GPU
    for start in range(0, len(images), size):
        boxes = slice(start, min(start + size, len(images)))
        yield boxes, *_kronecker(y, x, images, boxes, features.shape[2:])


def _kronecker(
    y: CSRPattern, x: CSRPattern, images: Tensor, boxes: slice, map_size: Sequence[int]
) -> tuple[CSRPattern, Tensor, Tensor]:
    """The sparse matrix of the bins of some boxes: of each box the Kronecker product of its matrices along y and x.

    Args:
        y: pattern (K·rows, H) of all boxes along y.
        x: pattern (K·columns, W) of all boxes along x.
        images: (K,), the index of each box's image.
        boxes: k of the K boxes.
        map_size: H and W.

    Returns:
        The pattern (k·rows·columns, N·H·W), and for each entry the number of the entry of `y` and of that of `x` whose
        weights' product is its weight, (T,) int32 each.
    """
    height, width = map_size
    rows, columns = len(y.counts) // len(images), len(x.counts) // len(images)
    of_box = rows * columns
    bins = torch.arange(boxes.start * of_box, boxes.stop * of_box, dtype=torch.int32, device=images.device)
    box = bins // of_box
    y_rows, x_rows = bins // columns, box * columns + bins % columns  # of the patterns y and x: one of each for a bin
    # A run is the pixels of a bin that lie side by side in one row of the map. Entries are listed in two steps, runs
    # and then their pixels, because what is the same along a run is then computed once for it.
    bin_of_run, y_of_run = y.entries_of(y_rows)
    run_of_entry, x_entries = x.entries_of(x_rows.index_select(0, bin_of_run))
    image_of_run = images.index_select(0, box).int().index_select(0, bin_of_run)
    run_starts = (image_of_run * height + y.indices.index_select(0, y_of_run)) * width
    indices = run_starts.index_select(0, run_of_entry) + x.indices.index_select(0, x_entries)
    counts = y.counts.index_select(0, y_rows) * x.counts.index_select(0, x_rows)
    return CSRPattern.of_counts(counts, indices), y_of_run.index_select(0, run_of_entry), x_entries


def window_pool(levels: Sequence[Tensor], boxes: Tensor, level: Tensor, images: Tensor, bins: int) -> Tensor:
    """(K, C, bins, bins): `prroi_pool` of each box from a level of its own, for exported files.

    No file format has a sparse matrix. The weights of the pixels are separable, so that over the window of a map that a
    box covers they are two small dense matrices, one along y and one along x.

    Args:
        levels: maps (B, C, h, w).
        boxes: (K, 4) finite, in pixels of their levels.
        level: (K,) index of each box's level.
        images: (K,) index of each box's image.
        bins: along each axis.
    """
    # One table with a row for each pixel of all levels and images.
    table = torch.cat([features.permute(0, 2, 3, 1).flatten(0, 2) for features in levels])
    heights, widths = (_numbers([x.shape[axis] for x in levels], level)[level] for axis in (2, 3))
    pixels = [x.shape[0] * x.shape[2] * x.shape[3] for x in levels]
    starts = _numbers([sum(pixels[:i]) for i in range(len(levels))], level)[level] + images * heights * widths

    near, far = boxes[:, :2].flip(1), boxes[:, 2:].flip(1)  # (K, 2), y and x
    edges = near[..., None] + (far - near)[..., None] * torch.arange(bins + 1, device=boxes.device) / bins
    limits = torch.stack([heights, widths], dim=1)
    first = torch.minimum(near.floor().clamp(min=0).long(), limits - 1)
    last = torch.maximum(torch.minimum(far.ceil().long() + 1, limits), first + 1)  # a pixel at least; exclusive
    windows = torch.cat([torch.stack([first, last], dim=2).flatten(1), starts[:, None], widths[:, None]], dim=1)

    of_bin = area(boxes) / bins**2  # not .prod(), by which OpenVINO 2026.4 would multiply instead of dividing
    scale = torch.where(of_bin > 0, 1 / of_bin, 0)
    integrals = cast(Tensor, integrate_windows(table, edges, windows))
    return (integrals * scale[:, None, None, None]).permute(0, 3, 1, 2)


def _numbers(values: Sequence[int], like: Tensor) -> Tensor:
    """The values, which may be symbols of an exporter, as integers on a device."""
    return torch.cat([torch.full((1,), value, dtype=torch.int64, device=like.device) for value in values])


@torch.library.custom_op("tightbox::integrate_windows", mutates_args=())
def integrate_windows(table: Tensor, edges: Tensor, windows: Tensor) -> Tensor:
    """(K, bins, bins, C) integrals of the interpolated features over the bins of each box.

    In an ONNX file this is one Loop; here it is the slow, obvious form.

    Args:
        table: (R, C) features, a row for each pixel, the rows of a map one after another.
        edges: (K, 2, bins + 1), where the bins of each box meet along y and along x, in pixels of its map.
        windows: (K, 6) of each box the first pixel along y and the one after its last, the same along x, the row of the
            table with pixel (0, 0) of its map, and the map's width.
    """
    pooled = table.new_empty(len(edges), edges.shape[2] - 1, edges.shape[2] - 1, table.shape[1])
    for box, (top, bottom, left, right, start, width) in enumerate(windows.tolist()):
        y, x = torch.arange(top, bottom, device=table.device), torch.arange(left, right, device=table.device)
        # (bins, P) the integral over each bin of the hat of each pixel.
        of_y = _hat_integral(edges[box, 0, :, None] - y).diff(dim=0)
        of_x = _hat_integral(edges[box, 1, :, None] - x).diff(dim=0)
        features = table[start + y[:, None] * width + x]  # (h, w, C)
        pooled[box] = torch.einsum("ih,jw,hwc->ijc", of_y, of_x, features)
    return pooled


@integrate_windows.register_fake
def _(table: Tensor, edges: Tensor, windows: Tensor) -> Tensor:
    return table.new_empty(edges.shape[0], edges.shape[2] - 1, edges.shape[2] - 1, table.shape[1])
