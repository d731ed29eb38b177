"""The peak memory of a training step: plain, with gates on the weights, and with gates on the activations.

Each is measured in a process of its own, since the peak of a process never falls again: the most
memory that it held, less what it held before the model was made.
"""

import json
import resource
import statistics
import sys

import torch
import torch.nn.functional as F
from harness import Row, fresh, show
from torch import Tensor, nn

import sdap_lite as sdap

KINDS = ("plain", "weights", "activations")
REPEATS = 5


def gate_activations(model: nn.Module, graph: sdap.ChannelGraph, mask: Tensor) -> None:
    """The textbook's gates: each consumer's input is multiplied by its channels' mask."""

    def gate(columns: Tensor, axes: int) -> object:
        def hook(module: nn.Module, inputs: tuple[Tensor, ...]) -> Tensor:
            return inputs[0] * mask[columns].view(-1, *[1] * axes)

        return hook

    for name, layer in graph.layers.items():
        if layer.mixes:
            axes = 0 if layer.kind == "linear" else 2
            model.get_submodule(name).register_forward_pre_hook(gate(layer.columns, axes))  # type: ignore[arg-type]


def held() -> float:
    """The most memory that this process has held so far, in MB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (2**20 if sys.platform == "darwin" else 2**10)  # Linux counts in KB, macOS in bytes


def peak(kind: str) -> float:
    """What a training step of one kind holds at its peak, in MB: weights, gradients, momentum and activations."""
    torch.manual_seed(0)
    warm = sdap.models.vgg()
    warm(torch.zeros(2, 3, 32, 32)).sum().backward()  # the libraries behind it are loaded
    graph = sdap.trace(warm, torch.zeros(1, 3, 32, 32))
    before = held()
    model = sdap.models.vgg()
    x, labels = torch.randn(128, 3, 32, 32), torch.randint(10, (128,))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    if kind == "weights":
        sdap.Gates(graph).attach(model)
    elif kind == "activations":
        gate_activations(model, graph, torch.ones(len(graph), requires_grad=True))
    for _ in range(2):
        optimizer.zero_grad()
        F.cross_entropy(model(x), labels).backward()
        optimizer.step()
    return held() - before


def measure() -> list[Row]:
    # glibc then hands each larger tensor back when it is freed, so that the process is as large as what it holds.
    peaks = {kind: [float(fresh("memory.py", kind, MALLOC_MMAP_THRESHOLD_="65536")) for _ in range(REPEATS)] for kind in KINDS}
    middle = {kind: statistics.median(values) for kind, values in peaks.items()}
    rows = []
    for kind, limit in (("weights", 1.05), ("activations", None)):
        figures = {kind: middle[kind], "plain": middle["plain"]}
        rows.append(Row(f"peak memory, gates on {kind}", "plain step", middle[kind] / middle["plain"], limit, figures, unit="MB"))
    return rows


if __name__ == "__main__":
    if sys.argv[1:2] and sys.argv[1] in KINDS:
        print(json.dumps(peak(sys.argv[1])))
    else:
        show(measure)
