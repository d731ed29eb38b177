"""Runs a network's operations on channel labels, each by the rule of its kind.

The tables of :mod:`sdap_lite.tracing.operations` say of which kind an operation is. What stands in none of
them is not understood: the channels that flow in *stay*, and the finding says which operation, at
which module, why. Nothing is assumed to be element-wise.
"""

from __future__ import annotations

import operator
from dataclasses import is_dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn

from ..graph import Layer
from ..layers import ChannelPad
from . import operations as ops
from .findings import MIXES, NUMBER, OTHER_USE, OWN_CODE, TRAINING, UNOWNED
from .labels import Labelled, compact, constant, labelled, leaves, mapped, spread, unwrap
from .layer_rules import LayerRules
from .operation_rules import OperationRules
from .products import PRODUCTS
from .widths import runner

__all__ = ["Labeller"]

ABSENT = object()  # what could not be computed


class Labeller(LayerRules, OperationRules):
    """Runs the graph on tensors (of the device ``meta``: shapes only) and on labels side by side.

    Here it is told by which rule a node goes; the arguments are those of ``Notes`` (``findings.py``).
    """

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
        self.keep([x.labels for x in labelled(inputs)], TRAINING)
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
        if n.name in self.asked and not labelled(value):
            self.env[n] = value
            if self.replay.varies(n):
                ties = self.replay.alike(n)
                for a, b in ties:
                    self.tie(a, b)
                if not ties:
                    self.keep([x.labels for x in self.replay.sources(n)], NUMBER)
        return value

    # The operations, by kind of node

    def placeholder(self, target: Any, args: Any, kwargs: Any) -> Any:
        value = super().placeholder(target, args, kwargs)
        return mapped(value, lambda leaf: constant(leaf) if isinstance(leaf, Tensor) else leaf)  # a list, if it is *args

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
        self.keep([x.labels for x in labelled(args)], "the network's output")
        return args[0]

    def call_module(self, target: Any, args: Any, kwargs: Any) -> Any:
        module = self.fetch_attr(target)
        inputs = labelled((args, kwargs))
        if len(args) == 1 and len(inputs) == 1 and _keeps_shape(module, inputs[0].value):
            value: Any = inputs[0].value
        else:
            value = module(*unwrap(args, "value"), **unwrap(kwargs, "value"))
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
            return getattr(unwrap(args[0], "value"), target)(*args[1:], **kwargs)
        if target in ops.FIRST_ONLY:
            value = getattr(unwrap(args[0], "value"), target)(*unwrap(args[1:], "value"), **unwrap(kwargs, "value"))
            return Labelled(value, args[0].labels) if isinstance(args[0], Labelled) else value
        elementwise, along_axes, moving = (target in table for table in (ops.ELEMENTWISE_METHODS, ops.ALONG_METHODS, ops.MOVING_METHODS))
        return self.call(args, kwargs, elementwise, along_axes, moving, ops.REDUCING_METHODS.get(target))

    def call(self, args: Any, kwargs: Any, elementwise: bool, along_axes: bool, moving: bool, place: int | None) -> Any:
        target, inputs, run = self.node.target, labelled((args, kwargs)), runner(self.node, None)
        if target is operator.getitem and not inputs:
            return args[0][args[1]]  # an item of a tuple, such as chunk's
        if target is getattr and isinstance(args[0], tuple):
            return getattr(args[0], args[1])  # max's values, say
        value = run(*unwrap(args, "value"), **unwrap(kwargs, "value"))
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
            parts = [constant(x) if isinstance(x, Tensor) else x for x in kwargs.get("tensors", args[0] if args else ())]
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


def _keeps_shape(module: nn.Module, x: Tensor) -> bool:
    """Whether a module need not be run, for shapes alone: a norm is slow on the device ``meta``."""
    if isinstance(module, ops.NORM_MODULES):
        return x.is_meta and x.ndim > 2 and x.shape[1] == module.num_features
    return x.is_meta and isinstance(module, ops.ELEMENTWISE_MODULES)


def _name(thing: Any) -> tuple[str, str]:
    """What a function or a class of any package is called."""
    return getattr(thing, "__module__", ""), getattr(thing, "__name__", "")


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
