"""One overall rate: what a set of kept channels costs, counted exactly, and which set meets it.

Chapter 3 explains it. The rate is the removed share of a unit: parameters, MACs, channels, or
latency, which is looked up in the graph's table (:mod:`sdap_lite.latency_table`).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from numbers import Integral, Real
from weakref import WeakKeyDictionary

import torch
from torch import Tensor

from .checks import check_number, plain
from .graph import ChannelGraph, check_graph
from .latency_table import LatencyTable

__all__ = ["UNITS", "Report", "channel_costs", "cost", "largest_rate", "report", "schedule", "threshold"]

#: What a rate may count from the graph alone; ``"latency"`` wants a table of times.
UNITS = ("params", "macs", "channels")


def cost(graph: ChannelGraph, kept: dict[str, Tensor] | None = None, unit: str = "params") -> int:
    """What the network costs with only the kept channels left: exact, in parameters, MACs, channels or nanoseconds.

    Args:
        graph: of the whole network.
        kept: a bool tensor for each prunable group; default: everything.
        unit: ``"params"``, ``"macs"`` (as :func:`sdap_lite.count_macs`, but fused operations too), ``"channels"``, or
            ``"latency"`` (nanoseconds, one example), if the graph has times (:func:`sdap_lite.time_layers`).

    Raises:
        ValueError: the unit is unknown, or it is latency and the graph has no times; ``kept`` does not fit the graph or holds no bools.

    >>> from sdap_lite import trace, models
    >>> cost(trace(models.ResNet(20), torch.zeros(1, 3, 32, 32)))
    269722
    """
    return _counter(graph, unit).cost(_flat(graph, kept))


def channel_costs(graph: ChannelGraph, kept: dict[str, Tensor] | None = None, unit: str = "params") -> dict[str, Tensor]:
    """What each channel alone would save, to first order: float64 for each prunable group, at the widths of ``kept``.

    Args:
        graph: of the whole network.
        kept: a bool tensor for each prunable group; default: everything.
        unit: as for :func:`cost`.

    Raises:
        ValueError: as :func:`cost`.
    """
    return graph.split(_counter(graph, unit).marginal(_flat(graph, kept)))


def schedule(progress: float, rate: float, ramp: float, *, power: float = 3.0) -> float:
    r"""The rate at a moment of the run: :math:`r_t = r[1-(1-t/t_p)^3]`, then constant.

    Zhu & Gupta 2017: fast while there is much to spare, slow towards the end.

    Args:
        progress: share of the run that is done, 0 to 1.
        rate: the rate at the end.
        ramp: the share of the run after which it is reached.
        power: of the ramp's shape: 3 as in the equation, 1 for a straight line.

    >>> [round(schedule(p, 0.75, 0.5), 3) for p in (0, 0.25, 0.5, 1)]
    [0.0, 0.656, 0.75, 0.75]
    """
    return rate if progress >= ramp else rate * (1 - (1 - progress / ramp) ** power)


def threshold(
    graph: ChannelGraph,
    scores: dict[str, Tensor],
    rate: float,
    *,
    unit: str = "params",
    cost_power: float = 0.5,
    fill: bool = True,
    round_to: int = 1,
    at: dict[str, Tensor] | None = None,
) -> dict[str, Tensor]:
    """Keeps the channels of the highest scores, as many as the budget allows.

    One threshold for the whole network, found by bisection over the sorted scores; every layer
    keeps its best channel, whatever the threshold. Chapter 3.

    Args:
        graph: of the whole network.
        scores: for each prunable group a float tensor, high for a channel that matters.
        rate: the share of the cost that goes, from 0 to below 1.
        unit: what is counted: ``"params"``, ``"macs"``, ``"channels"`` or ``"latency"``.
        cost_power: scores are divided by (what the channel costs) to this power: 0 compares
            channels as they are; 1/2 suits a score whose square is what the channel is worth, such as
            a root mean square, for it orders by worth per unit of cost; 1 suits one that is the worth itself.
        fill: whether channels below the threshold that still fit are kept too, so that the
            achieved rate comes nearer to the one asked for.
        round_to: each group keeps a multiple of this many channels (grouped convolutions: in each
            part), so that layers have widths that hardware likes. Counts are rounded down before
            the cost is counted; only a group that is smaller, or in which more must stay than the
            largest multiple, keeps all.
        at: channels that are kept at the moment: what a channel costs is counted at these widths;
            default: at the full ones.

    Returns:
        For each prunable group a bool tensor; its cost is at most ``(1 - rate)`` of the whole,
        with ``round_to`` too.

    Raises:
        ValueError: the rate is no number from 0 to below 1, or more than can go; scores are missing, no tensors, or NaN;
            ``cost_power`` is no number from 0 on, or ``round_to`` no whole number from 1 on.
    """
    check_rate(rate)
    check_round_to(round_to)
    check_number("cost_power", plain(cost_power), "be a number from 0 on", lambda v: v >= 0)
    rate, round_to = float(rate), int(round_to)  # numpy's would count in their own precision
    counter = _counter(graph, unit)
    flat = graph.join(scores, 0.0).detach().cpu().double()
    if not bool(torch.isfinite(flat).all()):
        raise ValueError("scores must be finite numbers, got NaN or infinity")
    whole = torch.ones(len(graph), dtype=torch.bool)
    if cost_power:
        flat = _divide(flat, counter.marginal(_flat(graph, at)).clamp(min=1) ** cost_power)
    must = _protected(graph, flat)
    down = _rounder(graph, flat, must, round_to)
    target = math.floor((1 - rate) * counter.cost(whole) + 1e-9)
    if counter.cost(down(must)) > target:  # the best channels of all layers cost too much: the cheapest, then
        must = _cheapest(graph, counter, round_to)
        down = _rounder(graph, flat, must, round_to)
    if counter.cost(down(must)) > target:
        most = f"{largest_rate(graph, unit, round_to):.4f}"
        raise ValueError(f"rate must be at most {most} here, where every layer keeps {least_width(round_to)} and what must stay, got {rate}")
    order = torch.argsort(flat, descending=True, stable=True)
    order = order[~must[order]]
    count, kept = _as_many_as_fit(counter, must, order, down, target)
    if fill and round_to > 1:
        _fill_blocks(graph, counter, kept, order, target, round_to)
    elif fill:
        _fill(counter, kept, order[count + 1 : count + 65], target)
    return graph.split(kept)


def largest_rate(graph: ChannelGraph, unit: str = "params", round_to: int = 1) -> float:
    """The largest rate that can be asked for: every layer keeps one channel (or ``round_to``), and what must stay."""
    counter = _counter(graph, unit)
    least = counter.cost(_cheapest(graph, counter, round_to))
    return math.floor(share_gone(counter.cost(torch.ones(len(graph), dtype=torch.bool)), least) * 1e4) / 1e4


def share_gone(before: int, after: int) -> float:
    """The share of a cost that is saved; of nothing, nothing is."""
    return 1 - after / before if before else 0.0


def check_rate(rate: float) -> None:
    """Raises ValueError unless ``rate`` is a share that can be removed."""
    if isinstance(rate, bool) or not isinstance(rate, Real) or not 0 <= rate < 1:
        raise ValueError(f"rate must be the share that is removed, a number from 0 to below 1, got {rate!r}")


def check_round_to(round_to: int) -> None:
    """Raises ValueError unless ``round_to`` is a count that widths can be multiples of."""
    if isinstance(round_to, bool) or not isinstance(round_to, Integral) or round_to < 1:
        raise ValueError(f"round_to must be a whole number from 1 on, got {round_to!r}")


@dataclass(frozen=True)
class Report:
    """What was asked for and what was reached.

    Attributes:
        asked: the rate asked for, or None.
        unit: what it counts.
        before: cost of the whole network, by unit; latency in nanoseconds, as predicted by the table.
        after: cost of what is kept, by unit.
        widths: for each prunable group, channels kept and channels in all.
        measured: where latency was asked for: that of the whole and of the pruned network in
            nanoseconds, to hold against what the table predicted.
    """

    asked: float | None
    unit: str
    before: dict[str, int]
    after: dict[str, int]
    widths: dict[str, tuple[int, int]]
    measured: tuple[int, int] | None = None

    def achieved(self, unit: str | None = None) -> float:
        """The removed share."""
        unit = unit or self.unit
        return share_gone(self.before[unit], self.after[unit])

    def __str__(self) -> str:
        asked = "" if self.asked is None else f", {self.asked:.2%} of {self.unit} asked for"
        lines = [f"removed{asked}"]
        lines += [_line(unit, before, self.after[unit]) for unit, before in self.before.items()]
        lines += [_line("measured", *self.measured)] if self.measured else []
        width = max([0, *(len(name) for name in self.widths)])
        bars = [f"  {n:{width}} {k:5d} of {c:5d} {'#' * max(1, round(30 * k / c))}" for n, (k, c) in self.widths.items()]
        return "\n".join([*lines, "kept channels", *bars])


def report(graph: ChannelGraph, kept: dict[str, Tensor], *, asked: float | None = None, unit: str = "params") -> Report:
    """What keeping ``kept`` costs, in every unit (latency too, if the graph has times), and the width of every group.

    Args:
        graph: of the whole network.
        kept: a bool tensor for each prunable group.
        asked: the rate asked for.
        unit: what it counts.

    Raises:
        ValueError: ``kept`` does not fit the graph or holds no bools.
    """
    check_graph(graph)
    units = UNITS if graph.times is None else (*UNITS, "latency")
    before = {u: cost(graph, None, u) for u in units}
    after = {u: cost(graph, kept, u) for u in units}
    return Report(asked, unit, before, after, {name: (int(k.sum()), len(k)) for name, k in kept.items()})


# ---------------------------------------------------------------------------------------------


def _line(name: str, before: int, after: int) -> str:
    """A line of the report; what is no count is a time."""
    shown = [f"{n:,}" if name in UNITS else f"{n / 1e6:,.3f} ms" for n in (before, after)]
    return f"  {name:9} {shown[0]:>13} -> {shown[1]:>13}  ({share_gone(before, after):.2%} gone)"


def _flat(graph: ChannelGraph, kept: dict[str, Tensor] | None) -> Tensor:
    """One bool a channel; those outside the prunable groups stay."""
    if kept is None:
        return torch.ones(len(graph), dtype=torch.bool)
    return graph.join_kept(kept)


def _divide(scores: Tensor, costs: Tensor) -> Tensor:
    """Scores per cost; a negative one is moved to the range of the positive first, so that order makes sense."""
    return (scores - scores.min().clamp(max=0)) / costs


def _protected(graph: ChannelGraph, scores: Tensor) -> Tensor:
    """What stays whatever the rate: the channels that must, and the best one of each layer."""
    must = ~graph.removable
    for layer in graph.layers.values():
        for line in (layer.inputs, layer.outputs):
            if not bool(must[line].any()):
                must[line[scores[line].argmax()]] = True
    return must


def _cheapest(graph: ChannelGraph, counter: _Counter, round_to: int) -> Tensor:
    """What stays at the largest rate: the cheapest channels that may."""
    cheapness = -counter.marginal(torch.ones(len(graph), dtype=torch.bool))
    must = _protected(graph, cheapness)
    return _rounder(graph, cheapness, must, round_to)(must)


def least_width(round_to: int) -> str:
    return "one channel" if round_to == 1 else f"{round_to} channels"


def _rounder(graph: ChannelGraph, scores: Tensor, must: Tensor, round_to: int) -> Callable[[Tensor], Tensor]:
    """A function that rounds each group's kept channels down to a multiple: those that must stay first, then by score."""
    groups = []
    for group in graph.prunable.values() if round_to > 1 else ():
        line = torch.arange(group.start, group.stop)
        line = line[torch.argsort(scores[line], descending=True, stable=True)]
        line = line[torch.argsort(must[line].int(), descending=True, stable=True)]
        least = -(-max(1, int(must[line].sum())) // round_to) * round_to
        groups.append((line, min(least, len(line))))

    def down(kept: Tensor) -> Tensor:
        kept = kept.clone()
        for line, least in groups:
            count = max(least, int(kept[line].sum()) // round_to * round_to)
            kept[line[:count]], kept[line[count:]] = True, False
        return kept

    return down


def _as_many_as_fit(counter: _Counter, must: Tensor, order: Tensor, down: Callable[[Tensor], Tensor], target: int) -> tuple[int, Tensor]:
    """By bisection: how many channels of an order, beside those that must stay, cost no more than the target; and all that is kept."""

    def first(count: int) -> Tensor:
        kept = must.clone()
        kept[order[:count]] = True
        return down(kept)

    low, high = 0, len(order)
    while low < high:
        middle = (low + high + 1) // 2
        low, high = (middle, high) if counter.cost(first(middle)) <= target else (low, middle - 1)
    return low, first(low)


def _fill(counter: _Counter, kept: Tensor, channels: Tensor, target: int) -> None:
    """Keeps each further channel that still fits."""
    for channel in channels:
        kept[channel] = True
        if counter.cost(kept) > target:
            kept[channel] = False


def _fill_blocks(graph: ChannelGraph, counter: _Counter, kept: Tensor, order: Tensor, target: int, round_to: int) -> None:
    """Keeps further blocks of ``round_to`` channels of a group while one fits, those of the best score first."""
    rank = torch.full((len(graph),), len(graph))
    rank[order] = torch.arange(len(order))
    lines = []
    for group in graph.prunable.values():
        line = torch.arange(group.start, group.stop)
        line = line[~kept[line]]
        line = line[torch.argsort(rank[line])]
        if int(kept[group.start : group.stop].sum()) % round_to == 0:
            lines += [block for block in line.split(round_to) if len(block) == round_to]
    for block in sorted(lines, key=lambda block: int(rank[block].min())):
        kept[block] = True  # blocks of a group come in order, so one that fits after one that did not is a block all the same
        if counter.cost(kept) > target:
            kept[block] = False


class _Counter:
    """Adds up costs over layers: of pairs of kept inputs and outputs and of kept outputs, or looked up by their numbers."""

    def __init__(self, graph: ChannelGraph, unit: str) -> None:
        self.unit = unit
        layers = [layer for layer in graph.layers.values() if layer.kind != "pad"] + (list(graph.over_positions) if unit == "macs" else [])
        self.count = len(layers)
        self.inputs, self.input_layer = self._lines([layer.inputs for layer in layers])
        self.outputs, self.output_layer = self._lines([layer.outputs for layer in layers])
        self.pair, self.single = (torch.tensor([getattr(layer, f"{part}_{unit}", 0) for layer in layers], dtype=torch.float64) for part in ("pair", "out"))
        self.rest = {"params": graph.other_params, "macs": graph.other_macs}.get(unit, 0)
        self.times = _times(graph, [layer.name for layer in layers]) if unit == "latency" else None
        if self.times is not None:
            self.rest = self.times.rest

    @staticmethod
    def _lines(lines: list[Tensor]) -> tuple[Tensor, Tensor]:
        sizes = torch.tensor([len(line) for line in lines], dtype=torch.long)
        return torch.cat([*lines, torch.zeros(0, dtype=torch.long)]), torch.repeat_interleave(torch.arange(len(lines)), sizes)

    def widths(self, kept: Tensor) -> tuple[Tensor, Tensor]:
        inputs = torch.bincount(self.input_layer[kept[self.inputs]], minlength=self.count).double()
        outputs = torch.bincount(self.output_layer[kept[self.outputs]], minlength=self.count).double()
        return inputs, outputs

    def cost(self, kept: Tensor) -> int:
        if self.unit == "channels":
            return int(kept[:-1].sum())  # the last one is the network's input
        inputs, outputs = self.widths(kept)
        layers = self.pair * inputs * outputs + self.single * outputs if self.times is None else self.times.at(inputs, outputs)
        return round(float(layers.sum())) + self.rest

    def marginal(self, kept: Tensor) -> Tensor:
        """What each channel alone saves, at the widths of ``kept``: float64 of shape [channels]."""
        if self.unit == "channels":
            return torch.ones(len(kept), dtype=torch.float64)
        inputs, outputs = self.widths(kept)
        input_saves, output_saves = self.pair * outputs, self.pair * inputs + self.single
        if self.times is not None:
            now = self.times.at(inputs, outputs)
            input_saves, output_saves = now - self.times.at(inputs - 1, outputs), now - self.times.at(inputs, outputs - 1)
        saved = torch.zeros(len(kept), dtype=torch.float64)
        saved.index_add_(0, self.inputs, input_saves[self.input_layer])
        saved.index_add_(0, self.outputs, output_saves[self.output_layer])
        return saved


def _times(graph: ChannelGraph, layers: list[str]) -> LatencyTable:
    if graph.times is None:
        raise ValueError("unit='latency' wants a graph whose layers were timed, as sdap_lite.time_layers(model, graph) does")
    if list(graph.times.layers) != layers:
        raise ValueError(f"the table of times must be of this graph's layers, but these differ: {sorted({*graph.times.layers} ^ {*layers})[:5]}")
    return graph.times


# A run asks hundreds of times, always for the same graph; with the graph its counters go.
_counters: WeakKeyDictionary[ChannelGraph, dict[str, _Counter]] = WeakKeyDictionary()


def _counter(graph: ChannelGraph, unit: str) -> _Counter:
    check_graph(graph)
    if unit not in (*UNITS, "latency"):
        raise ValueError(f"unit must be one of {', '.join(UNITS)}, latency, got {unit!r}")
    known = _counters.setdefault(graph, {})
    if unit not in known:
        known[unit] = _Counter(graph, unit)
    return known[unit]
