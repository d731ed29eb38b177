"""Does an operation do the same at every width? Run again with fewer channels, it tells.

``flatten(1)`` does; ``view(n, 512)`` counts channels by a number written in the code; a channel
shuffle ``view(n, 2, c // 2, h, w)`` does if both halves lose the same places. So the operation is
run again on the labels that are left when some channels go, with every size that the code reads
from a shape computed again. What comes out must be what came out before, less the lost channels.
Where it is not, ties between channels are tried that make it so.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Iterator
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, fx

from .labels import FIXED, Labelled, Ties, along, compact, labelled, leaves, mapped
from .operations import KINDS

__all__ = ["Replay", "runner"]

Tie = tuple[Tensor, Tensor]


class _Uneven(ValueError):
    """A tensor would lose all its channels, or a channel at some places only."""


def runner(node: fx.Node, module: torch.nn.Module | None) -> Callable[..., Any]:
    """How a node is computed, on labels as well as on values."""
    if module is not None:
        return lambda *a, **k: module(*a, **k)
    target: Any = node.target
    if target is F.pad:  # labels are padded with FIXED, whatever the values are padded with
        return lambda x, pad, mode="constant", value=None: F.pad(x, pad, mode, FIXED if x.dtype == torch.int64 else value)
    if node.op == "call_function":
        return target

    def method(x: Any, *rest: Any, **named: Any) -> Any:
        # Labels are expanded, which view() cannot read and reshape() can.
        labels = target == "view" and isinstance(x, Tensor) and x.dtype == torch.int64
        return getattr(x, "reshape" if labels else target)(*rest, **named)

    return method


class Replay:
    """Runs operations of a traced graph again, as if some channels were gone.

    Args:
        env: what each node gave: :class:`Labelled` tensors, or plain values.
        ties: between the labels.
        root: the module whose submodules the graph calls.
    """

    def __init__(self, env: dict[fx.Node, Any], ties: Ties, root: torch.nn.Module) -> None:
        self.env, self.ties, self.root = env, ties, root

    def sources(self, tree: Any) -> list[Labelled]:
        """The labelled tensors that a node's arguments are, or are computed from (a size of one, say)."""
        found: list[Labelled] = []
        for node in leaves(tree):
            if isinstance(node, fx.Node):
                found += labelled(self.env[node]) or self.sources((node.args, node.kwargs))
        return found

    def varies(self, tree: Any, *trial: Tie) -> bool:
        """Whether a number among a node's arguments changes with the number of channels, if those of ``trial`` are tied, too."""
        others = (Labelled, Tensor, torch.dtype, torch.device)
        numbers = [n for n in leaves(tree) if isinstance(n, fx.Node) and not any(isinstance(x, others) for x in leaves(self.env[n]))]
        sources = [source for number in numbers for source in self.sources((number.args, number.kwargs))]
        roots = self.ties.roots(*trial)
        return any(self._again(n, gone, roots) != self.env[n] for gone in _drops(sources, roots, {FIXED}) for n in numbers)

    def follows(self, node: fx.Node, labels: Any, roots: Tensor, fixed: set[int]) -> bool:
        """Whether the node, run on what is left of its inputs, gives what is left of its outputs.

        Args:
            node: an operation that only moves values.
            labels: what it gives on the labels of all channels: a tensor or a sequence of some.
            roots: which labels are the same channel.
            fixed: roots of channels that stay.
        """
        for gone in _drops(self.sources((node.args, node.kwargs)), roots, fixed):
            try:
                wanted = [_without(roots[compact(x)].expand(x.shape), gone) for x in leaves(labels)]
                got = leaves(self._run(node, gone, roots))
            except (RuntimeError, IndexError, ValueError, TypeError):
                return False
            if len(wanted) != len(got) or not all(torch.equal(a, b) for a, b in zip(wanted, got, strict=True)):
                return False
        return True

    def lines(self, node: fx.Node) -> list[Tensor]:
        """The channels of each tensor that a node's arguments are computed from, where they lie along one axis."""
        roots = self.ties.roots()
        sources = self.sources((node.args, node.kwargs))
        return [line for x in sources if (line := _line(roots[compact(x.labels)].expand(x.labels.shape))) is not None]

    def alike(self, node: fx.Node) -> list[Tie]:
        """For a comparison of two tensors' sizes that are equal: the ties between their channels with which they always are."""
        if node.target not in (operator.eq, operator.ne) or self.env[node] is not (node.target is operator.eq):
            return []
        lines = self.lines(node)
        tie = [(lines[0], lines[1])] if len(lines) == 2 and len(lines[0]) == len(lines[1]) else []
        return [] if self.varies(node, *tie) else tie

    def remedies(self, node: fx.Node) -> Iterator[tuple[list[Tie], Tensor]]:
        """Ties between channels, or channels that stay, with which a node may do the same at every width."""
        none = torch.zeros(0, dtype=torch.long)
        lines = self.lines(node)
        if not lines:
            return
        line = lines[0]
        same = [(line, other) for other in lines[1:] if len(other) == len(line)]
        choices: list[tuple[int, list[Tie], Tensor]] = [(len(line), same, none)] if same else []
        for p in range(2, len(line)):
            if len(line) % p == 0:
                rows, neighbours = line.view(p, -1), line.view(-1, p)
                choices.append((len(line) // p, [*same, (rows, rows[:1])], none))  # the same places of each of p parts
                choices.append((len(line) // p, [*same, (neighbours, neighbours[:, :1])], none))
        numbers = {abs(leaf) for leaf in leaves(fx.node.map_arg((node.args, node.kwargs), self.env.__getitem__)) if type(leaf) is int}
        for number in sorted(numbers | {2}):  # squeeze() takes an axis away that has one channel left
            if 0 < number < len(line):  # a slice's first or last ones
                choices += [(len(line) - len(stays), same, stays) for stays in (line[:number], line[: number + 1], line[-number:])]
        for _, pairs, stays in sorted(choices, key=lambda choice: -choice[0]):  # what leaves the most freedom, first
            yield pairs, stays

    def _run(self, node: fx.Node, gone: Tensor, roots: Tensor) -> Any:
        args, kwargs = fx.node.map_arg((node.args, node.kwargs), lambda n: self._again(n, gone, roots))
        return runner(node, self.root.get_submodule(str(node.target)) if node.op == "call_module" else None)(*args, **kwargs)

    def _again(self, node: fx.Node, gone: Tensor, roots: Tensor) -> Any:
        value = self.env[node]
        kind = node.target is getattr and node.args[1] in KINDS  # what no channel has a part in, and labels have otherwise
        if kind or node.target in ("is_floating_point", torch.is_floating_point):
            return value
        if labelled(value):
            return mapped(value, lambda x: _without(roots[compact(x.labels)].expand(x.labels.shape), gone) if isinstance(x, Labelled) else x)
        return self._run(node, gone, roots) if node.op.startswith("call") else value


def _line(labels: Tensor) -> Tensor | None:
    """The labels along the one axis along which they change, if there is one."""
    axes = [a for a, size in enumerate(compact(labels).shape) if size > 1]
    axes = [a for a in axes if bool((labels.narrow(a, 0, 1) != labels).any())] if len(axes) > 1 else axes
    return along(labels, axes[0]) if len(axes) == 1 else None


def _without(labels: Tensor, gone: Tensor) -> Tensor:
    """The tensor as it is when channels are gone: along each axis, the places where all are gone are cut out."""
    small = compact(labels)
    dead = gone[small]
    if not bool(dead.any()):
        return labels
    sizes = list(labels.shape)
    for axis in range(labels.ndim):
        if small.shape[axis] > 1:
            left = (~dead.movedim(axis, 0).reshape(dead.shape[axis], -1).all(1)).nonzero().flatten()
            small, dead = small.index_select(axis, left), dead.index_select(axis, left)
            sizes[axis] = len(left)
    if bool(dead.any()) or not small.numel():
        raise _Uneven
    return small.expand(sizes)


def _drops(sources: list[Labelled], roots: Tensor, fixed: set[int]) -> Iterator[Tensor]:
    """Some choices of channels to go, each a bool a label; every source keeps one."""
    generator = torch.Generator().manual_seed(0)
    stays = torch.zeros(len(roots), dtype=torch.bool)
    stays[list(fixed)] = True
    lines = {tuple(torch.unique(roots[compact(x.labels)]).tolist()) for x in sources}
    choices: list[list[Tensor]] = []
    for line in map(torch.tensor, sorted(lines)):
        free = line[~stays[line]]
        spare = free if len(free) < len(line) else free[1:]  # one must stay
        if len(spare):
            halves = [spare[torch.rand(len(spare), generator=generator) < 0.5] for _ in range(2)]
            choices.append([spare[:1], spare[-1:], spare, free[:-1] if len(free) > 1 else spare, *halves])
    together = [torch.cat(rows) for rows in zip(*choices, strict=True)] if len(choices) > 1 else []
    for drop in [*(drop for rows in choices for drop in rows), *together]:
        gone = torch.zeros(len(roots), dtype=torch.bool)
        gone[drop] = True
        if len(drop) and not any(bool(gone[list(line)].all()) for line in lines):
            yield gone
