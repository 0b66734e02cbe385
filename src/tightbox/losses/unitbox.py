"""UnitBox's two losses of the distances from a pixel to the sides of its box: −ln IoU, and the ℓ2 that it improves on.

UnitBox, https://arxiv.org/abs/1608.01471, section 2, algorithm 1 and equations 3 to 7.
"""

import torch
from torch import Tensor

from tightbox.boxes import at_least_float32


def unitbox_iou_loss(pred: Tensor, target: Tensor, eps: float = 1e-6) -> Tensor:
    """−ln IoU (...) of the boxes that reach so far around one pixel; for UnitBox's ReLU see `floored_relu`.

    It is −ln of the shared width, −ln of the shared height and ln of the union. Each of the three has a gradient of its
    own as long as it is above `eps`, however small the IoU is; below that it has none, and no loss is NaN or infinite.
    `iou_loss` is the same for boxes, but has no gradient below an IoU of 1e-6.

    Args:
        pred: (..., 4) predicted distances l, t, r, b in pixels.
        target: (..., 4) true ones.
        eps: least shared width and height, in pixels, and least union, in square pixels.

    >>> unitbox_iou_loss(torch.tensor([2.0, 3.0, 7.0, 5.0]), torch.tensor([3.0, 4.0, 6.0, 4.0]))
    tensor(0.4520)
    """
    pred, target = at_least_float32(pred), at_least_float32(target)
    shared = _sides(torch.minimum(pred, target))
    union = _sides(pred).prod(-1) + _sides(target).prod(-1) - shared.prod(-1)
    return union.clamp(min=eps).log() - shared.clamp(min=eps).log().sum(-1)


def _sides(distances: Tensor) -> Tensor:
    """Width and height (..., 2); 0 for a side that is inverted."""
    return (distances[..., :2] + distances[..., 2:]).clamp(min=0)


def l2_distance_loss(pred: Tensor, target: Tensor) -> Tensor:
    """The sum (...) of (x − x̃)² over the four sides; unlike an IoU loss it grows with the square of the object's size.

    DenseBox, https://arxiv.org/abs/1509.04874.

    Args:
        pred: (..., 4) predicted distances to the four sides.
        target: (..., 4) true ones, in the same order.

    >>> l2_distance_loss(torch.tensor([2.0, 3.0, 7.0, 5.0]), torch.tensor([3.0, 4.0, 6.0, 4.0]))
    tensor(4.)
    """
    return (at_least_float32(pred) - at_least_float32(target)).square().sum(-1)
