"""Any tool's detections of a data set, judged and improved by an IoU head."""

from collections.abc import Mapping
from typing import Unpack

import numpy as np
import torch

from tightbox.data.records import DetectionData
from tightbox.errors import UserError
from tightbox.evaluation.inputs import GroundTruth, Predictions
from tightbox.inference.detect import How, batches
from tightbox.models.iou_net import IoUNet
from tightbox.rank import Rank
from tightbox.structures import Detections
from tightbox.suppress import Suppress


def by_record(predictions: Predictions, ground_truth: GroundTruth, data: DetectionData) -> dict[int, Detections]:
    """The detections of each record of `data`, by its index, with the labels of `data`.

    Args:
        predictions: detections, whose labels are positions in `ground_truth.category_ids`.
        ground_truth: of the same images.
        data: with the classes of the model that is to judge them.

    Raises:
        UserError: if a detection is of a class that `data` does not have.
    """
    label_of = {category: label for label, category in enumerate(data.category_ids)}
    table = np.array([label_of.get(category, -1) for category in ground_truth.category_ids], dtype=np.int64)
    labels = table[predictions.labels]
    if (labels < 0).any():
        row = int(np.argmax(labels < 0))
        category = ground_truth.category_ids[predictions.labels[row]]
        raise UserError(
            f"result {row + 1} is of category {category}, a class that the model was not trained on; it knows "
            f"{', '.join(data.class_names)}: leave such rows out, or train a model that knows it"
        )
    corners = predictions.boxes.copy()
    corners[:, 2:] += corners[:, :2]
    order = np.argsort(predictions.images, kind="stable")
    rows_of = np.split(order, np.searchsorted(predictions.images[order], np.arange(1, len(ground_truth.image_ids))))
    rows = dict(zip(ground_truth.image_ids, map(torch.from_numpy, rows_of), strict=True))
    boxes, scores = torch.from_numpy(corners).float(), torch.from_numpy(predictions.scores).float()
    everything = Detections(boxes, scores, torch.from_numpy(labels))
    return {index: everything[rows[record.image_id]] for index, record in enumerate(data.records)}


@torch.inference_mode()
def rescore_data(
    model: IoUNet,
    data: DetectionData,
    detections: Mapping[int, Detections],
    *,
    rank: Rank | None = None,
    suppress: Suppress | None = None,
    refine_steps: int | None = None,
    **how: Unpack[How],
) -> dict[int, Detections]:
    """`IoUNet.rescore` for the detections of every record, by its index, in pixels of the original images.

    Args:
        model: used in evaluation mode.
        data: the records, with the model's classes.
        detections: by the index of their record.
        rank: as for `IoUNet.rescore`, like the next two.
        suppress: likewise.
        refine_steps: likewise.
        how: as for `batches`.
    """
    better: dict[int, Detections] = {}
    for batch in batches(model, data, **how):
        given = [
            detections[index].resized(data.records[index].size, size).to(model.device)
            for index, size in zip(batch.indices, batch.images.sizes, strict=True)
        ]
        rescored = model.rescore(batch.images, given, rank=rank, suppress=suppress, refine_steps=refine_steps)
        better.update(batch.in_original(rescored, data))
    return dict(sorted(better.items()))
