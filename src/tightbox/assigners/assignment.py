"""What the assigners share: the two numbers that are no object, and the ways to assign a batch."""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from tightbox.boxes import area, at_least_float32, intersection_union
from tightbox.structures import Targets

BACKGROUND = -1  # in place of the index of the object that an anchor or point learns
IGNORED = -2  # likewise, of what shall count neither as an object nor as background
PAIRS_AT_ONCE = 2**25  # of an object and an anchor: a number for each is 134 MB


def in_parts(assign: Callable[[slice], Tensor], targets: Sequence[Targets], anchors: int) -> Tensor:
    """The assignment (B, N) of a batch from those of its parts, which are assigned one after another.

    As many images are assigned together as have at most `PAIRS_AT_ONCE` pairs, or else one. All count as many objects
    as the one with the most, since they are padded to that; an ignored region, with its corners, is four objects.
    """
    of_one = max(len(image) + 4 * len(image.ignore) for image in targets) * anchors
    at_once = max(1, PAIRS_AT_ONCE // max(1, of_one))
    return torch.cat([assign(slice(i, i + at_once)) for i in range(0, len(targets), at_once)])


def padded_boxes(targets: Sequence[Targets]) -> Tensor:
    """(B, G, 4) the objects of each image, and zeros: these have no area, and no anchor has its centre inside."""
    return at_least_float32(pad_sequence([image.boxes for image in targets], batch_first=True))


def in_regions(anchors: Tensor, targets: Sequence[Targets], ignore_iof: float | None) -> Tensor | None:
    """(B, N) whether more than this fraction of an anchor, (N, 4) or (B, N, 4), lies in one region of `ignore`.

    None if there are no regions, or they are not asked for.
    """
    if ignore_iof is None or not any(len(image.ignore) for image in targets):
        return None
    regions = pad_sequence([image.ignore for image in targets], batch_first=True)
    intersections, _ = intersection_union(anchors[..., None, :], regions[:, None])  # (B, N, I)
    return (intersections > ignore_iof * area(anchors)[..., None]).any(dim=2)
