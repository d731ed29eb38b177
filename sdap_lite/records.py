"""Figures measured earlier, that come with the library: the book draws them beside what it measures live. Chapter 2."""

from __future__ import annotations

from importlib import resources
from typing import TYPE_CHECKING, Any

from .checkpoint import read_sealed

if TYPE_CHECKING:
    from importlib.abc import Traversable

__all__ = ["names", "recorded"]


def recorded(name: str) -> dict[str, Any]:
    """Figures measured earlier, at a larger scale, with all that they were measured with.

    Each file ``bundled/results/<name>.json`` was written by one command, which it names.

    Raises:
        ValueError: there is no such file, or it is not as it was written.
    """
    if name not in names():
        raise ValueError(f"name must be one of {', '.join(names()) or '(nothing recorded)'}, got {name!r}")
    return read_sealed(_records().joinpath(f"{name}.json"))


def names() -> tuple[str, ...]:
    """The names of all that is :func:`recorded`.

    >>> "rivals-vgg" in names()
    True
    """
    folder = _records()
    return tuple(sorted(p.name.removesuffix(".json") for p in folder.iterdir() if p.name.endswith(".json"))) if folder.is_dir() else ()


def _records() -> Traversable:
    return resources.files("sdap_lite").joinpath("bundled/results")
