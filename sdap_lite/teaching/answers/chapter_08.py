"""Answers to the exercises of chapter 8: CIFAR-10 end to end."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Mapping

import torch
from torch import Tensor, nn

from ...channels import trace
from ...graph import ChannelGraph
from ...models import ResNet
from ..comparing import compare, exercise


@exercise(
    "8.1", "Of each convolution's weight .flatten(1).norm(dim=1), added at layer.outputs to a vector of len(graph) zeros; graph.split makes groups of it."
)
def euclidean(answer: Callable[[nn.Module, ChannelGraph], dict[str, Tensor]]) -> str | None:
    """``euclidean(model, graph)``: the Euclidean norm of each channel's filters, over all layers that give it."""
    net = ResNet(8, width=4)
    graph = trace(net, torch.zeros(1, 3, 16, 16))
    got = answer(copy.deepcopy(net), graph)
    if not isinstance(got, Mapping) or got.keys() != graph.prunable.keys():
        return "the answer must be a dictionary with a tensor for each prunable group, as graph.split(flat) gives"
    filters = {layer.name: net.get_parameter(f"{layer.name}.weight").detach().flatten(1) for layer in graph.layers.values() if layer.mixes}

    def scores(value: Callable[[Tensor], Tensor], *, add: bool = True) -> Tensor:
        flat = torch.zeros(len(graph))
        for name, weight in filters.items():
            places = graph.layers[name].outputs
            flat[places] = value(weight) + (flat[places] if add else 0)
        return graph.join(graph.split(flat), 0.0)

    mistakes = {
        "this is L1, the sum of the absolute weights: a Euclidean norm is the root of the sum of squares": scores(lambda w: w.abs().sum(1)),
        "the root is missing: this is the sum of squares": scores(lambda w: w.square().sum(1)),
        "this is the root of the mean of squares: it forgets how many weights a filter has": scores(lambda w: w.square().mean(1).sqrt()),
        "a channel that several layers write gets all their norms: add them, do not overwrite": scores(lambda w: w.norm(dim=1), add=False),
    }
    return compare(graph.join({name: got[name].detach().cpu().float() for name in got}, 0.0), scores(lambda w: w.norm(dim=1)), mistakes)


def _cost(whole: float, small: float, ramp: float, *, teacher: float = 1.0, backward: float = 2.0) -> float:
    """MACs of a run, for each image and epoch."""
    return (1 + backward) * (ramp * whole + (1 - ramp) * small) + teacher * whole


@exercise(
    "8.2", "A step costs three forward passes of the student and one of the teacher; in one run the student is whole for the ramp's share, in two stages never."
)
def equal_cost(answer: Callable[[float, float, float], float]) -> str | None:
    """``epochs_factor(whole, small, ramp)``: how many times the epochs two stages get at the cost of one run."""
    cases = [(4e7, 1.5e7, 0.5), (1e8, 6e7, 0.3), (2e7, 1e6, 0.7)]

    def ratios(**other: float) -> list[float]:
        return [_cost(whole, small, ramp, **other) / _cost(whole, small, 0, **other) for whole, small, ramp in cases]

    mistakes = {
        "the teacher is forgotten: it is the whole network's forward pass, in both": ratios(teacher=0.0),
        "the backward pass is forgotten: it costs two forward passes": ratios(backward=0.0),
        "the backward pass costs two forward passes, not one": ratios(backward=1.0),
        "the other way round: how many times the epochs for two stages, so the cost of one run over theirs": [1 / value for value in ratios()],
        "one run is not the whole network to its end: after the ramp the student is small": [_cost(w, s, 1) / _cost(w, s, 0) for w, s, _ in cases],
        "two stages have a teacher, too": [_cost(w, s, r) / _cost(w, s, 0, teacher=0) for w, s, r in cases],
    }
    return compare([answer(*case) for case in cases], ratios(), mistakes)


@exercise("8.4", "The mean of n runs has the variance deviation² / n, and variances add: the error of the difference is deviation · √(2 / n).")
def seeds_needed(answer: Callable[[float, float], int]) -> str | None:
    """``seeds_needed(difference, deviation)``: how many each method must have for a difference of two standard errors."""
    cases = [(0.3, 0.3), (0.5, 0.3), (0.2, 0.35), (1.0, 0.2)]

    def counts(factor: float) -> list[int]:
        return [math.ceil(round(factor * (deviation / difference) ** 2, 9)) for difference, deviation in cases]

    mistakes = {
        "both means have an error, and their variances add: this is the error of one": counts(4),
        "this is one standard error: two were asked for": counts(2),
        "a number of seeds is a whole one: round up": [8 * (deviation / difference) ** 2 for difference, deviation in cases],
        "errors do not add, variances do: √2 times that of one, not twice": counts(16),
        "the deviation of a run does not shrink with the seeds, its mean's error does, by their root: square the ratio": [
            math.ceil(round(8**0.5 * deviation / difference, 9)) for difference, deviation in cases
        ],
    }
    return compare([answer(*case) for case in cases], counts(8), mistakes)
