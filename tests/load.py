"""Many prunings in one process, and very deep and very wide networks: ``python load.py --prunings 200``."""

from __future__ import annotations

import argparse
import gc
import json
import os
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

import killed_run
import torch
from torch import nn

from sdap_lite import largest_rate, threshold, trace

EXAMPLE = torch.zeros(1, 3, 4, 4)


def in_use() -> dict[str, int]:
    """What a process holds: memory in MiB and open files (where the system tells), threads, tensors, modules and their hooks."""
    gc.collect()
    things = gc.get_objects()
    modules = [thing for thing in things if issubclass(type(thing), nn.Module)]  # isinstance would wake PyTorch's lazy objects
    found = {
        "threads": threading.active_count(),
        "tensors": sum(issubclass(type(thing), torch.Tensor) for thing in things),
        "modules": len(modules),
        "hooks": sum(len(module._forward_hooks) + len(module._forward_pre_hooks) + len(module._backward_hooks) for module in modules),
    }
    if os.path.isdir("/proc/self"):
        pages = int(Path("/proc/self/statm").read_text().split()[1])
        found |= {"MiB": pages * os.sysconf("SC_PAGE_SIZE") // 2**20, "files": len(os.listdir("/proc/self/fd"))}
    return found


def sweep(prunings: int, warm_up: int) -> dict[str, Any]:
    """Prunes again and again, with a checkpoint each epoch; what is in use before and after, once everything has run."""
    before: dict[str, int] = {}
    with tempfile.TemporaryDirectory() as folder:
        for i in range(warm_up + prunings):
            if i == warm_up:
                before = in_use()
            killed_run.run(("rms", "straight-through", "frozen")[i % 3], rate=0.1 + 0.5 * (i % 10) / 10, seed=i, checkpoint=folder)
    return {"prunings": prunings, "before": before, "after": in_use()}


def chain(layers: int, width: int = 8) -> nn.Module:
    """Convolutions one behind the other; without numbers, so that it may be as wide as it likes."""
    with torch.device("meta"):
        body = [layer for i in range(layers) for layer in (nn.Conv2d(width if i else 3, width, 1), nn.ReLU())]
        return nn.Sequential(*body, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(width, 10))


def traced(layers: int, width: int) -> dict[str, Any]:
    """Traces and chooses channels; CPU seconds of this process."""
    model = chain(layers, width)
    start = time.process_time()
    graph = trace(model, EXAMPLE)
    middle = time.process_time()
    kept = threshold(graph, graph.split(torch.rand(len(graph), generator=torch.Generator().manual_seed(0))), 0.5)
    end = time.process_time()
    assert 0.5 <= largest_rate(graph) < 1
    assert sum(len(k) for k in kept.values()) == layers * width
    return {"layers": layers, "channels": len(graph) - 1, "trace, CPU seconds": round(middle - start, 1), "threshold, CPU seconds": round(end - middle, 1)}


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--prunings", type=int, default=200)
    args = parser.parse_args()
    torch.set_num_threads(1)
    print(json.dumps({"sweep": sweep(args.prunings, 10), "deep": traced(1000, 8), "wide": traced(75, 4000)}))
