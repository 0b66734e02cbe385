"""Running a detector over a data set: its images in batches, as every such run needs them, and what is found there."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple, TypedDict, Unpack

import torch

from tightbox.data.dataset import DetectionDataset, evaluation_loader
from tightbox.data.records import DetectionData
from tightbox.evaluation.coco import CocoMetrics, evaluate
from tightbox.evaluation.inputs import GroundTruth, Predictions
from tightbox.models import Detector
from tightbox.models.evaluation_mode import evaluation_mode
from tightbox.progress import Progress, silent
from tightbox.structures import Detections, ImageBatch, Targets

if TYPE_CHECKING:
    from accelerate import Accelerator


class Loading(NamedTuple):
    """How images are loaded.

    Attributes:
        batch_size: images at a time.
        workers: processes that load images; 0 loads in this one.
        skip_unreadable: take images that cannot be read for grey ones, instead of stopping.
    """

    batch_size: int = 8
    workers: int = 0
    skip_unreadable: bool = False


LOADING = Loading()


class How(TypedDict, total=False):
    """The choices that every run of a network over a data set leaves to its caller.

    Attributes:
        loading: how the images are loaded; nothing is found in unreadable ones that are skipped.
        progress: called with the number of images done and their total.
    """

    loading: Loading
    progress: Progress


class Batch(NamedTuple):
    """Resized images on the model's device, their targets, and the indices of their records."""

    images: ImageBatch
    targets: list[Targets]
    indices: list[int]

    def in_original(self, found: Iterable[Detections], data: DetectionData) -> Iterator[tuple[int, Detections]]:
        """What was found in each image, on the CPU and in pixels of the original, with the index of its record."""
        for index, size, detections in zip(self.indices, self.images.sizes, found, strict=True):
            yield index, detections.to("cpu").resized(size, data.records[index].size)


def batches(
    model: Detector, data: DetectionData, *, indices: Sequence[int] | None = None, **how: Unpack[How]
) -> Iterator[Batch]:
    """The images of a data set, resized for a model, which is in evaluation mode between them.

    Args:
        model: whose preprocessing and device; its mode is restored at the end.
        data: the records.
        indices: which of them; all by default. Images of like shape come together, whatever their order here.
        how: `loading` and `progress`.

    Raises:
        UserError: if an image cannot be read.
    """
    loading, progress = how.get("loading", LOADING), how.get("progress", silent)
    dataset = DetectionDataset(data, model.preprocess, skip_unreadable=loading.skip_unreadable)
    chosen = range(len(dataset)) if indices is None else indices
    device, done = model.device, 0
    with evaluation_mode(model):
        for images, targets, numbers in evaluation_loader(dataset, chosen, loading.batch_size, loading.workers):
            yield Batch(images.to(device), [target.to(device) for target in targets], numbers)
            done += len(numbers)
            progress(done, len(chosen))


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
    columns = ((found, data.records[index].image_id) for index, found in detections.items())
    return [row for found, image_id in columns for row in found.to_coco(image_id, data.category_ids)]


def evaluate_detections(detections: Mapping[int, Detections], data: DetectionData) -> CocoMetrics:
    """COCO metrics of the detections of a data set's records, by their index."""
    return evaluate(GroundTruth.from_data(data), Predictions.from_detections(detections, data))


def evaluate_model(
    model: Detector, data: DetectionData, *, accelerator: Accelerator | None = None, **how: Unpack[How]
) -> CocoMetrics:
    """COCO metrics of a detector on records with its classes; the arguments are those of `detect_data`."""
    return evaluate_detections(detect_data(model, data, accelerator=accelerator, **how), data)
