"""Every figure of the book: drawn without a warning, its axes labelled, shown once."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator
from typing import Any

import matplotlib as mpl
import matplotlib.pyplot as plt
import pytest
import torch
from matplotlib.axes import Axes
from matplotlib.collections import PathCollection
from matplotlib.figure import Figure
from nets import EXAMPLE, build, pictures

from sdap_lite import plots, report, trace
from sdap_lite.measure import Latency

BUILDERS = {"new_figure", "footnote"}  # what figures are made of
FIGURES = {
    name: function
    for name, function in vars(plots).items()
    if inspect.isfunction(function) and function.__module__.startswith(plots.__name__) and not name.startswith("_") and name not in BUILDERS | {"baseline"}
}
NOTE = "measured on pictures made by the tests"


def examples() -> dict[str, Callable[[], Figure]]:
    """For each figure a call with small numbers; a new figure needs a line here."""
    graph = trace(build("resnet-pad"), EXAMPLE)
    values = {name: torch.rand(len(group)) for name, group in graph.prunable.items()}
    widths = report(graph, {name: v > 0.5 for name, v in values.items()}).widths
    pair = (torch.rand(9), torch.rand(9))
    rows = [{"rate": rate, "test": 0.8 + 0.01 * seed, "rule": rule} for rate in (0.75, 0.9) for rule in ("rms", "frozen") for seed in range(2)]
    epochs = [{"epoch": 1, "validation": 0.5}, {"epoch": 2, "validation": 0.7}]
    runs = [{"net": net, "seed": seed, "test": 0.7, "history": epochs} for net in ("vgg", "resnet20") for seed in range(2)]
    return {
        "ratios": lambda: plots.ratios({"step": 0.9, "memory": 1.2}, NOTE),
        "time_parts": lambda: plots.time_parts({"plain": {"forward": 1.0, "backward": 2.0}, "gated": {"forward": 1.0, "teacher": 0.5}}, NOTE),
        "cost_growth": lambda: plots.cost_growth({"width": ([1, 2, 4], {"MACs": [1, 4, 16]}), "depth": ([1, 2], {"MACs": [1, 2]})}),
        "hours_by_devices": lambda: plots.hours_by_devices({"plain": {1: 100.0, 8: 13.0}, "pruned": {1: 90.0, 8: 12.0}}, NOTE),
        "image_grid": lambda: plots.image_grid(pictures(), columns=4),
        "layer_costs": lambda: plots.layer_costs({"a": 10, "b": 30}, {"a": 500, "b": 100}),
        "loss_increases": lambda: plots.loss_increases(values, NOTE),
        "accuracy_by_share": lambda: plots.accuracy_by_share(
            [0, 0.5, 1], {"worst first": [[0.9, 0.5, 0.1], [0.9, 0.6, 0.1]], "random": [[0.9, 0.4, 0.1]]}, 0.9, NOTE
        ),
        "redundancy": lambda: plots.redundancy(torch.corrcoef(torch.rand(6, 20)), "conv1", [6, 8], [3, 5], [6, 7], NOTE),
        "latency_by_width": lambda: plots.latency_by_width([4, 8, 16], [1.0, 2.0, 5.0], [10, 40, 160]),
        "prediction": lambda: plots.prediction({"small step": pair, "whole channel": pair}, NOTE),
        "score_pairs": lambda: plots.score_pairs({"rms": pair, "signed": pair}, "first half", "second half", NOTE),
        "effects": lambda: plots.effects({"75 %": {"a": (0.5, 0.1), "b": (-2.0, 0.3)}, "90 %": {"a": (1.5, 0.1), "b": (0.0, 0.3)}}, 1.0, NOTE),
        "recorded_rows": lambda: plots.recorded_rows(rows, [str(row["rule"]) for row in rows], 0.85, NOTE),
        "group_matrix": lambda: plots.group_matrix({"residual": graph, "plain": trace(build("vgg"), EXAMPLE)}),
        "bisection": lambda: plots.bisection([100, 200, 400, 800, 1600], 500, [2, 3]),
        "layer_widths": lambda: plots.layer_widths({"one threshold": widths, "uniform": widths}),
        "achieved_rates": lambda: plots.achieved_rates([0.5, 0.75], {"vgg": [0.001, 0.002], "resnet": [0.0, 0.003]}),
        "schedules": lambda: plots.schedules({"cubic": ([0, 0.5, 1], [0, 0.7, 0.75]), "linear": ([0, 1], [0, 0.75])}, 0.75),
        "method_picture": plots.method_picture,
        "soft_answers": lambda: plots.soft_answers(torch.zeros(3, 8, 8, dtype=torch.uint8), "abc", {1: torch.tensor([0.9, 0.06, 0.04])}, NOTE),
        "class_likeness": lambda: plots.class_likeness(torch.rand(3, 3), "abc", NOTE),
        "gradient_by_temperature": lambda: plots.gradient_by_temperature([1, 2, 4], {"times T²": [1.0, 1.1, 1.2]}, 2.0, NOTE),
        "recovery": lambda: plots.recovery([0, 10], {"labels": [[0.1, 0.5], [0.1, 0.6]]}, 0.8, NOTE),
        "run_by_step": lambda: plots.run_by_step([{"removed": i / 8, "loss": 1.0, "seconds": 0.1} for i in range(6)], 4, 0.5, NOTE),
        "kept_by_step": lambda: plots.kept_by_step([{"a": torch.rand(4) > 0.5, "b": torch.rand(8) > 0.5}] * 3, 2, NOTE),
        "newly_wrong": lambda: plots.newly_wrong(pictures().test, "abcd", pictures().test.labels, (pictures().test.labels + 1) % 4, NOTE, most=3),
        "attention": lambda: plots.attention(torch.zeros(3, 8, 8, dtype=torch.uint8), {"a": [torch.rand(4, 8, 8), torch.rand(8, 4, 4)]}, NOTE),
        "epochs_by_seed": lambda: plots.epochs_by_seed(runs, {"vgg": 0.8, "resnet20": 0.9}, NOTE),
        "cut_by_hand": lambda: plots.cut_by_hand(torch.rand(8, 3, 3, 3), torch.rand(8, 4), torch.rand(6, 8, 3, 3), 5),
        "leaks": lambda: plots.leaks({"ReLU": {"filter": torch.rand(8)}, "Sigmoid": {"filter": torch.rand(8)}}, NOTE),
        "shortcut_channels": lambda: plots.shortcut_channels({"layer2": (torch.rand(8) > 0.5, 2, 2), "layer3": (torch.rand(16) > 0.5, 4, 4)}),
        "before_and_after": lambda: plots.before_and_after({"a": (2, 8), "b": (4, 8)}, {"a": (20, 80), "b": (40, 80)}, NOTE),
        "shares_left": lambda: plots.shares_left({"small": {"MACs": 0.3, "time": 0.5}}, {"small": {"MACs": 0.0, "time": 0.1}}, NOTE),
        "drift": lambda: plots.drift({"sliced": [0.0, 1e-15], "fresh": [0.1, 0.2]}, [0.3, 0.5], NOTE),
        "channel_map": lambda: plots.channel_map(graph, {name: torch.ones(len(g), dtype=torch.bool) for name, g in graph.prunable.items()}),
        "lost_by_rate": lambda: plots.lost_by_rate([0.5, 0.9], {"2 classes": [0.1, 3.0], "10 classes": [2.0, 40.0]}, NOTE),
        "rank_and_share": lambda: plots.rank_and_share({"2 classes": [0.9, 0.3], "10 classes": [0.9, 0.5]}, [1.0, 0.4], NOTE),
        "latencies": lambda: plots.latencies({"PyTorch": {"dense": Latency(9.0, 0.5)}, "other": {"dense": Latency(4.0, 0.2), "int8": Latency(2.0, 0.1)}}, NOTE),
    }


@pytest.fixture(autouse=True)
def no_window() -> Iterator[None]:
    before = plt.get_backend()
    plt.switch_backend("agg")
    yield
    plt.close("all")
    plt.switch_backend(before)


def is_labelled(axes: Axes, figure: Figure, which: str) -> bool:
    """By a label, by categories at its ticks, or by those of the neighbour that it shares a row with."""
    axis = getattr(axes, f"{which}axis")
    words = [t.get_text() for t in axis.get_ticklabels() if t.get_text().strip()]
    categories = any(not word.replace("−", "").replace(".", "").isdigit() for word in words)
    if axis.get_label().get_text() or (categories and which == "y"):
        return True
    return which == "y" and axes is not figure.axes[0] and is_labelled(figure.axes[0], figure, which)


@pytest.mark.parametrize("name", list(FIGURES))
def test_figure_is_drawn_and_labelled(name: str) -> None:
    assert name in examples(), f"plots.{name} is new: add a call of it to examples()"
    before: dict[str, Any] = dict(mpl.rcParams)
    figure = examples()[name]()
    assert isinstance(figure, Figure)
    figure.canvas.draw()
    shown = [axes for axes in figure.axes if axes.axison]
    assert shown or name in ("attention", "image_grid", "newly_wrong"), "only images have no axes"
    for axes in shown:
        if axes.get_label() != "<colorbar>":
            assert is_labelled(axes, figure, "x"), name
            assert is_labelled(axes, figure, "y"), name
            assert axes.has_data()
    assert plt.get_fignums() == [], "a notebook shows it once, as the value of its cell"
    assert dict(mpl.rcParams) == before, "the reader's settings stay"


@pytest.mark.parametrize("name", list(FIGURES))
def test_note_stands_under_the_figure(name: str) -> None:
    if "note" in inspect.signature(FIGURES[name]).parameters and name in examples():
        assert NOTE in examples()[name]().get_supxlabel()


@pytest.mark.parametrize("name", list(FIGURES))
def test_figure_says_what_it_shows(name: str) -> None:
    assert inspect.getdoc(FIGURES[name]), name
    for parameter in inspect.signature(FIGURES[name]).parameters:
        assert f"{parameter}: " in (inspect.getdoc(FIGURES[name]) or ""), f"{name} must say what {parameter} is"


def test_figures_are_white() -> None:
    figure, axes = plots.new_figure(2)
    assert len(axes) == 2
    assert figure.get_facecolor() == (1, 1, 1, 1)


def test_baseline_is_dashed_and_named() -> None:
    _, (axes,) = plots.new_figure()
    plots.baseline(axes, 0.5, "dense")
    plots.baseline(axes, 0.5, "dense", vertical=True)
    assert [line.get_linestyle() for line in axes.lines] == ["--", "--"]
    assert {line.get_label() for line in axes.lines} == {"dense"}


def test_channel_map_shows_each_group_and_what_may_go() -> None:
    graph = trace(build("resnet-conv"), EXAMPLE)
    (axes,) = plots.channel_map(graph).axes
    assert [t.get_text() for t in axes.get_yticklabels()] == list(graph.groups)
    free, stays = ([round(bar.get_width()) for bar in container] for container in axes.containers)
    assert free == [int(graph.removable[g.start : g.stop].sum()) for g in graph.groups.values()]
    assert [a + b for a, b in zip(free, stays, strict=True)] == [len(g) for g in graph.groups.values()]
    assert any("output" in text.get_text() for text in axes.texts), "what must stay says why"
    (short,) = plots.channel_map(graph, most=2).axes
    assert len(short.get_yticklabels()) == 2
    assert "of which the first 2 are drawn" in short.get_title()


def test_newly_wrong_shows_what_was_right_before() -> None:
    split = pictures().test
    before, after = split.labels.clone(), split.labels.clone()
    before[0] += 1  # was wrong, is right
    after[2] = (after[2] + 1) % 4  # was right, is wrong
    figure = plots.newly_wrong(split, ["cat", "dog", "ship", "frog"], before, after, NOTE, most=3)
    drawn = [axes for axes in figure.axes if axes.images]
    assert [int(axes.images[0].get_array()[0, 0, 0]) for axes in drawn] == [int(split.images[2, 0, 0, 0])]
    assert f"1 of {len(split)} newly wrong, 1 newly right" in figure.get_supxlabel()
    with pytest.raises(ValueError, match="there must be an image that is newly named wrongly, found none"):
        plots.newly_wrong(split, ["cat", "dog", "ship", "frog"], before, split.labels, NOTE)


def test_attention_is_the_sum_of_squares() -> None:
    x = torch.tensor([[[1.0, 2.0]], [[3.0, 0.0]]])
    figure = plots.attention(torch.zeros(3, 8, 8, dtype=torch.uint8), {"teacher": [x], "student": [x[:1]]}, NOTE)
    drawn = [axes.images[0].get_array().tolist() for axes in figure.axes]
    assert (drawn[1], drawn[3]) == ([[10.0, 4.0]], [[1.0, 4.0]])
    assert [axes.get_title() for axes in figure.axes] == ["teacher", "2 × 1 × 2", "student", "1 × 1 × 2"]


def test_latencies_are_bars_of_their_heights_and_names() -> None:
    figure = plots.latencies({"PyTorch": {"dense": Latency(9.0, 0.5)}, "other": {"dense": Latency(4.0, 0.2), "int8": Latency(2.0, 0.1)}}, NOTE)
    assert [[patch.get_height() for patch in axes.patches] for axes in figure.axes] == [[9.0], [4.0, 2.0]]
    assert [axes.lines[-1].get_ydata()[0] for axes in figure.axes] == [9.0, 4.0], "the baseline is the first network's"
    assert {text.get_text() for text in figure.legends[0].get_texts()} == {"dense", "int8", "as dense"}


def test_a_missed_ratio_is_marked_otherwise() -> None:
    (axes,) = plots.ratios({"step": 0.9, "memory": 1.2}, NOTE).axes
    marks = [line.get_marker() for line in axes.lines if line.get_marker() != "None"]
    assert marks == ["o", "X"]


def test_time_parts_add_up() -> None:
    parts = {"plain": {"forward": 1.0, "backward": 2.0}, "gated": {"forward": 1.0, "teacher": 0.5}}
    (axes,) = plots.time_parts(parts, NOTE).axes
    assert [max(bar.get_x() + bar.get_width() for bar in bars) for bars in zip(*axes.containers, strict=True)] == [3.0, 1.5]


def test_effects_have_a_band_for_each_panel() -> None:
    found = {"75 %": {"a": (0.5, 0.1)}, "90 %": {"a": (0.5, 0.1)}}
    figure = plots.effects(found, {"75 %": 0.4, "90 %": 0.6}, NOTE)
    assert [axes.patches[0].get_width() for axes in figure.axes] == pytest.approx([0.8, 1.2])
    dots = [axes.lines[0].get_color() for axes in figure.axes]
    assert dots[0] != dots[1] == plots.BASELINE, "what lies within the band is grey"


def test_runs_far_below_are_written_at_the_edge() -> None:
    rows = [{"rate": 0.75, "test": test} for test in (0.84, 0.2)]
    (axis, *_) = plots.recorded_rows(rows, ["near", "far"], 0.85, NOTE, within=10).axes
    assert [text.get_text() for text in axis.texts] == ["◂ 20.0 %"]
    dots = [dots for dots in axis.collections if isinstance(dots, PathCollection)]
    assert [dots.get_offsets().tolist() for dots in dots] == [[[84.0, 0.0]]]


def test_a_short_run_has_whole_epochs_below_it() -> None:
    history = [{"epoch": epoch, "validation": 0.5} for epoch in range(1, 5)]
    figure = plots.epochs_by_seed([{"net": "vgg", "seed": 0, "test": 0.5, "history": history}], {"vgg": 0.6}, NOTE)
    assert all(float(tick).is_integer() for tick in figure.axes[0].get_xticks())
