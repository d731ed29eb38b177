"""What the benchmarks share: a fair way to time things side by side, a table, and a record.

Two things are compared in one process and take turns, so that a busy moment of the machine hits
both; after warming up, the median over the turns counts. What runs in one thread of one process
is timed by the processor time that it used, which other people's work on the machine hardly
changes; where worker processes help, the clock on the wall counts.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

REPEATS = 7


@dataclass(frozen=True)
class Row:
    """One comparison: what was measured, against what, and the ratio that is wanted.

    Attributes:
        what: the thing measured.
        against: what it is held against.
        ratio: the first over the second.
        limit: the largest ratio that is wanted, or the smallest if ``at_least``; None if it is only shown.
        measured: the figures behind the ratio, by name.
        unit: of those figures.
        at_least: whether larger is better.
    """

    what: str
    against: str
    ratio: float
    limit: float | None
    measured: dict[str, float]
    unit: str = "s"
    at_least: bool = False

    @property
    def missed(self) -> bool:
        """Whether the ratio is on the wrong side of its limit."""
        return self.limit is not None and (self.ratio < self.limit if self.at_least else self.ratio > self.limit)

    def __str__(self) -> str:
        wanted = "" if self.limit is None else f"{'≥' if self.at_least else '≤'} {self.limit:.2f}"
        figures = ", ".join(f"{name} {value:.3g}" for name, value in self.measured.items())
        return f"{self.ratio:7.3f}  {wanted:7} {'MISSED' if self.missed else '':7} {self.what} / {self.against}: {figures} {self.unit}"


def take_turns(
    tasks: Mapping[str, Callable[[], object]], *, repeats: int = REPEATS, warmup: int = 2, clock: Callable[[], float] = time.process_time
) -> dict[str, float]:
    """The median time of each task, in seconds.

    Args:
        tasks: what is timed, by name; one after the other, and again.
        repeats: turns that count.
        warmup: turns before, which do not: caches fill, kernels are chosen.
        clock: ``time.process_time`` or, where other processes help, ``time.perf_counter``.
    """
    times: dict[str, list[float]] = {name: [] for name in tasks}
    for turn in range(warmup + repeats):
        for name, task in tasks.items():
            start = clock()
            task()
            if turn >= warmup:
                times[name].append(clock() - start)
    return {name: statistics.median(line) for name, line in times.items()}


def fresh(script: str, *arguments: str, **environment: str) -> Any:
    """What a script of this folder prints as JSON, run in a process of its own with these variables set."""
    command = [sys.executable, str(Path(__file__).with_name(script)), *arguments]
    done = subprocess.run(command, capture_output=True, text=True, env={**os.environ, **environment})
    if done.returncode:
        raise RuntimeError(f"{' '.join(command)} must print its figures, but stopped with {done.returncode}: {done.stderr[-2000:]}")
    return json.loads(done.stdout)


def show(measure: Callable[[], list[Row]]) -> None:
    """Measures and prints; with ``--record FILE`` writes the rows there too. Ends the process: 1 where a limit is missed."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--record", type=Path)
    path = parser.parse_args().record
    rows = measure()
    print(*rows, sep="\n", flush=True)
    if path:
        path.write_text(json.dumps([asdict(row) | {"missed": row.missed} for row in rows]))
    sys.exit(any(row.missed for row in rows))
