"""How the time of a trace grows with the number of channel labels, from ResNet-18 to EfficientNet-B7.

Linear means that the time follows the labels in proportion: the exponent of the fitted power law,
the slope over logarithms, is at most 1.
"""

import math
from typing import Any

import torch
from harness import Row, show, take_turns
from torch import nn

import sdap_lite as sdap
from sdap_lite import _torchvision

NETS = ("resnet18", "resnet50", "resnet152", "efficientnet_b0", "efficientnet_b3", "efficientnet_b5", "efficientnet_b7")


def labels(model: nn.Module) -> int:
    """How many labels a trace hands out: one for each channel that a layer gives."""
    return sum(getattr(module, "out_channels", getattr(module, "out_features", 0)) for module in model.modules())


def slope(x: list[float], y: list[float]) -> float:
    """Of the straight line through the points, by least squares."""
    middle_x, middle_y = sum(x) / len(x), sum(y) / len(y)
    return sum((a - middle_x) * (b - middle_y) for a, b in zip(x, y, strict=True)) / sum((a - middle_x) ** 2 for a in x)


def measure() -> list[Row]:
    build: Any = _torchvision.load().models.get_model
    nets = {name: build(name, weights=None).eval() for name in NETS}
    example = torch.zeros(1, 3, 64, 64)
    times = take_turns({name: lambda net=net: sdap.trace(net, example) for name, net in nets.items()}, repeats=5, warmup=1)  # type: ignore[misc]
    counts = {name: labels(net) for name, net in nets.items()}
    exponent = slope([math.log(n) for n in counts.values()], [math.log(t) for t in times.values()])
    rows = [Row(f"trace of {name}", f"{counts[name]:,} labels", 1e6 * times[name] / counts[name], None, {name: times[name]}) for name in NETS]
    return [*rows, Row("exponent of trace time over labels", "1, which is linear", exponent, 1.1, {})]


if __name__ == "__main__":
    show(measure)
