"""The whole method at rate 0.75, teacher included, held against plain training of the dense network.

The same images, epochs, batches and mode. The teacher makes each step dearer, the gates a little;
surgery at the middle of the run makes the other half cheaper.
"""

import copy

import torch
from harness import Row, show, take_turns

import sdap_lite as sdap
from sdap_lite.measure import choose_mode

EPOCHS, IMAGES = 4, 512


def measure() -> list[Row]:
    images = sdap.data.load("fashion-mini").limit(IMAGES, IMAGES // 4)
    rows = []
    for name in ("resnet20", "vgg"):
        model = getattr(sdap.models, name)(pretrained="fashion-mini")
        mode = choose_mode(model, torch.zeros(64, 1, 28, 28))

        def plain(model: torch.nn.Module = model, mode: str = mode) -> None:
            sdap.train(copy.deepcopy(model), images, epochs=EPOCHS, mode=mode, progress=False)

        def whole(model: torch.nn.Module = model, mode: str = mode) -> None:
            sdap.prune(model, images, rate=0.75, epochs=EPOCHS, mode=mode, progress=False)

        times = take_turns({"whole run": whole, "plain training": plain}, repeats=5, warmup=1)
        rows.append(Row(f"{name}: whole run at rate 0.75", "plain training", times["whole run"] / times["plain training"], 1.0, times))
    return rows


if __name__ == "__main__":
    show(measure)
