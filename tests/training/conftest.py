"""A data set of eight small scenes and a detector that trains on them in seconds."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from tests.helpers.models import frozen_norm_vfnet
from tightbox.data.layout import read_data
from tightbox.data.records import DetectionData
from tightbox.data.scenes import write_scenes
from tightbox.models import Detector


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


@pytest.fixture
def new_model(train: DetectionData) -> Callable[[], Detector]:
    return lambda: frozen_norm_vfnet(train.class_names)
