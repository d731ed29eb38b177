"""What the book's figures have in common: paper, colours, the dashed baseline, the line on what was measured."""

from __future__ import annotations

from collections.abc import Sequence

import matplotlib.pyplot as plt
import seaborn as sns
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from .describe import DescribedFigure

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
