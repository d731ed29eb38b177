"""What records say of where they were made: the code, and the device that was really used."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from by_path import load_file
from nets import pictures

from sdap_lite import data, measure, provenance

GPU = "NVIDIA H100"


@pytest.fixture
def graphics(monkeypatch: pytest.MonkeyPatch) -> None:
    """As on a machine with a GPU."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device=None: GPU)


def test_hardware_is_that_of_the_device(graphics: None) -> None:
    assert provenance.hardware() == provenance.hardware("cuda") == provenance.hardware(torch.device("cuda", 0)) == f"{GPU} GPU"
    assert provenance.hardware("cpu").endswith(" CPU, 1 thread(s)")
    assert provenance.hardware("mps").endswith(" GPU (mps)")


def test_hardware_without_a_gpu_is_the_processor(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(measure.torch.backends.mps, "is_available", lambda: False)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert provenance.hardware() == provenance.hardware("cpu")


def test_commit_is_the_clones(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(provenance, "__file__", str(tmp_path / "provenance.py"))
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(tmp_path.parent))
    assert provenance.commit() == "unknown: not run from a clone"
    git = ["git", "-c", "user.name=x", "-c", "user.email=x@example.org"]
    (tmp_path / "file").write_text("one")
    for command in (["init", "-q"], ["add", "file"], ["commit", "-qm", "one"]):
        subprocess.run([*git, *command], cwd=tmp_path, check=True)
    head = subprocess.run(["git", "rev-parse", "HEAD"], cwd=tmp_path, check=True, capture_output=True, text=True).stdout.strip()
    assert provenance.commit() == head
    (tmp_path / "file").write_text("two")
    assert provenance.commit() == f"{head}-dirty"


def test_pretraining_names_the_device_of_its_run(graphics: None, monkeypatch: pytest.MonkeyPatch) -> None:
    script: Any = load_file("scripts/pretrain.py")
    cards: list[dict[str, Any]] = []
    done = SimpleNamespace(settings={"device": "cuda"}, history=[{"validation": 0.5}])

    def write(model: object, images: object, path: Path, about: dict[str, Any], history: object) -> dict[str, Any]:
        cards.append(about)
        return {"data": "", "parameters": 0, "test accuracy": 0.5, **about}

    monkeypatch.setattr(data, "load", lambda name, *, size: pictures())
    monkeypatch.setattr(script, "train", lambda *_, **__: done)
    monkeypatch.setattr(script, "write", write)
    monkeypatch.setattr(sys, "argv", ["pretrain.py", "resnet20", "cifar10", "--threads", "1"])
    script.main()
    assert cards[0]["hardware"] == f"{GPU} GPU"
    assert cards[0]["versions"] == provenance.versions()


def test_sweep_names_the_device_that_it_prunes_on(graphics: None) -> None:
    script: Any = load_file("scripts/sweep.py")
    assert script.card(pictures(), pictures())["hardware"] == f"{GPU} GPU"
