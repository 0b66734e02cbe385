"""Published layouts, and files such as mmdetection writes."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from tightbox.models import VFNet, create_model
from tightbox.models.mmdet import export_state

VARIANTS = [
    "r50", "r50_mdconv", "r101", "r101_mdconv", "x101_32x4d", "x101_32x4d_mdconv", "x101_64x4d", "x101_64x4d_mdconv",
    "r2_101", "r2_101_mdconv",
]  # fmt: skip


def layout(shared: Path, variant: str) -> dict[str, Any]:
    """Configuration, number of parameters, and the shape of every entry of a published file."""
    layouts = json.loads((shared / "goldens" / "zoo_layouts.json").read_text(encoding="utf-8"))
    assert list(layouts) == VARIANTS
    found: dict[str, Any] = layouts[variant]
    return found


def weights(shared: Path, variant: str, seed: int) -> dict[str, Tensor]:
    """The reference weights of a variant, which are drawn from their names."""
    spec = importlib.util.spec_from_file_location("weights_from_names", shared / "goldens" / "weights_from_names.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    drawn = module.weights_from_names(layout(shared, variant)["shapes"], seed)
    return {name: torch.from_numpy(value) for name, value in drawn.items()}


def small_vfnet(classes: int = 3, **options: Any) -> VFNet:
    """A VFNet on ResNet-18 with a narrow head."""
    names = [f"class {i}" for i in range(classes)]
    return create_model("vfnet", class_names=names, backbone="resnet18", pretrained_backbone=False, **SMALL | options)


SMALL = {"channels": 64, "tower_depth": 1}


def small_state(**options: Any) -> dict[str, Tensor]:
    """Its state dict as mmdetection would have written it."""
    return export_state(small_vfnet(**options))
