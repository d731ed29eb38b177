"""Gates: the mask, its gradient, how scores learn, and a model that is as before when they are gone."""

from __future__ import annotations

import copy

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from nets import EXAMPLE, MODELS, assert_same_bits, build, fingerprint, hooked, some_kept
from torch import Tensor, nn
from torch.nn.utils import parametrize

from sdap_lite import ChannelGraph, Gates, RootMeanSquare, cost, models, straight_through, threshold, trace
from sdap_lite.baselines import random

X = torch.randn(4, 3, 16, 16, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
Y = torch.tensor([0, 1, 2, 3])


def loss_of(model: nn.Module) -> Tensor:
    return F.cross_entropy(model(X.to(next(model.parameters()).dtype)), Y)


# The mask


@given(scores=st.lists(st.floats(-1e3, 1e3, width=32), min_size=1, max_size=20), seed=st.integers(0, 99))
def test_straight_through_is_a_mask_with_the_gradient_of_the_identity(scores: list[float], seed: int) -> None:
    s = torch.tensor(scores, requires_grad=True)
    kept = torch.rand(len(scores), generator=torch.Generator().manual_seed(seed)) > 0.5
    upstream = torch.randn(len(scores), generator=torch.Generator().manual_seed(seed))
    mask = straight_through(s, kept)
    assert torch.equal(mask.detach(), kept.float())
    mask.backward(upstream)
    assert s.grad is not None
    assert torch.equal(s.grad, upstream), "closed gates too"


def test_mask_on_weight_columns_is_mask_on_activations(net: nn.Module, graph: ChannelGraph) -> None:
    """The same function, the same gradient for the gates and for every weight."""
    net = net.double().train()
    kept = some_kept(graph, 2)
    reference = copy.deepcopy(net)
    mask = graph.join(kept, True).double().requires_grad_()
    with hooked(reference, graph, mask):
        wanted = loss_of(reference)
        wanted.backward()
    gates = Gates(graph)
    with gates.attach(net):
        gates.close(kept)
        loss = loss_of(net)
        loss.backward()
    assert mask.grad is not None
    assert float(loss.detach() - wanted.detach()) == pytest.approx(0, abs=1e-12)
    assert gates.flat.grad is not None
    # The gates' own numbers are float32.
    torch.testing.assert_close(gates.flat.grad.double(), mask.grad, rtol=1e-5, atol=1e-7)
    for (name, p), q in zip(net.named_parameters(), reference.parameters(), strict=True):
        torch.testing.assert_close(p.grad, q.grad, rtol=1e-9, atol=1e-12, msg=name)
    closed = ~graph.join(kept, True)
    free = closed & (mask.grad != 0)
    assert free.any(), "closed gates get a gradient"
    assert (gates.flat.grad[free] != 0).all()


def test_gradient_of_open_gates_is_weight_times_gradient(model: nn.Module, graph: ChannelGraph) -> None:
    """sum over the consumers of <W, dL/dW>, from a network that has no gates at all."""
    plain = copy.deepcopy(model)
    loss_of(plain).backward()
    wanted = torch.zeros(len(graph))
    for name, layer in graph.layers.items():
        if layer.mixes:
            weight = plain.get_submodule(name).weight
            products = (weight * weight.grad).detach()
            wanted.index_add_(0, layer.columns, products.transpose(0, 1).flatten(1).sum(1))
    gates = Gates(graph)
    with gates.attach(model):
        loss_of(model).backward()
        found = gates.gradient
    for name, group in graph.prunable.items():
        torch.testing.assert_close(found[name], wanted[group.start : group.stop], rtol=1e-3, atol=1e-6)


def test_open_gates_change_no_bit(net: nn.Module, graph: ChannelGraph) -> None:
    x = X.float()
    with torch.no_grad():
        wanted = net(x)
        with Gates(graph).attach(net):
            assert torch.equal(net(x), wanted)


def test_closing_a_gate_changes_the_function(net: nn.Module, graph: ChannelGraph) -> None:
    x = X.float()
    with torch.no_grad(), Gates(graph).attach(net) as gates:
        before = net(x)
        gates.close(some_kept(graph, 0))
        assert not torch.allclose(net(x), before)


@pytest.mark.parametrize("training", [True, False])
def test_gates_act_in_both_modes(training: bool) -> None:
    model = build("squeeze-excitation").train(training)
    graph = trace(model, EXAMPLE)
    with Gates(graph).attach(model) as gates:
        before = model(X.float()).detach()
        gates.close(some_kept(graph, 0))
        loss_of(model).backward()
        assert not torch.allclose(model(X.float()), before)
        assert all(g.abs().sum() > 0 for g in gates.gradient.values())
    assert all(m.training == training for m in model.modules())


def test_spread_masks_are_the_mask_at_the_columns(net: nn.Module, graph: ChannelGraph) -> None:
    """Against the formula, layer by layer; made once for all, and again when a gate has moved."""
    consumers = [layer for layer in graph.layers.values() if layer.mixes]
    with Gates(graph).attach(net) as gates:
        with torch.inference_mode():
            before = gates.spread()
        assert gates.spread() is before, "what evaluation makes, training uses"
        gates.close(some_kept(graph, 0))
        spread = gates.spread()
        assert spread is not before
        wanted = [straight_through(gates.flat, gates.kept)[layer.columns] for layer in consumers]
        assert all(torch.equal(found.flatten(), right) for found, right in zip(spread, wanted, strict=True))
        gradients = []
        for masks in (wanted, spread, spread):  # a second backward pass through the same masks, too
            torch.manual_seed(1)
            torch.cat([mask.flatten() for mask in masks]).backward(torch.randn(sum(len(layer.columns) for layer in consumers)))
            gradients.append(gates.flat.grad)
            gates.flat.grad = None
        torch.testing.assert_close(gradients[1], gradients[0], rtol=1e-5, atol=1e-5)
        assert torch.equal(gradients[2], gradients[1])  # type: ignore[arg-type]


def test_gates_that_were_changed_by_hand_act() -> None:
    model = build("vgg")
    with torch.no_grad(), Gates(trace(model, EXAMPLE)).attach(model) as gates:
        before = model(X.float())
        gates.kept[0] = False
        assert not torch.equal(model(X.float()), before)


def test_model_with_gates_can_be_copied() -> None:
    model = build("vgg")
    with Gates(trace(model, EXAMPLE)).attach(model) as gates:
        gates.close(some_kept(gates.graph, 0))
        wanted = loss_of(model)
        assert torch.equal(loss_of(copy.deepcopy(model)), wanted)


@pytest.mark.parametrize("net", list(MODELS))
def test_values_are_folded_into_the_weights(net: str) -> None:
    """Values between 0 and 1 act as a multiplication of the channels; folded, the plain model does the same."""
    model, x = build(net).eval(), torch.randn(4, *EXAMPLE.shape[1:])
    gates = Gates(trace(model, EXAMPLE))
    with torch.no_grad(), gates.attach(model):
        plain = model(x)
        gates.values = torch.where(gates.graph.removable, torch.rand(len(gates.graph)), 1.0)
        scaled = model(x)
        gates.fold()
        torch.testing.assert_close(model(x), scaled)
    torch.testing.assert_close(model(x), scaled)
    assert not torch.allclose(plain, scaled)


def test_shared_weight_is_folded_once() -> None:
    model = nn.Sequential(nn.Conv2d(3, 6, 3, padding=1), nn.ReLU(), nn.Conv2d(6, 6, 3, padding=1), nn.ReLU(), nn.Conv2d(6, 6, 3, padding=1), nn.Conv2d(6, 2, 1))
    model[4].weight = model[2].weight
    gates, x = Gates(trace(model, EXAMPLE)), torch.randn(2, *EXAMPLE.shape[1:])
    with torch.no_grad(), gates.attach(model):
        gates.values = torch.where(gates.graph.removable, 0.5, 1.0)
        scaled = model(x)
        gates.fold()
        torch.testing.assert_close(model(x), scaled)
    assert model[4].weight is model[2].weight
    torch.testing.assert_close(model(x), scaled)


def test_folding_wants_attached_gates() -> None:
    with pytest.raises(RuntimeError, match="these gates are not attached to a model"):
        Gates(trace(build("vgg"), EXAMPLE)).fold()


def test_closing_to_a_rate_keeps_the_best() -> None:
    gates = Gates(trace(build("resnet-conv"), EXAMPLE))
    gates.scores = random(gates.graph, seed=5)
    kept = gates.close_to(0.5, unit="macs", cost_power=1.0)
    wanted = threshold(gates.graph, gates.scores, 0.5, unit="macs", cost_power=1.0, fill=False)
    assert all(torch.equal(kept[n], wanted[n]) for n in wanted)
    assert torch.equal(gates.mask.detach().bool(), gates.graph.join(kept, True))
    assert cost(gates.graph, kept, "macs") <= 0.5 * cost(gates.graph, unit="macs")


def test_scores_can_be_set() -> None:
    gates = Gates(trace(build("vgg"), EXAMPLE))
    wanted = gates.graph.split(torch.rand(len(gates.graph)))
    gates.scores = wanted
    assert all(torch.equal(gates.scores[n], wanted[n]) for n in wanted)
    with pytest.raises(ValueError, match=r"group 'features.0' has 4 channels, got a tensor of shape \[3\]"):
        gates.scores = {**wanted, "features.0": torch.rand(3)}


# Holding


@given(
    scores=st.lists(st.floats(-1e3, 1e3, width=32), min_size=2, max_size=20),
    hold=st.floats(0, 100),
    seed=st.integers(0, 99),
)
def test_hold_lifts_open_channels_and_keeps_the_order_among_them(scores: list[float], hold: float, seed: int) -> None:
    graph = trace(models.VGG(11, width=2 * len(scores)), EXAMPLE)
    gates = Gates(graph)
    first, group = next(iter(graph.prunable.items()))
    values = torch.tensor(scores * 2)
    gates.scores = {**gates.scores, first: values}
    gates.kept[group.start : group.stop] = kept = torch.rand(len(values), generator=torch.Generator().manual_seed(seed)) > 0.5
    held = gates.held(hold)[first]
    assert torch.equal(held[~kept], values[~kept])
    assert (held[kept] >= values[kept]).all()
    order = values[kept].argsort(stable=True)
    assert (held[kept][order].diff() >= 0).all()
    torch.testing.assert_close(held[kept & (values > 0)], (1 + hold) * values[kept & (values > 0)])
    assert torch.equal(gates.scores[first], values), "what is learned stays as it is"


@pytest.mark.parametrize("sign", [1.0, -1.0])
def test_with_a_hold_about_equal_channels_keep_their_places(sign: float) -> None:
    """Scores that are drawn anew at each look, from 1 to 2 (or below 0): with a hold of 2 the open channels stay those of the first look."""
    graph, changes = trace(build("vgg"), EXAMPLE), {0.0: 0, 2.0: 0}
    for hold in changes:
        gates = Gates(graph)
        for look in range(5):
            before = gates.kept
            gates.scores = {name: sign * (values + 1) for name, values in random(graph, seed=look).items()}
            wanted = threshold(graph, gates.held(hold), 0.5, cost_power=0, fill=False)
            kept = gates.close_to(0.5, cost_power=0, hold=hold)
            assert all(torch.equal(kept[name], wanted[name]) for name in wanted)
            changes[hold] += int((gates.kept != before).sum()) if look else 0
    assert changes[0.0] > 20
    assert changes[2.0] == 0


# Attaching and detaching


def test_detaching_leaves_everything_as_it_was(net: nn.Module, graph: ChannelGraph) -> None:
    before, modules = fingerprint(net), dict(net.named_modules())
    classes = {name: type(m) for name, m in modules.items()}
    parameters = dict(net.named_parameters())
    gates = Gates(graph).attach(net)
    assert {id(p) for p in net.parameters()} == {id(p) for p in parameters.values()}, "the same parameters, and the scores are none of them"
    gates.close(some_kept(graph, 0))
    net(X.float())
    gates.detach()
    assert_same_bits(net, before)
    assert dict(net.named_modules()) == modules
    assert {name: type(m) for name, m in modules.items()} == classes
    now = dict(net.named_parameters())
    assert list(now) == list(parameters), "in the same order: an optimizer's state counts on it"
    assert all(now[name] is parameters[name] for name in parameters)
    assert not any(parametrize.is_parametrized(m) for m in net.modules())


def test_optimizer_made_earlier_trains_the_weights() -> None:
    model = build("vgg")
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    before = fingerprint(model)
    graph = trace(model, EXAMPLE)
    with Gates(graph).attach(model):
        loss_of(model).backward()
        optimizer.step()
    assert all(not torch.equal(p, before[name]) for name, p in model.named_parameters())


def test_frozen_weights_are_gated_and_their_gates_learn() -> None:
    model = build("resnet-pad").requires_grad_(False)
    graph = trace(model, EXAMPLE)
    with Gates(graph).attach(model) as gates:
        loss_of(model).backward()
        gates.learn()
    assert all(s.abs().sum() > 0 for s in gates.scores.values())
    assert not any(p.requires_grad for p in model.parameters())
    assert all(p.grad is None for p in model.parameters())


def test_gates_can_be_attached_again() -> None:
    model = build("vgg")
    gates = Gates(trace(model, EXAMPLE))
    for _ in range(2):
        with gates.attach(model):
            loss_of(model).backward()
            gates.learn()
    assert isinstance(gates.rule, RootMeanSquare)
    assert gates.rule.steps == 2


def test_context_detaches_when_its_body_fails() -> None:
    model = build("vgg")
    with pytest.raises(KeyError, match="inside"), Gates(trace(model, EXAMPLE)).attach(model):
        raise KeyError("inside")
    assert not any(parametrize.is_parametrized(m) for m in model.modules())


def test_leaving_the_context_after_detaching_by_hand() -> None:
    model = build("vgg")
    with Gates(trace(model, EXAMPLE)).attach(model) as gates:
        gates.detach()


# Errors


def test_attaching_twice_is_refused() -> None:
    model = build("vgg")
    graph = trace(model, EXAMPLE)
    with Gates(graph).attach(model) as gates:
        with pytest.raises(RuntimeError, match=r"these gates are attached already: detach\(\) them first"):
            gates.attach(build("vgg"))
        with pytest.raises(RuntimeError, match=r"the model must have no gates or other parametrizations, but 'features.0' has: detach\(\) them first"):
            Gates(graph).attach(model)
        assert len(model.features[0].parametrizations.weight) == 1


def test_detaching_what_is_not_attached_is_refused() -> None:
    with pytest.raises(RuntimeError, match=r"these gates are not attached to a model"):
        Gates(trace(build("vgg"), EXAMPLE)).detach()


def test_learning_without_a_gradient_is_refused() -> None:
    model = build("vgg")
    with Gates(trace(model, EXAMPLE)).attach(model) as gates:
        with pytest.raises(RuntimeError, match=r"the gates have no gradient: attach them, then call backward\(\)"):
            gates.learn()
        with pytest.raises(RuntimeError, match=r"the gates have no gradient"):
            _ = gates.gradient


def test_graph_of_another_model_is_refused() -> None:
    model = build("resnet-pad")
    before = fingerprint(model)
    with pytest.raises(ValueError, match=r"the graph must be this model's, but the model has no module 'features.0': trace it again"):
        Gates(trace(build("vgg"), EXAMPLE)).attach(model)
    wider = trace(build("resnet-conv"), EXAMPLE)
    narrow = build("resnet-conv")
    narrow.conv1 = nn.Conv2d(3, 5, 3)
    with pytest.raises(ValueError, match=r"'conv1' has \(3, 5\) channels in and out, traced were \(3, 4\): trace it again"):
        Gates(wider).attach(narrow)
    assert_same_bits(model, before)
    assert not any(parametrize.is_parametrized(m) for m in [*model.modules(), *narrow.modules()])


def test_closing_wrong_groups_is_refused() -> None:
    gates = Gates(trace(build("vgg"), EXAMPLE))
    with pytest.raises(ValueError, match=r"missing: \['features.0'"):
        gates.close({})


# Of a smaller network


def test_narrowed_gates_go_on_where_they_were(net: nn.Module, graph: ChannelGraph) -> None:
    """A channel that stays gets the score that it would have had, whatever became of the others."""
    whole, kept = Gates(graph), some_kept(graph, 0)
    stays = graph.join(kept, True)
    gradients = torch.rand(2, len(graph), generator=torch.Generator().manual_seed(1))
    whole.flat.grad = gradients[0].clone()
    whole.learn()
    small = copy.deepcopy(whole).narrowed(kept)
    assert torch.equal(small.flat.detach(), whole.flat.detach()[stays])
    whole.flat.grad, small.flat.grad = gradients[1].clone(), gradients[1][stays]
    whole.learn()
    small.learn()
    assert torch.equal(small.flat.detach(), whole.flat.detach()[stays])
    assert bool(small.kept.all())


def test_attached_gates_cannot_be_narrowed(net: nn.Module, graph: ChannelGraph) -> None:
    with Gates(graph).attach(net) as gates, pytest.raises(RuntimeError, match=r"these gates are attached to a model: detach\(\) them first"):
        gates.narrowed(some_kept(graph, 0))
