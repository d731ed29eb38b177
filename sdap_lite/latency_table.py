"""A budget in milliseconds: how long each layer takes at which width, looked up. Chapter 7.

MACs are counted, latency is measured: each layer was timed at a few input and output widths
(:func:`sdap_lite.time_layers`), and what lies between is interpolated. Here is the table alone, which
times nothing: the same table always gives the same budget.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

__all__ = ["LatencyTable", "monotone"]


@dataclass(frozen=True, eq=False)
class LatencyTable:
    """How long each layer takes, in nanoseconds.

    Attributes:
        layers: their names.
        inputs: int64 of shape [layers, points], the input widths that were timed, rising.
        outputs: the same for the output widths.
        times: float64 of shape [layers, points, points], by input and output width; it never falls along a width.
        rest: all else that one forward pass takes, whatever the widths.
    """

    layers: tuple[str, ...]
    inputs: Tensor
    outputs: Tensor
    times: Tensor
    rest: int = 0

    def at(self, inputs: Tensor, outputs: Tensor) -> Tensor:
        """What each layer takes at the given widths, interpolated: float64 of shape [layers].

        Args:
            inputs: how many input channels each layer has, shape [layers].
            outputs: how many output channels.
        """
        row = torch.arange(len(self.layers))
        i, high = _place(self.inputs, inputs)
        j, right = _place(self.outputs, outputs)
        above = self.times[row, i, j] * (1 - right) + self.times[row, i, j + 1] * right
        below = self.times[row, i + 1, j] * (1 - right) + self.times[row, i + 1, j + 1] * right
        return above * (1 - high) + below * high

    def state_dict(self) -> dict[str, Any]:
        """The table as plain names and numbers, for a checkpoint."""
        tensors = {name: getattr(self, name).tolist() for name in ("inputs", "outputs", "times")}
        return {"layers": list(self.layers), **tensors, "rest": self.rest}

    @classmethod
    def from_state_dict(cls, state: dict[str, Any]) -> LatencyTable:
        """The inverse, bit for bit."""
        inputs, outputs = (torch.tensor(state[name], dtype=torch.int64) for name in ("inputs", "outputs"))
        return cls(tuple(state["layers"]), inputs, outputs, torch.tensor(state["times"], dtype=torch.float64), state["rest"])


def monotone(times: Tensor) -> Tensor:
    """A table that never falls along its last two axes, as near to the measured one as is simple.

    A wider layer takes no less time, but a measurement may say so: by noise, or because a width
    happens to suit the hardware. The bisection of :func:`sdap_lite.threshold` needs costs that only
    rise, so this is the middle between the lowest such table above the measured and the highest below.

    Args:
        times: shape [..., inputs, outputs].

    >>> monotone(torch.tensor([[1.0, 3.0, 2.0]])).tolist()
    [[1.0, 2.5, 2.5]]
    """
    above = times.cummax(-1).values.cummax(-2).values
    below = -(-times).flip(-1, -2).cummax(-1).values.cummax(-2).values.flip(-1, -2)
    return (above + below) / 2


def _place(grid: Tensor, widths: Tensor) -> tuple[Tensor, Tensor]:
    """Between which points of its row each width lies: the lower one's place, and how far it is to the next, 0 to 1."""
    widths = widths.to(grid.dtype)[:, None]
    place = (torch.searchsorted(grid, widths, right=True) - 1).clamp(0, grid.shape[1] - 2)
    low, high = grid.gather(1, place), grid.gather(1, place + 1)
    share = (widths - low).double() / (high - low).clamp(min=1)
    return place[:, 0], share[:, 0].clamp(0, 1)
