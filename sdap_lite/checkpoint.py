"""Files that are whole or not at all, and a run's folder. Chapter 5.

A file is written under another name and moved to its place; a checksum inside says later whether
it is still what was written. Nothing that is read here can run code.
"""

from __future__ import annotations

import hashlib
import io
import json
import os
import secrets
import warnings
from collections.abc import Callable, Iterable
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any

import torch
from filelock import FileLock, Timeout
from torch import Tensor

if TYPE_CHECKING:
    from importlib.abc import Traversable

__all__ = [
    "RunFolder",
    "clear_leftovers",
    "fingerprint",
    "is_sealed",
    "read_checkpoint",
    "read_sealed",
    "sealed",
    "write_atomically",
    "write_checkpoint",
    "write_sealed",
    "write_together",
]

NAME = "checkpoint.pt"
PREVIOUS = "checkpoint-previous.pt"
LOCK = ".lock"


def write_atomically(path: Path, write: Callable[[str], Any], *, previous: Path | None = None) -> None:
    """Has ``write`` fill a temporary file beside ``path`` and moves it there: a reader finds the old or the new.

    Args:
        path: the file.
        write: is called with the temporary file's name.
        previous: where the old file goes; default: nowhere.
    """
    write_together({path: write}, previous=previous)


def write_together(files: dict[Path, Callable[[str], Any]], *, previous: Path | None = None) -> None:
    """Like :func:`write_atomically`, for files that belong together: none is moved before all are whole."""
    temporary = {}
    try:
        for path, write in files.items():
            temporary[path] = str(path.with_name(f".{path.name}.{secrets.token_hex(4)}.tmp"))
            with open(temporary[path], "xb") as file:
                rights = os.fstat(file.fileno()).st_mode & 0o777  # those that the user's umask leaves
            write(temporary[path])
            with open(temporary[path], "rb+") as file:
                os.fsync(file.fileno())
            os.chmod(temporary[path], rights)  # safetensors puts a file in its place that nobody else may read
        for path in files:
            if previous is not None and path.exists():
                os.replace(path, previous)
            os.replace(temporary[path], path)
    except BaseException:
        for left in temporary.values():
            Path(left).unlink(missing_ok=True)
        raise
    for folder in {path.parent for path in files}:
        _sync_folder(folder)


def fingerprint(tensors: Iterable[Tensor]) -> str:
    """Sixteen digits that tell these numbers from all others."""
    digest = hashlib.sha256()
    for tensor in tensors:
        digest.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().data)  # NumPy has no bfloat16
    return digest.hexdigest()[:16]


def clear_leftovers(path: Path) -> None:
    """Takes away what runs that were killed while they wrote this file left beside it."""
    for left in path.parent.glob(f".{path.name}.*.tmp"):
        left.unlink(missing_ok=True)


def sealed(content: dict[str, Any]) -> dict[str, Any]:
    """A dictionary for a JSON file, with a checksum over all the rest.

    >>> is_sealed(sealed({"rate": 0.75})), is_sealed({**sealed({"rate": 0.75}), "rate": 0.76})
    (True, False)
    """
    return {**content, "checksum": _digest(content)}


def is_sealed(content: dict[str, Any]) -> bool:
    """Whether the checksum is that of :func:`sealed`."""
    return content.get("checksum") == _digest({key: value for key, value in content.items() if key != "checksum"})


def write_sealed(path: Path, content: dict[str, Any]) -> None:
    """Writes a dictionary as a JSON file with its checksum, whole or not at all."""
    text = json.dumps(sealed(content), indent=1) + "\n"
    write_atomically(path, lambda file: Path(file).write_text(text, encoding="utf-8"))


def read_sealed(path: Traversable) -> dict[str, Any]:
    """The dictionary that :func:`write_sealed` wrote, without its checksum.

    Raises:
        ValueError: the file is no such file, or not as it was written.
    """
    try:
        content = dict(json.loads(path.read_text(encoding="utf-8")))
    except (TypeError, ValueError, RecursionError) as error:
        raise ValueError(f"{path} must be a record, but cannot be read as one: {error}") from error
    if not is_sealed(content):
        raise ValueError(f"{path} must be as it was written, but its checksum differs: it was damaged or changed by hand")
    return {key: value for key, value in content.items() if key != "checksum"}


def write_checkpoint(folder: Path, content: dict[str, Any]) -> None:
    """Writes ``content`` (tensors, numbers, strings, lists and dictionaries) as the folder's checkpoint.

    The one before it stays too, as ``checkpoint-previous.pt``. Both are files of ``torch.save``
    with a SHA-256 behind the end, which ``torch.load`` does not look at.
    """
    buffer = io.BytesIO()
    torch.save(content, buffer)
    body = buffer.getvalue()
    folder.mkdir(parents=True, exist_ok=True)

    def write(file: str) -> None:
        with open(file, "wb") as stream:
            stream.write(body)
            stream.write(_seal(body))

    write_atomically(folder / NAME, write, previous=folder / PREVIOUS)


def read_checkpoint(folder: Path) -> dict[str, Any]:
    """The folder's last checkpoint; where that was damaged, the one before it, with a warning.

    Raises:
        ValueError: there is none, or the file is no checkpoint of this library.
    """
    path, previous = folder / NAME, folder / PREVIOUS
    if not path.is_file() and not previous.is_file():
        raise ValueError(f"resume must name a folder with a {NAME} in it, got {folder}")
    if not path.is_file():  # killed between two renamings
        return _read(previous)
    try:
        return _read(path)
    except ValueError as error:
        if not previous.is_file():
            raise
        content = _read(previous)
        warnings.warn(f"{error}. The run goes on from {previous}, an epoch earlier, and ends in the same model", stacklevel=2)
        return content


class RunFolder:
    """A run's folder: locked as long as the run goes on. What stops the run says how to go on.

    Args:
        path: the folder, made where it is missing; None: the run keeps nothing.
        epochs: those that are done and saved already.

    Raises:
        ValueError: on entering: the folder cannot be written, or another run uses it.
    """

    def __init__(self, path: Path | None, epochs: int = 0) -> None:
        self.path, self.epochs = path, epochs
        self.lock: Any = None

    def __enter__(self) -> RunFolder:
        if self.path is not None:
            try:
                self.path.mkdir(parents=True, exist_ok=True)
                self.lock = FileLock(self.path / LOCK)  # the system frees it when the process dies, however that happens
                self.lock.acquire(timeout=0)
                clear_leftovers(self.path / NAME)
            except Timeout as error:
                raise ValueError(f"checkpoint must name a folder that no other run uses, but one is writing into {self.path} now") from error
            except OSError as error:
                raise ValueError(f"checkpoint must name a folder that can be written, got {self.path}: {error}") from error
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        if self.lock is not None:
            self.lock.release()
        if isinstance(error, KeyboardInterrupt):
            raise KeyboardInterrupt(f"stopped after {self.epochs} epochs; {self.how_to_go_on()}") from error
        if isinstance(error, FloatingPointError):
            raise FloatingPointError(f"{error}; {self.how_to_go_on()}") from error

    def write(self, content: dict[str, Any]) -> None:
        """Writes the checkpoint of one more epoch.

        Raises:
            OSError: it cannot be written; the one before it is still there.
        """
        if self.path is not None:
            try:
                write_checkpoint(self.path, content)
            except OSError as error:
                message = f"the checkpoint of epoch {self.epochs + 1} cannot be written ({error.strerror or error}); {self.how_to_go_on()}"
                raise OSError(error.errno, message) from error
        self.epochs += 1

    def how_to_go_on(self) -> str:
        """A sentence on what is saved."""
        if self.path is None:
            return "nothing is saved, since checkpoint= named no folder"
        if not self.epochs:
            return f"nothing is saved in {self.path} yet"
        return f"the last good checkpoint is {self.path / NAME}, of epoch {self.epochs}: resume={str(self.path)!r} goes on from it"


# ---------------------------------------------------------------------------------------------


def _digest(content: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def _seal(body: bytes) -> bytes:
    return f"\nsha256 {hashlib.sha256(body).hexdigest()}\n".encode()


def _read(path: Path) -> dict[str, Any]:
    try:
        whole = path.read_bytes()
        body = whole[: -len(_seal(b""))]
        if whole != body + _seal(body):
            raise ValueError("its checksum differs, so it was damaged, or another program wrote it")
        content = torch.load(io.BytesIO(body), map_location="cpu", weights_only=True)
    except Exception as error:  # a broken file can raise nearly anything
        raise ValueError(f"{path} must be a checkpoint, but cannot be read as one: {error}") from error
    if not isinstance(content, dict) or not {"settings", "model", "optimizer", "history"} <= content.keys():
        raise ValueError(f"{path} must be a checkpoint of a run, but holds {', '.join(content) if isinstance(content, dict) else type(content).__name__}")
    return content


def _sync_folder(folder: Path) -> None:
    """After a power cut, too, the folder shall hold the new name."""
    if hasattr(os, "O_DIRECTORY"):  # not on Windows
        handle = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
        with suppress(OSError):  # not every file system can; the file itself is there
            os.fsync(handle)
        os.close(handle)
