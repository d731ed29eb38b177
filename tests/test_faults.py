"""What can go wrong with a run while it goes on: nothing that was reached is lost, and the error says how to go on."""

from __future__ import annotations

import errno
import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import killed_run
import pytest
import torch
from nets import assert_same_bits, build, fingerprint, pictures, write_tree

from sdap_lite import checkpoint, data, prune
from sdap_lite.checkpoint import NAME, read_checkpoint
from sdap_lite.checkpoint import fingerprint as digest
from sdap_lite.loop import Training

QUICK: dict[str, Any] = {"epochs": 3, "batch_size": 8, "lr": 0.01, "mode": "fp32", "device": "cpu", "progress": False}
HERE = Path(__file__).parent


def python(*arguments: str, **options: Any) -> subprocess.CompletedProcess[str]:
    env = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join([str(HERE), *sys.path])}
    return subprocess.run([sys.executable, *arguments], env=env, timeout=300, capture_output=True, text=True, **options)


def assert_goes_on(folder: Path, epochs: int) -> None:
    """The folder's checkpoint has so many epochs, and a run that goes on from it ends as one that was never stopped."""
    assert len(read_checkpoint(folder)["history"]) == epochs
    assert_same_bits(killed_run.run("rms", resume=folder).model, fingerprint(killed_run.run("rms").model))
    assert sorted(p.name for p in folder.iterdir() if p.suffix == ".tmp") == []


@pytest.mark.skipif(not hasattr(os, "fork") or sys.platform == "darwin", reason="this system cannot fork a process that computes")
def test_killed_at_random_moments() -> None:
    """Five kills here, a hundred every night (``make fuzz``)."""
    done = python(str(HERE / "kills.py"), "--kills", "5", "--seed", "1")
    assert done.returncode == 0, done.stderr
    counts = json.loads(done.stdout)
    assert (counts["kills"], counts["wrong results"], counts["checkpoints lost"]) == (5, 0, 0)
    assert sum(counts["killed during"].values()) == 5
    assert counts["runs"] > 0


# A disk that is full, a folder that cannot be written, or is gone


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EROFS])
def test_checkpoint_that_cannot_be_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int) -> None:
    """The third one fails; the second one is still there."""
    write, written = checkpoint.write_atomically, []

    def failing(*args: Any, **kwargs: Any) -> None:
        written.append(args)
        if len(written) == 3:
            raise OSError(number, os.strerror(number))
        write(*args, **kwargs)

    with monkeypatch.context() as patch:
        patch.setattr(checkpoint, "write_atomically", failing)
        message = (
            rf"the checkpoint of epoch 3 cannot be written \({os.strerror(number)}\); the last good checkpoint is .*{NAME}, of epoch 2: resume='.*' goes on"
        )
        with pytest.raises(OSError, match=message) as caught:
            killed_run.run("rms", checkpoint=tmp_path)
    assert caught.value.errno == number
    assert_goes_on(tmp_path, 2)


@pytest.mark.skipif(not hasattr(signal, "SIGXFSZ"), reason="this system sets no limit on files")
def test_disk_that_ends_in_the_middle_of_a_checkpoint(tmp_path: Path) -> None:
    """For real: the system lets no file of this process grow beyond half a checkpoint, from the second epoch on."""
    script = """
import resource, sys
import killed_run
from sdap_lite import checkpoint
write, count = checkpoint.write_checkpoint, 0
def full(folder, content):
    global count
    count += 1
    if count == 2:
        half = (folder / checkpoint.NAME).stat().st_size // 2
        resource.setrlimit(resource.RLIMIT_FSIZE, (half, half))
    write(folder, content)
checkpoint.write_checkpoint = full
killed_run.run("rms", checkpoint=sys.argv[1])
"""
    done = python("-c", script, str(tmp_path))
    assert "the checkpoint of epoch 2 cannot be written (File too large); the last good checkpoint is" in done.stderr
    assert_goes_on(tmp_path, 1)


def test_folder_that_may_not_be_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Found before any training."""
    monkeypatch.setattr(Training, "epoch", lambda *_: pytest.fail("nothing may be trained"))
    (tmp_path / "locked").mkdir(mode=0o555)
    if os.access(tmp_path / "locked", os.W_OK):  # an administrator may write anywhere

        def refuse(path: Path) -> None:
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(path))

        monkeypatch.setattr(checkpoint, "FileLock", refuse)
    with pytest.raises(ValueError, match=r"checkpoint must name a folder that can be written, got .*locked: \[Errno 13\]"):
        killed_run.run("rms", checkpoint=tmp_path / "locked")


def test_checkpoint_folder_that_vanishes_is_made_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    epoch = Training.epoch

    def vanishing(self: Training, bar: Any) -> None:
        epoch(self, bar)
        if len(self.history) == 2:
            shutil.rmtree(tmp_path / "run")

    monkeypatch.setattr(Training, "epoch", vanishing)
    killed_run.run("rms", checkpoint=tmp_path / "run")
    assert len(read_checkpoint(tmp_path / "run")["history"]) == 4


def test_data_folder_that_vanishes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A run has its images in memory. The next one says what is missing, and goes on when it is back."""
    write_tree(tmp_path / "images", size=(16, 16))
    epoch = Training.epoch

    def vanishing(self: Training, bar: Any) -> None:
        if len(self.history) == 1:
            (tmp_path / "images").rename(tmp_path / "elsewhere")
        if len(self.history) == 2:
            raise KeyboardInterrupt
        epoch(self, bar)

    model = build("resnet-pad")
    images = data.load("folder", tmp_path / "images", size=16)
    with monkeypatch.context() as patch:
        patch.setattr(Training, "epoch", vanishing)
        with pytest.raises(KeyboardInterrupt, match="stopped after 2 epochs"):
            prune(model, images, 0.5, checkpoint=tmp_path / "run", **QUICK)
    with pytest.raises(data.DatasetUnavailable, match=r"folder is not in .*images: .*\nThree ways out"):
        data.load("folder", tmp_path / "images", size=16)
    (tmp_path / "elsewhere").rename(tmp_path / "images")
    images = data.load("folder", tmp_path / "images", size=16)
    resumed = prune(model, images, 0.5, resume=tmp_path / "run", **QUICK)
    assert_same_bits(resumed.model, fingerprint(prune(model, images, 0.5, **QUICK).model))


def test_other_images_of_the_same_count_are_refused(tmp_path: Path) -> None:
    killed_run.run("rms", checkpoint=tmp_path)
    images = pictures()
    images.train.images[0, 0, 0, 0] ^= 1
    with pytest.raises(ValueError, match=r"a run must be resumed with what it was begun with, but images was '[0-9a-f]{16}' and is now '[0-9a-f]{16}'$"):
        prune(build("resnet-pad"), images, resume=tmp_path, rule="rms", **killed_run.PRUNE)


# Ctrl-C, and a loss that is not finite


@pytest.fixture
def ctrl_c() -> Iterator[None]:
    """Ctrl-C as in a terminal: a process that was started in the background ignores it."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


def interrupt(monkeypatch: pytest.MonkeyPatch, at: int) -> None:
    """Ctrl-C in step ``at``."""
    step = Training.step

    def interrupted(self: Training, *args: Any) -> tuple[float, float]:
        if args[-1] == at:
            signal.raise_signal(signal.SIGINT)
        return step(self, *args)

    monkeypatch.setattr(Training, "step", interrupted)


@pytest.mark.usefixtures("ctrl_c")
def test_ctrl_c_says_how_to_go_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patch:
        interrupt(patch, 15)
        with pytest.raises(KeyboardInterrupt, match=rf"stopped after 2 epochs; the last good checkpoint is .*{NAME}, of epoch 2: resume='.*' goes on from it"):
            killed_run.run("rms", checkpoint=tmp_path)
    assert_goes_on(tmp_path, 2)


@pytest.mark.usefixtures("ctrl_c")
def test_ctrl_c_while_a_checkpoint_is_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    chmod, calls = os.chmod, []
    with monkeypatch.context() as patch:
        patch.setattr(checkpoint.os, "chmod", lambda *args: calls.append(args) or (signal.raise_signal(signal.SIGINT) if len(calls) == 2 else chmod(*args)))
        with pytest.raises(KeyboardInterrupt, match="stopped after 1 epochs; the last good checkpoint is"):
            killed_run.run("rms", checkpoint=tmp_path)
    assert_goes_on(tmp_path, 1)


@pytest.mark.usefixtures("ctrl_c")
def test_ctrl_c_without_a_folder_says_that_nothing_is_saved(monkeypatch: pytest.MonkeyPatch) -> None:
    interrupt(monkeypatch, 15)
    with pytest.raises(KeyboardInterrupt, match="stopped after 2 epochs; nothing is saved, since checkpoint= named no folder"):
        killed_run.run("rms")


def test_loss_that_is_not_finite_names_the_last_good_checkpoint(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    loss = Training.loss
    count: list[int] = []
    monkeypatch.setattr(Training, "loss", lambda self, *args: loss(self, *args) * (float("nan") if count.append(1) or len(count) == 9 else 1.0))
    message = (
        rf"the loss must be finite, got nan in epoch 2, step 8 at learning rate 0\.\d+: try a smaller one; the last good checkpoint is .*{NAME}, of epoch 1"
    )
    with pytest.raises(FloatingPointError, match=message):
        killed_run.run("train", checkpoint=tmp_path)
    assert len(read_checkpoint(tmp_path)["history"]) == 1


def test_weights_that_are_not_finite_are_not_saved(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The loss of an epoch's last step was finite, but its gradient was not: the next loss would tell too late."""
    step = Training.step

    def ruining(self: Training, x: Any, y: Any, count: int) -> tuple[float, float]:
        found = step(self, x, y, count)
        if count == 11:
            next(self.model.parameters()).data[0] = float("inf")
        return found

    monkeypatch.setattr(Training, "step", ruining)
    message = (
        r"the weights must be finite, got NaN or infinity after epoch 2 at learning rate 0\.\d+: try a smaller one; the last good checkpoint is .*, of epoch 1"
    )
    with pytest.raises(FloatingPointError, match=message):
        killed_run.run("train", checkpoint=tmp_path)
    assert len(read_checkpoint(tmp_path)["history"]) == 1


# Two runs


def test_second_run_is_refused_before_any_training(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    epoch, begun = Training.epoch, []

    def second(self: Training, bar: Any) -> None:
        begun.append(self)
        if len(begun) == 2:
            for argument in ("checkpoint", "resume"):
                with pytest.raises(ValueError, match=r"checkpoint must name a folder that no other run uses, but one is writing into .* now"):
                    killed_run.run("rms", **{argument: tmp_path})
        epoch(self, bar)

    monkeypatch.setattr(Training, "epoch", second)
    killed_run.run("rms", checkpoint=tmp_path)
    assert len(begun) == 4, "the second run did not begin"
    assert_goes_on(tmp_path, 4)


# The same again


def test_another_process_ends_in_the_same_bits(monkeypatch: pytest.MonkeyPatch) -> None:
    """With other hashes of strings, other addresses in memory, and no work before."""
    monkeypatch.setenv("PYTHONHASHSEED", "1")
    script = """
import torch, killed_run
from sdap_lite.checkpoint import fingerprint
torch.set_num_threads(1)
print(fingerprint(killed_run.run("rms").model.state_dict().values()))
"""
    done = python("-c", script)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == digest(killed_run.run("rms").model.state_dict().values())


def test_the_random_state_of_the_caller_does_not_matter() -> None:
    torch.manual_seed(1)
    first = fingerprint(killed_run.run("rms").model)
    torch.manual_seed(2)
    assert_same_bits(killed_run.run("rms").model, first)
