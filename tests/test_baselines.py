"""The rivals' scores, each against its definition written out; and random weights for the small network."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from nets import EXAMPLE, assert_same_bits, build, fingerprint, pictures
from torch import Tensor, nn

from sdap_lite import ChannelGraph, Images, Result, models, prune, threshold, trace
from sdap_lite.baselines import l1, norm_scales, random, reinitialise, taylor, uniform
from sdap_lite.data import batches

QUICK: dict[str, Any] = {"epochs": 1, "batch_size": 16, "lr": 0.01, "mode": "fp32", "device": "cpu", "progress": False}
SCORES: dict[str, Callable[[nn.Module, ChannelGraph, Images], dict[str, Tensor]]] = {
    "norm scales": lambda model, graph, images: norm_scales(model, graph),
    "l1": lambda model, graph, images: l1(model, graph),
    "uniform": lambda model, graph, images: uniform(l1(model, graph)),
    "taylor": lambda model, graph, images: taylor(model, graph, images, steps=2, batch_size=8),
    "random": lambda model, graph, images: random(graph, seed=1),
}


# Each against its definition


def test_norm_scales_are_the_batch_norms() -> None:
    model = build("vgg")
    for name, found in norm_scales(model, trace(model, EXAMPLE)).items():
        assert torch.equal(found, model.features[int(name.split(".")[1]) + 1].weight.detach().abs())


def test_channels_without_a_batch_norm_go_last() -> None:
    """What has no scale is not pruned by it; slopes and the scales of other norms are no such scales."""
    layers: list[nn.Module] = [nn.Conv2d(3, 4, 1), nn.PReLU(4), nn.Conv2d(4, 6, 1), nn.BatchNorm2d(6), nn.Conv2d(6, 5, 1), nn.InstanceNorm2d(5, affine=True)]
    model = nn.Sequential(*layers, nn.Conv2d(5, 8, 1), nn.GroupNorm(2, 8), nn.Conv2d(8, 6, 1), nn.BatchNorm2d(6, affine=False), nn.Conv2d(6, 2, 1))
    with torch.no_grad():
        for module, value in ((model[1], 0.1), (model[5], 9.0), (model[7], 9.0)):
            module.weight.fill_(value)
        model[3].weight.copy_(torch.tensor([0.5, -3.0, 0.0, 1.0, 2.0, 0.1]))
    scores = norm_scales(model, trace(model, EXAMPLE))
    assert scores.pop("2").tolist() == pytest.approx([0.5, 3.0, 0.0, 1.0, 2.0, 0.1])
    assert set(scores) == {"0", "4", "6", "8"}
    assert all(values.eq(3.0).all() for values in scores.values())


def test_frozen_gates_of_a_network_without_batch_norms_want_scores() -> None:
    model, images = build("grouped"), pictures(classes=5)
    with pytest.raises(ValueError, match=r"must have a batch norm with a weight on a channel that may go, to be scored .*, but has none: give scores="):
        prune(model, images, 0.3, rule="frozen", **QUICK)
    scores = l1(model, trace(model, EXAMPLE))
    assert isinstance(prune(model, images, 0.3, rule="frozen", scores=scores, **QUICK), Result)


def test_l1_sums_the_filters_of_all_layers_that_give_a_channel() -> None:
    """In a residual stage every block's second convolution gives the same channels."""
    model = build("resnet-conv")
    scores = l1(model, trace(model, EXAMPLE))
    stage = [model.conv1, *(block.conv2 for block in model.layer1)]
    wanted = sum(conv.weight.detach().abs().sum((1, 2, 3)) for conv in stage)
    torch.testing.assert_close(scores["conv1"], wanted)
    torch.testing.assert_close(scores["layer1.0.conv1"], model.layer1[0].conv1.weight.detach().abs().sum((1, 2, 3)))


@pytest.mark.parametrize("parts", [1, 2])
def test_l1_of_transposed_convolutions(parts: int) -> None:
    """The filter of an output lies in the second axis; parts have filters of their own, and lose the same outputs."""
    up = nn.ConvTranspose2d(4, 6, 2, groups=parts, bias=False)
    model = nn.Sequential(nn.Conv2d(3, 4, 1), up, nn.ReLU(), nn.Conv2d(6, 2, 1))
    found = l1(model, trace(model, torch.zeros(1, 3, 4, 4)))["1"]
    assert len(found) == 6 // parts
    for place, value in enumerate(found.tolist()):
        wanted = sum(float(part[:, place].abs().sum()) for part in up.weight.detach().chunk(parts))
        assert value == pytest.approx(wanted, rel=1e-5)


def test_l1_counts_depthwise_filters() -> None:
    model = nn.Sequential(nn.Conv2d(3, 4, 1, bias=False), nn.Conv2d(4, 4, 3, groups=4, bias=False), nn.Conv2d(4, 2, 1))
    wanted = model[0].weight.abs().sum((1, 2, 3)) + model[1].weight.abs().sum((1, 2, 3))
    torch.testing.assert_close(l1(model, trace(model, torch.zeros(1, 3, 4, 4)))["0"], wanted.detach())


def test_taylor_is_the_slope_of_the_loss_when_a_channel_fades() -> None:
    """Against finite differences: the loss with one channel's columns scaled by 1 ± h, batch by batch."""
    torch.manual_seed(1)
    model, images = build("vgg").double().eval(), pictures(classes=10)
    graph = trace(model, EXAMPLE)
    name, group = next(iter(graph.prunable.items()))
    consumer = next(layer for layer in graph.layers.values() if layer.mixes and group.start in layer.inputs.tolist())
    weight = model.get_parameter(f"{consumer.name}.weight")
    shuffled = batches(images.hold_out()[1], 8, images, shuffle=torch.Generator().manual_seed(3))
    first = [(x, y) for (x, y), _ in zip(shuffled, range(2), strict=False)]
    h, wanted = 1e-4, []
    for c in range(2):
        slopes = []
        for x, y in first:
            losses = []
            for factor in (1 + h, 1 - h):
                with torch.no_grad():
                    before = weight.clone()
                    weight[:, c] *= factor
                    losses.append(float(F.cross_entropy(model(x.double()), y)))
                    weight.copy_(before)
            slopes.append((losses[0] - losses[1]) / (2 * h))
        wanted.append((sum(slope**2 for slope in slopes) / 2) ** 0.5)
    found = taylor(model.float(), graph, images, steps=2, batch_size=8, seed=3)[name][:2]
    torch.testing.assert_close(found, torch.tensor(wanted), rtol=1e-3, atol=1e-6)


def test_taylor_averages_over_the_batches_there_are() -> None:
    """43 images to train on make three batches of 16: asking for more changes nothing."""
    model, images = build("resnet-pad"), pictures()
    graph = trace(model, EXAMPLE)
    three, many = (taylor(model, graph, images, steps=steps, batch_size=16) for steps in (3, 50))
    assert all(torch.equal(three[name], many[name]) for name in three)


def test_random_scores_follow_the_seed() -> None:
    graph = trace(build("vgg"), EXAMPLE)
    first, again, other = (graph.join(random(graph, seed=seed), 0.0) for seed in (0, 0, 1))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
    assert bool(((first >= 0) & (first <= 1)).all())


def test_uniform_takes_the_same_share_of_each_group() -> None:
    model = models.VGG(11, width=16)
    graph = trace(model, EXAMPLE)
    kept = threshold(graph, uniform(l1(model, graph)), 0.75, cost_power=0, fill=False)
    shares = [float(k.float().mean()) for k in kept.values()]
    assert max(shares) - min(shares) <= 1 / 16
    assert sum(shares) / len(shares) == pytest.approx(0.5, abs=0.05), "parameters go with the square of the width"
    scores = l1(model, graph)
    assert all(scores[n][kept[n]].min() >= scores[n][~kept[n]].max() for n in kept), "the order within a group stays"


@pytest.mark.parametrize("name", SCORES)
def test_scores_fit_every_wiring_and_leave_the_model_alone(model: nn.Module, graph: ChannelGraph, name: str) -> None:
    model.train()
    before, images = fingerprint(model), pictures(16, classes=10)
    scores = SCORES[name](model, graph, images)
    assert {n: len(s) for n, s in scores.items()} == {n: len(g) for n, g in graph.prunable.items()}
    assert all(bool(torch.isfinite(s).all()) and bool((s >= 0).all()) for s in scores.values())
    assert_same_bits(model, before)
    assert model.training
    assert all(p.grad is None for p in model.parameters())


# In a run


@pytest.mark.parametrize("ramp", [0.0, 0.5], ids=["two stages", "one run"])
def test_pruning_keeps_what_the_scores_say(ramp: float) -> None:
    model, images = build("vgg"), pictures(classes=10)
    graph = trace(model, EXAMPLE)
    scores = random(graph, seed=4)
    result = prune(model, images, 0.5, rule="frozen", scores=scores, cost_power=0, ramp=ramp, **QUICK)
    wanted = threshold(graph, scores, 0.5, cost_power=0)
    assert all(torch.equal(result.kept[name], wanted[name]) for name in wanted)


def test_batch_norm_scales_are_what_frozen_gates_start_from() -> None:
    model, images = build("vgg"), pictures(classes=10)
    scores = norm_scales(model, trace(model, EXAMPLE))
    given, default = (prune(model, images, 0.5, rule="frozen", scores=s, **QUICK) for s in (scores, None))
    assert_same_bits(given.model, fingerprint(default.model))
    wanted = threshold(trace(model, EXAMPLE), scores, 0.5)
    assert all(torch.equal(default.kept[name], wanted[name]) for name in wanted)


def test_straight_through_goes_on_from_the_scores() -> None:
    model, images = build("vgg"), pictures(classes=10)
    scores = {name: 1e6 * values for name, values in random(trace(model, EXAMPLE)).items()}  # no gradient turns these over
    result = prune(model, images, 0.5, rule="straight-through", scores=scores, **QUICK)
    wanted = threshold(trace(model, EXAMPLE), scores, 0.5)
    assert all(torch.equal(result.kept[name], wanted[name]) for name in wanted)


def test_other_scores_are_refused_on_resuming(tmp_path: Any) -> None:
    model, images = build("vgg"), pictures(classes=10)
    graph = trace(model, EXAMPLE)
    prune(model, images, 0.5, rule="frozen", scores=random(graph, seed=0), checkpoint=tmp_path, **QUICK)
    prune(model, images, 0.5, rule="frozen", scores=random(graph, seed=0), resume=tmp_path, **QUICK)
    with pytest.raises(ValueError, match="must be resumed with what it was begun with, but scores was '"):
        prune(model, images, 0.5, rule="frozen", scores=random(graph, seed=1), resume=tmp_path, **QUICK)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda scores: dict(list(scores.items())[1:]), r"scores must fit the network: .* missing: \['features.0'\]"),
        (lambda scores: {**scores, "features.0": torch.ones(3)}, r"scores must fit the network: group 'features.0' has 8 channels, got .*\[3\]"),
        (lambda scores: {n: s.long() for n, s in scores.items()}, "scores must be finite floating-point numbers, got torch.int64"),
        (lambda scores: {n: s * float("nan") for n, s in scores.items()}, "scores must be finite floating-point numbers, got torch.float32 with NaN"),
    ],
)
def test_wrong_scores_are_refused(change: Callable[[dict[str, Tensor]], dict[str, Tensor]], message: str) -> None:
    model = models.VGG(11, width=8)
    with pytest.raises(ValueError, match=message):
        prune(model, pictures(classes=10), 0.5, rule="frozen", scores=change(random(trace(model, EXAMPLE))), **QUICK)


# From scratch


def test_reinitialised_network_has_the_same_widths_and_other_weights(model: nn.Module) -> None:
    before = fingerprint(model)
    fresh, again, other = (reinitialise(model, seed=seed) for seed in (1, 1, 2))
    assert_same_bits(model, before)
    assert_same_bits(again, fingerprint(fresh))
    assert {n: t.shape for n, t in fresh.state_dict().items()} == {n: t.shape for n, t in before.items()}
    weights = [name for name, p in model.named_parameters() if p.ndim > 1]
    for strangers in (model, other):
        assert not any(torch.equal(fresh.get_parameter(name), strangers.get_parameter(name)) for name in weights)
    assert all(float(m.running_mean.abs().max()) == 0 for m in fresh.modules() if isinstance(m, nn.BatchNorm2d))


def test_reinitialising_draws_as_building_does() -> None:
    """The same seed, the same weights as a network that was just built."""
    torch.manual_seed(5)
    built = models.VGG(11, width=8)
    assert_same_bits(reinitialise(models.VGG(11, width=8), seed=5), fingerprint(built))


def test_reinitialising_leaves_the_random_numbers_alone() -> None:
    layer, state = nn.Linear(2, 2), torch.get_rng_state()
    reinitialise(layer)
    assert torch.equal(torch.get_rng_state(), state)


def test_parameters_that_cannot_be_reset_are_refused() -> None:
    class Scaled(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.scale = nn.Parameter(torch.ones(3))

    with pytest.raises(ValueError, match=r"each module with parameters must have reset_parameters\(\), but '0' \(Scaled\) has none"):
        reinitialise(nn.Sequential(Scaled()))
