"""UnitBox's targets: which pixels lie on an object, and how far its sides are from each of them.

UnitBox, https://arxiv.org/abs/1608.01471, section 3 and figure 2.
"""

from collections.abc import Sequence
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from tightbox.assigners.assignment import BACKGROUND, IGNORED
from tightbox.boxes import area, at_least_float32
from tightbox.structures import Targets, take

Shape = Literal["ellipse", "box"]
EDGE = 1e-9  # pixels that rounding may move the border of a shape: a pixel on it is inside


def pixel_regions(
    size: tuple[int, int], targets: Sequence[Targets], classes: int = 1, shape: Shape = "ellipse", scale: float = 1.0
) -> tuple[Tensor, Tensor]:
    """What each pixel learns in each of B images, in maps of one size.

    * A pixel lies on an object if its centre, (x + 0.5, y + 0.5), lies in the object's shape: the centre plus and minus
      its distances is the object's box at every positive pixel.
    * A pixel on several objects learns the box of the smallest, of equals the first. The confidence maps know no such
      contest: it is positive in the class of each.
    * An object with no pixel's centre in its shape has the pixel that its own centre is in. That one's distance to a
      side may be below 0, as its centre may lie outside the box.
    * A region to be ignored is a whole box, and gives way to objects.

    Shapes depend on no values, so that no GPU has to be waited for: in each row of pixels an object is one span.

    Args:
        size: (height, width) of the maps, which are as large as the input.
        targets: the objects of each image, in pixels of the input.
        classes: number of confidence maps.
        shape: of an object: the ellipse inscribed in the box, as the paper's figure has it, or all of it.
        scale: of the confident region, in sizes of that shape around the same centre; all of the shape learns the box.

    Returns:
        The confidence (B, C, H, W): 1 where the pixel lies on an object of the class, 0 elsewhere. And (B, H, W) int64
        the index of the object whose box the pixel learns, `BACKGROUND` (-1), or `IGNORED` (-2) in a region to be
        ignored, where the confidence says nothing either.

    >>> targets = Targets.of(torch.tensor([[0.0, 0.0, 3.0, 2.0]]), torch.tensor([0]))
    >>> pixel_regions((2, 4), [targets], shape="box")
    (tensor([[[[1., 1., 1., 0.],
              [1., 1., 1., 0.]]]]), tensor([[[ 0,  0,  0, -1],
             [ 0,  0,  0, -1]]]))
    """
    boxes = _padded([image.boxes for image in targets])
    labels = pad_sequence([image.labels for image in targets], batch_first=True)
    order = area(boxes).sort(dim=1, stable=True).indices  # the smallest first, of equals the first
    boxes, labels = take(boxes, order), take(labels, order)
    confidence = _covered(_spans(boxes, shape, scale, size), labels, classes, size[1])
    matched: Tensor | int = BACKGROUND
    if any(len(image.ignore) for image in targets):
        regions = _padded([image.ignore for image in targets])
        ignored = _covered(_spans(regions, "box", 1.0, size), torch.zeros_like(regions[..., 0]).long(), 1, size[1])
        matched = torch.where(ignored.squeeze(1) & ~confidence.any(dim=1), IGNORED, BACKGROUND)
    first = _first(_spans(boxes, shape, 1.0, size), size[1])
    own = take(F.pad(order, (0, 1)), first.flatten(1)).view_as(first)
    return confidence.to(boxes), torch.where(first < boxes.shape[1], own, matched)


def _padded(boxes: Sequence[Tensor]) -> Tensor:
    """(B, G, 4); what pads them covers no pixel of a map."""
    return at_least_float32(pad_sequence(list(boxes), batch_first=True, padding_value=-1))


def _spans(boxes: Tensor, shape: Shape, scale: float, size: tuple[int, int]) -> tuple[Tensor, Tensor]:
    """In each row of pixels the first (B, G, H) in the shape of a box (B, G, 4), and the one after the last."""
    boxes = boxes if boxes.device.type == "mps" else boxes.double()
    x, y = ((boxes[..., :2] + boxes[..., 2:]) / 2)[..., None].unbind(-2)
    width, height = ((boxes[..., 2:] - boxes[..., :2]).clamp(min=0) * scale / 2)[..., None].unbind(-2)
    rows = torch.arange(size[0], device=boxes.device)
    away = (rows + 0.5 - y).abs()
    reach = width
    if shape == "ellipse":
        reach = width * (1 - (away / height.clamp(min=EDGE)) ** 2).clamp(min=0).sqrt()
    reach = torch.where(away <= height + EDGE, reach + EDGE, -1)
    start, stop = (x - reach - 0.5).ceil(), (x + reach + 0.5).floor()
    # An object that no pixel's centre lies in has the pixel that its own centre lies in.
    middle = (rows == y.floor()) & (start >= stop)
    start, stop = torch.where(middle, x.floor(), start), torch.where(middle, x.floor() + 1, stop)
    start, stop = (edge.clamp(0, size[1]).long() for edge in (start, stop))
    return start, torch.maximum(start, stop)


def _covered(spans: tuple[Tensor, Tensor], labels: Tensor, classes: int, width: int) -> Tensor:
    """(B, C, H, W) whether a span (B, G, H) of a label (B, G) lies there: more start up to there than end."""
    start, _ = spans
    batch, _, height = start.shape
    changes = torch.zeros(batch, classes, height, width + 1, dtype=torch.int32, device=start.device)
    image, y = (torch.arange(count, device=start.device) for count in (batch, height))
    row = ((image[:, None, None] * classes + labels[..., None]) * height + y) * (width + 1)
    one = torch.ones_like(start, dtype=torch.int32).flatten()
    for x, change in zip(spans, (one, -one), strict=True):
        changes.view(-1).index_add_(0, (row + x).flatten(), change)
    return changes.cumsum(dim=3, dtype=torch.int32)[..., :-1] > 0


def _first(spans: tuple[Tensor, Tensor], width: int) -> Tensor:
    """(B, H, W) the first of the G spans (B, G, H) that lies there, or G.

    A span is two blocks, which may overlap, of the greatest power of two that fits into it. The blocks of each length
    are noted where they start; then, from the longest on, each is handed on as two of half its length.
    """
    start, stop = spans
    batch, objects, height = start.shape
    length = stop - start
    level = length.clamp(min=1).float().log2().long()
    levels = width.bit_length()
    blocks = torch.full((levels, batch, height, width), objects, dtype=torch.int32, device=start.device)
    image, y = (torch.arange(count, device=start.device) for count in (batch, height))
    row = ((level * batch + image[:, None, None]) * height + y) * width
    number = torch.arange(objects, dtype=torch.int32, device=start.device)[:, None]
    number = torch.where(length > 0, number, objects).flatten()
    for x in (start, stop - 2**level):
        blocks.view(-1).scatter_reduce_(0, (row + x.clamp(0, width - 1)).flatten(), number, "amin")
    for k in range(levels - 1, 0, -1):
        half, halves = 2 ** (k - 1), blocks[k - 1]
        torch.minimum(halves, blocks[k], out=halves)
        torch.minimum(halves[..., half:], blocks[k][..., :-half], out=halves[..., half:])
    return blocks[0].long()
