"""A data set's images in batches, as every run of a network over one needs them."""

from collections.abc import Iterable, Iterator, Sequence
from typing import NamedTuple, TypedDict, Unpack

from tightbox.data.dataset import DetectionDataset, evaluation_loader
from tightbox.data.records import DetectionData
from tightbox.models import Detector
from tightbox.models.evaluation_mode import evaluation_mode
from tightbox.progress import Progress, silent
from tightbox.structures import Detections, ImageBatch, Targets


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
