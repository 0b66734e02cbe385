"""Focal loss on sigmoid outputs: cross-entropy that neglects what is already classified well.

RetinaNet, https://arxiv.org/abs/1708.02002.
"""

from typing import cast

from torch import Tensor
from torchvision.ops import sigmoid_focal_loss

from tightbox.boxes import at_least_float32
from tightbox.errors import UserError


def focal_loss(logits: Tensor, target: Tensor, alpha: float = 0.25, gamma: float = 2.0) -> Tensor:
    """−α_t (1 − p_t)^γ ln p_t (...) (equation 5), p_t being the probability given to the truth.

    Args:
        logits: (...) raw outputs.
        target: (...) 0 or 1, or anything between for soft labels.
        alpha: weight of the positives, in [0, 1]; the negatives get 1 − α.
        gamma: focusing exponent, 0 or at least 1 (between the two the gradient at p_t = 1 is infinite).

    Raises:
        UserError: if `alpha` or `gamma` is out of range.

    >>> import torch
    >>> focal_loss(torch.tensor([0.0, 0.0]), torch.tensor([1.0, 0.0]))
    tensor([0.0433, 0.1300])
    """
    if not 0 <= alpha <= 1:
        raise UserError(f"focal loss: alpha is {alpha}; it must lie in [0, 1]")
    if gamma != 0 and not gamma >= 1:
        raise UserError(f"focal loss: gamma is {gamma}; it must be 0 or at least 1")
    logits = at_least_float32(logits)
    return cast(Tensor, sigmoid_focal_loss(logits, target.to(logits.dtype), alpha, gamma))
