"""Where a figure comes from: the commit of the code, the hardware, the versions. Every record says it."""

from __future__ import annotations

import platform
import subprocess
from pathlib import Path

import torch

from . import __version__
from .measure import best_device

__all__ = ["commit", "hardware", "versions"]


def commit() -> str:
    """The version of the code, where it lies in a clone; ``-dirty`` behind it says that files were changed since."""
    command = ["git", "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*"]
    try:
        return subprocess.run(command, cwd=Path(__file__).parent, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return "unknown: not run from a clone"


def hardware(device: str | torch.device | None = None) -> str:
    """What computes: the GPU's name, or the processor's kind and how many of its threads.

    Args:
        device: of a run; default: the one that a run takes by itself.
    """
    device = best_device() if device is None else torch.device(device)
    if device.type == "cuda":
        return f"{torch.cuda.get_device_name(device)} GPU"
    if device.type != "cpu":
        return f"{platform.machine()} GPU ({device.type})"
    return f"{platform.machine()} CPU, {torch.get_num_threads()} thread(s)"


def versions() -> dict[str, str]:
    """Of what has a say in the numbers.

    >>> sorted(versions())
    ['python', 'sdap_lite', 'torch']
    """
    return {"python": platform.python_version(), "torch": torch.__version__, "sdap_lite": __version__}
