"""Answers to the exercises of chapter 7: your own network."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ...channels import trace
from ..comparing import compare, exercise


class _Dealt(nn.Module):
    """32 channels, dealt out by a function."""

    def __init__(self, deal: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.deal = deal
        self.stem, self.last = nn.Conv2d(3, 32, 3), nn.Conv2d(32, 8, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.deal(self.stem(x)))


def _may_go(deal: Callable[[Tensor], Tensor]) -> int:
    """How many channels of the stem may go."""
    graph = trace(_Dealt(deal), torch.zeros(1, 3, 8, 8))
    group = graph.groups["stem"]
    return int(graph.removable[group.start : group.stop].sum())


@exercise("7.2", "n, channels, height, width = x.shape, then channels // 2 in view and channels in reshape: numbers that are read, not written.")
def mended_shuffle(answer: Callable[[Tensor], Tensor]) -> str | None:
    """``mended(x)``: the two halves of the channels in turns, whatever their number."""
    x = torch.randn(2, 32, 3, 3)
    right, apart = (x.view(2, *piles, 3, 3).transpose(1, 2).reshape(x.shape) for piles in ((2, 16), (16, 2)))
    mistakes = {
        "these are the channels as they came: the halves must take turns": x,
        "this takes the cards apart again: two halves of many, not many piles of two": apart,
    }
    wrong = compare(answer(x), right, mistakes)
    if wrong:
        return wrong
    return None if _may_go(answer) else "the order is right, but no channel may go: a number of channels stands in the code; read it from x.shape"


@exercise("7.3", "With 8: which eight can never change places, and what must be left behind them? With a quarter: channel i of each quarter goes together.")
def uneven_shuffles(answer: Any) -> str | None:
    """How many channels may go when the first 8, or a quarter, are put behind the others."""
    fixed = _may_go(lambda x: torch.cat([x[:, 8:], x[:, :8]], 1))
    quarter = _may_go(lambda x: torch.cat([x[:, x.shape[1] // 4 :], x[:, : x.shape[1] // 4]], 1))
    mistakes = {
        "the 8 stands in the code, so the first eight must stay, whatever the others do": (32, quarter),
        "the first eight stay, but one behind them, too: something must be left to put in front": (fixed + 1, quarter),
        "only the first eight are named in the code: most of the others may go": (0, quarter),
        "a quarter of what is left must be cut where it was cut: one of each quarter at a time, which counts as one": (fixed, 32),
        "four go together, one of each quarter, and so they can go: the report counts each four as one": (fixed, 0),
        "first the 8, then the quarter": (quarter, fixed),
    }
    return compare(answer, (fixed, quarter), mistakes)


class _TwoOutputs(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Conv2d(3, 16, 3, padding=1), nn.Conv2d(16, 24, 3, stride=2)
        self.head, self.map = nn.Linear(24, 10), nn.Conv2d(16, 1, 1)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        x = F.relu(self.first(x))
        return self.head(F.relu(self.second(x)).mean((2, 3))), self.map(x)


@exercise("7.5", "What a caller sees must stay: every channel of every output. The others only pass between layers.")
def two_outputs(answer: Any) -> str | None:
    """How many channels of a network with ten classes and a map must stay."""
    graph = trace(_TwoOutputs(), torch.zeros(1, 3, 8, 8))
    channels = sum(len(group) for group in graph.groups.values())
    mistakes = {
        "the map is an output, too: its channel stays": 10,
        "the ten classes are an output, too: their channels stay": 1,
        "count channels, not outputs": 2,
        "the map reads these 16, but it can read fewer: only its own channel stays": 27,
        "that is all channels: those between the layers may go": channels,
    }
    return compare(answer, channels - int(graph.removable.sum()), mistakes)
