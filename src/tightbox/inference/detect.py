"""Running a detector over a data set."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Unpack

import torch

from tightbox.data.records import DetectionData
from tightbox.evaluation.coco import CocoMetrics, evaluate
from tightbox.evaluation.inputs import GroundTruth, Predictions
from tightbox.inference.batches import How, batches
from tightbox.models import Detector
from tightbox.structures import Detections

if TYPE_CHECKING:
    from accelerate import Accelerator


@torch.inference_mode()
def detect_data(
    model: Detector, data: DetectionData, *, accelerator: Accelerator | None = None, **how: Unpack[How]
) -> dict[int, Detections]:
    """Detections of every record, by its index, in pixels of the original images; all processes get all of them.

    Args:
        model: used in evaluation mode; its mode is restored.
        data: the records.
        accelerator: spreads the work over its processes; without it, one process does it all.
        how: as for `batches`.
    """
    indices = range(len(data.records))
    if accelerator is not None:
        indices = indices[accelerator.process_index :: accelerator.num_processes]
    found: list[tuple[int, Detections]] = []
    for batch in batches(model, data, indices=indices, **how):
        found += batch.in_original(model.detect(batch.images), data)
    if accelerator is not None and accelerator.num_processes > 1:
        from accelerate.utils import gather_object

        found = gather_object(found)
    return dict(sorted(found, key=lambda pair: pair[0]))


def to_results(detections: Mapping[int, Detections], data: DetectionData) -> list[dict[str, Any]]:
    """Rows of a COCO result file, with the data set's own image and category ids."""
    rows = []
    for index, found in detections.items():
        rows += found.to_coco(data.records[index].image_id, data.category_ids)
    return rows


def evaluate_detections(detections: Mapping[int, Detections], data: DetectionData) -> CocoMetrics:
    """COCO metrics of the detections of a data set's records, by their index."""
    return evaluate(GroundTruth.from_data(data), Predictions.from_detections(detections, data))


def evaluate_model(
    model: Detector, data: DetectionData, *, accelerator: Accelerator | None = None, **how: Unpack[How]
) -> CocoMetrics:
    """COCO metrics of a detector on records with its classes; the arguments are those of `detect_data`."""
    return evaluate_detections(detect_data(model, data, accelerator=accelerator, **how), data)
