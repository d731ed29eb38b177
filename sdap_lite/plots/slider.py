"""A recorded sweep to play with: one slider, the overall rate, redraws what became of the network.

The page holds all of it, figures and script; no server and no other host takes part.
"""

from __future__ import annotations

import json
from importlib import resources
from typing import Any

from IPython.display import HTML

__all__ = ["sweep_slider"]


def sweep_slider(recorded: dict[str, Any]) -> HTML:
    """A slider over the networks of a sweep, from the dense one on.

    Args:
        recorded: ``recorded("sweep")`` of :mod:`sdap_lite.records`: its card names the ``classes``; each row has ``rate`` and ``test`` (0 to 1),
            ``params``, ``macs``, ``widths`` (channels by layer) and ``confusion`` (images by class and answer).

    Returns:
        What a notebook shows as the value of its cell.

    Raises:
        ValueError: the first row is not the dense network, or the rates do not rise.
    """
    rates = [row["rate"] for row in recorded["rows"]]
    if not rates or rates[0] != 0 or rates != sorted(rates):
        raise ValueError(f"rates must rise from 0, the dense network, got {rates}")
    data = json.dumps(recorded).replace("</", "<\\/")  # must not end the page's script element
    template = resources.files("sdap_lite").joinpath("bundled/slider.html").read_text(encoding="utf-8")
    return HTML(template.replace("{{data}}", data))  # type: ignore[no-untyped-call]
