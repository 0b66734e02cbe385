"""Fixtures of the tests that speak to a server."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import httpx
import pytest

from tests.helpers.serving import KnownPredictor, serving
from tightbox.options import ServeOptions
from tightbox.serve.app import create_app


@pytest.fixture(scope="module")
def predictor() -> KnownPredictor:
    return KnownPredictor()


@pytest.fixture(scope="module")
def client(predictor: KnownPredictor) -> Iterator[httpx.Client]:
    """Of a server that takes bodies of 100 kB and images of 10,000 pixels."""
    options = ServeOptions(max_batch=2, max_queue=4, max_mb=0.1, max_megapixels=0.01)
    with serving(create_app(predictor, name="known", options=options)) as url, ready_client(url) as found:
        yield found


@contextmanager
def ready_client(url: str) -> Iterator[httpx.Client]:
    """A client of a server that has been warmed up."""
    with httpx.Client(base_url=url, timeout=60, trust_env=False) as client:
        until(lambda: client.get("/v2/health/ready").status_code == 200)
        yield client


def until(condition: Callable[[], bool]) -> None:
    """Ask again and again, for a minute."""
    end = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.01)
