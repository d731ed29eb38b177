"""Marks handed-in notebooks of the assignment: runs each on its own, and checks what it answers.

A notebook runs in a kernel, a process of its own with a limit of time and of memory, in an empty
folder. After each cell its answers (``answer_1`` and so on) are written to a file as *data*:
numbers, texts, tensors, and lists and dictionaries of these. When the kernel is gone this process
reads them and calls the checks. So a notebook may replace ``check``, or print that it passed, or
never end: points come from right answers alone.

What a notebook runs it runs with your rights. Mark the work of strangers in a container, or under
an account that owns nothing.
"""

from __future__ import annotations

import csv
import json
import math
import os
import re
import sys
import tempfile
import time
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..exercises import mark
from .assignment import BY_HAND
from .comparing import EXERCISES

__all__ = ["Row", "grade", "limit_memory", "read_answers", "table", "write_answers", "write_table"]

LARGEST = 256 * 2**20  # bytes of answers that are read


@dataclass(frozen=True)
class Row:
    """One task of one notebook.

    Attributes:
        notebook: the file's path, as it was given.
        exercise: such as ``"A.1"``.
        passed: ``"yes"``, ``"no"``, or ``"by hand"`` for what no program marks.
        points: given.
        of: points that the task has.
        message: what is wrong.
    """

    notebook: str
    exercise: str
    passed: str
    points: int
    of: int
    message: str


def grade(path: Path, *, timeout: float = 300, memory: float = 4) -> list[Row]:
    """Runs a handed-in notebook and marks its answers.

    Args:
        path: of the notebook. One that cannot be read gets no points, and rows that say so.
        timeout: seconds for all its cells together.
        memory: GiB that its process may take, where the system can limit that (not on Windows).

    Returns:
        A row for each task of the assignment.

    Raises:
        RuntimeError: no notebook can run here, whatever is in it.
    """
    tasks = {number: task.points for number, task in EXERCISES.items() if task.points}
    try:
        run = _run(read_cells(path), {number: f"answer_{number.split('.')[1]}" for number in tasks}, timeout, memory)
    except ValueError as error:
        run = _Run(stopped=str(error))
    rows = []
    for number, points in tasks.items():
        problem = _problem(number, run)
        rows.append(Row(str(path), number, "no" if problem else "yes", 0 if problem else points, points, _one_line(problem or "")))
    return rows + [Row(str(path), number, "by hand", 0, points, "see the rubric on the lecturer's page") for number, points in BY_HAND.items()]


def read_cells(path: Path) -> list[str]:
    """The sources of a notebook's code cells, and nothing else of it.

    Raises:
        ValueError: the file is no notebook.
    """
    try:
        cells = json.loads(path.read_text(encoding="utf-8"))["cells"]
        return ["".join(cell["source"]) for cell in cells if cell["cell_type"] == "code"]
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        raise ValueError(f"{path.name} must be a notebook of format 4, but cannot be read as one: {type(error).__name__}: {error}") from error


def table(rows: Iterable[Row]) -> str:
    """The rows as text, and each notebook's sum."""
    rows = list(rows)
    lines = [f"{r.notebook}  {r.exercise:4} {r.passed:8} {r.points:2d} of {r.of:2d}  {r.message}".rstrip() for r in rows]
    for name in dict.fromkeys(r.notebook for r in rows):
        marked = [r for r in rows if r.notebook == name and r.passed != "by hand"]
        by_hand = sum(r.of for r in rows if r.notebook == name and r.passed == "by hand")
        lines.append(f"{name}: {sum(r.points for r in marked)} of {sum(r.of for r in marked)} points, and up to {by_hand} by hand")
    return "\n".join(lines)


def write_table(rows: Iterable[Row], path: Path) -> None:
    """The rows as CSV, with a line of headings."""
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, [f.name for f in fields(Row)])
        writer.writeheader()
        writer.writerows(asdict(row) for row in rows)


# What the notebook's own process calls --------------------------------------------------------


def limit_memory(gigabytes: float) -> None:
    """Limits this process's memory for good; does nothing where the system cannot (Windows)."""
    if sys.platform != "win32":
        import resource

        most = int(gigabytes * 2**30)
        resource.setrlimit(resource.RLIMIT_DATA, (most, most))


def write_answers(namespace: Mapping[str, Any], names: Iterable[str], path: str) -> None:
    """Writes some variables as data: tensors as they are, all else as JSON beside them."""
    from safetensors.torch import save_file

    tensors: dict[str, Tensor] = {}
    found: dict[str, Any] = {}
    refused: dict[str, str] = {}
    for name in names:
        if namespace.get(name, ...) is not ...:
            try:
                found[name] = _plain(namespace[name], tensors)
            except (TypeError, ValueError, RecursionError) as error:
                refused[name] = str(error)
    save_file(tensors, f"{path}.part", {"answers": json.dumps(found), "refused": json.dumps(refused)})
    os.replace(f"{path}.part", path)  # a process that is killed leaves the last whole file


def _plain(value: Any, tensors: dict[str, Tensor]) -> Any:
    if isinstance(value, Tensor):
        key = str(len(tensors))
        tensors[key] = value.detach().cpu().clone(memory_format=torch.contiguous_format)
        return {"tensor": key}
    if isinstance(value, Mapping):
        return {"dictionary": {str(k): _plain(v, tensors) for k, v in value.items()}}
    if isinstance(value, (list, tuple)):
        return [_plain(v, tensors) for v in value]
    if type(value).__module__ == "numpy" and hasattr(value, "tolist"):
        return value.tolist()
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    raise TypeError(f"an answer must be made of numbers, texts, tensors, lists and dictionaries, but this one holds a {type(value).__name__}")


# What this process does -----------------------------------------------------------------------


def read_answers(path: Path) -> tuple[dict[str, Any], dict[str, str]]:
    """What :func:`write_answers` wrote, or what somebody put there instead: nothing in it is run.

    Returns:
        The answers, and why others could not be written.

    Raises:
        ValueError: the file cannot be read, or is too large.
    """
    from safetensors import safe_open

    if not path.is_file():
        return {}, {}
    if path.stat().st_size > LARGEST:
        raise ValueError(f"all answers together must be smaller than {LARGEST // 2**20} MiB")
    try:
        with safe_open(path, "pt") as file:
            texts, tensors = file.metadata(), {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118 - it is no dictionary
        refused = {str(name): str(reason) for name, reason in json.loads(texts["refused"]).items()}
        return {name: _value(coded, tensors) for name, coded in json.loads(texts["answers"]).items()}, refused
    except Exception as error:  # a file that was tampered with can raise nearly anything
        raise ValueError(f"the answers cannot be read: {type(error).__name__}: {error}") from error


def _value(coded: Any, tensors: dict[str, Tensor]) -> Any:
    if isinstance(coded, list):
        return [_value(v, tensors) for v in coded]
    if isinstance(coded, dict):
        return tensors[coded["tensor"]] if "tensor" in coded else {k: _value(v, tensors) for k, v in coded["dictionary"].items()}
    return coded


@dataclass
class _Run:
    """What is left of a notebook that ran: its answers, what its cells raised, and why it stopped early."""

    answers: dict[str, Any] = field(default_factory=dict)
    refused: dict[str, str] = field(default_factory=dict)
    raised: dict[str, str] = field(default_factory=dict)  # by task: the error of a cell that names its answer
    stopped: str | None = None


def _problem(number: str, run: _Run) -> str | None:
    """Why a task gets no points, or None."""
    if number in run.answers:
        return mark(number, run.answers[number])
    return run.refused.get(number) or run.raised.get(number) or run.stopped or f"there is no answer_{number.split('.')[1]}"


def _run(cells: list[str], names: dict[str, str], timeout: float, memory: float) -> _Run:
    """Runs the cells in a fresh kernel; collects the answers of the variables ``names``, by task."""
    run, task_of = _Run(), {name: number for number, name in names.items()}
    with tempfile.TemporaryDirectory() as empty, tempfile.TemporaryDirectory() as desk:
        answers = Path(desk) / "answers.safetensors"
        _execute(cells, run, names, answers, empty, timeout, memory)
        found, refused = read_answers(answers)
    run.answers = {task_of[name]: value for name, value in found.items() if name in task_of}
    run.refused = {task_of[name]: reason for name, reason in refused.items() if name in task_of}
    return run


def _execute(cells: list[str], run: _Run, names: dict[str, str], answers: Path, folder: str, timeout: float, memory: float) -> None:
    from nbclient.exceptions import CellExecutionError, CellTimeoutError, DeadKernelError
    from nbformat.v4 import new_code_cell

    client, number = _client(answers.parent), 0
    collect = new_code_cell(f"from sdap_lite.teaching.grading import write_answers\nwrite_answers(globals(), {list(names.values())}, {str(answers)!r})")
    with client.setup_kernel(cwd=folder, env={**os.environ, "IPYTHONDIR": str(answers.parent)}):
        client.timeout = 120
        try:
            client.execute_cell(new_code_cell(f"from sdap_lite.teaching.grading import limit_memory\nlimit_memory({memory})\ndel limit_memory"), 0)
        except CellExecutionError as error:
            raise RuntimeError(f"a notebook's process must be able to import sdap_lite and to limit its memory, but: {error.ename}: {error.evalue}") from error
        end = time.monotonic() + timeout
        try:
            for number, source in enumerate(cells, 1):
                for cell in (new_code_cell(source), collect):
                    client.timeout = max(1, math.ceil(end - time.monotonic()))
                    try:
                        client.execute_cell(cell, 0)
                    except CellExecutionError as error:
                        for task in (t for t, name in names.items() if re.search(rf"\b{name}\b", source)):
                            run.raised.setdefault(task, f"code cell {number} raised {error.ename}: {error.evalue}")
        except CellTimeoutError:
            run.stopped = f"the time of {timeout:g} s was over in code cell {number}"
        except DeadKernelError:
            run.stopped = f"the notebook's process ended in code cell {number}"


def _client(desk: Path) -> Any:
    """A notebook client that forgets what cells print: a flood of it must not fill this process."""
    from nbclient import NotebookClient
    from nbformat.v4 import new_code_cell, new_notebook

    class Quiet(NotebookClient):
        def output(self, *args: Any, **kwargs: Any) -> None:
            return None

    client = Quiet(new_notebook(cells=[new_code_cell()]), kernel_name="python3", shutdown_kernel="immediate")
    if sys.platform != "win32":
        manager = client.create_kernel_manager()
        manager.transport, manager.ip = "ipc", str(desk / "kernel")  # sockets in a folder of ours, instead of open ports
    return client


def _one_line(text: str, most: int = 300) -> str:
    line = " ".join("".join(c if c.isprintable() else " " for c in text).split())
    return line if len(line) <= most else f"{line[: most - 2]} …"
