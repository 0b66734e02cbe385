"""What all tests have in common."""

from __future__ import annotations

import hypothesis
import pytest
import torch

hypothesis.settings.register_profile("untimed", deadline=None)  # as nothing is timed in tests
hypothesis.settings.load_profile("untimed")


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)
