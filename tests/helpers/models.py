"""Detectors small enough to build and run in a blink, and the images and objects to show them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from timm.models.resnet import Bottleneck, ResNet
from torch import Tensor, nn

from tightbox.models import Detector, IoUAwareRetinaNet, IoUNet, UnitBox, VFNet, create_model
from tightbox.models.backbone import Backbone
from tightbox.models.mmdet import export_state
from tightbox.models.rpn import RPN, RPNOutput
from tightbox.options import BackboneOptions, Preprocess
from tightbox.structures import Detections, ImageBatch, Targets

BACKBONE = BackboneOptions(name="test_resnet", pretrained=False)
STRIDES = (8, 16, 32, 64, 128)
NOTHING = Targets.of(torch.zeros(0, 4), torch.zeros(0))


def tiny_model(**changes: Any) -> Detector:
    """A VFNet of two classes, 32 channels, images of 64 pixels, which reports boxes before any training.

    Arguments go to `create_model`.
    """
    return create_model("vfnet", **(_small() | changes))


def tiny_retinanet(seed: int = 0, **changes: Any) -> IoUAwareRetinaNet:
    """The same of the IoU-aware RetinaNet."""
    torch.manual_seed(seed)
    model = create_model("iou_aware_retinanet", **(_small() | changes))
    assert isinstance(model, IoUAwareRetinaNet)
    return model


def _small() -> dict[str, Any]:
    return {
        "class_names": ["cat", "dog"],
        "backbone": BACKBONE,
        "preprocess": Preprocess(long_side=64, short_side=64),
        "channels": 32,
        "tower_depth": 1,
        "score_threshold": 0.0,
        "max_detections": 20,
    }


def tiny_iou_net(**changes: Any) -> IoUNet:
    """Three classes, images of 64 pixels, and every (proposal, class) pair above 0.2, a little under chance."""
    torch.manual_seed(0)
    options: dict[str, Any] = {"channels": 8, "fc_channels": 16, "proposals": 20, "train_proposals": 50, "rois": 16}
    options |= {"jittered_boxes": 12, "score_threshold": 0.2, "anchor_scale": 4.0}
    options |= {"class_names": ["cat", "dog", "owl"], "preprocess": Preprocess(long_side=64, short_side=64)}
    model = create_model("iou_net", backbone=BACKBONE, **(options | changes))
    assert isinstance(model, IoUNet)
    return model.eval()


def tiny_unitbox(classes: int = 1, **options: Any) -> UnitBox:
    """Images of 64 pixels; arguments go to `create_model`."""
    torch.manual_seed(0)
    names = {} if "class_names" in options else {"num_classes": classes}
    preprocess = Preprocess(long_side=64, short_side=64)
    model = create_model("unitbox", backbone=BACKBONE, preprocess=preprocess, **(names | options))
    assert isinstance(model, UnitBox)
    return model


def frozen_norm_vfnet(class_names: tuple[str, ...], seed: int = 0) -> Detector:
    """Batch norms are frozen: their statistics are the one thing that depends on how a batch is shared out."""
    torch.manual_seed(seed)
    return create_model(
        "vfnet",
        class_names=class_names,
        backbone=BackboneOptions(name="test_efficientnet", pretrained=False, frozen_norm=True),
        preprocess=Preprocess(long_side=64, short_side=64),
        channels=32,
        tower_depth=1,
    )


def small_vfnet(classes: int = 3, **options: Any) -> VFNet:
    """A VFNet on ResNet-18, if nothing else is asked for, with a narrow head."""
    names = [f"class {i}" for i in range(classes)]
    small: dict[str, Any] = {"channels": 64, "tower_depth": 1, "backbone": "resnet18", "pretrained_backbone": False}
    model = create_model("vfnet", class_names=names, **small | options)
    assert isinstance(model, VFNet)
    return model


def small_state(**options: Any) -> dict[str, Tensor]:
    """Its state dict as mmdetection would have written it."""
    return export_state(small_vfnet(**options))


class TinyResNet50(Backbone):
    """The reference values' ResNet-50 of 8 channels: stem and first stage frozen, batch norms in evaluation mode."""

    def __init__(self) -> None:
        super().__init__(BackboneOptions(name="resnet50", pretrained=False, frozen_stages=1, frozen_norm=True))
        self.body = _Features(Bottleneck, (3, 4, 6, 3), channels=(8, 16, 32, 64))
        self.channels = [64, 128, 256]
        self.mean, self.std = self.mean * 0, self.std * 0 + 1  # the reference images are normalised already
        for name in ("conv1", "bn1", "layer1"):
            getattr(self.body, name).requires_grad_(False)


class _Features(ResNet):  # type: ignore[misc]  # timm has no types
    """timm's ResNet with a stem as narrow as its stages, giving C3 to C5."""

    def __init__(self, *args: object, **kwargs: object) -> None:
        super().__init__(*args, **kwargs)
        self.conv1 = nn.Conv2d(3, 8, 7, stride=2, padding=3, bias=False)
        self.bn1 = nn.BatchNorm2d(8)
        first = self.layer1[0]
        first.conv1 = nn.Conv2d(8, 8, 1, bias=False)
        first.downsample[0] = nn.Conv2d(8, 32, 1, bias=False)
        del self.fc
        self.feature_info: Any = _Info(self.feature_info)

    def forward(self, x: Tensor) -> list[Tensor]:
        c2 = self.layer1(self.maxpool(self.act1(self.bn1(self.conv1(x)))))
        c3 = self.layer2(c2)
        c4 = self.layer3(c3)
        return [c3, c4, self.layer4(c4)]


class _Info:
    def __init__(self, info: list[dict[str, object]]) -> None:
        self.info = info


def proposals(rpn: RPN, output: RPNOutput, sizes: Tensor, count: int) -> list[Tensor]:
    """Those of each image, without what pads them."""
    with torch.no_grad():
        boxes, proposed = rpn.proposals(output, sizes, count)
    return [of_image[real] for of_image, real in zip(boxes, proposed, strict=True)]


def image_batch(*sizes: tuple[int, int]) -> ImageBatch:
    """Random images of (height, width)."""
    return ImageBatch.of([torch.rand(3, *size) for size in sizes])


def objects(*boxes: tuple[float, float, float, float], ignore: list[list[float]] | None = None) -> Targets:
    """Objects whose labels alternate between 0 and 1."""
    labels = torch.arange(len(boxes)) % 2
    return Targets.of(torch.tensor(boxes), labels, None if ignore is None else torch.tensor(ignore))


def targets_of(
    *boxes: tuple[float, ...], labels: list[int] | None = None, ignore: Tensor | Sequence[tuple[float, ...]] = ()
) -> Targets:
    """Objects, of class 0 unless said, and regions."""
    return Targets.of(torch.tensor(boxes), torch.tensor(labels or [0] * len(boxes)), torch.as_tensor(ignore))


def exact_targets(boxes: Tensor, ignore: Tensor | None = None) -> Targets:
    """Objects of class 0, and regions, in the precision that is given."""
    ignore = boxes.new_zeros(0, 4) if ignore is None else ignore
    return Targets(boxes, torch.zeros(len(boxes), dtype=torch.int64), ignore)


def level_sizes(height: int, width: int) -> list[tuple[int, int]]:
    """The padded image's sides over each stride, rounded up at every halving."""
    return [(math.ceil(height / s), math.ceil(width / s)) for s in STRIDES]


def same_detections(a: Detections, b: Detections) -> bool:
    """Whether there are any, and boxes, scores and labels are equal bit by bit."""
    return len(a) > 0 and a.boxes.equal(b.boxes) and a.scores.equal(b.scores) and a.labels.equal(b.labels)
