"""Which channels must go together: the network, run once on channel labels instead of numbers.

Only layers that mix channels (a convolution, a linear layer) *consume* channels; all else passes
them on. So a channel is gone exactly when every consumer ignores its input column. ``torch.fx``
writes the network down as a list of operations; an interpreter (:mod:`sdap_lite.tracing.labeller`) runs
them on integer tensors of the activations' shapes that hold, at each position, the label of the
channel found there:

* a convolution or a linear layer gives fresh labels;
* norms, activations, pooling and depthwise convolutions keep them;
* flatten, cat, permute, pad … simply run on the labels (:mod:`sdap_lite.tracing.widths`);
* an element-wise operation says that labels at the same place are the same channel (union-find);
* a product of activations (attention, einsum) passes on what it does not sum over: an attention's values
  lose channels, its queries and keys do not (:mod:`sdap_lite.tracing.products`).

What the tracer does not know, it does not guess: the channels that flow in and out are *kept*, and
the graph says which operation, at which module, why. Chapters 1 and 3 show it at work.
"""

from __future__ import annotations

import copy
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, fx, nn

from .checks import check_plain, undisturbed
from .copies import starting_memo
from .graph import ChannelGraph, Group, Kept, Layer
from .tracing.counting import macs_of
from .tracing.findings import LAYERS, UNCALLED, Findings
from .tracing.labeller import Labeller
from .tracing.labels import FIXED, connect
from .tracing.operations import NORM_MODULES
from .tracing.writing import Writer

__all__ = ["ChannelGraph", "TraceError", "trace"]

BATCH = "a batch of inputs, such as images of shape [1, channels, height, width]"


class TraceError(ValueError):
    """A model cannot be written down as a graph."""


def trace(model: nn.Module, example: Tensor) -> ChannelGraph:
    """Finds which channels of a network must go together, and which must stay.

    The model itself is neither run nor changed: a copy without numbers is, which has shapes only
    (device ``meta``) and costs next to nothing. It is written down in eval and in train mode, so
    that heads which exist in training only (GoogLeNet's) are cut along.

    Args:
        model: any network that ``torch.fx`` can write down.
        example: a batch of inputs, of which one is looked at, such as ``torch.zeros(1, 3, 32, 32)``.

    Raises:
        TraceError: ``torch.fx`` cannot write the model down, or the example does not fit it.
        ValueError: the model is compiled, or wrapped in another.

    >>> net = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Flatten(), nn.Linear(8 * 36, 10))
    >>> print(trace(net, torch.zeros(1, 3, 8, 8)))
    group  channels  may go  layers
    0             8       8  0
    3            10       0  3
      10 channels kept by output at the top: the network's output
    """
    wrapped = isinstance(model, (torch.jit.ScriptModule, nn.DataParallel)) or type(model).__name__ == "OptimizedModule"
    if wrapped or not isinstance(model, nn.Module):
        check_plain(model)  # says what to give instead
    if not isinstance(example, Tensor) or example.ndim == 0:
        raise TraceError(f"the example must be a tensor, {BATCH}, got {type(example).__name__}")
    lazy = [name for name, p in model.named_parameters() if nn.parameter.is_lazy(p)]
    if lazy:
        raise TraceError(f"the model must have all its parameters, but these are not there before it is run once: {lazy[:5]}")
    given, example = list(example.shape), example.detach()[:1].to(next(model.parameters(), torch.zeros(0)).dtype)
    names = {name for name, _ in [*model.named_parameters(remove_duplicate=False), *model.named_buffers(remove_duplicate=False)]}
    found = Findings(names)
    with undisturbed(model):
        try:
            # Two examples, since with one an axis for the batch looks like one to squeeze.
            _label(_skeleton(model), example.to("meta").expand(2, *example.shape[1:]), found)
        except Exception:  # code that looks at numbers, or makes tensors on the CPU: with all numbers, then
            found = Findings(names)
            try:
                _label(_copied(model, {}), example.to(next(model.parameters(), example).device), found)
            except TraceError:
                raise
            except Exception as error:
                hint = "" if len(given) == 4 else f" (it is {BATCH})"
                raise TraceError(f"the example of shape {given} must run through the model{hint}, got: {error}") from error
    return _graph(found, tuple(example.shape), sum(p.numel() for p in model.parameters()))


def _skeleton(model: nn.Module) -> nn.Module:
    """A copy whose tensors have shapes and no numbers: it takes no memory, and runs in no time."""
    memo = starting_memo(model)
    for tensor in [*model.parameters(), *model.buffers()]:
        empty = torch.empty_like(tensor, device="meta")
        memo[id(tensor)] = nn.Parameter(empty, requires_grad=False) if isinstance(tensor, nn.Parameter) else empty
    return _copied(model, memo)


def _copied(model: nn.Module, memo: dict[int, Any]) -> nn.Module:
    try:
        return copy.deepcopy(model, memo)
    except Exception as error:  # what user code may raise
        raise TraceError(f"the model must be one that copy.deepcopy can copy, got: {error}") from error


@contextmanager
def _nothing_kept(model: nn.Module) -> Iterator[None]:
    """Afterwards modules and their tables hold what they held: what the code keeps on them while it is written down are stand-ins.

    Constants stay, which ``torch.fx`` puts there for the graph.
    """
    before = [(m, dict(vars(m)), dict(m._buffers), dict(m._parameters)) for m in model.modules()]
    try:
        yield
    finally:
        for m, own, buffers, parameters in before:
            constants = {key: value for key, value in vars(m).items() if key.startswith("_tensor_constant")}
            vars(m).clear()
            vars(m).update(own | constants)
            for table, values in ((m._buffers, buffers), (m._parameters, parameters)):
                table.clear()
                table.update(values)  # type: ignore[arg-type]


def _write_down(model: nn.Module, example: Tensor, training: bool) -> tuple[fx.Graph, set[str]]:
    """The graph, and the names of its nodes whose value the code was told."""
    for m in model.modules():
        m.training = training
    writer = Writer(example)
    try:
        with _nothing_kept(model):
            return writer.trace(model), writer.asked
    except Exception as error:  # fx raises many kinds, each for code that depends on the data
        scripted = re.match(r"(\w+)\(\) Expected a value of type .* found type '_(Proxy|Attribute)'", str(error))
        if scripted:
            rule = "the model must be Python code that torch.fx can read"
            raise TraceError(f"{rule}, but {scripted[1]} is compiled by torch.jit.script: remove the decorator") from error
        raise TraceError(f"the model must be one that torch.fx can trace (no branch that depends on the data), got: {error}") from error


def _label(body: nn.Module, example: Tensor, found: Findings) -> None:
    """Runs the network on labels, and its training mode too where that has operations of its own."""
    graphs = [_write_down(body, example, training=False)]
    training = _write_down(body, example, training=True)
    if _wiring(training[0]) != _wiring(graphs[0][0]):
        graphs.append(training)
    for m in body.modules():
        m.training = False
        m._forward_hooks.clear()  # what they do is written down
        m._forward_pre_hooks.clear()
    with torch.no_grad():
        for i, (graph, asked) in enumerate(graphs):
            Labeller(body, graph, found, len(example), asked, counting=i == 0).run(example)
        found.notes += _uncalled(body, [graph for graph, _ in graphs])
        if found.unclear:
            network = fx.Interpreter(body, graph=graphs[0][0])
            try:
                found.macs = macs_of(network.run, example[:1])
            except Exception:  # code for more than one example: squeeze() takes the axis of a single one away, too
                found.macs = macs_of(network.run, example) // len(example)


def _uncalled(body: nn.Module, graphs: list[fx.Graph]) -> list[Kept]:
    """Layers that the code of neither mode calls on this example, such as a branch's for larger images: told by the outermost module of such only."""
    nodes, named = [node for graph in graphs for node in graph.nodes], dict(body.named_parameters())
    used = {id(p) for node in nodes if node.op == "call_module" for p in body.get_submodule(str(node.target)).parameters()}
    used |= {id(named[str(node.target)]) for node in nodes if node.op == "get_attr" and node.target in named}
    kinds = (nn.modules.conv._ConvNd, nn.Linear, nn.GroupNorm, *NORM_MODULES)
    layers = {name: {id(p) for p in m.parameters(recurse=False)} for name, m in body.named_modules() if isinstance(m, kinds)}
    called = [name for name, own in layers.items() if not own or own & used]
    outermost = {}
    for path in [name for name in layers if name not in called]:
        while "." in path and not any(other.startswith(path.rpartition(".")[0] + ".") for other in called):
            path = path.rpartition(".")[0]
        outermost[path] = Kept(torch.zeros(0, dtype=torch.long), type(body.get_submodule(path)).__name__, path, UNCALLED)
    return list(outermost.values())


def _wiring(graph: fx.Graph) -> list[str]:
    """The operations; but not their flags, of which dropout's says whether the model trains."""
    return [f"{n.op} {n.target} {n.args} {n.kwargs}".replace("True", "False") for n in graph.nodes]


def _graph(found: Findings, shape: tuple[int, ...], params: int) -> ChannelGraph:
    """Numbers the channels, group by group."""
    notes = found.notes + _own_code(found)
    count, channel_of = found.ties.count, found.ties.roots()
    givers = [layer for layer in found.layers.values() if layer.mixes or layer.kind == "pad"]
    born = [channel_of[layer.outputs] for layer in givers]
    group_of = connect(count, [torch.stack([line, line[:1].expand_as(line)]) for line in born])
    fixed = torch.zeros(count, dtype=torch.bool)
    fixed[FIXED] = True
    for note in notes:
        fixed[channel_of[note.channels]] = True
    fixed = fixed[channel_of]
    roots = torch.unique(torch.cat([*born, torch.zeros(0, dtype=torch.long)]))
    roots = roots[roots != channel_of[FIXED]]
    order = roots[torch.argsort(group_of[roots], stable=True)]
    number = torch.full((count,), len(order))  # the last channel: the network's input, and all that no layer gives
    number[order] = torch.arange(len(order))
    number = number[channel_of]
    own = {n: y for n, y in found.parameters.items() if bool((number[y.outputs] < len(order)).any())}
    layers = {n: replace(y, inputs=number[y.inputs], outputs=number[y.outputs]) for n, y in {**found.layers, **own}.items()}
    over_positions = tuple(replace(y, inputs=number[y.inputs], outputs=number[y.outputs]) for y in found.over_positions)
    removable = torch.cat([~fixed[order], torch.tensor([False])])
    kept: dict[tuple[object, ...], Kept] = {}
    for note in notes:
        channels = torch.unique(number[note.channels])
        channels = channels[channels != len(order)]
        if len(channels) or note.reason in LAYERS:  # one that train mode repeats is told once
            kept.setdefault((note.operation, note.module, note.reason, tuple(channels.tolist())), replace(note, channels=channels))
    other_params = params - round(sum(y.pair_params * len(y.inputs) * len(y.outputs) + y.out_params * len(y.outputs) for y in layers.values()))
    macs = round(sum(y.pair_macs * len(y.inputs) * len(y.outputs) + y.out_macs * len(y.outputs) for y in [*layers.values(), *over_positions]))
    other_macs = 0 if found.macs is None else found.macs - macs
    groups = _groups(layers, group_of[order])
    return ChannelGraph(layers, groups, removable, tuple(kept.values()), shape, other_params, other_macs, over_positions)


def _own_code(found: Findings) -> list[Kept]:
    """Layers whose tensors have other uses, too, such as in the user's code: a cut would change what that computes."""
    notes = []
    for name, (key, operation, reason) in sorted(found.touched.items()):
        user = name.rpartition(".")[0]
        for owner in {user: None, **dict.fromkeys(found.owners.get(key, []))}:
            if owner in found.layers:
                layer, parameter = found.layers[owner], found.parameters.pop(name, None)
                lines = [layer.inputs, layer.outputs, *([parameter.outputs] if parameter else [])]
                notes.append(Kept(torch.unique(torch.cat(lines)), operation, user or owner, reason))
    return notes


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
