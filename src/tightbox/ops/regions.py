"""UnitBox's way from a confidence map to objects: connected regions, an ellipse around each, and its centre pixel.

UnitBox, https://arxiv.org/abs/1608.01471, section 3.
"""

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from tightbox.errors import UserError

# Pixels that touch at a corner belong together: where a thin region breaks, its object is found twice.
_NEIGHBOURS = np.ones((3, 3), dtype=np.bool_)


@dataclass(frozen=True, eq=False)
class Regions:
    """The connected regions of a map, in the order of their first pixels, row by row.

    Attributes:
        centres: (R, 2) int64 x, y of the pixel that the ellipse's centre is in: always on the map, but not on the
            region where that is a crescent or a ring.
        ellipses: (R, 5) float major radius, minor radius, angle of the major axis in radians from the x axis towards
            the y axis, which points down, centre x and y: the ellipse with the region's first and second moments. This
            is FDDB's order.
        mean_confidence: (R,) mean over the region.
        centre_confidence: (R,) at the centre pixel; not above the threshold if that is off the region.
        areas: (R,) int64 pixels.
    """

    centres: Tensor
    ellipses: Tensor
    mean_confidence: Tensor
    centre_confidence: Tensor
    areas: Tensor


def regions(confidence: Tensor, threshold: float) -> Regions:
    """The connected regions of the pixels whose confidence is above the threshold; NaN is not.

    The paper reads the box at the centre of the ellipse, and so does this, for a crescent too: `centre_confidence`
    tells. A filled ellipse with radii a and b has the second moments a²/4 and b²/4 along its axes, whence the radii; a
    pixel counts as a square, so that one alone has an ellipse of radius 1/√3 and of about its own area.

    Args:
        confidence: (H, W).
        threshold: a pixel belongs to a region if its confidence is greater.

    Raises:
        UserError: if `confidence` is not a map.

    >>> found = regions(torch.tensor([[0.0, 0.9, 0.0, 0.0], [0.9, 0.9, 0.9, 0.0], [0.0, 0.6, 0.0, 0.0]]), threshold=0.5)
    >>> found.centres, found.areas, found.mean_confidence
    (tensor([[1, 1]]), tensor([5]), tensor([0.8400]))
    """
    if confidence.ndim != 2:
        shape = tuple(confidence.shape)
        raise UserError(f"a confidence map of shape {shape} cannot have regions; give (height, width)")
    from scipy import ndimage  # here, as it takes half a second and UnitBox alone has regions

    values = confidence.detach().float().cpu().numpy()
    labels, count = ndimage.label(values > threshold, _NEIGHBOURS)
    at = np.flatnonzero(labels)
    region = labels.ravel()[at] - 1
    y, x = np.divmod(at, values.shape[1])
    areas = np.bincount(region, minlength=count)

    def mean(of_pixels: NDArray[np.float64]) -> NDArray[np.float64]:
        return np.bincount(region, weights=of_pixels, minlength=count) / areas

    centre_x, centre_y = mean(x + 0.5), mean(y + 0.5)
    u, v = x + 0.5 - centre_x[region], y + 0.5 - centre_y[region]
    # A pixel is a square: its own second moment is 1/12.
    uu, vv, uv = mean(u * u) + 1 / 12, mean(v * v) + 1 / 12, mean(u * v)
    middle, spread = (uu + vv) / 2, np.hypot((uu - vv) / 2, uv)
    major, minor = 2 * np.sqrt(middle + spread), 2 * np.sqrt(middle - spread)
    angle = np.arctan2(2 * uv, uu - vv) / 2
    centres = np.stack([centre_x, centre_y], axis=1).astype(np.int64)
    ellipses = np.stack([major, minor, angle, centre_x, centre_y], axis=1).astype(np.float32)
    means = mean(values.ravel()[at]).astype(np.float32)
    columns = centres, ellipses, means, values[centres[:, 1], centres[:, 0]], areas
    return Regions(*(torch.from_numpy(column).to(confidence.device) for column in columns))
