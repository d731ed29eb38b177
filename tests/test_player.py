"""A film in one piece of HTML: all frames inside, no other host, words for a screen reader."""

from __future__ import annotations

import re
from typing import Any

import pytest
import torch

from sdap_lite import plots
from sdap_lite.plots.player import SYMBOLS, play, watch_gates

NOTE = "measured on pictures made by the tests"


def log(steps: int = 12) -> list[dict[str, Any]]:
    """One gate of each layer closes at every step."""
    return [{"removed": i / steps, "kept": {"conv<1>": torch.arange(4) > i, "conv2": torch.arange(16) > i}} for i in range(steps)]


@pytest.fixture(scope="module")
def film() -> str:
    return str(watch_gates(log(), 8, NOTE, frames=5).data)


def test_every_frame_is_inside_and_no_host_is_asked(film: str) -> None:
    assert len(re.findall(r'frames\[\d+\] = "data:image/png;base64,', film)) == 5
    assert "http" not in film
    assert "<link" not in film
    assert len(film) < 400_000


def test_buttons_have_signs_instead_of_a_font(film: str) -> None:
    assert "fa-" not in film
    buttons = re.findall(r"<button[^>]*aria-label[^>]*>\s*<span aria-hidden=\"true\">(.)</span></button>", film)
    assert buttons == list(SYMBOLS.values())


def test_a_screen_reader_is_told_what_the_film_shows(film: str) -> None:
    (alt,) = re.findall(r'<img alt="([^"]*)"', film)
    assert alt.startswith("A film of 5 frames: a row for each of 2 layers")
    assert "step 0 to step 8" in alt
    assert "conv&lt;1&gt; loses most, 100% of its channels" in alt
    assert NOTE in alt
    assert 'type="range" aria-label="Frame"' in film


def test_frames_are_spread_over_the_run_up_to_surgery() -> None:
    seen = []
    figure, (axes,) = plots.new_figure()
    play(figure, lambda frame: seen.append(frame) or axes.set_title(str(frame)), 3, "three frames")
    assert seen == [0, 0, 1, 2]  # the first one is drawn for the layout, too
    assert len(re.findall(r"frames\[\d+\] =", str(watch_gates(log(), 3, NOTE).data))) == 4  # no more frames than steps


@pytest.mark.parametrize("surgery", [0, 12, -1])
def test_surgery_must_lie_within_the_log(surgery: int) -> None:
    with pytest.raises(ValueError, match=rf"surgery must be a step after the first and within the log, got {surgery} of 12"):
        watch_gates(log(), surgery, NOTE)


def test_a_film_has_frames() -> None:
    with pytest.raises(ValueError, match="frames must be at least 1, got 0"):
        play(plots.new_figure()[0], lambda frame: None, 0, "")
