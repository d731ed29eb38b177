"""Figures of chapters 4 and 5: soft answers, and a run step by step."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import matplotlib.pyplot as plt
import torch
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from torch import Tensor

from .describe import DescribedFigure
from .style import BASELINE, MARKERS, PALETTE, baseline, footnote, new_figure

if TYPE_CHECKING:
    from ..images import Split


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
        sizes: name → norm of the gradient with respect to the student's logits at each temperature.
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
    axis.set_ylabel("norm of the gradient with respect to the logits")
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
        axis.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes[0].set_ylabel("accuracy (%)")
    axes[0].legend(fontsize="x-small", loc="lower right")
    return footnote(figure, note)
