"""Answers to the exercises of chapter 10: an ImageNet subset."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from ...budget import channel_costs
from ...channels import trace
from ...models import InvertedResidual
from ..comparing import compare, exercise


@exercise("10.1", "A convolution does the same work at every pixel of its output: how many times as many pixels has an image whose side is 3.5 times as long?")
def at_full_size(answer: Any) -> str | None:
    """How many times the work at 64 pixels a network does at 224."""
    mistakes = {
        "the side grows by that factor; the work is done at every pixel of the area": 224 / 64,
        "parameters do not grow with the image, but MACs do": 1,
        "this is small by large: divide the other way round": (64 / 224) ** 2,
    }
    return compare(answer, (224 / 64) ** 2, mistakes, tolerance=0.01)  # the last layer, which sees one pixel, is less than a hundredth


@exercise("10.2", "The filter that expands to it, its depthwise filter, a scale and a shift for each of the two, and its weight in each filter that projects.")
def one_expanded_channel(answer: Any) -> str | None:
    """How many parameters go with one of the expanded channels of ``features.4``."""
    expand, depthwise, project, norm = 24, 9, 32, 2
    mistakes = {
        "the depthwise filter and its norm are forgotten: no other channel uses them": expand + norm + project,
        "the depthwise filter is forgotten: nine weights of its own": expand + project + 2 * norm,
        "the batch norms are forgotten: a scale and a shift in each of two": expand + depthwise + project,
        "there are two norms with a scale and a shift for it: after the expansion, and after the filtering": expand + depthwise + project + norm,
        "the weights that read the channel are forgotten: one in each of the 32 filters that project": expand + depthwise + 2 * norm,
        "the filter that expands to it is forgotten: 24 weights": depthwise + project + 2 * norm,
        "a depthwise filter reads one channel only: nine weights, not nine for each of the 144": expand + 144 * depthwise + project + 2 * norm,
        "the norm after the projection belongs to the 32 channels, which stay": expand + depthwise + project + 3 * norm,
    }
    block = InvertedResidual(24, 32, 2, 6)
    return compare(answer, channel_costs(trace(block, torch.zeros(1, 24, 8, 8)))["layers.0"][0], mistakes)


@exercise("10.3", "newly wrong: (before == labels) & (after != labels), counted by .sum(); newly right is the same with before and after exchanged.")
def answers_that_changed(answer: Callable[[Tensor, Tensor, Tensor], Any]) -> str | None:
    """``turnover(labels, before, after)``: how many images are newly wrong, and how many newly right."""
    labels, before, after = torch.randint(0, 4, (3, 200))
    before[:120], after[40:150] = labels[:120], labels[40:150]
    wrong, right = ((before == labels) & (after != labels)).sum(), ((before != labels) & (after == labels)).sum()
    changed, errors = (before != after).sum(), [(found != labels).sum() for found in (before, after)]
    mistakes = {
        "first the newly wrong, then the newly right": [right, wrong],
        "an image that was wrong and is wrong in another way is not newly wrong": [changed - right, right],
        "these are all errors before and after: count those that are new": errors,
        "an error that is there before and after is not new: count images, not errors": errors[::-1],
        "counts, not shares of the images": [wrong / 200, right / 200],
        "this is only the difference, which accuracy shows, too: give both numbers": wrong - right,
    }
    return compare(answer(labels.clone(), before.clone(), after.clone()), torch.stack([wrong, right]), mistakes)
