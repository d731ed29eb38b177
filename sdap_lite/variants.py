"""What else a run might do: the open questions of the method, each with an answer that can be measured. Chapter 11."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, fields
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .baselines import uniform
from .graph import ChannelGraph

__all__ = ["COMPARISONS", "Variant", "adaptive", "attention_loss", "floored", "noisy", "recalibrate", "soft_cost", "stages", "watched"]


def adaptive(scores: dict[str, Tensor]) -> dict[str, Tensor]:
    """Scores as shares of what their group has: each over the root of the sum of the squares of all that are as high or higher.

    The best channel of each group gets 1, so that no group is emptied before another has one channel
    left (LAMP, Lee et al. 2021, for weights; here for channels).

    Args:
        scores: for each prunable group a tensor; what is below 0 counts as 0.

    >>> adaptive({"a": torch.tensor([3.0, 4.0]), "b": torch.tensor([300.0, 400.0])})
    {'a': tensor([0.6000, 1.0000]), 'b': tensor([0.6000, 1.0000])}
    """
    shares = {}
    for name, values in scores.items():
        sorted_, order = values.clamp(min=0).double().sort(descending=True, stable=True)
        as_good = sorted_.square().cumsum(0).sqrt()
        shares[name] = torch.zeros_like(values)
        shares[name][order] = (sorted_ / as_good.clamp(min=torch.finfo(torch.double).tiny)).to(values)
    return shares


#: How scores of different groups are made to compare.
COMPARISONS: dict[str, Callable[[dict[str, Tensor]], dict[str, Tensor]]] = {"global": dict, "adaptive": adaptive, "uniform": uniform}


@dataclass(frozen=True)
class Variant:
    """What a run does otherwise than :func:`sdap_lite.prune` does by itself; the defaults change nothing.

    Attributes:
        decay: of the running mean in the rule ``"rms"``, a step.
        labels: whether gates learn from the gradient of the cross-entropy alone, not from that of the whole loss.
        current_costs: whether a channel's cost is counted at the widths of the moment, not at the full ones.
        floor: the share of each group, its best channels, that stays if the budget allows. For scores from 0 on.
        noise: of the gates while they learn: the choice is drawn, not made (:func:`noisy`). For scores from 0 on.
        restart: whether the learning rate begins anew after surgery: warm-up, then a cosine to zero.
        recalibrate: batches that measure the batch norms' statistics anew right after surgery.
        scaling: whether a gate's score also scales its channel, from 1 on, and is folded into the weights at surgery;
            for a rule that descends, ``"straight-through"`` or ``"adam"``.
        soft: the weight of the budget's penalty; above 0, gates are sigmoids of their scores that get crisper along the
            ramp, and what is over the budget is part of their loss (ChipNet, Tiwari et al. 2021). With the rule ``"adam"``.
        shape: the power of the ramp's curve (:func:`sdap_lite.schedule`); 1 is a straight line.
        compare: how scores of different groups are compared: ``"global"``, as they are; ``"adaptive"``, each as a share of
            its group (:func:`adaptive`), for scores from 0 on; ``"uniform"``, by rank within the group (:func:`sdap_lite.baselines.uniform`).
        maps: the weight of the distance between the teacher's feature maps and the student's (:func:`attention_loss`).

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
    scaling: bool = False
    soft: float = 0.0
    maps: float = 0.0
    shape: float = 3.0
    compare: str = "global"

    def __post_init__(self) -> None:
        for name, value in (("decay", self.decay), ("floor", self.floor)):
            if not 0 <= value < 1:
                raise ValueError(f"{name} must be a number from 0 to below 1, got {value!r}")
        for name in ("noise", "recalibrate", "soft", "maps"):
            if not 0 <= getattr(self, name) < math.inf:
                raise ValueError(f"{name} must be a number from 0 on, got {getattr(self, name)!r}")
        if self.compare not in COMPARISONS:
            raise ValueError(f"compare must be one of {', '.join(COMPARISONS)}, got {self.compare!r}")
        if not 0 < self.shape < math.inf:
            raise ValueError(f"shape must be a number above 0, got {self.shape!r}")
        if self.scaling and self.soft:
            raise ValueError("a gate's value must be either its score (scaling) or a sigmoid of it (soft), not both")

    @property
    def start(self) -> float | None:
        """Where the scores start (wide open), if they are what a gate multiplies by."""
        return 1.0 if self.scaling else 3.0 if self.soft else None

    @property
    def unsigned(self) -> str | None:
        """What wants scores from 0 on, in the words of an error message. It would turn the order of others round, or lose it; ranks are never below 0."""
        if self.compare == "adaptive":
            return "compared as shares (adaptive)"
        if self.compare == "uniform" or not (self.floor or self.noise):
            return None
        return "multiplied (floor)" if self.floor else "multiplied (noise)"

    @property
    def differs(self) -> dict[str, Any]:
        """What is not as by default."""
        return {f.name: getattr(self, f.name) for f in fields(self) if getattr(self, f.name) != f.default}


def floored(scores: dict[str, Tensor], share: float) -> dict[str, Tensor]:
    """Raises the best channels of each group above all others, so that they go last.

    Args:
        scores: from 0 on, for each prunable group a tensor.
        share: of each group, rounded up.

    Raises:
        ValueError: a score is below 0: the factor that raises would lower it.

    >>> floored({"a": torch.tensor([0.5, 0.25, 0.125])}, 0.5)
    {'a': tensor([5.0000e+05, 2.5000e+05, 1.2500e-01])}
    """
    _check_unsigned(scores)
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
        scores: from 0 on, for each prunable group a tensor.
        amount: a, from 0 on.
        generator: on the CPU.

    Raises:
        ValueError: a score is below 0, of which no probability can follow.
    """
    _check_unsigned(scores)
    gumbel = {name: -torch.empty(len(values)).exponential_(generator=generator).clamp(min=1e-20).log() for name, values in scores.items()}
    return {name: values * (amount * gumbel[name].to(values)).exp() for name, values in scores.items()}


def _check_unsigned(scores: dict[str, Tensor]) -> None:
    for name, values in scores.items():
        if bool((values < 0).any()):
            raise ValueError(f"scores must be from 0 on, got {float(values.min()):.4g} in group {name!r}")


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


# Soft gates


def soft_cost(graph: ChannelGraph, values: Tensor, unit: str = "params") -> Tensor:
    """What a network costs if each channel counts by its gate's value: :func:`sdap_lite.cost`, made differentiable.

    Args:
        graph: of the network.
        values: float, from 0 to 1, shape [channels].
        unit: ``"params"`` or ``"macs"``.

    >>> from sdap_lite import models, trace
    >>> graph = trace(models.ResNet(20), torch.zeros(1, 3, 32, 32))
    >>> soft_cost(graph, torch.ones(len(graph))).item()
    269722.0
    """
    total = values.new_tensor(float(getattr(graph, f"other_{unit}")))
    for layer in graph.layers.values():
        if layer.kind != "pad":
            outputs = values[layer.outputs].sum()
            total = total + outputs * (getattr(layer, f"pair_{unit}") * values[layer.inputs].sum() + getattr(layer, f"out_{unit}"))
    return total


# Feature maps


def attention_loss(student: dict[str, Tensor], teacher: dict[str, Tensor]) -> Tensor:
    r"""How far apart two networks look: :math:`\sum_j \lVert q_s^j - q_t^j \rVert^2`, the mean over the batch.

    A feature map's attention is the sum over its channels of their squares, here scaled to length 1, so that
    networks of different widths can be compared (Zagoruyko & Komodakis 2017).

    Args:
        student: feature maps, each of shape [n, channels, height, width].
        teacher: those of the same names, with any number of channels; no gradient flows into them.

    >>> x = torch.rand(2, 8, 4, 4)
    >>> attention_loss({"conv": x}, {"conv": x}).item()
    0.0
    """
    distances = [(_attention(x) - _attention(teacher[name].detach())).square().sum(1).mean() for name, x in student.items()]
    return torch.stack(distances).sum()


def _attention(x: Tensor) -> Tensor:
    return F.normalize(x.float().square().sum(1).flatten(1), dim=1)


@contextlib.contextmanager
def watched(model: nn.Module, names: Iterable[str]) -> Iterator[dict[str, Tensor]]:
    """Collects, as long as it lasts, what the named modules are given.

    >>> net = nn.Sequential(nn.ReLU(), nn.Conv2d(3, 8, 3))
    >>> with watched(net, ["1"]) as maps:
    ...     _ = net(torch.zeros(1, 3, 8, 8))
    >>> maps["1"].shape
    torch.Size([1, 3, 8, 8])
    """
    maps: dict[str, Tensor] = {}
    plain = model.module if isinstance(model, nn.parallel.DistributedDataParallel) else model

    def keeper(name: str) -> Any:
        return lambda module, inputs: maps.__setitem__(name, inputs[0])

    handles = [plain.get_submodule(name).register_forward_pre_hook(keeper(name)) for name in names]
    try:
        yield maps
    finally:
        for handle in handles:
            handle.remove()


def stages(model: nn.Module, graph: ChannelGraph, example: Tensor) -> list[str]:
    """The last convolution at each resolution: its input is what the stage has made of the picture.

    Args:
        model: in eval mode.
        graph: of the model.
        example: a batch of inputs, whose numbers do not matter.

    Raises:
        ValueError: there is no convolution.

    >>> from sdap_lite import models, trace
    >>> net, x = models.ResNet(20).eval(), torch.zeros(1, 3, 32, 32)
    >>> stages(net, trace(net, x), x)
    ['layer2.0.conv1', 'layer3.0.conv1', 'layer3.2.conv2']
    """
    names = [name for name, layer in graph.layers.items() if layer.kind == "conv"]
    if not names:
        raise ValueError("the model must have a convolution, whose input is a feature map, found none")
    with torch.no_grad(), watched(model, names) as maps:
        model(example)
    return list({x.shape[2:]: name for name, x in maps.items()}.values())
