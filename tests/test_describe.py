"""A figure's alternative text: read off the figure, and taken along by a notebook."""

from __future__ import annotations

import pytest
from IPython.core.formatters import DisplayFormatter
from matplotlib.figure import Figure
from test_plots import FIGURES, NOTE, examples

from sdap_lite import plots
from sdap_lite.plots.describe import DescribedFigure, describe


@pytest.mark.parametrize("name", list(FIGURES))
def test_every_figure_of_the_book_describes_itself(name: str) -> None:
    figure = examples()[name]()
    assert isinstance(figure, DescribedFigure)
    text = describe(figure)
    assert text.endswith(".")
    assert not set(text) & set("$\\\n")
    assert (NOTE in text) == (NOTE in figure.get_supxlabel())
    for axes in figure.axes:
        if axes.axison and axes.get_label() != "<colorbar>":
            assert " ".join(axes.get_xlabel().split()) in text


def test_lines_bars_and_points_are_told_by_their_numbers() -> None:
    figure = Figure()
    axes = figure.subplots()
    axes.plot([0, 1, 2], [80.0, 70.0, 10.5], label="random")
    axes.plot([0, 1], [3, 4])  # has no name in the legend
    axes.axhline(85, label="dense")
    axes.axvline(0.5, label="surgery")
    axes.bar([1, 2], [5, 7], label="kept")
    axes.scatter([1, 2, 3], [1, 2, 3])
    axes.set(xlabel="step", ylabel="accuracy\n(%)", title="$T^2$")
    assert describe(figure) == "Chart of accuracy (%) against step (T^2): random from 80 to 10.5; dense at 85; surgery at 0.5; kept between 5 and 7; 3 points."


def test_panels_are_counted_and_a_heat_map_says_what_its_colours_are() -> None:
    figure, axes = plots.new_figure(2)
    image = axes[0].imshow([[0, 1], [1, 0]])
    figure.colorbar(image, ax=axes[0], label="kept (%)")
    axes[0].set(xlabel="step", ylabel="layer")
    axes[1].set(xlabel="epoch")
    plots.footnote(figure, "measured live")
    assert describe(figure) == "Panel 1: Heat map of kept (%), layer by step. Panel 2: Chart against epoch. measured live."


@pytest.mark.parametrize(("titles", "text"), [(["cat"], "A picture: cat."), (["cat", "dog"], "2 pictures: cat, dog."), (["", ""], "2 pictures.")])
def test_pictures_are_told_by_their_titles(titles: list[str], text: str) -> None:
    figure = Figure()
    for axes, title in zip(figure.subplots(1, len(titles), squeeze=False)[0], titles, strict=True):
        axes.set_axis_off()
        axes.set_title(title)
    assert describe(figure) == text


def test_a_notebook_takes_the_description_along() -> None:
    figure, (axes,) = plots.new_figure()
    axes.plot([1, 2], [3, 4], label="line")
    axes.set(xlabel="x", ylabel="y")
    display = DisplayFormatter()
    display.formatters["image/png"].for_type(Figure, lambda figure: "a picture")  # as %matplotlib inline does
    data, metadata = display.format(figure)
    assert data["image/png"] == "a picture"
    assert metadata["image/png"] == {"alt": describe(figure)}
