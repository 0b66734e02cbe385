"""Random changes to training images, and the plain resize for evaluation.

Every draw comes from torch's global generator, which the data set seeds per image: the same seed, epoch and index
give the same pixels however many worker processes there are.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Tensor
from torchvision import tv_tensors
from torchvision.transforms import v2
from torchvision.transforms.v2 import functional as TF

from tightbox.options import AugmentOptions, Preprocess

MIN_VISIBLE = 0.3  # fraction of an object that a crop must leave for the object to count
GREY = 114  # fills what no image covers
SIDE_CROP = 0.75  # fraction of each side that a crop of sides keeps at least
# Of cutout: the fewest and the most holes, and their (height, width) in pixels, nowhere far from square.
HOLES, _SIDES = (5, 10), (4, 8, 16, 32, 48)
HOLE_SIZES = [(height, width) for i, height in enumerate(_SIDES) for width in _SIDES[max(0, i - 1) : i + 2]]


@dataclass(frozen=True, eq=False)
class Sample:
    """An image with its annotation.

    Attributes:
        image: (3, H, W) uint8 RGB.
        boxes: (G, 4) float boxes.
        labels: (G,) int64 classes.
        crowd: (G,) bool, whether a box is a region to be ignored.
    """

    image: Tensor
    boxes: Tensor
    labels: Tensor
    crowd: Tensor

    @property
    def size(self) -> tuple[int, int]:
        """Height and width."""
        return self.image.shape[-2], self.image.shape[-1]


def resize(sample: Sample, factor: float) -> Sample:
    """The sample resized by a factor, with antialiasing."""
    height, width = sample.size
    new_height, new_width = max(1, round(height * factor)), max(1, round(width * factor))
    image = TF.resize(sample.image, [new_height, new_width], antialias=True)
    boxes = sample.boxes * sample.boxes.new_tensor([new_width / width, new_height / height] * 2)
    return Sample(image, boxes, sample.labels, sample.crowd)


class TrainTransform:
    """Mosaic or a single image; random crop, scale, flips and colour; onto the size the model is trained at.

    Args:
        augment: what may happen, and how often.
        preprocess: the size an image fits into when nothing happens to it.
    """

    def __init__(self, augment: AugmentOptions, preprocess: Preprocess) -> None:
        self.augment = augment
        self.preprocess = preprocess
        self.iou_crop = v2.RandomIoUCrop()
        strength = augment.color
        self.color = v2.ColorJitter(strength, strength, strength, 0.1 * strength)

    def __call__(self, load: Callable[[int], Sample], index: int, count: int, progress: float) -> Sample:
        """One training sample.

        Args:
            load: gives the sample of an index.
            index: which sample to change.
            count: how many there are, for a mosaic's other three.
            progress: fraction of the training that is over.
        """
        augment = self.augment
        sample = load(index)
        scale = self.preprocess.scale(sample.size[1], sample.size[0])
        canvas = (max(1, round(sample.size[0] * scale)), max(1, round(sample.size[1] * scale)))
        if progress < augment.mosaic_until and _chance(augment.mosaic):
            others = [load(int(i)) for i in torch.randint(count, (3,))]
            sample = self._mosaic([sample, *others], canvas)
        else:
            if _chance(augment.crop) and len(sample.boxes):
                sample = self._iou_crop(sample)
            if augment.side_crop > 0 and _chance(augment.side_crop):
                sample = _side_crop(sample)
            sample = self._place(sample, canvas)
        if augment.cutout > 0 and _chance(augment.cutout):
            sample = replace(sample, image=_cutout(sample.image))
        if _chance(augment.flip):
            sample = _flip(sample, axis=0)
        if _chance(augment.vertical_flip):
            sample = _flip(sample, axis=1)
        if augment.color > 0:
            sample = Sample(self.color(sample.image), sample.boxes, sample.labels, sample.crowd)
        return sample

    def _place(self, sample: Sample, canvas: tuple[int, int]) -> Sample:
        """The sample at a random scale, cut to the canvas at a random place; a smaller one is left smaller."""
        low, high = self.augment.scale_min, self.augment.scale_max
        factor = low * (high / low) ** float(torch.rand(()))
        return _cut(resize(sample, self.preprocess.scale(sample.size[1], sample.size[0]) * factor), canvas)

    def _mosaic(self, samples: list[Sample], canvas: tuple[int, int]) -> Sample:
        """Four samples around a random point of the canvas, each cut to its quarter."""
        height, width = canvas
        y, x = (int(side * float(torch.empty(()).uniform_(0.3, 0.7))) for side in canvas)
        image = torch.full((3, height, width), GREY, dtype=torch.uint8)
        parts = []
        corners = [(0, 0, y, x), (0, x, y, width), (y, 0, height, x), (y, x, height, width)]
        for sample, (top, left, bottom, right) in zip(samples, corners, strict=True):
            part = self._place(sample, (max(1, bottom - top), max(1, right - left)))
            part_height, part_width = part.size
            image[:, top : top + part_height, left : left + part_width] = part.image
            parts.append(Sample(image, part.boxes + part.boxes.new_tensor([left, top] * 2), part.labels, part.crowd))
        return Sample(image, *(torch.cat([getattr(p, name) for p in parts]) for name in ("boxes", "labels", "crowd")))

    def _iou_crop(self, sample: Sample) -> Sample:
        if min(sample.size) < 4:  # three tenths of it, the smallest crop, would be nothing
            return sample
        boxes = tv_tensors.BoundingBoxes(sample.boxes, format="XYXY", canvas_size=sample.size)
        params = self.iou_crop.make_params([tv_tensors.Image(sample.image), boxes])
        if not params:  # the draw was to leave the image whole
            return sample
        cropped = _window(sample, params["top"], params["left"], params["height"], params["width"])
        # SSD asks only that the centre of an object remains, which may be less than MIN_VISIBLE of it.
        return cropped if len(cropped.boxes) else sample


def _chance(probability: float) -> bool:
    return float(torch.rand(())) < probability


def _cut(sample: Sample, canvas: tuple[int, int]) -> Sample:
    """A random window of at most the canvas's size."""
    height, width = (min(side, limit) for side, limit in zip(sample.size, canvas, strict=True))
    if (height, width) == sample.size:
        return sample
    top = int(torch.randint(sample.size[0] - height + 1, ()))
    left = int(torch.randint(sample.size[1] - width + 1, ()))
    return _window(sample, top, left, height, width)


def _side_crop(sample: Sample) -> Sample:
    """A random window of at least `SIDE_CROP` of each side; the sample itself where that leaves none of its objects."""
    low = [math.ceil(SIDE_CROP * side) for side in sample.size]
    height, width = (int(torch.randint(least, side + 1, ())) for least, side in zip(low, sample.size, strict=True))
    cropped = _cut(sample, (height, width))
    return cropped if len(cropped.boxes) or not len(sample.boxes) else sample


def _cutout(image: Tensor) -> Tensor:
    """The image (3, H, W) with black holes, which may reach over its right and lower border."""
    image = image.clone()
    for _ in range(int(torch.randint(HOLES[0], HOLES[1] + 1, ()))):
        top, left = (int(torch.randint(side, ())) for side in image.shape[-2:])
        height, width = HOLE_SIZES[int(torch.randint(len(HOLE_SIZES), ()))]
        image[:, top : top + height, left : left + width] = 0
    return image


def _window(sample: Sample, top: int, left: int, height: int, width: int) -> Sample:
    """The part of a sample in a window; objects of which too little remains are dropped, crowds are not."""
    moved = sample.boxes - sample.boxes.new_tensor([left, top] * 2)
    clipped = torch.minimum(moved.clamp(min=0), moved.new_tensor([width, height] * 2))
    area, whole = ((b[:, 2] - b[:, 0]) * (b[:, 3] - b[:, 1]) for b in (clipped, moved))
    keep = (sample.crowd | (area >= MIN_VISIBLE * whole)) & (area > 0)
    image = sample.image[:, top : top + height, left : left + width]
    return Sample(image, clipped[keep], sample.labels[keep], sample.crowd[keep])


def _flip(sample: Sample, axis: int) -> Sample:
    """Mirrored left-right (axis 0) or top-bottom (axis 1)."""
    side = sample.size[1 - axis]
    boxes = sample.boxes.clone()
    boxes[:, [axis, axis + 2]] = side - boxes[:, [axis + 2, axis]]
    return Sample(sample.image.flip(2 - axis), boxes, sample.labels, sample.crowd)
