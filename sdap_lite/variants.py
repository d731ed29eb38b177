"""What else a run might do: the open questions of the method, each with an answer that can be measured. Chapter 11."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass, fields
from typing import Any

import torch
from torch import Tensor, nn

__all__ = ["Variant", "floored", "noisy", "recalibrate"]


@dataclass(frozen=True)
class Variant:
    """What a run does otherwise than :func:`sdap_lite.prune` does by itself; the defaults change nothing.

    Attributes:
        decay: of the running mean in the rule ``"rms"``, a step.
        labels: whether gates learn from the gradient of the cross-entropy alone, not from that of the whole loss.
        current_costs: whether a channel's cost is counted at the widths of the moment, not at the full ones.
        floor: the share of each group, its best channels, that stays if the budget allows.
        noise: of the gates while they learn: the choice is drawn, not made (:func:`noisy`).
        restart: whether the learning rate begins anew after surgery: warm-up, then a cosine to zero.
        recalibrate: batches that measure the batch norms' statistics anew right after surgery.

    >>> Variant(floor=0.1).differs
    {'floor': 0.1}
    """

    decay: float = 0.99
    labels: bool = False
    current_costs: bool = False
    floor: float = 0.0
    noise: float = 0.0
    restart: bool = False
    recalibrate: int = 0

    def __post_init__(self) -> None:
        for name, value in (("decay", self.decay), ("floor", self.floor)):
            if not 0 <= value < 1:
                raise ValueError(f"{name} must be a number from 0 to below 1, got {value!r}")
        for name, number in (("noise", self.noise), ("recalibrate", self.recalibrate)):
            if not number >= 0:
                raise ValueError(f"{name} must be a number from 0 on, got {number!r}")

    @property
    def differs(self) -> dict[str, Any]:
        """What is not as by default."""
        return {f.name: getattr(self, f.name) for f in fields(self) if getattr(self, f.name) != f.default}


def floored(scores: dict[str, Tensor], share: float) -> dict[str, Tensor]:
    """Raises the best channels of each group above all others, so that they go last.

    Args:
        scores: from 0 on, for each prunable group a tensor.
        share: of each group, rounded up.

    >>> floored({"a": torch.tensor([0.5, 0.25, 0.125])}, 0.5)
    {'a': tensor([5.0000e+05, 2.5000e+05, 1.2500e-01])}
    """
    raised = {name: values.clone() for name, values in scores.items()}
    for values in raised.values():
        best = values.argsort(descending=True)[: math.ceil(share * len(values))]
        values[best] *= 1e6
    return raised


def noisy(scores: dict[str, Tensor], amount: float, generator: torch.Generator) -> dict[str, Tensor]:
    r"""Scores times :math:`e^{aG}` with Gumbel noise G: keeping the best of these draws channels without replacement.

    At ``amount`` 1 each draw takes a channel with a probability in proportion to its score (the
    Gumbel top-k trick, Kool et al. 2019); at 0 the best ones are taken.

    Args:
        scores: above 0, for each prunable group a tensor.
        amount: a, from 0 on.
        generator: on the CPU.
    """
    gumbel = {name: -torch.empty(len(values)).exponential_(generator=generator).clamp(min=1e-20).log() for name, values in scores.items()}
    return {name: values * (amount * gumbel[name].to(values)).exp() for name, values in scores.items()}


def recalibrate(model: nn.Module, inputs: Iterable[Tensor]) -> None:
    """Measures the running statistics of the batch norms anew, as the mean over some batches; weights stay.

    Args:
        model: changed in place; afterwards in train mode.
        inputs: batches of images.
    """
    norms = [m for m in model.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm) and m.track_running_stats]
    momenta = [m.momentum for m in norms]
    for m in norms:
        m.reset_running_stats()
        m.momentum = None  # a plain mean
    model.train()
    with torch.no_grad():
        for x in inputs:
            model(x)
    for m, momentum in zip(norms, momenta, strict=True):
        m.momentum = momentum
