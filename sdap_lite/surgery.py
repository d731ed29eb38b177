"""Surgery: from kept channels to a plain small model that computes what the masked one computes.

Chapter 6. Everything that has a slice a channel is cut: consumers and producers, norms, depthwise
filters, and the optimizer's state with them.
"""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import Tensor, nn

from .gates import check_model
from .graph import ChannelGraph, Layer

__all__ = ["SurgeryError", "masked", "remove_channels", "slice_optimizer"]

TOLERANCE = 1e-10  # in float64, relative to the largest number where that is above 1


class SurgeryError(RuntimeError):
    """The small model does not compute what the masked one computes."""


def remove_channels(model: nn.Module, graph: ChannelGraph, kept: dict[str, Tensor], *, check: bool = True) -> nn.Module:
    """Cuts all channels that are not kept out of a copy of the model.

    Args:
        model: stays bitwise as it is.
        graph: of the model.
        kept: for each prunable group a bool tensor, as :func:`sdap_lite.threshold` gives.
        check: whether to run both in float64 on a random input, and compare.

    Returns:
        A new model of the same classes, in eval or train mode as the given one.

    Raises:
        ValueError: the graph is not this model's, or ``kept`` empties a layer or drops what must stay.
        SurgeryError: the check found a difference; the message names the first module that differs.

    >>> from sdap_lite import models, threshold, trace
    >>> model = models.ResNet(20)
    >>> graph = trace(model, torch.zeros(1, 3, 32, 32))
    >>> scores = graph.split(torch.arange(float(len(graph))))
    >>> small = remove_channels(model, graph, threshold(graph, scores, 0.75))
    >>> type(small).__name__, sum(p.numel() for p in small.parameters()) <= 0.25 * 269722
    ('ResNet', True)
    """
    check_model(model, graph)
    flat = _check_kept(graph, kept)
    small = copy.deepcopy(model)
    modules = dict(small.named_modules())
    for name, layer in graph.layers.items():
        _resize(modules[name], layer, flat)
        for key, tensor in [*modules[name].named_parameters(recurse=False), *modules[name].named_buffers(recurse=False)]:
            _replace(modules[name], key, _cut(tensor, _slices(layer, key, flat)))
    if check:
        _compare(model, small, graph, flat)
    return small


def masked(model: nn.Module, graph: ChannelGraph, kept: dict[str, Tensor]) -> nn.Module:
    """A copy of the model in which every consumer's columns of the channels that go are zero."""
    check_model(model, graph)
    return _masked(model, graph, _check_kept(graph, kept))


def slice_optimizer(optimizer: torch.optim.Optimizer, model: nn.Module, small: nn.Module, graph: ChannelGraph, kept: dict[str, Tensor]) -> None:
    """Makes an optimizer of ``model`` one of ``small``: parameters exchanged, their state cut alike.

    Momentum, running squares and the like go on where they were; what is no tensor of the
    parameter's shape (a step count) stays.

    Args:
        optimizer: any whose state has, for each parameter, tensors of its shape; changed in place.
        model: the model that it was made for.
        small: what :func:`remove_channels` made of it.
        graph: of the model.
        kept: what was kept.

    Raises:
        ValueError: the optimizer holds a parameter that is not the model's.
    """
    flat = _check_kept(graph, kept)
    names = {parameter: name for name, parameter in model.named_parameters()}
    targets = dict(small.named_parameters())
    state = dict(optimizer.state)
    strangers = [list(p.shape) for group in optimizer.param_groups for p in group["params"] if p not in names]
    if strangers:
        raise ValueError(f"the optimizer must hold parameters of this model only, but holds others of shapes {strangers}")
    optimizer.state.clear()
    for group in optimizer.param_groups:
        for i, old in enumerate(group["params"]):
            module, _, key = names[old].rpartition(".")
            layer = graph.layers.get(module)
            slices = _slices(layer, key, flat) if layer else {}
            group["params"][i] = new = targets[names[old]]
            if old in state:
                optimizer.state[new] = {k: _cut(v, slices) if isinstance(v, Tensor) and v.shape == old.shape else v for k, v in state[old].items()}


# ---------------------------------------------------------------------------------------------


def _check_kept(graph: ChannelGraph, kept: dict[str, Tensor]) -> Tensor:
    """One bool a channel; raises where the network could not live with it."""
    wrong = {name: str(k.dtype) for name, k in kept.items() if k.dtype != torch.bool}
    if wrong:
        raise ValueError(f"kept must hold bool tensors, got {wrong}")
    flat = graph.join(kept, True).cpu() if kept else torch.ones(len(graph), dtype=torch.bool)
    lost = ~flat & ~graph.removable
    if bool(lost.any()):
        group = next(g.name for g in graph.groups.values() if bool(lost[g.start : g.stop].any()))
        raise ValueError(f"{int(lost.sum())} channels must stay but are not kept, the first in group {group!r}: print(graph) says why they must")
    for layer in graph.layers.values():
        if not bool(flat[layer.outputs].any()) or not bool(flat[layer.inputs].any()):
            raise ValueError(f"every layer must keep at least one channel, but {layer.name!r} would lose all")
    return flat


def _slices(layer: Layer, key: str, flat: Tensor) -> dict[int, Tensor]:
    """Which positions of which axes of a layer's parameter or buffer stay."""
    rows = flat[layer.outputs].nonzero().flatten()
    if key == "weight" and layer.mixes:
        columns = flat[layer.columns].nonzero().flatten()
        return {0: columns, 1: rows} if layer.kind == "transposed" else {0: rows, 1: columns}
    return {} if key == "num_batches_tracked" or layer.kind == "pad" else {0: rows}


def _cut(tensor: Tensor, slices: dict[int, Tensor]) -> Tensor:
    tensor = tensor.detach()
    for axis, index in slices.items():
        tensor = tensor.index_select(axis, index.to(tensor.device))
    return tensor.clone()


def _replace(module: nn.Module, key: str, tensor: Tensor) -> None:
    old = getattr(module, key)
    if isinstance(old, nn.Parameter):
        tensor = nn.Parameter(tensor, requires_grad=old.requires_grad)
    setattr(module, key, tensor)


def _resize(module: Any, layer: Layer, flat: Tensor) -> None:
    """The numbers that a module says of itself."""
    inputs, outputs = int(flat[layer.inputs].sum()), int(flat[layer.outputs].sum())
    if layer.kind == "pad":
        kept = flat[layer.outputs]
        module.before, module.after = int(kept[: module.before].sum()), int(kept[len(kept) - module.after :].sum())
    elif layer.kind == "linear":
        module.in_features, module.out_features = inputs, outputs
    elif layer.kind == "norm":
        module.num_features = outputs
    else:
        module.in_channels, module.out_channels = inputs, outputs
        module.groups = inputs if layer.kind == "depthwise" else layer.parts


def _masked(model: nn.Module, graph: ChannelGraph, flat: Tensor) -> nn.Module:
    model = copy.deepcopy(model)
    for name, layer in graph.layers.items():
        if layer.mixes:
            weight = model.get_parameter(f"{name}.weight")
            axis = 0 if layer.kind == "transposed" else 1
            with torch.no_grad():
                weight.index_fill_(axis, (~flat[layer.columns]).nonzero().flatten().to(weight.device), 0)
    return model


def _compare(model: nn.Module, small: nn.Module, graph: ChannelGraph, flat: Tensor) -> None:
    """Runs the masked and the small model on one random input in float64, in eval mode."""
    large, small = _masked(model, graph, flat).cpu().double().eval(), copy.deepcopy(small).cpu().double().eval()
    x = torch.randn(2, *graph.shape[1:], dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    differ: list[str] = []
    seen: dict[str, list[Tensor]] = {name: [] for name in graph.layers}  # a module may be called more than once

    def remember(name: str) -> Any:
        def hook(module: nn.Module, inputs: Any, output: Tensor) -> None:
            seen[name].append(output.clone())  # what comes next may work in place

        return hook

    def compare(name: str, layer: Layer) -> Any:
        def hook(module: nn.Module, inputs: Any, output: Tensor) -> None:
            axis = -1 if layer.kind == "linear" else 1
            wanted = seen[name].pop(0).index_select(axis, flat[layer.outputs].nonzero().flatten())
            if not differ and not _equal(wanted, output):
                differ.append(name)

        return hook

    for name, layer in graph.layers.items():
        large.get_submodule(name).register_forward_hook(remember(name))
        small.get_submodule(name).register_forward_hook(compare(name, layer))
    with torch.no_grad():
        wanted = large(x)
        try:
            got = small(x)
        except RuntimeError as error:
            raise SurgeryError(f"the small model cannot run, after {', '.join(differ) or 'modules that all agree'}: {error}") from error
    if differ or not _equal(wanted, got):
        raise SurgeryError(f"the small model must compute what the masked one computes, but differs first at {differ[0] if differ else 'the output'!r}")


def _equal(wanted: Any, got: Any) -> bool:
    if isinstance(wanted, Tensor):
        return wanted.shape == got.shape and float((wanted - got).abs().max()) <= TOLERANCE * max(1.0, float(wanted.abs().max()))
    if isinstance(wanted, dict):
        return all(_equal(wanted[k], got[k]) for k in wanted)
    return all(_equal(a, b) for a, b in zip(wanted, got, strict=True)) if isinstance(wanted, (tuple, list)) else wanted == got
