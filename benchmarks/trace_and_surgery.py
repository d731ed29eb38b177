"""Tracing and surgery, held against Torch-Pruning's dependency graph and pruner, on networks of torchvision.

Both take the same count of channels: Torch-Pruning halves every layer's, and each group of the
library keeps as many as Torch-Pruning left it.
"""

import copy
import logging
from collections.abc import Callable

import torch
import torch_pruning
from harness import Row, show, take_turns
from torch import Tensor, nn

import sdap_lite as sdap
from sdap_lite import _torchvision

NETS = ("resnet50", "mobilenet_v2", "densenet121", "efficientnet_b0")
X = torch.zeros(1, 3, 64, 64)


def theirs(model: nn.Module) -> nn.Module:
    """A copy, pruned by Torch-Pruning."""
    model = copy.deepcopy(model)
    importance = torch_pruning.importance.MagnitudeImportance(p=1)
    keep = [module for module in model.modules() if isinstance(module, nn.Linear) and module.out_features == 1000]
    torch_pruning.pruner.BasePruner(model, X, importance, pruning_ratio=0.5, ignored_layers=keep).step()
    return model


def ours(model: nn.Module, counts: dict[str, int]) -> nn.Module:
    """A copy, pruned by the library, each group to so many channels."""
    graph = sdap.trace(model, X)
    kept = {name: torch.arange(len(group)) < counts[name] for name, group in graph.prunable.items()}
    return sdap.remove_channels(model, graph, kept, check=False)


def counts_of(small: nn.Module, graph: sdap.ChannelGraph) -> dict[str, int]:
    """How many channels each group has left in a pruned network: those of the first layer that gives them."""
    modules = dict(small.named_modules())
    return {name: getattr(modules[name], "out_channels", getattr(modules[name], "out_features", 0)) for name in graph.prunable}


def both(model: nn.Module) -> dict[str, Callable[[], Tensor | nn.Module]]:
    """The two ways to the same widths."""
    counts = counts_of(theirs(model), sdap.trace(model, X))
    assert sdap.count_params(ours(model, counts)) == sdap.count_params(theirs(model))
    return {"ours": lambda: ours(model, counts), "Torch-Pruning": lambda: theirs(model)}


def measure() -> list[Row]:
    logging.disable(logging.WARNING)
    build = _torchvision.load().models.get_model
    rows = []
    for name in NETS:
        torch.manual_seed(0)
        times = take_turns(both(build(name, weights=None).eval()), repeats=5, warmup=1)
        rows.append(Row(f"{name}: trace and surgery", "Torch-Pruning", times["ours"] / times["Torch-Pruning"], 1.0, times))
    return rows


if __name__ == "__main__":
    show(measure)
