"""Answers to the exercises of chapter 3: one rate."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from ...budget import cost, schedule
from ...channels import trace
from ...models import vgg
from ..comparing import compare, exercise, kind


@exercise("3.1", "A layer keeps a quarter of its inputs and a quarter of its outputs: which part of the products of both is left, and which part is gone?")
def a_quarter_of_the_channels(answer: Any) -> str | None:
    """Which share of the VGG's parameters goes when each group keeps a quarter."""
    graph = trace(vgg(), torch.zeros(1, 3, 32, 32))
    quarter = {name: torch.arange(len(group)) < len(group) // 4 for name, group in graph.prunable.items()}
    gone = 1 - cost(graph, quarter) / cost(graph)
    mistakes = {
        "this is the rate of the channels: a layer's parameters are a product of two widths": 0.75,
        "as a share from 0 to 1, not in per cent": 100 * gone,
    }
    if compare(answer, 1 - gone, tolerance=0.1) is None:
        return "this is the share that stays: the question is what goes"
    return compare(answer, gone, mistakes, tolerance=0.01)


@exercise("3.2", "The rank of each score is scores.argsort().argsort(): 0 for the lowest. A channel stays if its rank is at least int(share * len(scores)).")
def same_share(answer: Callable[[dict[str, Tensor], float], dict[str, Tensor]]) -> str | None:
    """``same_share(scores, share)``: the masks that close the lowest share of each group."""
    scores = {"a": torch.rand(8), "b": 5 + torch.rand(20)}
    got = answer({name: s.clone() for name, s in scores.items()}, 0.25)
    if not isinstance(got, dict) or got.keys() != scores.keys():
        return f"the answer must be a dictionary with a mask for each group of the scores, got {kind(got)}"
    wrong_types = {str(getattr(mask, "dtype", type(mask).__name__)) for mask in got.values()} - {"torch.bool"}
    if wrong_types:
        return f"the masks must be bool tensors, True for a channel that stays, got {', '.join(sorted(wrong_types))}"
    flat, kept = torch.cat(list(scores.values())), [s.argsort().argsort() >= len(s) // 4 for s in scores.values()]
    right = torch.cat(kept)
    mistakes = {
        "True must mean that a channel stays: these masks are the other way round": ~right,
        "the lowest scores must go: here the highest go": torch.cat([s.argsort().argsort() < len(s) - len(s) // 4 for s in scores.values()]),
        "this is one threshold over all groups: take the share in each group for itself": flat.argsort().argsort() >= len(flat) // 4,
    }
    return compare(torch.cat(list(got.values())), right, mistakes)


@exercise("3.4", "Half a period: (1 - cos(π u)) / 2 rises from 0 to 1 while u does. Here u is the progress divided by the ramp, but at most 1.")
def cosine_schedule(answer: Callable[[float, float, float], float]) -> str | None:
    """``cosine(progress, rate, ramp)``."""
    moments, rate, ramp = [i / 10 for i in range(11)], 0.8, 0.5

    def rise(position: Callable[[float], float]) -> list[float]:
        return [rate * (1 - math.cos(math.pi * position(t))) / 2 for t in moments]

    right = rise(lambda t: min(1, t / ramp))
    mistakes = {
        "after the ramp the rate must stay: limit progress / ramp to 1": rise(lambda t: t / ramp),
        "the rate must be reached at the end of the ramp, not of the run: divide the progress by the ramp": rise(lambda t: t),
        "it falls: it must start at 0 and end at the rate": [rate - r for r in right],
        "it ends at 1, not at the rate": [r / rate for r in right],
        "this is the cubic schedule": [schedule(t, rate, ramp) for t in moments],
    }
    return compare([answer(t, rate, ramp) for t in moments], right, mistakes)
