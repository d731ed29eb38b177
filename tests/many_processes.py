"""Two runs, as one of several processes: ``torchrun --nproc-per-node 2 many_processes.py FOLDER``."""

from __future__ import annotations

import contextlib
import sys
from pathlib import Path
from typing import Any

import torch
from nets import build, pictures
from torch import Tensor, nn

from sdap_lite import prune
from sdap_lite.loop import Training
from sdap_lite.team import team
from sdap_lite.variants import Variant

# 43 images to train on, 9 a step: shares of 5 and 4, and of 4 and 3 in the last step
SETTINGS: dict[str, Any] = {"rate": 0.6, "epochs": 4, "ramp": 0.45, "batch_size": 9, "lr": 0.01, "mode": "fp32", "device": "cpu", "progress": False}

DIFFERENT: dict[str, dict[str, Any]] = {
    "labels, two cuts": {"variant": Variant(labels=True), "cuts": 2},
    "maps": {"variant": Variant(maps=3.0)},
    "soft": {"variant": Variant(soft=30.0), "rule": "adam", "cost_power": 0.0},
    "idle": {},
}


def without_batch_norm() -> nn.Module:
    """A network that treats a share of a batch as it treats the batch."""
    with torch.random.fork_rng([]):
        torch.manual_seed(0)
        layers = [nn.Conv2d(3, 12, 3, padding=1), nn.ReLU(), nn.Conv2d(12, 16, 3, padding=1), nn.GroupNorm(4, 16), nn.ReLU()]
        return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(64, len(pictures().classes)))


class Idle(nn.Module):
    """A network with a layer that is never called."""

    def __init__(self) -> None:
        super().__init__()
        self.net, self.idle = without_batch_norm(), nn.Linear(3, 3)
        nn.init.ones_(self.idle.weight)
        nn.init.ones_(self.idle.bias)

    def forward(self, x: Tensor) -> Tensor:
        return self.net(x)


def network(name: str) -> nn.Module:
    return build("resnet-pad") if name == "resnet" else Idle() if name == "idle" else without_batch_norm()


def run(name: str, **arguments: Any) -> dict[str, Any]:
    """What one pruning gives, but for its seconds."""
    different = DIFFERENT.get(name, {})
    result = prune(network(name), pictures(), **SETTINGS, **different, **arguments)
    history = [{key: value for key, value in record.items() if key != "seconds"} for record in result.history]
    return {"state": result.model.state_dict(), "kept": result.kept, "history": history, "test": result.test}


def stopped(name: str, folder: Path) -> dict[str, Any]:
    """The same, stopped after two epochs and gone on."""
    epoch = Training.epoch

    def short(self: Training, bar: Any) -> None:
        if len(self.history) == 2:
            raise KeyboardInterrupt
        epoch(self, bar)

    Training.epoch = short  # type: ignore[method-assign]
    with contextlib.suppress(KeyboardInterrupt):
        run(name, checkpoint=folder)
    Training.epoch = epoch  # type: ignore[method-assign]
    return run(name, resume=folder)


if __name__ == "__main__":
    torch.set_num_threads(1)
    folder = Path(sys.argv[1])
    found = {name: run(name) for name in ("plain", *DIFFERENT, "resnet")}
    found["gone on"] = stopped("resnet", folder / "run")
    rank = team(torch.device("cpu")).rank
    torch.save(found, folder / f"{rank}.pt")
    torch.distributed.destroy_process_group()
