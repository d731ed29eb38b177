"""A run that kills itself in the middle of an epoch: ``python killed_run.py FOLDER KIND STEP``."""

from __future__ import annotations

import os
import signal
import sys
from typing import Any

import torch
from nets import build, pictures
from torch import Tensor

from sdap_lite import Result, prune, train
from sdap_lite.loop import Training

# Two epochs with gates, in which channels are cut out twice, two of the small model; 43 images to train on: 6 steps an epoch.
PRUNE: dict[str, Any] = {
    "rate": 0.6,
    "epochs": 4,
    "ramp": 0.45,
    "cuts": 3,
    "batch_size": 8,
    "lr": 0.01,
    "mode": "fp32",
    "device": "cpu",
    "seed": 3,
    "progress": False,
}
TRAIN: dict[str, Any] = {"epochs": 3, "batch_size": 8, "lr": 0.01, "mode": "fp32", "device": "cpu", "seed": 3, "progress": False}


def run(kind: str, **arguments: Any) -> Result:
    if kind == "train":
        return train(build("resnet-conv"), pictures(), **{**TRAIN, **arguments})
    return prune(build("resnet-pad"), pictures(), **{**PRUNE, "rule": kind, **arguments})


if __name__ == "__main__":
    folder, kind, last = sys.argv[1], sys.argv[2], int(sys.argv[3])
    torch.set_num_threads(1)
    step = Training.step

    def deadly(self: Training, x: Tensor, y: Tensor, count: int) -> tuple[float, float]:
        if count == last:
            os.kill(os.getpid(), signal.SIGKILL)
        return step(self, x, y, count)

    Training.step = deadly  # type: ignore[method-assign]
    run(kind, checkpoint=folder)
