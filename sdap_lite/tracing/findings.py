"""What running a network on labels brings to light, and the interpreter that writes it down.

What each operation does to channels, :mod:`sdap_lite.tracing.layer_rules` and
:mod:`sdap_lite.tracing.operation_rules` say.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, fx, nn

from ..graph import Kept, Layer
from .labels import FIXED, Labelled, Ties, along, compact, condense, constant, labelled, mapped
from .widths import Replay

__all__ = ["Findings", "Notes", "running"]

UNKNOWN = "the tracer does not know what it does with channels"
MIXED = "its input mixes channels at one place"
MIXES = "it mixes channels"
FOREIGN = "a tensor that is no layer's meets the channels"
STAYS = "it meets what must stay"
COUNTS = "it counts channels by a number written in the code"
NUMBER = "it computes with the number of channels"
TRAINING = "it runs in training only, and cannot run on this example"
OWN_CODE = "its weight is used by code of its own"
OTHER_USE = "it uses the weight of a layer in another way"
UNOWNED = "its weight is no layer's own"
COMPUTED = "its weight is computed from other tensors"
OTHERWISE = "it computes otherwise than its base class"
UNCALLED = "it is not called on this example, and stays whole"
LAYERS = {UNOWNED, COMPUTED, OTHERWISE, UNCALLED}  # a layer that is not understood is told of, wherever it stands


@dataclass
class Findings:
    """What running a network on labels brings to light; two runs (eval and train mode) add to one."""

    names: set[str]  # of the model's parameters and buffers: what surgery can cut
    ties: Ties = field(default_factory=Ties)
    layers: dict[str, Layer] = field(default_factory=dict)
    notes: list[Kept] = field(default_factory=list)
    parameters: dict[str, Layer] = field(default_factory=dict)  # parameters and buffers with a value a channel, used by the user's code
    owners: dict[int, list[str]] = field(default_factory=dict)  # by a tensor's id: the layers that are cut along it
    touched: dict[str, tuple[int, str, str]] = field(default_factory=dict)  # parameters and buffers of other uses: id, operation, reason
    fixed: list[Tensor] = field(default_factory=list)  # labels that stay
    over_positions: list[Layer] = field(default_factory=list)  # linear layers that mix no channels
    unclear: bool = False  # whether other operations than layers may have MACs
    macs: int | None = None  # if so: of the whole network, one example


class Notes(fx.Interpreter):
    """An interpreter that knows which channels are the same, and notes which must stay and why.

    Args:
        module: the model.
        graph: what its code does.
        found: what is known already; added to.
        batch: how many examples the input holds: costs are counted for one.
        asked: names of nodes whose value the code was told: it must not change with the channels.
        counting: whether this run's operations are counted as MACs.
    """

    def __init__(self, module: nn.Module, graph: fx.Graph, found: Findings, batch: int, asked: set[str], counting: bool) -> None:
        super().__init__(module, garbage_collect_values=False, graph=graph)  # sizes may be asked for again
        self.extra_traceback = False  # an error's message is the user's to read
        self.found, self.batch, self.asked, self.counting = found, batch, asked, counting
        self.replay = Replay(self.env, found.ties, module)
        self.node: fx.Node = next(iter(graph.nodes))

    def tie(self, a: Tensor, b: Tensor, reason: str = STAYS) -> None:
        """Labels at the same place of ``a`` and ``b`` are the same channel; what meets FIXED stays."""
        a, b = (x.flatten() for x in torch.broadcast_tensors(a, b))
        meets = (a == FIXED) != (b == FIXED)
        if bool(meets.any()):
            self.keep([torch.maximum(a, b)[meets]], reason)
        apart = (a != b) & ~meets
        if bool(apart.any()):
            self.found.ties.tie(a[apart], b[apart])

    def keep(self, labels: Iterable[Tensor], reason: str) -> None:
        found = torch.unique(torch.cat([compact(x).flatten() for x in labels] or [torch.zeros(0, dtype=torch.long)]))
        found = found[found != FIXED]
        if not len(found) and reason not in LAYERS:
            return
        target = self.node.target
        operation = target if isinstance(target, str) else getattr(target, "__name__", str(target))
        if self.node.op == "call_module":
            operation = type(self.fetch_attr(str(target))).__name__
        module = str(target) if self.node.op == "call_module" else running(self.node)
        self.found.fixed.append(found)
        self.found.notes.append(Kept(found, operation, module, reason))

    def fixed_roots(self, roots: Tensor) -> set[int]:
        labels = torch.cat([torch.zeros(1, dtype=torch.long), *self.found.fixed])
        return set(roots[labels].tolist())

    def roots(self, labels: Tensor) -> Tensor:
        return self.found.ties.roots()[compact(labels)].expand(labels.shape)

    def line(self, x: Labelled, axis: int) -> Tensor | None:
        """The label at each place of an axis, if it is the same channel at all other positions."""
        found = along(x.labels, axis)
        return along(condense(self.roots(x.labels)), axis) if found is None else found

    def unknown(self, tree: Any, value: Any, reason: str = UNKNOWN) -> Any:
        self.keep([x.labels for x in labelled(tree)], reason)
        self.found.unclear |= self.counting
        return mapped(value, lambda leaf: constant(leaf) if isinstance(leaf, Tensor) else leaf)

    def stay(self, x: Labelled, value: Any, reason: str) -> Any:
        """Channels keep their places, but none may go."""
        self.keep([x.labels], reason)
        return Labelled(value, x.labels)


def running(node: fx.Node) -> str:
    """The module whose code a node is part of."""
    stack = [entry[0] for entry in (node.meta.get("nn_module_stack") or {}).values()]
    return stack[-1] if stack else ""
