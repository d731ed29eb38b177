"""Which channels must go together: the network, run once on channel labels instead of numbers.

Only layers that mix channels (a convolution, a linear layer) *consume* channels; all else passes
them on. So a channel is gone exactly when every consumer ignores its input column. ``torch.fx``
writes the network down as a list of operations; an interpreter runs them on integer tensors of
the activations' shapes that hold, at each position, the label of the channel found there:

* a convolution or a linear layer gives fresh labels;
* norms, activations, pooling and depthwise convolutions keep them;
* flatten, cat, permute, pad … simply run on the labels;
* an element-wise operation says that labels at the same place are the same channel (union-find).

What the tracer does not know, it does not guess: the channels that flow in and out are *kept*, and
the graph says which operation, at which module, why. Chapters 1 and 3 show it at work.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn

from .graph import ChannelGraph, Group, Kept, Layer
from .layers import ChannelPad
from .operations import (
    ELEMENTWISE,
    ELEMENTWISE_METHODS,
    ELEMENTWISE_MODULES,
    FORWARDS,
    JOINING,
    MOVING,
    MOVING_METHODS,
    MOVING_MODULES,
    NORM_MODULES,
    PER_CHANNEL,
    PER_CHANNEL_MODULES,
    REDUCING,
    REDUCING_METHODS,
)

__all__ = ["ChannelGraph", "TraceError", "trace"]

FIXED = 0  # the label of everything that stays


class TraceError(ValueError):
    """A model cannot be written down as a graph."""


def trace(model: nn.Module, example: Tensor) -> ChannelGraph:
    """Finds which channels of a network must go together, and which must stay.

    The model is run once, in eval mode without gradients, and left as it was.

    Args:
        model: any network that ``torch.fx`` can write down.
        example: one input, such as ``torch.zeros(1, 3, 32, 32)``; moved to the model's device.

    Raises:
        TraceError: ``torch.fx`` cannot write the model down, or the example does not fit it.

    >>> net = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Flatten(), nn.Linear(8 * 36, 10))
    >>> print(trace(net, torch.zeros(1, 3, 8, 8)))
    group  channels  may go  layers
    0             8       8  0
    3            10       0  3
      10 channels kept by output at the top: the network's output
    """
    try:
        graph = _Tracer().trace(model)
    except Exception as error:  # fx raises many kinds, each for code that depends on the data
        raise TraceError(f"the model must be one that torch.fx can trace (no branch that depends on the data), got: {error}") from error
    module = fx.GraphModule(model, graph)
    parameter = next(model.parameters(), torch.zeros(0))
    example = example[:1].to(parameter.device, parameter.dtype)
    modes = [(m, m.training) for m in model.modules()]
    interpreter = _Labeller(module, model)
    try:
        module.eval()
        with torch.no_grad():
            interpreter.run(example)
    except TraceError:
        raise
    except Exception as error:
        raise TraceError(f"the example of shape {list(example.shape)} must run through the model, got: {error}") from error
    finally:
        for m, training in modes:
            m.training = training
    return interpreter.finish(tuple(example.shape), sum(p.numel() for p in model.parameters()))


class _Tracer(fx.Tracer):
    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        return isinstance(m, ChannelPad) or super().is_leaf_module(m, module_qualified_name)


@dataclass(frozen=True, eq=False)
class _Labelled:
    """An activation with the label of the channel at each of its positions (same shape)."""

    value: Tensor
    labels: Tensor


def _map(tree: Any, change: Callable[[Any], Any]) -> Any:
    """The same nest of tuples, lists and dictionaries, with each leaf changed."""
    return fx.node.map_aggregate(tree, change)


def _unwrap(tree: Any, which: str) -> Any:
    return _map(tree, lambda leaf: getattr(leaf, which) if isinstance(leaf, _Labelled) else leaf)


def _labelled(tree: Any) -> list[_Labelled]:
    found: list[_Labelled] = []
    _map(tree, lambda leaf: found.append(leaf) if isinstance(leaf, _Labelled) else None)
    return found


def _compact(labels: Tensor) -> Tensor:
    """Each expanded axis cut to one position: a view with every label, and few of them twice."""
    for axis, stride in enumerate(labels.stride()):
        if stride == 0 and labels.shape[axis] > 1:
            labels = labels.narrow(axis, 0, 1)
    return labels


def _condense(labels: Tensor) -> Tensor:
    """The same labels, with each axis along which they don't change expanded from one position."""
    small = labels
    for axis in range(labels.ndim):
        first = small.narrow(axis, 0, 1)
        if bool((small == first).all()):
            small = first
    return small.expand(labels.shape)


def _along(labels: Tensor, axis: int) -> Tensor | None:
    """The label at each place of an axis, if it is the same at all other positions."""
    small = _compact(labels)
    small = small.expand(*[labels.shape[a] if a == axis % labels.ndim else small.shape[a] for a in range(labels.ndim)])
    rows = small.movedim(axis, 0).flatten(1)
    return rows[:, 0] if bool((rows == rows[:, :1]).all()) else None


def _spread(line: Tensor, shape: Iterable[int], axis: int) -> Tensor:
    """One label a channel, expanded to an activation's shape."""
    shape = tuple(shape)
    return line.view([-1 if a == axis % len(shape) else 1 for a in range(len(shape))]).expand(shape)


class _Labeller(fx.Interpreter):
    """Runs the graph on activations and on labels side by side, and notes what it sees."""

    def __init__(self, module: fx.GraphModule, model: nn.Module) -> None:
        super().__init__(module)
        self.model = model
        self.count = 1  # labels given so far; label 0 is FIXED
        self.pairs: list[Tensor] = []  # [2, n]: labels that are the same channel
        self.layers: dict[str, Layer] = {}
        self.notes: list[Kept] = []
        self.node: fx.Node | None = None

    def run_node(self, n: fx.Node) -> Any:
        self.node = n
        return super().run_node(n)

    # Notes

    def fresh(self, count: int) -> Tensor:
        self.count += count
        return torch.arange(self.count - count, self.count)

    def tie(self, a: Tensor, b: Tensor) -> None:
        """Labels at the same place of ``a`` and ``b`` are the same channel."""
        pairs = torch.stack(torch.broadcast_tensors(a, b)).flatten(1)
        self.pairs.append(torch.unique(pairs[:, pairs[0] != pairs[1]], dim=1))

    def keep(self, labels: Iterable[Tensor], reason: str) -> None:
        found = torch.unique(torch.cat([_compact(x).flatten() for x in labels] or [torch.zeros(0, dtype=torch.long)]))
        if len(found) and self.node is not None:
            target = self.node.target
            operation = target if isinstance(target, str) else getattr(target, "__name__", str(target))
            if self.node.op == "call_module":
                operation = type(self.model.get_submodule(str(target))).__name__
            stack = self.node.meta.get("nn_module_stack") or {}
            where = [entry[0] for entry in stack.values()]
            module = str(target) if self.node.op == "call_module" else (where[-1] if where else "")
            self.notes.append(Kept(found, operation, module, reason))

    # The operations, by kind of node

    def placeholder(self, target: Any, args: Any, kwargs: Any) -> Any:
        value = super().placeholder(target, args, kwargs)
        return _Labelled(value, torch.zeros(1, dtype=torch.long).expand(value.shape)) if isinstance(value, Tensor) else value

    def output(self, target: Any, args: Any, kwargs: Any) -> Any:
        self.keep([x.labels for x in _labelled(args)], "the network's output")
        return args[0]

    def call_module(self, target: Any, args: Any, kwargs: Any) -> Any:
        module = self.fetch_attr(target)
        value = super().call_module(target, _unwrap(args, "value"), _unwrap(kwargs, "value"))
        inputs = _labelled((args, kwargs))
        if len(inputs) == 1:
            x = inputs[0]
            if isinstance(module, (nn.modules.conv._ConvNd, nn.Linear)):
                return self.weighted(str(target), module, x, value)
            if isinstance(module, NORM_MODULES):
                return self.passing(str(target), module, x, value)
            if isinstance(module, ChannelPad):
                return self.padding(str(target), module, x, value)
            if isinstance(module, ELEMENTWISE_MODULES):
                return _Labelled(value, x.labels)
            if isinstance(module, PER_CHANNEL_MODULES) and isinstance(value, Tensor):
                return self.per_channel(x, value)
            if isinstance(module, MOVING_MODULES):
                return self.moving(lambda *a, **k: module(*a, **k), args, kwargs, value)
        return self.unknown((args, kwargs), value)

    def call_function(self, target: Any, args: Any, kwargs: Any) -> Any:
        return self.call(target, args, kwargs, ELEMENTWISE, PER_CHANNEL, MOVING, REDUCING, target)

    def call_method(self, target: Any, args: Any, kwargs: Any) -> Any:
        def method(x: Any, *rest: Any, **named: Any) -> Any:
            # Labels are expanded, which view() cannot read and reshape() can.
            labels = target == "view" and isinstance(x, Tensor) and x.dtype == torch.int64
            return getattr(x, "reshape" if labels else target)(*rest, **named)

        if target in ("size", "dim", "numel"):
            return method(*_unwrap(args, "value"), **kwargs)
        return self.call(target, args, kwargs, ELEMENTWISE_METHODS, set(), MOVING_METHODS, REDUCING_METHODS, method)

    def call(
        self, target: Any, args: Any, kwargs: Any, elementwise: set[Any], per_channel: set[Any], moving: set[Any], reducing: set[Any], run: Callable[..., Any]
    ) -> Any:
        inputs = _labelled((args, kwargs))
        if target is operator.getitem and not inputs:
            return args[0][args[1]]  # an item of a tuple, such as chunk's
        value = run(*_unwrap(args, "value"), **_unwrap(kwargs, "value"))
        if not inputs or not _tensors(value):
            return value
        if target in elementwise:
            return self.elementwise((*args, *kwargs.values()), value)
        if target in per_channel and isinstance(value, Tensor):
            return self.per_channel(inputs[0], value)
        if target in JOINING and args and args[0] and len(inputs) == len(args[0]):
            return self.joining(args[0], args[1] if len(args) > 1 else kwargs.get("dim", kwargs.get("axis", 0)), value)
        if target is F.pad:
            if len(kwargs["pad"] if "pad" in kwargs else args[1]) <= 2 * (value.ndim - 2):  # around each channel's image
                return self.per_channel(inputs[0], value)
            # Labels are padded with 0, which is FIXED, whatever the values are padded with.
            args, kwargs = args[:3], {k: v for k, v in kwargs.items() if k != "value"}
        if target in moving:
            return self.moving(run, args, kwargs, value)
        if target in reducing and len(inputs) == 1:
            return self.reducing(args, kwargs, inputs[0], value)
        return self.unknown((args, kwargs), value)

    # What each kind of operation does with labels

    def unknown(self, tree: Any, value: Any, reason: str = "the tracer does not know what it does with channels") -> Any:
        self.keep([x.labels for x in _labelled(tree)], reason)
        fixed = torch.zeros(1, dtype=torch.long)
        return _map(value, lambda leaf: _Labelled(leaf, fixed.expand(leaf.shape)) if isinstance(leaf, Tensor) else leaf)

    def weighted(self, name: str, module: Any, x: _Labelled, value: Tensor) -> Any:
        """A convolution or a linear layer."""
        axis = -1 if isinstance(module, nn.Linear) else value.ndim - len(module.kernel_size) - 1
        line = _along(x.labels, axis)
        if line is None:
            return self.unknown(x, value, "its input mixes channels at one place")
        if type(module).forward not in FORWARDS:
            return self.unknown(x, value, "it computes otherwise than its base class")
        if isinstance(module, nn.modules.conv._ConvTransposeNd) and module.groups > 1:
            return self.unknown(x, value, "a transposed convolution with groups is not understood")
        layer = _measure_layer(name, module, line, value, x.value, axis)
        if layer.kind == "depthwise":
            layer = replace(layer, outputs=line.repeat_interleave(value.shape[axis] // len(line)))
        else:
            layer = replace(layer, outputs=self.fresh(value.shape[axis]))
        self.add(layer)
        return _Labelled(value, _spread(self.layers[name].outputs, value.shape, axis))

    def passing(self, name: str, module: Any, x: _Labelled, value: Tensor) -> Any:
        """A norm of each channel on its own."""
        axis = 1 if value.ndim > 1 and value.shape[1] == module.num_features else 0
        line = _along(x.labels, axis)
        if line is None:
            return self.unknown(x, value, "its input mixes channels at one place")
        params = sum(p.numel() for p in module.parameters()) // max(1, len(line))
        self.add(Layer(name, "norm", line, line, out_params=params))
        return _Labelled(value, x.labels)

    def padding(self, name: str, module: ChannelPad, x: _Labelled, value: Tensor) -> Any:
        line = _along(x.labels, 1)
        if line is None:
            return self.unknown(x, value, "its input mixes channels at one place")
        known = self.layers.get(name)
        outputs = known.outputs if known else torch.cat([self.fresh(module.before), line, self.fresh(module.after)])
        self.add(Layer(name, "pad", line, outputs))
        return _Labelled(value, _spread(outputs, value.shape, 1))

    def add(self, layer: Layer) -> None:
        """Notes a layer; one that is called twice is one layer with both calls' work."""
        if layer.kind == "grouped":  # each of its groups must keep the same count
            for line in (layer.inputs, layer.outputs):
                rows = line.view(layer.parts, -1)
                self.tie(rows, rows[:1])
        old = self.layers.get(layer.name)
        if old is None:
            self.layers[layer.name] = layer
            return
        self.tie(old.inputs, layer.inputs)
        if layer.kind in ("depthwise", "norm"):
            self.tie(old.outputs, layer.outputs)
        self.layers[layer.name] = replace(old, pair_macs=old.pair_macs + layer.pair_macs, out_macs=old.out_macs + layer.out_macs)

    def per_channel(self, x: _Labelled, value: Tensor) -> Any:
        """Pooling and resizing: each channel's image on its own."""
        axis = 1 if value.ndim > 2 else 0
        line = _along(x.labels, axis)
        if line is None:
            return self.unknown(x, value, "its input mixes channels at one place")
        return _Labelled(value, _spread(line, value.shape, axis))

    def elementwise(self, args: Any, value: Tensor) -> Any:
        """Labels that meet at the same place are the same channel."""
        tensors = [a for a in args if isinstance(a, Tensor) and a.numel() > 1]
        if tensors:
            return self.unknown(args, value, "a tensor that is no layer's meets the channels")
        result: Tensor | None = None
        for x in _labelled(args):
            labels = x.labels.view([1] * (value.ndim - x.labels.ndim) + list(x.labels.shape))
            result = labels if result is None else self.meet(result, labels)
        return _Labelled(value, (torch.zeros(1, dtype=torch.long) if result is None else result).expand(value.shape))

    def meet(self, a: Tensor, b: Tensor) -> Tensor:
        """Two operands' labels: tied where they meet. One spread over all channels of the other stays."""
        small_a, small_b = _compact(a), _compact(b)
        for one, many, full in ((small_a, small_b, a), (small_b, small_a, b)):
            if any(m > 1 and f == 1 for m, f in zip(many.shape, full.shape, strict=True)):
                self.keep([one], "one channel is spread over many")
                return many
        if bool(((small_a == FIXED) != (small_b == FIXED)).any()):
            self.keep([small_a, small_b], "it meets what must stay")
        self.tie(small_a, small_b)
        return torch.maximum(*torch.broadcast_tensors(small_a, small_b))

    def joining(self, parts: list[_Labelled], axis: int, value: Tensor) -> Any:
        """Puts labels side by side, which is the same at every width; axes of one label stay expanded."""
        small = [_compact(x.labels) for x in parts]
        wide = [max(sizes) for sizes in zip(*(x.shape for x in small), strict=True)]
        shapes = [[full.value.shape[a] if a == axis % value.ndim else wide[a] for a in range(value.ndim)] for full in parts]
        joined = torch.cat([x.expand(shape) for x, shape in zip(small, shapes, strict=True)], axis)
        return _Labelled(value, joined.expand(value.shape))

    def moving(self, run: Callable[..., Any], args: Any, kwargs: Any, value: Any) -> Any:
        """Reshaping, joining, cutting: run on the labels, if it does the same at every width."""
        try:
            labels = run(*_unwrap(args, "labels"), **_unwrap(kwargs, "labels"))
        except RuntimeError:
            return self.unknown((args, kwargs), value)
        if not self.same_at_every_width(run, args, kwargs, labels):
            return self.unknown((args, kwargs), value, "it counts channels by a number written in the code")
        if isinstance(value, Tensor):
            return _Labelled(value, _condense(labels))
        return type(value)(_Labelled(v, _condense(x)) for v, x in zip(value, labels, strict=True))

    def same_at_every_width(self, run: Callable[..., Any], args: Any, kwargs: Any, labels: Any) -> bool:
        """Whether dropping a channel before and after the operation gives the same labels."""
        for pick in (torch.amin, torch.amax):
            dropped, narrow = [], {}
            for x in _labelled((args, kwargs)):
                axes = [a for a in range(x.labels.ndim) if _compact(x.labels).shape[a] > 1]
                line = _along(x.labels, axes[0]) if len(axes) == 1 else None
                if axes and line is None:
                    return False
                free = line[line != FIXED] if line is not None else torch.zeros(0)
                if len(axes) == 1 and line is not None and len(free) and len(torch.unique(line)) > 1:
                    dropped.append(pick(free))
                    narrow[id(x)] = axes[0]
            if not dropped:
                return True
            gone = torch.stack(dropped)

            def without(leaf: Any, gone: Tensor = gone, narrow: dict[int, int] = narrow) -> Any:
                if not isinstance(leaf, _Labelled):
                    return leaf
                if id(leaf) not in narrow:
                    return leaf.labels
                axis = narrow[id(leaf)]
                line = leaf.labels.movedim(axis, 0).flatten(1)[:, 0]
                return leaf.labels.index_select(axis, (~torch.isin(line, gone)).nonzero().flatten())

            try:
                after = run(*_map(args, without), **_map(kwargs, without))
            except (RuntimeError, IndexError):
                return False
            before, after = ([labels], [after]) if isinstance(labels, Tensor) else (labels, after)
            for full, less in zip(before, after, strict=True):
                if full.ndim != less.ndim or not torch.equal(full[~torch.isin(full, gone)], less.flatten()):
                    return False
        return True

    def reducing(self, args: Any, kwargs: Any, x: _Labelled, value: Tensor) -> Any:
        """A mean over positions keeps the channel; one over channels is a mixture."""
        named = {k: v for k, v in kwargs.items() if k in ("dim", "keepdim")}
        dims = args[1] if len(args) > 1 else named.get("dim", tuple(range(x.labels.ndim)))
        keepdim = args[2] if len(args) > 2 else named.get("keepdim", False)
        low, high = x.labels.amin(dims, keepdim=keepdim), x.labels.amax(dims, keepdim=keepdim)
        if not torch.equal(low, high):
            return self.unknown(x, value, "it mixes channels")
        return _Labelled(value, _condense(low))

    # The graph

    def finish(self, shape: tuple[int, ...], params: int) -> ChannelGraph:
        channel_of = _connect(self.count, self.pairs)  # [labels]: the smallest label tied to each
        givers = [layer for layer in self.layers.values() if layer.mixes or layer.kind == "pad"]
        born = [channel_of[layer.outputs] for layer in givers]
        group_of = _connect(self.count, [torch.stack([line, line[:1].expand_as(line)]) for line in born])
        fixed = torch.zeros(self.count, dtype=torch.bool)
        fixed[FIXED] = True
        for note in self.notes:
            fixed[channel_of[note.channels]] = True
        fixed = fixed[channel_of]
        roots = torch.unique(torch.cat([*born, torch.zeros(0, dtype=torch.long)]))
        roots = roots[roots != channel_of[FIXED]]
        order = roots[torch.argsort(group_of[roots], stable=True)]
        number = torch.full((self.count,), -1)
        number[order] = torch.arange(len(order))
        number[channel_of[FIXED]] = len(order)  # the last channel: the network's input, and all that was never traced
        number = number[channel_of]
        layers = {n: replace(y, inputs=number[y.inputs], outputs=number[y.outputs]) for n, y in self.layers.items()}
        removable = torch.cat([~fixed[order], torch.tensor([False])])
        notes = []
        for note in self.notes:
            channels = torch.unique(number[note.channels])
            channels = channels[channels != len(order)]
            if len(channels):
                notes.append(replace(note, channels=channels))
        other = params - round(sum(y.pair_params * len(y.inputs) * len(y.outputs) + y.out_params * len(y.outputs) for y in layers.values()))
        return ChannelGraph(layers, _groups(layers, group_of[order]), removable, tuple(notes), shape, other)


def _groups(layers: dict[str, Layer], group_of: Tensor) -> dict[str, Group]:
    """The groups, from each channel's group; channels of a group are neighbours."""
    _, sizes = torch.unique_consecutive(group_of, return_counts=True)
    stops = sizes.cumsum(0).tolist()
    members: list[list[str]] = [[] for _ in stops]
    place = torch.searchsorted(torch.tensor(stops), torch.arange(len(group_of)), right=True)
    for layer in layers.values():
        inside = layer.outputs[layer.outputs < len(group_of)]
        if (layer.mixes or layer.kind == "pad") and len(inside):
            members[int(place[inside[0]])].append(layer.name)
    return {names[0]: Group(names[0], stop - size, stop, tuple(names)) for names, stop, size in zip(members, stops, sizes.tolist(), strict=True)}


def _connect(count: int, pairs: list[Tensor]) -> Tensor:
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


def _measure_layer(name: str, module: Any, line: Tensor, value: Tensor, example: Tensor, axis: int) -> Layer:
    """The kind of a weighted layer, and what its channels cost; its outputs come later."""
    transposed = isinstance(module, nn.modules.conv._ConvTransposeNd)
    # A transposed convolution multiplies once for each input position, the others for each output position.
    places = example.numel() // example.shape[axis] if transposed else value.numel() // value.shape[axis]
    bias = int(module.bias is not None)
    if isinstance(module, nn.Linear):
        return Layer(name, "linear", line, line, 1, bias, places, 0)
    kernel = module.weight[0, 0].numel()
    if module.groups == 1:
        return Layer(name, "transposed" if transposed else "conv", line, line, kernel, bias, kernel * places, 0)
    if module.groups == module.in_channels:
        return Layer(name, "depthwise", line, line, 0, kernel + bias, 0, kernel * places)
    share = kernel / module.groups
    return Layer(name, "grouped", line, line, share, bias, share * places, 0, parts=module.groups)


def _tensors(value: Any) -> list[Tensor]:
    found: list[Tensor] = []
    _map(value, lambda leaf: found.append(leaf) if isinstance(leaf, Tensor) else None)
    return found
