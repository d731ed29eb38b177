"""Grading: points come from right answers alone, whatever a handed-in notebook does."""

from __future__ import annotations

import csv
import json
import os
import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from torch import Tensor
from typer.testing import CliRunner

import sdap_lite as sdap
from sdap_lite import exercises
from sdap_lite.__main__ import app
from sdap_lite.teaching import assignment, grading
from sdap_lite.teaching.comparing import EXERCISES
from sdap_lite.teaching.grading import read_answers, write_answers

BOOK = Path(__file__).parents[1] / "book"
TASKS = [number for number, task in EXERCISES.items() if task.points]


@pytest.fixture(scope="module")
def images() -> sdap.Images:
    """A part of the assignment's images, so that the tests are fast."""
    return sdap.data.load("fashion-mini").limit(2000, 200)


@pytest.fixture(autouse=True)
def few_images(images: sdap.Images, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(assignment, "_images", lambda: images)


@pytest.fixture(scope="module")
def model() -> sdap.models.ResNet:
    return sdap.models.resnet20(pretrained="fashion-mini").eval()


@pytest.fixture(scope="module")
def graph(model: Any) -> sdap.ChannelGraph:
    return sdap.trace(model, torch.zeros(1, 1, 28, 28))


@pytest.fixture(scope="module")
def kept(graph: sdap.ChannelGraph) -> dict[str, Tensor]:
    return sdap.threshold(graph, graph.split(torch.linspace(1, 2, len(graph))), 0.6)


@pytest.fixture(scope="module")
def small(model: Any, graph: sdap.ChannelGraph, kept: dict[str, Tensor]) -> Any:
    """The pruned network, without any training."""
    return sdap.remove_channels(model, graph, kept)


@pytest.fixture(scope="module")
def handed_in(small: Any, kept: dict[str, Tensor]) -> dict[str, Any]:
    return {"kept": kept, "state": small.state_dict()}


@pytest.fixture
def generous(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without training the network does not meet the assignment's own demand."""
    monkeypatch.setattr(assignment, "LOSS", 1.0)


# The tasks ------------------------------------------------------------------------------------


def test_costs() -> None:
    right = {"params": 269_434, "macs": 30_821_248}
    assert exercises.check("A.1", right)
    assert "these are FLOPs" in str(exercises.mark("A.1", {**right, "macs": 2 * right["macs"]}))
    assert "28 × 28" in str(exercises.mark("A.1", {**right, "macs": sdap.count_macs(sdap.models.resnet20(in_channels=1), torch.zeros(1, 1, 32, 32))}))
    assert "must have 'params', 'macs'; missing: 'macs'" in str(exercises.mark("A.1", {"params": 1}))
    assert "must be a dictionary" in str(exercises.mark("A.1", 269_434))


def test_tied() -> None:
    right = ["conv1", *(f"layer{stage}.{block}.conv2" for stage in (1, 2, 3) for block in range(3))]
    assert exercises.check("A.2", right)
    assert "9 convolutions that write the group are missing, and 1 of those" in str(exercises.mark("A.2", ["conv1", "layer1.0.conv1"]))
    assert "there is no layer 'conv2'" in str(exercises.mark("A.2", ["conv2"]))
    assert "must be a list of layers' names" in str(exercises.mark("A.2", "conv1"))


def gradients(model: Any, images: sdap.Images) -> dict[str, Tensor]:
    """The gates' gradients from a weight's, by the formula of chapter 2: each consumer's columns."""
    x, y = next(sdap.data.batches(images.hold_out()[0][:200], 200, images))
    model.zero_grad()
    F.cross_entropy(model(x), y).backward()
    graph = sdap.trace(model, torch.zeros(1, 1, 28, 28))
    flat = torch.zeros(len(graph))
    for name, layer in graph.layers.items():
        if layer.mixes:
            weight = model.get_submodule(name).weight
            flat.index_add_(0, layer.inputs, (weight * weight.grad).transpose(0, 1).flatten(1).sum(1).detach())
    return graph.split(flat)


def test_gate_gradients(model: Any, images: sdap.Images) -> None:
    right = gradients(model, images)
    assert exercises.check("A.3", right)
    for change, sentence in ((torch.neg, "the sign is wrong"), (torch.abs, "absolute values"), (torch.square, "squares"), (lambda g: 200 * g, "the sum over")):
        assert sentence in str(exercises.mark("A.3", {name: change(g) for name, g in right.items()}))
    assert "must be in eval mode" in str(exercises.mark("A.3", gradients(sdap.models.resnet20(pretrained="fashion-mini").train(), images)))


def test_one_rate(graph: sdap.ChannelGraph) -> None:
    scores = graph.split((12.9898 * torch.arange(len(graph))).sin().abs())

    def masks(rate: float = 0.6, **options: Any) -> dict[str, Tensor]:
        return sdap.threshold(graph, scores, rate, **{"cost_power": 0, "fill": False, **options})

    assert exercises.check("A.4", masks())
    assert "the other way round" in str(exercises.mark("A.4", {name: ~mask for name, mask in masks().items()}))
    assert "these masks keep 60 %" in str(exercises.mark("A.4", masks(0.4)))
    assert "not of the channels" in str(exercises.mark("A.4", masks(unit="channels")))
    assert "not of the MACs" in str(exercises.mark("A.4", masks(unit="macs")))
    assert "cost_power=0" in str(exercises.mark("A.4", masks(cost_power=0.5)))
    assert "fill=False" in str(exercises.mark("A.4", masks(fill=True)))


def test_surgery(model: Any, graph: sdap.ChannelGraph) -> None:
    kept = {name: torch.arange(len(group)) % 2 == 0 for name, group in graph.prunable.items()}
    odd = {name: ~mask for name, mask in kept.items()}
    right = sdap.remove_channels(model, graph, kept).state_dict()
    assert exercises.check("A.5", right)
    assert "closed, but not cut out" in str(exercises.mark("A.5", sdap.masked(model, graph, kept).state_dict()))
    assert "conv1.weight: the even channels stay" in str(exercises.mark("A.5", sdap.remove_channels(model, graph, odd).state_dict()))
    assert "fc.bias: the sign is wrong" in str(exercises.mark("A.5", {**right, "fc.bias": -right["fc.bias"]}))


def test_one_run(handed_in: dict[str, Any], generous: None, graph: sdap.ChannelGraph, model: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    assert exercises.check("A.6", handed_in)
    everything = {name: torch.ones(len(group), dtype=torch.bool) for name, group in graph.prunable.items()}
    assert exercises.mark("A.6", {"kept": everything, "state": model.state_dict()}) == "60% of the parameters must go, but 0.0% are gone"
    assert "the weights must be those of the network with the kept channels" in str(exercises.mark("A.6", {**handed_in, "state": model.state_dict()}))
    assert "group 'conv1' has 64 channels" in str(exercises.mark("A.6", {**handed_in, "kept": {**handed_in["kept"], "conv1": torch.ones(3).bool()}}))
    monkeypatch.setattr(assignment, "LOSS", 0.05)
    assert re.search(r"at most 5 points of test accuracy may be lost, but it falls from \d+\.\d% to \d+\.\d%", str(exercises.mark("A.6", handed_in)))


def test_report(handed_in: dict[str, Any], model: Any, small: Any, images: sdap.Images) -> None:
    before, after = sdap.accuracy(model, images), sdap.accuracy(small, images)
    assert exercises.check("A.7", {**handed_in, "dense": before, "small": after})
    assert "not in per cent" in str(exercises.mark("A.7", {**handed_in, "dense": 100 * before, "small": 100 * after}))
    assert "off by 0.1 in the worst place" in str(exercises.mark("A.7", {**handed_in, "dense": before, "small": after + 0.1}))


def test_divergence(handed_in: dict[str, Any], model: Any, small: Any, images: sdap.Images) -> None:
    z_t, z_s = (sdap.measure.predict(net, images.test, images) for net in (model, small))
    p, q = (z_t / 4).softmax(1), (z_s / 4).softmax(1)
    right = float((p * (p / q).log()).sum(1).mean())
    assert exercises.check("A.8", {**handed_in, "divergence": right})
    assert "without the factor T²" in str(exercises.mark("A.8", {**handed_in, "divergence": 16 * right}))
    assert "batchmean" in str(exercises.mark("A.8", {**handed_in, "divergence": right / 10}))
    assert "the teacher's answer comes first" in str(exercises.mark("A.8", {**handed_in, "divergence": float((q * (q / p).log()).sum(1).mean())}))


# Answers as data ------------------------------------------------------------------------------


def test_answers_come_back_as_they_were(tmp_path: Path) -> None:
    import numpy as np

    shared = torch.arange(6.0).reshape(2, 3)
    value = {"a": [1, 2.5, True, None, "x"], "b": {"t": shared.T, "again": shared}, "n": np.float32(0.5), "list": np.arange(2)}
    write_answers({"answer_1": value, "answer_2": ..., "other": 1}, ["answer_1", "answer_2", "answer_3"], str(tmp_path / "x"))
    found, refused = read_answers(tmp_path / "x")
    assert found.keys() == {"answer_1"}
    assert not refused
    assert found["answer_1"]["a"] == [1, 2.5, True, None, "x"]
    assert torch.equal(found["answer_1"]["b"]["t"], shared.T)
    assert torch.equal(found["answer_1"]["b"]["again"], shared)
    assert (found["answer_1"]["n"], found["answer_1"]["list"]) == (0.5, [0, 1])


def test_what_is_no_data_is_refused_by_itself(tmp_path: Path) -> None:
    endless: list[Any] = []
    endless.append(endless)
    write_answers({"a": print, "b": 1, "c": endless, "d": {"x": object()}}, "abcd", str(tmp_path / "x"))
    found, refused = read_answers(tmp_path / "x")
    assert found == {"b": 1}
    assert "this one holds a builtin_function_or_method" in refused["a"]
    assert "recursion" in refused["c"]
    assert "this one holds a object" in refused["d"]


@pytest.mark.parametrize(
    "metadata", [{}, {"answers": "{", "refused": "{}"}, {"answers": '{"a": {"tensor": "7"}}', "refused": "{}"}, {"answers": "[" * 100_000, "refused": "{}"}]
)
def test_a_file_that_was_tampered_with(tmp_path: Path, metadata: dict[str, str]) -> None:
    save_file({"0": torch.zeros(2)}, tmp_path / "x", metadata)
    with pytest.raises(ValueError, match="the answers cannot be read"):
        read_answers(tmp_path / "x")
    (tmp_path / "y").write_bytes(b"no answers")
    with pytest.raises(ValueError, match="the answers cannot be read"):
        read_answers(tmp_path / "y")


def test_too_large_a_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_answers({"a": torch.zeros(1000)}, "a", str(tmp_path / "x"))
    monkeypatch.setattr(grading, "LARGEST", 2**10)
    with pytest.raises(ValueError, match="all answers together must be smaller than"):
        read_answers(tmp_path / "x")


# Notebooks ------------------------------------------------------------------------------------

Write = Callable[..., Path]


@pytest.fixture
def write(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Write:
    """Writes a notebook of some cells; its kernel imports the library that is tested."""
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(p for p in (str(BOOK.parent), *sys.path) if p))

    def write(*cells: str, name: str = "student.ipynb") -> Path:
        content = {"cells": [{"cell_type": "code", "source": cell} for cell in cells], "nbformat": 4, "nbformat_minor": 5, "metadata": {}}
        (tmp_path / name).write_text(json.dumps(content))
        return tmp_path / name

    return write


def grade(path: Path, **limits: Any) -> dict[str, grading.Row]:
    return {row.exercise: row for row in grading.grade(path, **{"timeout": 60, "memory": 3, **limits})}


def test_a_solved_assignment(handed_in: dict[str, Any], generous: None, tmp_path: Path, write: Write) -> None:
    """The book's own notebook, filled in; but for the training, which it loads."""
    torch.save(handed_in, tmp_path / "run.pt")
    solutions = {
        "answer_1": '{"params": sdap.count_params(model), "macs": sdap.count_macs(model, example)}',
        "answer_2": '["conv1", *(f"layer{stage}.{block}.conv2" for stage in (1, 2, 3) for block in range(3))]',
        "answer_3": """sdap.Gates(graph)
with answer_3.attach(model):
    torch.nn.functional.cross_entropy(model(x), y).backward()
answer_3 = answer_3.gradient""",
        "answer_4": "sdap.threshold(graph, scores, 0.6, cost_power=0, fill=False)",
        "answer_5": "sdap.remove_channels(model, graph, {n: torch.arange(len(g)) % 2 == 0 for n, g in graph.prunable.items()}).state_dict()",
        "answer_6": f"torch.load({str(tmp_path / 'run.pt')!r}, weights_only=True)",
        "answer_7": '{**answer_6, "dense": 0.9135, "small": 0.5}',
    }
    text = (BOOK / "assignment.ipynb").read_text()
    fewer = text.replace('load(\\"fashion-mini\\")', 'load(\\"fashion-mini\\").limit(2000, 200)')  # as in the tests' own process
    assert fewer != text
    cells = ["".join(cell["source"]) for cell in json.loads(fewer)["cells"] if cell["cell_type"] == "code"]
    filled = [
        re.sub(r"(answer_\d) = \.\.\..*", lambda found: f"{found[1]} = {solutions.get(found[1], '...')}", cell).partition("sdap.exercises.check")[0]
        for cell in cells
    ]
    rows = grade(write(*filled), timeout=120)
    assert {number: row.passed for number, row in rows.items()} == {**dict.fromkeys(TASKS[:6], "yes"), "A.7": "no", "A.8": "no", "A.9": "by hand"}
    assert [rows[number].points for number in TASKS] == [1, 2, 3, 2, 2, 4, 0, 0]
    assert "in the worst place" in rows["A.7"].message
    assert rows["A.8"].message == "there is no answer_8"


def test_the_assignment_as_it_is_handed_out(write: Write) -> None:
    assert sum(EXERCISES[number].points for number in TASKS) + sum(assignment.BY_HAND.values()) == 25
    text = "".join("".join(cell["source"]) for cell in json.loads((BOOK / "assignment.ipynb").read_text())["cells"])
    for number, points in {**{n: EXERCISES[n].points for n in TASKS}, **assignment.BY_HAND}.items():
        assert re.search(rf"## {number[2:]} .*\({points} points?[,)]", text)


def test_a_notebook_cannot_give_itself_points(write: Write) -> None:
    """It replaces the checks, in memory and in what it writes down; one cell fails, one leaves, one takes all memory."""
    path = write(
        "import sdap_lite as sdap, sdap_lite.exercises as e, sdap_lite.teaching.comparing as a\n"
        "e.check = e.mark = lambda *_: None\nfor k in list(a.EXERCISES): a.EXERCISES[k] = a.Exercise(lambda _: None, '', 10)\n"
        "answer_1 = {'params': 1, 'macs': 1}",
        "import os\nassert os.listdir() == []  # nothing lies here to copy from\nanswer_2 = print",
        "import sys; sys.exit(0)",
        "import torch\nanswer_3 = torch.zeros(8 * 2**30, dtype=torch.uint8)",
        "answer_4 = undefined",
        "answer_5 = bytearray(8 * 2**30)",
        "answer_6 = {'kept': 1, 'state': 2}\nanswer_7 = ...",
        "answer_8 = 1 / 0",
        "answer_8 = [answer_8]  # answer_88 is another name",
    )
    rows = grade(path)
    assert {row.points for row in rows.values()} == {0}
    assert rows["A.1"].message.startswith("the answer is off by")
    assert "holds a builtin_function_or_method" in rows["A.2"].message
    assert rows["A.3"].message.startswith("code cell 4 raised RuntimeError")
    assert rows["A.4"].message == "code cell 5 raised NameError: name 'undefined' is not defined"
    assert rows["A.5"].message.startswith("code cell 6 raised MemoryError")
    assert "must be a dictionary" in rows["A.6"].message
    assert rows["A.7"].message == "there is no answer_7"
    assert rows["A.8"].message == "code cell 8 raised ZeroDivisionError: division by zero"


RIGHT = "answer_1 = {'params': 269434, 'macs': 30821248}"


@pytest.mark.parametrize(
    ("cell", "sentence"),
    [
        ("while True:\n    try:\n        print('x' * 10**6)\n    except KeyboardInterrupt:\n        pass", "the time of 4 s was over in code cell 2"),
        ("import os; os._exit(0)", "the notebook's process ended in code cell 2"),
    ],
    ids=["endless", "dead"],
)
def test_a_notebook_that_does_not_end_well(write: Write, cell: str, sentence: str) -> None:
    """What was answered before still counts."""
    rows = grade(write(RIGHT, cell, "answer_2 = ['conv1']"), timeout=4)
    assert (rows["A.1"].passed, rows["A.1"].points) == ("yes", 1)
    assert all(rows[number].message == sentence for number in TASKS[1:])


@pytest.mark.parametrize("content", ["", "no JSON", "[]", '{"cells": 3}', '{"cells": [{"cell_type": "code"}]}', "[" * 100_000, "\udcff"])
def test_no_notebook(tmp_path: Path, content: str) -> None:
    (tmp_path / "x.ipynb").write_bytes(content.encode("utf-8", "surrogateescape"))
    rows = grade(tmp_path / "x.ipynb")
    assert list(rows) == [*TASKS, "A.9"]
    assert all(row.points == 0 for row in rows.values())
    assert all(rows[number].message.startswith("x.ipynb must be a notebook of format 4") for number in TASKS)


def test_the_command_writes_the_table(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fake(cells: list[str], names: dict[str, str], timeout: float, memory: float) -> grading._Run:
        assert (timeout, memory) == (30, 2)
        return grading._Run(answers={"A.1": {"params": 269_434, "macs": 30_821_248}, "A.2": 'a, "b"\n' * 200})

    monkeypatch.setattr(grading, "_run", fake)
    for name in ("one.ipynb", "two.ipynb"):
        (tmp_path / name).write_text('{"cells": []}')
    arguments = ["grade", str(tmp_path / "one.ipynb"), str(tmp_path / "two.ipynb"), "--out", str(tmp_path / "marks.csv"), "--timeout", "30", "--memory", "2"]
    result = CliRunner().invoke(app, arguments)
    assert result.exit_code == 0, result.output
    assert f"{tmp_path / 'one.ipynb'}  A.1  yes       1 of  1" in result.output
    assert f"{tmp_path / 'two.ipynb'}: 1 of 20 points, and up to 5 by hand" in result.output
    with (tmp_path / "marks.csv").open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 2 * (len(TASKS) + 1)
    assert rows[0] == {"notebook": str(tmp_path / "one.ipynb"), "exercise": "A.1", "passed": "yes", "points": "1", "of": "1", "message": ""}
    assert all("\n" not in row["message"] and len(row["message"]) <= 300 for row in rows)


def test_the_command_wants_notebooks_that_exist(tmp_path: Path) -> None:
    result = CliRunner().invoke(app, ["grade", str(tmp_path / "none.ipynb")])
    assert result.exit_code == 2
    assert "does not exist" in re.sub(r"[│\s]+", " ", result.output)


def test_a_place_where_no_notebook_can_run(write: Write, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write(RIGHT)
    monkeypatch.setattr(grading, "_execute", fail)
    result = CliRunner().invoke(app, ["grade", str(path)])
    assert result.exit_code == 2
    assert "no notebook can run here: No module named 'nbclient'" in re.sub(r"[│\s]+", " ", result.output)


def fail(*args: Any) -> None:
    raise ModuleNotFoundError("No module named 'nbclient'")


def test_a_library_that_the_notebook_cannot_import(write: Write, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write(RIGHT)
    (tmp_path / "sdap_lite.py").write_text("")
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(tmp_path), os.environ["PYTHONPATH"]]))
    with pytest.raises(RuntimeError, match="a notebook's process must be able to import sdap_lite and to limit its memory, but: ModuleNotFoundError"):
        grading.grade(path)
