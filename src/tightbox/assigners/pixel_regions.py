"""UnitBox's targets: which pixels lie on an object, and how far its sides are from each of them.

UnitBox, https://arxiv.org/abs/1608.01471, section 3 and figure 2.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from math import floor
from typing import Literal

import torch
from torch import Tensor

from tightbox.assigners.assignment import BACKGROUND, IGNORED
from tightbox.boxes import area, at_least_float32, encode_distances
from tightbox.structures import Targets

Shape = Literal["ellipse", "box"]


@dataclass(frozen=True, eq=False)
class PixelTargets:
    """What each pixel of one image learns.

    Attributes:
        confidence: (C, H, W) 1 where the pixel lies on an object of the class, 0 elsewhere.
        distances: (4, H, W) pixels from the pixel's centre to the left, top, right and bottom side of its object; 0
            where it has none. The paper orders them t, b, l, r.
        matched: (H, W) int64 index of the object whose box the pixel learns, `BACKGROUND` (-1), or `IGNORED` (-2) in a
            region to be ignored, where neither map says anything.
    """

    confidence: Tensor
    distances: Tensor
    matched: Tensor


def pixel_regions(
    size: tuple[int, int],
    targets: Targets,
    classes: int = 1,
    shape: Shape = "ellipse",
    scale: float = 1.0,
) -> PixelTargets:
    """The confidence maps and the box map of one image.

    * A pixel lies on an object if its centre, (x + 0.5, y + 0.5), lies in the object's shape: the centre plus and minus
      its distances is the object's box at every positive pixel.
    * A pixel on several objects learns the box of the smallest, of equals the first. The confidence maps know no such
      contest: it is positive in the class of each.
    * An object with no pixel's centre in its shape has the pixel that its own centre is in. That one's distance to a
      side may be below 0, as its centre may lie outside the box.
    * A region to be ignored is a whole box, and gives way to objects.

    Args:
        size: (height, width) of the maps, which are as large as the input.
        targets: the objects, in pixels of the input.
        classes: number of confidence maps.
        shape: of an object: the ellipse inscribed in the box, as the paper's figure has it, or all of it.
        scale: of the confident region, in sizes of that shape around the same centre; all of the shape learns the box.

    >>> targets = Targets.of(torch.tensor([[0.0, 0.0, 3.0, 2.0]]), torch.tensor([0]))
    >>> maps = pixel_regions((2, 4), targets, shape="box")
    >>> maps.confidence, maps.distances[:, 0, 2]
    (tensor([[[1., 1., 1., 0.],
             [1., 1., 1., 0.]]]), tensor([2.5000, 0.5000, 0.5000, 1.5000]))
    """
    boxes = at_least_float32(targets.boxes)
    confidence, distances = boxes.new_zeros(classes, *size), boxes.new_zeros(4, *size)
    matched = torch.full(size, BACKGROUND, dtype=torch.int64, device=boxes.device)
    for region in targets.ignore.tolist():
        window, inside = _pixels(region, "box", size, boxes.device)
        matched[window][inside] = IGNORED
    corners, areas, labels = boxes.tolist(), area(boxes).tolist(), targets.labels.tolist()
    # What is painted last stays.
    for index in sorted(range(len(boxes)), key=lambda i: (areas[i], i), reverse=True):
        window, inside = _pixels(corners[index], shape, size, boxes.device, scale)
        confidence[labels[index]][window][inside] = 1
        matched[window][inside & (matched[window] == IGNORED)] = BACKGROUND
        window, inside = _pixels(corners[index], shape, size, boxes.device)
        matched[window][inside] = index
    y, x = (matched >= 0).nonzero().unbind(1)
    points = torch.stack([x, y], dim=1) + 0.5
    distances[:, y, x] = encode_distances(points.to(boxes), boxes[matched[y, x]]).T
    return PixelTargets(confidence, distances, matched)


def _pixels(
    box: Sequence[float], shape: Shape, size: tuple[int, int], device: torch.device, scale: float = 1.0
) -> tuple[tuple[slice, slice], Tensor]:
    """A window of the map around a box, and (h, w) bool which of its pixels are in the shape."""
    axes, window, middle = [], [], []
    for low, high, side in ((box[1], box[3], size[0]), (box[0], box[2], size[1])):
        centre, half = (low + high) / 2, (high - low) / 2 * scale
        low, high = centre - half, centre + half
        start, stop = min(max(floor(low), 0), side), min(max(floor(high) + 1, 0), side)
        window.append(slice(start, stop))
        middle.append(slice(max(floor(centre) - start, 0), max(floor(centre) - start + 1, 0)))
        pixels = torch.arange(start, stop, device=device) + 0.5
        radius = max(half, torch.finfo(torch.float32).tiny)
        axes.append(((pixels - centre) / radius) ** 2)
    y, x = axes[0][:, None], axes[1]
    inside = y + x <= 1 if shape == "ellipse" else torch.maximum(y, x) <= 1
    inside[middle[0], middle[1]] = True  # nearest of all; in the shape already if any pixel is
    return (window[0], window[1]), inside
