"""The command, as a process of its own that a signal ends."""

from __future__ import annotations

import os
import re
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from tests.helpers.commands import assert_one_sentence, status
from tests.helpers.serving import image_bytes
from tests.serve.conftest import until

GOOD = image_bytes((640, 480))


class Process:
    """`tightbox serve` on any free port."""

    def __init__(self, *arguments: str, **environment: str) -> None:
        command = [sys.executable, "-m", "tightbox", "serve", *arguments, "--port", "0", "--device", "cpu"]
        pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
        self.process = subprocess.Popen(command, env=os.environ | environment, **pipes)  # type: ignore[call-overload]
        line = self.process.stdout.readline()
        found = re.search(r"http://127\.0\.0\.1:(\d+); Ctrl-C ends it", line)
        assert found, line + self.process.stderr.read()
        self.port = int(found[1])
        self.url = f"http://127.0.0.1:{self.port}"
        until(lambda: httpx.get(f"{self.url}/v2/health/ready", trust_env=False).status_code == 200)

    def end(self, by: int = signal.SIGTERM) -> tuple[int, str, str]:
        """The exit status and what was written."""
        self.process.send_signal(by)
        out, err = self.process.communicate(timeout=60)
        return self.process.returncode, out, err


@pytest.fixture
def server(checkpoint: Path) -> Iterator[Process]:
    found = Process(str(checkpoint), "--max-batch", "2", TIGHTBOX_TOKEN="of the environment".replace(" ", "-"))
    yield found
    if found.process.poll() is None:
        found.process.kill()
        found.process.communicate()


HEAD = (
    f"POST /predict?score_threshold=0 HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer of-the-environment\r\n"
    f"Content-Length: {len(GOOD)}\r\nConnection: close\r\n\r\n"
).encode()


def test_sigterm_answers_what_was_accepted(server: Process, checkpoint: Path) -> None:
    assert httpx.post(f"{server.url}/predict", content=GOOD, trust_env=False).status_code == 401
    accepted = 12
    connections = [socket.create_connection(("127.0.0.1", server.port), timeout=60) for _ in range(accepted)]
    for connection in connections:  # all but the last byte, so that none can be answered before the signal
        connection.sendall(HEAD + GOOD[:-1])
    headers = {"Authorization": "Bearer of-the-environment"}

    def all_accepted() -> bool:
        text = httpx.get(f"{server.url}/metrics", headers=headers, trust_env=False).text
        return f"tightbox_images_waiting {accepted}.0" in text

    until(all_accepted)
    server.process.send_signal(signal.SIGTERM)

    def closed() -> bool:
        try:
            socket.create_connection(("127.0.0.1", server.port)).close()
        except ConnectionRefusedError:
            return True
        return False

    until(closed)  # no new connections
    for connection in connections:
        connection.sendall(GOOD[-1:])
    for connection in connections:
        answer = b""
        while received := connection.recv(65536):
            answer += received
        connection.close()
        assert answer.startswith(b"HTTP/1.1 200 OK"), answer[:200]
        assert answer.count(b'"box"') == 20
        assert str(checkpoint).encode() not in answer
    out, err = server.process.communicate(timeout=60)
    assert (server.process.returncode, err) == (0, "")
    assert out == f"ended after {accepted} accepted images\n"


def test_ctrl_c_ends_it_too(server: Process) -> None:
    code, _, err = server.end(signal.SIGINT)
    assert (code, err) == (130, "tightbox: stopped\n")


@pytest.mark.parametrize(
    ("options", "part"),
    [
        (["--port", "70000"], "--port is 70000"),
        (["--name", "a/b"], "--name"),
        (["--token", "two words"], "token"),
        (["--max-batch", "0"], "max_batch"),
        (["--max-mb", "-1"], "max_mb"),
        (["--host", "no.such.host.invalid"], "cannot listen"),
    ],
)
def test_mistakes(checkpoint: Path, options: list[str], part: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert status(["serve", checkpoint, *options]) == 2
    assert_one_sentence(capsys, part)


def test_a_port_that_is_taken(checkpoint: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        assert status(["serve", checkpoint, "--port", taken.getsockname()[1]]) == 2
    assert_one_sentence(capsys, "cannot listen", "--port")


def test_without_the_extra(
    checkpoint: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "uvicorn", None)
    assert status(["serve", checkpoint]) == 2
    assert_one_sentence(capsys, "tightbox[serve]")
