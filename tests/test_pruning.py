"""Pruning within a run: the ramp, the hold, and surgery on the way."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from nets import EXAMPLE, QUICK, Stopped, assert_same_bits, build, fingerprint, pictures, stop_after
from torch import Tensor

from sdap_lite import accuracy, cost, count_params, largest_rate, prune, pruning, schedule, threshold, trace, train


def test_ramp_follows_the_schedule(monkeypatch: pytest.MonkeyPatch) -> None:
    """At every look the gates are closed to the schedule's rate, and once for all when it is reached."""
    asked: list[float] = []
    monkeypatch.setattr(pruning, "threshold", lambda graph, scores, rate, **k: asked.append(rate) or threshold(graph, scores, rate, **k))
    prune(build("resnet-pad"), pictures(), rate=0.6, ramp=0.5, **{**QUICK, "epochs": 8, "batch_size": 8})
    steps = 8 * 6
    wanted = [schedule(step / steps, 0.6, 0.5) for step in range(0, steps // 2, pruning.CLOSE_EVERY)]
    assert asked == pytest.approx([*wanted, 0.6], abs=1 / cost(trace(build("resnet-pad"), EXAMPLE)))  # a target is a whole number of parameters


@pytest.mark.parametrize("ramp", [0.9, 1.0])
def test_last_record_is_of_the_network_that_comes_back(tmp_path: Path, ramp: float) -> None:
    """Where the ramp ends behind the last step, surgery comes after the last epoch."""
    images = pictures(200)
    held_out, _ = images.hold_out()
    model = train(build("resnet-pad"), images, **{**QUICK, "epochs": 6, "lr": 0.1}).model
    arguments: dict[str, Any] = {"rate": 0.8, "ramp": ramp, **QUICK, "batch_size": 180, "checkpoint": tmp_path}  # an epoch is one step
    result = prune(model, images, **arguments)
    last = result.history[-1]
    assert last["removed"] == result.report.achieved("params")  # type: ignore[union-attr]
    assert last["validation"] == accuracy(result.model, images, split=held_out) < result.history[0]["validation"]
    again = prune(model, images, **arguments, resume=tmp_path)
    assert again.history == result.history


# Holding


def test_hold_changes_the_choice_and_goes_on_after_a_stop(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Stopped while gates learn: which of them are open must be known to the run that goes on."""
    arguments: dict[str, Any] = {"rate": 0.5, "ramp": 1.0, **QUICK, "epochs": 4, "batch_size": 8}
    free, held = (prune(build("resnet-pad"), pictures(), hold=hold, **arguments) for hold in (0.0, 100.0))
    assert any(not torch.equal(kept, held.kept[name]) for name, kept in free.kept.items())
    with monkeypatch.context() as patched:
        stop_after(patched, 2)
        with pytest.raises(Stopped):
            prune(build("resnet-pad"), pictures(), hold=100.0, **arguments, checkpoint=tmp_path)
    with pytest.raises(ValueError, match=r"must be resumed with what it was begun with, but hold was 100\.0 and is now 1\.0"):
        prune(build("resnet-pad"), pictures(), hold=1.0, **arguments, resume=tmp_path)
    again = prune(build("resnet-pad"), pictures(), hold=100.0, **arguments, resume=tmp_path)
    assert_same_bits(again.model, fingerprint(held.model))


@pytest.mark.parametrize("cost_power", [0.0, 0.5])
@pytest.mark.parametrize("name", ["vgg", "resnet-pad", "mobilenet", "densenet"])
def test_scores_that_stand_still_need_no_hold(name: str, cost_power: float) -> None:
    """Rivals whose scores are taken once are the same with any hold, bit by bit."""
    arguments: dict[str, Any] = {"rule": "frozen", "cost_power": cost_power, **QUICK, "epochs": 4, "batch_size": 8}
    free, held = (prune(build(name), pictures(classes=10), 0.6, hold=hold, **arguments) for hold in (0.0, 100.0))
    assert_same_bits(held.model, fingerprint(free.model))


# Surgery on the way


def watch_cuts(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, int]]:
    """Notes at which step surgery happens, and how many parameters are left."""
    seen: list[tuple[int, int]] = []
    step, remove = [0], pruning.Pruning.remove

    def before(self: Any, now: int) -> None:
        step[0] = now
        look(self, now)

    def watched(self: Any, kept: dict[str, Tensor]) -> None:
        remove(self, kept)
        seen.append((step[0], count_params(self.model)))

    look = pruning.Pruning.before_step
    monkeypatch.setattr(pruning.Pruning, "before_step", before)
    monkeypatch.setattr(pruning.Pruning, "remove", watched)
    return seen


@pytest.mark.parametrize("name", ["vgg", "resnet-pad", "mobilenet", "densenet", "grouped"])
def test_network_shrinks_at_every_cut(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    seen, model = watch_cuts(monkeypatch), build(name)
    classes = model(torch.zeros(1, *EXAMPLE.shape[1:])).shape[1]
    result = prune(model, pictures(classes=classes), 0.5, cuts=3, **{**QUICK, "epochs": 10, "batch_size": 8})
    steps = 10 * 6
    assert [step for step, _ in seen] == [10, 20, 30]  # a third, two thirds and all of the ramp's 30 steps, looked at every fifth
    for step, params in seen:
        assert params <= (1 - schedule(step / steps, 0.5, 0.5)) * count_params(model)
    left = [count_params(model), *(params for _, params in seen)]
    assert left == sorted(left, reverse=True)
    assert left[0] > left[1]
    assert seen[-1][1] == count_params(result.model) == cost(result.graph, result.kept)  # type: ignore[arg-type]
    assert result.report is not None
    assert result.report.achieved() >= 0.5


@pytest.mark.parametrize("name", ["vgg", "resnet-conv", "densenet"])
def test_cuts_of_fixed_scores_keep_the_same_channels(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    """Scores that never change, compared as they are, without a fill: it is all one when the channels go."""
    monkeypatch.setattr(pruning, "threshold", lambda graph, scores, rate, **k: threshold(graph, scores, rate, **{**k, "fill": False}))
    arguments: dict[str, Any] = {"rule": "frozen", "cost_power": 0.0, **QUICK, "epochs": 6, "batch_size": 8}
    graph = trace(build(name), EXAMPLE)
    scores = graph.split(torch.rand(len(graph), generator=torch.Generator().manual_seed(3)))
    runs = [prune(build(name), pictures(classes=10), 0.6, scores=scores, cuts=cuts, **arguments) for cuts in (1, 4)]
    for group, kept in runs[0].kept.items():
        assert torch.equal(kept, runs[1].kept[group])


@pytest.mark.parametrize("round_to", [1, 4])
def test_run_with_cuts_goes_on_bit_by_bit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, round_to: int) -> None:
    """Stopped after every epoch: before the first cut, between cuts, and after the last."""
    arguments: dict[str, Any] = {"rate": 0.5, "cuts": 3, "round_to": round_to, **QUICK, "epochs": 8, "batch_size": 8}
    whole = prune(build("resnet-pad"), pictures(), **arguments)
    for epoch in range(1, 8):
        with monkeypatch.context() as patched:
            stop_after(patched, epoch)
            with pytest.raises(Stopped):
                prune(build("resnet-pad"), pictures(), **arguments, **({"checkpoint": tmp_path} if epoch == 1 else {"resume": tmp_path}))
    again = prune(build("resnet-pad"), pictures(), **arguments, resume=tmp_path)
    assert_same_bits(again.model, fingerprint(whole.model))
    assert all(torch.equal(kept, again.kept[name]) for name, kept in whole.kept.items())
    assert [r["removed"] for r in again.history] == [r["removed"] for r in whole.history]


@pytest.mark.parametrize("unit", ["macs", "channels"])
def test_cuts_meet_the_rate_in_every_unit(monkeypatch: pytest.MonkeyPatch, unit: str) -> None:
    seen = watch_cuts(monkeypatch)
    result = prune(build("vgg"), pictures(classes=10), 0.4, unit=unit, cuts=2, **{**QUICK, "epochs": 4, "batch_size": 8})
    assert len(seen) == 2
    assert result.report is not None
    assert result.report.achieved() >= 0.4


def test_cut_that_would_put_the_rate_out_of_reach_is_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    seen, whole = watch_cuts(monkeypatch), trace(build("vgg"), EXAMPLE)
    monkeypatch.setattr(pruning, "largest_rate", lambda graph, *unit: largest_rate(graph, *unit) if len(graph) == len(whole) else 0.0)
    result = prune(build("vgg"), pictures(classes=10), 0.5, cuts=3, **{**QUICK, "epochs": 4, "batch_size": 8})
    assert len(seen) == 1
    assert result.report is not None
    assert result.report.achieved() >= 0.5
