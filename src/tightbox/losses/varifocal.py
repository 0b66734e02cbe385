"""Varifocal loss: trains the class score to be the IoU of the box (the IACS of VarifocalNet).

VarifocalNet, https://arxiv.org/abs/2008.13367.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from tightbox.boxes import at_least_float32


def varifocal_loss(
    logits: Tensor, target: Tensor, alpha: float = 0.75, gamma: float = 2.0, iou_weighted: bool = True
) -> Tensor:
    """Cross-entropy (...) of p = sigmoid(logits) with q, times q where q > 0 and times αp^γ where q = 0 (equation 2).

    Only negatives are down-weighted; a positive counts by its own quality q. The gradient runs through p^γ as well.

    Args:
        logits: (...) raw outputs.
        target: (...) q: the IoU of the predicted box at the true class of a positive, 0 elsewhere.
        alpha: weight of the negatives.
        gamma: focusing exponent of the negatives.
        iou_weighted: without it positives have weight 1 (the paper's ablation).

    >>> varifocal_loss(torch.tensor([0.0, 0.0]), torch.tensor([0.8, 0.0]))
    tensor([0.5545, 0.1300])
    """
    logits = at_least_float32(logits)
    target = target.to(logits.dtype)
    positive_weight = target if iou_weighted else torch.ones_like(target)
    # p^γ by way of ln p: where p underflows to 0 and γ < 1, the gradient of pow would be NaN.
    negative_weight = alpha * (gamma * F.logsigmoid(logits)).exp()
    weight = torch.where(target > 0, positive_weight, negative_weight)
    return weight * F.binary_cross_entropy_with_logits(logits, target, reduction="none")
