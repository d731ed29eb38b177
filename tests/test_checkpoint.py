"""Checkpoints: whole or not at all, and nothing in them is run."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from sdap_lite.checkpoint import NAME, read_checkpoint, write_atomically, write_checkpoint

CONTENT = {
    "settings": {"epochs": 3, "rate": 0.75},
    "model": {"w": torch.arange(6.0)},
    "optimizer": {"state": {}},
    "history": [{"loss": 1.5}],
    "kept": {"a": torch.tensor([True])},
}


def test_round_trip(tmp_path: Path) -> None:
    write_checkpoint(tmp_path / "deep" / "er", CONTENT)
    found = read_checkpoint(tmp_path / "deep" / "er")
    assert found.keys() == CONTENT.keys()
    assert torch.equal(found["model"]["w"], torch.arange(6.0))
    assert found["kept"]["a"].dtype == torch.bool
    assert (found["settings"], found["history"]) == (CONTENT["settings"], CONTENT["history"])
    assert [p.name for p in (tmp_path / "deep" / "er").iterdir()] == [NAME]


def test_failing_write_leaves_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_text("old")

    def write(temporary: str) -> None:
        Path(temporary).write_text("half of the n")
        raise OSError("no space left on device")

    with pytest.raises(OSError, match="no space left"):
        write_atomically(path, write)
    assert path.read_text() == "old"
    assert [p.name for p in tmp_path.iterdir()] == ["file"], "and nothing else lies around"


def test_interrupt_while_writing_leaves_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_text("old")

    def write(temporary: str) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_atomically(path, write)
    assert [(p.name, p.read_text()) for p in tmp_path.iterdir()] == [("file", "old")]


def test_others_may_read_the_file(tmp_path: Path) -> None:
    write_atomically(tmp_path / "file", lambda temporary: Path(temporary).write_text("new"))
    assert (tmp_path / "file").stat().st_mode & 0o777 == 0o644


@pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="this system has no SIGKILL")
def test_kill_while_writing_leaves_the_old_checkpoint(tmp_path: Path) -> None:
    write_checkpoint(tmp_path, CONTENT)
    script = """
import os, signal, sys, pathlib
from sdap_lite.checkpoint import write_atomically, NAME
def write(temporary):
    pathlib.Path(temporary).write_text("half of a checkpoi")
    os.kill(os.getpid(), signal.SIGKILL)
write_atomically(pathlib.Path(sys.argv[1]) / NAME, write)
"""
    done = subprocess.run([sys.executable, "-c", script, str(tmp_path)], env={**os.environ, "OMP_NUM_THREADS": "1"}, timeout=300)
    assert done.returncode == -signal.SIGKILL
    assert torch.equal(read_checkpoint(tmp_path)["model"]["w"], torch.arange(6.0))


def test_missing_checkpoint_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"resume must name a folder with a checkpoint.pt in it, got .*nowhere"):
        read_checkpoint(tmp_path / "nowhere")


@pytest.mark.parametrize("cut", [0, 10, 0.5, -1])
def test_truncated_checkpoint_is_refused(tmp_path: Path, cut: float) -> None:
    write_checkpoint(tmp_path, CONTENT)
    content = (tmp_path / NAME).read_bytes()
    (tmp_path / NAME).write_bytes(content[: int(len(content) * cut) if isinstance(cut, float) else cut])
    with pytest.raises(ValueError, match=r"checkpoint.pt must be a checkpoint, but cannot be read as one"):
        read_checkpoint(tmp_path)


@pytest.mark.parametrize(("content", "found"), [([1, 2], "list"), ({"model": 1, "settings": 2}, "model, settings")])
def test_foreign_file_is_refused(tmp_path: Path, content: object, found: str) -> None:
    torch.save(content, tmp_path / NAME)
    with pytest.raises(ValueError, match=rf"checkpoint.pt must be a checkpoint of a run, but holds {found}"):
        read_checkpoint(tmp_path)


class Hostile:
    def __reduce__(self) -> tuple[object, tuple[str]]:
        return os.mkdir, ("ran",)


def test_hostile_checkpoint_is_not_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    torch.save({**CONTENT, "history": Hostile()}, tmp_path / NAME)
    with pytest.raises(ValueError, match=r"(?s)cannot be read as one: .*mkdir"):
        read_checkpoint(tmp_path)
    assert not (tmp_path / "ran").exists()
    torch.load(tmp_path / NAME, weights_only=False)
    assert (tmp_path / "ran").exists(), "the file does run code, where it is let"
