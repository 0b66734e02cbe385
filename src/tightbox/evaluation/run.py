"""Running a detector over a data set."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import gather_object

from tightbox.data.dataset import DetectionDataset, evaluation_loader
from tightbox.data.records import DetectionData
from tightbox.evaluation.coco import CocoMetrics, evaluate
from tightbox.models import Detector
from tightbox.structures import Detections


@torch.inference_mode()
def detect_data(
    model: Detector,
    data: DetectionData,
    *,
    accelerator: Accelerator | None = None,
    batch_size: int = 8,
    workers: int = 0,
    skip_unreadable: bool = False,
    progress: Callable[[int, int], None] | None = None,
) -> dict[int, Detections]:
    """Detections of every record, by its index, in pixels of the original images; all processes get all of them.

    Args:
        model: used in evaluation mode; its mode is restored.
        data: the records.
        accelerator: shares the work among processes and names the device; without it, one process on the model's.
        batch_size: images at a time.
        workers: processes that load images.
        skip_unreadable: find nothing in images that cannot be read, instead of stopping.
        progress: called with the number of images done and their total.
    """
    dataset = DetectionDataset(data, model.preprocess, skip_unreadable=skip_unreadable)
    share = list(range(len(dataset)))
    device = next(model.parameters()).device
    if accelerator is not None:
        share = share[accelerator.process_index :: accelerator.num_processes]
    found: list[tuple[int, Detections]] = []
    training = model.training
    model.eval()
    for images, _, indices in evaluation_loader(dataset, share, batch_size, workers):
        for index, size, raw in zip(indices, images.sizes, model.detect(images.to(device)), strict=True):
            record = data.records[index]
            found.append((index, raw.to("cpu").resized(size, (record.height, record.width))))
        if progress is not None:
            progress(len(found), len(share))
    model.train(training)
    if accelerator is not None and accelerator.num_processes > 1:
        found = gather_object(found)
    return dict(sorted(found, key=lambda pair: pair[0]))


def to_results(found: dict[int, Detections], data: DetectionData) -> list[dict[str, Any]]:
    """Rows of a COCO result file, with the data set's own image and category ids."""
    rows = []
    for index, detections in found.items():
        rows += detections.to_coco(data.records[index].image_id, data.category_ids)
    return rows


def evaluate_model(
    model: Detector,
    data: DetectionData,
    accelerator: Accelerator | None = None,
    *,
    batch_size: int = 8,
    skip_unreadable: bool = False,
) -> CocoMetrics:
    """COCO metrics of a detector on records with its classes; the arguments are those of `detect_data`."""
    found = detect_data(model, data, accelerator=accelerator, batch_size=batch_size, skip_unreadable=skip_unreadable)
    return evaluate(data.to_coco(), to_results(found, data))
