"""What a trace finds: layers, groups of channels, and what must stay. Data, and no torch.fx. Chapter 3."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import reduce
from typing import Any

import torch
from torch import Tensor

from .latency_table import LatencyTable

__all__ = ["ChannelGraph", "Group", "Kept", "Layer", "check_graph"]

ROWS = ("weight", "bias", "running_mean", "running_var")  # what has a row a channel; other tensors of a module are the user's own


@dataclass(frozen=True, eq=False)
class Layer:
    """A module whose tensors have one slice for each channel; or a parameter or buffer that has.

    Attributes:
        name: the module's path, such as ``"layer1.0.conv1"``, or the parameter's.
        kind: ``conv``, ``transposed``, ``grouped``, ``depthwise``, ``linear``, ``positions``, ``norm``, ``pad`` or ``parameter``.
        inputs: int64, the channel that each input column reads.
        outputs: int64, the channel that each output row gives.
        pair_params: parameters for each pair of one input and one output channel.
        out_params: parameters for each output channel.
        pair_macs: the same in MACs, for one example.
        out_macs: the same in MACs, for one example.
        parts: 1, or the ``groups`` of a grouped convolution, which each keep the same count.
        transposed: whether the weight's first axis is that of the inputs.
    """

    name: str
    kind: str
    inputs: Tensor
    outputs: Tensor
    pair_params: float = 0
    out_params: int = 0
    pair_macs: float = 0
    out_macs: float = 0
    parts: int = 1
    transposed: bool = False

    @property
    def module(self) -> str:
        """The path of the module that it is, or that it belongs to."""
        return self.name.rpartition(".")[0] if self.kind == "parameter" else self.name

    @property
    def mixes(self) -> bool:
        """Whether it consumes channels; its input columns are then what gates act on."""
        return self.kind in ("conv", "transposed", "grouped", "linear")

    @property
    def columns(self) -> Tensor:
        """The channel of each column of the weight; the parts of a grouped convolution share them."""
        return self.inputs if self.transposed else self.inputs[: len(self.inputs) // self.parts]

    def slices(self, key: str, shape: tuple[int, ...], kept: Tensor) -> dict[int, Tensor]:
        """Which positions of which axes of a tensor stay.

        Args:
            key: the tensor's name in its module.
            shape: the tensor's.
            kept: bool, for each channel of the graph.
        """
        rows, columns = (kept[line].nonzero().flatten() for line in (self.outputs, self.columns))
        if self.kind == "parameter":
            return {shape.index(len(self.outputs)): rows}
        if key == "weight" and self.transposed:
            one = self.outputs[: len(self.outputs) // self.parts]
            return {0: columns} if self.kind == "depthwise" else {0: columns, 1: kept[one].nonzero().flatten()}
        if key == "weight" and self.mixes:
            return {0: rows, 1: columns}
        return {0: rows} if key in ROWS else {}


@dataclass(frozen=True)
class Group:
    """Channels born together in one layer, or tied to them: numbers ``start`` to ``stop - 1``."""

    name: str
    start: int
    stop: int
    layers: tuple[str, ...]

    def __len__(self) -> int:
        return self.stop - self.start


@dataclass(frozen=True, eq=False)
class Kept:
    """Channels that must stay: which operation wants it, in which module, why. None: all that it gives."""

    channels: Tensor
    operation: str
    module: str
    reason: str

    def __str__(self) -> str:
        return f"{len(self.channels) or 'all'} channels kept by {self.operation} at {self.module or 'the top'}: {self.reason}"


@dataclass(frozen=True, eq=False)
class ChannelGraph:
    """What :func:`trace` finds: the layers, the groups of channels, and what is kept and why.

    Attributes:
        layers: every layer that is sliced when a channel goes, by name.
        groups: the groups of channels, by the name of the first layer that gives them.
        removable: bool, for each channel whether it may go.
        kept: for the others: the reasons.
        shape: of the example that was traced.
        other_params: parameters that belong to no channel.
        other_macs: MACs of all else, such as an attention's queries with its keys and layers that are not understood, of which nothing goes.
        over_positions: linear layers and products over another axis than the channels'. Nothing of them is cut; but a channel that goes saves its MACs.
        times: what its layers take on this machine, if they were timed (:func:`sdap_lite.time_layers`).
    """

    layers: dict[str, Layer]
    groups: dict[str, Group]
    removable: Tensor
    kept: tuple[Kept, ...]
    shape: tuple[int, ...]
    other_params: int = 0
    other_macs: int = 0
    over_positions: tuple[Layer, ...] = ()
    times: LatencyTable | None = None

    def __len__(self) -> int:
        """The number of channels."""
        return len(self.removable)

    @property
    def prunable(self) -> dict[str, Group]:
        """The groups of which at least one channel may go."""
        return {name: g for name, g in self.groups.items() if bool(self.removable[g.start : g.stop].any())}

    def split(self, flat: Tensor) -> dict[str, Tensor]:
        """From one value a channel to a dictionary by prunable group; the tensors are views."""
        return {name: flat[g.start : g.stop] for name, g in self.prunable.items()}

    def join(self, parts: dict[str, Tensor], fill: Any) -> Tensor:
        """The inverse of :meth:`split`, of a type that holds all parts; channels outside the prunable groups get ``fill``.

        Raises:
            ValueError: a group is missing, unknown, or of the wrong size, or its values are no tensor.
        """
        wanted = self.prunable
        if not isinstance(parts, dict) or not all(isinstance(part, Tensor) for part in parts.values()):
            found = sorted({type(part).__name__ for part in parts.values()}) if isinstance(parts, dict) else type(parts).__name__
            raise ValueError(f"there must be a dictionary with a tensor for each prunable group, got {f'one of {found}' if isinstance(parts, dict) else found}")
        if parts.keys() != wanted.keys():
            missing, unknown = wanted.keys() - parts.keys(), parts.keys() - wanted.keys()
            raise ValueError(f"there must be one tensor for each prunable group; missing: {sorted(missing)}, unknown: {sorted(unknown)}")
        first = next(iter(parts.values()), torch.tensor(fill))
        dtype = reduce(torch.promote_types, [part.dtype for part in parts.values()], first.dtype)
        flat = torch.full((len(self),), fill, dtype=dtype, device=first.device)
        for name, group in wanted.items():
            if parts[name].shape != (len(group),):
                raise ValueError(f"group {name!r} has {len(group)} channels, got a tensor of shape {list(parts[name].shape)}")
            flat[group.start : group.stop] = parts[name]
        return flat

    def join_kept(self, kept: dict[str, Tensor]) -> Tensor:
        """One bool a channel, on the CPU; channels outside the prunable groups stay.

        Raises:
            ValueError: as :meth:`join`; or what is kept is not said by bools.
        """
        flat = self.join(kept, True).cpu()
        if wrong := {name: str(k.dtype) for name, k in kept.items() if k.dtype != torch.bool}:
            raise ValueError(f"kept must hold bool tensors, got {wrong}")
        return flat

    def narrowed(self, kept: dict[str, Tensor]) -> ChannelGraph:
        """The graph of what :func:`sdap_lite.remove_channels` leaves, as a new trace would find it.

        Args:
            kept: for each prunable group a bool tensor.

        >>> from sdap_lite import models, threshold, trace
        >>> graph = trace(models.VGG(11, width=8), torch.zeros(1, 3, 32, 32))
        >>> kept = threshold(graph, graph.split(torch.arange(float(len(graph)))), 0.75)
        >>> len(graph), len(graph.narrowed(kept)) == int(graph.join(kept, True).sum())
        (355, True)
        """
        flat = self.join(kept, True).cpu()
        before = torch.cat([torch.zeros(1, dtype=torch.long), flat.cumsum(0)])  # how many are left of those before each channel

        def left(line: Tensor) -> Tensor:
            return before[line[flat[line]]]

        def narrow(layer: Layer) -> Layer:
            return replace(layer, inputs=left(layer.inputs), outputs=left(layer.outputs))

        return replace(
            self,
            layers={name: narrow(layer) for name, layer in self.layers.items()},
            over_positions=tuple(narrow(layer) for layer in self.over_positions),
            groups={name: replace(group, start=int(before[group.start]), stop=int(before[group.stop])) for name, group in self.groups.items()},
            removable=self.removable[flat],
            kept=tuple(replace(note, channels=left(note.channels)) for note in self.kept),
        )

    def __str__(self) -> str:
        width = max([5, *(len(name) for name in self.groups)])
        lines = [f"{'group':{width}}  channels  may go  layers"]
        for name, group in self.groups.items():
            free = int(self.removable[group.start : group.stop].sum())
            others = f"{group.layers[0]} and {len(group.layers) - 1} more" if len(group.layers) > 1 else group.layers[0]
            lines.append(f"{name:{width}}  {len(group):8d}  {free:6d}  {others}")
        return "\n".join([*lines, *(f"  {note}" for note in self._notes())])

    def _notes(self) -> list[str]:
        """The reasons; one that holds at many places for the same channels is told once."""
        places: dict[tuple[object, ...], list[Kept]] = {}
        for note in self.kept:
            places.setdefault((note.operation, note.reason, tuple(note.channels.tolist())), []).append(note)
        return [str(first) + (f" ({len(rest)} more of these)" if rest else "") for first, *rest in places.values()]


def check_graph(graph: ChannelGraph) -> None:
    """Raises ValueError unless it is what :func:`sdap_lite.trace` gives."""
    if not isinstance(graph, ChannelGraph):
        raise ValueError(f"the graph must be a ChannelGraph, as sdap.trace(model, example) gives, got {type(graph).__name__}")
