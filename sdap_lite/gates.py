r"""A gate on every channel: a score, a mask, and a straight-through gradient. Chapter 2.

The mask multiplies the *weight columns of the consumers*, not the activations:
:math:`y = \sum_c W_{:,c}\,(m_c x_c) = (W\,\mathrm{diag}\,m)\,x`. The function is the same, no
activation is stored twice, and the gate's gradient is
:math:`\partial L/\partial m_c = \sum_{\text{consumers}} \langle W_{:,c}, \partial L/\partial (W\,\mathrm{diag}\,m)_{:,c}\rangle`,
whose mean square over batches is the channel's Taylor importance (Molchanov et al. 2019).
"""

from __future__ import annotations

from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from .budget import threshold
from .checks import check_module
from .graph import ChannelGraph, Layer, check_graph
from .rules import RootMeanSquare, Rule

__all__ = ["Gates", "straight_through"]


class _Hard(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, scores: Tensor, kept: Tensor) -> Tensor:
        return kept.to(scores.dtype)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        return gradients[0], None


def straight_through(scores: Tensor, kept: Tensor) -> Tensor:
    """The mask 1 or 0, whose gradient goes straight through to the scores (Bengio et al. 2013).

    Args:
        scores: float, any shape.
        kept: bool of the same shape.

    >>> scores = torch.tensor([0.5, -0.5], requires_grad=True)
    >>> mask = straight_through(scores, scores > 0)
    >>> (mask * torch.tensor([2.0, 3.0])).sum().backward()
    >>> mask.tolist(), scores.grad.tolist()
    ([1.0, 0.0], [2.0, 3.0])
    """
    return cast(Tensor, _Hard.apply(scores, kept))  # type: ignore[no-untyped-call]


class _Spread(torch.autograd.Function):
    """The mask (or other values) laid out along the columns of all consumers: ``straight_through(scores, kept)[columns]``.

    It saves no tensor in the graph, so that one result serves any number of forward and backward passes.
    """

    @staticmethod
    def forward(ctx: Any, scores: Tensor, kept: Tensor, columns: Tensor) -> Tensor:
        ctx.channels, ctx.columns = len(scores), columns
        return kept[columns].to(scores.dtype)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None]:
        return gradients[0].new_zeros(ctx.channels).index_add(0, ctx.columns, gradients[0]), None, None


class _Masked(nn.Module):
    """The parametrization of a consumer's weight: its columns times their channels' mask."""

    def __init__(self, gates: Gates, number: int) -> None:
        super().__init__()
        # In a tuple, so that the gates are no submodule: an optimizer made later must not find the scores.
        self.gates, self.number = (gates,), number

    def forward(self, weight: Tensor) -> Tensor:
        return weight * self.gates[0].spread()[self.number].to(weight.dtype)


class Gates:
    """One trainable score a channel, acting on a model while attached to it.

    Weights keep their identity: an optimizer made before :meth:`attach` goes on training them.
    Frozen weights are gated too, and the scores still learn. The gates act the same in train and
    in eval mode.

    Args:
        graph: of the model.
        rule: how scores learn; default :class:`RootMeanSquare`.

    >>> from sdap_lite import models, trace
    >>> model = models.VGG(11, width=8)
    >>> gates = Gates(trace(model, torch.zeros(1, 3, 32, 32)))
    >>> with gates.attach(model):
    ...     model(torch.randn(2, 3, 32, 32)).square().sum().backward()
    ...     gates.learn()
    >>> gates.scores["features.0"].shape
    torch.Size([8])
    """

    def __init__(self, graph: ChannelGraph, rule: Rule | None = None) -> None:
        check_graph(graph)
        self.graph = graph
        self.rule: Rule = RootMeanSquare() if rule is None else rule
        self.flat = torch.zeros(len(graph), requires_grad=True)
        self.kept = torch.ones(len(graph), dtype=torch.bool)
        #: What gates multiply by (float, shape [channels]), if that is not 1 where they are open and 0 where they are closed.
        self.values: Tensor | None = None
        self.model: nn.Module | None = None
        self._spread: tuple[tuple[Tensor, Tensor, Tensor | None], int, list[Tensor]] | None = None

    @property
    def mask(self) -> Tensor:
        """1 for an open gate and 0 for a closed one, shape [channels]; differentiable in the scores."""
        return straight_through(self.flat, self.kept)

    def spread(self) -> list[Tensor]:
        """For each consumer the mask (or the values) of its columns, in a shape that multiplies its weight.

        For all layers at once, and only when a gate has moved: a step of Python a layer costs more
        than the multiplication, and most steps move no gate.
        """
        state, version = (self.flat, self.kept, self.values), self.kept._version
        if self._spread is None or version != self._spread[1] or any(a is not b for a, b in zip(state, self._spread[0], strict=True)):
            with torch.inference_mode(False), torch.enable_grad():  # what evaluation makes, training uses
                values = self.kept if self.values is None else self.values
                mask = cast(Tensor, _Spread.apply(self.flat, values, self._columns))  # type: ignore[no-untyped-call]
                parts = [part.view(-1, *[1] * axes) for part, axes in zip(mask.split(self._counts), self._trailing, strict=True)]
                self._spread = state, version, parts
        return self._spread[2]

    def renew(self) -> None:
        """Lays the mask out anew in the next forward pass, which a recording of that pass must hold (:class:`sdap_lite.replay.Recording`)."""
        self._spread = None

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_spread": None}  # a part of autograd's graph cannot be copied

    @property
    def scores(self) -> dict[str, Tensor]:
        """For each prunable group the scores of its channels."""
        return self.graph.split(self.flat.detach())

    @scores.setter
    def scores(self, value: dict[str, Tensor]) -> None:
        with torch.no_grad():
            self.flat.copy_(self.graph.join(value, 0.0))

    def held(self, hold: float) -> dict[str, Tensor]:
        """The scores by group, in which those of open channels count 1 + ``hold`` times. Chapter 11.

        Scores that learn are noisy. With a hold, channels about as good as one another do not change places
        at every look (hysteresis), and the weights can settle. Scores below 0 are divided instead.

        Args:
            hold: from 0 on.

        >>> from sdap_lite import models, trace
        >>> gates = Gates(trace(models.VGG(11, width=2), torch.zeros(1, 3, 32, 32)))
        >>> gates.scores = {name: torch.ones(len(group)) for name, group in gates.graph.prunable.items()}
        >>> gates.kept[0] = False
        >>> gates.held(2.0)["features.0"]
        tensor([1., 3.])
        """
        scores = self.flat.detach()
        counted = torch.where(scores > 0, scores * (1 + hold), scores / (1 + hold))
        return self.graph.split(torch.where(self.kept, counted, scores))

    @property
    def gradient(self) -> dict[str, Tensor]:
        """The gates' gradient of the last backward pass, by group.

        Raises:
            RuntimeError: there was none.
        """
        if self.flat.grad is None:
            raise RuntimeError("the gates have no gradient: attach them, then call backward() on a loss of the model's output")
        return self.graph.split(self.flat.grad)

    def close(self, kept: dict[str, Tensor]) -> None:
        """Opens the gates of the kept channels and closes all others."""
        self.kept = self.graph.join(kept, True).bool().to(self.flat.device)

    def close_to(self, rate: float, *, unit: str = "params", cost_power: float = 0.5, hold: float = 0.0, fill: bool = False) -> dict[str, Tensor]:
        """Closes gates until the rate is met (:func:`sdap_lite.threshold`, :meth:`held`); returns what is kept."""
        kept = threshold(self.graph, self.held(hold), rate, unit=unit, cost_power=cost_power, fill=fill)
        self.close(kept)
        return kept

    def learn(self) -> None:
        """Moves the scores by the rule, from the gradient of the last backward pass, and clears it.

        Raises:
            RuntimeError: there is no gradient.
        """
        if self.flat.grad is None:
            raise RuntimeError("the gates have no gradient: attach them, then call backward() on a loss of the model's output")
        with torch.no_grad():
            self.flat.copy_(self.rule(self.flat.detach(), self.flat.grad))
        self.flat.grad = None

    def attach(self, model: nn.Module) -> Gates:
        """Puts a gate on each consumer's weight columns. Also a context that detaches at its end.

        Raises:
            RuntimeError: these gates are attached already, or the model has gates.
            ValueError: the graph is not this model's.
        """
        if self.model is not None:
            raise RuntimeError("these gates are attached already: detach() them first")
        modules = check_model(model, self.graph)
        consumers = [(layer, modules[name]) for name, layer in self.graph.layers.items() if layer.mixes]
        device = next(model.parameters()).device
        self.flat = self.flat.detach().to(device).requires_grad_()
        self.kept = self.kept.to(device)
        # For each consumer the channels of its columns; and how many axes of its weight come after that of the columns
        self._counts = [len(layer.columns) for layer, _ in consumers]
        self._columns = torch.cat([torch.zeros(0, dtype=torch.long), *(layer.columns for layer, _ in consumers)]).to(device)
        self._trailing = [cast(Tensor, module.weight).ndim - (1 if layer.transposed else 2) for layer, module in consumers]
        for number, (_, module) in enumerate(consumers):
            parametrize.register_parametrization(module, "weight", _Masked(self, number), unsafe=True)
        self.model = model
        return self

    def detach(self) -> None:
        """Takes the gates off: the model is again, bit by bit, what it was, but for what it learned.

        Raises:
            RuntimeError: the gates are not attached.
        """
        if self.model is None:
            raise RuntimeError("these gates are not attached to a model")
        for name, layer in self.graph.layers.items():
            if layer.mixes:
                module = self.model.get_submodule(name)
                parametrize.remove_parametrizations(module, "weight", leave_parametrized=False)
                # It comes back behind the bias, but an optimizer's state goes by the order of parameters.
                module._parameters = {"weight": module._parameters.pop("weight"), **module._parameters}
        self.model = None

    def fold(self) -> None:
        """Multiplies the gates' values into the weights: the function stays, and all gates are plain and open.

        Raises:
            RuntimeError: the gates are not attached.
        """
        if self.model is None:
            raise RuntimeError("these gates are not attached to a model")
        consumers = [name for name, layer in self.graph.layers.items() if layer.mixes]
        folded: set[int] = set()  # a weight that several layers share, whose channels are the same, is multiplied once
        with torch.no_grad():
            for name, values in zip(consumers, self.spread(), strict=True):
                weight = cast(Any, self.model.get_submodule(name)).parametrizations.weight.original
                if weight.data_ptr() not in folded:
                    weight.mul_(values.to(weight.dtype))
                folded.add(weight.data_ptr())
        self.values, self.kept = None, torch.ones_like(self.kept)

    def narrowed(self, kept: dict[str, Tensor]) -> Gates:
        """The gates of what surgery leaves, all open, with scores and rule as they were; the rule goes over to them.

        Args:
            kept: for each prunable group a bool tensor.

        Raises:
            RuntimeError: the gates are attached.
        """
        if self.model is not None:
            raise RuntimeError("these gates are attached to a model: detach() them first")
        stays = self.graph.join(kept, True).to(self.flat.device)
        small = Gates(self.graph.narrowed(kept), self.rule)
        small.rule.keep(stays)
        small.flat = self.flat.detach()[stays].requires_grad_()
        return small

    def __enter__(self) -> Gates:
        return self

    def __exit__(self, *error: object) -> None:
        if self.model is not None:
            self.detach()

    def state_dict(self) -> dict[str, Any]:
        return {"scores": self.flat.detach().clone(), "kept": self.kept.clone(), "rule": self.rule.state_dict()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        with torch.no_grad():
            self.flat.copy_(state["scores"])
        self.kept = state["kept"].to(self.flat.device)
        self.rule.load_state_dict(state["rule"])


def check_model(model: nn.Module, graph: ChannelGraph) -> dict[str, nn.Module]:
    """The modules of the graph's layers, by name.

    Raises:
        ValueError: one of them is none; a layer is missing in the model or has other widths than were traced.
        RuntimeError: a layer has gates.
    """
    check_graph(graph)
    check_module(model)
    modules = dict(model.named_modules())
    for name, layer in graph.layers.items():
        owner = layer.module
        if owner not in modules:
            raise ValueError(f"the graph must be this model's, but the model has no module {owner!r}: trace it again")
        if parametrize.is_parametrized(modules[owner], "weight"):
            raise RuntimeError(f"the model must have no gates or other parametrizations, but {owner!r} has: detach() them first")
        found = _widths(modules[owner], layer)
        if found not in (None, (len(layer.inputs), len(layer.outputs))):
            traced = (len(layer.inputs), len(layer.outputs))
            raise ValueError(f"the graph must be this model's, but {name!r} has {found} channels in and out, traced were {traced}: trace it again")
    return modules


def _widths(module: Any, layer: Layer) -> tuple[int, int] | None:
    if layer.kind == "linear":
        return module.in_features, module.out_features
    if layer.kind in ("norm", "parameter"):
        tensor = getattr(module, layer.name.rpartition(".")[2], None) if layer.kind == "parameter" else getattr(module, "weight", None)
        return None if tensor is None else (tensor.numel(),) * 2
    return None if layer.kind == "pad" else (module.in_channels, module.out_channels)
