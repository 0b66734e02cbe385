"""COCO's 80 classes, in the order of their category ids."""

from __future__ import annotations

from torchvision.models.detection import FasterRCNN_ResNet50_FPN_Weights

_NO_CLASSES = ("__background__", "N/A")  # what torchvision has where COCO has no such category id
_CATEGORIES: list[str] = FasterRCNN_ResNet50_FPN_Weights.COCO_V1.meta["categories"]
COCO_CLASSES = tuple(name for name in _CATEGORIES if name not in _NO_CLASSES)
