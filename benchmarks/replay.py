"""A training step that a GPU replays from a recording, held against one that Python asks for kernel by kernel.

Three epochs of 50 batches of noise, plain training and pruning with all gates on; of the seconds an
epoch, the fewest count. Without a GPU there is nothing to measure. Chapter 12.
"""

from typing import Any

import torch
from harness import Row, show

import sdap_lite as sdap
from sdap_lite.models import NETS

STEPS, BATCH = 50, 128
KINDS: dict[str, dict[str, Any]] = {"training": {}, "pruning": {"rate": 0.75, "ramp": 1.0}}


def noise() -> sdap.data.Images:
    generator = torch.Generator().manual_seed(0)

    def split(count: int) -> sdap.data.Split:
        return sdap.data.Split(torch.randint(256, (count, 3, 32, 32), generator=generator).byte(), torch.arange(count) % 10)

    return sdap.data.Images("noise", split(STEPS * BATCH), split(BATCH), tuple("0123456789"), (0.5,) * 3, (0.25,) * 3, "noise", split(BATCH))


def milliseconds(net: str, kind: str, images: sdap.data.Images, *, replay: bool) -> float:
    torch.manual_seed(0)
    run: Any = {"training": sdap.train, "pruning": sdap.prune}[kind]
    how = {"epochs": 3, "lr": 0.01, "mode": "bf16-channels-last", "replay": replay, "progress": False}
    result = run(NETS[net](in_channels=3, classes=10), images, **KINDS[kind], **how)
    return 1e3 * min(record["seconds"] for record in result.history) / STEPS


def measure() -> list[Row]:
    rows: list[Row] = []
    if not torch.cuda.is_available():
        print("no GPU here")
        return rows
    images = noise()
    for net in ("resnet56", "vgg-full"):
        for kind in KINDS:
            replayed, asked = (milliseconds(net, kind, images, replay=replay) for replay in (True, False))
            rows.append(Row(f"{net}, {kind}: replayed step", "step asked for", replayed / asked, None, {"replayed": replayed, "asked for": asked}, "ms"))
    return rows


if __name__ == "__main__":
    show(measure)
