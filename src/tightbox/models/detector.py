"""What every detector here can do: learn from a batch, give candidates, detect, predict on anything, save itself."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, ClassVar, Self, TypeVar, cast, overload

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tightbox.calibration import Calibration
from tightbox.checkpoint import save_checkpoint
from tightbox.errors import UserError
from tightbox.models.backbone import Backbone
from tightbox.models.captured import captured, forget
from tightbox.models.evaluation_mode import evaluation_mode
from tightbox.models.prediction import Detect, ImageLike, predict_images
from tightbox.ops.csr import uses_triton
from tightbox.options import Preprocess
from tightbox.rank import Rank, best_of_levels
from tightbox.structures import DIVISOR, Candidates, Detections, ImageBatch, Targets, moved
from tightbox.suppress import Suppress, greedy_nms, greedy_nms_together, soft_nms

Images = ImageBatch | Sequence[Tensor]
Some = TypeVar("Some", bound=ImageLike)


class Detector(nn.Module, ABC):
    """The surface shared by all four systems; a subclass supplies the paper.

    Args:
        backbone: gives features at `strides(options)`.
        class_names: the classes, in the order of their labels.
        options: the paper's choices; its published ones if not given.
        preprocess: how images are resized.

    Attributes:
        class_layers: how the names of the weights begin that depend on the classes.
        all_together: whether it detects by greedy NMS among `best_candidates`, which takes no loop over the images.
        metrics: figures of the run that made it, carried in its card.
        views: how `detect` sees each image several times (`tightbox.inference.views`); None for once.
        calibration: what `tightbox calibrate` learned, carried in its card too; None if it was not run.
    """

    name: ClassVar[str]
    default_backbone: ClassVar[str] = "resnet50"
    Options: ClassVar[type[Any]]
    class_layers: ClassVar[tuple[str, ...]] = ("head.classes.",)
    all_together: ClassVar[bool] = False
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
        self.views: Callable[[Detect, ImageBatch, Any], list[Detections]] | None = None
        self.calibration: Calibration | None = None
        self.make_layers()
        self.to(memory_format=torch.channels_last)

    def make_layers(self) -> None:
        """Makes what the system has beside the backbone; the order of making is that of the random weights."""

    @abstractmethod
    def loss(self, images: Images, targets: Sequence[Targets]) -> dict[str, Tensor]:
        """The terms of the training loss, by name; their sum is minimised."""

    @classmethod
    def strides(cls, options: Any) -> tuple[int, ...]:
        """Strides of the backbone's features that a model with these options is built on."""
        return (8, 16, 32)

    @abstractmethod
    def candidates(self, images: Images) -> list[Candidates]:
        """Every box that may be ranked, image by image, in pixels of the given images."""

    def best_candidates(self, pixels: Tensor, sizes: Tensor) -> Candidates:
        """The candidates of several images together that the system's own ranking may choose: equally many of each.

        In operations on tensors alone, whose shapes do not depend on what is in the images, so that they can be
        exported. What is too many is of class score 0.

        Args:
            pixels: (B, 3, H, W) from `normalised`.
            sizes: (B, 2) true height and width of each image.

        Raises:
            UserError: from a detector that cannot be expressed so.
        """
        raise UserError(f"a detector of the kind {self.name} cannot be exported")

    @abstractmethod
    def assigned_candidates(self, images: Images, targets: Sequence[Targets]) -> list[tuple[Candidates, Tensor]]:
        """Candidates, and for each the index (K,) of the object that it would learn in training, or -1.

        For studies that ask what AP would be if a detector knew (`tightbox.inference.oracle`). Every candidate that
        learns an object is among them, however low its score; the others are those of `candidates`.
        """

    @abstractmethod
    def rank(self, candidates: Candidates) -> Tensor:
        """The system's own ranking (K, C), as published."""

    @property
    def suppression(self) -> str:
        """The rule of `suppress` that the options name; greedy where they name none."""
        return str(getattr(self.options, "suppress", "greedy"))

    def suppress(self, candidates: Candidates, scores: Tensor) -> Detections:
        """The system's own suppression: greedy class-wise NMS unless it or its options say otherwise."""
        if self.suppression == "soft_linear":
            return soft_nms(candidates, scores, **self._limits())
        return greedy_nms(candidates, scores, **self._limits(), voting=self.suppression == "voting")

    def greedy_nms(self, candidates: Candidates, scores: Tensor) -> Detections:
        """Greedy class-wise NMS at the thresholds of the model's options."""
        return greedy_nms(candidates, scores, **self._limits())

    def _limits(self) -> dict[str, Any]:
        options = self.options
        return {
            "iou_threshold": options.nms_iou,
            "score_threshold": options.score_threshold,
            "max_detections": options.max_detections,
        }

    def select(self, candidates: Candidates, rank: Rank | None = None, suppress: Suppress | None = None) -> Detections:
        """Detections of one image by the system's own ranking and suppression, or by other rules; IoUs are raw."""
        scores = (rank or self.rank)(candidates)
        return (suppress or self.suppress)(*best_of_levels(candidates, scores, self.options.top_k))

    @torch.no_grad()
    def detect(self, images: Images, *, replay: bool = False) -> list[Detections]:
        """Detections of each image, best first, in pixels of the given images (which are not resized).

        Their predicted IoUs are calibrated, if the detector is. That comes last and changes no ranking. What is merged
        from several views has no outer and inner boxes, as margins are learned from single views.

        Args:
            images: the images.
            replay: on a GPU, compute batches of a shape that came before by a CUDA graph, if the system allows it: a
                single image takes a fraction of the time. Hooks of its modules are not called then, and its modules
                must not be exchanged.
        """
        batch = images if isinstance(images, ImageBatch) else ImageBatch.of(images)
        if self.views is not None:
            found = self.views(self._detect, batch, self.options)
        elif self.all_together and self.suppression != "soft_linear":
            found = self._detect_together(batch, replay)
        else:
            found = self._detect(batch)
        if self.calibration is None:
            return found
        calibration = self.calibration if self.views is None else self.calibration.without_margins()
        return [calibration(detections) for detections in found]

    def _detect(self, images: Images) -> list[Detections]:
        """The same as the paper has it, with raw predicted IoUs."""
        return [self.select(candidates) for candidates in self.candidates(images)]

    def _detect_together(self, batch: ImageBatch, replay: bool) -> list[Detections]:
        """`_detect` where it takes no loop over the images."""
        arguments = batch.pixels, moved(torch.tensor(batch.sizes), batch.pixels.device)
        if replay and batch.pixels.is_cuda and uses_triton(batch.pixels):
            key = self.options, self.training
            boxes, scores, labels, counts, *ious = captured(self)(self._found_together, *arguments, key=key)
        else:
            boxes, scores, labels, counts, *ious = self._found_together(*arguments)
        return Detections(boxes, scores, labels, *ious).of_images(counts)

    def _found_together(self, pixels: Tensor, sizes: Tensor) -> Sequence[Tensor]:
        """Equally many boxes, scores and labels of each image, how many of these are detections, and IoUs, if any.

        By the system's own ranking and greedy NMS; a GPU is not waited for.
        """
        candidates = self.best_candidates(self.normalised(pixels, sizes), sizes)
        voting = self.suppression == "voting"
        found, counts = greedy_nms_together(candidates, self.rank(candidates), **self._limits(), voting=voting)
        return found.boxes, found.scores, found.labels, counts, *([] if found.ious is None else [found.ious])

    def _apply(self, fn: Any, recurse: bool = True) -> Self:
        forget(self)
        return cast(Self, super()._apply(fn, recurse))  # type: ignore[no-untyped-call]  # as PyTorch has it

    @overload
    def predict(self, images: ImageLike, *, batch_size: int = 8) -> Detections: ...

    @overload
    def predict(self, images: list[Some] | tuple[Some, ...], *, batch_size: int = 8) -> list[Detections]: ...

    @overload
    def predict(self, images: Iterator[ImageLike], *, batch_size: int = 8) -> Iterator[Detections]: ...

    def predict(
        self, images: ImageLike | Iterable[ImageLike], *, batch_size: int = 8
    ) -> Detections | list[Detections] | Iterator[Detections]:
        """Detections in anything a person has, in pixels of the original images.

        Args:
            images: a path, a PIL image, an array (H, W) or (H, W, C), or a tensor (C, H, W), where C is 1 (grey), 3
                (RGB) or 4 (RGB and opacity), of uint8, uint16, bool, or floats in [0, 1]; a list or tuple of these; or
                anything else that gives them one after another, of any length.
            batch_size: images that the network sees together; the results are those of one by one.

        Returns:
            Detections for one image, a list of them for a list, else an iterator, which reads as it goes.

        Raises:
            UserError: if an image cannot be read, has an unusable shape, or pixels that are NaN, infinite or out of
                range; the sentence names it. If the batch size is not positive.
        """
        if batch_size < 1:
            raise UserError(f"batch_size is {batch_size}; the network sees 1 image or more together")
        if isinstance(images, ImageLike) or not isinstance(images, Iterable):  # what is neither is refused there
            return next(predict_images(self.detect_here, [images], self.preprocess, batch_size=1))
        found = predict_images(self.detect_here, images, self.preprocess, batch_size)
        return list(found) if isinstance(images, (list, tuple)) else found

    def detect_here(self, images: ImageBatch) -> list[Detections]:
        """`detect` on the model's device and in evaluation mode, which is left again; the detections are on the CPU."""
        with evaluation_mode(self):
            return [found.to("cpu") for found in self.detect(images.to(self.device), replay=True)]

    @property
    def device(self) -> torch.device:
        """Where its weights are."""
        return self.backbone.mean.device

    def save(self, path: str | Path) -> Path:
        """Write the checkpoint folder `path`: weights in safetensors and a readable card.

        Raises:
            UserError: if the disk refuses.
        """
        card = {
            "model": self.name,
            "class_names": list(self.class_names),
            "backbone": asdict(self.backbone.options),
            "options": asdict(self.options),
            "preprocess": asdict(self.preprocess),
            "metrics": self.metrics,
            "calibration": None if self.calibration is None else self.calibration.to_json(),
        }
        return save_checkpoint(Path(path), self.state_dict(), card)

    def _refuse_misfits(self, images: Images, targets: Sequence[Targets]) -> None:
        """UserError if there are not as many targets as images, or, unless a GPU would be waited for, wrong labels."""
        given = len(targets)
        if given != len(images) or given == 0:
            raise UserError(f"a loss takes targets for each of one or more images, not {given} for {len(images)}")
        labels = torch.cat([target.labels for target in targets])
        if not uses_triton(labels) and ((labels < 0) | (labels >= len(self.class_names))).any():
            wrong = f"there are labels from {int(labels.min())} to {int(labels.max())}"
            raise UserError(f"{wrong}, but this detector's classes are 0 to {len(self.class_names) - 1}; correct them")

    def _normalise(self, images: Images) -> tuple[Tensor, Tensor]:
        """What `normalised` makes of the images, and their sizes (B, 2)."""
        batch = images if isinstance(images, ImageBatch) else ImageBatch.of(images)
        sizes = moved(torch.tensor(batch.sizes), batch.pixels.device)
        return self.normalised(batch.pixels, sizes), sizes

    def normalised(self, images: Tensor, sizes: Tensor) -> Tensor:
        """Pixels by the backbone's statistics, 0 outside the images, padded to whole cells.

        Args:
            images: (B, 3, H, W) RGB in [0, 1], each at the top left; what lies outside does not count.
            sizes: (B, 2) true height and width of each.

        Returns:
            (B, 3, H, W) in channels-last layout (fast on a CPU), H and W rounded up to a multiple of 32.
        """
        height, width = images.shape[-2:]
        y, x = (torch.arange(side, device=images.device) for side in (height, width))
        inside = (y < sizes[:, :1])[:, None, :, None] & (x < sizes[:, 1:])[:, None, None]
        images = images.to(self.backbone.mean.dtype)
        pixels = torch.where(inside, (images - self.backbone.mean) / self.backbone.std, 0)
        pixels = F.pad(pixels, (0, -width % DIVISOR, 0, -height % DIVISOR))
        return pixels.contiguous(memory_format=torch.channels_last)
