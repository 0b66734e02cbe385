"""A detector for CVAT's automatic annotation; each box carries its predicted IoU as an attribute.

`cvat-cli` loads it as a module and makes the function by `create`:

    cvat-cli task auto-annotate 137 --function-module tightbox.integrations.cvat \
        -p checkpoint=str:runs/first/best --allow-unmatched-labels
"""

from __future__ import annotations

from collections.abc import Sequence

import cvat_sdk.auto_annotation as cvat
import PIL.Image
from cvat_sdk import models

from tightbox.inference.files import Selection
from tightbox.integrations.load import load_on
from tightbox.models import Detector

SCORE_THRESHOLD = 0.3  # that of `tightbox predict`, where CVAT asks for none
PREDICTED_IOU = "predicted_iou"  # in per cent, as CVAT's numbers are whole
SCORE = "score"  # in per cent too
_IDS = {PREDICTED_IOU: 0, SCORE: 1}


class Function:
    """What CVAT calls for each frame.

    Args:
        model: the detector.
        min_iou: boxes with a lower predicted IoU are left out; None keeps all.

    Attributes:
        spec: the labels, one for each class, with their attributes.
    """

    def __init__(self, model: Detector, min_iou: float | None = None) -> None:
        self._model = model
        self._min_iou = min_iou
        self.spec = cvat.DetectionFunctionSpec(
            labels=[
                cvat.label_spec(name, i, type="rectangle", attributes=[_percentage(a) for a in _IDS])
                for i, name in enumerate(model.class_names)
            ]
        )

    def detect(
        self, context: cvat.DetectionFunctionContext, image: PIL.Image.Image
    ) -> Sequence[models.LabeledShapeRequest]:
        """Rectangles in one frame, above the confidence that CVAT asks for."""
        threshold = SCORE_THRESHOLD if context.conf_threshold is None else context.conf_threshold
        found = Selection(threshold, self._min_iou)(self._model.predict(image))
        ious = [None] * len(found) if found.ious is None else found.ious.tolist()
        return [
            cvat.rectangle(label, box, attributes=_attributes(score, iou))
            for box, label, score, iou in zip(
                found.boxes.tolist(), found.labels.tolist(), found.scores.tolist(), ious, strict=True
            )
        ]


def create(checkpoint: str, device: str = "auto", min_iou: float | None = None) -> Function:
    """The function of a checkpoint folder, as `cvat-cli` makes it from its `-p` options.

    Raises:
        UserError: if there is no checkpoint.
    """
    return Function(load_on(checkpoint, SCORE_THRESHOLD, device), min_iou)


def _percentage(name: str) -> models.AttributeRequest:
    return cvat.number_attribute_spec(name, _IDS[name], ["0", "100", "1"])


def _attributes(score: float, iou: float | None) -> list[models.AttributeValRequest]:
    values = {SCORE: score} if iou is None else {PREDICTED_IOU: iou, SCORE: score}
    return [models.AttributeValRequest(spec_id=_IDS[name], value=str(round(100 * v))) for name, v in values.items()]
