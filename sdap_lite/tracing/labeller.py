"""Runs a network's operations on channel labels: what each kind of operation does with them.

The tables of :mod:`sdap_lite.tracing.operations` say of which kind an operation is. What stands in none of
them is not understood: the channels that flow in *stay*, and the finding says which operation, at
which module, why. Nothing is assumed to be element-wise.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field, is_dataclass, replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn

from ..graph import Kept, Layer
from ..layers import ChannelPad
from . import operations as ops
from .counting import macs_of
from .labels import FIXED, Labelled, Ties, along, compact, condense, spread
from .products import PRODUCTS, spell
from .widths import Replay, leaves, mapped, runner

__all__ = ["Findings", "Labeller"]

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
ABSENT = object()  # what could not be computed


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


class Labeller(fx.Interpreter):
    """Runs the graph on tensors (of the device ``meta``: shapes only) and on labels side by side.

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

    def run_node(self, n: fx.Node) -> Any:
        self.node, self.replay.env = n, self.env
        if self.counting:
            return self.told(n, self.noted(n))
        inputs = [self.env[m] for m in n.all_input_nodes]
        try:
            if not any(x is ABSENT for x in inputs):
                return self.told(n, self.noted(n))
        except RuntimeError as error:  # a head that exists in training only, and needs a larger example
            if "meta" in str(error):  # or a tensor made on the CPU: with all numbers, then
                raise
        self.keep([x.labels for x in _labelled(inputs)], TRAINING)
        return ABSENT

    def noted(self, n: fx.Node) -> Any:
        """Runs a node. A module that is no layer by it uses its tensors in another way, whosever else they are."""
        name = str(n.target) if n.op == "call_module" else self.layer_of(n)
        before = self.found.layers.get(name or "")
        value = super().run_node(n)
        if name is not None and self.found.layers.get(name) is before:
            module = self.module.get_submodule(name)
            for key, tensor in [*module.named_parameters(recurse=False), *module.named_buffers(recurse=False)]:
                self.found.touched.setdefault(f"{name}.{key}", (id(tensor), type(module).__name__, OTHER_USE))
        return value

    def told(self, n: fx.Node, value: Any) -> Any:
        """What the code did with a number that it was told is fixed, so the number must be."""
        if n.name in self.asked and not _labelled(value):
            self.env[n] = value
            if self.replay.varies(n):
                ties = self.replay.alike(n)
                for a, b in ties:
                    self.tie(a, b)
                if not ties:
                    self.keep([x.labels for x in self.replay.sources(n)], NUMBER)
        return value

    # Notes

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
        module = str(target) if self.node.op == "call_module" else _running(self.node)
        self.found.fixed.append(found)
        self.found.notes.append(Kept(found, operation, module, reason))

    def fixed_roots(self, roots: Tensor) -> set[int]:
        labels = torch.cat([torch.zeros(1, dtype=torch.long), *self.found.fixed])
        return set(roots[labels].tolist())

    # The operations, by kind of node

    def placeholder(self, target: Any, args: Any, kwargs: Any) -> Any:
        value = super().placeholder(target, args, kwargs)
        return mapped(value, lambda leaf: _constant(leaf) if isinstance(leaf, Tensor) else leaf)  # a list, if it is *args

    def get_attr(self, target: Any, args: Any, kwargs: Any) -> Any:
        """A parameter or buffer with one value a channel has labels of its own: those of what it meets."""
        value = super().get_attr(target, args, kwargs)
        name = str(target)
        layers = [self.module.get_submodule(layer) if (layer := self.layer_of(user)) else None for user in self.node.users]
        own = [layer is not None and (value is layer.weight or value is layer.bias) for layer in layers]
        if isinstance(value, Tensor) and all(yes or _asks_kind(user, self.node, value) for yes, user in zip(own, self.node.users, strict=True)):
            return value
        self.found.touched[name] = (id(value), "get_attr", OWN_CODE)
        axes = [a for a, size in enumerate(value.shape) if size > 1] if isinstance(value, Tensor) else []
        if len(axes) != 1 or name not in self.found.names:
            return value
        if name not in self.found.parameters:
            line = self.found.ties.fresh(value.shape[axes[0]])
            self.found.parameters[name] = Layer(name, "parameter", line, line, out_params=int(isinstance(value, nn.Parameter)))
        return Labelled(value, spread(self.found.parameters[name].outputs, value.shape, axes[0]))

    def output(self, target: Any, args: Any, kwargs: Any) -> Any:
        self.keep([x.labels for x in _labelled(args)], "the network's output")
        return args[0]

    def call_module(self, target: Any, args: Any, kwargs: Any) -> Any:
        module = self.fetch_attr(target)
        inputs = _labelled((args, kwargs))
        if len(args) == 1 and len(inputs) == 1 and _keeps_shape(module, inputs[0].value):
            value: Any = inputs[0].value
        else:
            value = module(*_unwrap(args, "value"), **_unwrap(kwargs, "value"))
        if isinstance(module, ops.UNPOOLING_MODULES):
            return self.unpooling(inputs, value)
        if len(inputs) != 1 or not isinstance(value, (Tensor, tuple)):
            return self.unknown((args, kwargs), value)
        x, name = inputs[0], str(target)
        if isinstance(module, ops.PER_CHANNEL_MODULES):
            return self.per_channel(x, value)
        if not isinstance(value, Tensor):
            return self.unknown((args, kwargs), value)
        if isinstance(module, (nn.modules.conv._ConvNd, nn.Linear)):
            return self.weighted(name, module, x, value)
        if isinstance(module, ops.NORM_MODULES) or (isinstance(module, nn.PReLU) and module.num_parameters > 1):
            return self.norm(name, module, x, value)
        if isinstance(module, nn.GroupNorm):
            return self.group_norm(name, module, x, value)
        if isinstance(module, ops.LAYER_NORM_MODULES):
            return self.layer_norm(x, value, len(module.normalized_shape))
        if isinstance(module, (nn.Softmax, nn.LogSoftmax, nn.Softmin, nn.Softmax2d)):
            return self.along_axes(x, value, -3 if isinstance(module, nn.Softmax2d) else module.dim)
        if isinstance(module, nn.GLU):
            return self.gated(x, module.dim, value)
        if isinstance(module, ChannelPad):
            return self.padding(name, module, x, value)
        if isinstance(module, (*ops.ELEMENTWISE_MODULES, nn.PReLU)):
            return Labelled(value, x.labels)
        if isinstance(module, ops.MOVING_MODULES) or _name(type(module)) in ops.MOVING_NAMES:
            return self.moving(runner(self.node, module), args, kwargs, value)
        return self.unknown((args, kwargs), value)

    def call_function(self, target: Any, args: Any, kwargs: Any) -> Any:
        if isinstance(target, type) and issubclass(target, tuple):  # a named tuple of outputs
            return target(*args, **kwargs)
        if is_dataclass(target):  # a dataclass of outputs, of which only the fields count
            return kwargs
        elementwise = target in ops.ELEMENTWISE or _name(target) in ops.ELEMENTWISE_NAMES or (target is getattr and args[1] in ops.ELEMENTWISE_ATTRIBUTES)
        moving = target in ops.MOVING or _name(target) in ops.MOVING_NAMES
        return self.call(args, kwargs, elementwise, target in ops.ALONG, moving, ops.REDUCING.get(target))

    def call_method(self, target: Any, args: Any, kwargs: Any) -> Any:
        if target in ops.ASKING_METHODS:
            return getattr(_unwrap(args[0], "value"), target)(*args[1:], **kwargs)
        if target in ops.FIRST_ONLY:
            value = getattr(_unwrap(args[0], "value"), target)(*_unwrap(args[1:], "value"), **_unwrap(kwargs, "value"))
            return Labelled(value, args[0].labels) if isinstance(args[0], Labelled) else value
        elementwise, along_axes, moving = (target in table for table in (ops.ELEMENTWISE_METHODS, ops.ALONG_METHODS, ops.MOVING_METHODS))
        return self.call(args, kwargs, elementwise, along_axes, moving, ops.REDUCING_METHODS.get(target))

    def call(self, args: Any, kwargs: Any, elementwise: bool, along_axes: bool, moving: bool, place: int | None) -> Any:
        target, inputs, run = self.node.target, _labelled((args, kwargs)), runner(self.node, None)
        if target is operator.getitem and not inputs:
            return args[0][args[1]]  # an item of a tuple, such as chunk's
        if target is getattr and isinstance(args[0], tuple):
            return getattr(args[0], args[1])  # max's values, say
        value = run(*_unwrap(args, "value"), **_unwrap(kwargs, "value"))
        if not any(isinstance(leaf, Tensor) for leaf in leaves(value)):
            return value if value is not None else self.unknown((args, kwargs), None)  # what gives nothing was called for its effect
        creating = not inputs or target in ops.CREATING_METHODS
        if (creating or not moving) and self.replay.varies((self.node.args, self.node.kwargs)):
            self.keep([x.labels for x in self.replay.sources((self.node.args, self.node.kwargs))], NUMBER)
        if creating:
            self.found.unclear |= self.counting
            return value
        if elementwise and isinstance(value, Tensor):
            return self.elementwise((*args, *kwargs.values()), value)
        found = self.named(args, kwargs, inputs, value)
        if found is not None:
            return found
        if target is torch.stack:
            for x in inputs[1:]:  # tensors of one shape are as wide as each other
                self.tie(compact(inputs[0].labels), compact(x.labels))
            moving = True
        if moving:
            return self.moving(run, args, kwargs, value)
        if along_axes and len(inputs) == 1:
            dim = args[2 if target is F.normalize else 1] if len(args) > (2 if target is F.normalize else 1) else kwargs.get("dim", 1)
            return self.along_axes(inputs[0], value, dim)
        if place == 1 and any(isinstance(a, (Labelled, Tensor)) for a in args[1:]):  # the larger of two
            return self.elementwise(args, value)
        if place is not None and len(inputs) == 1 and not any(isinstance(leaf, Tensor) for leaf in leaves((args, kwargs))):
            return self.reducing(args[place] if len(args) > place else kwargs.get("dim", kwargs.get("axis")), inputs[0], value)
        return self.unknown((args, kwargs), value)

    def named(self, args: Any, kwargs: Any, inputs: list[Labelled], value: Any) -> Any:
        """Operations that go by their own name; None for all others."""
        target = self.node.target
        if target in ops.WEIGHTED:
            return self.layer_by_code(inputs, (args, kwargs), value)
        if target in ops.PER_CHANNEL:
            return self.per_channel(inputs[0], value)
        if target in ops.UNPOOLING:
            return self.unpooling(inputs, value)
        if target in PRODUCTS:
            return self.product(args, kwargs, value)
        if target is F.pad and len(kwargs["pad"] if "pad" in kwargs else args[1]) <= 2 * (value.ndim - 2):
            return self.per_channel(inputs[0], value)  # around each channel's image
        if target is F.grid_sample and isinstance(args[0], Labelled):
            self.keep([x.labels for x in inputs if x is not args[0]], MIXES)
            return self.per_channel(args[0], value)
        if target in ops.NORMS and isinstance(value, Tensor):
            return self.functional_norm(args, kwargs, value)
        if target in ops.LAYER_NORMS:
            return self.layer_norm(inputs[0], value, len(args[1] if len(args) > 1 else kwargs["normalized_shape"]), inputs[1:])
        if target in ops.JOINING:
            parts = [_constant(x) if isinstance(x, Tensor) else x for x in kwargs.get("tensors", args[0] if args else ())]
            return self.joining(parts, args[1] if len(args) > 1 else kwargs.get("dim", kwargs.get("axis", 0)), value)
        if target is F.glu:
            return self.gated(inputs[0], args[1] if len(args) > 1 else kwargs.get("dim", -1), value)
        if target in ops.ORDERING and len(inputs) == 1:
            place = ops.ORDERING[target]
            return self.ordering(args[place] if len(args) > place else kwargs.get("dim", -1), inputs[0], value)
        if _name(target) in ops.REDUCING_NAMES and len(inputs) == 1:
            return self.reducing_by_pattern(args, kwargs, inputs[0], value)
        return None

    def layer_by_code(self, inputs: list[Labelled], tree: Any, value: Tensor) -> Any:
        """A layer that is computed by code: of a module that has the weight, or of nobody's."""
        owner = self.layer_of(self.node)
        if owner is None or len(inputs) != 1:
            return self.unknown(tree, value, UNOWNED)
        module = self.module.get_submodule(owner)
        if isinstance(module, nn.GroupNorm):
            return self.group_norm(owner, module, inputs[0], value)
        return self.weighted(owner, module, inputs[0], value, own_code=True)

    def layer_of(self, node: fx.Node) -> str | None:
        """The module whose layer a node computes, with the module's own weight, bias and groups."""
        if node.op != "call_function" or node.target not in ops.WEIGHTED:
            return None
        kind, names = ops.WEIGHTED[node.target]
        named = dict(zip(names, node.args, strict=False)) | node.kwargs
        weight, bias = named.get("weight"), named.get("bias")
        if not isinstance(weight, fx.Node) or weight.op != "get_attr" or not str(weight.target).endswith(".weight"):
            return None
        owner, running = str(weight.target).rpartition(".")[0], _running(node)
        if getattr(self.module.get_submodule(running), "weight", None) is self.fetch_attr(str(weight.target)):
            owner = running  # of modules that share the weight, which has one of their names
        module: Any = self.module.get_submodule(owner)
        own_bias = self.fetch_attr(str(bias.target)) if isinstance(bias, fx.Node) and bias.op == "get_attr" else bias
        if not isinstance(module, kind) or own_bias is not module.bias:
            return None
        alike = all(named.get(key, 1) == getattr(module, key, 1) for key in ("groups", "num_groups"))
        return owner if alike else None

    # What each kind of operation does with labels

    def unknown(self, tree: Any, value: Any, reason: str = UNKNOWN) -> Any:
        self.keep([x.labels for x in _labelled(tree)], reason)
        self.found.unclear |= self.counting
        return mapped(value, lambda leaf: _constant(leaf) if isinstance(leaf, Tensor) else leaf)

    def stay(self, x: Labelled, value: Any, reason: str) -> Any:
        """Channels keep their places, but none may go."""
        self.keep([x.labels], reason)
        return Labelled(value, x.labels)

    def line(self, x: Labelled, axis: int) -> Tensor | None:
        """The label at each place of an axis, if it is the same channel at all other positions."""
        found = along(x.labels, axis)
        return along(condense(self.roots(x.labels)), axis) if found is None else found

    def roots(self, labels: Tensor) -> Tensor:
        return self.found.ties.roots()[compact(labels)].expand(labels.shape)

    def weighted(self, name: str, module: Any, x: Labelled, value: Tensor, own_code: bool = False) -> Any:
        """A convolution or a linear layer."""
        axis = value.ndim - 1 if isinstance(module, nn.Linear) else value.ndim - len(module.kernel_size) - 1
        one = compact(x.labels).shape[-1] == 1 < x.labels.shape[-1] and bool((x.labels != FIXED).any())
        if isinstance(module, nn.Linear) and one and x.labels.ndim > 2:  # with two axes it is a single channel, flattened
            return self.over_positions(name, module, x, value)
        line = self.line(x, axis)
        if line is None:
            return self.unknown(x, value, MIXED)
        if not own_code and type(module).forward not in ops.FORWARDS:
            return self.unknown(x, value, OTHERWISE)
        if "weight" not in module._parameters:
            return self.unknown(x, value, COMPUTED)
        layer = _measure_layer(name, module, line, value, x.value, axis, self.batch)
        if layer.kind == "depthwise":
            layer = replace(layer, outputs=line.repeat_interleave(value.shape[axis] // len(line)))
        elif name not in self.found.layers:
            layer = replace(layer, outputs=self.found.ties.fresh(value.shape[axis]))
        else:
            layer = replace(layer, outputs=self.found.layers[name].outputs)
        self.add(layer)
        return Labelled(value, spread(self.found.layers[name].outputs, value.shape, axis))

    def over_positions(self, name: str, module: nn.Linear, x: Labelled, value: Tensor) -> Labelled:
        """A linear layer over an axis that is not the channels': each channel on its own, and nothing of it is cut."""
        line = compact(condense(x.labels[..., 0])).flatten()
        if self.counting:
            work = value.numel() * module.in_features / (self.batch * len(line))
            self.found.over_positions.append(Layer(name, "positions", line, line, out_macs=work))
        return Labelled(value, x.labels[..., :1].expand(value.shape))

    def norm(self, name: str, module: Any, x: Labelled, value: Tensor) -> Any:
        """A norm of each channel on its own, or an activation with a parameter a channel."""
        axis = 1 if value.ndim > 1 and value.shape[1] == getattr(module, "num_features", getattr(module, "num_parameters", 0)) else 0
        line = self.line(x, axis)
        if line is None:
            return self.unknown(x, value, MIXED)
        if not type(module).__module__.startswith("torch.nn"):
            return self.unknown(x, value, OTHERWISE)
        params = _rows(module) // max(1, len(line))
        self.add(Layer(name, "norm", line, line, out_params=params))
        return Labelled(value, x.labels)

    def group_norm(self, name: str, module: nn.GroupNorm, x: Labelled, value: Tensor) -> Any:
        """Channels that are normalized together go together."""
        line = self.line(x, 1)
        if line is None:
            return self.unknown(x, value, MIXED)
        if module.num_groups == 1 and module.num_channels > 1:
            return self.stay(x, value, "it normalizes over all channels")
        together = line.view(module.num_groups, -1)
        self.tie(together, together[:, :1])
        params = _rows(module) // len(line)
        self.add(Layer(name, "norm", line, line, out_params=params))
        return Labelled(value, x.labels)

    def layer_norm(self, x: Labelled, value: Tensor, axes: int, others: list[Labelled] | None = None) -> Any:
        if others:
            self.keep([y.labels for y in others], "it normalizes over all channels")
        return self.along_axes(x, value, tuple(range(value.ndim - axes, value.ndim)), "it normalizes over all channels")

    def functional_norm(self, args: Any, kwargs: Any, value: Tensor) -> Any:
        """The same as a function, whose statistics and parameters each have one value a channel."""
        x, others = args[0], _labelled((args[1:], kwargs))
        line = self.line(x, 1) if isinstance(x, Labelled) and x.labels.ndim > 1 else None
        plain = [t for t in leaves((args[1:], kwargs)) if isinstance(t, Tensor) and t.numel() > 1]
        if line is None or plain or any(y.labels.shape != line.shape for y in others):
            return self.unknown((args, kwargs), value)
        for y in others:
            self.tie(y.labels, line)
        return Labelled(value, x.labels)

    def padding(self, name: str, module: ChannelPad, x: Labelled, value: Tensor) -> Any:
        line = self.line(x, 1)
        if line is None:
            return self.unknown(x, value, MIXED)
        known, fresh = self.found.layers.get(name), self.found.ties.fresh
        outputs = known.outputs if known else torch.cat([fresh(module.before), line, fresh(module.after)])
        self.add(Layer(name, "pad", line, outputs))
        return Labelled(value, spread(outputs, value.shape, 1))

    def add(self, layer: Layer) -> None:
        """Notes a layer; one that is called twice is one layer with both calls' work."""
        if not self.counting:
            layer = replace(layer, pair_macs=0, out_macs=0)
        if layer.parts > 1:  # each of its groups must keep the same count
            for line in (layer.inputs, layer.outputs):
                rows = line.view(layer.parts, -1)
                self.tie(rows, rows[:1])
        old = self.found.layers.get(layer.name)
        if old is None:
            self.found.layers[layer.name] = self.share(layer)
            return
        self.tie(old.inputs, layer.inputs)
        if layer.kind in ("depthwise", "norm"):
            self.tie(old.outputs, layer.outputs)
        self.found.layers[layer.name] = replace(old, pair_macs=old.pair_macs + layer.pair_macs, out_macs=old.out_macs + layer.out_macs)

    def share(self, layer: Layer) -> Layer:
        """Layers that share a tensor keep the same channels of it; its parameters are counted once."""
        module = self.module.get_submodule(layer.name)
        own = [getattr(module, key, None) for key in ("weight", "bias", "running_mean", "running_var")]
        for key, tensor in {id(tensor): tensor for tensor in own if isinstance(tensor, Tensor)}.items():
            names = self.found.owners.setdefault(key, [])
            if names:
                layer = self.follow(layer, self.found.layers[names[0]], tensor)
            names.append(layer.name)
        return layer

    def follow(self, layer: Layer, first: Layer, tensor: Tensor) -> Layer:
        """A layer whose tensor is the first one's: what is left of it to count."""
        matrix = tensor.ndim > 1
        if matrix and (first.kind, len(first.inputs), len(first.outputs)) != (layer.kind, len(layer.inputs), len(layer.outputs)):
            self.keep([first.inputs, first.outputs, layer.inputs, layer.outputs], f"it shares its weight with {first.name}, a layer of another kind")
        else:
            self.tie(first.outputs, layer.outputs)
            if matrix:
                self.tie(first.inputs, layer.inputs)
        if matrix and layer.mixes:
            return replace(layer, pair_params=0)
        counted = tensor.numel() // len(layer.outputs) if isinstance(tensor, nn.Parameter) else 0
        return replace(layer, out_params=layer.out_params - counted)

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
        for x in (_constant(a) if isinstance(a, Tensor) and a.numel() > 1 else a for a in leaves(args)):
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
        self.keep([x.labels for x in _labelled(spelled.mixed)], MIXES)
        letters = spelled.result + "".join(sorted(set("".join(spelled.terms)) - set(spelled.result)))
        result: Tensor | None = None
        for factor, term in zip(spelled.factors, spelled.terms, strict=True):
            labels = condense(self.roots(factor.labels)) if isinstance(factor, Labelled) else _constant(factor).labels
            if any(letter not in spelled.result and size > 1 for letter, size in zip(term, compact(labels).shape, strict=True)):
                self.keep([labels], MIXES)
                labels = _constant(labels).labels
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
        macs = macs_of(runner(self.node, None), *_unwrap(args, "value"), **_unwrap(kwargs, "value"))
        work = share * macs / (self.batch * len(line))
        self.found.over_positions.append(Layer(_running(self.node), "positions", line, line, out_macs=work))

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
        if len(_labelled((args, kwargs))) < sum(isinstance(leaf, (Labelled, Tensor)) for leaf in leaves((args, kwargs))):
            return self.unknown((args, kwargs), value, FOREIGN)
        if self.node.target is operator.getitem and _labelled(args[1:]):
            return self.unknown((args, kwargs), value, COUNTS)
        try:
            labels = run(*_unwrap(args, "labels"), **_unwrap(kwargs, "labels"))
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


def _keeps_shape(module: nn.Module, x: Tensor) -> bool:
    """Whether a module need not be run, for shapes alone: a norm is slow on the device ``meta``."""
    if isinstance(module, ops.NORM_MODULES):
        return x.is_meta and x.ndim > 2 and x.shape[1] == module.num_features
    return x.is_meta and isinstance(module, ops.ELEMENTWISE_MODULES)


def _name(thing: Any) -> tuple[str, str]:
    """What a function or a class of any package is called."""
    return getattr(thing, "__module__", ""), getattr(thing, "__name__", "")


def _running(node: fx.Node) -> str:
    """The module whose code a node is part of."""
    stack = [entry[0] for entry in (node.meta.get("nn_module_stack") or {}).values()]
    return stack[-1] if stack else ""


def _rows(module: nn.Module) -> int:
    """The parameters of a norm that have one value a channel: a class of somebody's own may have others."""
    return sum(p.numel() for name, p in module.named_parameters(recurse=False) if name in ("weight", "bias"))  # one that is both counts once


def _asks_kind(node: fx.Node, given: fx.Node, weight: Tensor) -> bool:
    """Whether a node asks a weight for its type or device only, or for its shape, and its users for the kernel's size only."""
    if node.target is getattr and node.args[1] in ops.KINDS:
        return True
    if node.op == "call_method" and node.target in ops.FIRST_ONLY and node.args[0] is not given:
        return True
    if (node.op, node.target) != ("call_method", "size") and not (node.target is getattr and node.args[1] == "shape"):
        return False
    axes = weight.ndim - 2
    allowed: list[Any] = [*range(2, weight.ndim), *range(-axes, 0), slice(2, None, None), slice(-axes, None, None)]
    return len(node.args) < 3 and all(user.target is operator.getitem and user.args[1] in allowed for user in node.users)


def _constant(value: Tensor) -> Labelled:
    """A tensor that belongs to no channel that may go."""
    return Labelled(value, torch.zeros([1] * value.ndim, dtype=torch.long).expand(value.shape))


def _unwrap(tree: Any, which: str) -> Any:
    return mapped(tree, lambda leaf: getattr(leaf, which) if isinstance(leaf, Labelled) else leaf)


def _labelled(tree: Any) -> list[Labelled]:
    return [leaf for leaf in leaves(tree) if isinstance(leaf, Labelled)]


def _measure_layer(name: str, module: Any, line: Tensor, value: Tensor, example: Tensor, axis: int, batch: int) -> Layer:
    """The kind of a weighted layer, and what its channels cost; its outputs come later."""
    transposed = isinstance(module, nn.modules.conv._ConvTransposeNd)
    # A transposed convolution multiplies once for each input position, the others for each output position.
    places = (example.numel() // example.shape[axis] if transposed else value.numel() // value.shape[axis]) // batch
    bias = int(module.bias is not None)
    if isinstance(module, nn.Linear):
        return Layer(name, "linear", line, line, 1, bias, places, 0)
    kernel = module.weight[0, 0].numel()
    if module.groups == 1:
        return Layer(name, "transposed" if transposed else "conv", line, line, kernel, bias, kernel * places, 0, transposed=transposed)
    if module.groups == module.in_channels:
        return Layer(name, "depthwise", line, line, 0, kernel + bias, 0, kernel * places, transposed=transposed)
    share = kernel / module.groups
    return Layer(name, "grouped", line, line, share, bias, share * places, 0, parts=module.groups, transposed=transposed)
