"""The book's figures: each a function from data to a matplotlib figure.

White paper, so that a figure reads the same in light and dark mode; seaborn's colour-blind-safe
palette, and markers beside colours; labelled axes with units, and the baseline drawn.
"""

from __future__ import annotations

from collections.abc import Sequence

import matplotlib.pyplot as plt
import seaborn as sns
from matplotlib.axes import Axes
from matplotlib.figure import Figure

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
        figure, axes = plt.subplots(1, columns, figsize=(width, height), layout="constrained", squeeze=False)
    plt.close(figure)
    return figure, list(axes[0])


def baseline(axes: Axes, value: float, label: str, *, vertical: bool = False) -> None:
    """A dashed grey line at the value that everything is held against."""
    draw = axes.axvline if vertical else axes.axhline
    draw(value, color=BASELINE, linestyle="--", linewidth=1.2, label=label)
