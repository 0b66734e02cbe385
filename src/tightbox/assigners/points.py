"""The points of a feature pyramid, level after level, row by row."""

from collections.abc import Sequence

import torch
from torch import Tensor


def level_points(
    sizes: Sequence[tuple[int, int]], strides: Sequence[int], offset: float = 0.0, device: torch.device | None = None
) -> Tensor:
    """Image position (N, 2), as x, y in pixels, of every cell of every level.

    Args:
        sizes: (height, width) of each level's feature map.
        strides: pixels between neighbouring cells of each level.
        offset: where in its cell a point lies, in strides: VFNet has 0 (the corner), FCOS 0.5 (the centre).
        device: where to put the points.

    >>> level_points([(1, 2), (1, 1)], strides=[8, 16], offset=0.5)
    tensor([[ 4.,  4.],
            [12.,  4.],
            [ 8.,  8.]])
    """
    levels = []
    for size, stride in zip(sizes, strides, strict=True):
        y, x = ((torch.arange(cells, device=device) + offset) * stride for cells in size)
        levels.append(torch.cartesian_prod(y, x).flip(-1).float())
    return torch.cat(levels)


def per_point(level_values: Tensor, sizes: Sequence[tuple[int, int]]) -> Tensor:
    """A value of each level, (L, ...), repeated for every point of that level: (N, ...).

    >>> per_point(torch.tensor([8.0, 16.0]), sizes=[(1, 2), (1, 1)])
    tensor([ 8.,  8., 16.])
    """
    # Counts are not a tensor, for which a GPU would have to be waited for.
    levels = zip(level_values, sizes, strict=True)
    return torch.cat([value.expand(height * width, *value.shape) for value, (height, width) in levels])
