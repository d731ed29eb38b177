"""Checkpoints: whole or not at all, and read without running what they hold. Chapter 5."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

__all__ = ["read_checkpoint", "write_atomically", "write_checkpoint"]

NAME = "checkpoint.pt"


def write_atomically(path: Path, write: Callable[[str], Any]) -> None:
    """Has ``write`` fill a temporary file beside ``path`` and moves it there: a reader finds the old or the new."""
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", suffix=".tmp")
    os.close(handle)
    try:
        write(temporary)
        with open(temporary, "rb+") as file:
            os.fsync(file.fileno())
        os.chmod(temporary, 0o644)
        os.replace(temporary, path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise


def write_checkpoint(folder: Path, content: dict[str, Any]) -> None:
    """Writes ``content`` (tensors, numbers, strings, lists and dictionaries) as the folder's checkpoint."""
    folder.mkdir(parents=True, exist_ok=True)
    write_atomically(folder / NAME, lambda path: torch.save(content, path))


def read_checkpoint(folder: Path) -> dict[str, Any]:
    """The folder's checkpoint.

    Raises:
        ValueError: there is none, or the file is no checkpoint of this library.
    """
    path = folder / NAME
    if not path.is_file():
        raise ValueError(f"resume must name a folder with a {NAME} in it, got {folder}")
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # a broken file can raise nearly anything
        raise ValueError(f"{path} must be a checkpoint, but cannot be read as one: {error}") from error
    if not isinstance(content, dict) or not {"settings", "model", "optimizer", "history"} <= content.keys():
        raise ValueError(f"{path} must be a checkpoint of a run, but holds {', '.join(content) if isinstance(content, dict) else type(content).__name__}")
    return content
