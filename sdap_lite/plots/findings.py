"""Figures of chapters 8 to 12 and of the cost page: methods side by side, and what they cost."""

from __future__ import annotations

from collections.abc import Sequence

import matplotlib.pyplot as plt
from matplotlib.figure import Figure
from torch import Tensor

from .describe import DescribedFigure
from .style import BASELINE, MARKERS, PALETTE, baseline, footnote, new_figure


def effects(found: dict[str, dict[str, tuple[float, float]]], chance: float | dict[str, float], note: str, *, zero: str = "all defaults") -> Figure:
    """What each change does to the accuracy, in points, with its standard error; a panel a rate.

    Args:
        found: name of a panel → name of a change → difference and standard error, in percentage points.
        chance: how far the best of as many changes without any effect would come, in points, for all panels or for each; 0 draws no band.
        note: which images it was measured on, and that it is recorded.
        zero: what the differences are from.
    """
    changes = list(next(iter(found.values())))
    figure, axes = new_figure(len(found), height=1.6 + 0.24 * len(changes))
    for axis, (title, panel) in zip(axes, found.items(), strict=True):
        band = chance[title] if isinstance(chance, dict) else chance
        if band:
            axis.axvspan(-band, band, color="0.9", label="within chance")
        for place, change in enumerate(changes):
            value, error = panel[change]
            color = BASELINE if abs(value) <= band else PALETTE[2] if value > 0 else PALETTE[3]
            axis.errorbar(value, place, xerr=error, marker=MARKERS[0], color=color, capsize=3)
        baseline(axis, 0, zero, vertical=True)
        axis.set_yticks(range(len(changes)), changes if axis is axes[0] else [""] * len(changes), fontsize="small")
        axis.set_ylim(len(changes) - 0.5, -0.5)
        axis.set_title(title, fontsize="small")
        axis.set_xlabel("difference (points)")
    figure.legend(*axes[0].get_legend_handles_labels(), fontsize="x-small", ncols=2, loc="outside upper right")
    return footnote(figure, note)


def lost_by_rate(rates: Sequence[float], lost: dict[str, Sequence[float]], note: str) -> Figure:
    """How much accuracy goes with the parameters, for several tasks; every line starts at the dense network.

    Args:
        rates: the removed shares, 0 to 1.
        lost: name of the task → points of accuracy lost at each rate.
        note: which images it was measured on.
    """
    figure, (axis,) = new_figure()
    for i, (name, points) in enumerate(lost.items()):
        axis.plot([0, *(100 * rate for rate in rates)], [0, *points], marker=MARKERS[i], markersize=5, color=PALETTE[i], label=name)
    baseline(axis, 0, "nothing lost")
    axis.set_xlabel("parameters removed (%)")
    axis.set_ylabel("accuracy lost (points)")
    axis.legend(fontsize="small")
    return footnote(figure, note)


def rank_and_share(ranks: dict[str, Sequence[float]], kept: Sequence[float], note: str) -> Figure:
    """How many directions each layer uses for several tasks, and whether pruning keeps as many channels.

    Args:
        ranks: name of the task → for each layer the effective rank over the width, 0 to 1.
        kept: for each layer the share of its channels that pruning for the last of these tasks kept, 0 to 1.
        note: which images it was measured on.
    """
    figure, axes = new_figure(2, height=3.8)
    layers = range(1, len(kept) + 1)
    for i, (name, found) in enumerate(ranks.items()):
        axes[0].plot(layers, [100 * rank for rank in found], marker=MARKERS[i], markersize=5, color=PALETTE[i], label=name)
        last = name, found, PALETTE[i]
    baseline(axes[0], 100, "as many as channels")
    axes[0].set_xticks(list(layers), [str(layer) for layer in layers], fontsize="small")
    axes[0].set(xlabel="layer", ylabel="effective rank (% of the width)", ylim=(0, 105))
    name, found, color = last
    axes[1].plot([0, 100], [0, 100], color=BASELINE, linestyle="--", linewidth=1.2, label="as its rank")
    axes[1].scatter([100 * rank for rank in found], [100 * share for share in kept], s=20, color=color, label=f"a layer, {name}")
    for layer, rank, share in zip(layers, found, kept, strict=True):
        axes[1].annotate(str(layer), (100 * rank, 100 * share), xytext=(4, -9), textcoords="offset points", fontsize="x-small")
    axes[1].set(xlabel="effective rank (% of the width)", ylabel="channels kept (%)", xlim=(0, 105), ylim=(0, 105))
    for axis in axes:
        axis.legend(fontsize="x-small", loc="lower left")
    return footnote(figure, note)


def ratios(rows: dict[str, float], note: str) -> Figure:
    """How each measured ratio stands to the one that is wanted.

    Args:
        rows: by name, measured over wanted; 1 is just what is wanted, below is better.
        note: what it was measured on.
    """
    figure, (axis,) = new_figure(height=1.0 + 0.24 * len(rows))
    places = range(len(rows))
    colors = [PALETTE[0] if value <= 1 else PALETTE[3] for value in rows.values()]
    for place, value, color in zip(places, rows.values(), colors, strict=True):
        axis.plot([1, value], [place, place], color=color, linewidth=2)
        axis.plot([value], [place], color=color, marker="o" if value <= 1 else "X", markersize=6)
    baseline(axis, 1, "what is wanted", vertical=True)
    axis.set_xscale("log")
    axis.xaxis.set_major_formatter("{x:g}")
    axis.xaxis.set_minor_formatter("{x:.1g}")
    axis.set_yticks(list(places), list(rows), fontsize="x-small")
    axis.invert_yaxis()
    axis.set_ylabel("comparison")
    axis.set_xlabel("measured / wanted (left of the line is better)")
    axis.legend(fontsize="x-small")
    return footnote(figure, note)


def time_parts(parts: dict[str, dict[str, float]], note: str, *, xlabel: str = "processor time of a step (ms)") -> Figure:
    """Where the time of a training step goes: a stacked bar for each kind of step.

    Args:
        parts: kind of step → part of it → milliseconds; the first kind is the baseline.
        note: what it was measured on.
        xlabel: whose time it is.
    """
    figure, (axis,) = new_figure(height=1.4 + 0.45 * len(parts))
    left = dict.fromkeys(parts, 0.0)
    names = list(dict.fromkeys(name for line in parts.values() for name in line))
    for i, name in enumerate(names):
        values = [line.get(name, 0.0) for line in parts.values()]
        hatch = ("", "//", "..", "xx", "\\\\", "++")[i % 6]
        axis.barh(list(parts), values, left=list(left.values()), color=PALETTE[i], hatch=hatch, edgecolor="white", label=name)
        left = {kind: left[kind] + value for kind, value in zip(parts, values, strict=True)}
    baseline(axis, next(iter(left.values())), f"{next(iter(parts))}, in all", vertical=True)
    axis.invert_yaxis()
    axis.grid(False, axis="y")
    axis.set_xlabel(xlabel)
    axis.set_ylabel("step")
    figure.legend(*axis.get_legend_handles_labels(), fontsize="small", ncols=4, loc="outside upper center")
    return footnote(figure, note)


def cost_growth(panels: dict[str, tuple[Sequence[float], dict[str, Sequence[float]]]]) -> Figure:
    """How counted costs grow with a network's size, relative to the smallest; both axes logarithmic.

    Args:
        panels: what grows → its values, and for each cost the cost at each value.
    """
    figure, axes = new_figure(len(panels), height=3.2)
    for axis, (label, (values, costs)) in zip(axes, panels.items(), strict=True):
        for i, (name, line) in enumerate(costs.items()):
            axis.plot(list(values), [cost / line[0] for cost in line], marker=MARKERS[i], color=PALETTE[i], label=name)
        baseline(axis, 1, "the smallest")
        axis.set_xscale("log", base=2)
        axis.set_yscale("log", base=2)
        for side in (axis.xaxis, axis.yaxis):
            side.set_major_formatter("{x:g}")
        axis.set_xlabel(label)
        axis.set_ylabel("times the smallest's")
        axis.legend(fontsize="x-small")
    return figure


def hours_by_devices(hours: dict[str, dict[int, float]], note: str, *, ylabel: str = "hours") -> Figure:
    """How long a run takes on several devices, against perfect scaling; both axes logarithmic.

    Args:
        hours: name of the run → number of devices → hours.
        note: where the estimate comes from.
        ylabel: what takes so long, and its unit, if it is not a run in hours.
    """
    figure, (axis,) = new_figure(height=3.4)
    for i, (name, line) in enumerate(hours.items()):
        axis.plot(list(line), list(line.values()), marker=MARKERS[i], color=PALETTE[i], label=name)
        devices, first = next(iter(line.items()))
        perfect = [first * devices / count for count in line]
        axis.plot(list(line), perfect, color=BASELINE, linestyle="--", linewidth=1.2, label=None if i else "perfect scaling")
    axis.set_xscale("log", base=2)
    axis.set_yscale("log")
    for side in (axis.xaxis, axis.yaxis):
        side.set_major_formatter("{x:g}")
    axis.set_xlabel("devices")
    axis.set_ylabel(ylabel)
    axis.legend(fontsize="small")
    return footnote(figure, note)


def attention(image: Tensor, maps: dict[str, Sequence[Tensor]], note: str) -> Figure:
    """Where networks look: an image, and for each network a row of its feature maps, squared and summed over channels.

    Args:
        image: uint8, shape [channels, height, width].
        maps: network → feature maps, each of shape [channels, height, width].
        note: which image it is.
    """
    columns = 1 + max(len(row) for row in maps.values())
    with plt.rc_context({"figure.facecolor": "white"}):
        figure, axes = plt.subplots(len(maps), columns, FigureClass=DescribedFigure, figsize=(7.0, 0.4 + 1.2 * len(maps)), layout="constrained", squeeze=False)
    plt.close(figure)
    for row, (name, found) in zip(axes, maps.items(), strict=True):
        for axis in row:
            axis.set_axis_off()
        row[0].imshow(image.permute(1, 2, 0).expand(-1, -1, 3).numpy())
        row[0].set_title(name, fontsize="small")
        for axis, x in zip(row[1:], found, strict=False):
            axis.imshow(x.float().square().sum(0).numpy(), cmap="viridis")
            axis.set_title(" × ".join(str(n) for n in x.shape), fontsize="x-small")
    return footnote(figure, f"{note}; yellow: where a map is large; channels × height × width")
