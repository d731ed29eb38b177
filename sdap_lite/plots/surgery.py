"""Figures of chapters 6 and 7: what is cut, what is left, and how fast it is."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from matplotlib.ticker import MaxNLocator
from torch import Tensor

from .style import BASELINE, MARKERS, PALETTE, baseline, footnote, new_figure

if TYPE_CHECKING:
    from ..graph import ChannelGraph
    from ..measure import Latency


def cut_by_hand(first: Tensor, norm: Tensor, second: Tensor, closed: int) -> Figure:
    """What goes with one channel: a filter, an entry of the norm, a column of the layer that reads it.

    Args:
        first: weights of the layer that writes the channel, shape [channels, inputs, height, width].
        norm: scale, shift, mean and variance of each channel, shape [channels, 4].
        second: weights of the layer that reads it, shape [outputs, channels, height, width].
        closed: the channel that goes.
    """
    figure, axes = new_figure(3, height=3.4)
    scaled = norm / norm.abs().amax(0)  # four quantities of different size
    panels = [(first.square().sum((2, 3)).sqrt(), "input", "channel"), (scaled, "", "channel"), (second.square().sum((2, 3)).sqrt(), "channel", "output")]
    for axis, (values, across, down), title in zip(axes, panels, ("the filter that writes it", "its norm", "the column that reads it"), strict=True):
        axis.imshow(values.abs().numpy(), cmap="Greys", aspect="auto", vmin=0, vmax=1.3 * float(values.abs().max()))
        axis.grid(False)
        axis.set_title(title, fontsize="small")
        axis.set_xlabel(across or "entry of each channel")
        axis.set_ylabel(down)
        width, height = values.shape[1], values.shape[0]
        place, size = ((closed - 0.5, -0.5), (1, height)) if across == "channel" else ((-0.5, closed - 0.5), (width, 1))
        axis.add_patch(Rectangle(place, *size, facecolor=(*PALETTE[1], 0.35), edgecolor=PALETTE[1], hatch="///", linewidth=1.8))
    axes[0].set_xticks(range(first.shape[1]))
    axes[1].set_xticks(range(4), ["scale", "shift", "mean", "var."], fontsize="x-small")
    return footnote(figure, "darker: larger; hatched: what goes with the channel")


def leaks(errors: dict[str, dict[str, Tensor]], note: str) -> Figure:
    """What a channel still says when zeros stand where it is written, channel by channel; a panel an activation.

    Args:
        errors: name of the activation → what was set to zero → largest error for each channel, shape [channels].
        note: which images it was measured on.
    """
    figure, axes = new_figure(len(errors), height=3.2)
    for axis, (title, by_place) in zip(axes, errors.items(), strict=True):
        for i, (name, values) in enumerate(by_place.items()):
            axis.plot(range(len(values)), values.tolist(), MARKERS[i], markersize=5, color=PALETTE[i], label=name)
        baseline(axis, 0.0, "reader's column")
        axis.set_title(title, fontsize="small")
        axis.set_xlabel("closed channel")
        axis.set_ylim(top=1.05 * max(float(v.max()) for found in errors.values() for v in found.values()))
    axes[0].set_ylabel("largest error of the outputs")
    figure.legend(*axes[0].get_legend_handles_labels(), title="set to zero", fontsize="small", title_fontsize="small", loc="outside right center")
    return footnote(figure, note)


def shortcut_channels(shortcuts: dict[str, tuple[Tensor, int, int]]) -> Figure:
    """Which channels a padding shortcut carries, which it fills with zeros, and which of them stay.

    Args:
        shortcuts: title → bool of shape [outputs], whether each of its output channels stays; how many zero channels stand before and behind, uncut.
    """
    figure, (axis,) = new_figure(height=0.9 + 0.65 * len(shortcuts))
    axis.set_facecolor("white")
    axis.grid(False)
    for place, (kept, before, after) in enumerate(shortcuts.values()):
        for i, stays in enumerate(kept.tolist()):
            color = PALETTE[0] if before <= i < len(kept) - after else PALETTE[7]
            axis.add_patch(Rectangle((i + 0.1, place - 0.3), 0.8, 0.6, facecolor=color if stays else "white", edgecolor=color, linewidth=1.0))
    axis.plot([], [], "s", color=PALETTE[0], label="carried")
    axis.plot([], [], "s", color=PALETTE[7], label="zero")
    axis.plot([], [], "s", color="white", markeredgecolor=BASELINE, label="cut out")
    axis.set_xlim(0, max(len(kept) for kept, _, _ in shortcuts.values()))
    axis.set_ylim(len(shortcuts) - 0.5, -0.5)
    axis.set_yticks(range(len(shortcuts)), list(shortcuts), fontsize="small")
    axis.set_xlabel("output channel of the shortcut")
    figure.legend(*axis.get_legend_handles_labels(), fontsize="small", ncols=3, loc="outside upper right")
    return figure


def before_and_after(widths: dict[str, tuple[int, int]], params: dict[str, tuple[int, int]], note: str) -> Figure:
    """Channels and parameters of each layer, before and after surgery.

    Args:
        widths: for each layer channels kept and in all.
        params: for each layer parameters kept and in all.
        note: which network it is, and on which images its channels were chosen.
    """
    figure, axes = new_figure(2, height=3.4)
    panels = [(widths, 1, "channels"), (params, 1000, "parameters (thousands)")]
    for i, (axis, (values, unit, label)) in enumerate(zip(axes, panels, strict=True)):
        places = range(1, len(values) + 1)
        axis.bar(places, [kept / unit for kept, _ in values.values()], color=PALETTE[i], label="after")
        full = [whole / unit for _, whole in values.values()]
        axis.step([0.5, *(p + 0.5 for p in places)], [full[0], *full], where="pre", color=BASELINE, linestyle="--", linewidth=1.2, label="before")
        axis.set_xticks(list(places), [str(p) for p in places], fontsize="x-small")
        axis.set_xlabel("layer")
        axis.set_ylabel(label)
        axis.legend(fontsize="small", loc="upper left")
    return footnote(figure, note)


def shares_left(shares: dict[str, dict[str, float]], spreads: dict[str, dict[str, float]], note: str) -> Figure:
    """What is left of the dense network, in several measures; a group of bars for each network.

    Args:
        shares: name of the network → measure → share of the dense network's, 1 for all of it.
        spreads: the same for the spread of what was timed; 0 for what was counted.
        note: what it was measured on.
    """
    figure, (axis,) = new_figure(height=3.4)
    measures = list(next(iter(shares.values())))
    thick = 0.8 / len(measures)
    for i, measure in enumerate(measures):
        places = [j + (i - (len(measures) - 1) / 2) * thick for j in range(len(shares))]
        heights = [100 * found[measure] for found in shares.values()]
        errors = [100 * found[measure] for found in spreads.values()]
        axis.bar(places, heights, 0.9 * thick, color=PALETTE[i], hatch=("", "//", "..", "xx")[i % 4], edgecolor="white", label=measure)
        if any(errors):
            axis.errorbar(places, heights, yerr=[e / 2 for e in errors], fmt="none", ecolor="black", capsize=3, linewidth=1.2)
    baseline(axis, 100, "dense network")
    axis.set_xticks(range(len(shares)), list(shares), fontsize="small")
    axis.set_xlabel("network")
    axis.set_ylabel("left of the dense network's (%)")
    axis.grid(False, axis="x")
    figure.legend(*axis.get_legend_handles_labels(), fontsize="small", loc="outside right center")
    return footnote(figure, note)


def drift(distances: dict[str, Sequence[float]], travelled: Sequence[float], note: str) -> Figure:
    """How far small networks' weights drift from those of the masked network that trains on, step by step.

    Args:
        distances: name → distance to the masked network's kept weights after each step.
        travelled: how far the masked network itself has come since surgery.
        note: which images it was measured on.
    """
    figure, (axis,) = new_figure(height=3.2)
    steps = range(1, len(travelled) + 1)
    for i, (name, values) in enumerate(distances.items()):
        axis.plot(steps, [max(v, 1e-17) for v in values], marker=MARKERS[i], color=PALETTE[i], label=name)
    axis.plot(steps, travelled, color=BASELINE, linestyle="--", linewidth=1.2, label="distance travelled by the masked network")
    axis.set_yscale("log")
    axis.xaxis.set_major_locator(MaxNLocator(integer=True))
    axis.set_xlabel("steps after surgery")
    axis.set_ylabel("distance of the weights")
    figure.legend(*axis.get_legend_handles_labels(), fontsize="small", ncols=2, loc="outside upper center")
    return footnote(figure, note)


def channel_map(graph: ChannelGraph, kept: dict[str, Tensor] | None = None, *, most: int = 60) -> Figure:
    """A picture of a network: a bar for each group of channels, and how much of each may go.

    The whole bar is the group's width; its coloured part may go, its hatched part must stay. Beside
    it stands which operation wants that, and how many layers the group ties.

    Args:
        graph: what ``trace`` found.
        kept: a bool tensor for each prunable group: marks how many stay; default: no marks.
        most: how many groups are drawn, the first ones; the title says how many there are.
    """
    groups = list(graph.groups.values())[:most]
    figure, (axis,) = new_figure(height=1.2 + 0.2 * max(4, len(groups)))
    free = [int(graph.removable[g.start : g.stop].sum()) for g in groups]
    places = range(len(groups))
    axis.barh(places, free, color=PALETTE[0], label="may go")
    stays = [len(g) - f for g, f in zip(groups, free, strict=True)]
    axis.barh(places, stays, left=free, color="0.85", edgecolor=BASELINE, hatch="///", linewidth=0.5, label="must stay")
    for place, group in enumerate(groups):
        reasons = {n.operation for n in graph.kept if bool(((n.channels >= group.start) & (n.channels < group.stop)).any())}
        ties = f"{len(group.layers)} layers" if len(group.layers) > 1 else ""
        axis.text(len(group), place, "  " + ", ".join([*([ties] if ties else []), *sorted(reasons)]), va="center", fontsize=7, color=BASELINE)
    if kept is not None:
        marks = [(int(kept[g.name].sum()), place) for place, g in enumerate(groups) if g.name in kept]
        axis.scatter([x for x, _ in marks], [y for _, y in marks], marker="|", s=60, linewidths=2.5, color=PALETTE[1], zorder=3, label="kept")
    axis.set_yticks(places, [g.name for g in groups], fontsize=7)
    axis.grid(False, axis="y")
    axis.set_xlim(0, 1.25 * max([1, *(len(g) for g in groups)]))
    axis.invert_yaxis()
    axis.set_xlabel("channels")
    axis.set_ylabel("group")
    more = "" if len(groups) == len(graph.groups) else f", of which the first {len(groups)} are drawn"
    axis.set_title(f"{len(graph.groups)} groups{more}", fontsize="small")
    axis.legend(fontsize="x-small", loc="lower right")
    return figure


def latencies(panels: dict[str, dict[str, Latency]], note: str) -> Figure:
    """Measured times: a panel for each way to run, a bar for each network; the dashed line is the first network's time.

    Args:
        panels: title → name of the network → its time; the black bars are the spread of the middle half.
        note: what it was measured on.
    """
    figure, axes = new_figure(len(panels), width=8.4, height=3.4)
    names = list(dict.fromkeys(name for found in panels.values() for name in found))
    for axis, (title, found) in zip(axes, panels.items(), strict=True):
        for name, time in found.items():
            i = names.index(name)
            axis.bar(i, time.median, 0.8, color=PALETTE[i], hatch=("", "//", "..", "xx")[i % 4], edgecolor="white", label=name)
            axis.errorbar(i, time.median, yerr=time.spread / 2, fmt="none", ecolor="black", capsize=3, linewidth=1.2)
        if names[0] in found:
            baseline(axis, found[names[0]].median, f"as {names[0]}")
        axis.set_xticks([])
        axis.set(xlim=(-0.6, len(names) - 0.4), ylim=(0, None))
        axis.set_title(title, fontsize="small")
        axis.set_xlabel("network")
    axes[0].set_ylabel("time (ms)")
    most = max(axes, key=lambda axis: len(axis.containers))
    figure.legend(*most.get_legend_handles_labels(), fontsize="small", ncols=len(names) + 1, loc="outside upper center")
    return footnote(figure, note)
