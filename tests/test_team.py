"""One run in two processes on the CPU: the same as in one, and the same in both."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from many_processes import DIFFERENT, SETTINGS, run
from nets import assert_same_bits, build, fingerprint, pictures
from PIL import Image
from torch import nn

from sdap_lite import Gates, _torchvision, count_params, load, loop, models, prune, trace
from sdap_lite.team import Team, _has_idle, _Many, _twin, team

Found = list[dict[str, dict[str, Any]]]


@pytest.fixture(scope="module")
def both(tmp_path_factory: pytest.TempPathFactory) -> Found:
    """What each of two processes that were launched together found."""
    folder = tmp_path_factory.mktemp("many")
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    done = subprocess.run(
        [*launcher, str(Path(__file__).with_name("many_processes.py")), str(folder)],
        env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(sys.path)},
        capture_output=True,
        text=True,
        timeout=600,
    )
    assert done.returncode == 0, done.stderr
    return [torch.load(folder / f"{rank}.pt", weights_only=True) for rank in (0, 1)]


def assert_same(a: Any, b: Any) -> None:
    """Bit by bit."""
    assert type(a) is type(b)
    if isinstance(a, dict):
        assert a.keys() == b.keys()
        for key in a:
            assert_same(a[key], b[key])
    elif isinstance(a, list):
        for x, y in zip(a, b, strict=True):
            assert_same(x, y)
    else:
        assert torch.equal(a, b) if isinstance(a, torch.Tensor) else a == b


@pytest.mark.parametrize("name", ["plain", *DIFFERENT, "resnet"])
def test_all_processes_end_with_the_same_network(both: Found, name: str) -> None:
    assert_same(both[0][name], both[1][name])


@pytest.mark.parametrize("name", ["plain", *DIFFERENT])
def test_two_processes_find_what_one_finds(both: Found, name: str) -> None:
    alone, together = run(name), both[0][name]
    assert_same(alone["kept"], together["kept"])
    for key, tensor in alone["state"].items():
        torch.testing.assert_close(together["state"][key], tensor, rtol=1e-4, atol=1e-5)
    for one, two in zip(alone["history"], together["history"], strict=True):
        assert one == pytest.approx(two, abs=1e-4)


def test_with_batch_norm_as_much_goes_and_the_loss_falls_alike(both: Found) -> None:
    """Half of a batch has other statistics: the losses differ by a hundredth, and fall by fifteen."""
    alone, together = (found["history"] for found in (run("resnet"), both[0]["resnet"]))
    assert 0.6 <= together[-1]["removed"] == pytest.approx(alone[-1]["removed"], abs=0.02)
    assert [epoch["loss"] for epoch in together] == pytest.approx([epoch["loss"] for epoch in alone], rel=0.04)
    assert together[-1]["loss"] < 0.9 * together[0]["loss"]


def test_stopped_run_goes_on_bit_by_bit(both: Found) -> None:
    for found in both:
        assert_same(found["gone on"], found["resnet"])


# One process


def test_alone_nothing_is_shared() -> None:
    alone = team(torch.device("cpu"))
    assert type(alone) is Team
    x = torch.arange(5)
    model = nn.Linear(2, 2)
    assert alone.share(x) is x
    assert alone.mean(x) is x
    assert alone.weight(5) == 1
    assert alone.wrap(model) is model
    assert alone.agree("value") == "value"


@pytest.mark.parametrize("size", [1, 2, 3, 5])
@pytest.mark.parametrize("count", [5, 6, 12])
def test_weighted_shares_have_the_mean_of_the_batch(size: int, count: int) -> None:
    values = torch.arange(count, dtype=torch.float64) ** 2
    found = 0.0
    for rank in range(size):
        one = object.__new__(_Many)
        one.rank, one.size = rank, size
        found += one.weight(count) * float(one.share(values).mean()) / size
    assert found == pytest.approx(float(values.mean()))


def test_twin_has_the_same_tensors_and_gates_in_modules_of_its_own() -> None:
    model = build("resnet-pad").train()
    with Gates(trace(model, torch.zeros(1, 3, 16, 16))).attach(model) as gates:
        twin = nn.SyncBatchNorm.convert_sync_batchnorm(_twin(model))
        assert not {id(m) for m in model.modules()} & {id(m) for m in twin.modules()}
        assert [id(p) for p in twin.parameters()] == [id(p) for p in model.parameters()]
        assert not any(isinstance(m, nn.SyncBatchNorm) for m in model.modules())
        plain = _twin(model)
        plain(torch.randn(4, 3, 16, 16)).square().sum().backward()
        assert all(float(g.abs().sum()) > 0 for g in gates.gradient.values())
        assert all(p.grad is not None for p in model.parameters())


def test_layer_that_is_never_called_is_found() -> None:
    model, x = build("resnet-pad").train(), torch.randn(4, 3, 16, 16)
    with Gates(trace(model, torch.zeros(1, 3, 16, 16))).attach(model):
        before = fingerprint(model)
        assert not _has_idle(model, x)
        model.idle = nn.Linear(3, 3)
        assert _has_idle(model, x)
        for p in model.idle.parameters():
            p.requires_grad_(False)
        assert not _has_idle(model, x), "what is frozen gets no gradient anyway"
        del model.idle
        assert_same_bits(model, before)
        assert model.training
        assert all(p.grad is None for p in model.parameters())


def test_several_processes_need_accelerate(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setitem(sys.modules, "accelerate", None)
    with pytest.raises(ImportError, match=r"needs the package accelerate: pip install accelerate"):
        team(torch.device("cpu"))


def test_batch_must_hold_two_images_for_each_process(monkeypatch: pytest.MonkeyPatch) -> None:
    crew = Team()
    crew.size = 5
    monkeypatch.setattr(loop, "team", lambda device: crew)
    with pytest.raises(ValueError, match="batch_size must hold two images for each of 5 processes, got 9"):
        prune(build("resnet-pad"), pictures(), **SETTINGS)


# The chapter


def test_the_chapters_loop_over_image_folders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The code that chapter 12 shows and does not run, on a few small pictures, in one process."""
    notebook = json.loads((Path(__file__).parents[1] / "book/12_many_machines.ipynb").read_text())
    prose = "\n".join("".join(cell["source"]) for cell in notebook["cells"] if cell["cell_type"] == "markdown")
    code = "\n".join(re.findall(r"^```python\n(.*?)^```", prose, re.DOTALL | re.MULTILINE)).replace("resnet50", "resnet18")
    sizes = "90, 0.75, 0.5, 1.0, 0.02, 1024, 224, 8"
    assert code.count(sizes) == 1
    _torchvision.load()
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sdap_lite.measure.best_device", lambda: torch.device("cpu"))
    for i in range(12):
        folder = tmp_path / "imagenet/train" / "abc"[i % 3]
        folder.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.full((40, 40, 3), 20 * i, np.uint8)).save(folder / f"{i}.png")
    torch.save(models.stock("resnet18", num_classes=3).state_dict(), "resnet18.pt")
    found: dict[str, Any] = {}
    with torch.random.fork_rng(devices=[]):
        exec(code.replace(sizes, "2, 0.75, 0.5, 1.0, 0.001, 4, 32, 0"), found)
    small = load("resnet18-small", models.stock("resnet18", num_classes=3))
    assert found["gates"] is None
    assert 0.24 < count_params(small) / count_params(found["model"]) <= 0.25
    assert_same(small.state_dict(), found["student"].cpu().state_dict())
