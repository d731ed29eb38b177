"""What operations without weights do with channel labels: tie them, move them, or mix them so that they stay."""

from __future__ import annotations

import operator
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from ..graph import Layer
from .counting import macs_of
from .findings import COUNTS, FOREIGN, MIXED, MIXES, STAYS, Notes, running
from .labels import Labelled, compact, condense, constant, labelled, leaves, mapped, spread, unwrap
from .products import spell
from .widths import runner

__all__ = ["OperationRules"]


class OperationRules(Notes):
    """Labels that meet at one place are one channel; an operation must do the same at every width."""

    def per_channel(self, x: Labelled, value: Any) -> Any:
        """Pooling (with or without its places) and resizing: each channel's image on its own."""
        if isinstance(value, tuple):
            return tuple(self.per_channel(x, part) for part in value)
        axis = 1 if value.ndim > 2 else 0
        line = self.line(x, axis)
        if line is None or len(line) != value.shape[axis]:
            return self.unknown(x, value, MIXED)
        return Labelled(value, spread(line, value.shape, axis))

    def unpooling(self, inputs: list[Labelled], value: Tensor) -> Any:
        """Each channel's values back to their places, which are another tensor's channels."""
        for x in inputs[1:]:
            self.tie(compact(inputs[0].labels), compact(x.labels))
        return self.per_channel(inputs[0], value)

    def elementwise(self, args: Any, value: Tensor) -> Any:
        """Labels that meet at the same place are the same channel."""
        foreign = any(isinstance(a, Tensor) and a.numel() > 1 for a in args)
        result: Tensor | None = None
        for x in (constant(a) if isinstance(a, Tensor) and a.numel() > 1 else a for a in leaves(args)):
            if isinstance(x, Labelled):
                labels = x.labels.view([1] * (value.ndim - x.labels.ndim) + list(x.labels.shape))
                result = labels if result is None else self.meet(result, labels, FOREIGN if foreign else STAYS)
        assert result is not None
        return Labelled(value, result.expand(value.shape))

    def meet(self, a: Tensor, b: Tensor, reason: str) -> Tensor:
        """Two operands' labels: tied where they meet. One spread over all channels of the other stays."""
        small_a, small_b = compact(a), compact(b)
        for one, many, full in ((small_a, small_b, a), (small_b, small_a, b)):
            if any(m > 1 and f == 1 for m, f in zip(many.shape, full.shape, strict=True)):
                self.keep([one], "one channel is spread over many")
                return many
        self.tie(small_a, small_b, reason)
        return torch.maximum(*torch.broadcast_tensors(small_a, small_b))

    def product(self, args: Any, kwargs: Any, value: Tensor) -> Any:
        """Factors at the same place meet as where they are multiplied; a sum must not run over channels, whose zeros nothing guarantees."""
        spelled = spell(self.node.target, args, kwargs, lambda x: (x.value if isinstance(x, Labelled) else x).shape)
        if spelled is None:
            return self.unknown((args, kwargs), value)
        self.found.unclear |= self.counting
        self.keep([x.labels for x in labelled(spelled.mixed)], MIXES)
        letters = spelled.result + "".join(sorted(set("".join(spelled.terms)) - set(spelled.result)))
        result: Tensor | None = None
        for factor, term in zip(spelled.factors, spelled.terms, strict=True):
            labels = condense(self.roots(factor.labels)) if isinstance(factor, Labelled) else constant(factor).labels
            if any(letter not in spelled.result and size > 1 for letter, size in zip(term, compact(labels).shape, strict=True)):
                self.keep([labels], MIXES)
                labels = constant(labels).labels
            placed = labels.permute([term.index(letter) for letter in letters if letter in term])
            placed = placed[tuple(slice(None) if letter in term else None for letter in letters)]
            if result is not None:
                shape = torch.broadcast_shapes(result.shape, placed.shape)
                placed = self.meet(result, placed, STAYS if isinstance(factor, Labelled) else FOREIGN).expand(shape)
            result = placed
        assert result is not None
        for _ in letters[len(spelled.result) :]:  # along which the labels are the same
            result = result.select(-1, 0)
        done = Labelled(value, condense(self.roots(result.expand(value.shape))))
        if self.counting:
            self.count_product(args, kwargs, done, spelled.share)
        return done

    def count_product(self, args: Any, kwargs: Any, done: Labelled, share: float) -> None:
        """The MACs of a product, that many for each channel of what it gives."""
        line = compact(done.labels).flatten()
        macs = macs_of(runner(self.node, None), *unwrap(args, "value"), **unwrap(kwargs, "value"))
        work = share * macs / (self.batch * len(line))
        self.found.over_positions.append(Layer(running(self.node), "positions", line, line, out_macs=work))

    def joining(self, parts: list[Labelled], axis: int, value: Tensor) -> Any:
        """Puts labels side by side, which is the same at every width; axes of one label stay expanded."""
        axis = axis % value.ndim
        small = [compact(x.labels) for x in parts]
        if all(x.shape[axis] == 1 for x in small):  # beside each other in space: the same channels
            for x in small[1:]:
                self.tie(small[0], x)
        wide = [max(sizes) for sizes in zip(*(x.shape for x in small), strict=True)]
        shapes = [[full.value.shape[a] if a == axis else wide[a] for a in range(value.ndim)] for full in parts]
        joined = torch.cat([x.expand(shape) for x, shape in zip(small, shapes, strict=True)], axis)
        return Labelled(value, joined.expand(value.shape))

    def moving(self, run: Callable[..., Any], args: Any, kwargs: Any, value: Any) -> Any:
        """Reshaping, cutting, turning: run on the labels, if it does the same at every width."""
        if len(labelled((args, kwargs))) < sum(isinstance(leaf, (Labelled, Tensor)) for leaf in leaves((args, kwargs))):
            return self.unknown((args, kwargs), value, FOREIGN)
        if self.node.target is operator.getitem and labelled(args[1:]):
            return self.unknown((args, kwargs), value, COUNTS)
        try:
            labels = run(*unwrap(args, "labels"), **unwrap(kwargs, "labels"))
        except RuntimeError:
            return self.unknown((args, kwargs), value)
        if not self.settle(labels):
            self.keep([x.labels for x in self.replay.sources((self.node.args, self.node.kwargs))], COUNTS)
        pairs = zip(leaves(value), leaves(labels), strict=True)
        done = [Labelled(v, condense(self.roots(x))) for v, x in pairs]
        return done[0] if isinstance(value, Tensor) else type(value)(done)

    def settle(self, labels: Any) -> bool:
        """Makes sure that the operation does the same at every width, by ties where it must be; or says no."""
        ties = self.found.ties
        roots = ties.roots()
        if self.replay.follows(self.node, labels, roots, self.fixed_roots(roots)):
            return True
        for pairs, stays in self.replay.remedies(self.node):
            trial = ties.roots(*pairs)
            if self.replay.follows(self.node, labels, trial, self.fixed_roots(trial) | set(trial[stays].tolist())):
                for a, b in pairs:
                    self.tie(a, b)
                self.keep([stays], COUNTS)
                return True
        return False

    def layer_norm(self, x: Labelled, value: Tensor, axes: int, others: list[Labelled] | None = None) -> Any:
        if others:
            self.keep([y.labels for y in others], "it normalizes over all channels")
        return self.along_axes(x, value, tuple(range(value.ndim - axes, value.ndim)), "it normalizes over all channels")

    def along_axes(self, x: Labelled, value: Tensor, dims: Any, reason: str = MIXES) -> Any:
        """Values along some axes together: free where those axes hold one channel each."""
        if dims is None:
            return self.stay(x, value, reason)
        labels = self.roots(x.labels)
        same = all(compact(labels).shape[d] == 1 for d in (dims if isinstance(dims, (tuple, list)) else (dims,)))
        return Labelled(value, x.labels) if same else self.stay(x, value, reason)

    def reducing(self, dims: Any, x: Labelled, value: Any) -> Any:
        """A mean over positions keeps the channel; one over channels is a mixture. A maximum comes with its place."""
        dims = tuple(range(x.labels.ndim)) if dims is None or isinstance(dims, bool) else dims
        results = leaves(value)
        labels = self.roots(x.labels)
        low, high = (reduce(labels, dims, keepdim=results[0].ndim == x.labels.ndim) for reduce in (torch.amin, torch.amax))
        if not torch.equal(low, high):
            return self.unknown(x, value, MIXES)
        done = [Labelled(result, condense(low)) for result in results]
        return done[0] if isinstance(value, Tensor) else type(value)(done)

    def reducing_by_pattern(self, args: Any, kwargs: Any, x: Labelled, value: Tensor) -> Any:
        """The same as einops writes it: ``reduce(x, "b c h w -> b c", "mean")``."""
        target: Any = self.node.target
        given = dict(zip(("tensor", "pattern", "reduction"), args, strict=False)) | kwargs
        low, high = (target(**{**given, "tensor": self.roots(x.labels), "reduction": kind}) for kind in ("min", "max"))
        return Labelled(value, condense(low)) if torch.equal(low, high) else self.unknown(x, value, MIXES)

    def ordering(self, dim: int, x: Labelled, value: Any) -> Any:
        """Values along an axis in their order, or the first of these, with their places: they keep the channel if all are of one."""
        labels = self.roots(x.labels)
        first = labels.narrow(dim, 0, 1)
        if not torch.equal(labels, first.expand(labels.shape)):
            return self.unknown(x, value, MIXES)
        return mapped(value, lambda part: Labelled(part, condense((first if part.ndim == first.ndim else first.squeeze(dim)).expand(part.shape))))

    def gated(self, x: Labelled, axis: int, value: Tensor) -> Any:
        """Half of the channels times a sigmoid of the other half: they go in pairs."""
        first, second = x.labels.chunk(2, axis)
        self.tie(compact(first), compact(second))
        return Labelled(value, first)
