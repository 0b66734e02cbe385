"""Fixtures of all tests of commands; some have a data set or a checkpoint of their own."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.helpers.commands import forget_settings
from tests.helpers.data import cats_and_dogs
from tests.helpers.models import tiny_model


@pytest.fixture(autouse=True)
def _fresh_accelerate() -> Iterator[None]:
    forget_settings()
    yield
    forget_settings()


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    """It suppresses nothing, so that it has its full 20 boxes in every image."""
    return tiny_model(nms_iou=1.0).save(tmp_path / "model")


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """Six images of cats and dogs in each of two splits."""
    return cats_and_dogs(tmp_path / "data", {"val": range(6), "test": range(6, 12)})
