"""What a run may do otherwise: each change against its definition, and that the defaults change nothing."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from nets import EXAMPLE, MODELS, assert_same_bits, build, fingerprint, pictures
from torch import Tensor, nn

from sdap_lite import Gates, RootMeanSquare, channel_costs, cost, loop, models, prune, pruning, remove_channels, threshold, trace
from sdap_lite.baselines import random
from sdap_lite.data import batches
from sdap_lite.loop import learning_rate
from sdap_lite.variants import COMPARISONS, Variant, adaptive, attention_loss, floored, noisy, recalibrate, soft_cost, stages, watched

QUICK: dict[str, Any] = {"epochs": 4, "batch_size": 16, "hold": 0.0, "lr": 0.01, "mode": "fp32", "device": "cpu", "progress": False}


def run(variant: Variant | None, **arguments: Any) -> Any:
    trained = {"rule": "adam", "cost_power": 0.0} if variant and variant.start else {}  # gates whose value is trained
    return prune(build("vgg"), pictures(classes=10), 0.5, variant=variant, **{**QUICK, **trained, **arguments})


# In a run


def test_defaults_change_nothing() -> None:
    plain, default = run(None), run(Variant())
    assert_same_bits(default.model, fingerprint(plain.model))
    assert default.settings == plain.settings


CHANGES: list[dict[str, Any]] = [
    {"decay": 0.5},
    {"labels": True},
    {"current_costs": True},
    {"floor": 0.7},
    {"noise": 1.0},
    {"restart": True},
    {"recalibrate": 2},
    {"scaling": True},
    {"soft": 30.0},
    {"maps": 5.0},
    {"shape": 1.0},
    {"compare": "adaptive"},
    {"compare": "uniform"},
]


@pytest.mark.parametrize("change", CHANGES, ids=lambda change: next(iter(change)))
def test_every_change_changes_the_run_and_goes_on_after_a_stop(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, change: dict[str, Any]) -> None:
    """Stopped while gates learn, and once more after surgery."""
    changed = run(Variant(**change))
    assert changed.report.achieved() >= 0.5
    settings = {name: changed.settings[name] for name in ("rule", "cost_power")}
    plain, now = run(None, **settings).model.state_dict(), changed.model.state_dict()
    assert any(plain[name].shape != now[name].shape or not torch.equal(plain[name], now[name]) for name in plain)
    whole, last = loop.Training.epoch, [1]

    class Stopped(Exception):
        pass

    def stop(self: Any, bar: Any) -> None:
        if len(self.history) == last[0]:
            raise Stopped
        whole(self, bar)

    monkeypatch.setattr(loop.Training, "epoch", stop)
    with pytest.raises(Stopped):
        run(Variant(**change), checkpoint=tmp_path)
    last[0] = 3
    with pytest.raises(Stopped):
        run(Variant(**change), resume=tmp_path)
    last[0] = 99
    assert_same_bits(run(Variant(**change), resume=tmp_path).model, fingerprint(changed.model))
    with pytest.raises(ValueError, match=r"must be resumed with what it was begun with, but variant was .* and is now None"):
        run(None, resume=tmp_path, **settings)


def test_restart_follows_the_curve_anew_after_surgery(monkeypatch: pytest.MonkeyPatch) -> None:
    places: list[float] = []
    monkeypatch.setattr(loop, "learning_rate", lambda place, peak: places.append(place) or learning_rate(place, peak))
    run(Variant(restart=True), batch_size=8)
    steps = len(places)
    half = steps // 2
    assert places[:half] == pytest.approx([i / steps for i in range(half)])
    assert places[half:] == pytest.approx([i / half for i in range(half)])


def test_gates_learn_from_the_labels_alone() -> None:
    """With the teacher's loss alone (alpha 1), the scores are those of the cross-entropy all the same."""
    wanted, found, other = _first_scores(0.0, labels=True), _first_scores(1.0, labels=True), _first_scores(1.0, labels=False)
    for name, scores in wanted.items():
        torch.testing.assert_close(found[name], scores)
    assert any(not torch.allclose(other[name], wanted[name]) for name in other)


def test_gradient_of_the_labels_is_weighted_as_the_loss_is() -> None:
    """On several processes a share of a batch counts by its images."""
    one, two = _first_scores(0.9, labels=True), _first_scores(0.9, labels=True, weight=2.0)
    for name, scores in one.items():
        torch.testing.assert_close(two[name], 2 * scores)


def _first_scores(alpha: float, *, labels: bool, weight: float = 1.0) -> dict[str, Tensor]:
    """The scores after one step from the same weights."""
    model, images = build("vgg"), pictures(classes=10)
    settings = run(Variant(labels=labels), alpha=alpha, epochs=1).settings
    training = pruning.Pruning(model, build("vgg", seed=9), trace(model, EXAMPLE), None, images, settings)
    training.team.weight = lambda count: weight
    x, y = next(batches(images.train, 16, images))
    training.model.train()
    training.step(x, y, 0)
    return training.gates.scores


def test_gate_gradient_of_the_labels_is_that_of_a_backward_pass() -> None:
    model, images = build("vgg"), pictures(classes=10)
    settings = run(Variant(labels=True), epochs=1).settings
    training = pruning.Pruning(model, model, trace(model, EXAMPLE), None, images, settings)
    x, y = next(batches(images.train, 16, images))
    training.model.train()
    training.step(x, y, 0)
    with Gates(trace(model, EXAMPLE)).attach(model) as gates:
        F.cross_entropy(model.train()(x), y).backward()
        for name, gradient in gates.gradient.items():
            torch.testing.assert_close(training.gates.scores[name], gradient.abs(), rtol=1e-4, atol=1e-7)


# Gates whose value is trained


@pytest.mark.parametrize("cuts", [1, 2])
@pytest.mark.parametrize("ramp", [0.5, 1.0])
@pytest.mark.parametrize("change", [{"scaling": True}, {"soft": 30.0}], ids=["scaling", "soft"])
@pytest.mark.parametrize("net", ["vgg", "resnet-pad", "mobilenet", "densenet"])
def test_surgery_leaves_a_plain_network_at_the_rate(net: str, change: dict[str, Any], ramp: float, cuts: int) -> None:
    arguments: dict[str, Any] = {**QUICK, "epochs": 2, "rule": "adam", "cost_power": 0.0, "ramp": ramp, "cuts": cuts}
    result = prune(build(net), pictures(classes=10), 0.4, variant=Variant(**change), **arguments)
    assert result.report.achieved() >= 0.4
    assert sum(p.numel() for p in result.model.parameters()) == cost(result.graph, result.kept)


@pytest.mark.parametrize("change", [{"scaling": True}, {"soft": 30.0}], ids=["scaling", "soft"])
def test_last_surgery_leaves_the_function_of_the_channels_that_stay(change: dict[str, Any]) -> None:
    """The values of their gates, which are not 1, go into the weights."""
    model, images = build("vgg"), pictures(classes=10)
    graph = trace(model, EXAMPLE)
    training = pruning.Pruning(model, model, graph, None, images, run(Variant(**change), epochs=1).settings)
    training.gates.scores = random(graph, seed=2)
    kept = threshold(graph, random(graph, seed=3), 0.3)
    values = training.values(training.gates.flat.detach())
    training.gates.values = values * graph.join(kept, True)
    x = torch.randn(4, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        gated = training.model.eval()(x)
        training.operate(kept)
        torch.testing.assert_close(training.model.eval()(x), gated)
        plain = remove_channels(model, graph, kept).eval()(x)
    assert not torch.allclose(plain, gated)


def test_soft_gates_learn_by_the_loss_and_by_what_is_over_the_budget() -> None:
    """Against finite differences of both, at scores that lie on either side of the middle."""
    model = build("vgg").double().eval()
    graph = trace(model, EXAMPLE.double())
    settings = run(Variant(soft=30.0), epochs=1).settings
    training = pruning.Pruning(build("vgg"), build("vgg"), graph, None, pictures(classes=10), settings)
    training.progress = 0.5
    scores = torch.linspace(-0.4, 0.4, len(graph), dtype=torch.float64)
    slopes = torch.randn(len(graph), dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    training.gates.flat = scores.clone().requires_grad_()

    def wanted(at: Tensor) -> float:
        values = torch.where(graph.removable, torch.sigmoid(5.5 * at), torch.ones_like(at))
        over = soft_cost(graph, values) / cost(graph) - (1 - 0.5 * (1 - 0.5**3))
        return float((slopes * values).sum() + 30 * over**2)

    found = training.softened(slopes)
    for channel in torch.linspace(0, len(graph) - 1, 12).long().tolist():
        nudge = torch.zeros_like(scores)
        nudge[channel] = 1e-5
        assert float(found[channel]) == pytest.approx((wanted(scores + nudge) - wanted(scores - nudge)) / 2e-5, rel=1e-4, abs=1e-8)


@pytest.mark.parametrize("unit", ["params", "macs"])
@pytest.mark.parametrize("net", list(MODELS))
def test_soft_cost_is_the_cost_where_gates_are_open_or_closed(net: str, unit: str) -> None:
    """And its slope at full widths is what a channel alone would save."""
    graph = trace(build(net), EXAMPLE)
    kept = threshold(graph, random(graph, seed=3), 0.3)
    values = graph.join(kept, True).double()
    assert soft_cost(graph, values, unit).item() == pytest.approx(cost(graph, kept, unit), abs=1)
    full = torch.ones(len(graph), dtype=torch.float64, requires_grad=True)
    (slope,) = torch.autograd.grad(soft_cost(graph, full, unit), full)
    for name, costs in channel_costs(graph, unit=unit).items():
        torch.testing.assert_close(graph.split(slope)[name], costs)


# Feature maps


def test_attention_by_hand() -> None:
    """Two channels of one row: squares add up, and only their proportions count."""
    student, teacher = torch.tensor([[[[1.0, 0.0]], [[0.0, 2.0]]]]), torch.tensor([[[[3.0, 0.0]]]])
    one, other = torch.tensor([1.0, 4.0]) / 17**0.5, torch.tensor([1.0, 0.0])
    wanted = (one - other).square().sum()
    torch.testing.assert_close(attention_loss({"a": student}, {"a": teacher}), wanted)
    torch.testing.assert_close(attention_loss({"a": 5 * student, "b": student}, {"a": teacher, "b": 7 * student}), wanted)


@pytest.mark.parametrize("net", list(MODELS))
def test_maps_behind_closed_gates_are_those_of_the_network_that_surgery_leaves(net: str) -> None:
    model, images = build(net).eval(), pictures(classes=10)
    graph = trace(model, EXAMPLE)
    names = stages(model, graph, EXAMPLE)
    settings = run(Variant(maps=1.0), epochs=1).settings
    training = pruning.Pruning(model, model, graph, None, images, settings)
    assert training.stages == names
    kept = threshold(graph, random(graph, seed=1), 0.3)
    training.gates.close(kept)
    x = torch.randn(4, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        training.forward(training.model.eval(), x)
        gated = training.seen(training.maps)
        training.operate(kept)
        training.forward(training.model.eval(), x)
    small = training.seen(training.maps)
    assert set(small) == set(gated) == set(names)
    for name in names:
        there = gated[name][:, gated[name].flatten(2).abs().sum((0, 2)) > 0]
        here = small[name][:, small[name].flatten(2).abs().sum((0, 2)) > 0]
        torch.testing.assert_close(there, here, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("alpha", [0.0, 0.9])
def test_maps_are_part_of_the_loss(alpha: float) -> None:
    """The loss grows by the weight times the distance, whatever the teacher's share in the rest."""
    losses = {weight: _first_loss(weight, alpha) for weight in (0.0, 1.0, 3.0)}
    assert losses[1.0] > losses[0.0] + 1e-3
    assert losses[3.0] - losses[0.0] == pytest.approx(3 * (losses[1.0] - losses[0.0]), rel=1e-4)


def _first_loss(weight: float, alpha: float) -> float:
    model, images = build("vgg"), pictures(classes=10)
    settings = run(Variant(maps=weight), alpha=alpha, epochs=1).settings
    training = pruning.Pruning(model, build("vgg", seed=9), trace(model, EXAMPLE), None, images, settings)
    x, y = next(batches(images.train, 16, images))
    training.model.train()
    return float(training.step(x, y, 0)[0])


def test_stages_are_the_last_at_each_resolution() -> None:
    model = models.VGG(11, width=4).eval()
    names = stages(model, trace(model, EXAMPLE), EXAMPLE)
    with watched(model, names) as maps, torch.no_grad():
        model(EXAMPLE)
    assert [tuple(x.shape[2:]) for x in maps.values()] == [(16, 16), (8, 8), (4, 4), (2, 2), (1, 1)]
    assert not any(module._forward_pre_hooks for module in model.modules()), "nothing is left on the model"


def test_maps_want_a_convolution() -> None:
    net = nn.Sequential(nn.Flatten(), nn.Linear(3 * 16 * 16, 8), nn.ReLU(), nn.Linear(8, 10))
    with pytest.raises(ValueError, match="the model must have a convolution, whose input is a feature map, found none"):
        prune(net, pictures(classes=10), 0.5, variant=Variant(maps=1.0), **QUICK)


def test_maps_want_a_teacher_with_the_same_convolutions() -> None:
    with pytest.raises(ValueError, match=r"the teacher must have the convolutions whose feature maps are compared, but has no features\.\d+"):
        run(Variant(maps=1.0), teacher=build("mobilenet", seed=1))


# Scores


def test_root_mean_square_starts_from_scores_that_are_there() -> None:
    """By hand: the start is scaled to the first gradient's size, and then fades by the decay."""
    rule = RootMeanSquare(0.9)
    start, gradient = torch.tensor([3.0, 4.0]), torch.tensor([1.0, 7.0])
    prior = torch.tensor([9.0, 16.0]) * (25 / 12.5)
    torch.testing.assert_close(rule(start, gradient), (0.9 * prior + 0.1 * gradient**2).sqrt())
    second = torch.tensor([2.0, 0.0])
    wanted = (0.9 * (0.9 * prior + 0.1 * gradient**2) + 0.1 * second**2).sqrt()
    again = RootMeanSquare(0.9)
    again.load_state_dict(rule.state_dict())
    for each in (rule, again):
        torch.testing.assert_close(each(torch.zeros(2), second), wanted)


def test_start_scores_last_where_the_decay_is_slow() -> None:
    model = build("vgg")
    graph = trace(model, EXAMPLE)
    scores = random(graph, seed=4)
    kept = run(Variant(decay=0.999999), scores=scores, cost_power=0).kept
    wanted = threshold(graph, scores, 0.5, cost_power=0)
    assert all(torch.equal(kept[name], wanted[name]) for name in wanted)


def test_floor_keeps_a_share_of_every_group() -> None:
    graph = trace(models.VGG(11, width=16), EXAMPLE)
    scores = {name: values * 10.0**i for i, (name, values) in enumerate(random(graph).items())}  # early groups would lose all
    for floor in (0.1, 0.25):
        kept = threshold(graph, floored(scores, floor), 0.75, cost_power=0)
        for name, k in kept.items():
            count = -int(-floor * len(k) // 1)
            assert k.sum() >= count
            assert set(scores[name].topk(count).indices.tolist()) <= set(k.nonzero().flatten().tolist()), "the best ones"
    plain = threshold(graph, scores, 0.75, cost_power=0)
    assert min(int(k.sum()) for k in plain.values()) == 1


@pytest.mark.parametrize("change", [{"floor": 0.1}, {"noise": 0.3}, {"compare": "adaptive"}], ids=lambda change: next(iter(change)))
def test_scores_below_0_are_refused_where_their_order_would_be_lost(change: dict[str, Any]) -> None:
    scores = {name: values - 0.5 for name, values in random(trace(build("vgg"), EXAMPLE)).items()}
    with pytest.raises(ValueError, match=r"scores must be from 0 on where they are .*, got -0\.[45]"):
        run(Variant(**change), rule="frozen", scores=scores)
    run(Variant(), rule="frozen", scores=scores)


def test_ranks_are_raised_whatever_the_scores() -> None:
    """Compared by rank, no score is below 0, though the rule's may be."""
    result = run(Variant(floor=0.3, noise=0.1, compare="uniform"), rule="straight-through", cost_power=0.0)
    assert result.report.achieved() >= 0.5


@pytest.mark.parametrize("change", [lambda scores: floored(scores, 0.5), lambda scores: noisy(scores, 1.0, torch.Generator())], ids=["floored", "noisy"])
def test_scores_below_0_are_no_scores_to_multiply(change: Callable[[dict[str, Tensor]], object]) -> None:
    with pytest.raises(ValueError, match=r"scores must be from 0 on, got -2 in group 'b'"):
        change({"a": torch.zeros(2), "b": torch.tensor([1.0, -2.0])})


def test_floor_gives_way_to_the_budget() -> None:
    graph = trace(models.VGG(11, width=16), EXAMPLE)
    kept = threshold(graph, floored(random(graph), 0.9), 0.75)
    assert all(bool(k.any()) for k in kept.values())


@pytest.mark.parametrize("how", ["adaptive", "uniform"])
@given(groups=st.lists(st.lists(st.floats(0.01, 100), min_size=1, max_size=12), min_size=1, max_size=4), factor=st.floats(0.01, 100))
def test_comparisons_within_a_group_keep_its_order_and_know_no_unit(groups: list[list[float]], factor: float, how: str) -> None:
    compare = COMPARISONS[how]
    scores = {str(i): torch.tensor(values) for i, values in enumerate(groups)}
    shares = compare(scores)
    scaled = compare({name: values * factor for name, values in scores.items()})
    for name, values in scores.items():
        assert (values[shares[name].argsort()].diff() >= 0).all()  # equal ones in any order
        assert shares[name].max() == pytest.approx(1)  # the last of a group goes last
        assert shares[name].min() > 0
        if how == "adaptive":
            torch.testing.assert_close(scaled[name], shares[name], atol=1e-5, rtol=1e-4)


def test_adaptive_by_hand() -> None:
    """LAMP's definition: the square over the sum of all squares that are not smaller; here its root."""
    values = torch.tensor([2.0, 1.0, 4.0])
    torch.testing.assert_close(adaptive({"a": values})["a"], torch.tensor([4 / 20, 1 / 21, 1.0]).sqrt())
    assert adaptive({"a": torch.zeros(3), "b": torch.tensor([-1.0, 2.0])})["b"].tolist() == [0, 1]


@pytest.mark.parametrize("net", ["vgg", "resnet-pad", "mobilenet", "densenet"])
def test_by_rank_all_groups_give_the_same_share(net: str) -> None:
    result = prune(build(net), pictures(classes=10), 0.5, variant=Variant(compare="uniform"), **{**QUICK, "cost_power": 0.0})
    wide = [kept / whole for kept, whole in result.report.widths.values() if whole >= 16]
    assert max(wide) - min(wide) < 0.2


def test_by_rank_a_hold_keeps_the_shares() -> None:
    """It acts on the scores: a channel holds its place among those of its group, and no group takes places of another."""
    model, images, settings = models.VGG(11, width=32).eval(), pictures(classes=10), {**QUICK, "cost_power": 0.0, "hold": 2.0, "epochs": 1}
    settings = prune(model, images, 0.5, variant=Variant(compare="uniform"), **settings).settings
    run = pruning.Pruning(model, model, trace(model, EXAMPLE), None, images, settings)
    for look, rate in enumerate((0.3, 0.5, 0.7)):
        run.gates.scores = random(run.graph, seed=look)
        kept = run.choose(rate, fill=False)
        run.gates.close(kept)
        shares = [float(group.float().mean()) for group in kept.values()]
        assert max(shares) - min(shares) <= 1 / min(len(group) for group in kept.values())


def test_noise_draws_in_proportion_to_the_scores() -> None:
    """The first of a draw is channel c with probability s_c over their sum."""
    scores, generator = {"a": torch.tensor([1.0, 2.0, 5.0])}, torch.Generator().manual_seed(0)
    firsts = torch.tensor([int(noisy(scores, 1.0, generator)["a"].argmax()) for _ in range(4000)])
    shares = torch.bincount(firsts, minlength=3) / 4000
    torch.testing.assert_close(shares, torch.tensor([0.125, 0.25, 0.625]), atol=0.03, rtol=0)
    assert torch.equal(noisy(scores, 0.0, generator)["a"], scores["a"])


def test_costs_are_counted_at_the_widths_of_the_moment() -> None:
    """With equal scores the cheapest channels stay; what is cheap depends on how wide the neighbours are."""
    graph = trace(models.VGG(11, width=8), EXAMPLE)
    scores = {name: torch.ones(len(group)) for name, group in graph.prunable.items()}
    first = next(iter(scores))
    narrow = {name: torch.arange(len(s)) < (1 if name != first else len(s)) for name, s in scores.items()}
    for at in (None, narrow):
        kept = threshold(graph, scores, 0.3, cost_power=1.0, at=at, fill=False)
        costs = channel_costs(graph, at)
        stay = torch.cat([costs[n][kept[n]] for n in kept])
        gone = torch.cat([costs[n][~kept[n]] for n in kept])
        assert stay.median() < gone.median()
    assert channel_costs(graph, narrow)[first][0] < channel_costs(graph)[first][0]


# Batch norm


def test_recalibration_measures_the_statistics_anew() -> None:
    """A batch norm on the input itself: its running mean is the mean of the batches' means."""
    model = nn.Sequential(nn.BatchNorm2d(2), nn.Conv2d(2, 2, 1))
    model[0].running_mean.fill_(7.0)
    inputs = [torch.randn(8, 2, 4, 4) + i for i in range(3)]
    weights = fingerprint(model)
    recalibrate(model, inputs)
    torch.testing.assert_close(model[0].running_mean, torch.stack([x.mean((0, 2, 3)) for x in inputs]).mean(0))
    torch.testing.assert_close(model[0].running_var, torch.stack([x.var((0, 2, 3)) for x in inputs]).mean(0))
    assert model[0].momentum == 0.1
    assert model.training
    assert all(torch.equal(p, weights[name]) for name, p in model.named_parameters())


# Mistakes


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"decay": 1.0}, r"decay must be a number from 0 to below 1, got 1\.0"),
        ({"floor": -0.1}, r"floor must be a number from 0 to below 1, got -0\.1"),
        ({"noise": -1.0}, r"noise must be a number from 0 on, got -1\.0"),
        ({"recalibrate": -1}, "recalibrate must be a number from 0 on, got -1"),
        ({"soft": -1.0}, r"soft must be a number from 0 on, got -1\.0"),
        ({"maps": float("inf")}, "maps must be a number from 0 on, got inf"),
        ({"shape": 0.0}, r"shape must be a number above 0, got 0\.0"),
        ({"maps": float("nan")}, "maps must be a number from 0 on, got nan"),
        ({"compare": "local"}, "compare must be one of global, adaptive, uniform, got 'local'"),
        ({"scaling": True, "soft": 1.0}, r"must be either its score \(scaling\) or a sigmoid of it \(soft\), not both"),
    ],
)
def test_wrong_changes_are_refused(change: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Variant(**change)


@pytest.mark.parametrize(
    ("change", "arguments", "message"),
    [
        ({"scaling": True}, {"rule": "rms"}, r"rule must be straight-through or adam where a gate's value is trained .*, got 'rms'"),
        ({"soft": 30.0}, {"rule": "frozen"}, r"rule must be straight-through or adam where a gate's value is trained .*, got 'frozen'"),
        ({"compare": "adaptive"}, {"rule": "adam"}, r"rule must be one whose scores are from 0 on where they are compared as shares .*, got 'adam'"),
        (
            {"floor": 0.1},
            {"rule": "straight-through"},
            r"rule must be one whose scores are from 0 on where they are multiplied \(floor\), got 'straight-through'",
        ),
        ({"noise": 0.3}, {"rule": "adam"}, r"rule must be one whose scores are from 0 on where they are multiplied \(noise\), got 'adam'"),
        ({"soft": 30.0}, {"unit": "channels"}, "unit must be params or macs for soft gates, got 'channels'"),
        ({"soft": 30.0}, {"ramp": 0.0}, "ramp must be above 0 for soft gates, which learn along it, got 0"),
    ],
)
def test_changes_that_do_not_go_with_the_rest_are_refused(change: dict[str, Any], arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        run(Variant(**change), **arguments)
