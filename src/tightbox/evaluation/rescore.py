"""Any tool's detections of a data set, judged and improved by an IoU head."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np
import torch

from tightbox.data.dataset import DetectionDataset, evaluation_loader
from tightbox.data.records import DetectionData
from tightbox.errors import UserError
from tightbox.evaluation.matching import Found, Truth
from tightbox.models.iou_net import IoUNet
from tightbox.rank import Rank
from tightbox.structures import Detections
from tightbox.suppress import Suppress


def by_record(found: Found, truth: Truth, data: DetectionData) -> dict[int, Detections]:
    """The detections of each record of `data`, by its index, with the labels of `data`.

    Args:
        found: detections, whose labels are positions in `truth.category_ids`.
        truth: of the same images.
        data: with the classes of the model that is to judge them.

    Raises:
        UserError: if a detection is of a class that `data` does not have.
    """
    label_of = {category: label for label, category in enumerate(data.category_ids)}
    table = np.array([label_of.get(category, -1) for category in truth.category_ids], dtype=np.int64)
    labels = table[found.labels]
    if (labels < 0).any():
        row = int(np.argmax(labels < 0))
        raise UserError(
            f"result {row + 1} is of category {truth.category_ids[found.labels[row]]}, a class that the model was not "
            f"trained on; it knows {', '.join(data.class_names)}: leave such rows out, or train a model that knows it"
        )
    corners = found.boxes.copy()
    corners[:, 2:] += corners[:, :2]
    order = np.argsort(found.images, kind="stable")
    rows_of = np.split(order, np.searchsorted(found.images[order], np.arange(1, len(truth.image_ids))))
    rows = dict(zip(truth.image_ids, rows_of, strict=True))
    return {
        index: Detections(
            torch.from_numpy(corners[rows[record.image_id]]).float(),
            torch.from_numpy(found.scores[rows[record.image_id]]).float(),
            torch.from_numpy(labels[rows[record.image_id]]),
        )
        for index, record in enumerate(data.records)
    }


@torch.inference_mode()
def rescore_data(
    model: IoUNet,
    data: DetectionData,
    detections: Mapping[int, Detections],
    *,
    rank: Rank | None = None,
    suppress: Suppress | None = None,
    refine_steps: int | None = None,
    batch_size: int = 8,
    progress: Callable[[int, int], None] | None = None,
) -> dict[int, Detections]:
    """`IoUNet.rescore` for the detections of every record, by its index, in pixels of the original images.

    Args:
        model: used in evaluation mode.
        data: the records, with the model's classes.
        detections: by the index of their record.
        rank: as for `IoUNet.rescore`, like the next two.
        suppress: likewise.
        refine_steps: likewise.
        batch_size: images at a time.
        progress: called with the number of images done and their total.
    """
    model.eval()
    dataset = DetectionDataset(data, model.preprocess)
    device = next(model.parameters()).device
    better: dict[int, Detections] = {}
    for images, _, indices in evaluation_loader(dataset, range(len(dataset)), batch_size, 0):
        originals = [(data.records[index].height, data.records[index].width) for index in indices]
        given = [
            detections[index].resized(original, size).to(device)
            for index, original, size in zip(indices, originals, images.sizes, strict=True)
        ]
        rescored = model.rescore(images.to(device), given, rank=rank, suppress=suppress, refine_steps=refine_steps)
        for index, original, size, found in zip(indices, originals, images.sizes, rescored, strict=True):
            better[index] = found.to("cpu").resized(size, original)
        if progress is not None:
            progress(len(better), len(dataset))
    return dict(sorted(better.items()))
