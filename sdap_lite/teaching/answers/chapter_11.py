"""Answers to the exercises of chapter 11: the ablation."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from ..comparing import compare, exercise


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
