"""How scores learn: each rule by hand or by PyTorch's own, and what a run keeps of it."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from nets import EXAMPLE, build
from torch import Tensor

from sdap_lite import RULES, Adam, Frozen, Gates, RootMeanSquare, StraightThrough, trace

X = torch.randn(4, 3, 16, 16, generator=torch.Generator().manual_seed(1))
Y = torch.tensor([0, 1, 2, 3])


def train_gates(rule: Any, steps: int = 3) -> tuple[Gates, list[Tensor]]:
    """Some steps of learning, and the gradient of each."""
    model = build("resnet-conv")
    graph = trace(model, EXAMPLE)
    gates, gradients = Gates(graph, rule), []
    with gates.attach(model):
        for step in range(steps):
            F.cross_entropy(model(X + step), Y).backward()
            assert gates.flat.grad is not None
            gradients.append(gates.flat.grad.clone())
            gates.learn()
            assert gates.flat.grad is None, "learn() clears the gradient"
            assert gates.flat.requires_grad
    return gates, gradients


def test_root_mean_square_by_hand() -> None:
    gates, gradients = train_gates(RootMeanSquare(decay=0.8), steps=4)
    weights = torch.tensor([0.8**3, 0.8**2, 0.8, 1.0])
    squares = torch.stack(gradients).square()
    wanted = ((weights[:, None] * squares).sum(0) / weights.sum()).sqrt()
    torch.testing.assert_close(gates.flat.detach(), wanted, rtol=1e-5, atol=1e-8)
    once, gradients = train_gates(RootMeanSquare(), steps=1)
    torch.testing.assert_close(once.flat.detach(), gradients[0].abs(), rtol=1e-5, atol=1e-12)


def test_straight_through_rule_is_gradient_descent() -> None:
    gates, gradients = train_gates(StraightThrough(lr=0.5))
    torch.testing.assert_close(gates.flat.detach(), -0.5 * torch.stack(gradients).sum(0), rtol=1e-5, atol=1e-8)


def test_adam_rule_is_pytorchs() -> None:
    gates, gradients = train_gates(Adam(lr=0.1, betas=(0.8, 0.95), eps=1e-6))
    scores = torch.zeros(len(gates.graph), requires_grad=True)
    optimizer = torch.optim.Adam([scores], lr=0.1, betas=(0.8, 0.95), eps=1e-6)
    for gradient in gradients:
        scores.grad = gradient.clone()
        optimizer.step()
    torch.testing.assert_close(gates.flat.detach(), scores.detach(), rtol=1e-4, atol=1e-6)


def test_adam_forgets_what_is_cut_out() -> None:
    rule, stays = Adam(), torch.tensor([True, False, True])
    for _ in range(3):
        rule(torch.zeros(3), torch.tensor([1.0, 2.0, -3.0]))
    alone = Adam()
    for _ in range(3):
        alone(torch.zeros(2), torch.tensor([1.0, -3.0]))
    rule.keep(stays)
    torch.testing.assert_close(rule(torch.zeros(2), torch.tensor([0.5, 0.5])), alone(torch.zeros(2), torch.tensor([0.5, 0.5])))


def test_frozen_rule_keeps_scores() -> None:
    gates, gradients = train_gates(Frozen())
    assert gradients[0].abs().sum() > 0
    assert torch.equal(gates.flat.detach(), torch.zeros_like(gates.flat))


@pytest.mark.parametrize("name", ["rms", "straight-through", "adam"])
def test_scores_learn(name: str) -> None:
    gates, _ = train_gates(RULES[name]())
    for scores in gates.scores.values():
        assert scores.abs().sum() > 0


def test_root_mean_square_is_the_default() -> None:
    assert isinstance(Gates(trace(build("vgg"), EXAMPLE)).rule, RootMeanSquare)


@pytest.mark.parametrize("name", list(RULES))
def test_state_goes_on_where_it_was(name: str) -> None:
    gates, gradients = train_gates(RULES[name]())
    gates.close_to(0.5)
    state = copy.deepcopy(gates.state_dict())
    again = Gates(gates.graph, RULES[name]())
    again.load_state_dict(state)
    assert torch.equal(again.mask, gates.mask)
    for g in (gates, again):
        g.flat.grad = gradients[0].clone()
        g.learn()
    assert torch.equal(again.flat, gates.flat)
