"""A real browser for the tests of the page: Debian's Chromium, driven by Playwright."""

from __future__ import annotations

import fcntl
import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

# No sandbox, as root has none in a container; the rest keeps the browser from asking the network of its own accord.
ARGUMENTS = (
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
)


@contextmanager
def running_chromium() -> Iterator[Any]:
    """The browser; the test is skipped, with the reason, where there is none and none can be installed."""
    playwright = pytest.importorskip("playwright.sync_api", reason="playwright, which drives the browser, is missing")
    path = _chromium()
    with playwright.sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=path, args=list(ARGUMENTS))
        yield browser
        browser.close()


def _chromium() -> str:
    with open(Path(tempfile.gettempdir()) / f"tightbox-chromium-{os.getuid()}.lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # the workers of one test run install it once
        found = _find()
        if found is None and os.getuid() == 0 and shutil.which("apt-get"):
            _install()
            found = _find()
    if found is None:
        pytest.skip("there is no Chromium here and none could be installed; on Debian: apt-get install chromium")
    return found


def _find() -> str | None:
    return shutil.which("chromium") or shutil.which("chromium-browser")


def _install() -> None:
    quiet = {"check": False, "stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL, "timeout": 600}
    environment = os.environ | {"DEBIAN_FRONTEND": "noninteractive"}
    for command in (["update"], ["install", "--yes", "--no-install-recommends", "chromium"]):
        subprocess.run(["apt-get", "--quiet", *command], env=environment, **quiet)  # type: ignore[call-overload]
