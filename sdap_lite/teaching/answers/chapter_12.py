"""Answers to the exercises of chapter 12: many machines."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from ..comparing import compare, exercise


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
