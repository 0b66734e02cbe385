"""A detector for CVAT's automatic annotation; each box carries its predicted IoU as an attribute.

`cvat-cli` loads it as a module and makes the function by `create`:

    cvat-cli task auto-annotate 137 --function-module tightbox.integrations.cvat \
        -p checkpoint=str:runs/first/best --allow-unmatched-labels
"""

from collections.abc import Sequence
from typing import Any

import cvat_sdk.auto_annotation as cvat
from cvat_sdk import models
from PIL import Image

from tightbox.inference.files import Selection, load_on
from tightbox.inference.formats import box_rows
from tightbox.models import Detector

SCORE_THRESHOLD = 0.3  # that of `tightbox predict`, where CVAT asks for none
# What it is here, and its name there, in per cent, as CVAT's numbers are whole; the position is its id.
ATTRIBUTES = (("iou", "predicted_iou"), ("score", "score"))


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
        numbers = [cvat.number_attribute_spec(name, i, ["0", "100", "1"]) for i, (_, name) in enumerate(ATTRIBUTES)]
        names = enumerate(model.class_names)
        labels = [cvat.label_spec(name, i, type="rectangle", attributes=numbers) for i, name in names]
        self.spec = cvat.DetectionFunctionSpec(labels=labels)

    def detect(
        self, context: cvat.DetectionFunctionContext, image: Image.Image
    ) -> Sequence[models.LabeledShapeRequest]:
        """Rectangles in one frame, above the confidence that CVAT asks for."""
        threshold = SCORE_THRESHOLD if context.conf_threshold is None else context.conf_threshold
        found = Selection(threshold, self._min_iou)(self._model.predict(image))
        return [
            cvat.rectangle(row["label"], row["box"], attributes=_percentages(row))
            for row in box_rows(found, self._model.class_names)
        ]


def _percentages(row: dict[str, Any]) -> list[models.AttributeValRequest]:
    known = ((i, row[key]) for i, (key, _) in enumerate(ATTRIBUTES) if key in row)
    return [models.AttributeValRequest(spec_id=i, value=str(round(100 * value))) for i, value in known]


def create(checkpoint: str, device: str = "auto", min_iou: float | None = None) -> Function:
    """The function of a checkpoint folder, as `cvat-cli` makes it from its `-p` options.

    Raises:
        UserError: if there is no checkpoint.
    """
    return Function(load_on(checkpoint, SCORE_THRESHOLD, device), min_iou)
