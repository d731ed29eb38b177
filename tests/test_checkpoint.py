"""Checkpoints: whole or not at all, and nothing in them is run."""

from __future__ import annotations

import hashlib
import json
import os
import signal
import stat
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from sdap_lite.checkpoint import (
    LOCK,
    NAME,
    PREVIOUS,
    RunFolder,
    _seal,
    fingerprint,
    is_sealed,
    read_checkpoint,
    sealed,
    write_atomically,
    write_checkpoint,
    write_together,
)

CONTENT = {
    "settings": {"epochs": 3, "rate": 0.75},
    "model": {"w": torch.arange(6.0)},
    "optimizer": {"state": {}},
    "history": [{"loss": 1.5}],
    "kept": {"a": torch.tensor([True])},
}


def write_foreign(path: Path, content: object) -> None:
    """What another program wrote, with a checksum that is right."""
    torch.save(content, path)
    path.write_bytes(path.read_bytes() + _seal(path.read_bytes()))


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


@pytest.fixture
def umask() -> Iterator[Callable[[int], int]]:
    before = os.umask(0o022)
    yield os.umask
    os.umask(before)


@pytest.mark.parametrize(("mask", "rights"), [(0o022, 0o644), (0o002, 0o664), (0o077, 0o600)])
@pytest.mark.parametrize("write", [lambda file: Path(file).write_text("new"), lambda file: save_file({"a": torch.zeros(1)}, file)], ids=["text", "tensors"])
def test_those_may_read_the_file_whom_the_umask_lets(tmp_path: Path, umask: Callable[[int], int], write: Callable[[str], Any], mask: int, rights: int) -> None:
    umask(mask)
    write_atomically(tmp_path / "file", write)
    assert (tmp_path / "file").stat().st_mode & 0o777 == rights


TENSORS = [torch.arange(6.0).view(2, 3).t(), torch.tensor(3), torch.tensor([True, False]), torch.zeros(0, 3), torch.arange(8.0).view(1, 2, 2, 2).half()]


def test_fingerprints_are_those_of_older_checkpoints() -> None:
    """A run is refused where they differ."""
    assert fingerprint(TENSORS) == hashlib.sha256(b"".join(t.contiguous().numpy().tobytes() for t in TENSORS)).hexdigest()[:16] == "e238117ef65f5b04"
    assert fingerprint([TENSORS[-1].to(memory_format=torch.channels_last)]) == fingerprint(TENSORS[-1:])


def test_fingerprint_of_bfloat16_is_of_its_bytes() -> None:
    halves = torch.tensor([1.0, -2.5, 3e38]).bfloat16()
    assert fingerprint([halves]) == fingerprint([halves.view(torch.int16)]) != fingerprint([halves.float()])


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
    write_foreign(tmp_path / NAME, content)
    with pytest.raises(ValueError, match=rf"checkpoint.pt must be a checkpoint of a run, but holds {found}"):
        read_checkpoint(tmp_path)


class Hostile:
    def __reduce__(self) -> tuple[object, tuple[str]]:
        return os.mkdir, ("ran",)


def test_hostile_checkpoint_is_not_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    write_foreign(tmp_path / NAME, {**CONTENT, "history": Hostile()})
    with pytest.raises(ValueError, match=r"(?s)cannot be read as one: .*mkdir"):
        read_checkpoint(tmp_path)
    assert not (tmp_path / "ran").exists()
    torch.load(tmp_path / NAME, weights_only=False)
    assert (tmp_path / "ran").exists(), "the file does run code, where it is let"


# The checkpoint before the last, and checksums


def numbered(number: float) -> dict[str, object]:
    return {**CONTENT, "model": {"w": torch.full((3,), number)}}


def test_the_checkpoint_before_stays(tmp_path: Path) -> None:
    for number in (1.0, 2.0, 3.0):
        write_checkpoint(tmp_path, numbered(number))
    assert sorted(p.name for p in tmp_path.iterdir()) == [PREVIOUS, NAME]
    assert read_checkpoint(tmp_path)["model"]["w"][0] == 3.0
    (tmp_path / NAME).unlink()  # killed between two renamings
    assert read_checkpoint(tmp_path)["model"]["w"][0] == 2.0


def test_damaged_checkpoint_gives_way_to_the_one_before(tmp_path: Path) -> None:
    for number in (1.0, 2.0):
        write_checkpoint(tmp_path, numbered(number))
    (tmp_path / NAME).write_bytes(b"damaged")
    with pytest.warns(UserWarning, match=r"checkpoint.pt must be a checkpoint, .*The run goes on from .*checkpoint-previous.pt, an epoch earlier"):
        assert read_checkpoint(tmp_path)["model"]["w"][0] == 1.0
    (tmp_path / PREVIOUS).write_bytes(b"damaged too")
    with pytest.raises(ValueError, match=r"checkpoint-previous.pt must be a checkpoint, but cannot be read as one: its checksum differs"):
        read_checkpoint(tmp_path)


def test_torch_reads_a_checkpoint_too(tmp_path: Path) -> None:
    write_checkpoint(tmp_path, CONTENT)
    assert torch.load(tmp_path / NAME, weights_only=True)["history"] == CONTENT["history"]


def test_no_file_is_moved_before_all_are_whole(tmp_path: Path) -> None:
    first, second = tmp_path / "first", tmp_path / "second"
    for path in (first, second):
        path.write_text("old")

    def write(temporary: str) -> None:
        raise OSError("no space left on device")

    with pytest.raises(OSError, match="no space left"):
        write_together({first: lambda temporary: Path(temporary).write_text("new"), second: write})
    assert [(p.name, p.read_text()) for p in sorted(tmp_path.iterdir())] == [("first", "old"), ("second", "old")]


def test_file_system_that_cannot_sync_a_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fsync = os.fsync

    def only_files(handle: int) -> None:
        if stat.S_ISDIR(os.fstat(handle).st_mode):
            raise OSError("Invalid argument")
        fsync(handle)

    monkeypatch.setattr(os, "fsync", only_files)
    write_checkpoint(tmp_path, CONTENT)
    assert read_checkpoint(tmp_path)["history"] == CONTENT["history"]


@pytest.mark.parametrize("content", [{}, {"rows": [1.5, {"a": None}], "ä": True}])
def test_seal_is_that_of_the_content(content: dict[str, object]) -> None:
    assert is_sealed(json.loads(json.dumps(sealed(content))))
    assert not is_sealed(content)
    assert not is_sealed({**sealed(content), "more": 1})


# A run's folder


@pytest.mark.parametrize("name", ["run", "a run", "прогон ☃", "deep/er/run"])
def test_second_run_in_the_same_folder_is_refused(tmp_path: Path, name: str) -> None:
    with (
        RunFolder(tmp_path / name),
        pytest.raises(ValueError, match=r"checkpoint must name a folder that no other run uses, but one is writing into .*(run|☃) now"),
    ):
        RunFolder(tmp_path / name).__enter__()
    with RunFolder(tmp_path / name):
        assert (tmp_path / name).is_dir(), "free again"


@pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="this system has no SIGKILL")
def test_killed_run_leaves_no_lock(tmp_path: Path) -> None:
    script = (
        "import sys, pathlib; from sdap_lite.checkpoint import RunFolder\nwith RunFolder(pathlib.Path(sys.argv[1])): print('in', flush=True); sys.stdin.read()"
    )
    with subprocess.Popen([sys.executable, "-c", script, str(tmp_path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as other:
        assert other.stdout is not None
        assert other.stdout.readline() == b"in\n"
        with pytest.raises(ValueError, match="no other run uses"):
            RunFolder(tmp_path).__enter__()
        other.kill()
    with RunFolder(tmp_path):
        assert (tmp_path / LOCK).exists()


def test_what_a_killed_write_left_is_cleared_away(tmp_path: Path) -> None:
    (tmp_path / f".{NAME}.abc.tmp").write_text("half of a checkpoi")
    (tmp_path / "notes.tmp").write_text("mine")
    with RunFolder(tmp_path):
        assert sorted(p.name for p in tmp_path.iterdir()) == [LOCK, "notes.tmp"]


def test_folder_that_cannot_be_made_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    for path in (tmp_path / "file", tmp_path / "file/run"):
        with pytest.raises(ValueError, match=r"checkpoint must name a folder that can be written, got .*file.*: \[Errno"):
            RunFolder(path).__enter__()


@pytest.mark.parametrize(
    ("epochs", "path", "said"),
    [
        (0, None, "nothing is saved, since checkpoint= named no folder"),
        (0, "run", "nothing is saved in .*run yet"),
        (3, "run", r"the last good checkpoint is .*checkpoint\.pt, of epoch 3: resume='.*run' goes on from it"),
    ],
)
@pytest.mark.parametrize("error", [KeyboardInterrupt(), FloatingPointError("the loss must be finite")])
def test_what_stops_a_run_says_how_to_go_on(tmp_path: Path, error: BaseException, epochs: int, path: str | None, said: str) -> None:
    with pytest.raises(type(error), match=said), RunFolder(path and tmp_path / path, epochs):
        raise error
