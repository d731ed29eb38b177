"""The whole method at rate 0.75, teacher included, held against plain training of the dense network.

The same images, epochs, batches and mode. The teacher makes each step dearer, the gates a little;
surgery at the middle of the run makes the other half cheaper. *Cut early* has a ramp of a quarter of
the run and cuts twice along it, which leaves more of the run to the small network; *by MACs* asks
for three quarters of the work to go, not of the parameters.
"""

import copy
from functools import partial
from typing import Any

import torch
from harness import Row, show, take_turns

import sdap_lite as sdap
from sdap_lite.measure import choose_mode

EPOCHS, IMAGES = 4, 1536
EARLY = {"ramp": 0.25, "cuts": 2}
RUNS: dict[str, dict[str, Any]] = {"by default": {}, "cut early": EARLY, "cut early, by MACs": {**EARLY, "unit": "macs", "round_to": 8}}


def measure() -> list[Row]:
    images = sdap.data.load("fashion-mini").limit(IMAGES, IMAGES // 4)
    rows = []
    for name in ("resnet20", "vgg"):
        model = getattr(sdap.models, name)(pretrained="fashion-mini")
        mode = choose_mode(model, torch.zeros(64, 1, 28, 28))

        def plain(model: torch.nn.Module, mode: str) -> None:
            sdap.train(copy.deepcopy(model), images, epochs=EPOCHS, mode=mode, progress=False)

        def whole(model: torch.nn.Module, mode: str, settings: dict[str, Any]) -> None:
            sdap.prune(model, images, rate=0.75, epochs=EPOCHS, mode=mode, progress=False, **settings)

        tasks = {"plain training": partial(plain, model, mode), **{name: partial(whole, model, mode, settings) for name, settings in RUNS.items()}}
        times = take_turns(tasks, repeats=5, warmup=1)
        for run in RUNS:
            measured = {run: times[run], "plain training": times["plain training"]}
            rows.append(Row(f"{name}: whole run at rate 0.75, {run}", "plain training", times[run] / times["plain training"], 1.0, measured))
    return rows


if __name__ == "__main__":
    show(measure)
