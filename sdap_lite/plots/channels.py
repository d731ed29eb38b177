"""Figures of chapters 1 to 3, and the method as one picture: what channels cost, how scores rank them, what one rate takes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import matplotlib.pyplot as plt
import seaborn as sns
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from torch import Tensor

from .describe import DescribedFigure
from .style import BASELINE, MARKERS, PALETTE, baseline, footnote, new_figure

if TYPE_CHECKING:
    from ..graph import ChannelGraph
    from ..images import Images


def image_grid(images: Images, *, columns: int = 10) -> Figure:
    """Two rows of training images with the names of their classes.

    Args:
        images: the set.
        columns: how many images in a row.
    """
    with plt.rc_context({"figure.facecolor": "white"}):
        figure, axes = plt.subplots(2, columns, FigureClass=DescribedFigure, figsize=(7.0, 2.0), layout="constrained")
    plt.close(figure)
    for axis, image, label in zip(axes.flat, images.train.images, images.train.labels.tolist(), strict=False):
        axis.imshow(image.permute(1, 2, 0).expand(-1, -1, 3).numpy())
        axis.set_title(images.classes[label], fontsize="x-small")
        axis.set_axis_off()
    return footnote(figure, images.note)


def layer_costs(params: dict[str, int], macs: dict[str, int]) -> Figure:
    """Which layer holds how many parameters, and which does how much work.

    Args:
        params: parameters by layer.
        macs: multiply-accumulate operations of one image, by layer.
    """
    figure, axes = new_figure(2, height=3.4)
    for i, (axis, costs, title) in enumerate(zip(axes, (params, macs), ("parameters", "MACs"), strict=True)):
        total = sum(costs.values())
        axis.barh(list(costs), [100 * c / total for c in costs.values()], color=PALETTE[i])
        baseline(axis, 100 / len(costs), "equal shares", vertical=True)
        axis.invert_yaxis()
        axis.tick_params("y", labelsize="x-small")
        axis.set_xlabel(f"share of all {title} (%)")
    axes[0].set_ylabel("layer")
    axes[1].set_yticklabels([])
    axes[1].legend(fontsize="small", loc="lower right")
    return figure


def loss_increases(increases: dict[str, Tensor], note: str) -> Figure:
    """What closing one channel costs: all channels in order, and layer by layer.

    Args:
        increases: for each group the rise of the loss when one channel is closed, shape [channels].
        note: which images it was measured on.
    """
    figure, axes = new_figure(2)
    values = torch.cat(list(increases.values())).sort(descending=True).values
    axes[0].plot([100 * (i + 1) / len(values) for i in range(len(values))], values.tolist(), color=PALETTE[0], linewidth=2)
    axes[0].set_xlabel("channels, the worst to lose first (%)")
    for i, values in enumerate(increases.values()):
        places = i + torch.linspace(-0.3, 0.3, len(values))
        axes[1].scatter(places.tolist(), values.tolist(), s=7, color=PALETTE[i % 2 * 2])
    axes[1].set_xticks(range(len(increases)), [str(i + 1) for i in range(len(increases))], fontsize="small")
    axes[1].set_xlabel("layer")
    for axis in axes:
        axis.set_yscale("symlog", linthresh=0.01)
        axis.set_ylabel("rise of the loss (nats)")
        baseline(axis, 0.0, "nothing lost")
    axes[0].legend(fontsize="small")
    return footnote(figure, note)


def accuracy_by_share(shares: Sequence[float], curves: dict[str, Sequence[Sequence[float]]], dense: float, note: str, *, chance: float = 0.1) -> Figure:
    """Accuracy against the share of channels that are closed, for several orders of closing them.

    Args:
        shares: of the channels, 0 to 1.
        curves: by name, for each run the accuracies (0 to 1) at all shares; the band goes from the lowest to the highest run.
        dense: accuracy with all channels.
        note: which images it was measured on.
        chance: accuracy of guessing.
    """
    figure, (axis,) = new_figure()
    x = [100 * s for s in shares]
    for i, (name, runs) in enumerate(curves.items()):
        columns = [[100 * v for v in column] for column in zip(*runs, strict=True)]
        axis.plot(x, [sum(c) / len(c) for c in columns], marker=MARKERS[i], markersize=5, color=PALETTE[i], label=name)
        axis.fill_between(x, [min(c) for c in columns], [max(c) for c in columns], color=PALETTE[i], alpha=0.2)
    baseline(axis, 100 * dense, "all channels open")
    axis.axhline(100 * chance, color=BASELINE, linestyle=":", label="guessing")
    axis.set_xlabel("channels closed (%)")
    axis.set_ylabel("accuracy (%)")
    axis.legend(fontsize="small")
    return footnote(figure, note)


def redundancy(correlations: Tensor, layer: str, widths: Sequence[int], dimensions: Sequence[int], unrelated: Sequence[int], note: str) -> Figure:
    """How alike a layer's channels are, and how many directions each layer really uses.

    Args:
        correlations: between the channels of one layer, shape [channels, channels], from -1 to 1.
        layer: its name.
        widths: channels of each layer.
        dimensions: of each layer, how many principal directions hold 95 % of the variance.
        unrelated: the same for channels that know nothing of one another.
        note: which images it was measured on.
    """
    figure, axes = new_figure(2)
    order = [0]  # a chain: next comes the channel most like the last one
    while len(order) < len(correlations):
        likeness = correlations[order[-1]].clone()
        likeness[order] = -2
        order.append(int(likeness.argmax()))
    image = axes[0].imshow(correlations[order][:, order].numpy(), cmap="PuOr", vmin=-1, vmax=1)
    axes[0].grid(False)
    axes[0].set_title(layer, fontsize="small")
    axes[0].set_xlabel("channel, alike ones side by side")
    axes[0].set_ylabel("channel")
    figure.colorbar(image, ax=axes[0], label="correlation", shrink=0.8)
    places = range(1, len(widths) + 1)
    axes[1].bar(places, dimensions, color=PALETTE[0], label="directions with 95 % of the variance")
    axes[1].plot(places, unrelated, MARKERS[0], color=PALETTE[1], markersize=5, label="the same, channels unrelated")
    axes[1].step([0.5, *(p + 0.5 for p in places)], [widths[0], *widths], where="pre", color=BASELINE, linestyle="--", linewidth=1.2, label="channels")
    axes[1].set_xticks(list(places), [str(p) for p in places], fontsize="small")
    axes[1].set_ylim(0, 1.3 * max(widths))
    axes[1].set_xlabel("layer")
    axes[1].set_ylabel("count")
    axes[1].legend(fontsize="x-small", loc="upper left")
    return footnote(figure, note)


def latency_by_width(widths: Sequence[int], milliseconds: Sequence[float], params: Sequence[int]) -> Figure:
    """What narrow layers buy: time and parameters against the width, both relative to the widest.

    Args:
        widths: of the first layer, ascending.
        milliseconds: of one forward pass.
        params: of each network.
    """
    figure, (axis,) = new_figure(height=3.2)
    for i, (name, values) in enumerate({"measured time": milliseconds, "parameters": params}.items()):
        axis.plot(widths, [100 * v / values[-1] for v in values], marker=MARKERS[i], color=PALETTE[i], label=name)
    baseline(axis, 100, "widest network")
    axis.set_xscale("log", base=2)
    axis.set_yscale("log")
    axis.set_xticks(list(widths), [str(w) for w in widths])
    axis.set_yticks([1, 3, 10, 30, 100], ["1", "3", "10", "30", "100"])
    axis.set_xlabel("channels of the first layer")
    axis.set_ylabel("share of the widest network's (%)")
    axis.legend(fontsize="small")
    return figure


def prediction(panels: dict[str, tuple[Tensor, Tensor]], note: str) -> Figure:
    """The gate's gradient as a prediction, against what truly happens; one panel a step size.

    Args:
        panels: title → predicted and true rise of the loss, each of shape [channels].
        note: which images it was measured on.
    """
    figure, axes = new_figure(len(panels))
    for i, (axis, (title, (predicted, true))) in enumerate(zip(axes, panels.items(), strict=True)):
        predicted, true = 1000 * predicted, 1000 * true
        axis.scatter(predicted.tolist(), true.tolist(), s=14, marker=MARKERS[i], color=PALETTE[i], alpha=0.7)
        ends = [float(predicted.min()), float(predicted.max())]
        axis.plot(ends, ends, color=BASELINE, linestyle="--", linewidth=1.2, label="prediction comes true")
        axis.set_title(title, fontsize="small")
        axis.set_xlabel("predicted rise of the loss (0.001 nats)")
    axes[0].set_ylabel("true rise (0.001 nats)")
    axes[0].legend(fontsize="small")
    return footnote(figure, note)


def score_pairs(pairs: dict[str, tuple[Tensor, Tensor]], xlabel: str, ylabel: str, note: str) -> Figure:
    """Scores against something that they should agree with, as ranks; one panel a kind of score.

    Where both orders agree, the points lie on the dashed diagonal.

    Args:
        pairs: name of the score → two tensors of shape [channels].
        xlabel: what the first tensors are.
        ylabel: what the second ones are.
        note: which images it was measured on.
    """
    figure, axes = new_figure(len(pairs), height=3.8)
    for i, (axis, (title, (first, second))) in enumerate(zip(axes, pairs.items(), strict=True)):
        x, y = (100 * v.argsort().argsort() / (len(v) - 1) for v in (first, second))
        axis.scatter(x.tolist(), y.tolist(), s=6, marker=MARKERS[i], color=PALETTE[i], alpha=0.6)
        axis.plot([0, 100], [0, 100], color=BASELINE, linestyle="--", linewidth=1.2, label="same order")
        axis.set_title(f"{title}: rank correlation {float(torch.corrcoef(torch.stack([x, y]))[0, 1]):.2f}", fontsize="small")
        axis.set_xlabel(f"{xlabel}, rank (%)")
        axis.set_aspect("equal")
    axes[0].set_ylabel(f"{ylabel}, rank (%)")
    axes[0].legend(fontsize="x-small", loc="lower right")
    return footnote(figure, note)


def recorded_rows(rows: Sequence[dict[str, Any]], names: Sequence[str], dense: float, note: str, *, within: float = 100.0) -> Figure:
    """Recorded test accuracies: every run a dot, their mean and standard deviation beside it; a panel a rate.

    Args:
        rows: recorded runs, each with ``rate`` and ``test``.
        names: for each row what to call it; runs of one name are seeds of one setting.
        dense: test accuracy of the network before pruning.
        note: which images it was measured on, and that it is recorded.
        within: how many points below the dense network the picture reaches; what ends further down is written at its edge.
    """
    rates, kinds = sorted({row["rate"] for row in rows}), list(dict.fromkeys(names))
    lowest = 100 * dense - within
    figure, axes = new_figure(len(rates), height=1.6 + 0.38 * len(kinds))
    for axis, rate in zip(axes, rates, strict=True):
        for place, kind in enumerate(kinds):
            values = [100 * row["test"] for row, name in zip(rows, names, strict=True) if name == kind and row["rate"] == rate]
            if not values:
                continue
            color, mean = PALETTE[place % len(PALETTE)], sum(values) / len(values)
            if mean < lowest:
                axis.text(0.01, place, f"◂ {mean:.1f} %", transform=axis.get_yaxis_transform(), va="bottom", fontsize="x-small", color=BASELINE)
                continue
            spread = (sum((v - mean) ** 2 for v in values) / max(1, len(values) - 1)) ** 0.5
            axis.scatter(values, [place] * len(values), s=12, color=color, alpha=0.6)
            axis.errorbar(mean, place + 0.25, xerr=spread, marker=MARKERS[place % len(MARKERS)], color=color, capsize=3)
        baseline(axis, 100 * dense, "dense", vertical=True)
        axis.set_yticks(range(len(kinds)), kinds if axis is axes[0] else [""] * len(kinds), fontsize="small")
        axis.set_ylim(len(kinds) - 0.4, -0.5)
        axis.set_title(f"{rate:.0%} of the parameters removed", fontsize="small")
        axis.set_xlabel("test accuracy (%)")
    figure.legend(*axes[0].get_legend_handles_labels(), fontsize="x-small", loc="outside upper right")
    return footnote(figure, note)


def group_matrix(graphs: dict[str, ChannelGraph], *, height: float = 4.2) -> Figure:
    """Who writes and who reads each group of channels: a row for each layer, a column for each group.

    Args:
        graphs: title → what ``trace`` found.
        height: in inches.
    """
    figure, axes = new_figure(len(graphs), height=height)
    for axis, (title, graph) in zip(axes, graphs.items(), strict=True):
        layers = {name: layer for name, layer in graph.layers.items() if layer.kind not in ("norm", "pad")}
        labels = [next((i for i, g in enumerate(graph.groups.values()) if g.start <= c < g.stop), -1) for c in range(len(graph))]
        for which, offset, marker, color in (("outputs", -0.14, "o", PALETTE[0]), ("inputs", 0.14, "<", PALETTE[1])):
            cells = sorted({(labels[c], row) for row, layer in enumerate(layers.values()) for c in getattr(layer, which).tolist() if labels[c] >= 0})
            label = "writes the group" if which == "outputs" else "reads it"
            axis.scatter([x + offset for x, _ in cells], [y for _, y in cells], s=16, marker=marker, color=color, label=label)
        axis.set_yticks(range(len(layers)), list(layers), fontsize=6)
        axis.set_xticks(range(len(graph.groups)), [str(i + 1) for i in range(len(graph.groups))], fontsize="xx-small")
        axis.invert_yaxis()
        axis.set_title(title, fontsize="small")
        axis.set_xlabel("group of channels")
    axes[0].set_ylabel("layer")
    axes[-1].legend(fontsize="x-small", loc="upper right")
    return figure


def bisection(costs: Sequence[int], target: int, probes: Sequence[int]) -> Figure:
    """How the threshold is found: the cost of keeping the best k channels, and the k that were tried.

    Args:
        costs: parameters with the best k channels kept, for every k from 0 on.
        target: the budget.
        probes: the tried k, in order.
    """
    figure, axes = new_figure(2, height=3.2)
    axes[0].plot(range(len(costs)), [c / 1000 for c in costs], color=PALETTE[0])
    axes[0].scatter(probes, [costs[k] / 1000 for k in probes], s=20, color=PALETTE[1], zorder=3)
    axes[0].set_xlabel("channels above the threshold")
    axes[0].set_ylabel("parameters kept (thousands)")
    axes[1].plot(range(1, len(probes) + 1), [costs[k] / 1000 for k in probes], marker="o", color=PALETTE[1], label="tried")
    axes[1].set_xlabel("step of the bisection")
    for axis in axes:
        baseline(axis, target / 1000, "budget")
    axes[1].legend(fontsize="small")
    return figure


def layer_widths(widths: dict[str, dict[str, tuple[int, int]]], *, title: str = "") -> Figure:
    """The share of its channels that each layer keeps, for several ways to choose.

    Args:
        widths: name → a report's ``widths``: for each group channels kept and in all.
        title: above the figure.
    """
    figure, (axis,) = new_figure(height=3.4)
    groups = list(next(iter(widths.values())))
    for i, (name, found) in enumerate(widths.items()):
        shares = [100 * found[g][0] / found[g][1] for g in groups]
        axis.plot(range(1, len(groups) + 1), shares, marker=MARKERS[i], markersize=5, color=PALETTE[i], label=name)
    baseline(axis, 100, "all channels")
    axis.set_ylim(0, 105)
    axis.set_xticks(range(1, len(groups) + 1), [f"{i + 1}\n{found[g][1]}" for i, g in enumerate(groups)], fontsize="x-small")
    axis.set_xlabel("group, and how many channels it has")
    axis.set_ylabel("channels kept (%)")
    axis.set_title(title, fontsize="small")
    axis.legend(fontsize="small")
    return figure


def achieved_rates(asked: Sequence[float], excess: dict[str, Sequence[float]]) -> Figure:
    """By how much the achieved rate exceeds the one asked for.

    Args:
        asked: rates, 0 to 1.
        excess: name of the network → achieved minus asked rate, for each asked rate.
    """
    figure, (axis,) = new_figure(height=3.0)
    for i, (name, values) in enumerate(excess.items()):
        axis.plot([100 * r for r in asked], [100 * v for v in values], marker=MARKERS[i], color=PALETTE[i], label=name)
    baseline(axis, 0.0, "exactly as asked")
    axis.set_xlabel("rate asked for (% of the parameters)")
    axis.set_ylabel("removed beyond that (points)")
    axis.legend(fontsize="small")
    return figure


def schedules(curves: dict[str, tuple[Sequence[float], Sequence[float]]], rate: float) -> Figure:
    """The rate over a run, for several schedules.

    Args:
        curves: name → progress of the run (0 to 1) and the rate (0 to 1) at each moment.
        rate: the rate at the end.
    """
    figure, (axis,) = new_figure(height=3.0)
    for i, (name, (progress, rates)) in enumerate(curves.items()):
        axis.plot([100 * p for p in progress], [100 * r for r in rates], color=PALETTE[i], linestyle=("-", "--", "-.", ":")[i % 4], linewidth=2, label=name)
    baseline(axis, 100 * rate, "asked for")
    axis.set_xlabel("run done (%)")
    axis.set_ylabel("rate (% of the parameters)")
    axis.legend(fontsize="small")
    return figure


def _network(axis: Axes, left: float, bottom: float, layers: Sequence[str], title: str, color: Any) -> None:
    """A network as columns of channels, drawn from words such as ``"1101"``: 1 is an open gate, 0 a closed one."""
    for i, layer in enumerate(layers):
        x, middle = left + 4.2 * i, bottom + 10
        if i:
            axis.annotate("", (x - 0.3, middle), (x - 1.9, middle), arrowprops={"arrowstyle": "-|>", "color": BASELINE, "lw": 0.8})
        for j, gate in enumerate(layer):
            y = middle + 3.2 * (j - len(layer) / 2) + 0.4
            style = {"facecolor": color, "edgecolor": color} if gate == "1" else {"facecolor": "white", "edgecolor": BASELINE, "linestyle": ":"}
            axis.add_patch(Rectangle((x, y), 2, 2.4, **style))
    axis.text(left + 2.1 * len(layers) - 1.1, bottom + 21.5, title, ha="center", va="bottom", fontsize=9)


def _arrow(axis: Axes, start: tuple[float, float], end: tuple[float, float], text: str, color: Any, place: tuple[float, float]) -> None:
    axis.annotate("", end, start, arrowprops={"arrowstyle": "-|>", "color": color, "lw": 1.8, "shrinkA": 0, "shrinkB": 0})
    axis.text(*place, text, ha="center", va="center", fontsize=8.5, color=color)


def method_picture() -> Figure:
    """The whole method: a network that teaches its own copy, whose channels go by one rate, in one run."""
    with plt.rc_context({"figure.facecolor": "white", "axes.facecolor": "white"}), sns.axes_style("white"):
        figure, (axis, below) = plt.subplots(2, 1, FigureClass=DescribedFigure, figsize=(9, 6.2), layout="constrained", height_ratios=(3, 1), sharex=True)
    plt.close(figure)
    axis.set(xlim=(0, 100), ylim=(0, 66))
    axis.set_axis_off()
    full, small = ["111111"] * 4, ["1111", "111", "111", "11"]  # 3 x 36 pairs of channels, and a quarter of them
    teacher, student = PALETTE[7], PALETTE[0]
    _network(axis, 42, 42, full, "teacher: the pretrained network, frozen", teacher)
    _network(axis, 3, 6, full, "student: its copy,\na gate on every channel", student)
    _network(axis, 28, 6, ["110110", "011010", "100101", "100010"], "gates close\nby one threshold", student)
    _network(axis, 54, 6, small, "surgery: the closed\nchannels are cut out", student)
    _network(axis, 81, 6, small, "the small network\nis fine-tuned", student)
    for start, end in ((20, 26), (46, 52), (72, 79)):
        _arrow(axis, (start, 16), (end, 16), "", BASELINE, (0, 0))
    for x, height in ((12, 36), (37, 36), (88, 36)):
        axis.annotate("", (x, height), (50, 41.5), arrowprops={"arrowstyle": "-|>", "color": teacher, "lw": 1.4})
    axis.text(63, 46, r"the teacher's soft answers guide every step:" "\n" r"$L=(1-\alpha)\,\mathrm{CE}+\alpha T^2\,\mathrm{KL}$", fontsize=9, color=BASELINE)
    axis.text(2, 46, r"score $s_c$ from the gate's gradient:" "\n" r"$s_c=\sqrt{\mathrm{E}[g_c^2]}$,  $m_c=[s_c>\tau]$", fontsize=9, color=student)
    axis.text(50, 1, "a square is a channel; dotted: its gate is closed", ha="center", fontsize=8, color=BASELINE)
    moments = [i / 2 for i in range(201)]
    below.plot(moments, [75 * (1 - max(0.0, 1 - t / 50) ** 3) for t in moments], color=PALETTE[1], linewidth=2.5)
    baseline(below, 75, "the one rate asked for")
    baseline(below, 50, "", vertical=True)
    below.text(50.8, 8, "masks freeze: surgery", fontsize=9, color=BASELINE)
    below.text(1, 79, "the one rate that is asked for", fontsize=9, color=BASELINE)
    below.set(ylim=(0, 95), yticks=[0, 25, 50, 75], xticks=[])
    below.set_xlabel("one training run", fontsize=10)
    below.set_ylabel("parameters\nremoved (%)", fontsize=10)
    sns.despine(ax=below)
    return figure
