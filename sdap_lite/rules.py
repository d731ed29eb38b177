"""How a gate's score learns from its gradient: four rules, each a small object that takes another's place. Chapter 2."""

from __future__ import annotations

from typing import Any, Protocol

import torch
from torch import Tensor

__all__ = ["RULES", "Adam", "Frozen", "RootMeanSquare", "Rule", "StraightThrough"]


class Rule(Protocol):
    """How a score follows from its gate's gradient; small, so that chapters and rivals can swap it."""

    def __call__(self, scores: Tensor, gradient: Tensor) -> Tensor:
        """The new scores, from the old ones and the gradient of this step; both of shape [channels]."""
        ...

    def keep(self, channels: Tensor) -> None:
        """Forgets the channels that are cut out; ``channels`` is bool, of shape [channels]."""
        ...

    def state_dict(self) -> dict[str, Any]:
        """What the next call depends on."""
        ...

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """The inverse."""
        ...


class Frozen:
    """Scores stay as they start: the rival that never learns."""

    def __call__(self, scores: Tensor, gradient: Tensor) -> Tensor:
        return scores

    def keep(self, channels: Tensor) -> None:
        pass

    def state_dict(self) -> dict[str, Any]:
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        pass


class StraightThrough(Frozen):
    """Gradient descent on the scores, as the straight-through estimator has it.

    Near a minimum this gradient has mean zero: what it sums up is mostly noise (chapter 2).
    """

    def __init__(self, lr: float = 1.0) -> None:
        self.lr = lr

    def __call__(self, scores: Tensor, gradient: Tensor) -> Tensor:
        return scores - self.lr * gradient


class RootMeanSquare:
    r"""The root mean square of the gate's gradient: the root of its empirical Fisher information.

    :math:`s_c = \sqrt{\mathrm{E}[g_c^2]}`, a running mean. Where the signed gradient averages to
    zero its square does not: it says how much the loss *would* move (Theis et al. 2018).
    Scores that are not zero when it begins count as the mean so far, scaled to the gradient's size.

    Args:
        decay: of the running mean, a step; 0.99 looks back about a hundred steps.
    """

    def __init__(self, decay: float = 0.99) -> None:
        self.decay = decay
        self.mean: Tensor | None = None
        self.steps = 0
        self.started = False  # from scores that were there

    def __call__(self, scores: Tensor, gradient: Tensor) -> Tensor:
        square = gradient.float().square()
        if self.mean is None and bool(scores.any()):
            self.started, start = True, scores.float().square()
            self.mean = start * (square.mean() / start.mean())
        self.mean = square * (1 - self.decay) if self.mean is None else self.mean.to(square) * self.decay + square * (1 - self.decay)
        self.steps += 1
        seen = 1.0 if self.started else 1 - self.decay**self.steps
        return (self.mean / seen).sqrt().to(scores)

    def keep(self, channels: Tensor) -> None:
        if self.mean is not None:
            self.mean = self.mean[channels.to(self.mean.device)]

    def state_dict(self) -> dict[str, Any]:
        return {"mean": self.mean, "steps": self.steps, "started": self.started}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.mean, self.steps, self.started = state["mean"], state["steps"], state.get("started", False)


class Adam(Frozen):
    r"""Adam on the scores (Kingma & Ba 2015): each step goes by the gradient's mean over its root mean square.

    That ratio has no unit: a channel whose gradient is tiny, but always of one sign, moves as far as one that
    decides the loss. Scores of different layers are then no longer comparable in loss (chapter 11).
    """

    def __init__(self, lr: float = 0.05, betas: tuple[float, float] = (0.9, 0.999), eps: float = 1e-8) -> None:
        self.lr, self.betas, self.eps = lr, betas, eps
        self.moments: tuple[Tensor, Tensor] | None = None
        self.steps = 0

    def __call__(self, scores: Tensor, gradient: Tensor) -> Tensor:
        gradient, (mean, square) = gradient.float(), self.moments or (torch.zeros_like(gradient, dtype=torch.float32),) * 2
        first, second = self.betas
        mean, square = first * mean.to(gradient) + (1 - first) * gradient, second * square.to(gradient) + (1 - second) * gradient.square()
        self.moments, self.steps = (mean, square), self.steps + 1
        step = mean / (1 - first**self.steps) / ((square / (1 - second**self.steps)).sqrt() + self.eps)
        return scores - self.lr * step.to(scores)

    def keep(self, channels: Tensor) -> None:
        if self.moments is not None:
            mean, square = (moment[channels.to(moment.device)] for moment in self.moments)
            self.moments = mean, square

    def state_dict(self) -> dict[str, Any]:
        return {"moments": self.moments, "steps": self.steps}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.moments, self.steps = state["moments"], state["steps"]


#: The gates' rules by the names that ``Gates`` and ``prune`` take.
RULES: dict[str, type] = {"rms": RootMeanSquare, "straight-through": StraightThrough, "adam": Adam, "frozen": Frozen}
