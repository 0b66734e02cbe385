"""A data set's images in batches, as every run of a network over one needs them."""

from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

from tightbox.data.dataset import DetectionDataset, evaluation_loader
from tightbox.data.records import DetectionData
from tightbox.models import Detector
from tightbox.models.evaluation_mode import evaluation_mode
from tightbox.structures import ImageBatch, Targets

Progress = Callable[[int, int], None]


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


class Batch(NamedTuple):
    """Resized images on the model's device, their targets, and the indices of their records."""

    images: ImageBatch
    targets: list[Targets]
    indices: list[int]


def batches(
    model: Detector,
    data: DetectionData,
    *,
    indices: Sequence[int] | None = None,
    loading: Loading = LOADING,
    progress: Progress | None = None,
) -> Iterator[Batch]:
    """The images of a data set, resized for a model, which is in evaluation mode between them.

    Args:
        model: whose preprocessing and device; its mode is restored at the end.
        data: the records.
        indices: which of them; all by default. Images of like shape come together, whatever their order here.
        loading: how.
        progress: called with the number of images done and their total.

    Raises:
        UserError: if an image cannot be read.
    """
    dataset = DetectionDataset(data, model.preprocess, skip_unreadable=loading.skip_unreadable)
    chosen = range(len(dataset)) if indices is None else indices
    device, done = model.device, 0
    with evaluation_mode(model):
        for images, targets, numbers in evaluation_loader(dataset, chosen, loading.batch_size, loading.workers):
            yield Batch(images.to(device), [target.to(device) for target in targets], numbers)
            done += len(numbers)
            if progress is not None:
                progress(done, len(chosen))
