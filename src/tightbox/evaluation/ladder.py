"""The ladder: what AP would be if one output at a time were the truth, and how well the numbers tell the true IoU."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import ArrayLike

from tightbox.evaluation.coco import AveragePrecision, evaluate
from tightbox.evaluation.figures import difference
from tightbox.evaluation.inputs import GroundTruth, Predictions
from tightbox.evaluation.matching import match
from tightbox.evaluation.reliability import Correlation, correlation

ON_OBJECT = 0.5  # IoU from which a box is taken to be on an object; correlations are of boxes above it, as in IoU-Net

# The oracle variants, by what is replaced. Not every study has all of them.
AS_PREDICTED = "as predicted"
TRUE_CENTERNESS = "centerness := true centerness"
CENTERNESS_IOU = "centerness := true IoU"
TRUE_PREDICTED_IOU = "predicted IoU := true IoU"
NEAREST_IOU = "every predicted IoU := IoU with the nearest object"
TRUE_BOX = "box := ground-truth box"
CLASS_SCORE_ONE = "class score := 1"
TRUE_IOU_SCORE = "class score := true IoU"
OF_ESTIMATES = {TRUE_CENTERNESS, CENTERNESS_IOU, TRUE_PREDICTED_IOU, NEAREST_IOU}  # no change without the estimate


@dataclass(frozen=True)
class OracleVariant:
    """AP with one output replaced by the truth; None where a replacement cannot change it.

    Attributes:
        name: what is replaced.
        alone: ranked by the class score alone, greedy suppression; of final boxes, as they are.
        with_estimate: by the detector's own rules, with its localisation estimate; None without one.
    """

    name: str
    alone: AveragePrecision | None
    with_estimate: AveragePrecision | None

    @property
    def own(self) -> AveragePrecision | None:
        """By the detector's own rules, whichever they are."""
        return self.with_estimate or self.alone


@dataclass(frozen=True)
class Ladder:
    """All oracle variants of a study.

    Attributes:
        variants: what is replaced, and what comes of it; `AS_PREDICTED` is the first.
        correlations: by "score" and "predicted IoU", how well they tell the true IoU.
    """

    variants: tuple[OracleVariant, ...]
    correlations: dict[str, Correlation]

    def __getitem__(self, name: str) -> OracleVariant:
        """The variant of this name; KeyError if the study has none such."""
        return {variant.name: variant for variant in self.variants}[name]

    @property
    def lost_to_ranking(self) -> float | None:
        """AP with the class score replaced by the true IoU, minus the AP as it is."""
        ideal, now = self[TRUE_IOU_SCORE].alone, self[AS_PREDICTED].own
        return None if ideal is None or now is None else difference(ideal.ap, now.ap)


def results_ladder(
    ground_truth: GroundTruth, predictions: Predictions, done: Callable[[], None] = lambda: None
) -> Ladder:
    """That of any tool's final boxes; a box stands for the object of its class that it overlaps most, from 0.5 on.

    What was suppressed is not in such a file. So nothing can take the place of a box whose score is lowered, objects
    without a box stay missed, and second boxes on an object stay false: this studies the ranking of these boxes only.

    Args:
        ground_truth: what is in the images.
        predictions: what was found there.
        done: called after each variant.
    """
    # Of all boxes, also of those beyond the hundredth of an image, which a better score would bring forward.
    matches = match(ground_truth, predictions, (), max_detections=None)
    best, target = np.zeros(len(predictions)), np.full(len(predictions), -1)
    best[matches.rows], target[matches.rows] = matches.best_iou, matches.best_gt
    on = best >= ON_OBJECT
    boxes = predictions.boxes.copy()
    boxes[on] = ground_truth.boxes[target[on]]
    replaced = {
        AS_PREDICTED: predictions,
        TRUE_BOX: replace(predictions, boxes=boxes),
        CLASS_SCORE_ONE: replace(predictions, scores=np.where(on, 1.0, predictions.scores)),
        TRUE_IOU_SCORE: replace(predictions, scores=np.where(on, best, predictions.scores)),
    }
    variants = []
    for name, changed in replaced.items():
        variants.append(OracleVariant(name, AveragePrecision.of_coco(evaluate(ground_truth, changed)), None))
        done()
    pairs = {"score": (predictions.scores, best)} if len(predictions) else {}
    if len(predictions) and not np.isnan(predictions.ious).any():
        pairs["predicted IoU"] = (predictions.ious, best)
    return Ladder(tuple(variants), correlations(pairs))


def correlations(pairs: Mapping[str, tuple[ArrayLike, ArrayLike]]) -> dict[str, Correlation]:
    """Those of each name's predictions with true IoUs, (N,) each, over the boxes on an object."""
    return {name: correlation(predicted, true_ious, above=ON_OBJECT) for name, (predicted, true_ious) in pairs.items()}
