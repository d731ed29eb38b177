"""Times every layer of a network at several widths: the table behind ``unit="latency"``. Chapter 7.

A layer is timed alone, on zeros of the size that it has in the network. What the layers' times do
not add up to (activations, sums, the calls themselves) is known from two networks, the whole and one
of half the width: the part of it that shrinks is shared out among the layers by the size of what
they give, the other is the table's ``rest``, which no rate removes.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from .budget import cost, largest_rate, threshold
from .graph import ChannelGraph, Group, Layer, check_graph
from .latency_table import LatencyTable, monotone
from .measure import evaluating
from .surgery import remove_channels

__all__ = ["call_time", "time_both", "time_layers"]

WARM_UP = 2  # calls before those that count: caches fill, kernels are chosen
FINE = time.get_clock_info("thread_time").resolution <= 1e-6  # not on Windows


def call_time(module: nn.Module, example: Tensor) -> float:
    """How long one call takes, in seconds.

    On one CPU thread it is that thread's own time, in which what else the machine does has no part;
    on more of them, or on a GPU, the time that passes until all is done.
    """
    clock = time.thread_time if FINE and example.device.type == "cpu" and torch.get_num_threads() == 1 else time.perf_counter
    start = clock()
    module(example)
    if example.is_cuda:
        torch.cuda.synchronize(example.device)
    return clock() - start


def time_layers(
    model: nn.Module,
    graph: ChannelGraph,
    *,
    points: int = 5,
    repeats: int = 9,
    threads: int = 1,
    timer: Callable[[nn.Module, Tensor], float] = call_time,
) -> ChannelGraph:
    """The same graph with a table of latencies, for ``unit="latency"``: measured here and now.

    Args:
        model: stays as it is; it is run in eval mode, on one example, where its parameters are.
        graph: of the model.
        points: how many input widths and how many output widths of a layer are timed, from 2 on.
        repeats: how many calls each; they take turns, and the median counts.
        threads: CPU threads.
        timer: how one call is timed, in seconds.

    Raises:
        ValueError: ``points`` or ``repeats`` is too small, the graph is not this model's, or a layer cannot run alone.

    >>> from sdap_lite import cost, models, trace
    >>> model = models.ResNet(8, width=4)
    >>> graph = time_layers(model, trace(model, torch.zeros(1, 3, 16, 16)), points=2, repeats=1)
    >>> cost(graph, unit="latency") > 0  # nanoseconds
    True
    """
    if points < 2 or repeats < 1:
        raise ValueError(f"points must be from 2 on and repeats from 1 on, got {points} and {repeats}")
    check_graph(graph)
    layers = [layer for layer in graph.layers.values() if layer.kind != "pad"]
    example = next(model.parameters()).new_zeros(1, *graph.shape[1:])
    kept = _half(graph)
    small = remove_channels(model, graph, kept, check=False)
    known: dict[Any, Tensor] = {}  # layers that are alike are timed once
    rows = []
    with _threads(threads), evaluating(model), evaluating(small), torch.no_grad():
        calls = _calls(model, layers, example)
        for layer in layers:
            times, size = torch.zeros(points, points, dtype=torch.float64), 0.0
            widths = _widths(model.get_submodule(layer.module), layer, points)
            for x, given in calls[layer.name]:
                key = (str(model.get_submodule(layer.module)), x.shape)
                if key not in known:
                    known[key] = _time(_narrowed(model, layer, x, widths), repeats, timer)
                times, size = times + known[key], size + given / len(layer.outputs)
            rows.append((*map(torch.tensor, widths), monotone(times), torch.tensor(widths[1]).expand(points, points) * size))
        whole, narrow = _time([[(model, example), (small, example)]], repeats, timer)[0].tolist()
    inputs, outputs, table, sizes = (torch.stack(column) for column in zip(*rows, strict=True))
    return _with_rest(graph, LatencyTable(tuple(layer.name for layer in layers), inputs, outputs, table), sizes, kept, whole, narrow)


def time_both(
    model: nn.Module,
    small: nn.Module,
    example: Tensor,
    *,
    repeats: int = 25,
    threads: int = 1,
    timer: Callable[[nn.Module, Tensor], float] = call_time,
) -> tuple[int, int]:
    """What two networks really take, in nanoseconds: they take turns, and the medians count.

    Args:
        model: the one; it is run in eval mode.
        small: the other.
        example: an input.
        repeats: how many calls each.
        threads: CPU threads.
        timer: how one call is timed, in seconds.
    """
    with _threads(threads), evaluating(model), evaluating(small), torch.no_grad():
        first, second = _time([[(model, example), (small, example)]], repeats, timer)[0].tolist()
    return round(first), round(second)


# ---------------------------------------------------------------------------------------------


@contextmanager
def _threads(count: int) -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _half(graph: ChannelGraph) -> dict[str, Tensor]:
    """The first half of each group's channels, or as many as must stay."""
    position = torch.cat([torch.arange(len(g)) / len(g) for g in graph.groups.values()])
    scores = graph.split(torch.cat([1 - position, torch.zeros(1)]))
    return threshold(graph, scores, largest_rate(graph, "channels") / 2, unit="channels", cost_power=0)


def _with_rest(graph: ChannelGraph, layers: LatencyTable, sizes: Tensor, kept: dict[str, Tensor], whole: float, narrow: float) -> ChannelGraph:
    """Adds what the layers' own times leave out: a part that shrinks with the layers' outputs, and a part that does not.

    Args:
        graph: without times.
        layers: the times of the layers alone.
        sizes: how many numbers each layer gives, by its widths as in the table.
        kept: the channels of a narrower network.
        whole: what the network takes, in nanoseconds.
        narrow: what the narrower one takes.
    """

    def total(times: Tensor, kept: dict[str, Tensor] | None = None) -> int:
        return cost(replace(graph, times=replace(layers, times=times)), kept, "latency")

    rest = max(0.0, whole - total(layers.times))
    lost = 1 - total(sizes, kept) / total(sizes)
    shrinks = min(max(rest - (narrow - total(layers.times, kept)), 0.0) / lost, rest) if lost else 0.0
    return replace(graph, times=replace(layers, times=layers.times + shrinks * sizes / total(sizes), rest=round(rest - shrinks)))


def _calls(model: nn.Module, layers: list[Layer], example: Tensor) -> dict[str, list[tuple[Tensor, int]]]:
    """For each layer, for each of its calls in the network: an input of zeros, and how many numbers come out.

    Raises:
        ValueError: a layer cannot run alone, on the input that its module gets.
    """
    inputs: dict[str, list[Tensor]] = {layer.name: [] for layer in layers}

    def remember(name: str) -> Any:
        def hook(module: nn.Module, args: tuple[Tensor, ...], kwargs: dict[str, Tensor], output: Any) -> None:
            inputs[name].append(torch.zeros_like([*args, *kwargs.values()][0]))

        return hook

    modules = [(layer.name, model.get_submodule(layer.name)) for layer in layers if layer.kind != "parameter"]
    handles = [module.register_forward_hook(remember(name), with_kwargs=True) for name, module in modules]
    try:
        model(example)
    finally:
        for handle in handles:
            handle.remove()
    found: dict[str, list[tuple[Tensor, int]]] = {}
    for layer in layers:
        whole = _alone(model, layer, len(layer.inputs), len(layer.outputs)) if inputs[layer.name] else None
        try:
            found[layer.name] = [(x, whole(x).numel()) for x in inputs[layer.name] if whole]
        except Exception as error:  # an input that its own code prepares, or autocast around it
            raise ValueError(f"every layer must run alone for its time to be taken, but {layer.name!r} does not: {error}; choose another unit") from error
    return found


def _widths(module: Any, layer: Layer, points: int) -> tuple[list[int], list[int]]:
    """The input and the output widths to time: evenly spaced, the whole width last."""

    def spaced(width: int, step: int) -> list[int]:
        return [step * round(1 + (width // step - 1) * k / (points - 1)) for k in range(points)]

    inputs, outputs = len(layer.inputs), len(layer.outputs)
    if layer.mixes:
        return spaced(inputs, layer.parts), spaced(outputs, layer.parts)
    # A channel comes in and goes out, so one width says it all: those of a group norm go group by group.
    step = outputs // module.num_groups if isinstance(module, nn.GroupNorm) else outputs // inputs
    return [inputs] * points, spaced(outputs, step)


def _narrowed(model: nn.Module, layer: Layer, x: Tensor, widths: tuple[list[int], list[int]]) -> list[list[tuple[nn.Module, Tensor]]]:
    """The layer alone at all pairs of widths, each with an input."""
    axis = x.ndim - 1 if layer.kind == "linear" else 1
    inputs, outputs = widths
    if not layer.mixes:
        ratio = len(layer.outputs) // len(layer.inputs)
        return [[(_alone(model, layer, o // ratio, o), x.narrow(axis, 0, o // ratio).clone()) for o in outputs]]
    return [[(_alone(model, layer, i, o), x.narrow(axis, 0, i).clone()) for o in outputs] for i in inputs]


def _alone(model: nn.Module, layer: Layer, inputs: int, outputs: int) -> nn.Module:
    """A copy of a layer with fewer channels, cut as surgery cuts; of PyTorch's own class, without what a subclass adds to the product."""
    before, after = len(layer.inputs), len(layer.outputs)
    line = torch.arange(before)
    ends = before + torch.arange(after) if layer.mixes else line.repeat_interleave(after // before)
    lone = replace(layer, name="layer", inputs=line, outputs=ends)
    groups = {name: Group(name, start, stop, ("layer",)) for name, start, stop in (("in", 0, before), ("out", before, before + after))}
    graph = ChannelGraph({"layer": lone}, groups, torch.ones(before + after, dtype=torch.bool), (), ())
    kept = {"in": _first(before, inputs, layer.parts), "out": _first(after, outputs, layer.parts)}
    module = remove_channels(nn.ModuleDict({"layer": model.get_submodule(layer.module)}), graph, kept, check=False)["layer"]  # type: ignore[index]
    module.__class__ = next(kind for kind in type(module).__mro__ if kind.__module__.startswith("torch.nn."))
    return module


def _first(width: int, count: int, parts: int) -> Tensor:
    """A mask of the first channels of each part."""
    return (torch.arange(width // parts) < count // parts).repeat(parts)


def _time(calls: list[list[tuple[nn.Module, Tensor]]], repeats: int, timer: Callable[[nn.Module, Tensor], float]) -> Tensor:
    """Nanoseconds a call, the median; all take turns, so that what else the machine does meets them alike."""
    for _ in range(WARM_UP):
        for row in calls:
            for module, x in row:
                module(x)
    rounds = [[[timer(module, x) for module, x in row] for row in calls] for _ in range(repeats)]
    return torch.tensor(rounds, dtype=torch.float64).median(0).values * 1e9
