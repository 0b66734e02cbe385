"""The ℓ2 loss of distances that UnitBox compares its IoU loss with (DenseBox's).

UnitBox, https://arxiv.org/abs/1608.01471, section 2; DenseBox, https://arxiv.org/abs/1509.04874.
"""

from torch import Tensor

from tightbox.boxes import at_least_float32
from tightbox.losses.iou import Reduction, reduced


def l2_distance_loss(pred: Tensor, target: Tensor, reduction: Reduction = "none") -> Tensor:
    """The sum of (x − x̃)² over the four sides; unlike an IoU loss it grows with the square of the object's size.

    Args:
        pred: (..., 4) predicted distances to the four sides.
        target: (..., 4) true ones, in the same order.
        reduction: "none" gives (...); "sum" and "mean" a scalar; anything else raises UserError.

    >>> import torch
    >>> l2_distance_loss(torch.tensor([2.0, 3.0, 7.0, 5.0]), torch.tensor([3.0, 4.0, 6.0, 4.0]))
    tensor(4.)
    """
    difference = at_least_float32(pred) - at_least_float32(target)
    return reduced(difference.square().sum(-1), reduction)
