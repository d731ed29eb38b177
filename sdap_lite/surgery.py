"""Surgery: from kept channels to a plain small model that computes what the masked one computes.

Chapter 6. Everything that has a slice a channel is cut: consumers and producers, norms, depthwise
filters, and the optimizer's state with them.
"""

from __future__ import annotations

import copy
from dataclasses import fields, is_dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from .copies import copied, in_mode, starting_memo
from .gates import check_model
from .graph import ChannelGraph, Layer
from .layers import ChannelPad

__all__ = ["SurgeryError", "masked", "remove_channels", "slice_optimizer"]

TOLERANCE = {torch.float64: 1e-10, torch.float32: 1e-4}  # relative to the largest number where that is above 1


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
    # Tensors to cut are given to deepcopy as copied already: the copy never holds more than the small model.
    memo = starting_memo(model)
    for layer in sorted(graph.layers.values(), key=lambda layer: layer.kind != "parameter"):  # what is known of a tensor by itself comes first
        for key, tensor in _tensors(model, layer):
            memo.setdefault(id(tensor), _like(tensor, _cut(tensor, layer.slices(key, tensor.shape, flat))))
    small = copy.deepcopy(model, memo)
    for layer in graph.layers.values():
        _resize(small.get_submodule(layer.module), layer, flat)
    if check:
        _compare(model, small, graph, flat)
    return small


def masked(model: nn.Module, graph: ChannelGraph, kept: dict[str, Tensor]) -> nn.Module:
    """A copy of the model in which every consumer's columns of the channels that go are zero."""
    check_model(model, graph)
    flat = _check_kept(graph, kept)
    memo = starting_memo(model)
    for layer in graph.layers.values():
        if layer.mixes:
            weight = model.get_parameter(f"{layer.name}.weight")
            gone = (~flat[layer.columns]).nonzero().flatten().to(weight.device)
            memo.setdefault(id(weight), _like(weight, weight.detach().clone().index_fill_(0 if layer.transposed else 1, gone, 0)))
    return copy.deepcopy(model, memo)


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
            layer = graph.layers.get(names[old]) or graph.layers.get(module)
            slices = layer.slices(key, old.shape, flat) if layer else {}
            group["params"][i] = new = targets[names[old]]
            if old in state:
                optimizer.state[new] = {k: _cut(v, slices) if isinstance(v, Tensor) and v.shape == old.shape else v for k, v in state[old].items()}


# ---------------------------------------------------------------------------------------------


def _check_kept(graph: ChannelGraph, kept: dict[str, Tensor]) -> Tensor:
    """One bool a channel; raises where the network could not live with it."""
    flat = graph.join_kept(kept)
    lost = ~flat & ~graph.removable
    if bool(lost.any()):
        group = next(g.name for g in graph.groups.values() if bool(lost[g.start : g.stop].any()))
        raise ValueError(f"{int(lost.sum())} channels must stay but are not kept, the first in group {group!r}: print(graph) says why they must")
    for layer in graph.layers.values():
        if not bool(flat[layer.outputs].any()) or not bool(flat[layer.inputs].any()):
            raise ValueError(f"every layer must keep at least one channel, but {layer.name!r} would lose all")
    return flat


def _tensors(model: nn.Module, layer: Layer) -> list[tuple[str, Tensor]]:
    """A layer's parameters and buffers, by their names in the module."""
    module = model.get_submodule(layer.module)
    if layer.kind == "parameter":
        key = layer.name.rpartition(".")[2]
        return [(key, getattr(module, key))]
    return [*module.named_parameters(recurse=False), *module.named_buffers(recurse=False)]


def _cut(tensor: Tensor, slices: dict[int, Tensor]) -> Tensor:
    """A new tensor with the given positions of some axes."""
    new = tensor.detach()
    for axis, index in slices.items():
        if len(index) < new.shape[axis]:
            new = new.index_select(axis, index.to(new.device))
    return new.clone() if new.data_ptr() == tensor.data_ptr() else new


def _like(old: Tensor, new: Tensor) -> Tensor:
    """A parameter, if the old tensor is one, and trained if that is."""
    return nn.Parameter(new, requires_grad=old.requires_grad) if isinstance(old, nn.Parameter) else new


def _resize(module: Any, layer: Layer, flat: Tensor) -> None:
    """The numbers that a module says of itself."""
    inputs, outputs = int(flat[layer.inputs].sum()), int(flat[layer.outputs].sum())
    if layer.kind == "pad":
        kept = flat[layer.outputs]
        module.before, module.after = int(kept[: module.before].sum()), int(kept[len(kept) - module.after :].sum())
    elif layer.kind == "linear":
        module.in_features, module.out_features = inputs, outputs
    elif layer.kind in ("norm", "parameter"):
        if isinstance(module, nn.GroupNorm):
            module.num_groups = module.num_groups * outputs // module.num_channels
        for key in ("num_features", "num_channels", "num_parameters"):
            if getattr(module, key, None) == len(layer.outputs):
                setattr(module, key, outputs)
    else:
        module.in_channels, module.out_channels = inputs, outputs
        module.groups = inputs if layer.kind == "depthwise" else layer.parts


def _compare(model: nn.Module, small: nn.Module, graph: ChannelGraph, flat: Tensor, dtype: torch.dtype = torch.float64, draw: Any = torch.randn) -> None:
    """Runs the masked and the small model on one random input, in eval mode: in float64, or in float32 where a cast in the forward pass asks for it.

    Where nothing comes out but NaN and infinity (a root of the input, say), once more with numbers from 0 to 1.
    """
    large = in_mode(masked(model, graph, graph.split(flat)).cpu().to(dtype), False)
    narrow = in_mode(copied(small).cpu().to(dtype), False)
    x = draw(2, *graph.shape[1:], dtype=dtype, generator=torch.Generator().manual_seed(0))
    differ: list[str] = []
    # A module may be called more than once. What a subclass makes of its product, only its own code knows: there the networks' outputs tell
    seen: dict[str, list[Tensor]] = {n: [] for n, y in graph.layers.items() if y.kind != "parameter" and _is_stock(model.get_submodule(n))}

    def remember(name: str, layer: Layer) -> Any:
        def hook(module: Any, inputs: Any, output: Tensor) -> None:
            axis = output.ndim - 1 if layer.kind == "linear" else output.ndim - len(getattr(module, "kernel_size", output.shape[2:])) - 1
            seen[name].append(output.index_select(axis, flat[layer.outputs].nonzero().flatten()))  # a copy: what comes next may work in place

        return hook

    def compare(name: str) -> Any:
        def hook(module: nn.Module, inputs: Any, output: Tensor) -> None:
            if not differ and not _equal(seen[name].pop(0), output, TOLERANCE[dtype]):
                differ.append(name)

        return hook

    for name in seen:
        large.get_submodule(name).register_forward_hook(remember(name, graph.layers[name]), prepend=True)  # before the user's hooks change it
        narrow.get_submodule(name).register_forward_hook(compare(name), prepend=True)
    with torch.no_grad():
        try:
            wanted = large(x.clone())  # a copy: a model may work in place on what it is given
        except RuntimeError:
            if dtype == torch.float32:
                raise
            _compare(model, small, graph, flat, torch.float32, draw)
            return
        if not _says_something(wanted):
            if draw is torch.rand:
                raise SurgeryError("the check must see finite numbers to prove anything, but the model's outputs on random inputs are NaN or infinite")
            _compare(model, small, graph, flat, dtype, torch.rand)
            return
        try:
            got = narrow(x.clone())
        except Exception as error:  # what user code may raise
            raise SurgeryError(f"the small model cannot run, after {', '.join(differ) or 'modules that all agree'}: {error}") from error
    if differ or not _equal(wanted, got, TOLERANCE[dtype]):
        raise SurgeryError(f"the small model must compute what the masked one computes, but differs first at {differ[0] if differ else 'the output'!r}")


def _is_stock(module: nn.Module) -> bool:
    """Whether a layer's output is known to have its channels where the layer's kind says."""
    return type(module).__module__.startswith("torch.nn.") or isinstance(module, ChannelPad)


def _says_something(outputs: Any) -> bool:
    """Whether there is a finite number among the outputs, or none is a number."""
    numbers = [x for x in tree_leaves(outputs) if isinstance(x, Tensor) and x.numel()]
    return not numbers or any(bool(x.isfinite().any()) for x in numbers)


def _equal(wanted: Any, got: Any, tolerance: float = TOLERANCE[torch.float64]) -> bool:
    if isinstance(wanted, Tensor):
        if wanted.shape != got.shape:
            return False
        alike = (wanted == got) | (wanted.isnan() & got.isnan())  # infinite or undefined in both
        difference = torch.where(alike, 0, (wanted - got).abs())
        largest = wanted.abs().masked_fill(~wanted.isfinite(), 0)
        return not wanted.numel() or float(difference.max()) <= tolerance * max(1.0, float(largest.max()))
    if isinstance(wanted, dict):
        return wanted.keys() == got.keys() and all(_equal(wanted[k], got[k], tolerance) for k in wanted)
    if is_dataclass(wanted):
        return all(_equal(getattr(wanted, field.name), getattr(got, field.name), tolerance) for field in fields(wanted))
    return all(_equal(a, b, tolerance) for a, b in zip(wanted, got, strict=True)) if isinstance(wanted, (tuple, list)) else wanted == got
