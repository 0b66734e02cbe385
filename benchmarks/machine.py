"""Where and when a figure was measured, for the foot of every table."""

from __future__ import annotations

import datetime
import os
import platform
import shlex
import sys
from pathlib import Path

import torch


def processor() -> str:
    """The processor's name as the system gives it."""
    try:
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()


def machine() -> str:
    """Processor, threads, GPU if there is one, and PyTorch."""
    gpu = f", {torch.cuda.get_device_name()}" if torch.cuda.is_available() else ""
    cores = f"{torch.get_num_threads()} threads on {os.cpu_count()} cores"
    return f"{processor()}, {cores}{gpu}, PyTorch {torch.__version__}"


def measured() -> str:
    """One sentence: the date, the command that is running, and the machine."""
    command = shlex.join(["python", *sys.argv])
    return f"Measured {datetime.date.today()} with `{command}` on {machine()}."
