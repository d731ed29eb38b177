"""The command line: thin, and every mistake is a sentence, not a traceback."""

from __future__ import annotations

import errno
import importlib
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from nets import assert_same_bits, build, write_tree
from safetensors.torch import save_file
from torch import nn
from typer.testing import CliRunner

from sdap_lite import ChannelGraph, SurgeryError, checkpoint, count_macs, count_params, experiments, load, models, save, saving, time_layers
from sdap_lite.__main__ import app
from sdap_lite.checkpoint import RunFolder
from sdap_lite.loop import Training

COMMANDS = ["prune", "evaluate", "export", "data", "experiment", "grade"]


def run(*arguments: object) -> Any:
    return CliRunner().invoke(app, [str(a) for a in arguments], env={"COLUMNS": "300", "NO_COLOR": "1", "TERM": "dumb"})


def refused(*arguments: object) -> str:
    """What a refused command says, in one line."""
    result = run(*arguments)
    assert result.exit_code == 2, result.output
    assert result.exception is None or isinstance(result.exception, SystemExit)
    return re.sub(r"[│\s]+", " ", result.output)


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    """An image folder of two classes, 6 + 4 images of 16 pixels."""
    write_tree(tmp_path / "images", size=(16, 16))
    return tmp_path / "images"


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    save(models.resnet20(classes=2, width=4), tmp_path / "saved")
    return tmp_path / "saved"


# Help


@pytest.mark.parametrize("arguments", [["--help"], ["prune", "--help"]])
def test_help_in_a_process_of_its_own(arguments: list[str]) -> None:
    env = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(sys.path), "COLUMNS": "300"}
    done = subprocess.run(
        [sys.executable, "-W", "error", "-m", "sdap_lite", *arguments], env=env, capture_output=True, text=True, encoding="utf-8", timeout=300
    )
    assert done.returncode == 0, done.stderr
    assert "python -m sdap_lite" in done.stdout
    if "prune" not in arguments:
        assert all(command in done.stdout for command in COMMANDS)


@pytest.mark.parametrize(
    ("command", "options"),
    [
        (
            "prune",
            "--net --data --rate --epochs --unit --out --pretrained --weights --root --lr --seed --mode --checkpoint --resume".split(),
        ),
        ("evaluate", ["--saved", "--net", "--data", "--root", "--size"]),
        ("export", ["--saved", "--out", "--net", "--size", "--channels", "--classes"]),
        ("data", ["--root", "--size"]),
        ("grade", ["--out", "--timeout", "--memory"]),
    ],
)
def test_help_names_every_option(command: str, options: list[str]) -> None:
    result = run(command, "--help")
    assert result.exit_code == 0
    assert all(option in result.output for option in options)


def test_no_command_shows_the_help() -> None:
    assert all(command in run().output for command in COMMANDS)


# What they do


def test_data_says_what_is_there(tree: Path) -> None:
    result = run("data", "folder", "--root", tree, "--size", 16)
    assert result.exit_code == 0, result.output
    assert result.output.splitlines() == ["train: 6 images of shape [3, 16, 16]", "test: 4 images of shape [3, 16, 16]", "an image folder, 2 classes: cat, dog"]


@pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::DeprecationWarning")  # PyTorch's exporter warns of its own code
def test_prune_then_evaluate_then_export(tree: Path, tmp_path: Path) -> None:
    """The three commands in a row, each on what the one before wrote."""
    pytest.importorskip("onnxscript")
    pytest.importorskip("onnxruntime")
    out = tmp_path / "small"
    result = run("prune", "--data", "folder", "--root", tree, "--size", 16, "--epochs", 2, "--rate", 0.6, "--out", out, "--checkpoint", tmp_path / "run")
    assert result.exit_code == 0, result.output
    assert "note: no weights were named, so a network that was never trained is pruned" in result.output
    assert "removed, 60.00% of params asked for" in result.output
    assert f"written: {out}.safetensors, {out}.json" in result.output
    assert (tmp_path / "run/checkpoint.pt").is_file()
    small = load(out, models.resnet20(classes=2))
    assert 0.39 * 269_202 < count_params(small) <= 0.4 * 269_202

    result = run("evaluate", "--saved", out, "--data", "folder", "--root", tree, "--size", 16)
    assert result.exit_code == 0, result.output
    assert re.search(r"resnet20 on an image folder: \d+\.\d\d% of 4 test images", result.output)
    assert f"{count_params(small):,} parameters" in result.output

    result = run("export", "--saved", out, "--out", tmp_path / "small.onnx", "--size", 16, "--classes", 2)
    assert result.exit_code == 0, result.output
    assert re.search(r"written: .*small.onnx; ONNX Runtime differs by \d\.\de-\d\d", result.output)
    assert (tmp_path / "small.onnx").is_file()


@pytest.mark.parametrize("ending", ["pt", "safetensors"])
def test_weights_of_ones_own(tree: Path, tmp_path: Path, ending: str) -> None:
    state = models.resnet20(classes=2).state_dict()
    path = tmp_path / f"mine.{ending}"
    save_file(state, path) if ending == "safetensors" else torch.save(state, path)
    arguments = ["--data", "folder", "--root", tree, "--size", 16, "--epochs", 1, "--rate", 0.3, "--out", tmp_path / "small"]
    result = run("prune", "--weights", path, *arguments)
    assert result.exit_code == 0, result.output
    assert "never trained" not in result.output


def test_network_of_ones_own(tree: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "mynets.py").write_text("from sdap_lite import models\ndef tiny():\n    return models.ResNet(8, classes=2, width=4)\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    result = run("prune", "--net", "mynets:tiny", "--data", "folder", "--root", tree, "--size", 16, "--epochs", 1, "--out", tmp_path / "small")
    assert result.exit_code == 0, result.output
    assert "note: no weights were named, so they are as mynets:tiny returns them\n" in result.output
    assert type(load(tmp_path / "small", models.ResNet(8, classes=2, width=4))) is models.ResNet
    result = run("evaluate", "--net", "mynets:tiny", "--data", "folder", "--root", tree, "--size", 16)
    assert result.exit_code == 0, result.output
    assert "note: no weights were named, so they are as mynets:tiny returns them\n" in result.output


def test_rate_in_latency(tree: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """On a machine that takes a nanosecond a MAC."""

    def timed(model: nn.Module, graph: ChannelGraph) -> ChannelGraph:
        return time_layers(model, graph, points=2, repeats=1, timer=lambda module, x: count_macs(module, x) * 1e-9)

    monkeypatch.setattr(importlib.import_module("sdap_lite.train"), "time_layers", timed)
    images = ["--data", "folder", "--root", tree, "--size", 16]
    result = run("prune", "--unit", "latency", *images, "--epochs", 1, "--rate", 0.5, "--out", tmp_path / "small")
    assert result.exit_code == 0, result.output
    assert "removed, 50.00% of latency asked for" in result.output
    assert re.search(r"  latency +\d+\.\d{3} ms -> +\d+\.\d{3} ms  \(5\d\.\d\d% gone\)\n  measured +\d+\.\d{3} ms -> +\d+\.\d{3} ms", result.output)


def test_network_of_torchvision(tree: Path, tmp_path: Path) -> None:
    images = ["--data", "folder", "--root", tree, "--size", 32]
    result = run("prune", "--net", "torchvision:squeezenet1_1", *images, "--epochs", 1, "--rate", 0.3, "--out", tmp_path / "small")
    assert result.exit_code == 0, result.output


@pytest.fixture
def imagenette(tmp_path: Path) -> Path:
    """A folder with an Imagenette of 30 + 20 images of one colour each."""
    write_tree(tmp_path / "sets/imagenette2-160", test="val", classes=tuple("abcdefghij"))
    return tmp_path / "sets"


def test_shipped_weights_of_a_network_of_torchvision(imagenette: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    images = ["--net", "torchvision:mobilenet_v2", "--data", "imagenette", "--root", imagenette]
    wanted = models.stock("mobilenet_v2", pretrained="imagenette").state_dict()
    built: list[nn.Module] = []

    def pruned(model: nn.Module, *_: object, **__: object) -> None:
        built.append(model)
        raise ValueError("this far")

    monkeypatch.setattr("sdap_lite.__main__.run_prune", pruned)
    said = refused("prune", *images, "--size", 64, "--out", tmp_path / "small")
    assert "this far" in said
    assert "note" not in said
    assert_same_bits(built[0], wanted)
    result = run("evaluate", *images, "--size", 32)
    assert result.exit_code == 0, result.output
    assert "note: the weights were trained on images of 64 pixels a side, and these have 32: --size 64 fits them\n" in result.output
    assert re.search(r"torchvision:mobilenet_v2 on Imagenette: \d+\.\d\d% of 20 test images\n2,236,682 parameters", result.output)


def test_every_network_of_the_recipes_is_known(tree: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    built: list[nn.Module] = []
    monkeypatch.setattr("sdap_lite.__main__.run_prune", lambda model, *_, **__: built.append(model) or refuse())

    def refuse() -> None:
        raise ValueError("this far")

    for net, build_net in models.NETS.items():
        assert "this far" in refused("prune", "--net", net, "--data", "folder", "--root", tree, "--size", 16, "--out", tmp_path / "small")
        assert count_params(built.pop()) == count_params(build_net(in_channels=3, classes=2)), net


def test_network_runs_as_it_is_asked_to(tree: Path, tmp_path: Path) -> None:
    images = ["--data", "folder", "--root", tree, "--size", 16, "--epochs", 1, "--rate", 0.3, "--out", tmp_path / "small"]
    result = run("prune", *images, "--mode", "fp32-channels-last", "--no-flip", "--checkpoint", tmp_path / "run")
    assert result.exit_code == 0, result.output
    settings = checkpoint.read_checkpoint(tmp_path / "run")["settings"]
    assert (settings["mode"], settings["flip"]) == ("fp32-channels-last", False)
    assert "mode must be auto or one of fp32, fp32-channels-last, bf16-channels-last, got 'fp16'" in refused("prune", *images, "--mode", "fp16")


# Mistakes


def test_weights_that_there_are_not_are_refused(tree: Path) -> None:
    none = "pretrained must be one of (none for this network) for resnet18, got"
    assert f"{none} 'fashion-mini'" in refused("evaluate", "--net", "torchvision:resnet18", "--data", "fashion-mini")
    images = ["--data", "folder", "--root", tree, "--size", 16]
    assert f"{none} 'DEFAULT'" in refused("prune", "--net", "torchvision:resnet18", "--pretrained", "DEFAULT", *images)
    said = refused("prune", "--net", "sdap_lite.models:resnet20", "--pretrained", "cifar10", *images)
    assert "which has none for sdap_lite.models:resnet20, got 'cifar10': give --weights" in said


def test_unknown_network_is_refused(tree: Path) -> None:
    images = ["--data", "folder", "--root", tree, "--size", 16]
    known = f"{', '.join(name for name in models.NETS if ':' not in name)}, torchvision:NAME or module:function"
    assert "vgg-half" in known
    assert f"net must be {known}, got 'resnet21'" in refused("prune", "--net", "resnet21", *images)
    assert "no_such_module" in refused("prune", "--net", "no_such_module:net", *images)
    assert "has no attribute 'magic'" in refused("prune", "--net", "sdap_lite.models:magic", *images)
    assert "Unknown model magic" in refused("prune", "--net", "torchvision:magic", *images)
    assert "pretrained must be one of" in refused("prune", "--pretrained", "magic", *images)


@pytest.mark.parametrize(
    ("code", "said"),
    [
        ("def net(width): ...", "'mynets:net' raised TypeError: net() missing 1 required positional argument: 'width'"),
        ("def net(): raise KeyError('width')", "'mynets:net' raised KeyError: 'width'"),
        ("def net(): ...", "must name a function that returns a torch.nn.Module, but 'mynets:net' returned a NoneType"),
        ("net = 5", "'mynets:net' raised TypeError: 'int' object is not callable"),
    ],
)
def test_what_builds_no_network_is_refused(tree: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: str, said: str) -> None:
    (tmp_path / "mynets.py").write_text(code)
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.delitem(sys.modules, "mynets", raising=False)
    assert said in refused("prune", "--net", "mynets:net", "--data", "folder", "--root", tree, "--size", 16)


def test_unknown_images_are_refused(tmp_path: Path) -> None:
    assert "name must be one of cifar10" in refused("data", "mnist")
    assert "Three ways out" in refused("data", "imagenet32", "--root", tmp_path)


def test_wrong_settings_are_refused(tree: Path, tmp_path: Path) -> None:
    images = ["--data", "folder", "--root", tree, "--size", 16, "--out", tmp_path / "small"]
    assert "rate must be the share that is removed" in refused("prune", "--rate", 75, *images)
    assert "unit must be one of params, macs, channels, latency, got 'flops'" in refused("prune", "--unit", "flops", *images)
    assert "epochs must be a whole number from 1 on, got 0" in refused("prune", "--epochs", 0, *images)
    assert "resume must name a folder with a checkpoint.pt in it" in refused("prune", "--resume", tmp_path / "nowhere", *images)
    assert not list(tmp_path.glob("small*"))


def test_missing_folder_is_found_before_any_training(tree: Path, tmp_path: Path) -> None:
    assert "the folder of --out must exist, but there is no" in refused("prune", "--data", "folder", "--root", tree, "--out", tmp_path / "nowhere/small")


def test_broken_files_are_refused(tree: Path, tmp_path: Path, saved: Path) -> None:
    images = ["--data", "folder", "--root", tree, "--size", 16]
    (tmp_path / "broken.pt").write_bytes(b"no weights")
    assert "broken.pt must be a state_dict of the network, but" in refused("prune", "--weights", tmp_path / "broken.pt", *images)
    torch.save(build("vgg").state_dict(), tmp_path / "other.pt")
    assert "other.pt must be a state_dict of the network, but" in refused("prune", "--weights", tmp_path / "other.pt", *images)
    assert "other.json must be a recipe, but cannot be read as one" in refused("evaluate", "--saved", tmp_path / "other", *images)
    onnx = ["--out", tmp_path / "x.onnx", "--classes", 2]
    assert "is of class ResNet, but the model to load into is a VGG" in refused("export", "--saved", saved, "--net", "vgg", *onnx)
    assert not (tmp_path / "x.onnx").exists()


def test_network_that_cannot_be_written_is_refused_before_any_training(tree: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One with a weight that is computed, which is more than weights and widths say."""
    code = "def computed():\n    net = models.ResNet(8, classes=2, width=4)\n    weight_norm(net.fc)\n    return net\n"
    (tmp_path / "computednets.py").write_text(f"from torch.nn.utils.parametrizations import weight_norm\n\nfrom sdap_lite import models\n{code}")
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setattr("sdap_lite.__main__.run_prune", None)
    said = refused("prune", "--net", "computednets:computed", "--data", "folder", "--root", tree, "--size", 16, "--out", tmp_path / "small")
    assert re.search("a network must be one that can be written as .*small, but: .*parametrizations", said)
    assert not [path.name for path in tmp_path.iterdir() if "small" in path.name or path.name.startswith(".")]


@pytest.mark.parametrize("out", [".", "..", ""])
def test_place_without_a_name_is_refused_before_any_training(out: str, tree: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sdap_lite.__main__.run_prune", None)
    before = sorted(path.name for path in tmp_path.rglob("*"))
    said = refused("prune", "--net", "resnet20", "--data", "folder", "--root", tree, "--size", 16, "--out", out)
    assert "path must name a file, without an ending" in said
    assert sorted(path.name for path in tmp_path.rglob("*")) == before


# What stops a run


def test_ctrl_c_says_how_to_go_on(tree: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    epoch = Training.epoch
    images = ["--data", "folder", "--root", tree, "--size", 16, "--epochs", 2, "--rate", 0.3, "--out", tmp_path / "small"]

    def interrupted(self: Training, bar: Any) -> None:
        if self.history:
            raise KeyboardInterrupt
        epoch(self, bar)

    with monkeypatch.context() as patch:
        patch.setattr(Training, "epoch", interrupted)
        result = run("prune", *images, "--checkpoint", tmp_path / "run")
    assert result.exit_code == 130
    assert "stopped after 1 epochs; the last good checkpoint is" in result.output
    assert "goes on from it" in result.output
    assert run("prune", *images, "--resume", tmp_path / "run").exit_code == 0
    assert (tmp_path / "small.safetensors").is_file()


def test_result_that_cannot_be_written_is_in_the_checkpoint(tree: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    images = ["--data", "folder", "--root", tree, "--size", 16, "--epochs", 1, "--rate", 0.3, "--out", tmp_path / "small"]
    whole = models.resnet20(classes=2)

    def save_dense(model: nn.Module, path: Path) -> None:
        if count_params(model) != count_params(whole):
            raise RuntimeError("no")
        save(model, path)

    with monkeypatch.context() as patch:
        patch.setattr(saving, "save", save_dense)
        said = refused("prune", *images, "--checkpoint", tmp_path / "run")
        assert re.search(r"removed, 30.00% of params asked for.*cannot be written as .*small: no; it is in the checkpoint, and --resume .*run writes it", said)
        assert "cannot be written as" in (lost := refused("prune", *images))
        assert "no; it is lost, since --checkpoint named no folder" in lost
    assert not (tmp_path / "small.safetensors").exists()
    result = run("prune", *images, "--resume", tmp_path / "run")
    assert result.exit_code == 0, result.output
    assert count_params(load(tmp_path / "small", whole)) < count_params(whole)


@pytest.mark.parametrize("error", [FloatingPointError("the loss is NaN"), OSError("the disk is full"), SurgeryError("it differs")])
def test_errors_of_an_experiment_are_sentences(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: Exception) -> None:
    def fails(*_: object, **__: object) -> Iterator[str]:
        yield "a row"
        raise error

    monkeypatch.setattr(experiments, "run", fails)
    said = refused("experiment", "rivals-vgg", "--out", tmp_path, "--work", tmp_path)
    assert said.startswith("a row ")
    assert str(error) in said


@pytest.mark.parametrize(("message", "said"), [("stopped after 1 epochs; nothing is lost", "stopped after 1 epochs; nothing is lost"), ("", "stopped")])
def test_ctrl_c_ends_an_experiment_in_a_sentence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, message: str, said: str) -> None:
    def stops(*_: object, **__: object) -> Iterator[str]:
        yield "a row"
        raise KeyboardInterrupt(message)

    monkeypatch.setattr(experiments, "run", stops)
    result = run("experiment", "rivals-vgg", "--out", tmp_path, "--work", tmp_path)
    assert result.exit_code == 130
    assert result.output.split("\n") == ["a row", said, ""]


@pytest.mark.parametrize("error", [ModuleNotFoundError("No module named 'onnxruntime'"), RuntimeError("ONNX Runtime differs"), OSError("the disk is full")])
def test_errors_of_an_export_are_sentences(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, saved: Path, error: Exception) -> None:
    def fails(*_: object) -> None:
        raise error

    monkeypatch.setattr(saving, "export_onnx", fails)
    assert str(error) in refused("export", "--saved", saved, "--out", tmp_path / "x.onnx", "--classes", 2)


def test_errors_while_a_run_goes_on_are_sentences(tree: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    images = ["--data", "folder", "--root", tree, "--size", 16, "--epochs", 1, "--rate", 0.3, "--out", tmp_path / "small"]
    with RunFolder(tmp_path / "run"):
        assert "checkpoint must name a folder that no other run uses" in refused("prune", *images, "--checkpoint", tmp_path / "run")
    assert re.search("the (loss|weights) must be finite, got .*: try a smaller one; nothing is saved", refused("prune", *images, "--epochs", 3, "--lr", 1e38))

    def differs(*_: object, **__: object) -> None:
        raise SurgeryError("the small model must compute what the masked one computes")

    with monkeypatch.context() as patch:
        patch.setattr("sdap_lite.__main__.run_prune", differs)
        assert "the small model must compute what the masked one computes" in refused("prune", *images)

    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(checkpoint, "write_checkpoint", full)
    said = refused("prune", *images, "--checkpoint", tmp_path / "run")
    assert "the checkpoint of epoch 1 cannot be written (No space left on device); nothing is saved in" in said
    monkeypatch.setattr(saving, "write_together", full)
    assert "No space left on device" in refused("prune", *images)
    assert not list(tmp_path.glob("small*"))
