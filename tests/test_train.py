"""The one run: what it reaches, what it leaves alone, and that a killed one goes on bit by bit."""

from __future__ import annotations

import math
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import killed_run
import pytest
import torch
from nets import EXAMPLE, QUICK, OwnInput, Shared, SqueezeExcitation, Stopped, Viewed, assert_same_bits, build, fingerprint, hooked, pictures, stop_after
from torch import Tensor, nn

import sdap_lite
from sdap_lite import (
    Images,
    Result,
    Split,
    TraceError,
    accuracy,
    cost,
    count_params,
    largest_rate,
    loop,
    models,
    prune,
    settings,
    trace,
    train,
)
from sdap_lite.checkpoint import LOCK, NAME, PREVIOUS, read_checkpoint


@pytest.fixture(scope="module")
def whole_run() -> tuple[nn.Module, dict[str, Tensor], Images, Result]:
    """ResNet-20 at full width, pruned once for all tests that look at the result."""
    torch.set_num_threads(1)
    torch.manual_seed(0)
    model, images = models.resnet20(classes=4), pictures()
    model.train()
    model.bn1.eval()
    before = fingerprint(model)
    return model, before, images, prune(model, images, rate=0.75, **{**QUICK, "epochs": 4, "batch_size": 8})


# What a run gives back


def test_achieved_rate_is_what_was_asked_for(whole_run: tuple[nn.Module, dict[str, Tensor], Images, Result]) -> None:
    model, _, _, result = whole_run
    assert result.report is not None
    assert 0.75 <= result.report.achieved() <= 0.76
    assert 1 - count_params(result.model) / count_params(model) == pytest.approx(result.report.achieved())
    assert result.report.asked == 0.75


def test_small_model_is_a_plain_resnet(whole_run: tuple[nn.Module, dict[str, Tensor], Images, Result]) -> None:
    model, _, _, result = whole_run
    assert type(result.model) is models.ResNet
    assert [(n, type(m)) for n, m in result.model.named_modules()] == [(n, type(m)) for n, m in model.named_modules()]
    assert not any(m.training for m in result.model.modules())
    assert all(p.requires_grad for p in result.model.parameters())
    assert result.graph is not None
    assert {name: (int(k.sum()), len(k)) for name, k in result.kept.items()} == result.report.widths  # type: ignore[union-attr]
    assert trace(result.model, EXAMPLE).groups.keys() == result.graph.groups.keys()


def test_small_model_equals_the_masked_one_in_float64(whole_run: tuple[nn.Module, dict[str, Tensor], Images, Result]) -> None:
    """The trained small weights, put back into a whole network: masked, it computes the same."""
    _, _, _, result = whole_run
    graph, small = result.graph, result.model
    assert graph is not None
    flat = graph.join(result.kept, True)
    large = models.resnet20(classes=4).double().eval()
    with torch.no_grad():
        for name, layer in graph.layers.items():
            for key, value in small.get_submodule(name).state_dict().items():
                target = large.get_submodule(name).state_dict()[key]
                rows = flat[layer.outputs].nonzero().flatten()
                if key == "weight" and layer.mixes:
                    target[rows[:, None], flat[layer.inputs].nonzero().flatten()] = value.double()
                elif value.ndim:
                    target[rows] = value.double()
        x = torch.randn(4, 3, 16, 16, dtype=torch.float64)
        with hooked(large, graph, flat):
            assert float((small.double()(x) - large(x)).abs().max()) < 1e-10
        small.float()


def test_given_model_is_left_as_it_was(whole_run: tuple[nn.Module, dict[str, Tensor], Images, Result]) -> None:
    model, before, _, result = whole_run
    assert_same_bits(model, before)
    assert model.training
    assert not model.bn1.training
    assert all(p.grad is None for p in model.parameters())
    shared = {p.data_ptr() for p in model.parameters()} & {p.data_ptr() for p in result.model.parameters()}
    assert not shared


def test_history_has_a_record_an_epoch(whole_run: tuple[nn.Module, dict[str, Tensor], Images, Result]) -> None:
    _, _, _, result = whole_run
    assert [r["epoch"] for r in result.history] == [1, 2, 3, 4]
    for record in result.history:
        assert list(record) == ["epoch", "loss", "train", "validation", "removed", "lr", "seconds"]
        assert all(0 <= record[k] <= 1 for k in ("train", "validation", "removed"))
        assert math.isfinite(record["loss"])
        assert record["seconds"] > 0
    removed = [r["removed"] for r in result.history]
    assert removed == sorted(removed)
    assert removed[2] == removed[3] == result.report.achieved()  # type: ignore[union-attr]
    assert 0 < removed[0] < 0.75


def test_result_says_how_well_it_went(whole_run: tuple[nn.Module, dict[str, Tensor], Images, Result]) -> None:
    model, _, images, result = whole_run
    assert result.dense_test == accuracy(model, images)
    assert result.test == accuracy(result.model, images)
    assert f"test accuracy {result.dense_test:.2%} -> {result.test:.2%} in 4 epochs" in str(result)
    assert str(result.report) in str(result)


@pytest.mark.parametrize("unit", ["params", "macs", "channels"])
@pytest.mark.parametrize("name", ["vgg", "mobilenet", "densenet"])
def test_rate_is_met_on_every_wiring(name: str, unit: str) -> None:
    model = build(name)
    result = prune(model, pictures(16, 8, classes=10), rate=0.5, unit=unit, **{**QUICK, "epochs": 1, "batch_size": 8})
    assert result.report is not None
    largest = max(float(c.max()) for c in sdap_lite.channel_costs(result.graph, unit=unit).values())
    assert 0.5 <= result.report.achieved(unit) <= 0.5 + largest / cost(result.graph, unit=unit)
    assert cost(trace(result.model, EXAMPLE), unit=unit) == cost(result.graph, result.kept, unit)


@pytest.mark.parametrize("net", [SqueezeExcitation, Shared])
def test_networks_of_others_are_pruned(net: Callable[[], nn.Module]) -> None:
    result = prune(net(), pictures(16, 8, classes=5), rate=0.4, **QUICK)
    assert result.report is not None
    assert result.report.achieved() >= 0.4


@pytest.mark.parametrize("rule", list(sdap_lite.RULES))
@pytest.mark.parametrize("ramp", [0.0, 0.5, 1.0])
def test_every_rule_and_every_ramp(rule: str, ramp: float) -> None:
    """Ramp 0 cuts before the first step, ramp 1 after the last."""
    result = prune(build("resnet-pad"), pictures(), rate=0.5, rule=rule, ramp=ramp, **QUICK)
    assert result.report is not None
    assert result.report.achieved() >= 0.5
    assert count_params(result.model) == cost(result.graph, result.kept)


def test_rate_zero_removes_nothing() -> None:
    model = build("resnet-pad")
    result = prune(model, pictures(), rate=0, **QUICK)
    assert result.report is not None
    assert result.report.achieved() == 0
    assert count_params(result.model) == count_params(model)


NOTHING_MAY_GO = {
    "the outputs are all channels": nn.Sequential(nn.Conv2d(3, 4, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten()),
    "no layer has gates": nn.Sequential(nn.Flatten(), nn.PReLU(), nn.AdaptiveAvgPool1d(4)),
}


@pytest.mark.parametrize("ramp", [0.0, 0.5, 1.0])
@pytest.mark.parametrize("net", NOTHING_MAY_GO)
def test_network_without_a_channel_that_may_go(net: str, ramp: float) -> None:
    model = NOTHING_MAY_GO[net]
    assert largest_rate(trace(model, EXAMPLE)) == 0
    result = prune(model, pictures(), 0.0, ramp=ramp, cuts=2, **{**QUICK, "epochs": 4, "batch_size": 8})
    assert result.kept == {}
    assert count_params(result.model) == count_params(model)


def test_training_learns_in_place() -> None:
    model, images = build("resnet-conv"), pictures(128, 64)
    result = train(model, images, **{**QUICK, "epochs": 8, "lr": 0.05})
    assert result.model is model
    assert result.test == accuracy(model, images) > 0.6
    assert result.history[-1]["loss"] < result.history[0]["loss"]
    assert list(result.history[0]) == ["epoch", "loss", "train", "validation", "lr", "seconds"]
    assert str(result) == f"test accuracy {result.test:.2%} in 8 epochs"


def test_scores_follow_what_the_images_need() -> None:
    """Channels whose consumers ignore them have no gradient, so learned gates close them first."""
    model = build("vgg")
    graph = trace(model, EXAMPLE)
    useless = {name: torch.arange(len(g)) % 2 == 0 for name, g in graph.prunable.items()}
    flat = ~graph.join(useless, False)
    with torch.no_grad():
        for name, layer in graph.layers.items():
            if layer.mixes:
                model.get_submodule(name).weight[:, ~flat[layer.columns]] = 0
    result = prune(model, pictures(classes=10), rate=0.85, cost_power=0, **{**QUICK, "lr": 1e-6})
    kept = torch.cat([result.kept[n][useless[n]] for n in useless])
    best = torch.cat([result.kept[n][~useless[n]] for n in useless])
    assert not kept.any()
    assert best.float().mean() > 0.5


# Seeds


def test_same_seed_same_weights_and_another_one_others() -> None:
    runs = [prune(build("resnet-pad"), pictures(), rate=0.5, seed=seed, **QUICK) for seed in (1, 1, 2)]
    assert_same_bits(runs[0].model, fingerprint(runs[1].model))
    assert not torch.equal(runs[0].model.fc.bias, runs[2].model.fc.bias)


def test_run_leaves_the_random_numbers_alone() -> None:
    torch.manual_seed(11)
    wanted = torch.rand(3)
    torch.manual_seed(11)
    train(build("vgg"), pictures(classes=10), **{**QUICK, "epochs": 1})
    assert torch.equal(torch.rand(3), wanted)


def test_dropout_is_drawn_from_the_seed() -> None:
    def run() -> nn.Module:
        torch.rand(int(torch.randint(1, 9, ()).item()))  # whatever was drawn before
        model = nn.Sequential(nn.Flatten(), nn.Dropout(0.5), nn.Linear(768, 4))
        nn.init.constant_(model[2].weight, 0.01)
        nn.init.zeros_(model[2].bias)
        return train(model, pictures(), **QUICK).model

    assert torch.equal(run()[2].weight, run()[2].weight)  # type: ignore[index]


# Who sees which images


class Watched:
    """Notes which images each part of a run looks at."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.trained: set[bytes] = set()
        self.checked: set[bytes] = set()
        batches, look = loop.batches, loop.accuracy

        def watched_batches(split: Split, *args: Any, **kwargs: Any) -> Any:
            self.trained |= {image.numpy().tobytes() for image in split.images}
            return batches(split, *args, **kwargs)

        def watched_accuracy(model: nn.Module, images: Images, *, split: Split | None = None, **kwargs: Any) -> float:
            if split is not None:
                self.checked |= {image.numpy().tobytes() for image in split.images}
            return look(model, images, split=split, **kwargs)

        monkeypatch.setattr(loop, "batches", watched_batches)
        monkeypatch.setattr(loop, "accuracy", watched_accuracy)


@pytest.mark.parametrize("given", [False, True])
def test_validation_part_never_overlaps(monkeypatch: pytest.MonkeyPatch, given: bool) -> None:
    watched, images = Watched(monkeypatch), pictures()
    everything = {image.numpy().tobytes() for image in images.train.images}
    if given:
        held_out, rest = images.train.divide(10, seed=4)
        images = replace(images, train=rest, validation=held_out)
    prune(build("resnet-pad"), images, rate=0.5, validation=0.25, **QUICK)
    assert not watched.trained & watched.checked
    assert watched.trained | watched.checked == everything
    assert len(watched.checked) == (10 if given else 12)
    tests = {image.numpy().tobytes() for image in images.test.images}
    assert not tests & (watched.trained | watched.checked)


def test_validation_part_is_the_same_for_every_seed(monkeypatch: pytest.MonkeyPatch) -> None:
    parts = []
    for seed in (0, 7):
        watched = Watched(monkeypatch)
        train(build("resnet-conv"), pictures(), seed=seed, **{**QUICK, "epochs": 1})
        parts.append(watched.checked)
    assert parts[0] == parts[1]


def test_test_images_never_influence() -> None:
    images = pictures()
    others = replace(images, test=Split(255 - images.test.images.flip(0), (images.test.labels + 1) % 4))
    first, second = (prune(build("resnet-pad"), i, rate=0.5, **QUICK) for i in (images, others))
    assert_same_bits(first.model, fingerprint(second.model))
    seconds = [[{k: v for k, v in r.items() if k != "seconds"} for r in result.history] for result in (first, second)]
    assert seconds[0] == seconds[1]


# The teacher


class Teacher(nn.Module):
    """Notes how it is called. The list is the class's: the run copies its teacher."""

    calls: list[tuple[bool, bool, bool]] = []  # noqa: RUF012

    def __init__(self) -> None:
        super().__init__()
        self.net = build("resnet-pad")

    def forward(self, x: Tensor) -> Tensor:
        self.calls.append((any(m.training for m in self.modules()), torch.is_grad_enabled(), any(p.requires_grad for p in self.parameters())))
        return self.net(x)


def test_teacher_is_in_eval_mode_without_gradients() -> None:
    teacher = Teacher().train()
    before = fingerprint(teacher)
    Teacher.calls.clear()
    result = prune(build("resnet-pad"), pictures(), rate=0.5, teacher=teacher, **QUICK)
    assert len(Teacher.calls) > 4
    assert set(Teacher.calls[1:]) == {(False, False, False)}
    assert_same_bits(teacher, before)
    assert teacher.training
    assert all(p.requires_grad and p.grad is None for p in teacher.parameters())
    assert result.dense_test == accuracy(build("resnet-pad"), pictures()), "of the network that was pruned, not of the teacher"


def test_frozen_teacher_is_welcome() -> None:
    teacher = build("resnet-conv").requires_grad_(False)
    prune(build("resnet-pad"), pictures(), rate=0.5, teacher=teacher, **QUICK)
    assert not any(p.requires_grad for p in teacher.parameters())


def test_alpha_zero_asks_no_teacher() -> None:
    Teacher.calls.clear()
    prune(build("resnet-pad"), pictures(), rate=0.5, teacher=Teacher(), alpha=0, **QUICK)
    assert len(Teacher.calls) == 1, "only whether it fits the images"


def test_teacher_is_the_pretrained_network_itself() -> None:
    given = [prune(build("resnet-pad"), pictures(), rate=0.5, teacher=t, **QUICK) for t in (None, build("resnet-pad"), build("resnet-pad", seed=9))]
    assert_same_bits(given[0].model, fingerprint(given[1].model))
    assert not torch.equal(given[0].model.fc.bias, given[2].model.fc.bias)


# Checkpoints


needs_sigkill = pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="this system has no SIGKILL")


@needs_sigkill
@pytest.mark.parametrize(
    ("kind", "last", "epochs"),
    [("rms", 9, 1), ("rms", 20, 3), ("straight-through", 9, 1), ("train", 8, 1)],
    ids=["while gates learn", "after surgery", "straight-through", "plain training"],
)
def test_killed_run_goes_on_bit_by_bit(tmp_path: Path, kind: str, last: int, epochs: int) -> None:
    """SIGKILL in the middle of an epoch; the rest of the run ends in the same weights as one that was never killed."""
    script = Path(killed_run.__file__)
    env = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join([str(script.parent), *sys.path])}
    done = subprocess.run([sys.executable, str(script), str(tmp_path), kind, str(last)], env=env, timeout=300)
    assert done.returncode == -signal.SIGKILL
    saved = read_checkpoint(tmp_path)
    assert len(saved["history"]) == epochs, "the epoch that was killed left nothing"
    resumed, wanted = killed_run.run(kind, resume=tmp_path), killed_run.run(kind)
    assert_same_bits(resumed.model, fingerprint(wanted.model))
    assert resumed.test == wanted.test
    assert [{k: v for k, v in r.items() if k != "seconds"} for r in resumed.history] == [{k: v for k, v in r.items() if k != "seconds"} for r in wanted.history]
    assert all(torch.equal(resumed.kept[n], wanted.kept[n]) for n in wanted.kept)
    assert resumed.settings == wanted.settings


@pytest.mark.parametrize("epochs", [1, 2, 3])
def test_stopped_run_goes_on_bit_by_bit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, epochs: int) -> None:
    """Within the ramp, at the moment of surgery, behind it; the frozen rule, MACs, another teacher."""
    arguments: dict[str, Any] = {"unit": "macs", "teacher": build("resnet-conv"), "cost_power": 0.2, "ramp": 0.5}
    with monkeypatch.context() as patch:
        stop_after(patch, epochs)
        with pytest.raises(Stopped):
            killed_run.run("frozen", checkpoint=tmp_path, **arguments)
    resumed = killed_run.run("frozen", resume=tmp_path, **arguments)
    assert_same_bits(resumed.model, fingerprint(killed_run.run("frozen", **arguments).model))
    assert len(read_checkpoint(tmp_path)["history"]) == 4, "the resumed run writes on into the same folder"


def test_finished_run_can_be_resumed(tmp_path: Path) -> None:
    first = killed_run.run("rms", checkpoint=tmp_path)
    again = killed_run.run("rms", resume=tmp_path)
    assert_same_bits(again.model, fingerprint(first.model))
    assert again.history == first.history


def test_run_that_ends_in_the_ramp_can_be_resumed(tmp_path: Path) -> None:
    first = killed_run.run("rms", checkpoint=tmp_path, ramp=1.0)
    assert_same_bits(killed_run.run("rms", resume=tmp_path, ramp=1.0).model, fingerprint(first.model))


def test_checkpoints_change_nothing(tmp_path: Path) -> None:
    assert_same_bits(killed_run.run("rms", checkpoint=tmp_path).model, fingerprint(killed_run.run("rms").model))
    assert sorted(p.name for p in tmp_path.iterdir()) == [LOCK, PREVIOUS, NAME]


@pytest.mark.parametrize(
    ("arguments", "found"),
    [
        ({"rate": 0.5}, r"rate was 0\.6 and is now 0\.5"),
        ({"epochs": 5}, "epochs was 4 and is now 5"),
        ({"seed": 4}, "seed was 3 and is now 4"),
        ({"lr": 0.02, "alpha": 0.4}, r"lr was 0\.01 and is now 0\.02, alpha was 0\.5 and is now 0\.4"),
        ({"mode": "fp32-channels-last"}, "mode was 'fp32' and is now 'fp32-channels-last'"),
        ({"teacher": build("resnet-conv")}, "teacher was '' and is now '[0-9a-f]{16}'"),
    ],
)
def test_other_settings_are_refused(tmp_path: Path, arguments: dict[str, Any], found: str) -> None:
    killed_run.run("rms", checkpoint=tmp_path, epochs=4)
    before = (tmp_path / NAME).read_bytes()
    with pytest.raises(ValueError, match=rf"a run must be resumed with what it was begun with, but {found}"):
        killed_run.run("rms", resume=tmp_path, **arguments)
    assert (tmp_path / NAME).read_bytes() == before


def test_other_rule_model_images_and_kind_are_refused(tmp_path: Path) -> None:
    killed_run.run("rms", checkpoint=tmp_path)
    with pytest.raises(ValueError, match="but rule was 'rms' and is now 'frozen'"):
        killed_run.run("frozen", resume=tmp_path)
    with pytest.raises(ValueError, match=r"but model was '[0-9a-f]{16}' and is now '[0-9a-f]{16}'"):
        prune(build("resnet-pad", seed=5), pictures(), resume=tmp_path, **killed_run.PRUNE)
    with pytest.raises(ValueError, match=r"but counts was \[48, 0, 24, 3, 16, 16\] and is now \[44, 0, 24, 3, 16, 16\]"):
        prune(build("resnet-pad"), pictures(44), resume=tmp_path, **killed_run.PRUNE)
    with pytest.raises(ValueError, match="kind was 'prune' and is now 'train'"):
        killed_run.run("train", resume=tmp_path)


def test_auto_mode_is_that_of_the_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It was measured when the run began; another answer today must not change the numbers."""
    monkeypatch.setattr(settings, "choose_mode", lambda *a: "fp32-channels-last")
    first = killed_run.run("rms", checkpoint=tmp_path, mode="auto")
    monkeypatch.setattr(settings, "choose_mode", lambda *a: "fp32")
    again = killed_run.run("rms", resume=tmp_path, mode="auto")
    assert first.settings["mode"] == again.settings["mode"] == "fp32-channels-last"


def test_model_that_views_is_pruned_in_the_mode_that_it_can_be_trained_in() -> None:
    result = prune(Viewed(), pictures(), rate=0.4, **{**QUICK, "mode": "auto"})
    assert result.settings["mode"] == "fp32"
    with pytest.raises(ValueError, match="mode must be one in which the model can be trained, but in 'bf16-channels-last' a step fails: view size"):
        prune(Viewed(), pictures(), rate=0.4, **{**QUICK, "mode": "bf16-channels-last"})


def test_teacher_gets_the_batch_that_the_student_got() -> None:
    """Though the student works in place on its input: a copy that learns nothing agrees with its teacher to the last bit."""
    seen: list[Tensor] = []

    class Watched(OwnInput):
        def forward(self, x: Tensor) -> Tensor:
            if type(x) is Tensor:  # not while the network is traced
                seen.append(x.clone())
            return super().forward(x)

    prune(Watched(), pictures(), rate=0.4, teacher=Watched(), **{**QUICK, "epochs": 1})
    batch = next(x for x in seen if len(x) == QUICK["batch_size"])
    assert sum(torch.equal(x, batch) for x in seen) == 2


def test_training_in_place_goes_on_with_the_same_model(tmp_path: Path) -> None:
    """As in a notebook: the interrupted call is made again, and the model has come further than the checkpoint."""
    model = build("resnet-conv")
    train(model, pictures(), checkpoint=tmp_path, **{**killed_run.TRAIN, "epochs": 3})
    whole = fingerprint(model)
    (tmp_path / NAME).unlink()  # killed in the last epoch
    train(model, pictures(), resume=tmp_path, checkpoint=tmp_path, **{**killed_run.TRAIN, "epochs": 3})
    assert_same_bits(model, whole)
    with pytest.raises(ValueError, match=r"a run must be resumed with the network that it was begun with, but the shape of .* was \[.*\] and is now"):
        train(build("resnet-pad"), pictures(), resume=tmp_path, **{**killed_run.TRAIN, "epochs": 3})


def test_run_goes_on_in_its_own_folder(tmp_path: Path) -> None:
    killed_run.run("rms", checkpoint=tmp_path / "a", epochs=4)
    with pytest.raises(ValueError, match=r"checkpoint must be left out or name the folder that resume names, in which the run goes on, got .*b and .*a"):
        killed_run.run("rms", checkpoint=tmp_path / "b", resume=tmp_path / "a", epochs=4)
    assert not (tmp_path / "b").exists()


@pytest.mark.parametrize("mode", ["fp32-channels-last", "bf16-channels-last"])
def test_every_mode_trains(mode: str) -> None:
    result = killed_run.run("rms", mode=mode)
    assert result.settings["mode"] == mode
    assert all(p.dtype == torch.float32 for p in result.model.parameters())
    assert result.report is not None
    assert result.report.achieved() >= 0.6


@pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no CUDA device")
def test_run_on_cuda(tmp_path: Path) -> None:
    result = killed_run.run("rms", device="cuda", checkpoint=tmp_path)
    assert {p.device.type for p in result.model.parameters()} == {"cuda"}
    assert result.report is not None
    assert result.report.achieved() >= 0.6
    killed_run.run("rms", device="cuda", resume=tmp_path)


# What is shown


@pytest.mark.parametrize("kind", ["rms", "train"])
def test_log_has_a_line_an_epoch(capsys: pytest.CaptureFixture[str], kind: str) -> None:
    result = killed_run.run(kind, progress=True)
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == len(result.history)
    for line, record in zip(lines, result.history, strict=True):
        assert line.startswith(f"epoch {record['epoch']:3d}/{len(lines)} | loss {record['loss']:.3f} | train {record['train']:.1%}")
        assert line.endswith("s left")
        assert (f"removed {record['removed']:.1%}" in line) if kind == "rms" else ("removed" not in line)


def test_bar_shows_loss_accuracy_and_rate(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(loop, "_is_live", lambda: True)
    killed_run.run("rms", progress=True)
    shown = capsys.readouterr().out
    assert "24/24" in shown, "the bar is full at the end"
    assert all(word in shown for word in ("loss=", "accuracy=", "removed=", "batch"))


def test_nothing_is_printed_when_not_asked_for(capsys: pytest.CaptureFixture[str]) -> None:
    killed_run.run("rms")
    assert capsys.readouterr() == ("", "")


# Errors, all before any training


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"epochs": 0}, "epochs must be a whole number from 1 on, got 0"),
        ({"epochs": 1.5}, r"epochs must be a whole number from 1 on, got 1\.5"),
        ({"epochs": True}, "epochs must be a whole number from 1 on, got True"),
        ({"batch_size": 1}, r"batch_size must be a whole number from 2 on \(batch norm needs two images\), got 1"),
        ({"batch_size": 8.0}, r"batch_size must be a whole number from 2 on .*, got 8\.0"),
        ({"lr": 0}, "lr must be a number above 0, got 0"),
        ({"lr": math.inf}, "lr must be a number above 0, got inf"),
        ({"lr": math.nan}, "lr must be a number above 0, got nan"),
        ({"weight_decay": -1e-4}, r"weight_decay must be a number from 0 on, got -0\.0001"),
        ({"weight_decay": math.nan}, "weight_decay must be a number from 0 on, got nan"),
        ({"validation": 0}, "validation must be the share that is held out, above 0 and below 1, got 0"),
        ({"validation": 1}, "validation must be the share that is held out, above 0 and below 1, got 1"),
        ({"mode": "fp16"}, "mode must be auto or one of fp32, fp32-channels-last, bf16-channels-last, got 'fp16'"),
        ({"resume": "nowhere"}, r"resume must name a folder with a checkpoint\.pt in it, got nowhere"),
    ],
)
@pytest.mark.parametrize("run", [train, prune])
def test_wrong_arguments_are_refused(monkeypatch: pytest.MonkeyPatch, run: Callable[..., Result], arguments: dict[str, Any], message: str) -> None:
    stop_after(monkeypatch, 0)
    model = build("resnet-pad")
    before = fingerprint(model)
    with pytest.raises(ValueError, match=message):
        run(model, pictures(), **{**QUICK, **arguments})
    assert_same_bits(model, before)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"rate": 75}, "rate must be the share that is removed, a number from 0 to below 1, got 75"),
        ({"rate": -0.5}, "rate must be the share that is removed, a number from 0 to below 1, got -0.5"),
        ({"rate": "0.75"}, "rate must be the share that is removed, a number from 0 to below 1, got '0.75'"),
        ({"rate": 0.999}, r"rate must be at most 0\.9\d{3} for this network, where every layer keeps one channel, got 0\.999"),
        ({"unit": "flops"}, "unit must be one of params, macs, channels, latency, got 'flops'"),
        ({"alpha": 1.5}, r"alpha must lie between 0 and 1, got 1\.5"),
        ({"alpha": math.nan}, "alpha must lie between 0 and 1, got nan"),
        ({"ramp": -0.1}, r"ramp must lie between 0 and 1, got -0\.1"),
        ({"cost_power": 2}, "cost_power must lie between 0 and 1, got 2"),
        ({"temperature": 0}, "temperature must be above 0, got 0"),
        ({"hold": -0.5}, r"hold must be a number from 0 on, got -0\.5"),
        ({"hold": math.inf}, "hold must be a number from 0 on, got inf"),
        ({"cuts": 0}, "cuts must be a whole number from 1 on, got 0"),
        ({"cuts": 1.5}, r"cuts must be a whole number from 1 on, got 1\.5"),
        ({"cuts": True}, "cuts must be a whole number from 1 on, got True"),
        ({"rule": "magic"}, "rule must be one of rms, straight-through, adam, frozen, got 'magic'"),
    ],
)
def test_wrong_arguments_of_prune_are_refused(monkeypatch: pytest.MonkeyPatch, arguments: dict[str, Any], message: str) -> None:
    stop_after(monkeypatch, 0)
    with pytest.raises(ValueError, match=message):
        prune(build("resnet-pad"), pictures(), **{**QUICK, **arguments})


@pytest.mark.parametrize("smoothing", [-0.1, 1.1, math.nan])
def test_wrong_label_smoothing_is_refused(monkeypatch: pytest.MonkeyPatch, smoothing: float) -> None:
    stop_after(monkeypatch, 0)
    with pytest.raises(ValueError, match=r"label_smoothing must lie between 0 and 1, got"):
        train(build("resnet-pad"), pictures(), label_smoothing=smoothing, **QUICK)


@pytest.mark.parametrize(
    ("model", "message"),
    [
        (lambda: build("vgg").requires_grad_(False), r"the model must have parameters that require a gradient, but all are frozen \(or there are none\)"),
        (lambda: nn.Flatten(), r"the model must have parameters that require a gradient"),
        (lambda: build("vgg").double(), r"the model must be float32 \(mixed precision is chosen by mode=\), got torch.float64"),
        (lambda: models.VGG(11, in_channels=1, width=4), r"the model must take images of shape \[1, 3, 16, 16\], but: .*channels"),
        (lambda: models.VGG(11, classes=3, width=4), r"the model must give logits of shape \[n, 4\], one for each class of pictures, got \[1, 3\]"),
        (lambda: nn.Conv2d(3, 4, 1), r"the model must give logits of shape \[n, 4\], one for each class of pictures, got \[1, 4, 16, 16\]"),
    ],
)
@pytest.mark.parametrize("run", [train, prune])
def test_wrong_models_are_refused(monkeypatch: pytest.MonkeyPatch, run: Callable[..., Result], model: Callable[[], nn.Module], message: str) -> None:
    stop_after(monkeypatch, 0)
    with pytest.raises(ValueError, match=message):
        run(model(), pictures(), **QUICK)


def test_wrong_teacher_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    stop_after(monkeypatch, 0)
    with pytest.raises(ValueError, match=r"must give logits of shape \[n, 4\]"):
        prune(build("vgg"), pictures(), teacher=models.VGG(11, classes=3, width=4), **QUICK)


def test_teacher_of_other_classes_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    stop_after(monkeypatch, 0)
    with pytest.raises(ValueError, match="the teacher must give as many logits as the model, 10, got 7"):
        prune(build("vgg"), pictures(), teacher=models.VGG(11, classes=7, width=4), **QUICK)


def test_too_few_images_are_refused() -> None:
    with pytest.raises(ValueError, match="there must be at least 4 training images, got 3"):
        train(build("vgg"), pictures(3, 3, classes=3), **QUICK)


def test_model_that_cannot_be_traced_is_refused() -> None:
    class Branch(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.fc = nn.Linear(768, 4)

        def forward(self, x: Tensor) -> Tensor:
            return self.fc(x.flatten(1)) if x.sum() > -1e9 else self.fc(-x.flatten(1))

    with pytest.raises(TraceError, match="no branch that depends on the data"):
        prune(Branch(), pictures(), **QUICK)


def test_loss_that_is_not_finite_stops_the_run() -> None:
    with pytest.raises(FloatingPointError, match=r"the loss must be finite, got nan in epoch 1, step \d at learning rate .*: try a smaller one"):
        train(nn.Sequential(nn.Flatten(), nn.Linear(768, 4)), pictures(), **{**QUICK, "lr": 1e38})


def test_unreachable_rate_names_the_largest() -> None:
    graph = trace(build("resnet-pad"), EXAMPLE)
    with pytest.raises(ValueError, match=f"rate must be at most {largest_rate(graph):.4f} for this network"):
        prune(build("resnet-pad"), pictures(), rate=0.99, **QUICK)
