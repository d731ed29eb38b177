"""What layers do with channel labels: those with weights, whose channels are cut, and the norms and paddings that follow them."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, fx, nn

from ..graph import Layer
from ..layers import ChannelPad
from . import operations as ops
from .findings import COMPUTED, MIXED, OTHERWISE, Notes, running
from .labels import FIXED, Labelled, compact, condense, labelled, leaves, spread

__all__ = ["LayerRules"]


class LayerRules(Notes):
    """A layer's inputs have labels; its outputs get new ones, or the same where each channel stays on its own."""

    def layer_of(self, node: fx.Node) -> str | None:
        """The module whose layer a node computes, with the module's own weight, bias and groups."""
        if node.op != "call_function" or node.target not in ops.WEIGHTED:
            return None
        kind, names = ops.WEIGHTED[node.target]
        named = dict(zip(names, node.args, strict=False)) | node.kwargs
        weight, bias = named.get("weight"), named.get("bias")
        if not isinstance(weight, fx.Node) or weight.op != "get_attr" or not str(weight.target).endswith(".weight"):
            return None
        owner, caller = str(weight.target).rpartition(".")[0], running(node)
        if getattr(self.module.get_submodule(caller), "weight", None) is self.fetch_attr(str(weight.target)):
            owner = caller  # of modules that share the weight, which has one of their names
        module: Any = self.module.get_submodule(owner)
        own_bias = self.fetch_attr(str(bias.target)) if isinstance(bias, fx.Node) and bias.op == "get_attr" else bias
        if not isinstance(module, kind) or own_bias is not module.bias:
            return None
        alike = all(named.get(key, 1) == getattr(module, key, 1) for key in ("groups", "num_groups"))
        return owner if alike else None

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

    def functional_norm(self, args: Any, kwargs: Any, value: Tensor) -> Any:
        """The same as a function, whose statistics and parameters each have one value a channel."""
        x, others = args[0], labelled((args[1:], kwargs))
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

    # One layer, called twice or sharing its tensors

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


def _rows(module: nn.Module) -> int:
    """The parameters of a norm that have one value a channel: a class of somebody's own may have others."""
    return sum(p.numel() for name, p in module.named_parameters(recurse=False) if name in ("weight", "bias"))  # one that is both counts once


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
