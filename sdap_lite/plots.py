"""The book's figures: each a function from data to a matplotlib figure.

White paper, so that a figure reads the same in light and dark mode; seaborn's colour-blind-safe
palette, and markers beside colours; labelled axes with units, and the baseline drawn.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import matplotlib.pyplot as plt
import seaborn as sns
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from matplotlib.ticker import MaxNLocator
from torch import Tensor

from .describe import DescribedFigure

if TYPE_CHECKING:
    from .data import Images, Split
    from .graph import ChannelGraph
    from .measure import Latency

PALETTE = sns.color_palette("colorblind")
BASELINE = "0.35"  # the grey of every baseline
MARKERS = "osD^vPX*"


def new_figure(columns: int = 1, *, width: float = 7.0, height: float = 3.6) -> tuple[Figure, Sequence[Axes]]:
    """An empty figure in the book's style, and its axes in a row.

    It is taken out of pyplot's list, so that a notebook shows it once: as the value of its cell.

    Args:
        columns: how many axes.
        width: in inches.
        height: in inches.
    """
    with plt.rc_context({"figure.facecolor": "white", "axes.facecolor": "white", "savefig.facecolor": "white"}), sns.axes_style("whitegrid"):
        figure, axes = plt.subplots(1, columns, FigureClass=DescribedFigure, figsize=(width, height), layout="constrained", squeeze=False)
    plt.close(figure)
    return figure, list(axes[0])


def baseline(axes: Axes, value: float, label: str, *, vertical: bool = False) -> None:
    """A dashed grey line at the value that everything is held against."""
    draw = axes.axvline if vertical else axes.axhline
    draw(value, color=BASELINE, linestyle="--", linewidth=1.2, label=label)


def footnote(figure: Figure, text: str) -> Figure:
    """Says under a figure which images it was measured on; returns the figure."""
    figure.supxlabel(text, fontsize="x-small", color=BASELINE)
    return figure


# Chapters 1 to 3


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


def redundancy(correlations: Tensor, layer: str, widths: Sequence[int], dimensions: Sequence[int], note: str) -> Figure:
    """How alike a layer's channels are, and how many directions each layer really uses.

    Args:
        correlations: between the channels of one layer, shape [channels, channels], from -1 to 1.
        layer: its name.
        widths: channels of each layer.
        dimensions: of each layer, how many principal directions hold 95 % of the variance.
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


def recorded_rows(rows: Sequence[dict[str, Any]], names: Sequence[str], dense: float, note: str) -> Figure:
    """Recorded test accuracies: every run a dot, their mean and standard deviation beside it; a panel a rate.

    Args:
        rows: recorded runs, each with ``rate`` and ``test``.
        names: for each row what to call it; runs of one name are seeds of one setting.
        dense: test accuracy of the network before pruning.
        note: which images it was measured on, and that it is recorded.
    """
    rates, kinds = sorted({row["rate"] for row in rows}), list(dict.fromkeys(names))
    figure, axes = new_figure(len(rates), height=1.6 + 0.38 * len(kinds))
    for axis, rate in zip(axes, rates, strict=True):
        for place, kind in enumerate(kinds):
            values = [100 * row["test"] for row, name in zip(rows, names, strict=True) if name == kind and row["rate"] == rate]
            if not values:
                continue
            color, mean = PALETTE[place % len(PALETTE)], sum(values) / len(values)
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


# Chapter 4


def soft_answers(image: Tensor, classes: Sequence[str], answers: dict[int, Tensor], note: str) -> Figure:
    """One image, and the probability of each class at several temperatures.

    Args:
        image: uint8, shape [channels, height, width].
        classes: their names.
        answers: temperature → probabilities, shape [classes].
        note: which images it was measured on.
    """
    figure, axes = new_figure(2, height=3.4)
    axes[0].imshow(image.permute(1, 2, 0).expand(-1, -1, 3).numpy())
    axes[0].set_axis_off()
    order = next(iter(answers.values())).argsort(descending=True).tolist()
    for i, (temperature, p) in enumerate(answers.items()):
        axes[1].plot((100 * p[order]).tolist(), range(len(order)), marker=MARKERS[i], markersize=5, color=PALETTE[i], label=f"T = {temperature}")
    baseline(axes[1], 100 / len(order), "all alike", vertical=True)
    axes[1].set_xscale("log")
    axes[1].set_yticks(range(len(order)), [classes[k] for k in order], fontsize="small")
    axes[1].invert_yaxis()
    axes[1].set_xlabel("probability (%)")
    axes[1].set_ylabel("class")
    axes[1].legend(fontsize="x-small")
    return footnote(figure, note)


def class_likeness(likeness: Tensor, classes: Sequence[str], note: str) -> Figure:
    """The mean soft answer to the images of each class, without the class itself.

    Args:
        likeness: mean probabilities, shape [true class, class].
        classes: their names.
        note: which images it was measured on.
    """
    figure, (axis,) = new_figure(height=4.2)
    shown = (100 * likeness).masked_fill(torch.eye(len(classes), dtype=torch.bool), torch.nan)
    image = axis.imshow(shown.numpy(), cmap="cividis")
    axis.grid(False)
    axis.set_xticks(range(len(classes)), list(classes), rotation=60, ha="right", fontsize="small")
    axis.set_yticks(range(len(classes)), list(classes), fontsize="small")
    axis.set_xlabel("wrong class")
    axis.set_ylabel("true class")
    figure.colorbar(image, ax=axis, label="mean probability at T = 4 (%)")
    return footnote(figure, note)


def gradient_by_temperature(temperatures: Sequence[float], sizes: dict[str, Sequence[float]], labels: float, note: str) -> Figure:
    """The size of the gradient of the teacher's term against the temperature.

    Args:
        temperatures: ascending.
        sizes: name → norm of the gradient by the student's logits at each temperature.
        labels: the same norm for the cross-entropy with the labels.
        note: which images it was measured on.
    """
    figure, (axis,) = new_figure(height=3.2)
    for i, (name, values) in enumerate(sizes.items()):
        axis.plot(list(temperatures), list(values), marker=MARKERS[i], color=PALETTE[i], label=name)
    baseline(axis, labels, "cross-entropy with the labels")
    axis.set_xscale("log", base=2)
    axis.set_yscale("log")
    axis.set_xticks(list(temperatures), [str(t) for t in temperatures])
    axis.set_xlabel("temperature T")
    axis.set_ylabel("norm of the gradient by the logits")
    axis.legend(fontsize="small")
    return footnote(figure, note)


def recovery(steps: Sequence[int], curves: dict[str, Sequence[Sequence[float]]], dense: float, note: str) -> Figure:
    """Accuracy against the steps of fine-tuning, for several losses.

    Args:
        steps: at which accuracy was measured.
        curves: by name, for each seed the accuracies (0 to 1) at all steps; the band goes from the lowest to the highest.
        dense: accuracy before pruning.
        note: which images it was measured on.
    """
    figure, (axis,) = new_figure(height=3.4)
    for i, (name, runs) in enumerate(curves.items()):
        columns = [[100 * value for value in column] for column in zip(*runs, strict=True)]
        axis.plot(list(steps), [sum(c) / len(c) for c in columns], marker=MARKERS[i], color=PALETTE[i], label=name)
        axis.fill_between(list(steps), [min(c) for c in columns], [max(c) for c in columns], color=PALETTE[i], alpha=0.2)
    baseline(axis, 100 * dense, "before pruning")
    axis.set_xlabel("step of fine-tuning")
    axis.set_ylabel("accuracy (%)")
    axis.legend(fontsize="small")
    return footnote(figure, note)


# Chapter 5


def run_by_step(log: Sequence[dict[str, Any]], surgery: int, rate: float, note: str) -> Figure:
    """A run step by step: share removed, loss, and time of a step.

    Args:
        log: for each step ``removed`` (0 to 1), ``loss`` (nats) and ``seconds``.
        surgery: the step at which the closed channels are cut out.
        rate: the rate that is asked for, 0 to 1.
        note: which images it was measured on.
    """
    figure, axes = new_figure(3, width=8.4, height=3.0)
    panels = [("removed", 100, "parameters removed (%)"), ("loss", 1, "loss (nats)"), ("seconds", 1000, "time of a step (ms)")]
    for i, (axis, (key, scale, label)) in enumerate(zip(axes, panels, strict=True)):
        values = [scale * step[key] for step in log]
        near = [values[max(0, s - 4) : s + 5] for s in range(len(values))]  # nine steps
        axis.plot(values, color=PALETTE[i], linewidth=1, alpha=0.35 if key == "loss" else 1)
        if key == "loss":
            axis.plot([sum(part) / len(part) for part in near], color=PALETTE[i], linewidth=2, label="mean of nine steps")
        baseline(axis, surgery, "surgery", vertical=True)
        axis.set_ylim(bottom=0)
        axis.set_xlabel("step")
        axis.set_ylabel(label)
    axes[0].axhline(100 * rate, color=BASELINE, linestyle=":", label="asked for")
    axes[0].legend(fontsize="small", loc="lower right")
    axes[1].legend(fontsize="x-small", loc="upper right")
    axes[2].set_ylim(0, 1000 * 1.6 * sorted(step["seconds"] for step in log)[len(log) // 2])  # a hiccup of the machine may be cut off
    return footnote(figure, note)


def kept_by_step(kept: Sequence[dict[str, Tensor]], surgery: int, note: str) -> Figure:
    """The share of its channels that each group keeps, step by step, as a heat map.

    Args:
        kept: for each step the open channels of each group, bool.
        surgery: the step at which the closed channels are cut out.
        note: which images it was measured on.
    """
    figure, (axis,) = new_figure(height=3.6)
    shares = torch.stack([torch.stack([100 * k.float().mean() for k in step.values()]) for step in kept], dim=1)
    image = axis.imshow(shares.numpy(), cmap="cividis", vmin=0, vmax=100, aspect="auto", interpolation="nearest")
    axis.grid(False)
    axis.axvline(surgery - 0.5, color="white", linestyle="--", linewidth=1.5)
    axis.text(surgery + 0.01 * len(kept), -0.6, "surgery", fontsize="small", color=BASELINE, va="bottom")
    axis.set_yticks(range(len(shares)), list(kept[0]), fontsize="x-small")
    axis.set_xlabel("step")
    axis.set_ylabel("layer")
    figure.colorbar(image, ax=axis, label="channels kept (%)")
    return footnote(figure, note)


def newly_wrong(split: Split, classes: Sequence[str], before: Tensor, after: Tensor, note: str, *, most: int = 8) -> Figure:
    """Images that the dense network names rightly and the pruned one does not, with both answers; and how many there are.

    Args:
        split: the images.
        classes: their names.
        before: the dense network's answers, class numbers of shape [n].
        after: the pruned network's.
        note: which images they are.
        most: how many are drawn, the first ones.

    Raises:
        ValueError: there is no such image.
    """
    found = ((before == split.labels) & (after != split.labels)).nonzero().flatten()
    if not len(found):
        raise ValueError("there must be an image that is newly named wrongly, found none")
    with plt.rc_context({"figure.facecolor": "white"}):
        figure, axes = plt.subplots(1, most, FigureClass=DescribedFigure, figsize=(7.0, 1.5), layout="constrained")
    plt.close(figure)
    for axis in axes:
        axis.set_axis_off()
    for axis, i in zip(axes, found.tolist(), strict=False):
        axis.imshow(split.images[i].permute(1, 2, 0).expand(-1, -1, 3).numpy())
        axis.set_title(f"{classes[int(before[i])]}\n→ {classes[int(after[i])]}", fontsize="x-small")
    gained = int(((before != split.labels) & (after == split.labels)).sum())
    return footnote(figure, f"{note}: {len(found):,} of {len(split):,} newly wrong, {gained:,} newly right")


def epochs_by_seed(rows: Sequence[dict[str, Any]], dense: dict[str, float], note: str) -> Figure:
    """Recorded runs epoch by epoch, a panel a network, a line a seed; a star is the last word, on test images.

    Args:
        rows: recorded runs with ``net``, ``seed``, ``test`` and ``history``.
        dense: test accuracy of each network before pruning.
        note: which images it was measured on, and that it is recorded.
    """
    figure, axes = new_figure(len(dense), height=3.4)
    for axis, (net, accuracy) in zip(axes, dense.items(), strict=True):
        for i, row in enumerate(row for row in rows if row["net"] == net):
            epochs = [record["epoch"] for record in row["history"]]
            axis.plot(epochs, [100 * record["validation"] for record in row["history"]], color=PALETTE[i], label=f"seed {row['seed']}, validation")
            axis.plot(epochs[-1] + 0.6, 100 * row["test"], "*", markersize=9, color=PALETTE[i], label="its test images" if i == 0 else None)
        baseline(axis, 100 * accuracy, "dense, test images")
        axis.set_title(net, fontsize="small")
        axis.set_xlabel("epoch")
    axes[0].set_ylabel("accuracy (%)")
    axes[0].legend(fontsize="x-small", loc="lower right")
    return footnote(figure, note)


# Chapter 6


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


# Chapter 7


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


# Chapters 8 and 11


def front(rows: Sequence[dict[str, Any]], names: Sequence[str], dense: float, note: str) -> Figure:
    """Accuracy over size: for each method a line from rate to rate, through the means over its seeds.

    Args:
        rows: recorded runs, each with ``achieved`` and ``test``.
        names: for each row the method; rows of one method and rate are its seeds.
        dense: test accuracy of the network before pruning.
        note: which images it was measured on, and that it is recorded.
    """
    figure, (axis,) = new_figure(height=4.0)
    for i, kind in enumerate(dict.fromkeys(names)):
        chosen = [row for row, name in zip(rows, names, strict=True) if name == kind]
        points = []
        for rate in sorted({row["rate"] for row in chosen}):
            runs = torch.tensor([[100 * (1 - row["achieved"]), 100 * row["test"]] for row in chosen if row["rate"] == rate])
            points.append((*runs.mean(0).tolist(), float(runs[:, 1].std(correction=min(1, len(runs) - 1)))))
        left, test, spread = zip(*points, strict=True)
        axis.errorbar(left, test, yerr=spread, marker=MARKERS[i % len(MARKERS)], markersize=5, color=PALETTE[i % len(PALETTE)], capsize=3, label=kind)
    baseline(axis, 100 * dense, "dense")
    axis.set_xlabel("parameters left (%)")
    axis.set_ylabel("test accuracy (%)")
    figure.legend(*axis.get_legend_handles_labels(), fontsize="x-small", loc="outside right center")
    return footnote(figure, note)


def effects(found: dict[str, dict[str, tuple[float, float]]], chance: float | dict[str, float], note: str) -> Figure:
    """What each change does to the accuracy, in points, with its standard error; a panel a rate.

    Args:
        found: name of a panel → name of a change → difference and standard error, in percentage points.
        chance: how far the best of as many changes without any effect would come, in points, for all panels or for each; 0 draws no band.
        note: which images it was measured on, and that it is recorded.
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
        baseline(axis, 0, "all defaults", vertical=True)
        axis.set_yticks(range(len(changes)), changes if axis is axes[0] else [""] * len(changes), fontsize="small")
        axis.set_ylim(len(changes) - 0.5, -0.5)
        axis.set_title(title, fontsize="small")
        axis.set_xlabel("difference (points)")
    figure.legend(*axes[0].get_legend_handles_labels(), fontsize="x-small", ncols=2, loc="outside upper right")
    return footnote(figure, note)


# Chapter 9: for which task


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


# What it costs


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


def time_parts(parts: dict[str, dict[str, float]], note: str) -> Figure:
    """Where the time of a training step goes: a stacked bar for each kind of step.

    Args:
        parts: kind of step → part of it → milliseconds; the first kind is the baseline.
        note: what it was measured on.
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
    axis.set_xlabel("processor time of a step (ms)")
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
