"""A figure that moves, as one piece of HTML: frames, buttons and script lie in the page. Chapter 5.

Matplotlib makes the player; what it would ask another host for (an icon font), and what a screen
reader misses (the picture's text, the slider's name), is put right here.
"""

from __future__ import annotations

import html
import re
from collections.abc import Callable, Sequence
from typing import Any

import torch
from IPython.display import HTML
from matplotlib.animation import FuncAnimation
from matplotlib.figure import Figure
from torch import Tensor

from .style import footnote, new_figure

__all__ = ["play", "watch_gates"]

# The icons of the font that is left out, as characters that every font has
SYMBOLS = {
    "fa-minus": "−",
    "fa-fast-backward": "⇤",
    "fa-step-backward": "←",
    "fa-play fa-flip-horizontal": "◂",
    "fa-pause": "‖",
    "fa-play": "▸",
    "fa-step-forward": "→",
    "fa-fast-forward": "⇥",
    "fa-plus": "+",
}


def play(figure: Figure, draw: Callable[[int], Any], frames: int, text: str, *, seconds: float = 6.0) -> HTML:
    """A player of a figure's frames, with no file and no host beside it.

    Args:
        figure: drawn once; its layout stays as it is then.
        draw: changes the figure to a frame, counted from 0.
        frames: how many.
        text: what the film shows, in words.
        seconds: how long it plays.

    Returns:
        What a notebook shows as the value of its cell.

    Raises:
        ValueError: there is no frame.
    """
    if frames < 1:
        raise ValueError(f"frames must be at least 1, got {frames}")
    draw(0)
    figure.draw_without_rendering()
    figure.set_layout_engine("none")  # computed once, not for every frame
    film = FuncAnimation(figure, draw, frames=frames, init_func=lambda: None, interval=1000 * seconds / frames, cache_frame_data=False)
    page = re.sub(r"<link[^>]*>", "", film.to_jshtml(default_mode="once"), count=1)
    for icon, symbol in SYMBOLS.items():
        page = page.replace(f'<i class="fa {icon}"></i>', f'<span aria-hidden="true">{symbol}</span>')
    text = html.escape(text)
    page = page.replace("<img id=", f'<img alt="{text}" id=', 1).replace('type="range"', 'type="range" aria-label="Frame"', 1)
    return HTML(page)  # type: ignore[no-untyped-call]


def watch_gates(log: Sequence[dict[str, Any]], surgery: int, note: str, *, frames: int = 20) -> HTML:
    """Gates opening and closing until surgery: a row for each layer, a mark for each channel, dark while it is open.

    Args:
        log: for each step ``kept``, the open channels of each group (bool), and ``removed``, the share of the parameters (0 to 1).
        surgery: the step at which the closed channels are cut out; the film ends there.
        note: which images it was measured on.
        frames: at most so many steps are shown, the first and the last one among them.

    Raises:
        ValueError: surgery is not a step of the log.
    """
    if not 0 < surgery < len(log):
        raise ValueError(f"surgery must be a step after the first and within the log, got {surgery} of {len(log)}")
    steps = torch.linspace(0, surgery, min(frames, surgery + 1)).round().long().tolist()
    names = list(log[0]["kept"])
    figure, (axes,) = new_figure(height=3.6)
    figure.set_dpi(80)
    image = axes.imshow(_rows(log[0]["kept"]), cmap="cividis_r", vmin=0, vmax=1, aspect="auto", interpolation="nearest")
    axes.grid(False)
    axes.set_yticks(range(len(names)), names, fontsize="x-small")
    axes.set(xlabel="channel of the layer", ylabel="layer")
    footnote(figure, note)

    def draw(frame: int) -> None:
        step = log[steps[frame]]
        image.set_data(_rows(step["kept"]))
        axes.set_title(f"step {steps[frame]}: {step['removed']:.0%} of the parameters gone", fontsize="small")

    shut = {name: 1 - float(open_.float().mean()) for name, open_ in log[surgery]["kept"].items()}
    most = max(shut, key=shut.__getitem__)
    text = f"A film of {len(steps)} frames: a row for each of {len(names)} layers, a mark for each channel, dark while its gate is open. "
    text += f"From step 0 to step {surgery} more and more marks turn light; {most} loses most, {shut[most]:.0%} of its channels. {note}."
    return play(figure, draw, len(steps), text)


def _rows(kept: dict[str, Tensor]) -> Any:
    """Open channels as ones, closed ones as zeros; a narrow layer's row ends in blanks: shape [groups, channels of the widest]."""
    rows = [part.float() for part in kept.values()]
    wide = max(len(row) for row in rows)
    return torch.stack([torch.nn.functional.pad(row, (0, wide - len(row)), value=torch.nan) for row in rows]).numpy()
