"""Ways to rank candidates: each turns them into scores (K, C), best highest, for `suppress`."""

from __future__ import annotations

from torch import Tensor

from tightbox.boxes import at_least_float32
from tightbox.errors import UserError
from tightbox.structures import Candidates


def by_class_score(candidates: Candidates) -> Tensor:
    """The class scores (K, C) as they are: RetinaNet, and VFNet, whose class score is the IoU estimate.

    >>> import torch
    >>> by_class_score(Candidates(torch.zeros(1, 4), class_scores=torch.tensor([[0.9, 0.0]])))
    tensor([[0.9000, 0.0000]])
    """
    return at_least_float32(candidates.class_scores)


def by_power(candidates: Candidates, alpha: float = 0.5) -> Tensor:
    """p^α · u^(1−α) (K, C), u being the estimated IoU (IoU-aware RetinaNet, https://arxiv.org/abs/1912.05992).

    α = 1 gives back p and α = 0 gives u; an estimate under 0 counts as 0.

    Args:
        candidates: with `ious` (K,), or (K, C) for an estimate of each class.
        alpha: weight of the class score, in [0, 1].

    Raises:
        UserError: if `alpha` is out of range, or the candidates have no IoUs.

    >>> import torch
    >>> by_power(Candidates(torch.zeros(1, 4), class_scores=torch.tensor([[0.9, 0.0]]), ious=torch.tensor([0.4])))
    tensor([[0.6000, 0.0000]])
    """
    if not 0 <= alpha <= 1:
        raise UserError(f"by_power: alpha is {alpha}; it must lie in [0, 1]")
    if candidates.ious is None:
        raise UserError("by_power: this detector predicts no IoU; rank by its class score instead")
    ious = candidates.ious if candidates.ious.dim() == 2 else candidates.ious[:, None]
    return by_class_score(candidates) ** alpha * at_least_float32(ious).clamp(min=0) ** (1 - alpha)


def by_centerness(candidates: Candidates) -> Tensor:
    """Class score × centerness (K, C), FCOS's ranking (https://arxiv.org/abs/1904.01355); UserError without one.

    >>> import torch
    >>> by_centerness(Candidates(torch.zeros(1, 4), torch.tensor([[0.9, 0.0]]), centerness=torch.tensor([0.5])))
    tensor([[0.4500, 0.0000]])
    """
    if candidates.centerness is None:
        raise UserError("by_centerness: this detector predicts no centerness; rank by its class score instead")
    return by_class_score(candidates) * at_least_float32(candidates.centerness)[:, None]
