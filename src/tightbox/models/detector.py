"""What every detector here can do: learn from a batch, give candidates, detect, predict on anything, save itself."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn
from torchvision.transforms.v2 import functional as TF

from tightbox.calibration import Calibration
from tightbox.checkpoint import save
from tightbox.errors import UserError
from tightbox.images import open_image, to_rgb
from tightbox.models.backbone import Backbone
from tightbox.options import Preprocess
from tightbox.rank import Rank, best_of_levels
from tightbox.structures import Candidates, Detections, ImageBatch, Targets
from tightbox.suppress import Suppress, greedy_nms

Images = ImageBatch | Sequence[Tensor]
ImageLike = str | Path | Image.Image | np.ndarray | Tensor


class Detector(nn.Module, ABC):
    """The surface shared by all four systems; a subclass supplies the paper.

    Args:
        backbone: gives features at `strides(options)`.
        class_names: the classes, in the order of their labels.
        options: the paper's choices; its published ones if not given.
        preprocess: how images are resized.

    Attributes:
        class_layers: how the names of the weights begin that depend on the classes.
        metrics: figures of the run that made it, carried in its card.
        calibration: what `tightbox calibrate` learned, carried in its card too; None if it was not run.
    """

    name: ClassVar[str]
    default_backbone: ClassVar[str] = "resnet50"
    Options: ClassVar[type[Any]]
    class_layers: ClassVar[tuple[str, ...]] = ("head.classes.",)
    backbone: Backbone
    options: Any

    def __init__(
        self,
        *,
        backbone: Backbone,
        class_names: Sequence[str],
        options: Any = None,
        preprocess: Preprocess | None = None,
    ) -> None:
        super().__init__()
        if len(set(class_names)) != len(class_names) or not class_names:
            raise UserError(f"class names must be given and all different, not {list(class_names)}")
        self.class_names = tuple(class_names)
        self.options = self.Options() if options is None else options
        self.preprocess = preprocess or Preprocess()
        self.backbone = backbone
        self.metrics: dict[str, Any] = {}
        self.calibration: Calibration | None = None

    @abstractmethod
    def loss(self, images: Images, targets: Sequence[Targets]) -> dict[str, Tensor]:
        """The terms of the training loss, by name; their sum is minimised."""

    @classmethod
    def strides(cls, options: Any) -> tuple[int, ...]:
        """Strides of the backbone's features that a model with these options is built on."""
        return (8, 16, 32)

    def candidates(self, images: Images) -> list[Candidates]:
        """Every box that may be ranked, image by image, in pixels of the given images."""
        return [candidates for candidates, _ in self.assigned_candidates(images)]

    @abstractmethod
    def assigned_candidates(
        self, images: Images, targets: Sequence[Targets] | None = None
    ) -> list[tuple[Candidates, Tensor]]:
        """The candidates, and for each the index (K,) of the object that it would learn in training, or -1.

        With targets, every candidate that learns an object is among them, however low its score.
        """

    @abstractmethod
    def rank(self, candidates: Candidates) -> Tensor:
        """The system's own ranking (K, C), as published."""

    def suppress(self, candidates: Candidates, scores: Tensor) -> Detections:
        """The system's own suppression, as published: greedy class-wise NMS unless it says otherwise."""
        return self.greedy_nms(candidates, scores)

    def greedy_nms(self, candidates: Candidates, scores: Tensor) -> Detections:
        """Greedy class-wise NMS at the thresholds of the model's options."""
        return greedy_nms(
            candidates,
            scores,
            iou_threshold=self.options.nms_iou,
            score_threshold=self.options.score_threshold,
            max_detections=self.options.max_detections,
        )

    def select(self, candidates: Candidates, rank: Rank | None = None, suppress: Suppress | None = None) -> Detections:
        """Detections of one image by the system's own ranking and suppression, or by other rules; IoUs are raw."""
        scores = (rank or self.rank)(candidates)
        return (suppress or self.suppress)(*best_of_levels(candidates, scores, self.options.top_k))

    @torch.no_grad()
    def detect(self, images: Images) -> list[Detections]:
        """Detections of each image, best first, in pixels of the given images (which are not resized).

        Their predicted IoUs are calibrated, if the detector is. That comes last and changes no ranking.
        """
        found = self._detect(images)
        return found if self.calibration is None else [self.calibration(detections) for detections in found]

    def _detect(self, images: Images) -> list[Detections]:
        """The same as the paper has it, with raw estimates."""
        return [self.select(candidates) for candidates in self.candidates(images)]

    @torch.no_grad()
    def predict(self, images: ImageLike | Sequence[ImageLike]) -> Any:
        """Detections in anything a person has, in pixels of the original images.

        Args:
            images: a path, a PIL image, an (H, W, 3) uint8 array, a (3, H, W) tensor (uint8, or float in [0, 1]),
                or a list of these.

        Returns:
            Detections for one image, a list of Detections for a list.

        Raises:
            UserError: if an image cannot be read or has an unusable shape; the sentence names it.
        """
        if isinstance(images, (list, tuple)):
            return [self._predict_one(image) for image in images]
        return self._predict_one(images)  # type: ignore[arg-type]

    def _predict_one(self, image: ImageLike) -> Detections:
        pixels = as_pixels(image)
        height, width = pixels.shape[-2:]
        training = self.training
        self.eval()
        try:
            resized = resize(pixels, self.preprocess).to(self.backbone.mean.device)
            found = self.detect([resized])[0].to("cpu")
        finally:
            self.train(training)
        return found.resized((resized.shape[-2], resized.shape[-1]), (height, width))

    def save(self, path: str | Path) -> Path:
        """Write the checkpoint folder `path`: weights in safetensors and a readable card."""
        return save(self, Path(path))

    def _normalise(self, images: Images) -> tuple[Tensor, tuple[tuple[int, int], ...]]:
        """Pixels by the backbone's statistics, the padding exactly zero, in channels-last layout (fast on CPU)."""
        batch = images if isinstance(images, ImageBatch) else ImageBatch.of(images)
        pixels = (batch.pixels - self.backbone.mean) / self.backbone.std
        for image, (height, width) in zip(pixels, batch.sizes, strict=True):
            image[:, height:] = 0
            image[:, :, width:] = 0
        return pixels.contiguous(memory_format=torch.channels_last), batch.sizes


def as_pixels(image: ImageLike) -> Tensor:
    """A (3, H, W) float tensor in [0, 1] from a path, PIL image, array or tensor.

    Raises:
        UserError: if it is none of these, or has an unusable shape.
    """
    if isinstance(image, (str, Path)):
        image = open_image(Path(image))
    if isinstance(image, Image.Image):
        image = np.asarray(to_rgb(image))
    if isinstance(image, np.ndarray):
        if image.ndim != 3 or image.shape[2] != 3 or image.dtype != np.uint8:
            raise UserError(f"an array must be (H, W, 3) uint8 RGB, not {image.shape} {image.dtype}")
        image = torch.from_numpy(np.array(image)).permute(2, 0, 1)
    if not isinstance(image, Tensor):
        raise UserError(f"cannot make an image of a {type(image).__name__}; give a path, PIL image, array or tensor")
    if image.ndim != 3 or image.shape[0] != 3 or 0 in image.shape:
        raise UserError(f"an image tensor must be (3, H, W), not {tuple(image.shape)}")
    if not image.is_floating_point() and image.dtype != torch.uint8:
        raise UserError(f"an image tensor must be uint8, or float in [0, 1], not {image.dtype}")
    return image.float() if image.is_floating_point() else image.float() / 255


def resize(pixels: Tensor, preprocess: Preprocess) -> Tensor:
    """Pixels (3, H, W) resized into the model's size, keeping their shape."""
    height, width = pixels.shape[-2:]
    scale = preprocess.scale(width, height)
    size = [max(1, round(height * scale)), max(1, round(width * scale))]
    resized: Tensor = TF.resize(pixels, size, antialias=True)
    return resized
