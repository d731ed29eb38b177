"""Answers to the exercises of chapter 2: gates."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from ..comparing import compare, exercise, kind


@exercise("2.1", "For each layer multiply weight and gradient, and sum over every axis but the second, the one of the inputs; then add up the layers.")
def two_consumers(answer: Callable[[list[nn.Module]], Tensor]) -> str | None:
    """``gate_gradient(layers)``, from the weights and gradients of all layers that read the channels."""
    x, mask = torch.randn(5, 4, 3, 3), torch.ones(4, requires_grad=True)
    layers: list[Any] = [nn.Conv2d(4, 4, 3), nn.Conv2d(4, 4, 1), nn.Linear(4, 4)]
    inputs = x * mask.view(1, 4, 1, 1)
    (layers[0](inputs).square().sum() + layers[1](inputs).exp().sum() + layers[2](inputs.mean((2, 3))).cos().sum()).backward()
    assert mask.grad is not None
    products = [(layer.weight * layer.weight.grad).reshape(4, 4, -1).sum(2) for layer in layers]  # [outputs, inputs]
    columns, rows = ([product.sum(axis) for product in products] for axis in (0, 1))
    mistakes = {
        "the sign is wrong: minus the gradient is the channel's importance, not the gradient": -mask.grad,
        "only the first layer counts here: every layer that reads the channel has a term": columns[0],
        "only the last layer counts here: every layer that reads the channel has a term": columns[-1],
        "this is the mean over the layers: the terms add up": sum(columns) / 3,
        "the wrong axis: these sums run over the inputs and leave a number for each output, a producer's row, not a consumer's column": sum(rows),
        "the weights are forgotten: weight times gradient": sum(layer.weight.grad.reshape(4, 4, -1).sum((0, 2)) for layer in layers),
    }
    return compare(answer(layers), mask.grad, mistakes, tolerance=1e-4)


@exercise("2.2", "Count the steps in __init__. A running mean of values v is: mean + (v - mean) / steps.")
def mean_absolute(answer: Callable[[], Any]) -> str | None:
    """A class of rules whose score is the mean absolute gradient."""
    if not isinstance(answer, type):
        return f"hand in the class itself, such as MeanAbsolute, so that the check starts from a fresh rule; got {kind(answer)}"
    rule, scores, gradients = answer(), torch.zeros(6), torch.randn(4, 6)
    for gradient in gradients:
        scores = rule(scores, gradient)
    mistakes = {
        "this is the last gradient only: the rule must remember all of them": gradients[-1].abs(),
        "this is the sum: divide by the number of steps": gradients.abs().sum(0),
        "the sign is still there: take the absolute value of each gradient before the mean": gradients.mean(0),
        "the absolute value comes too late: take it of each gradient, not of the mean": gradients.mean(0).abs(),
        "this is the root mean square: take absolute values, not squares": gradients.square().mean(0).sqrt(),
    }
    wrong = compare(scores, gradients.abs().mean(0), mistakes)
    if wrong is None and not hasattr(rule, "state_dict"):
        return "a rule must also have state_dict and load_state_dict, for checkpoints: let it inherit from sdap.Frozen"
    return wrong


@exercise("2.5", "Let passed = scores.clamp(threshold - 1, threshold + 1): its slope is 1 inside and 0 outside. Then passed + (mask - passed).detach().")
def clipped(answer: Callable[[Tensor, float], Tensor]) -> str | None:
    """``clipped(scores, threshold)``: a hard mask whose gradient passes only near the threshold."""
    scores = torch.tensor([-3.0, -0.4, 0.2, 0.7, 1.4, 4.0], requires_grad=True)
    weights, inside = torch.tensor([1.0, 2.0, 3.0, 4.0, 5.0, 6.0]), torch.tensor([0.0, 1, 1, 1, 1, 0])
    mask = answer(scores, 0.5)
    wrong = compare(mask, (scores > 0.5).float(), {"the mask must be 1 or 0: these are the scores, clipped": scores.clamp(-0.5, 1.5)})
    if wrong:
        return f"forward: {wrong}"
    if not mask.requires_grad:
        return "no gradient reaches the scores: a step has no slope, so another function must lend it one"
    (mask * weights).sum().backward()
    mistakes = {
        "the gradient passes everywhere: it must be 0 where a score is further than 1 from the threshold": weights,
        "the distance must be taken from the threshold, not from 0": weights * torch.tensor([0.0, 1, 1, 1, 0, 0]),
        "the gradient passes only above the threshold: a closed gate must get one, too": weights * torch.tensor([0.0, 0, 0, 1, 1, 0]),
    }
    wrong = compare(scores.grad, weights * inside, mistakes)
    return wrong and f"backward: {wrong}"
