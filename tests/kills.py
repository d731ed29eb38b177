"""Kills runs at random moments and lets them go on: ``python kills.py --kills 100``.

A run is a process of its own. It is killed (SIGKILL) at any moment, or while it takes a step, writes
its checkpoint or cuts channels out; then the next process goes on in the same folder, and so on, until
one comes to the end. What it ends in must be, bit by bit, what a run that nobody killed ends in.
"""

from __future__ import annotations

import argparse
import json
import mmap
import os
import random
import signal
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import killed_run
import torch
from tqdm import tqdm

from sdap_lite import checkpoint
from sdap_lite.checkpoint import fingerprint
from sdap_lite.loop import Training
from sdap_lite.pruning import Pruning

KINDS = ("rms", "straight-through", "train")
MOMENTS = {"setting up": 0, "an epoch": 1, "a checkpoint": 2, "surgery": 3}


class Clock:
    """What the process is at, and how often it has been there: memory that outlives it."""

    def __init__(self) -> None:
        self.memory = mmap.mmap(-1, 8)

    def reset(self) -> None:
        self.memory[:] = bytes(8)

    @property
    def now(self) -> str:
        return list(MOMENTS)[self.memory[0]]

    def times(self, moment: str) -> int:
        return self.memory[1 + MOMENTS[moment]]

    def during(self, moment: str, function: Callable[..., Any]) -> Callable[..., Any]:
        """The function, with the clock set while it runs."""

        def marked(*args: Any, **kwargs: Any) -> Any:
            before, place = self.memory[0], MOMENTS[moment]
            self.memory[0], self.memory[1 + place] = place, self.memory[1 + place] + 1
            try:
                return function(*args, **kwargs)
            finally:
                self.memory[0] = before

        return marked


def live(folder: Path, kind: str, clock: Clock) -> int:
    """Starts a process that runs to its end, from the folder's checkpoint if it has one; returns its number."""
    process = os.fork()
    if process:
        return process
    code = 1
    try:
        tqdm.set_lock(threading.RLock())  # its own is shared with the processes before, one of which may have died with it
        saved = any((folder / name).exists() for name in (checkpoint.NAME, checkpoint.PREVIOUS))
        result = killed_run.run(kind, **{"resume" if saved else "checkpoint": folder})
        end = fingerprint(result.model.state_dict().values())
        checkpoint.write_atomically(folder / "end", lambda file: Path(file).write_text(end))
        code = 0
    finally:
        os._exit(code)


def doom(process: int, clock: Clock, draw: random.Random, seconds: float) -> str | None:
    """Kills the process at a moment drawn at random; returns what it was at, or None if it was faster."""
    moment, count, start = draw.choice([None, "an epoch", "a checkpoint", "surgery"]), draw.randint(1, 4), time.monotonic()
    delay = draw.uniform(0, seconds if moment is None else 0.02)
    while moment is not None and clock.times(moment) < count and time.monotonic() - start < 10 * seconds:
        if os.waitpid(process, os.WNOHANG)[0]:
            return None
        time.sleep(0.0005)
    time.sleep(delay)
    if os.waitpid(process, os.WNOHANG)[0]:
        return None
    os.kill(process, signal.SIGKILL)
    _, status = os.waitpid(process, 0)
    return clock.now if os.WIFSIGNALED(status) else None


def wait(process: int) -> None:
    _, status = os.waitpid(process, 0)
    assert os.waitstatus_to_exitcode(status) == 0, "the run failed"


def kill_runs(kills: int, seed: int, root: Path) -> dict[str, Any]:
    """Kills so many times; returns the counts, with the moments at which the processes died."""
    draw, clock = random.Random(seed), Clock()
    for owner, name, moment in ((Training, "epoch", "an epoch"), (checkpoint, "write_checkpoint", "a checkpoint"), (Pruning, "remove", "surgery")):
        setattr(owner, name, clock.during(moment, getattr(owner, name)))
    wanted, seconds = {}, 0.0
    for kind in KINDS:
        killed_run.run(kind)  # what the first run imports need not be imported in each process again
        start = time.monotonic()
        (root / kind).mkdir()
        wait(live(root / kind, kind, clock))
        wanted[kind], seconds = (root / kind / "end").read_text(), max(seconds, time.monotonic() - start)
    died: Counter[str] = Counter()
    counts = {"kills": 0, "runs": 0, "wrong results": 0, "checkpoints lost": 0}
    while counts["kills"] < kills:
        kind, folder, saved = draw.choice(KINDS), root / f"run {counts['runs']}", 0
        folder.mkdir()
        for _ in range(draw.randint(1, 8)):
            clock.reset()
            moment = doom(live(folder, kind, clock), clock, draw, seconds)
            if moment is None or counts["kills"] == kills:
                break
            died[moment] += 1
            counts["kills"] += 1
            there = epochs(folder)
            counts["checkpoints lost"] += there < saved
            saved = there
        if not (folder / "end").exists():
            wait(live(folder, kind, clock))
        counts["runs"] += 1
        counts["wrong results"] += (folder / "end").read_text() != wanted[kind]
    return {**counts, "killed during": dict(sorted(died.items()))}


def epochs(folder: Path) -> int:
    """How many epochs are saved."""
    there = (folder / checkpoint.NAME).exists() or (folder / checkpoint.PREVIOUS).exists()
    return len(checkpoint.read_checkpoint(folder)["history"]) if there else 0


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=100)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as place:
        print(json.dumps(kill_runs(args.kills, args.seed, Path(place))))
