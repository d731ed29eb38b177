"""What a figure shows, in words: the alternative text that a screen reader reads in a picture's place.

It is read off the figure itself (titles, labels, where each line starts and ends, the note below), so
it cannot disagree with the picture. Jupyter stores it beside the picture, and the book's pages show it.
"""

from __future__ import annotations

from collections import Counter
from typing import Any

import numpy as np
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.collections import PathCollection
from matplotlib.container import BarContainer
from matplotlib.figure import Figure

__all__ = ["DescribedFigure", "describe"]


class DescribedFigure(Figure):
    """A matplotlib figure that hands its description to a notebook along with its picture."""

    def _repr_mimebundle_(self, include: Any = None, exclude: Any = None) -> tuple[dict[str, Any], dict[str, Any]]:
        """No data, which is matplotlib's part, but metadata: the picture's alternative text."""
        return {}, {"image/png": {"alt": describe(self)}}


def describe(figure: Figure) -> str:
    """The alternative text of a figure: a sentence for each panel, and the note under it.

    Args:
        figure: any matplotlib figure.

    >>> figure = Figure()
    >>> axes = figure.subplots()
    >>> _ = axes.plot([0, 1, 2], [80, 70, 10], label="random")
    >>> _ = axes.set(xlabel="channels closed (%)", ylabel="accuracy (%)")
    >>> describe(figure)
    'Chart of accuracy (%) against channels closed (%): random from 80 to 10.'
    """
    bars = [axes for axes in figure.axes if axes.get_label() == "<colorbar>"]
    colours = iter([_words(bar.get_ylabel()) for bar in bars])
    panels = [axes for axes in figure.axes if axes not in bars]
    parts = [_panel(axes, next(colours, "values") if axes.images else "") for axes in panels if axes.axison]
    pictures = [_words(axes.get_title()) for axes in panels if not axes.axison]
    if pictures:
        count = "A picture" if len(pictures) == 1 else f"{len(pictures)} pictures"
        parts.insert(0, ": ".join([count, *([", ".join(pictures)] if any(pictures) else [])]))
    if len(parts) > 1:
        parts = [f"Panel {i}: {part}" for i, part in enumerate(parts, 1)]
    return " ".join(f"{part.rstrip('.')}." for part in [*parts, _words(figure.get_supxlabel())] if part)


def _panel(axes: Axes, colour: str) -> str:
    """What against what, and what is drawn."""
    across, up, title = (_words(label) for label in (axes.get_xlabel(), axes.get_ylabel(), axes.get_title()))
    kind = f"Heat map of {colour}, {up} by {across}" if colour else f"Chart of {up} against {across}" if up else f"Chart against {across}"
    drawn = "; ".join([*_lines(axes), *_bars(axes), *_points(axes)])
    return kind + (f" ({title})" if title else "") + (f": {drawn}" if drawn else "")


def _lines(axes: Axes) -> list[str]:
    """Each named line by where it starts and ends, or where it stands."""
    found = []
    for line in axes.lines:
        across, up = (np.asarray(values, dtype=float) for values in line.get_data(orig=False))
        if _name(line) and len(up):
            values = across if len(up) > 1 and np.ptp(across) == 0 else up  # a line that stands upright is one place across
            at = f"at {values[0]:.3g}" if (values == values[0]).all() else f"from {values[0]:.3g} to {values[-1]:.3g}"
            found.append(f"{_name(line)} {at}")
    return found


def _bars(axes: Axes) -> list[str]:
    """Each set of bars by its shortest and longest."""
    found = []
    for bars in axes.containers:
        if isinstance(bars, BarContainer) and bars.patches:
            sizes = np.asarray(bars.datavalues, dtype=float)
            found.append(f"{_name(bars) or 'bars'} between {sizes.min():.3g} and {sizes.max():.3g}")
    return found


def _points(axes: Axes) -> list[str]:
    """Clouds of points, those of one name together, by how many there are."""
    counts: Counter[str] = Counter()
    for cloud in axes.collections:
        if isinstance(cloud, PathCollection):
            counts[_name(cloud)] += len(np.asarray(cloud.get_offsets()))
    return [f"{name}, {count} points" if name else f"{count} points" for name, count in counts.items()]


def _name(drawn: Artist | BarContainer) -> str:
    """What the legend calls it; names that begin with an underscore are matplotlib's own."""
    label = str(drawn.get_label())
    return "" if label.startswith("_") else _words(label)


def _words(label: str) -> str:
    """A label on one line, without the marks of mathematics."""
    return " ".join(label.replace("$", "").replace("\\", "").split())
