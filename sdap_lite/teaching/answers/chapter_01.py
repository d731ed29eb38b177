"""Answers to the exercises of chapter 1: too many channels."""

from __future__ import annotations

from typing import Any

import torch

from ...budget import channel_costs
from ...channels import trace
from ...measure import count_macs, count_params
from ...models import resnet20, vgg
from ..comparing import compare, exercise


@exercise("1.1", "The channel has a filter of 9 × inputs, a scale and a shift in its batch norm, and a 3 × 3 column in every filter of the next layer.")
def one_channel(answer: Any) -> str | None:
    """How many parameters go with one channel of the VGG's ``features.24``."""
    net: Any = vgg()
    writes, reads = 9 * net.features[24].in_channels, 9 * net.features[27].out_channels
    mistakes = {
        "the batch norm is forgotten: it has a scale and a shift for the channel": writes + reads,
        "the columns that read the channel are forgotten: without it they are of no use": writes + 2,
        "the filter that writes the channel is forgotten": reads + 2,
        "batch norm's running mean and variance are buffers, not parameters: only scale and shift count": writes + reads + 4,
        "the columns that read it and the batch norm are forgotten: this is its filter only": writes,
    }
    return compare(answer, channel_costs(trace(net, torch.zeros(1, 3, 32, 32)))["features.24"][0], mistakes)


@exercise("1.2", "Count both networks by sdap.count_params and sdap.count_macs, and divide the wide one by the narrow one.")
def half_the_width(answer: Any) -> str | None:
    """By which factors parameters and MACs shrink at half the width."""
    mistakes = {
        "not exactly four: what has one width only (norms, the layers at the image and at the classes) halves at most": (4, 4),
        "a layer's cost is a product of two widths, and both are halved": (2, 2),
    }
    verdicts = []
    for shape in ((1, 3, 32, 32), (1, 1, 28, 28)):  # the chapter's image sets
        wide, narrow = (vgg(width=width, in_channels=shape[1]) for width in (16, 8))
        params = count_params(wide) / count_params(narrow)
        macs = count_macs(wide, torch.zeros(shape)) / count_macs(narrow, torch.zeros(shape))
        more = {"this is narrow by wide: divide the other way round": (1 / params, 1 / macs), "first the parameters, then the MACs": (macs, params)}
        verdicts.append(compare(answer, (params, macs), {**mistakes, **more}, tolerance=1e-3))
    return None if None in verdicts else verdicts[0]


@exercise("1.4", "Print the trace: each line with a number above 0 under 'may go' is a group whose channels could be removed.")
def groups_of_a_resnet(answer: Any) -> str | None:
    """Into how many prunable groups ResNet-20's channels fall."""
    graph = trace(resnet20(), torch.zeros(1, 3, 32, 32))
    convolutions = sum(layer.kind == "conv" for layer in graph.layers.values())
    mistakes = {
        "that is one group for each convolution; but a sum ties the channels of both its sides": convolutions,
        "the ten classes form a group, too, but none of its channels may go": len(graph.groups),
        "the three stages share their sum: the shortcuts between them carry its channels on": len(graph.prunable) + 2,
    }
    return compare(answer, len(graph.prunable), mistakes)
