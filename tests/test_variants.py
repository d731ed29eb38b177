"""What a run may do otherwise: each change against its definition, and that the defaults change nothing."""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from nets import EXAMPLE, assert_same_bits, build, fingerprint, pictures
from torch import Tensor, nn

from sdap_lite import Gates, RootMeanSquare, channel_costs, models, prune, threshold, trace
from sdap_lite.baselines import random
from sdap_lite.train import learning_rate
from sdap_lite.variants import Variant, floored, noisy, recalibrate

loop = importlib.import_module("sdap_lite.train")
QUICK: dict[str, Any] = {"epochs": 4, "batch_size": 16, "lr": 0.01, "mode": "fp32", "device": "cpu", "progress": False}


def run(variant: Variant | None, **arguments: Any) -> Any:
    return prune(build("vgg"), pictures(classes=10), 0.5, variant=variant, **{**QUICK, **arguments})


# In a run


def test_defaults_change_nothing() -> None:
    plain, default = run(None), run(Variant())
    assert_same_bits(default.model, fingerprint(plain.model))
    assert default.settings == plain.settings


CHANGES = [{"decay": 0.5}, {"labels": True}, {"current_costs": True}, {"floor": 0.7}, {"noise": 1.0}, {"restart": True}, {"recalibrate": 2}]


@pytest.mark.parametrize("change", CHANGES, ids=lambda change: next(iter(change)))
def test_every_change_changes_the_run_and_goes_on_after_a_stop(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, change: dict[str, Any]) -> None:
    """Stopped while gates learn, and once more after surgery."""
    changed = run(Variant(**change))
    assert changed.report.achieved() >= 0.5
    plain, now = run(None).model.state_dict(), changed.model.state_dict()
    assert any(plain[name].shape != now[name].shape or not torch.equal(plain[name], now[name]) for name in plain)
    whole, last = loop._Training.epoch, [1]

    class Stopped(Exception):
        pass

    def stop(self: Any, bar: Any) -> None:
        if len(self.history) == last[0]:
            raise Stopped
        whole(self, bar)

    monkeypatch.setattr(loop._Training, "epoch", stop)
    with pytest.raises(Stopped):
        run(Variant(**change), checkpoint=tmp_path)
    last[0] = 3
    with pytest.raises(Stopped):
        run(Variant(**change), resume=tmp_path)
    last[0] = 99
    assert_same_bits(run(Variant(**change), resume=tmp_path).model, fingerprint(changed.model))
    with pytest.raises(ValueError, match=r"must be resumed with what it was begun with, but variant was .* and is now None"):
        run(None, resume=tmp_path)


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
    training = loop._Pruning(model, build("vgg", seed=9), trace(model, EXAMPLE), None, images, settings)
    training.team.weight = lambda count: weight
    x, y = next(loop.batches(images.train, 16, images))
    training.model.train()
    training.step(x, y, 0)
    return training.gates.scores


def test_gate_gradient_of_the_labels_is_that_of_a_backward_pass() -> None:
    model, images = build("vgg"), pictures(classes=10)
    settings = run(Variant(labels=True), epochs=1).settings
    training = loop._Pruning(model, model, trace(model, EXAMPLE), None, images, settings)
    x, y = next(loop.batches(images.train, 16, images))
    training.model.train()
    training.step(x, y, 0)
    with Gates(trace(model, EXAMPLE)).attach(model) as gates:
        F.cross_entropy(model.train()(x), y).backward()
        for name, gradient in gates.gradient.items():
            torch.testing.assert_close(training.gates.scores[name], gradient.abs(), rtol=1e-4, atol=1e-7)


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


def test_floor_gives_way_to_the_budget() -> None:
    graph = trace(models.VGG(11, width=16), EXAMPLE)
    kept = threshold(graph, floored(random(graph), 0.9), 0.75)
    assert all(bool(k.any()) for k in kept.values())


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
    ],
)
def test_wrong_changes_are_refused(change: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Variant(**change)
