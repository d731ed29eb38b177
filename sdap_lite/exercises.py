"""Exercises that answer: passed, or what is wrong, and a hint at the second failure.

The chapters end with them. What is right, and which mistakes are known, stands in ``teaching/answers``, a module a chapter.

    sdap.exercises.check("2.1", gate_gradient)
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from typing import Any

import torch

from .teaching import answers as _answers  # noqa: F401 - enters the chapters' exercises
from .teaching import assignment as _assignment  # noqa: F401 - enters its tasks among them
from .teaching.comparing import EXERCISES

__all__ = ["Feedback", "check", "mark"]

_failures: Counter[str] = Counter()


@dataclass(frozen=True)
class Feedback:
    """What a notebook shows below the cell; true if the answer is right.

    Attributes:
        number: the exercise's, such as ``"2.1"``.
        problem: what is wrong, or None.
        hint: what helps, at the second failure.
    """

    number: str
    problem: str | None = None
    hint: str | None = None

    def __bool__(self) -> bool:
        return self.problem is None

    def __repr__(self) -> str:
        if self.problem is None:
            return f"{self.number} passed"
        return f"{self.number} not yet: {self.problem}" + (f"\nHint: {self.hint}" if self.hint else "")


def check(number: str, answer: Any) -> Feedback:
    """Says whether an answer is right, and if not, what is wrong with it.

    Args:
        number: of the exercise: chapter, dot, exercise.
        answer: what the exercise asks for, a number, a function, a class, a network.

    Returns:
        The feedback; from the second failure in a row on with a hint.

    Raises:
        ValueError: there is no such exercise.
        NotImplementedError: there is no answer yet.

    >>> check("3.1", 0.75)
    3.1 not yet: this is the rate of the channels: a layer's parameters are a product of two widths
    >>> check("3.1", 0.9375)
    3.1 passed
    """
    problem = mark(number, answer)
    _failures[number] = 0 if problem is None else _failures[number] + 1
    return Feedback(number, problem, EXERCISES[number].hint if _failures[number] > 1 else None)


def mark(number: str, answer: Any) -> str | None:
    """What is wrong with an answer, or None: :func:`check` without its memory. Same arguments and errors."""
    if number not in EXERCISES:
        raise ValueError(f"number must be one of {', '.join(EXERCISES)}, got {number!r}")
    if answer is ...:
        raise NotImplementedError(f"exercise {number} has no answer yet: put it in place of the three dots")
    try:
        with torch.random.fork_rng(devices=[]), torch.enable_grad():
            torch.manual_seed(0)
            return EXERCISES[number].check(answer)
    except NotImplementedError:  # a stub that is still to be filled
        raise
    except Exception as error:  # whatever a reader's code may raise
        return f"your answer raises {type(error).__name__}: {error}"
