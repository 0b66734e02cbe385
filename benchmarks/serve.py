"""Measures `tightbox serve`: overhead, rate, memory, malformed bodies, a crowd of clients, and SIGTERM under load.

Everything is asked over loopback of a server process that serves a small VarifocalNet; the same checkpoint, called in
this process, is what its rates are compared with.
"""

from __future__ import annotations

import argparse
import asyncio
import io
import os
import re
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import torch
from harness import write_table
from machine import measured
from PIL import Image

import tightbox
from tightbox.models import Detector, create_model
from tightbox.options import Preprocess

HEADER = "| what | measured | target | reached |\n|---|---|---|---|"
CLIENTS = 16
WAIT = 120.0  # seconds after which a client that has no answer counts as hanging


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "--checkpoint", type=Path, help="of a detector; left out, a VFNet on ResNet-18 of random weights"
    )
    parser.add_argument("--side", type=int, default=320, help="longer side of what that detector sees, in pixels")
    parser.add_argument("--images", type=Path, help="folder of JPEGs; left out, 32 made-up images of 640 x 480")
    parser.add_argument("--requests", type=int, default=10_000, help="for the growth of memory")
    parser.add_argument("--timed", type=int, default=200, help="requests for overhead, and for the rate")
    parser.add_argument("--malformed", type=int, default=1000)
    parser.add_argument("--crowd", type=int, default=1000, help="clients at once")
    parser.add_argument("--large", type=int, default=100, help="megabytes of the largest malformed body")
    parser.add_argument("--threads", type=int, default=1, help="threads of PyTorch, here and in the server")
    parser.add_argument("--markdown", type=Path, metavar="FILE", help="also write the table to FILE")
    options = parser.parse_args()
    if min(options.requests, options.timed, options.malformed, options.crowd) < 20:
        parser.error("--requests, --timed, --malformed and --crowd must be 20 or more")
    torch.set_num_threads(options.threads)
    raise_descriptor_limit(2 * options.crowd + 200)

    with tempfile.TemporaryDirectory() as name:
        checkpoint = options.checkpoint or small_model(options.side).save(Path(name) / "model")
        images = read_images(options.images)
        model = tightbox.load(checkpoint).eval()
        rows = []
        with server(checkpoint, options.threads) as (process, port):
            for row in (
                overhead(model, images, port, options.timed),
                rate(model, images, port, options.timed),
                malformed(images, port, options.malformed, options.large),
                crowd(images, port, options.crowd),
                memory(images, port, options.requests),
                sigterm(images, port, process),
            ):
                rows.append(row)
                print(row, flush=True)
    lines = [measured(), "", HEADER, *rows]
    print("\n" + "\n".join(lines))
    write_table(options.markdown, lines, parser)


def small_model(side: int) -> Detector:
    torch.manual_seed(0)
    names = [f"class {i}" for i in range(3)]
    size = Preprocess(long_side=side, short_side=side)
    return create_model(
        "vfnet", class_names=names, backbone="resnet18", pretrained_backbone=False, channels=64, preprocess=size
    )


def read_images(folder: Path | None) -> list[bytes]:
    """JPEG files; made-up ones are smooth enough to be as large as photographs."""
    if folder is not None:
        return [path.read_bytes() for path in sorted(folder.glob("*.jpg"))[:64]]
    random, files = np.random.default_rng(0), []
    for _ in range(32):
        coarse = Image.fromarray(random.integers(0, 256, (60, 80, 3), dtype=np.uint8))
        file = io.BytesIO()
        coarse.resize((640, 480), Image.Resampling.BICUBIC).save(file, "JPEG", quality=90)
        files.append(file.getvalue())
    return files


@contextmanager
def server(checkpoint: Path, threads: int) -> Iterator[tuple[subprocess.Popen[str], int]]:
    """The process and its port, once it is ready."""
    command = [sys.executable, "-m", "tightbox", "serve", str(checkpoint), "--port", "0"]
    environment = os.environ | {"OMP_NUM_THREADS": str(threads)}
    process = subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdout is not None
        line = process.stdout.readline()
        found = re.search(r"http://127\.0\.0\.1:(\d+);", line)
        assert found, line
        port = int(found[1])
        while asyncio.run(ask(port, "GET", "/v2/health/ready"))[0] != 200:
            time.sleep(0.1)
        yield process, port
    finally:
        if process.poll() is None:
            process.kill()
        process.wait()


class Client:
    """One connection that is kept; as little as possible beside what is measured."""

    def __init__(self, port: int) -> None:
        self._port = port
        self._streams: tuple[asyncio.StreamReader, asyncio.StreamWriter] | None = None

    async def __call__(self, method: str, path: str, body: bytes = b"") -> tuple[int, bytes]:
        """The status and the body of the answer."""
        if self._streams is None:
            self._streams = await asyncio.open_connection("127.0.0.1", self._port)
        reader, writer = self._streams
        writer.write(f"{method} {path} HTTP/1.1\r\nHost: x\r\nContent-Length: {len(body)}\r\n\r\n".encode() + body)
        head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1").lower()
        found = re.search(r"content-length: (\d+)", head)
        content = await reader.readexactly(int(found[1])) if found else b""
        await writer.drain()
        if "connection: close" in head:
            self.close()
        return int(head.split()[1]), content

    def close(self) -> None:
        """The next request makes a connection anew."""
        if self._streams is not None:
            self._streams[1].close()
            self._streams = None


async def ask(port: int, method: str, path: str, body: bytes = b"") -> tuple[int, bytes]:
    """One request on a connection of its own."""
    client = Client(port)
    try:
        return await asyncio.wait_for(client(method, path, body), WAIT)
    finally:
        client.close()


def metric(port: int, name: str) -> float:
    text = asyncio.run(ask(port, "GET", "/metrics"))[1].decode()
    found = re.search(rf"^{name} (\S+)$", text, re.MULTILINE)
    return float(found[1]) if found else 0.0


def overhead(model: Detector, images: Sequence[bytes], port: int, count: int) -> str:
    """Medians of both, asked in turn so that a busy moment falls on either."""

    async def both() -> tuple[list[float], list[float]]:
        client, served, local = Client(port), [], []
        for i in range(count):
            image = images[i % len(images)]
            start = time.perf_counter()
            status, _ = await client("POST", "/predict", image)
            served.append(time.perf_counter() - start)
            assert status == 200, status
            start = time.perf_counter()
            model.predict(Image.open(io.BytesIO(image)))
            local.append(time.perf_counter() - start)
        client.close()
        return served, local

    served, local = (1000 * statistics.median(times) for times in asyncio.run(both()))
    text = f"{served - local:.1f} ms ({served:.1f} served, {local:.1f} in process; {count} each, medians)"
    # A server that is much faster than the same call in process shows that something else disturbed the latter.
    return row("overhead at one client", text, "≤ 5 ms", abs(served - local) <= 5)


async def ask_all(images: Sequence[bytes], port: int, count: int, *, clients: int) -> None:
    """So many good requests, shared by clients that each send the next as soon as one is answered."""
    todo = iter(range(count))

    async def client() -> None:
        own = Client(port)
        for i in todo:
            status, _ = await own("POST", "/predict", images[i % len(images)])
            assert status == 200, status
        own.close()

    await asyncio.gather(*(client() for _ in range(clients)))


def rate(model: Detector, images: Sequence[bytes], port: int, count: int) -> str:
    """Images per second of 16 clients, and of `predict` on the same images in batches of 8; the better of 2 rounds."""

    async def load() -> float:
        start = time.perf_counter()
        await ask_all(images, port, count, clients=CLIENTS)
        return count / (time.perf_counter() - start)

    def offline() -> float:
        start = time.perf_counter()
        opened = (Image.open(io.BytesIO(images[i % len(images)])) for i in range(count))
        for _ in model.predict(opened, batch_size=8):
            pass
        return count / (time.perf_counter() - start)

    rounds = [(asyncio.run(load()), offline()) for _ in range(2)]
    served, local = (max(values) for values in zip(*rounds, strict=True))
    text = f"{served / local:.0%} ({served:.1f} images/s served to {CLIENTS} clients, {local:.1f} offline)"
    return row("rate against the offline batched rate", text, "≥ 95 %", served >= 0.95 * local)


def malformed(images: Sequence[bytes], port: int, count: int, large: int) -> str:
    """Bodies that are no good image, each followed by a good one."""
    bomb = io.BytesIO()
    Image.new("1", (12_000, 12_000)).save(bomb, "PNG")
    noise = np.random.default_rng(0).bytes(20_000)
    gif = io.BytesIO()
    Image.new("RGB", (32, 32)).save(gif, "GIF")
    kinds: list[Callable[[int], bytes]] = [
        lambda i: images[i % len(images)][: 20 + 7919 * i % (len(images[i % len(images)]) // 2)],  # truncated
        lambda i: bomb.getvalue(),
        lambda i: gif.getvalue(),
        lambda i: b"",
        lambda i: noise[i % 10_000 :],
        lambda i: b'{"url": "http://127.0.0.1/"}',
        lambda i: bytes(large * 10**6 if i < 70 else 21 * 10**6),  # ten of the large ones
    ]

    async def send() -> tuple[Counter[int], int]:
        statuses: Counter[int] = Counter()
        good = 0
        for i in range(count):
            statuses[(await ask(port, "POST", "/predict", kinds[i % len(kinds)](i)))[0]] += 1
            good += (await ask(port, "POST", "/predict", images[i % len(images)]))[0] == 200
        return statuses, good

    statuses, good = asyncio.run(send())
    refused = sum(n for status, n in statuses.items() if 400 <= status < 500)
    by_status = ", ".join(f"{n} × {status}" for status, n in sorted(statuses.items()))
    text = f"{refused:,} of {count:,} answered 4xx ({by_status}); the good one after each: {good:,} answered"
    return row("malformed bodies, up to 100 MB", text, "all, and the next good one", refused == good == count)


def crowd(images: Sequence[bytes], port: int, count: int) -> str:
    async def send() -> list[object]:
        asked = (ask(port, "POST", "/predict", images[i % len(images)]) for i in range(count))
        return list(await asyncio.gather(*asked, return_exceptions=True))

    start = time.perf_counter()
    outcomes = asyncio.run(send())
    seconds = time.perf_counter() - start
    kinds = Counter(str(o[0]) if isinstance(o, tuple) else type(o).__name__ for o in outcomes)
    text = ", ".join(f"{n:,} × {kind}" for kind, n in sorted(kinds.items())) + f" in {seconds:.1f} s"
    return row(f"{count:,} clients at once", text, "200 or 503, none hangs", set(kinds) <= {"200", "503"})


def memory(images: Sequence[bytes], port: int, count: int) -> str:
    """Resident memory of the server after a tenth of the requests, and after all."""
    name = "process_resident_memory_bytes"
    asyncio.run(ask_all(images, port, count // 10, clients=8))
    before = metric(port, name)
    asyncio.run(ask_all(images, port, count, clients=8))
    after = metric(port, name)
    text = f"{after / before - 1:+.1%} ({before / 1e6:.0f} to {after / 1e6:.0f} MB)"
    return row(f"memory over {count:,} requests", text, "< 5 %", after < 1.05 * before)


def sigterm(images: Sequence[bytes], port: int, process: subprocess.Popen[str]) -> str:
    """Clients that never stop, and a signal; the server says how many images it had accepted."""

    async def load() -> Counter[str]:
        outcomes: Counter[str] = Counter()

        async def client(number: int) -> None:
            own = Client(port)
            while True:
                try:
                    status, _ = await asyncio.wait_for(own("POST", "/predict", images[number % len(images)]), WAIT)
                except (OSError, asyncio.IncompleteReadError):
                    return  # the server is gone; whether it had accepted this one, its count tells
                outcomes[str(status)] += 1

        tasks = [asyncio.create_task(client(i)) for i in range(4 * CLIENTS)]
        while sum(outcomes.values()) < 2 * CLIENTS:
            await asyncio.sleep(0.01)
        process.send_signal(signal.SIGTERM)
        await asyncio.gather(*tasks)
        return outcomes

    before = counted(port)
    outcomes = asyncio.run(load())
    assert process.stdout is not None
    last = process.stdout.read()
    found = re.search(r"ended after (\d+) accepted images", last)
    accepted = int(found[1]) - before if found else -1
    answered = outcomes["200"]
    text = f"{answered:,} answered of {accepted:,} accepted; exit status {process.wait()}"
    return row("SIGTERM under load of 64 clients", text, "no accepted request lost", answered == accepted)


def counted(port: int) -> int:
    """Images accepted until now."""
    return int(metric(port, "tightbox_images_accepted_total"))


def row(what: str, text: str, target: str, reached: bool) -> str:
    return f"| {what} | {text} | {target} | {'yes' if reached else '**no**'} |"


def raise_descriptor_limit(wanted: int) -> None:
    """So that a crowd of connections can be open here and, as it inherits the limit, in the server."""
    try:
        import resource
    except ImportError:  # Windows has no such limit
        return
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft < wanted:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted if hard < 0 else min(wanted, hard), hard))


if __name__ == "__main__":
    main()
