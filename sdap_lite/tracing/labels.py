"""Tensors of channel labels: what stands where, and which labels are the same channel.

An activation's labels have its shape and are nearly the same everywhere, so they are kept
*expanded*: an axis along which they don't change has stride 0 and costs nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx

__all__ = ["FIXED", "Labelled", "Ties", "along", "compact", "condense", "constant", "labelled", "leaves", "mapped", "spread", "unwrap"]

FIXED = 0  # the label of everything that stays


@dataclass(frozen=True, eq=False)
class Labelled:
    """A tensor with the label of the channel at each of its positions (same shape).

    Attributes:
        value: the tensor; only its shape and type are looked at.
        labels: int64, of the same shape.
    """

    value: Tensor
    labels: Tensor


def compact(labels: Tensor) -> Tensor:
    """Each expanded axis cut to one position: a view with every label, and few of them twice."""
    for axis, stride in enumerate(labels.stride()):
        if stride == 0 and labels.shape[axis] > 1:
            labels = labels.narrow(axis, 0, 1)
    return labels


def condense(labels: Tensor) -> Tensor:
    """The same labels, with each axis along which they don't change expanded from one position."""
    small = compact(labels)
    for axis in range(labels.ndim):
        first = small.narrow(axis, 0, 1) if small.shape[axis] else small
        if bool((small == first).all()):
            small = first
    return small.expand(labels.shape)


def along(labels: Tensor, axis: int) -> Tensor | None:
    """The label at each place of an axis, if it is the same at all other positions."""
    axis = axis % labels.ndim
    small = compact(labels)
    small = small.expand(*[labels.shape[a] if a == axis else small.shape[a] for a in range(labels.ndim)])
    rows = small.movedim(axis, 0).reshape(labels.shape[axis], -1)
    return rows[:, 0] if bool((rows == rows[:, :1]).all()) else None


def spread(line: Tensor, shape: Iterable[int], axis: int) -> Tensor:
    """One label a channel, expanded to an activation's shape."""
    shape = tuple(shape)
    return line.view([-1 if a == axis % len(shape) else 1 for a in range(len(shape))]).expand(shape)


class Ties:
    """Which labels are the same channel: union-find over whole tensors at a time.

    >>> ties = Ties()
    >>> a, b = ties.fresh(3), ties.fresh(3)
    >>> ties.tie(a, b)
    >>> ties.roots().tolist()
    [0, 1, 2, 3, 1, 2, 3]
    """

    def __init__(self) -> None:
        self.count = 1  # labels given so far; label 0 is FIXED
        self.pairs: list[Tensor] = []  # [2, n]: not yet in `known`
        self.known = torch.zeros(1, dtype=torch.long)

    def fresh(self, count: int) -> Tensor:
        """New labels, shape [count]."""
        self.count += count
        return torch.arange(self.count - count, self.count)

    def tie(self, a: Tensor, b: Tensor) -> None:
        """Labels at the same place of ``a`` and ``b`` are the same channel."""
        self.pairs.append(torch.stack(torch.broadcast_tensors(a, b)).flatten(1))

    def roots(self, *trial: tuple[Tensor, Tensor]) -> Tensor:
        """For each label the smallest one that is the same channel, shape [labels].

        Args:
            trial: further ties, for this answer only.
        """
        if self.pairs or len(self.known) < self.count:
            known = torch.stack([torch.arange(len(self.known)), self.known])
            self.known, self.pairs = connect(self.count, [known, *self.pairs]), []
        if not trial:
            return self.known
        pairs = [torch.stack(torch.broadcast_tensors(a, b)).flatten(1) for a, b in trial]
        return connect(self.count, [torch.stack([torch.arange(self.count), self.known]), *pairs])


def connect(count: int, pairs: list[Tensor]) -> Tensor:
    """For each of ``count`` labels the smallest one that it is tied to, over any number of steps."""
    root = torch.arange(count)
    if not pairs:
        return root
    a, b = torch.cat(pairs, dim=1)
    while True:
        low = torch.minimum(root[a], root[b])
        new = root.clone()
        new.scatter_reduce_(0, root[a], low, "amin").scatter_reduce_(0, root[b], low, "amin")
        new = new[new]
        if torch.equal(new, root):
            return root
        root = new


def constant(value: Tensor) -> Labelled:
    """A tensor that belongs to no channel that may go."""
    return Labelled(value, torch.zeros([1] * value.ndim, dtype=torch.long).expand(value.shape))


# Nests of values, as a node's arguments are


def leaves(tree: Any) -> list[Any]:
    """All that stands in a nest of tuples, lists, dictionaries and slices."""
    found: list[Any] = []
    mapped(tree, found.append)
    return found


def mapped(tree: Any, change: Callable[[Any], Any]) -> Any:
    """The same nest, with each leaf changed."""
    if type(tree).__module__ == "torch.return_types":  # of max, say: its items go by names, which torch.fx would take away
        return type(tree)([mapped(item, change) for item in tree])
    return fx.node.map_aggregate(tree, change)


def unwrap(tree: Any, which: str) -> Any:
    """The same nest, with the ``value`` or the ``labels`` of what has labels."""
    return mapped(tree, lambda leaf: getattr(leaf, which) if isinstance(leaf, Labelled) else leaf)


def labelled(tree: Any) -> list[Labelled]:
    """What has labels in a nest."""
    return [leaf for leaf in leaves(tree) if isinstance(leaf, Labelled)]
