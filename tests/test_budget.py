"""The exact cost, the one threshold, the schedule."""

from __future__ import annotations

import functools
import itertools
import math
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from hypothesis import assume, given
from hypothesis import strategies as st
from nets import EXAMPLE, NETS, QUICK, Grouped, build, hooked, pictures, some_kept
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from sdap_lite import ChannelGraph, channel_costs, cost, count_macs, largest_rate, models, prune, remove_channels, report, schedule, threshold, trace
from sdap_lite.budget import UNITS


@functools.cache
def graph_of(name: str) -> ChannelGraph:
    return trace(build(name), EXAMPLE)


def random_scores(graph: ChannelGraph, seed: int, kind: str = "normal") -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    flat = torch.randn(len(graph), generator=generator)
    return graph.split({"normal": flat, "positive": flat.abs(), "ties": flat.round(), "zero": flat * 0}[kind])


def count(model: nn.Module) -> int:
    return sum(p.numel() for p in model.parameters())


def flops(model: nn.Module) -> int:
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        model(EXAMPLE)
    return counter.get_total_flops()


# The count


def test_cost_by_hand() -> None:
    net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Conv2d(4, 6, 1, bias=False), nn.Flatten(), nn.Linear(6 * 196, 5))
    graph = trace(net, EXAMPLE)
    assert cost(graph) == (3 * 4 * 9 + 4) + 2 * 4 + 4 * 6 + (6 * 196 * 5 + 5)
    assert cost(graph, unit="macs") == (3 * 4 * 9 + 4 * 6) * 14 * 14 + 6 * 196 * 5
    assert cost(graph, unit="channels") == 4 + 6 + 5
    kept = {"0": torch.tensor([True, False, True, True]), "3": torch.tensor([False, True, True, False, False, False])}
    assert cost(graph, kept) == (3 * 3 * 9 + 3) + 2 * 3 + 3 * 2 + (2 * 196 * 5 + 5)
    assert cost(graph, kept, "macs") == (3 * 3 * 9 + 3 * 2) * 14 * 14 + 2 * 196 * 5
    assert cost(graph, kept, "channels") == 3 + 2 + 5


@pytest.mark.parametrize("net", [nn.Flatten(), nn.Sequential(nn.BatchNorm2d(3), nn.ReLU(), nn.Flatten())], ids=["no parameters", "no products"])
@pytest.mark.parametrize("unit", UNITS)
def test_of_a_network_that_costs_nothing_nothing_can_go(net: nn.Module, unit: str) -> None:
    graph = trace(net, EXAMPLE)
    assert not graph.prunable
    assert largest_rate(graph, unit) == 0
    assert threshold(graph, {}, 0.0, unit=unit) == {}
    found = report(graph, {}, unit=unit)
    assert found.achieved() == 0
    assert "(0.00% gone)" in str(found)


def test_network_without_products_is_trained_at_rate_0() -> None:
    net = nn.Sequential(nn.BatchNorm2d(4), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    result = prune(net, pictures(channels=4), 0.0, unit="macs", ramp=0.0, **QUICK)
    assert (result.report.achieved(), result.history[-1]["removed"]) == (0, 0)  # type: ignore[union-attr]


def test_whole_cost_is_the_models(net: nn.Module, graph: ChannelGraph) -> None:
    assert cost(graph) == count(net)
    assert 2 * cost(graph, unit="macs") == flops(net)
    assert cost(graph, unit="channels") == sum(len(group) for group in graph.groups.values()) == len(graph) - 1


@pytest.mark.parametrize("seed", range(3))
def test_cost_is_that_of_the_small_model(net: nn.Module, graph: ChannelGraph, seed: int) -> None:
    kept = some_kept(graph, seed)
    small = remove_channels(net, graph, kept)
    assert cost(graph, kept) == count(small)
    assert 2 * cost(graph, kept, "macs") == flops(small)


@given(seed=st.integers(0, 10**6), share=st.floats(0.05, 0.95))
def test_cost_is_that_of_a_net_built_from_widths(seed: int, share: float) -> None:
    """The oracle never saw the library: it builds the plain net layer by layer."""
    graph = graph_of("vgg")
    kept = some_kept(graph, seed, share)
    layers: list[nn.Module] = []
    inputs = 3
    for i, (name, bits) in enumerate(kept.items()):
        pooled = name in ("features.4", "features.8", "features.15", "features.22")
        assert (i == 0) == (name == "features.0")
        width = int(bits.sum())
        layers += [*([nn.MaxPool2d(2)] if pooled else []), nn.Conv2d(inputs, width, 3, padding=1, bias=False), nn.BatchNorm2d(width)]
        inputs = width
    net = nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(inputs, 10)).eval()
    assert cost(graph, kept) == count(net)
    assert 2 * cost(graph, kept, "macs") == flops(net)


def test_parameters_of_no_channel_are_counted() -> None:
    class Scaled(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.scale, self.conv, self.fc = nn.Parameter(torch.ones(1)), nn.Conv2d(3, 6, 1), nn.Linear(6, 5)

        def forward(self, x: Tensor) -> Tensor:
            return self.fc(self.conv(x * self.scale).mean((2, 3)))

    graph = trace(Scaled(), EXAMPLE)
    assert graph.other_params == 1
    assert cost(graph) == count(Scaled())


class Up(nn.ConvTranspose2d):
    """A class of the user's own."""


class Mixer(nn.Module):
    """A block of an MLP-Mixer: one perceptron over positions, one over channels."""

    def __init__(self) -> None:
        super().__init__()
        self.patches, self.norm = nn.Conv2d(3, 8, 4, stride=4), nn.BatchNorm1d(8)
        self.tokens = nn.Sequential(nn.Linear(16, 12), nn.GELU(), nn.Linear(12, 16))
        self.channels = nn.Sequential(nn.Linear(8, 20), nn.GELU(), nn.Linear(20, 8))
        self.fc = nn.Linear(8, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.patches(x).flatten(2)
        x = (x + self.tokens(self.norm(x))).transpose(1, 2)
        return self.fc((x + self.channels(x)).mean(1))


class Attention(nn.Module):
    """Positions look at each other by products of matrices, one of which has no layer."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.value, self.end = nn.Conv2d(3, 8, 3, stride=4), nn.Conv2d(8, 8, 1), nn.Conv2d(8, 5, 1)
        self.look = nn.Parameter(torch.rand(8, 8))

    def forward(self, x: Tensor) -> Tensor:
        x = self.value(F.relu(self.stem(x)))
        y = x.flatten(2)
        weights = (y.transpose(1, 2) @ (self.look @ self.look) @ y).softmax(1)
        return self.end((y @ weights).view(x.shape))


MACS: dict[str, tuple[Callable[[], nn.Module], list[str]]] = {  # nets whose work is not only that of PyTorch's layers, and their prunable groups
    "a linear layer over positions": (Mixer, ["patches", "channels.0"]),
    "products of matrices": (Attention, ["stem"]),
    "a subclass's transposed convolution": (lambda: nn.Sequential(nn.Conv2d(3, 8, 3), Up(8, 12, 2, 2), nn.ReLU(), nn.Conv2d(12, 5, 1)), ["0", "1"]),
    "the same with groups": (lambda: nn.Sequential(nn.Conv2d(3, 8, 3), Up(8, 12, 2, 2, groups=2), nn.ReLU(), nn.Conv2d(12, 5, 1)), ["0", "1"]),
    "the same for each channel": (lambda: nn.Sequential(nn.Conv2d(3, 8, 3), Up(8, 16, 2, 2, groups=8), nn.ReLU(), nn.Conv2d(16, 5, 1)), ["0"]),
}


@pytest.mark.parametrize("case", list(MACS))
def test_macs_are_all_that_the_network_computes(case: str) -> None:
    make, prunable = MACS[case]
    net = make().double().eval()
    graph = trace(net, EXAMPLE)
    assert list(graph.prunable) == prunable
    assert cost(graph, unit="macs") == count_macs(net, EXAMPLE.double())
    x = torch.randn(2, *EXAMPLE.shape[1:], dtype=torch.float64)
    for seed in range(3):
        kept = some_kept(graph, seed)
        small = remove_channels(net, graph, kept)
        wanted = count_macs(small, EXAMPLE.double())
        assert cost(graph, kept, "macs") == cost(graph.narrowed(kept), unit="macs") == cost(trace(small, EXAMPLE), unit="macs") == wanted
        assert cost(graph, kept) == count(small)
        with hooked(net, graph, graph.join(kept, True)), torch.no_grad():
            torch.testing.assert_close(small(x), net(x), rtol=1e-10, atol=1e-10)
    one_less = {name: torch.arange(len(group)) > 0 for name, group in graph.prunable.items()}
    assert cost(graph, one_less, "macs") == count_macs(remove_channels(net, graph, one_less), EXAMPLE.double())


def test_macs_of_a_fused_operation_are_counted() -> None:
    class Fused(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv, self.look, self.fc = nn.Conv2d(3, 8, 4, stride=4), nn.MultiheadAttention(8, 2, batch_first=True), nn.Linear(8, 5)

        def forward(self, x: Tensor) -> Tensor:
            x = self.conv(x).flatten(2).transpose(1, 2)
            return self.fc(self.look(x, x, x, need_weights=False)[0].mean(1))

    graph = trace(Fused().eval(), EXAMPLE)
    assert not graph.prunable
    assert cost(graph, unit="macs") == 16 * 3 * 8 * 16 + (4 * 8 * 8 * 16 + 2 * 8 * 16 * 16) + 8 * 5


def test_macs_of_a_net_that_needs_two_examples_are_counted() -> None:
    class Squeezed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv, self.fc = nn.Conv2d(3, 8, 3), nn.Linear(8, 5)

        def forward(self, x: Tensor) -> Tensor:
            return self.fc(self.conv(x).mean((2, 3)).squeeze()[:, :8])

    assert cost(trace(Squeezed(), EXAMPLE), unit="macs") == 3 * 8 * 9 * 14 * 14 + 8 * 5


def test_channel_cost_is_what_its_loss_alone_saves() -> None:
    graph = graph_of("vgg")
    for unit in UNITS:
        for name, saved in channel_costs(graph, unit=unit).items():
            one_less = {n: torch.ones(len(g), dtype=torch.bool) for n, g in graph.prunable.items()}
            one_less[name][0] = False
            assert cost(graph, unit=unit) - cost(graph, one_less, unit) == float(saved[0])


def test_channel_cost_follows_the_widths() -> None:
    graph = graph_of("vgg")
    kept = some_kept(graph, 0)
    name = "features.4"
    kept[name][:2] = True
    one_less = {**kept, name: kept[name].clone()}
    one_less[name][0] = False
    assert cost(graph, kept) - cost(graph, one_less) == float(channel_costs(graph, kept)[name][0])


def test_wrong_unit_and_wrong_kept_are_refused() -> None:
    graph = graph_of("vgg")
    with pytest.raises(ValueError, match=r"unit must be one of params, macs, channels, latency, got 'flops'"):
        cost(graph, unit="flops")
    with pytest.raises(ValueError, match=r"kept must hold bool tensors, got .*float32"):
        cost(graph, graph.split(torch.ones(len(graph))))
    with pytest.raises(ValueError, match=r"missing: \['features.4'\]"):
        cost(graph, {name: k for name, k in some_kept(graph, 0).items() if name != "features.4"})


# The threshold


def comparable(graph: ChannelGraph, scores: dict[str, Tensor], unit: str, power: float) -> Tensor:
    """Scores in the order in which channels are kept, computed once more from the definition."""
    flat = graph.join(scores, 0.0).double()
    costs = graph.join(channel_costs(graph, unit=unit), 1.0).clamp(min=1)
    return (flat - min(float(flat.min()), 0.0)) / costs**power if power else flat


def assert_no_layer_is_empty(graph: ChannelGraph, flat: Tensor) -> None:
    assert flat[~graph.removable].all(), "what must stay is kept"
    for layer in graph.layers.values():
        assert flat[layer.inputs].any(), layer.name
        assert flat[layer.outputs].any(), layer.name


@given(
    name=st.sampled_from(list(NETS)),
    seed=st.integers(0, 10**6),
    kind=st.sampled_from(["normal", "positive", "ties", "zero"]),
    share=st.floats(0, 1),
    unit=st.sampled_from(UNITS),
    power=st.sampled_from([0.0, 0.5, 1.0]),
    fill=st.booleans(),
)
def test_threshold_meets_the_budget(name: str, seed: int, kind: str, share: float, unit: str, power: float, fill: bool) -> None:
    graph = graph_of(name)
    rate = share * largest_rate(graph, unit)
    scores = random_scores(graph, seed, kind)
    kept = threshold(graph, scores, rate, unit=unit, cost_power=power, fill=fill)
    flat = graph.join(kept, True)
    whole = cost(graph, unit=unit)
    assert cost(graph, kept, unit) <= (1 - rate) * whole + 1e-6
    assert_no_layer_is_empty(graph, flat)
    if flat.all():
        return
    values = comparable(graph, scores, unit, power)
    best = torch.where(flat, -math.inf, values).argmax()  # the removed channel of the highest score; the first of equals
    more = flat.clone()
    more[best] = True
    assert cost(graph, graph.split(more), unit) > math.floor((1 - rate) * whole + 1e-9), "off by at most one channel's cost"


@given(seed=st.integers(0, 10**6), rate=st.floats(0, 0.9))
def test_threshold_separates_scores(seed: int, rate: float) -> None:
    """Without filling, a kept channel scores higher than every removed one, or is the best of a layer."""
    graph = graph_of("vgg")
    scores = random_scores(graph, seed)
    kept = threshold(graph, scores, rate, cost_power=0, fill=False)
    limit = max((float(scores[n][~k].max()) for n, k in kept.items() if not k.all()), default=-math.inf)
    for name, bits in kept.items():
        best = torch.zeros_like(bits)
        best[scores[name].argmax()] = True
        assert (bits == ((scores[name] > limit) | best)).all()


@given(seed=st.integers(0, 10**6), rates=st.tuples(st.floats(0, 0.9), st.floats(0, 0.9)), unit=st.sampled_from(UNITS))
def test_a_higher_rate_keeps_no_more(seed: int, rates: tuple[float, float], unit: str) -> None:
    graph = graph_of("densenet")
    assume(max(rates) <= largest_rate(graph, unit))
    less, more = (graph.join(threshold(graph, random_scores(graph, seed), r, unit=unit, fill=False), True) for r in sorted(rates))
    assert (less | ~more).all()


@given(name=st.sampled_from(list(NETS)), seed=st.integers(0, 10**6), unit=st.sampled_from(UNITS))
def test_filling_comes_nearer_to_the_rate(name: str, seed: int, unit: str) -> None:
    graph = graph_of(name)
    rate = 0.8 * largest_rate(graph, unit)
    plain, filled = (threshold(graph, random_scores(graph, seed), rate, unit=unit, fill=fill) for fill in (False, True))
    assert (graph.join(filled, True) | ~graph.join(plain, True)).all()
    assert cost(graph, plain, unit) <= cost(graph, filled, unit) <= (1 - rate) * cost(graph, unit=unit) + 1e-6


@pytest.mark.parametrize("unit", UNITS)
def test_largest_rate_can_be_had_and_no_more(net: nn.Module, graph: ChannelGraph, unit: str) -> None:
    most = largest_rate(graph, unit)
    kept = threshold(graph, random_scores(graph, 0), most, unit=unit)
    assert_no_layer_is_empty(graph, graph.join(kept, True))
    assert cost(graph, kept, unit) <= (1 - most) * cost(graph, unit=unit) + 1e-6
    beyond = most + 1e-3 + 1 / cost(graph, unit=unit)
    with pytest.raises(ValueError, match=rf"rate must be at most {most:.4f} here, where every layer keeps one channel and what must stay, got {beyond}"):
        threshold(graph, random_scores(graph, 0), beyond, unit=unit)


def test_rate_zero_keeps_all(net: nn.Module, graph: ChannelGraph) -> None:
    assert all(k.all() for k in threshold(graph, random_scores(graph, 0), 0.0).values())


def test_a_layer_of_low_scores_keeps_its_best_channel() -> None:
    graph = graph_of("vgg")
    scores = random_scores(graph, 0, "positive")
    low = "features.8"
    scores[low] *= 1e-6
    kept = threshold(graph, scores, 0.6, cost_power=0)
    assert kept[low].nonzero().flatten().tolist() == [int(scores[low].argmax())]


def test_parts_of_a_grouped_convolution_keep_the_same_count() -> None:
    graph = trace(Grouped(), EXAMPLE)
    layer = graph.layers["grouped"]
    flat = graph.join(threshold(graph, random_scores(graph, 0), 0.5), True)
    for line in (layer.inputs, layer.outputs):
        assert len(flat[line].view(3, 4).sum(1).unique()) == 1


def test_cost_power_decides_between_cheap_and_dear() -> None:
    """Two layers of equal scores: the dear one's channels go first, if scores are compared per cost."""
    net = nn.Sequential(nn.Conv2d(3, 8, 1), nn.ReLU(), nn.Conv2d(8, 64, 3), nn.ReLU(), nn.Flatten(), nn.Linear(64 * 196, 5))
    graph = trace(net, EXAMPLE)
    scores = {"0": torch.full((8,), 1.0), "2": torch.full((64,), 1.5)}
    shares = [float(threshold(graph, scores, 0.4, cost_power=power, fill=False)["2"].float().mean()) for power in (0, 1)]
    assert shares[0] > shares[1]
    assert threshold(graph, scores, 0.4, cost_power=1)["0"].all(), "cheap channels stay"


def test_threshold_takes_scores_that_learn_and_float16() -> None:
    graph = graph_of("vgg")
    scores = random_scores(graph, 0)
    wanted = threshold(graph, {n: s.half() for n, s in scores.items()}, 0.5)
    found = threshold(graph, {n: s.half().float().requires_grad_() for n, s in scores.items()}, 0.5)
    assert all(torch.equal(wanted[n], found[n]) for n in wanted)


@pytest.mark.parametrize("rate", [-0.1, 1, 1.0, 75, math.nan, math.inf, True, "0.5", None])
def test_wrong_rate_is_refused(rate: object) -> None:
    graph = graph_of("vgg")
    with pytest.raises(ValueError, match=r"rate must be the share that is removed, a number from 0 to below 1, got"):
        threshold(graph, random_scores(graph, 0), rate)  # type: ignore[arg-type]


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_wrong_score_is_refused(value: float) -> None:
    graph = graph_of("vgg")
    scores = random_scores(graph, 0)
    scores["features.4"][1] = value
    with pytest.raises(ValueError, match=r"scores must be finite numbers, got NaN or infinity"):
        threshold(graph, scores, 0.5)


def test_wrong_groups_are_refused() -> None:
    graph = graph_of("vgg")
    with pytest.raises(ValueError, match=r"missing: \['features.0'.*unknown: \['stem'\]"):
        threshold(graph, {"stem": torch.rand(4)}, 0.5)
    with pytest.raises(ValueError, match=r"group 'features.0' has 4 channels, got a tensor of shape \[5\]"):
        threshold(graph, {**random_scores(graph, 0), "features.0": torch.rand(5)}, 0.5)


def test_net_without_removable_channels_has_rate_zero() -> None:
    graph = trace(nn.Sequential(nn.Flatten(), nn.Linear(768, 5)), EXAMPLE)
    assert largest_rate(graph) == 0.0
    assert threshold(graph, {}, 0.0) == {}
    with pytest.raises(ValueError, match=r"rate must be at most 0\.0000 here"):
        threshold(graph, {}, 0.5)


# Widths that hardware likes


@given(
    name=st.sampled_from(list(NETS)),
    seed=st.integers(0, 10**6),
    share=st.floats(0, 1),
    unit=st.sampled_from(UNITS),
    fill=st.booleans(),
    round_to=st.sampled_from([2, 3, 4, 8]),
)
def test_rounded_threshold_keeps_multiples_and_meets_the_budget(name: str, seed: int, share: float, unit: str, fill: bool, round_to: int) -> None:
    graph = graph_of(name)
    rate = share * largest_rate(graph, unit, round_to)
    kept = threshold(graph, random_scores(graph, seed), rate, unit=unit, fill=fill, round_to=round_to)
    assert cost(graph, kept, unit) <= (1 - rate) * cost(graph, unit=unit) + 1e-6
    assert_no_layer_is_empty(graph, graph.join(kept, True))
    for group, bits in kept.items():
        stays = ~graph.removable[graph.groups[group].start : graph.groups[group].stop]
        least = max(1, int(stays.sum()))
        whole = int(bits.sum()) == len(bits)
        # Nested layers each keep one, so that a group may have to keep more than its largest multiple.
        assert int(bits.sum()) % round_to == 0 or (whole and (len(bits) // round_to * round_to < max(least, len(graph.groups[group].layers))))


def test_rounding_by_one_is_no_rounding(net: nn.Module, graph: ChannelGraph) -> None:
    plain, rounded = (threshold(graph, random_scores(graph, 0), 0.4 * largest_rate(graph), **r) for r in ({}, {"round_to": 1}))
    assert all(torch.equal(plain[n], rounded[n]) for n in plain)


def test_filling_adds_blocks_that_fit() -> None:
    graph = trace(models.VGG(11, width=16), EXAMPLE)
    plain, filled = (threshold(graph, random_scores(graph, 0), 0.5, round_to=8, fill=fill) for fill in (False, True))
    assert (graph.join(filled, True) | ~graph.join(plain, True)).all()
    left = cost(graph) * 0.5 - cost(graph, filled)
    assert 0 <= left <= cost(graph) * 0.5 - cost(graph, plain)
    for name, bits in filled.items():
        more = {**filled, name: bits.clone()}
        more[name][(~bits).nonzero().flatten()[:8]] = True
        assert bits.all() or cost(graph, more) > 0.5 * cost(graph), "no further block fits"


def test_parts_of_a_grouped_convolution_keep_a_multiple_each() -> None:
    net = nn.Sequential(nn.Conv2d(3, 64, 1), nn.Conv2d(64, 96, 3, groups=4), nn.ReLU(), nn.Conv2d(96, 5, 1))
    graph = trace(net, EXAMPLE)
    small = remove_channels(net, graph, threshold(graph, random_scores(graph, 0), 0.5, round_to=8))
    assert small[1].groups == 4
    assert [small[1].in_channels % 32, small[1].out_channels % 32] == [0, 0]


@pytest.mark.parametrize("value", [0, -8, 1.5, True, "8", None])
def test_wrong_round_to_is_refused(value: object) -> None:
    graph = graph_of("vgg")
    with pytest.raises(ValueError, match=r"round_to must be a whole number from 1 on, got"):
        threshold(graph, random_scores(graph, 0), 0.5, round_to=value)  # type: ignore[arg-type]


def test_rate_beyond_what_rounding_allows_is_refused() -> None:
    graph = trace(models.VGG(11, width=16), EXAMPLE)
    most = largest_rate(graph, round_to=8)
    assert most < largest_rate(graph)
    with pytest.raises(ValueError, match=rf"rate must be at most {most:.4f} here, where every layer keeps 8 channels and what must stay"):
        threshold(graph, random_scores(graph, 0), most + 1e-3, round_to=8)


# The schedule


@given(rate=st.floats(0, 0.99), ramp=st.floats(0, 1), moments=st.lists(st.floats(0, 1), min_size=2, max_size=20))
def test_schedule_rises_and_stops(rate: float, ramp: float, moments: list[float]) -> None:
    rates = [schedule(t, rate, ramp) for t in sorted(moments)]
    assert all(a <= b + 1e-12 for a, b in itertools.pairwise(rates))
    assert all(0 <= r <= rate for r in rates)
    assert schedule(ramp, rate, ramp) == schedule(1.0, rate, ramp) == rate
    if ramp > 0:
        assert schedule(0.0, rate, ramp) == 0


def test_schedule_by_hand() -> None:
    assert schedule(0.25, 0.8, 0.5) == pytest.approx(0.8 * 7 / 8)
    assert schedule(0.1, 0.8, 0.5) == pytest.approx(0.8 * (1 - 0.8**3))
    assert schedule(0.1, 0.8, 0.5, power=1) == pytest.approx(0.8 * 0.2)


# The report


def test_report_says_what_went(net: nn.Module, graph: ChannelGraph) -> None:
    rate = 0.5 * largest_rate(graph)
    kept = threshold(graph, random_scores(graph, 0), rate)
    found = report(graph, kept, asked=rate)
    assert found.achieved() == found.achieved("params") == 1 - cost(graph, kept) / cost(graph)
    assert found.achieved("macs") == 1 - cost(graph, kept, "macs") / cost(graph, None, "macs")
    assert found.widths == {name: (int(k.sum()), len(k)) for name, k in kept.items()}
    text = str(found)
    assert text.startswith(f"removed, {rate:.2%} of params asked for")
    assert f"{cost(graph):,}" in text
    assert f"{cost(graph, kept):,}" in text
    assert all(name in text for name in kept)


def test_report_without_a_rate_names_none() -> None:
    graph = graph_of("vgg")
    assert str(report(graph, some_kept(graph, 0))).startswith("removed\n")


def test_resnet20_costs_what_the_literature_says() -> None:
    graph = trace(models.resnet20(), torch.zeros(1, 3, 32, 32))
    assert cost(graph) == 269_722
    assert cost(graph, unit="macs") == 40_551_040  # 40.55 million
