"""Answers to the exercises of chapter 9: redundancy."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from ..comparing import compare, exercise, kind


@exercise(
    "9.1", "torch.cov centres the rows and gives the covariances; torch.linalg.eigvalsh gives their eigenvalues. Square of the sum by sum of the squares."
)
def participation_ratio(answer: Callable[[Tensor], Any]) -> str | None:
    """``participation(activations)``: how many directions, counted by their variances."""
    activations = torch.randn(6, 6) @ torch.randn(6, 40) + 3.0  # [channels, samples]

    def ratio(matrix: Tensor, power: float = 1) -> float:
        values = torch.linalg.eigvalsh(matrix).clamp(min=0) ** power
        return float(values.sum() ** 2 / values.square().sum())

    right, shares = ratio(activations.cov()), torch.linalg.eigvalsh(activations.cov()).clamp(min=0).sqrt()
    mistakes = {
        "the mean of each channel must go first, or the largest direction is the mean itself": ratio(activations @ activations.T),
        "these are the singular values; the variances are their squares": ratio(activations.cov(), 0.5),
        "with the correlations each channel counts alike: take the covariances": ratio(activations.corrcoef()),
        "this is one by the ratio: the square of the sum comes first": 1 / right,
        "this is the effective rank of the chapter": float(torch.special.entr(shares / shares.sum()).sum().exp()),
        "this is the rank, which counts every direction alike": 6,
    }
    return compare(answer(activations.clone()), right, mistakes, tolerance=1e-3)


@exercise("9.2", "Probabilities add up, and a logit is the logarithm of one up to a constant: log of the sum of exp, that is z[:, group].logsumexp(1).")
def coarse_question(answer: Callable[[Tensor, list[list[int]]], Tensor]) -> str | None:
    """``coarse(z, groups)``: logits of groups of classes from those of the classes."""
    z, groups = 2 * torch.randn(5, 6), [[0, 4], [1], [2, 3, 5]]
    got = answer(z.clone(), groups)
    if not isinstance(got, Tensor) or got.shape != (5, 3):
        return f"the answer must be a tensor of shape [5, 3], [n, groups], got {list(got.shape) if isinstance(got, Tensor) else kind(got)}"

    def each(part: Callable[[Tensor], Tensor]) -> Tensor:
        return torch.stack([part(z[:, group]) for group in groups], 1).softmax(1)

    right = torch.stack([z.softmax(1)[:, group].sum(1) for group in groups], 1)
    if compare(got, right) is None:
        return "these are the probabilities: hand back logits, their logarithms"
    mistakes = {
        "probabilities add up, logits do not": each(lambda part: part.sum(1)),
        "this is the mean of the logits: add the probabilities up": each(lambda part: part.mean(1)),
        "this is the best class of each group: the others' probabilities belong to it, too": each(lambda part: part.amax(1)),
        "this is the mean of the probabilities: a group of three classes counts three times, so take the sum": each(
            lambda part: part.logsumexp(1) - math.log(part.shape[1])
        ),
    }
    return compare(got.softmax(1), right, mistakes, tolerance=1e-4)


@exercise("9.3", "Both accuracies are measured from 1 / classes up: subtract it from each, then divide what is left of the pruned one by the dense one's.")
def from_guessing_up(answer: Callable[[float, float, int], float]) -> str | None:
    """``kept_of_it(dense, pruned, classes)``: the share of the knowledge beyond guessing that is kept."""
    cases = [(0.95, 0.8, 2), (0.9, 0.7, 5), (0.85, 0.4, 10)]
    right = [(pruned - 1 / c) / (dense - 1 / c) for dense, pruned, c in cases]
    mistakes = {
        "guessing is not subtracted: a network that guesses must get 0": [pruned / dense for dense, pruned, _ in cases],
        "guessing must be subtracted from the dense accuracy, too: nothing lost is 1": [pruned - 1 / c for _, pruned, c in cases],
        "this is the share that is lost": [1 - kept for kept in right],
        "in points this is what is lost; the share of what was there is asked for": [dense - pruned for dense, pruned, _ in cases],
        "this takes guessing among ten in every case: it is right once in 1 / classes": [(pruned - 0.1) / (dense - 0.1) for dense, pruned, _ in cases],
        "as a share from 0 to 1, not in per cent": [100 * kept for kept in right],
        "dense by pruned: divide the other way round": [1 / kept for kept in right],
    }
    return compare([answer(*case) for case in cases], right, mistakes, tolerance=1e-4)
