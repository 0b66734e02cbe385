"""Fixtures of all tests of commands."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.helpers.commands import forget_settings


@pytest.fixture(autouse=True)
def _fresh_accelerate() -> Iterator[None]:
    forget_settings()
    yield
    forget_settings()
