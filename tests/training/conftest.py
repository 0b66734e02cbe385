"""A data set of eight small scenes and a detector that trains on them in seconds."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from tightbox.data.layout import read_data
from tightbox.data.records import DetectionData
from tightbox.data.scenes import write_scenes
from tightbox.models import Detector, create_model
from tightbox.options import BackboneOptions, Preprocess


@pytest.fixture(scope="session")
def scenes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("scenes")
    write_scenes(root, {"train": 8, "val": 3}, seed=1, size=(96, 96))
    return root


@pytest.fixture
def train(scenes: Path) -> DetectionData:
    return read_data(scenes, "train")


@pytest.fixture
def val(scenes: Path) -> DetectionData:
    return read_data(scenes, "val")


def tiny_model(class_names: tuple[str, ...], seed: int = 0) -> Detector:
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


@pytest.fixture
def new_model(train: DetectionData) -> Callable[[], Detector]:
    return lambda: tiny_model(train.class_names)
