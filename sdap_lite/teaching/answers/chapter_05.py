"""Answers to the exercises of chapter 5: one run."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from ...budget import schedule
from ...channels import trace
from ...distill import distillation_loss
from ...gates import Gates
from ...measure import count_macs
from ...rules import RootMeanSquare
from ...train import Result
from ..comparing import compare, exercise, kind


@exercise("5.1", "Solve 1 - (1 - t / ramp)³ = share for t: a cube root.")
def when_a_share_is_gone(answer: Callable[[float, float], float]) -> str | None:
    """``when(share, ramp)``: the moment at which a share of the rate is reached."""
    shares, ramp = [0.1, 0.5, 0.9, 1.0], 0.5
    right = [ramp * (1 - (1 - s) ** (1 / 3)) for s in shares]
    mistakes = {
        "the ramp is missing: its end, not the run's, is where the whole rate is reached": [r / ramp for r in right],
        "this is a straight rise; the schedule is cubic": [ramp * s for s in shares],
        "this is the schedule itself: from the moment to the share; the question is the inverse": [schedule(s, 1, ramp) for s in shares],
        "take the cube root of what is left, 1 - share, not of the share": [ramp * s ** (1 / 3) for s in shares],
    }
    return compare([answer(s, ramp) for s in shares], right, mistakes)


@exercise("5.3", "sdap.prune(model, images, 0.4, unit='macs', ...): the rate is the share that goes, and unit says of what.")
def macs_instead(answer: Any) -> str | None:
    """The result of a run that removed 40 % of the MACs."""
    if not isinstance(answer, Result) or answer.report is None or answer.graph is None:
        return f"hand in what sdap.prune gives back, its Result, got {kind(answer)}"
    report = answer.report
    if report.unit != "macs":
        return f"the rate must be one of the MACs: here it counts the {report.unit}"
    if report.asked == 0.6:
        return "the rate is the share that goes: this run keeps 40 %"
    parameter = next(answer.model.parameters())
    gone = 1 - count_macs(answer.model, torch.zeros(1, *answer.graph.shape[1:], device=parameter.device)) / report.before["macs"]
    return None if 0.4 <= gone < 0.42 else f"40 % of the MACs must go, but {gone:.1%} are gone in the network that came"


@exercise(
    "5.5",
    "zero_grad() once, before both halves; backward() of half of each half's loss; then, with the whole gradient there, gates.learn() and optimizer.step().",
)
def two_halves(answer: Callable[..., Any]) -> str | None:
    """``step(student, teacher, gates, optimizer, halves)``: one step from two half batches."""
    moved, scores, learned = _after(answer)
    right, right_scores, _ = _after(_two_halves)
    mistakes = {
        "each half's loss is a mean over its own images: average the halves, do not add them": _after(_two_halves, factor=1.0)[0],
        "an old gradient is still there: call optimizer.zero_grad() before the first half": _after(_two_halves, clear=())[0],
        "only the last half counts: call optimizer.zero_grad() once, before both": _after(_two_halves, clear=(1,))[0],
        "only the last half counts, and it counts whole: clear once, before both, and average them": _after(_two_halves, clear=(1,), factor=1.0)[0],
        "the weights do not move: call optimizer.step() after both halves": torch.zeros_like(moved),
    }
    wrong = compare(moved, right, mistakes, tolerance=1e-4)
    if wrong:
        return wrong
    if learned != 1:
        return f"the gates must learn once a step, from the whole gradient: here gates.learn() was called {learned} times"
    return compare(scores, right_scores, tolerance=1e-4)


def _two_halves(net: nn.Module, teacher: nn.Module, gates: Gates, optimizer: Any, halves: Any, *, factor: float = 0.5, clear: tuple[int, ...] = (0,)) -> None:
    """The right step, or one with a factor that is wrong, or gradients cleared before the wrong halves."""
    for i, (x, y) in enumerate(halves):
        if i in clear:
            optimizer.zero_grad()
        (factor * distillation_loss(net(x), teacher(x), y)).backward()
    gates.learn()
    optimizer.step()


def _after(step: Callable[..., Any], **options: Any) -> tuple[Tensor, Tensor, int]:
    """What one step on a small network does: how far the weights move, the gates' scores, how often they learned."""
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(2, 5, 3), nn.ReLU(), nn.Conv2d(5, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(16, 3))
    teacher, halves = copy.deepcopy(net).requires_grad_(False), [(torch.randn(6, 2, 6, 6), torch.randint(3, (6,))) for _ in range(2)]
    net(halves[0][0]).sum().backward()  # the gradient that an earlier step left behind
    rule, start = RootMeanSquare(), nn.utils.parameters_to_vector(net.parameters()).detach().clone()
    with Gates(trace(net, halves[0][0]), rule).attach(net) as gates:
        step(net, teacher, gates, torch.optim.SGD(net.parameters(), lr=0.1), halves, **options)
    return nn.utils.parameters_to_vector(net.parameters()).detach() - start, torch.cat(list(gates.scores.values())), rule.steps
