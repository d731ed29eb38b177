"""Answers to the exercises of the later chapters: comparing methods, taking one apart, many machines.

The same as in ``answers.py``, which holds the chapters of the method: one function an exercise,
from an answer to None, or to a sentence.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from ..channels import trace
from ..graph import ChannelGraph
from ..models import ResNet
from .answers import compare, exercise

# Chapter 8 ------------------------------------------------------------------------------------


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


# Chapter 11 -----------------------------------------------------------------------------------


@exercise("11.1", "Of the variance of what is measured, true_deviation² + error², only true_deviation² is real: that share of the measured effect is left.")
def winners_curse(answer: Callable[[float, float, float], float]) -> str | None:
    """``shrunk(measured, true_deviation, error)``: the effect to be expected behind a measured one."""
    cases = [(0.6, 0.2, 0.3), (-0.4, 0.5, 0.1), (1.0, 0.3, 0.3)]
    mistakes = {
        "this is what was measured: some of it is luck": [measured for measured, _, _ in cases],
        "this is the share that is luck: what is left is the rest": [m * e**2 / (t**2 + e**2) for m, t, e in cases],
        "variances add, not deviations: square both": [m * t / (t + e) for m, t, e in cases],
        "the share of the variance, not its root": [m * t / (t**2 + e**2) ** 0.5 for m, t, e in cases],
        "divide by the variance of what is measured, the sum of both variances": [m * t**2 / e**2 for m, t, e in cases],
    }
    return compare([answer(*case) for case in cases], [m * t**2 / (t**2 + e**2) for m, t, e in cases], mistakes)


@exercise("11.2", "In pairs: (a - b).std() / n ** 0.5; without: (a.var() / n + b.var() / n) ** 0.5, with n = len(a).")
def two_errors(answer: Callable[[Tensor, Tensor], Any]) -> str | None:
    """``errors(a, b)``: the standard error of the mean difference, in pairs and without."""
    a = torch.tensor([84.1, 84.9, 83.7, 84.4], dtype=torch.float64)
    b = torch.tensor([83.6, 84.5, 83.4, 83.7], dtype=torch.float64)
    n, pairs = len(a), a - b
    paired, unpaired = pairs.std() / n**0.5, ((a.var() + b.var()) / n) ** 0.5
    mistakes = {
        "in pairs first, then without": [unpaired, paired],
        "these are deviations of single runs: the mean of n has its error smaller by √n": [paired * n**0.5, unpaired * n**0.5],
        "divide by √n, not by n": [pairs.std() / n, (a.var() + b.var()) ** 0.5 / n],
        "the sum of squares over n - 1, not n: the mean is estimated, too": [
            pairs.std(correction=0) / n**0.5,
            ((a.var(correction=0) + b.var(correction=0)) / n) ** 0.5,
        ],
        "without pairs variances add, not deviations": [paired, (a.std() + b.std()) / n**0.5],
    }
    return compare(list(answer(a.clone(), b.clone())), [float(paired), float(unpaired)], {k: [float(v) for v in value] for k, value in mistakes.items()})


@exercise("11.3", "Of each seed both - first - second + neither; then the mean, and the deviation over the root of the number of seeds.")
def interaction(answer: Callable[[Tensor, Tensor, Tensor, Tensor], Any]) -> str | None:
    """``interaction(neither, first, second, both)``: by how much two changes do more together, with its standard error."""
    arms = 84 + torch.randn(4, 5, dtype=torch.float64)
    neither, first, second, both = arms
    alone = both - first - second + neither

    def told(values: Tensor, root: float = len(neither) ** 0.5) -> list[float]:
        return [float(values.mean()), float(values.std() / root)]

    mistakes = {
        "the sign: more together than alone is above zero": told(-alone),
        "this is what both gain, not what they gain beyond each alone": told(both - neither),
        "the default is taken off twice, once with each change: add it once": told(both - first - second),
        "this is the deviation of one seed: the mean's error is smaller by the root of their number": told(alone, 1.0),
        "the interaction of each seed first, then its deviation: four runs of one seed belong together": [
            float(alone.mean()),
            float((arms.var(dim=1).sum() / arms.shape[1]) ** 0.5),
        ],
    }
    return compare(list(answer(*arms.clone())), told(alone), mistakes)


# Chapter 12 -----------------------------------------------------------------------------------


@exercise("12.1", "A chunk is 1/n of the vector; each device sends n - 1 chunks to add them up, and n - 1 to hand the sums round.")
def bytes_sent(answer: Callable[[int, int], float]) -> str | None:
    """``bytes_sent(params, devices)``: what each device sends in a step, float32 gradients by a ring all-reduce."""
    cases = [(25_600_000, 8), (270_000, 2), (900_000, 64), (1000, 1)]

    def sent(factor: Callable[[int], float], size: int = 4) -> list[float]:
        return [size * params * factor(devices) for params, devices in cases]

    mistakes = {
        "these are numbers, not bytes: a float32 has four": sent(lambda n: 2 * (n - 1) / n, 1),
        "these are bits: a byte has eight": sent(lambda n: 2 * (n - 1) / n, 32),
        "once round only adds the chunks up: they must also come back": sent(lambda n: (n - 1) / n),
        "a device sends its own chunk to nobody: (n - 1) / n of the vector, twice": sent(lambda n: 2),
        "this is all to all: in a ring each sends one chunk a step, to one neighbour": sent(lambda n: n - 1),
        "this is what all devices send together": sent(lambda n: 2 * (n - 1)),
    }
    return compare([answer(*case) for case in cases], sent(lambda n: 2 * (n - 1) / n), mistakes)


@exercise(
    "12.2",
    "Process rank holds len(range(rank, count, size)) images; its mean must count by its share of the batch, and a mean over size processes divides by size.",
)
def weight_of_share(answer: Callable[[int, int, int], float]) -> str | None:
    """``weight(count, rank, size)``: what a process multiplies its mean loss by, so that the mean over processes is the batch's."""
    cases = [(count, rank, size) for count, size in ((9, 2), (8, 4), (10, 3)) for rank in range(size)]
    own = [len(range(rank, count, size)) for count, rank, size in cases]
    mistakes = {
        "shares are not always equal: 9 images on 2 processes are 5 and 4": [1.0] * len(cases),
        "the mean over processes divides by their number: multiply by it": [n / count for n, (count, _, _) in zip(own, cases, strict=True)],
        "these are numbers of images: divide by those of the batch, and multiply by the number of processes": own,
        "upside down: a larger share must count for more": [count / (n * size) for n, (count, _, size) in zip(own, cases, strict=True)],
        "the images left over are forgotten: the first processes have one more": [count // size * size / count for count, _, size in cases],
    }
    return compare([answer(*case) for case in cases], [n * size / count for n, (count, _, size) in zip(own, cases, strict=True)], mistakes)


@exercise("12.3", "First the mean over the processes, then the square, the mean over the steps, and the root.")
def scores_of_many(answer: Callable[[Tensor], Tensor]) -> str | None:
    """``scores(gradients)``: the root mean square over steps of the gates' gradient, from the processes' parts of it."""
    gradients = torch.randn(6, 3, 5, dtype=torch.float64)  # [steps, processes, channels]
    mistakes = {
        "squared on each process, then averaged: scores are of the batch's gradient, so average first": gradients.square().mean((0, 1)).sqrt(),
        "each process has its own scores here, and their mean is not the score": gradients.square().mean(0).sqrt().mean(0),
        "the sum over the processes: the batch's gradient is their mean": gradients.sum(1).square().mean(0).sqrt(),
        "the root is missing": gradients.mean(1).square().mean(0),
        "this keeps the sign: square before the mean over the steps": gradients.mean((0, 1)),
        "the sign goes before the mean over the steps, by the square": gradients.mean((0, 1)).abs(),
        "only the last step counts": gradients[-1].mean(0).abs(),
        "these are the first process's own": gradients[:, 0].square().mean(0).sqrt(),
    }
    return compare(answer(gradients.clone()), gradients.mean(1).square().mean(0).sqrt(), mistakes)
