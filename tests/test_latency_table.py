"""Budgets in latency: the table by hand, and layers timed by a clock of the tests' own. No test looks at the time."""

from __future__ import annotations

import functools
import importlib
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from nets import EXAMPLE, NETS, First, HalfOpen, Named, Partial, SubPixel, assert_same_bits, build, fingerprint, pictures, some_kept
from torch import Tensor, nn

from sdap_lite import (
    ChannelGraph,
    Gates,
    LatencyTable,
    channel_costs,
    cost,
    count_macs,
    largest_rate,
    prune,
    remove_channels,
    report,
    threshold,
    time_layers,
    trace,
)
from sdap_lite.checkpoint import RunFolder
from sdap_lite.latency_table import monotone
from sdap_lite.timing import call_time, time_both

module = importlib.import_module("sdap_lite.train")  # sdap_lite.train is the function


def macs_clock(module: nn.Module, example: Tensor) -> float:
    """A machine that takes a nanosecond a MAC, and for nothing else."""
    return count_macs(module, example) * 1e-9


def output_clock(module: nn.Module, example: Tensor) -> float:
    """A machine that takes a nanosecond for each number that comes out of a layer, and a microsecond to run a network."""
    given: list[int] = []
    layers = [m for m in module.modules() if not list(m.children())]
    handles = [m.register_forward_hook(lambda m, x, y: given.append(y.numel())) for m in layers]
    module(example)
    for handle in handles:
        handle.remove()
    return (1e-6 if len(layers) > 1 else 0) + sum(given) * 1e-9


@functools.cache
def timed(name: str, points: int = 3) -> ChannelGraph:
    net = build(name)
    return time_layers(net, trace(net, EXAMPLE), points=points, repeats=1, timer=macs_clock)


def noisy(name: str, seed: int) -> ChannelGraph:
    """A graph with random times, which are as good as measured ones for all that a budget must hold."""
    graph = timed(name)
    assert graph.times is not None
    generator = torch.Generator().manual_seed(seed)
    times = torch.rand(graph.times.times.shape, dtype=torch.float64, generator=generator) * 1e5
    return replace(graph, times=replace(graph.times, times=monotone(times), rest=int(torch.randint(0, 10**6, (), generator=generator))))


# The table


@pytest.fixture
def table() -> LatencyTable:
    inputs, outputs = torch.tensor([[1, 3, 5], [1, 2, 2]]), torch.tensor([[2, 4, 8], [4, 4, 4]])
    times = torch.stack([torch.arange(0, 90, 10).view(3, 3), torch.tensor([5, 6, 6])[:, None].expand(3, 3)]).double()
    return LatencyTable(("a", "b"), inputs, outputs, times, rest=7)


@pytest.mark.parametrize(
    ("inputs", "outputs", "wanted"),
    [
        ((1, 1), (2, 4), (0, 5)),  # at points of the table
        ((5, 2), (8, 4), (80, 6)),
        ((3, 2), (4, 4), (40, 6)),
        ((2, 1), (3, 4), (20, 5)),  # between: (0 + 10 + 30 + 40) / 4
        ((1, 1), (6, 4), (15, 5)),
        ((0, 0), (1, 1), (0, 5)),  # what is below the least width costs as much as that
    ],
)
def test_what_lies_between_is_interpolated(table: LatencyTable, inputs: tuple[int, int], outputs: tuple[int, int], wanted: tuple[int, int]) -> None:
    assert table.at(torch.tensor(inputs), torch.tensor(outputs)).tolist() == list(wanted)


def test_table_comes_back_bit_for_bit(table: LatencyTable) -> None:
    table = replace(table, times=table.times / 3)
    again = LatencyTable.from_state_dict(table.state_dict())
    assert (again.layers, again.rest) == (table.layers, table.rest)
    for name in ("inputs", "outputs", "times"):
        assert torch.equal(getattr(again, name), getattr(table, name))
        assert getattr(again, name).dtype == getattr(table, name).dtype


@given(seed=st.integers(0, 10**6), size=st.tuples(st.integers(1, 6), st.integers(1, 6)))
def test_monotone_table_lies_within_what_was_measured(seed: int, size: tuple[int, int]) -> None:
    times = torch.rand(2, *size, generator=torch.Generator().manual_seed(seed))
    found = monotone(times)
    assert (found.diff(dim=-1) >= 0).all()
    assert (found.diff(dim=-2) >= 0).all()
    assert torch.equal(monotone(found), found), "and one that rises already stays"
    assert found.min() >= times.min()
    assert found.max() <= times.max()


# Timing


@pytest.mark.parametrize("points", [2, 5])
@pytest.mark.parametrize("name", list(NETS))
def test_table_of_a_machine_that_counts_macs_is_the_count_of_macs(name: str, points: int) -> None:
    """MACs are a product of the widths, which interpolation meets exactly; so all that is built on it must agree."""
    graph = timed(name, points)
    assert cost(graph, unit="latency") == cost(graph, unit="macs")
    for seed in range(3):
        kept = some_kept(graph, seed)
        assert cost(graph, kept, "latency") == pytest.approx(cost(graph, kept, "macs"), abs=1)
    for name, saved in channel_costs(graph, unit="latency").items():
        torch.testing.assert_close(saved, channel_costs(graph, unit="macs")[name], rtol=1e-9, atol=1e-3)
    assert largest_rate(graph, "latency") == largest_rate(graph, "macs")


def test_what_shrinks_outside_the_layers_is_told_from_what_does_not() -> None:
    """Of the fake machine's time for the activations the table must take its share, and of its time for a call not."""
    net = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.ReLU(), nn.Conv2d(8, 8, 1), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 5))
    graph = time_layers(net, trace(net, EXAMPLE), repeats=1, timer=output_clock)
    assert cost(graph, unit="latency") == pytest.approx(1e9 * output_clock(net, EXAMPLE), abs=2)
    kept = some_kept(graph, 0)
    small = remove_channels(net, graph, kept)
    assert cost(graph, kept, "latency") == pytest.approx(1e9 * output_clock(small, EXAMPLE), rel=0.05)
    still = time_layers(net, trace(net, EXAMPLE), repeats=1, timer=lambda module, x: 1e-3)
    assert still.times is not None
    assert still.times.rest == 0, "layers that take longer alone than together leave nothing"


def test_what_was_called_twice_takes_twice_as_long_and_what_is_not_called_nothing() -> None:
    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.stem, self.again, self.unused, self.fc = nn.Conv2d(3, 4, 1), nn.Conv2d(4, 4, 1), nn.Conv2d(4, 4, 1), nn.Linear(4, 5)

        def forward(self, x: Tensor) -> Tensor:
            x = self.again(torch.relu(self.again(self.stem(x))))
            if self.training:
                x = self.unused(x)
            return self.fc(x.mean((2, 3)))

    net = Twice()
    graph = time_layers(net, trace(net, EXAMPLE), repeats=1, timer=macs_clock)
    assert graph.times is not None
    last = dict(zip(graph.times.layers, graph.times.times[:, -1, -1].tolist(), strict=True))
    assert last == pytest.approx({"stem": 12 * 256, "again": 2 * 16 * 256, "unused": 0, "fc": 20})


def test_layers_that_are_alike_are_timed_once() -> None:
    times: list[str] = []

    def clock(module: nn.Module, example: Tensor) -> float:
        times.append(type(module).__name__)
        return 1.0

    net = nn.Sequential(nn.Conv2d(3, 4, 1), *(nn.Conv2d(4, 4, 1) for _ in range(6)), nn.Flatten(), nn.Linear(1024, 5))
    time_layers(net, trace(net, EXAMPLE), points=2, repeats=3, timer=clock)
    assert [times.count(kind) for kind in ("Conv2d", "Linear", "Sequential")] == [2 * 3 * 4, 3 * 4, 3 * 2]


def test_timing_leaves_model_and_threads_as_they_were() -> None:
    model = build("resnet-pad").train()
    graph = trace(model, EXAMPLE)
    before, threads = fingerprint(model), torch.get_num_threads()
    seen: list[int] = []

    def clock(module: nn.Module, example: Tensor) -> float:
        seen.append(torch.get_num_threads())
        assert not module.training
        return call_time(module, example)

    found = time_layers(model, graph, points=2, repeats=1, threads=2, timer=clock)
    assert set(seen) == {2}
    assert torch.get_num_threads() == threads
    assert_same_bits(model, before)
    assert all(m.training and not m._forward_hooks for m in model.modules())
    assert graph.times is None
    assert found.times is not None
    assert min(time_both(model, model, EXAMPLE, repeats=1)) > 0


@pytest.mark.parametrize(("points", "repeats"), [(1, 3), (5, 0)])
def test_too_few_points_are_refused(points: int, repeats: int) -> None:
    with pytest.raises(ValueError, match=rf"points must be from 2 on and repeats from 1 on, got {points} and {repeats}"):
        time_layers(build("vgg"), trace(build("vgg"), EXAMPLE), points=points, repeats=repeats)


@pytest.mark.parametrize("layer", [SubPixel(8, 32, 3), First(Partial(8, 8, 3)), First(Named(8, 8, 3)), HalfOpen(8, 16, 3)], ids=str)
def test_layer_of_a_subclass_is_timed_by_its_product(layer: nn.Module) -> None:
    net = nn.Sequential(nn.Conv2d(3, 8, 3), layer, nn.Conv2d(8, 4, 3), nn.Flatten(), nn.LazyLinear(5))
    net(EXAMPLE)
    graph = time_layers(net, trace(net, EXAMPLE), repeats=1, timer=macs_clock)
    assert cost(graph, unit="latency") == cost(graph, unit="macs")


class UnderAutocast(nn.Sequential):
    def forward(self, x: Tensor) -> Tensor:
        with torch.autocast("cpu", torch.bfloat16):
            return super().forward(x)


def test_layer_that_cannot_run_alone_is_refused() -> None:
    net = UnderAutocast(nn.Conv2d(3, 8, 3), nn.Conv2d(8, 4, 3), nn.Flatten(), nn.Linear(576, 5))
    with pytest.raises(ValueError, match=r"every layer must run alone for its time to be taken, but '1' does not: .*type.*; choose another unit"):
        time_layers(net, trace(net, EXAMPLE), timer=lambda module, x: pytest.fail("timed before it was refused"))


# The budget


@given(name=st.sampled_from(list(NETS)), seed=st.integers(0, 10**6), share=st.floats(0, 1), round_to=st.sampled_from([1, 1, 2]), fill=st.booleans())
def test_threshold_meets_the_latency_from_below(name: str, seed: int, share: float, round_to: int, fill: bool) -> None:
    graph = noisy(name, seed)
    rate = share * largest_rate(graph, "latency", round_to)
    scores = graph.split(torch.randn(len(graph), generator=torch.Generator().manual_seed(seed)))
    kept = threshold(graph, scores, rate, unit="latency", round_to=round_to, fill=fill)
    assert cost(graph, kept, "latency") <= (1 - rate) * cost(graph, unit="latency") + 1e-6
    for layer in graph.layers.values():
        assert graph.join(kept, True)[layer.outputs].any()


@given(name=st.sampled_from(list(NETS)), seed=st.integers(0, 10**6), share=st.floats(0, 1))
def test_fewer_channels_never_take_longer(name: str, seed: int, share: float) -> None:
    graph = noisy(name, seed)
    more = some_kept(graph, seed, share)
    less = graph.split(graph.join(more, True) & graph.join(some_kept(graph, seed + 1, 0.5), True))
    assert cost(graph, less, "latency") <= cost(graph, more, "latency")


def test_gates_close_to_a_latency() -> None:
    graph = timed("vgg")
    kept = Gates(graph).close_to(0.5, unit="latency")
    assert cost(graph, kept, "latency") <= 0.5 * cost(graph, unit="latency")


def test_report_has_what_was_predicted_and_what_was_measured() -> None:
    graph = timed("vgg")
    kept = some_kept(graph, 0)
    found = report(graph, kept, asked=0.3, unit="latency")
    assert (found.before["latency"], found.after["latency"]) == (cost(graph, unit="latency"), cost(graph, kept, "latency"))
    assert found.achieved() == found.achieved("macs")
    text = str(replace(found, before={**found.before, "latency": 2_000_000}, after={**found.after, "latency": 1_500_000}, measured=(2_100_000, 1_470_000)))
    assert "removed, 30.00% of latency asked for" in text
    assert "  latency        2.000 ms ->      1.500 ms  (25.00% gone)\n  measured       2.100 ms ->      1.470 ms  (30.00% gone)" in text
    assert "latency" not in str(report(trace(build("vgg"), EXAMPLE), kept))


def test_graph_without_times_is_refused() -> None:
    graph = trace(build("vgg"), EXAMPLE)
    for call in (lambda: cost(graph, unit="latency"), lambda: largest_rate(graph, "latency"), lambda: threshold(graph, {}, 0.5, unit="latency")):
        with pytest.raises(ValueError, match=r"unit='latency' wants a graph whose layers were timed, as sdap_lite.time_layers\(model, graph\) does"):
            call()


def test_times_of_another_net_are_refused() -> None:
    with pytest.raises(ValueError, match=r"the table of times must be of this graph's layers, but these differ: \['"):
        cost(replace(trace(build("vgg"), EXAMPLE), times=timed("shared").times), unit="latency")


# The run


@pytest.fixture
def clocked(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Layers take a nanosecond a MAC and are timed at few widths; notes what is timed."""
    done: list[str] = []

    def layers(model: nn.Module, graph: ChannelGraph) -> ChannelGraph:
        done.append("layers")
        return time_layers(model, graph, points=2, repeats=1, timer=macs_clock)

    def both(model: nn.Module, small: nn.Module, example: Tensor) -> tuple[int, int]:
        done.append("both")
        return time_both(model, small, example, repeats=1, timer=macs_clock)

    monkeypatch.setattr(module, "time_layers", layers)
    monkeypatch.setattr(module, "time_both", both)
    return done


SETTINGS: dict[str, Any] = {"rate": 0.5, "unit": "latency", "epochs": 2, "batch_size": 16, "mode": "fp32", "device": "cpu", "progress": False}


@pytest.mark.parametrize("cuts", [1, 2])
def test_run_reports_asked_predicted_and_measured(clocked: list[str], cuts: int) -> None:
    result = prune(build("vgg"), pictures(), cuts=cuts, **{**SETTINGS, "epochs": 4})
    assert result.report is not None
    assert result.graph is not None
    assert 0.5 <= result.report.achieved() < 0.6
    assert result.report.measured == (result.report.before["macs"], count_macs(result.model, EXAMPLE))
    assert result.settings["times"] == result.graph.times.state_dict()  # type: ignore[union-attr]
    assert clocked == ["layers", "both"]


class Stopped(Exception):
    pass


def test_resumed_run_goes_on_with_its_own_times(clocked: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The machine is another one by then; the table is not."""
    whole = prune(build("vgg"), pictures(), **SETTINGS)
    write = RunFolder.write

    def write_and_stop(self: RunFolder, content: dict[str, Any]) -> None:
        write(self, content)
        raise Stopped

    monkeypatch.setattr(RunFolder, "write", write_and_stop)
    with pytest.raises(Stopped):
        prune(build("vgg"), pictures(), **SETTINGS, checkpoint=tmp_path)
    monkeypatch.setattr(RunFolder, "write", write)
    monkeypatch.setattr(module, "time_layers", None)
    resumed = prune(build("vgg"), pictures(), **SETTINGS, resume=tmp_path)
    assert resumed.settings["times"] == whole.settings["times"]
    assert_same_bits(resumed.model, fingerprint(whole.model))
    with pytest.raises(ValueError, match=r"a run must be resumed with what it was begun with, but unit was 'latency' and is now 'params'$"):
        prune(build("vgg"), pictures(), **{**SETTINGS, "unit": "params"}, resume=tmp_path)


def test_rate_that_no_width_reaches_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "time_layers", lambda model, graph: noisy("vgg", 0))
    with pytest.raises(ValueError, match=r"rate must be at most 0\.\d+ for this network"):
        prune(build("vgg"), pictures(), **{**SETTINGS, "rate": 0.99})
