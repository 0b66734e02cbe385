"""Records on disk to batches in memory."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import KW_ONLY, dataclass
from itertools import count

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler

from tightbox.data.records import DetectionData
from tightbox.data.transforms import GREY, Sample, TrainTransform, resize
from tightbox.errors import UserError
from tightbox.images import UnreadableImage, open_image
from tightbox.options import Preprocess
from tightbox.structures import ImageBatch, Targets

Item = tuple[Tensor, Targets, int]
# Epoch and index; where the clock decides how long the training is, also the fraction of it that is over.
Key = tuple[int, int, *tuple[float, ...]]


@dataclass(eq=False)
class DetectionDataset(Dataset[Item]):
    """Images with their targets, resized for a model; with a transform, changed at random first.

    Args:
        data: the records.
        preprocess: the size images are fitted into.
        transform: the random changes; None for evaluation.
        seed: of the changes.
        epochs: length of the whole training, so that changes may depend on how far it is, if keys do not say it.
        cache_mb: decoded images are kept in memory up to this size.
        skip_unreadable: go on past an image that cannot be read, and note its index in `skipped`: in training the next
            one that can be read takes its place; in evaluation a grey one, so that its objects count as missed.
    """

    data: DetectionData
    preprocess: Preprocess
    _: KW_ONLY
    transform: TrainTransform | None = None
    seed: int = 0
    epochs: int = 1
    cache_mb: int = 0
    skip_unreadable: bool = False

    def __post_init__(self) -> None:
        self.skipped: set[int] = set()
        self._cache: dict[int, Tensor] = {}
        self._free = self.cache_mb * 2**20

    def __len__(self) -> int:
        return len(self.data.records)

    def __getitem__(self, key: Key) -> Item:
        """Pixels (3, H, W) uint8, targets and index of the sample with this key."""
        epoch, index, *clock = key
        if self.transform is None:
            sample = self._load(index)
            sample = resize(sample, self.preprocess.scale(sample.size[1], sample.size[0]))
        else:
            with torch.random.fork_rng(devices=[]):
                torch.manual_seed(int(np.random.SeedSequence([self.seed, epoch, index]).generate_state(1)[0]))
                sample = self.transform(self._load, index, len(self), clock[0] if clock else self._over(epoch))
        object_ = ~sample.crowd
        targets = Targets.of(sample.boxes[object_], sample.labels[object_], sample.boxes[sample.crowd])
        return sample.image, targets, index

    def _over(self, epoch: int) -> float:
        """The fraction of the training that is over; all of it where there are only epochs after its end."""
        return epoch / self.epochs if self.epochs else 1.0

    def _load(self, index: int) -> Sample:
        """A sample; in training the next that can be read, where this one cannot."""
        image = self._try(index)
        while image is None and self.transform is not None:
            index = next(i % len(self) for i in count(index + 1) if i % len(self) not in self.skipped)
            image = self._try(index)
        record = self.data.records[index]
        if image is None:
            image = torch.full((3, record.height, record.width), GREY, dtype=torch.uint8)
        boxes, labels, crowd = (torch.from_numpy(a) for a in (record.boxes, record.labels, record.crowd))
        return Sample(image, boxes, labels, crowd)

    def _try(self, index: int) -> Tensor | None:
        """The image, or None and a line about it if it cannot be read and may be skipped."""
        try:
            return self._pixels(index)
        except UnreadableImage as error:
            if not self.skip_unreadable:
                raise UserError(f"{error}, or do without such images: --skip-unreadable true") from error
            if index not in self.skipped:
                self.skipped.add(index)
                print(f"skipped: {error}", flush=True)
            if len(self.skipped) == len(self):
                where = f"the {self.data.split} split of {self.data.root}"
                raise UserError(f"not one image of {where} can be read; run tightbox doctor on it") from error
            return None

    def _pixels(self, index: int) -> Tensor:
        if index in self._cache:
            return self._cache[index]
        record = self.data.records[index]
        image = open_image(record.path, (record.width, record.height))
        pixels = torch.from_numpy(np.array(image)).permute(2, 0, 1).contiguous()
        if pixels.nbytes <= self._free:
            self._free -= pixels.nbytes
            self._cache[index] = pixels
        return pixels


@dataclass(eq=False)
class EpochBatches(Sampler[list[Key]]):
    """Batches of keys in an order that is a function of seed and epoch alone.

    Args:
        count: number of samples.
        batch_size: samples a batch; a last smaller batch is dropped unless it is the only one.
        seed: of the order.
        fraction: tells the part of the training that is over, where that is not a matter of epochs.

    Attributes:
        epoch: which epoch the next iteration gives.
        start: how many batches of it to pass over, when a training is resumed in the middle of an epoch.
    """

    count: int
    batch_size: int
    seed: int
    fraction: Callable[[], float] | None = None
    drop_last = True

    def __post_init__(self) -> None:
        self.batch_size = min(self.batch_size, self.count)
        self.epoch = self.start = 0

    def __len__(self) -> int:
        return self.count // self.batch_size

    def __iter__(self) -> Iterator[list[Key]]:
        generator = torch.Generator().manual_seed(self.seed * 1_000_003 + self.epoch)
        order = torch.randperm(self.count, generator=generator).tolist()
        for i in range(self.start, len(self)):
            chosen = order[i * self.batch_size : (i + 1) * self.batch_size]
            over = () if self.fraction is None else (self.fraction(),)
            yield [(self.epoch, j, *over) for j in chosen]


def collate(items: Sequence[Item]) -> tuple[ImageBatch, list[Targets], list[int]]:
    """Items to one batch."""
    images, targets, indices = zip(*items, strict=True)
    return ImageBatch.of(images), list(targets), list(indices)


def evaluation_loader(
    dataset: DetectionDataset, indices: Sequence[int], batch_size: int, workers: int
) -> DataLoader[Item]:
    """Batches of the given samples; images of like shape go together, so that little is padded."""
    records = dataset.data.records
    order = sorted(indices, key=lambda i: (records[i].width / max(records[i].height, 1), i))
    batches = [[(0, i) for i in order[k : k + batch_size]] for k in range(0, len(order), batch_size)]
    pin = torch.cuda.is_available()
    return DataLoader(dataset, batch_sampler=batches, collate_fn=collate, num_workers=workers, pin_memory=pin)
