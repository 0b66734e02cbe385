"""`python -m tests.faults.kills COUNT`: trainings killed at random moments, resumed, and compared bit by bit.

A process that has imported everything starts each training by a fork, which takes no time, so that most of a training's
life is training and writing.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import shutil
import signal
import socket
import sys
import tempfile
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from tests.helpers.robustness_page import put_into_page
from tightbox.cli import main as tightbox
from tightbox.data.scenes import write_scenes

SMALL = [
    *("--backbone", "test_resnet", "--pretrained", "false", "--long-side", "64", "--short-side", "64"),
    *("--epochs", "3", "--batch-size", "2", "--eval-every", "1", "--precision", "fp32"),
]
DENSE = ["channels", "32", "tower_depth", "1"]
SYSTEMS = {
    "vfnet": DENSE,
    "iou_aware_retinanet": DENSE,
    "iou_net": ["channels", "8", "fc_channels", "16", "rois", "16", "jittered_boxes", "12", "proposals", "20"],
    "unitbox": [],
}
MODES = ("SIGKILL", "SIGTERM", "SIGINT", "SIGINT twice", "SIGKILL at a rename")
CLOCKS = ("seconds", "train_seconds", "images_per_second", "evaluated", "evaluation_seconds")


@dataclass(frozen=True)
class Setting:
    """What is trained, and how."""

    system: str
    workers: int = 0
    processes: int = 1

    def arguments(self, data: Path, out: Path) -> list[str]:
        given = SYSTEMS[self.system]
        own = [
            x for name, value in zip(given[::2], given[1::2], strict=True) for x in (f"--{self.system}.{name}", value)
        ]
        named = ("--data", str(data), "--out", str(out), "--model", self.system, "--workers", str(self.workers))
        return ["train", *named, *SMALL, *own]

    def __str__(self) -> str:
        more = [f"{self.workers} worker"] * (self.workers > 0) + [f"{self.processes} processes"] * (self.processes > 1)
        return ", ".join([self.system, *more])


SETTINGS = [Setting(system, workers) for system in SYSTEMS for workers in (0, 1)] + [Setting("vfnet", processes=2)]


def start(arguments: list[str], log: Path, processes: int = 1, before: Callable[[], None] | None = None) -> list[int]:
    """Fork one process for each rank; `before` runs in the first of them."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    return [_fork(arguments, log, rank, processes, port, before if rank == 0 else None) for rank in range(processes)]


def _fork(
    arguments: list[str], log: Path, rank: int, processes: int, port: int, before: Callable[[], None] | None
) -> int:
    pid = os.fork()
    if pid:
        return pid
    code = 70
    try:
        output = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        os.dup2(output, 1)
        os.dup2(output, 2)
        if processes > 1:
            os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(processes)}
            os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "ACCELERATE_USE_CPU": "true"}
        if before is not None:
            before()
        code = tightbox(arguments)
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        os._exit(code)


def wait(pids: list[int]) -> list[int]:
    """The exit statuses; once one process of several has ended badly the others, which wait for it, are ended too."""
    codes: dict[int, int] = {}
    while len(codes) < len(pids):
        for pid in pids:
            if pid not in codes:
                done, status = os.waitpid(pid, os.WNOHANG)
                if done:
                    codes[pid] = os.waitstatus_to_exitcode(status)
        if any(codes.values()):
            for pid in set(pids) - set(codes):
                os.kill(pid, signal.SIGKILL)
        time.sleep(0.01)
    return [codes[pid] for pid in pids]


def kill_and_resume(setting: Setting, mode: str, data: Path, out: Path, moment: float, rename: int) -> bool:
    """Start, kill after `moment` seconds or at a rename, and go on until it is whole; whether it was killed in time."""
    arguments, log = setting.arguments(data, out), out.with_suffix(".log")
    pids = start(arguments, log, setting.processes, (lambda: _die_at_rename(rename)) if "rename" in mode else None)
    if "rename" not in mode:
        time.sleep(moment)
        number = getattr(signal, mode.split()[0])
        for pid in pids:
            os.kill(pid, number)
        if mode == "SIGINT twice":
            time.sleep(moment % 0.1)
            for pid in pids:
                os.kill(pid, number)
    killed = any(wait(pids))
    saved = any((out / name).exists() for name in ("resume", "resume.old"))
    if not saved and (out / "last").exists():
        shutil.rmtree(out)  # `train` refuses a folder with weights and no state, and says so
    again = [*arguments, "--resume"] if saved else arguments
    codes = wait(start(again, log, setting.processes))
    if any(codes):
        raise AssertionError(f"{setting}, {mode}: the resumed training ended with {codes}: {log.read_text()[-3000:]}")
    return killed


def _die_at_rename(number: int) -> None:
    """SIGKILL in the place of this process's rename of that number, whichever file or folder it is of."""
    count = 0

    def dying(real: Callable[..., Any]) -> Callable[..., Any]:
        def rename(*args: Any, **kwargs: Any) -> Any:
            nonlocal count
            count += 1
            if count == number:
                os.kill(os.getpid(), signal.SIGKILL)
            return real(*args, **kwargs)

        return rename

    os.replace, os.rename = dying(os.replace), dying(os.rename)


def differences(whole: Path, resumed: Path) -> list[str]:
    """What is not equal, bit by bit, but for clocks."""
    found = []
    for name in ("last/weights.safetensors", "best/weights.safetensors"):
        if (whole / name).read_bytes() != (resumed / name).read_bytes():
            found.append(name)
    for name in ("last/card.json", "best/card.json"):
        if _timeless(json.loads((whole / name).read_text())) != _timeless(json.loads((resumed / name).read_text())):
            found.append(name)
    rows = [
        [_timeless(json.loads(line)) for line in (f / "metrics.jsonl").read_text().splitlines()]
        for f in (whole, resumed)
    ]
    if rows[0] != rows[1]:
        found.append("metrics.jsonl")
    states = [{p.name: p for p in (f / "resume").iterdir() if p.name != "contents.json"} for f in (whole, resumed)]
    if states[0].keys() != states[1].keys():
        found.append("names in resume/")
    for name in states[0].keys() & states[1].keys():
        a, b = (_content(state[name]) for state in states)
        if not _same(a, b):
            found.append(f"resume/{name}")
    return found


def _content(path: Path) -> Any:
    if path.suffix == ".safetensors":
        return path.read_bytes()
    return torch.load(path, weights_only=False)  # written by this program a moment ago


def _timeless(content: Any) -> Any:
    if isinstance(content, dict):
        return {name: _timeless(value) for name, value in content.items() if name not in CLOCKS}
    return content


def _same(a: Any, b: Any) -> bool:
    if isinstance(a, torch.Tensor):
        return isinstance(b, torch.Tensor) and torch.equal(a, b)
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(_same(a[name], b[name]) for name in a if name not in CLOCKS)
    if isinstance(a, (list, tuple)):
        return len(a) == len(b) and all(map(_same, a, b))
    return bool(a == b) if not hasattr(a, "shape") else bool((a == b).all())


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("count", type=int, nargs="?", default=50)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--page", action="store_true", help="write the table into docs/robustness.md")
    args = parser.parse_args()
    rng = random.Random(args.seed)
    torch.set_num_threads(1)
    lines, wrong = ["| training | killed by | kills | before its end | equal |", "|---|---|---|---|---|"], 0
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_scenes(folder / "data", {"train": 8, "val": 3}, seed=1, size=(96, 96))
        wholes: dict[Setting, tuple[Path, float]] = {}
        tally: dict[tuple[str, str], list[int]] = {}
        for number in range(args.count):
            setting, mode = SETTINGS[number % len(SETTINGS)], MODES[(number // 2 + number) % len(MODES)]
            if setting not in wholes:
                whole = folder / f"whole-{len(wholes)}"
                since = time.monotonic()
                codes = wait(start(setting.arguments(folder / "data", whole), folder / "whole.log", setting.processes))
                assert not any(codes), (folder / "whole.log").read_text()[-3000:]
                wholes[setting] = whole, time.monotonic() - since
            whole, seconds = wholes[setting]
            out = folder / f"run-{number}"
            # An eighth of a training is its start; a kill there resumes nothing.
            moment, rename = seconds * rng.uniform(0.1, 1.0), rng.randrange(2, 30)
            try:
                killed = kill_and_resume(setting, mode, folder / "data", out, moment, rename)
                different = differences(whole, out)
            except AssertionError as error:
                killed, different = True, [str(error)]
            print(f"{number}: {setting}, {mode}: {', '.join(different) or 'equal'}", flush=True)
            row = tally.setdefault((str(setting), mode), [0, 0, 0])
            row[0], row[1], row[2] = row[0] + 1, row[1] + killed, row[2] + (not different)
            wrong += bool(different)
            shutil.rmtree(out, ignore_errors=True)
    for (name, mode), row in sorted(tally.items()):
        lines.append(f"| {name} | {mode} | {row[0]} | {row[1]} | {row[2]} |")
    lines.append(f"| all | | {args.count} | {sum(row[1] for row in tally.values())} | {args.count - wrong} |")
    print("\n".join(lines))
    if args.page:
        put_into_page("kills", f"make faults KILLS={args.count}", "\n".join(lines))
    return int(wrong > 0)


if __name__ == "__main__":
    sys.exit(main())
