"""How an answer is told right from wrong: the register of the exercises, and numbers compared with what typical mistakes give.

:mod:`sdap_lite.teaching.answers` and the assignment enter their exercises here.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

__all__ = ["EXERCISES", "Exercise", "compare", "exercise", "kind"]

Check = Callable[[Any], str | None]


@dataclass(frozen=True)
class Exercise:
    """What tells right from wrong, what helps at the second failure, and points if it is marked."""

    check: Check
    hint: str
    points: int = 0


EXERCISES: dict[str, Exercise] = {}


def exercise(number: str, hint: str, *, points: int = 0) -> Callable[[Check], Check]:
    """Enters the check below it as that of the exercise ``number``."""

    def enter(function: Check) -> Check:
        EXERCISES[number] = Exercise(function, hint, points)
        return function

    return enter


def compare(got: Any, right: Any, mistakes: Mapping[str, Any] | None = None, *, tolerance: float = 1e-5) -> str | None:
    """None for the right numbers; else the mistake that leads to those that came, or how they differ.

    Args:
        got: a number, a tensor, or a list of numbers.
        right: the same.
        mistakes: for each sentence the numbers that one gets by the mistake it names.
        tolerance: relative, to the largest number.

    >>> compare(4, 2.0, {"this is the square": 4.0})
    'this is the square'
    >>> compare(-2, 2.0)
    'the sign is wrong: all else is right'
    """
    found, wanted = _numbers(got), _numbers(right)
    if found is None or wanted is None:
        return f"the answer must be a number or a tensor, got {kind(got)}"
    if _close(found, wanted, tolerance):
        return None
    for sentence, wrong in (mistakes or {}).items():
        if _close(found, _numbers(wrong), tolerance):
            return sentence
    return _difference(found, wanted, tolerance)


def _difference(found: Tensor, wanted: Tensor, tolerance: float) -> str:
    if found.shape != wanted.shape:
        return f"the shape must be {list(wanted.shape)}, got {list(found.shape)}"
    if not bool(found.isfinite().all()):
        return "the answer must be finite, got NaN or infinity"
    if _close(found, -wanted, tolerance):
        return "the sign is wrong: all else is right"
    factor = float((found * wanted).sum() / wanted.square().sum().clamp(min=1e-30))
    if found.ndim and abs(factor) > 1e-6 and _close(found, factor * wanted, tolerance):
        return f"all numbers are {factor:.3g} times what they must be"
    return f"the answer is off by {float((found - wanted).abs().max()):.3g}" + (" in the worst place" if found.ndim else "")


def _numbers(value: Any) -> Tensor | None:
    """As float64 on the CPU; None for what is no number, tensor or list of these."""
    if isinstance(value, Tensor):
        return value.detach().cpu().double()
    if isinstance(value, (list, tuple)):
        parts = [_numbers(v) for v in value]
        return None if not parts or any(p is None or p.ndim for p in parts) else torch.stack([p for p in parts if p is not None])
    try:
        return torch.tensor(float(value), dtype=torch.float64)
    except (TypeError, ValueError, OverflowError):
        return None


def _close(a: Tensor, b: Tensor | None, tolerance: float) -> bool:
    if b is None or a.shape != b.shape:
        return False
    return not a.numel() or float((a - b).abs().max()) <= tolerance * max(1e-12, float(b.abs().max()))


def kind(value: Any) -> str:
    """What came instead of an answer, in words.

    >>> kind(dict)
    'a class'
    >>> kind([1])
    'a list'
    """
    return f"a {'class' if isinstance(value, type) else type(value).__name__}"
