"""Wrote `files/` with the code of version 0.1.0 as it was at commit b9e8ba1; not to be run with later code.

python tests/compatibility/write_files.py

Weights are drawn from their names, so that no weight file has to be kept: what a checkpoint is to later code, its card
and the names and shapes of its tensors, is here, and beside it what the detector found with such weights.
"""

from __future__ import annotations

import hashlib
import json
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
    return (numbers / np.sqrt(fan_in)).astype(np.float32)


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


def main() -> None:
    """Write a card, the shapes, and the detections of every model."""
    from tightbox.calibration import IOUS, PRECISIONS, Calibration
    from tightbox.checkpoint import CARD, save
    from tightbox.evaluation.reliability import IouCalibration
    from tightbox.models import create_model
    from tightbox.options import BackboneOptions, Preprocess

    for name, options in MODELS.items():
        model = create_model(
            name.removesuffix("_paper"),
            class_names=["cat", "dog"],
            backbone=BackboneOptions(name="test_resnet", pretrained=False),
            preprocess=Preprocess(long_side=64, short_side=64),
            score_threshold=0.0,
            max_detections=20,
            **options,
        ).eval()
        shapes = {key: list(value.shape) for key, value in model.state_dict().items()}
        model.load_state_dict(weights(shapes))
        model.metrics = {"epoch": 3, "ap": 0.25}
        if name == "vfnet":
            rows = tuple(tuple(0.5 if p < 0.9 else None for p in PRECISIONS) for _ in IOUS)
            about = {"method": "isotonic", "detections": 200, "split": "val", "images": 10}
            model.calibration = Calibration(IouCalibration((0.1, 0.6, 0.9), (0.2, 0.5, 0.95)), rows, about)
        folder = FILES / name
        save(model, folder)
        (folder / "weights.safetensors").unlink()
        (folder / "shapes.json").write_text(json.dumps(shapes, indent=1) + "\n", encoding="utf-8")
        results = model.predict(image()).to_coco(7, [11, 12])
        (folder / "results.json").write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")
        print(name, len(results), [round(row["score"], 3) for row in results[:3]], (folder / CARD).stat().st_size)


if __name__ == "__main__":
    main()
