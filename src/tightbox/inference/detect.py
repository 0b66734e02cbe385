"""Running a detector over a data set."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import torch

from tightbox.data.records import DetectionData
from tightbox.evaluation.coco import CocoMetrics, evaluate
from tightbox.evaluation.inputs import GroundTruth, Predictions
from tightbox.inference.batches import LOADING, Loading, Progress, batches
from tightbox.models import Detector
from tightbox.structures import Detections

if TYPE_CHECKING:
    from accelerate import Accelerator


@torch.inference_mode()
def detect_data(
    model: Detector,
    data: DetectionData,
    *,
    accelerator: Accelerator | None = None,
    loading: Loading = LOADING,
    progress: Progress | None = None,
) -> dict[int, Detections]:
    """Detections of every record, by its index, in pixels of the original images; all processes get all of them.

    Args:
        model: used in evaluation mode; its mode is restored.
        data: the records.
        accelerator: spreads the work over its processes; without it, one process does it all.
        loading: how; nothing is found in unreadable images that are skipped.
        progress: called with the number of images done and their total.
    """
    indices = range(len(data.records))
    if accelerator is not None:
        indices = indices[accelerator.process_index :: accelerator.num_processes]
    found: list[tuple[int, Detections]] = []
    for batch in batches(model, data, indices=indices, loading=loading, progress=progress):
        for index, size, detections in zip(batch.indices, batch.images.sizes, model.detect(batch.images), strict=True):
            found.append((index, detections.to("cpu").resized(size, data.records[index].size)))
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
    model: Detector,
    data: DetectionData,
    *,
    accelerator: Accelerator | None = None,
    loading: Loading = LOADING,
    progress: Progress | None = None,
) -> CocoMetrics:
    """COCO metrics of a detector on records with its classes; the arguments are those of `detect_data`."""
    found = detect_data(model, data, accelerator=accelerator, loading=loading, progress=progress)
    return evaluate_detections(found, data)
