"""Ways to rank candidates: each turns them into scores (K, C), best highest, for `suppress`."""

from collections.abc import Callable

import torch
from torch import Tensor

from tightbox.boxes import at_least_float32
from tightbox.errors import UserError
from tightbox.structures import Candidates

Rank = Callable[[Candidates], Tensor]


def by_class_score(candidates: Candidates) -> Tensor:
    """The class scores (K, C) as they are: RetinaNet, and VFNet, whose class score is the IoU estimate.

    >>> import torch
    >>> by_class_score(Candidates(torch.zeros(1, 4), class_scores=torch.tensor([[0.9, 0.0]])))
    tensor([[0.9000, 0.0000]])
    """
    return at_least_float32(candidates.class_scores)


def by_power(candidates: Candidates, alpha: float = 0.5) -> Tensor:
    """p^α · u^(1−α) (K, C), u being the predicted IoU (IoU-aware RetinaNet, https://arxiv.org/abs/1912.05992).

    α = 1 gives back p and α = 0 gives u; a predicted IoU under 0 counts as 0.

    Args:
        candidates: with `ious` (K,), or (K, C) for one per class.
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
    ious = candidates.ious
    if ious.dim() < candidates.class_scores.dim():
        ious = ious[..., None]
    return by_class_score(candidates) ** alpha * at_least_float32(ious).clamp(min=0) ** (1 - alpha)


def by_centerness(candidates: Candidates) -> Tensor:
    """Class score × centerness (K, C), FCOS's ranking (https://arxiv.org/abs/1904.01355); UserError without one.

    >>> import torch
    >>> by_centerness(Candidates(torch.zeros(1, 4), torch.tensor([[0.9, 0.0]]), centerness=torch.tensor([0.5])))
    tensor([[0.4500, 0.0000]])
    """
    if candidates.centerness is None:
        raise UserError("by_centerness: this detector predicts no centerness; rank by its class score instead")
    return by_class_score(candidates) * at_least_float32(candidates.centerness)[..., None]


def best_of_levels(candidates: Candidates, scores: Tensor, top_k: int) -> tuple[Candidates, Tensor]:
    """The candidates of each pyramid level whose best score over the classes is among the level's `top_k`.

    Dense detectors rank before they suppress, level by level, so that small objects do not crowd out large ones.
    Candidates without levels are one level.

    Args:
        candidates: K of them.
        scores: (K, C) what to rank by.
        top_k: how many of each level stay.

    Returns:
        Those candidates, in their old order, and their rows of `scores`.

    >>> scores = torch.tensor([[0.5, 0.0], [0.2, 0.1], [0.0, 0.3]])
    >>> found, kept = best_of_levels(Candidates(torch.zeros(3, 4), scores, levels=torch.tensor([0, 0, 1])), scores, 1)
    >>> kept, found.levels
    (tensor([[0.5000, 0.0000],
            [0.0000, 0.3000]]), tensor([0, 1]))
    """
    if scores.shape[1] == 0:
        return candidates, scores
    levels = candidates.levels
    if levels is None:
        levels = torch.zeros(len(scores), dtype=torch.int64, device=scores.device)
    best = scores.amax(dim=1).nan_to_num(-torch.inf)  # topk takes NaN for the highest
    keep = torch.ones_like(levels, dtype=torch.bool)
    for level in range(int(levels.max()) + 1 if len(levels) else 0):
        rows = (levels == level).nonzero().squeeze(1)
        if len(rows) > top_k:
            keep[rows] = False
            keep[rows[best[rows].topk(top_k).indices]] = True
    return candidates[keep], scores[keep]
