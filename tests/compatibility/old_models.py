"""What the files were written with: the models, their weights drawn from the names of the tensors, and an image."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

FILES = Path(__file__).parent / "files"

MODELS: dict[str, dict[str, Any]] = {
    "vfnet": {"channels": 32, "tower_depth": 1, "normaliser": "code"},
    "vfnet_paper": {"channels": 32, "tower_depth": 1, "normaliser": "paper", "offset_gradient": 0.2},
    "iou_aware_retinanet": {"channels": 32, "tower_depth": 1, "alpha": 0.4},
    "iou_net": {"channels": 32, "fc_channels": 32, "positive_share": 0.5, "proposals": 50, "refine_steps": 2},
    "unitbox": {"pooled": False, "dense_stride": 8},
}


def drawn(name: str, shape: tuple[int, ...]) -> NDArray[np.float32]:
    """Numbers that depend on nothing but the name and the shape of a tensor."""
    seed = int.from_bytes(hashlib.sha256(name.encode()).digest()[:8], "little")
    numbers = np.random.Generator(np.random.Philox(seed)).standard_normal(shape)
    fan_in = max(1, int(np.prod(shape[1:])))
    if name.endswith(("running_var",)):
        return (1 + 0.1 * np.abs(numbers)).astype(np.float32)
    if len(shape) <= 1:
        centre = 1.0 if name.endswith(("weight", "scale")) else 0.0
        return (centre + 0.1 * numbers).astype(np.float32)
    scaled: NDArray[np.float32] = (numbers / np.sqrt(fan_in)).astype(np.float32)
    return scaled


def weights(shapes: dict[str, list[int]]) -> dict[str, torch.Tensor]:
    """A tensor for each name; counters are 0."""
    return {
        name: torch.tensor(0) if name.endswith("num_batches_tracked") else torch.from_numpy(drawn(name, tuple(shape)))
        for name, shape in shapes.items()
    }


def image() -> NDArray[np.uint8]:
    """(48, 64, 3) of coloured noise."""
    small = np.random.Generator(np.random.Philox(1)).integers(0, 256, (6, 8, 3), dtype=np.uint8)
    return np.kron(small, np.ones((8, 8, 1), dtype=np.uint8))
