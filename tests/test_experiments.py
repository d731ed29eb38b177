"""Recipes: what a record holds, that a killed one goes on, and that no row is measured twice."""

from __future__ import annotations

import hashlib
import json
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from by_path import load_file
from filelock import FileLock, Timeout
from nets import assert_same_bits, fingerprint, pictures
from safetensors.torch import load_file as load_tensors
from safetensors.torch import save_file as save_tensors
from torch import nn
from typer.testing import CliRunner

from sdap_lite import (
    accuracy,
    baselines,
    checkpoint,
    count_macs,
    count_params,
    data,
    experiments,
    latency,
    load,
    loop,
    models,
    provenance,
    prune,
    records,
    trace,
)
from sdap_lite.__main__ import app
from sdap_lite.checkpoint import read_checkpoint, read_sealed, write_checkpoint, write_sealed
from sdap_lite.distill import ALPHA
from sdap_lite.experiments import SCORES, run
from sdap_lite.models import NETS
from sdap_lite.pruning import HOLD
from sdap_lite.recipes import RECIPES, RIVALS, Recipe

ROOT = Path(__file__).parents[1]
ARMS: dict[str, dict[str, Any]] = {"sdap": {}, "random": RIVALS["random"], "from scratch": {**RIVALS["from scratch"], "scratch": "sdap"}}
TINY = Recipe("tiny", "pictures", 2, ARMS, rates=(0.5,), dense=2, dense_lr=0.05)


@pytest.fixture(autouse=True)
def tiny(monkeypatch: pytest.MonkeyPatch) -> None:
    """A recipe of seconds: a small VGG on the tests' own pictures."""

    def small(in_channels: int, classes: int) -> nn.Module:
        return models.VGG(11, classes, in_channels, width=4)

    monkeypatch.setitem(NETS, "tiny", small)
    monkeypatch.setitem(NETS, "larger", lambda in_channels, classes: models.VGG(11, classes, in_channels, width=8))
    monkeypatch.setitem(RECIPES, "tiny", TINY)
    monkeypatch.setattr(experiments, "latency", partial(latency, seconds=0.01))
    monkeypatch.setattr(data, "load", lambda name, root=None, *, size=None: pictures(train=320, classes=4))


def record(tmp_path: Path, **arguments: Any) -> list[str]:
    return list(run("tiny", out=tmp_path / "out", work=tmp_path / "work", progress=False, **{"seeds": 1, **arguments}))


def written(tmp_path: Path) -> dict[str, Any]:
    return json.loads((tmp_path / "out/tiny.json").read_text())


def steady(row: dict[str, Any]) -> dict[str, Any]:
    """A row without what depends on the clock."""
    history = [{k: v for k, v in epoch.items() if k != "seconds"} for epoch in row["history"]]
    return {k: v for k, v in row.items() if k not in ("seconds", "milliseconds", "milliseconds spread")} | {"history": history}


# What a record holds


def test_record_holds_all_that_its_figures_depend_on(tmp_path: Path) -> None:
    lines = record(tmp_path, seeds=2)
    found = written(tmp_path)
    card, dense, rows = found["card"], found["dense"]["tiny"], found["rows"]
    assert {"command", "commit", "data", "settings", "scale", "dense test", "parameters", "hardware", "versions"} <= card.keys()
    assert card["command"] == "python -m sdap_lite experiment tiny"
    assert card["data"] == "pictures made by the tests: 288 training images, 32 others for validation, all 24 test images"
    assert card["settings"]["dense"] == 2
    assert card["versions"]["torch"] == torch.__version__
    assert card["dense test"] == {"tiny": dense["test"]}
    assert card["parameters"] == {"tiny": dense["params"]} == {"tiny": count_params(NETS["tiny"](in_channels=3, classes=4))}
    assert [(row["arm"], row["seed"]) for row in rows] == [(arm, seed) for seed in (0, 1) for arm in ARMS]
    assert len(lines) == len(rows)
    assert lines[0].startswith(f"sdap, rate 0.5, seed 0: {rows[0]['test']:.2%} of the test images, ")
    for row in rows:
        assert len(row["history"]) == row["epochs"] == 2
        assert row["achieved"] == 1 - row["params"] / dense["params"] >= 0.5
        assert row["macs removed"] == 1 - row["macs"] / dense["macs"]
        assert row["milliseconds"] > 0
        assert row["commit"] == card["commit"]
        assert (row["hardware"], row["torch"]) == (card["hardware"], card["versions"]["torch"])
        assert row["alpha"] == ALPHA
        assert row["hold"] == (HOLD if row["arm"] == "sdap" else 0.0)
        assert row["validation"] == pytest.approx(row["history"][-1]["validation"], abs=1e-4)


def test_each_row_names_the_machine_that_measured_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A file grows over several; the oldest rows say nothing of theirs."""
    record(tmp_path, arms=("sdap",))
    found = written(tmp_path)
    for key in ("hardware", "torch"):
        del found["rows"][0][key]
    write_sealed(tmp_path / "out/tiny.json", {k: v for k, v in found.items() if k != "checksum"})
    monkeypatch.setattr(provenance, "hardware", lambda device=None: f"another machine's {device or 'best device'}")
    record(tmp_path, arms=("sdap", "random"))
    first, second = written(tmp_path)["rows"]
    assert "hardware" not in first
    assert second["hardware"] == "another machine's cpu"
    assert second["torch"] == torch.__version__
    assert written(tmp_path)["card"]["hardware"] == "another machine's best device"


def test_rows_are_what_the_saved_networks_are_worth(tmp_path: Path) -> None:
    record(tmp_path)
    images = data.load("pictures")
    for row in written(tmp_path)["rows"]:
        settings = {k: row[k] for k in dict.fromkeys(("net", "epochs", "rate", "hold", "alpha", *ARMS[row["arm"]], "seed"))}
        (folder,) = [f for f in (tmp_path / "work").iterdir() if f.name == _name(settings)]
        small = load(folder / "pruned", NETS["tiny"](in_channels=3, classes=4))
        assert accuracy(small, images) == row["test"]
        assert count_params(small) == row["params"]
        assert count_macs(small, torch.zeros(1, 3, 16, 16)) == row["macs"]
        assert {name: len(group) for name, group in trace(small, torch.zeros(1, 3, 16, 16)).prunable.items()} == row["widths"]


def test_pruned_network_is_pruned_further(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    record(tmp_path, arms=("sdap",))
    (first,) = written(tmp_path)["rows"]
    (folder,) = (tmp_path / "work").glob("*/pruned.safetensors")
    monkeypatch.setattr(experiments, "pruned", {"tiny-pictures-50": load(folder.with_suffix(""), NETS["tiny"](in_channels=3, classes=4))}.__getitem__)
    monkeypatch.setitem(RECIPES, "tiny", replace(TINY, dense=0, begin_with="tiny-pictures-50"))
    record(tmp_path / "again", arms=("sdap",))
    found = written(tmp_path / "again")
    (second,), begun_with = found["rows"], found["dense"]["tiny"]
    assert (begun_with["test"], begun_with["params"], begun_with["history"]) == (first["test"], first["params"], [])
    assert second["params"] <= 0.5 * first["params"] <= 0.25 * count_params(NETS["tiny"](in_channels=3, classes=4))
    assert second["achieved"] == 1 - second["params"] / first["params"]
    assert found["card"]["settings"]["begin_with"] == "tiny-pictures-50"
    assert "begin_with" not in written(tmp_path)["card"]["settings"]  # so that older records can be gone on with


# The best network of a record goes into the library


@pytest.fixture
def ship(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[Path], dict[str, Any]]]:
    """Ships the best pruned network of a record; gives its card."""
    monkeypatch.syspath_prepend(ROOT / "scripts")
    script: Any = load_file("scripts/ship.py")
    script.BUNDLED, script.FOLDER = tmp_path, tmp_path / "shipped"

    def shipped(folder: Path, arm: str = "sdap") -> dict[str, Any]:
        before = set(script.FOLDER.glob("*.card.json"))
        monkeypatch.setattr(sys, "argv", ["ship.py", "tiny", arm, "--rate", "0.5", "--out", f"{folder}/out", "--work", f"{folder}/work"])
        script.main()
        if arm == "dense":
            return json.loads((script.BUNDLED / "tiny-pictures.json").read_text())
        (path,) = set(script.FOLDER.glob("*.card.json")) - before
        return {"name": path.name.removesuffix(".card.json"), **read_sealed(path)}

    threads = torch.get_num_threads()  # the script measures with one
    yield shipped
    torch.set_num_threads(threads)


def test_seed_with_the_best_validation_is_shipped(tmp_path: Path, ship: Callable[[Path], dict[str, Any]]) -> None:
    record(tmp_path, seeds=3, arms=("sdap",))
    found = written(tmp_path)
    _, best, last = found["rows"]
    best["validation"], last["test"] = 2.0, 2.0  # neither the first seed, nor the one that the test images would choose
    write_sealed(tmp_path / "out/tiny.json", {k: v for k, v in found.items() if k != "checksum"})
    card = ship(tmp_path)
    assert card["name"] == "tiny-pictures-50"
    assert card["pruned"] == {k: v for k, v in best.items() if k not in ("milliseconds", "milliseconds spread")}
    assert card["dense"]["params"] == count_params(NETS["tiny"](in_channels=3, classes=4))
    small = load(tmp_path / "shipped/tiny-pictures-50", NETS["tiny"](in_channels=3, classes=4))
    assert accuracy(small, pictures(train=320, classes=4)) == best["test"]


def test_weights_of_another_run_are_not_shipped(tmp_path: Path, ship: Callable[[Path], dict[str, Any]]) -> None:
    record(tmp_path, arms=("sdap",))
    found = written(tmp_path)
    found["rows"][0]["test"] += 0.1
    write_sealed(tmp_path / "out/tiny.json", {k: v for k, v in found.items() if k != "checksum"})
    with pytest.raises(SystemExit, match=r"the weights must be those of the record, with .*% of the test images right, got"):
        ship(tmp_path)
    assert not list(tmp_path.glob("shipped/*"))


def test_dense_network_is_shipped_as_it_was_trained(tmp_path: Path, ship: Callable[..., dict[str, Any]]) -> None:
    record(tmp_path, arms=("sdap",))
    found, card = written(tmp_path)["dense"]["tiny"], ship(tmp_path, "dense")
    weights = load_tensors(tmp_path / "tiny-pictures.safetensors")
    trained = read_checkpoint(tmp_path / "work/dense-seed0")["model"]
    assert {k: v.dtype for k, v in weights.items()} == {k: torch.float16 if v.is_floating_point() else v.dtype for k, v in trained.items()}
    assert all(torch.equal(weights[k], v.to(weights[k].dtype)) for k, v in trained.items())
    assert hashlib.sha256((tmp_path / "tiny-pictures.safetensors").read_bytes()).hexdigest() == card["sha256"]
    assert card["test accuracy"] == pytest.approx(found["test"], abs=0.001)
    assert (card["validation accuracy"], card["parameters"], len(card["history"])) == (found["validation"], found["params"], TINY.dense)
    assert card["command"] == "python -m sdap_lite experiment tiny"


def test_network_of_two_steps_is_shipped_with_what_both_removed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, ship: Callable[[Path], dict[str, Any]]
) -> None:
    record(tmp_path, arms=("sdap",))
    first = ship(tmp_path)
    half = load(tmp_path / "shipped" / first["name"], NETS["tiny"](in_channels=3, classes=4))
    monkeypatch.setattr(experiments, "pruned", {first["name"]: half}.__getitem__)
    monkeypatch.setattr(models, "pruned_card", {first["name"]: first}.__getitem__)
    monkeypatch.setitem(RECIPES, "tiny", replace(TINY, dense=0, begin_with=first["name"]))
    record(tmp_path / "again", arms=("sdap",))
    second, whole = ship(tmp_path / "again"), first["dense"]
    assert second["name"] == "tiny-pictures-75"
    assert second["dense"] == whole
    assert second["pruned"]["achieved"] == 1 - second["pruned"]["params"] / whole["params"] >= 0.75
    assert second["pruned"]["macs removed"] == 1 - second["pruned"]["macs"] / whole["macs"]


def _name(settings: dict[str, Any]) -> str:
    """The folder's name by hand: what a row's settings say, one after the other."""
    return "_".join([settings["net"], *(f"{k}-{v}" for k, v in settings.items() if k != "net")])


def test_all_runs_of_a_file_have_its_mode(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    modes: list[str] = []

    def watched(*args: Any, **settings: Any) -> Any:
        modes.append(settings["mode"])
        return prune(*args, **settings)

    monkeypatch.setattr(experiments, "prune", watched)
    record(tmp_path, arms=("random",), mode="fp32")
    card = written(tmp_path)["card"]
    assert set(modes) == {"fp32"} == {card["settings"]["mode"]}
    assert card["command"].endswith(" --mode fp32")
    with pytest.raises(ValueError, match=r"all rows of .* must be measured alike, but settings was .*'mode': 'fp32'"):
        record(tmp_path, arms=("random",), mode="fp32-channels-last")


def test_arm_is_prune_with_the_arms_arguments(tmp_path: Path) -> None:
    """The row of an arm, measured by calling ``prune`` itself."""
    record(tmp_path, arms=("random",))
    images = data.load("pictures")
    dense = NETS["tiny"](in_channels=3, classes=4)
    dense.load_state_dict(read_checkpoint(tmp_path / "work/dense-seed0")["model"])
    scores = baselines.random(trace(dense, torch.zeros(1, 3, 16, 16)), seed=0)
    settings: dict[str, Any] = {"mode": experiments.MODE, "progress": False}
    wanted = prune(dense, images, 0.5, epochs=2, rule="frozen", cost_power=0.0, scores=scores, **settings)
    (row,) = written(tmp_path)["rows"]
    assert row["test"] == wanted.test
    assert row["widths"] == {name: kept for name, (kept, _) in wanted.report.widths.items()}  # type: ignore[union-attr]


def test_from_scratch_has_the_widths_of_the_other_arm_and_random_weights(tmp_path: Path) -> None:
    record(tmp_path, arms=("from scratch",))  # which prunes first, since there is no such row yet
    record(tmp_path)
    rows = {row["arm"]: row for row in written(tmp_path)["rows"]}
    assert rows["from scratch"]["widths"] == rows["sdap"]["widths"]
    assert rows["from scratch"]["params"] == rows["sdap"]["params"]
    assert rows["from scratch"]["history"] != rows["sdap"]["history"]
    assert "removed" not in rows["from scratch"]["history"][0]


def test_from_scratch_is_trained_with_the_batches_of_its_arm(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(RECIPES, "tiny", replace(TINY, arms={name: {**arm, "batch_size": 32} for name, arm in ARMS.items()}))
    record(tmp_path, arms=("sdap", "from scratch"))
    batches = {path.name: read_checkpoint(path)["settings"]["batch_size"] for path in (tmp_path / "work").glob("tiny_*")}
    assert sorted(batches.values()) == [32, 32]
    assert all(row["batch_size"] == 32 for row in written(tmp_path)["rows"])


def test_from_scratch_draws_its_weights_on_the_cpu(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """On a GPU the same seed gives others."""
    there: list[nn.Module] = []
    drawn, cpu = baselines.reinitialise, nn.Module.cpu
    monkeypatch.setattr(nn.Module, "cpu", lambda self: there.append(self) or cpu(self))
    monkeypatch.setattr(baselines, "reinitialise", lambda model, *, seed: drawn(model, seed=seed if any(m is model for m in there) else -1))
    record(tmp_path, arms=("sdap", "from scratch"))
    (trained,) = (tmp_path / "work").glob("tiny_*scratch*")
    small = load(trained / "pruned", NETS["tiny"](in_channels=3, classes=4))
    assert read_checkpoint(trained)["settings"]["model"] == checkpoint.fingerprint(drawn(small, seed=0).state_dict().values())


def test_bigger_teacher_may_be_one_that_comes_along(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(RECIPES, "tiny", replace(TINY, arms={"bigger teacher": {"teacher": "larger"}}))
    monkeypatch.setattr(experiments, "PRETRAINED", (f"larger-{TINY.data}",))
    asked: list[dict[str, Any]] = []
    build = NETS["larger"]
    monkeypatch.setitem(NETS, "larger", lambda pretrained=None, **sizes: asked.append({"pretrained": pretrained}) or build(**sizes))
    record(tmp_path)
    (row,) = written(tmp_path)["rows"]
    assert (row["teacher"], asked) == ("larger", [{"pretrained": TINY.data}])


def test_bigger_teacher_is_left_out_without_its_weights(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(RECIPES, "tiny", replace(TINY, arms={"bigger teacher": {"teacher": "larger"}}))
    assert record(tmp_path) == ["bigger teacher, rate 0.5, seed 0: left out, since it needs the weights of larger (--teacher)"]
    large = NETS["larger"](in_channels=3, classes=4)
    write_checkpoint(tmp_path / "larger", {"settings": {}, "model": large.state_dict(), "optimizer": {}, "history": []})
    record(tmp_path, teacher=tmp_path / "larger")
    (row,) = written(tmp_path)["rows"]
    assert row["teacher"] == "larger"
    other = NETS["tiny"](in_channels=3, classes=4)
    write_checkpoint(tmp_path / "other", {"settings": {}, "model": other.state_dict(), "optimizer": {}, "history": []})
    with pytest.raises(ValueError, match=r"teacher must hold the weights of larger, but .*other has others"):
        record(tmp_path, teacher=tmp_path / "other")


def test_scale_takes_a_share_of_the_epochs_and_the_images(tmp_path: Path) -> None:
    record(tmp_path, scale=0.5, arms=("sdap",))
    found = written(tmp_path)
    assert found["card"]["scale"] == 0.5
    assert found["card"]["command"].endswith(" --scale 0.5")
    assert found["card"]["data"].startswith("pictures made by the tests: 144 training images, 14 others for validation, all 24 test")
    assert found["card"]["settings"]["dense"] == found["rows"][0]["epochs"] == 1


# Killed and begun again


class Killed(Exception):
    """What stops a run in a test."""


class Watch:
    """The kinds of run that trained an epoch, one after the other; more than ``limit`` of them are not survived."""

    def __init__(self) -> None:
        self.epochs: list[str] = []
        self.limit: int | None = None


@pytest.fixture
def watch(monkeypatch: pytest.MonkeyPatch) -> Watch:
    watch, whole = Watch(), loop.Training.epoch

    def epoch(self: Any, bar: Any) -> None:
        if len(watch.epochs) == watch.limit:
            raise Killed
        watch.epochs.append(self.settings["kind"])
        whole(self, bar)

    monkeypatch.setattr(loop.Training, "epoch", epoch)
    return watch


@pytest.mark.parametrize("last", [1, 3, 5, 7], ids=["in the dense training", "in the first row", "in the second row", "from scratch"])
def test_killed_experiment_goes_on_where_it_was(tmp_path: Path, watch: Watch, last: int) -> None:
    """Eight epochs in all: two each of the dense network and three arms. None of them is trained twice."""
    watch.limit = last
    with pytest.raises(Killed):
        record(tmp_path / "killed")
    assert len(watch.epochs) == last
    watch.limit = None
    record(tmp_path / "killed")
    assert watch.epochs == ["train"] * 2 + ["prune"] * 4 + ["train"] * 2
    record(tmp_path / "whole")
    killed, whole = written(tmp_path / "killed"), written(tmp_path / "whole")
    assert [steady(row) for row in killed["rows"]] == [steady(row) for row in whole["rows"]]
    assert steady(killed["dense"]["tiny"]) == steady(whole["dense"]["tiny"])


def test_killed_row_goes_on_with_the_scores_that_it_began_with(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, watch: Watch) -> None:
    """Taken once more on a GPU, they would not be the same to the last bit."""
    taken: list[int] = []
    monkeypatch.setitem(SCORES, "random", lambda model, graph, images, seed: taken.append(seed) or baselines.random(graph, seed=len(taken)))
    watch.limit = 3
    with pytest.raises(Killed):
        record(tmp_path, arms=("random",))
    watch.limit = None
    record(tmp_path, arms=("random",))
    assert watch.epochs == ["train"] * 2 + ["prune"] * 2
    assert taken == [0]


@pytest.mark.parametrize("spoil", ["damaged", "of another network"])
def test_scores_that_are_not_the_rows_own_are_taken_anew(tmp_path: Path, watch: Watch, spoil: str) -> None:
    watch.limit = 2
    with pytest.raises(Killed):
        record(tmp_path / "killed", arms=("random",))
    (path,) = (tmp_path / "killed/work").glob("*/scores.safetensors")
    scores = {name: torch.zeros_like(values) for name, values in load_tensors(path).items()}
    save_tensors(scores, path, {"of": "0123456789abcdef"}) if spoil != "damaged" else path.write_bytes(b"damaged")
    watch.limit = None
    for folder in ("killed", "whole"):
        record(tmp_path / folder, arms=("random",))
    assert steady(written(tmp_path / "killed")["rows"][0]) == steady(written(tmp_path / "whole")["rows"][0])


def test_run_killed_between_two_renamings_goes_on_from_the_checkpoint_before(tmp_path: Path, watch: Watch) -> None:
    watch.limit = 3
    with pytest.raises(Killed):
        record(tmp_path, arms=("random",))
    for path in list((tmp_path / "work").glob("*/checkpoint.pt")):
        path.rename(path.with_name("checkpoint-previous.pt"))
    watch.limit = None
    record(tmp_path, arms=("random",))
    assert watch.epochs == ["train"] * 2 + ["prune"] * 2, "none is trained twice"


def test_finished_rows_are_not_run_again(tmp_path: Path, watch: Watch) -> None:
    first = record(tmp_path)
    text, done = (tmp_path / "out/tiny.json").read_text(), len(watch.epochs)
    assert len(first) == 3
    assert record(tmp_path) == []
    assert len(watch.epochs) == done
    assert (tmp_path / "out/tiny.json").read_text() == text
    record(tmp_path, seeds=2, arms=("sdap",))
    assert len(watch.epochs) == done + 2, "a further seed of one arm"
    assert [row["seed"] for row in written(tmp_path)["rows"]] == [0, 0, 0, 1]


def test_rows_of_another_process_are_kept(tmp_path: Path) -> None:
    """Two commands that share a file: what one wrote while the other measured stays."""
    lines = run("tiny", seeds=1, out=tmp_path / "out", work=tmp_path / "work", progress=False, arms=("sdap",))
    record(tmp_path, arms=("random",))
    assert len(list(lines)) == 1
    assert [row["arm"] for row in written(tmp_path)["rows"]] == ["random", "sdap"]


def test_row_of_another_process_is_not_measured_again(tmp_path: Path, watch: Watch) -> None:
    lines = run("tiny", seeds=1, out=tmp_path / "out", work=tmp_path / "late", progress=False, arms=("sdap",))
    record(tmp_path, arms=("sdap",))
    done = len(watch.epochs)
    assert list(lines) == []
    assert len(watch.epochs) == done
    assert len(written(tmp_path)["rows"]) == 1


def test_row_that_another_process_measured_meanwhile_stays_the_only_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    measure = experiments._Experiment.measure

    def slow(self: Any, arm: str, settings: dict[str, Any]) -> dict[str, Any]:
        with monkeypatch.context() as patch:
            patch.setattr(experiments._Experiment, "measure", measure)
            record(tmp_path, arms=("sdap",))
        return {**measure(self, arm, settings), "test": -1.0}

    monkeypatch.setattr(experiments._Experiment, "measure", slow)
    lines = list(run("tiny", seeds=1, out=tmp_path / "out", work=tmp_path / "slow", progress=False, arms=("sdap",)))
    assert lines == ["sdap, rate 0.5, seed 0: left out, since another command wrote it meanwhile"]
    (row,) = written(tmp_path)["rows"]
    assert row["test"] >= 0


def test_commands_that_share_a_file_take_turns(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """While one reads, adds its row and writes, no other can have the lock."""
    free: list[tuple[str, bool]] = []
    (tmp_path / "out").mkdir()

    def watched(name: str) -> Callable[[Any], None]:
        method, lock = getattr(experiments._Experiment, name), FileLock(tmp_path / "out/.tiny.lock")

        def call(self: Any) -> None:
            try:
                with lock.acquire(timeout=0):
                    free.append((name, True))
            except Timeout:
                free.append((name, False))
            method(self)

        return call

    for name in ("read", "write"):
        monkeypatch.setattr(experiments._Experiment, name, watched(name))
    record(tmp_path, arms=("sdap",))
    assert free[-2:] == [("read", False), ("write", False)]
    assert [name for name, _ in free].count("write") == 1


def test_rows_measured_otherwise_are_refused(tmp_path: Path) -> None:
    record(tmp_path, arms=("sdap",))
    with pytest.raises(ValueError, match=r"all rows of .*tiny.json must be measured alike, but data was .* scale was 1.0 and is now 0.5: choose another"):
        record(tmp_path, scale=0.5)


# The table


@pytest.mark.parametrize("name", RECIPES)
def test_every_recipe_fits_what_there_is(name: str) -> None:
    """Networks, sets, scores and arguments are known; without weights of its own a network is trained first."""
    recipe = RECIPES[name]
    assert recipe.data in data.SETS
    arguments = set(prune.__kwdefaults__) | {"net", "scratch", "rate"}
    for arm in recipe.arms.values():
        net = arm.get("net", recipe.net)
        assert net in NETS
        assert recipe.dense or recipe.begin_with in models.PRUNED or f"{net.removeprefix('torchvision:')}-{recipe.data}" in models.PRETRAINED
        assert set(arm) <= arguments
        assert arm.get("scores") in (None, *SCORES)
        assert arm.get("scratch") in (None, *recipe.arms)
        assert arm.get("teacher") in (None, *NETS)
    assert str(recipe).startswith(f"{recipe.net} on {recipe.data}")


@pytest.mark.parametrize("net", [net for net in NETS if net not in ("tiny", "larger")])
def test_every_network_is_built_and_traced(net: str) -> None:
    model = NETS[net](in_channels=3, classes=7)
    groups = trace(model, torch.zeros(1, 3, 64, 64)).prunable
    assert len(groups) > 5
    assert not any(graph_end in groups for graph_end in ("fc", "classifier.1"))


@pytest.mark.parametrize("name", [path.stem for path in (models.BUNDLED / "results").glob("*.json") if path.stem in RECIPES])
def test_recorded_rows_are_what_their_arms_ask_for(name: str) -> None:
    """So that a change of an arm, or of a default, cannot leave rows of another setting under its name."""
    for row in records.recorded(name)["rows"]:
        arm = {"hold": HOLD, "alpha": ALPHA, **RECIPES[name].arms[row["arm"]]} if "arm" in row else {}  # the oldest rows have no names
        assert {key: row[key] for key in arm} == arm


@pytest.mark.parametrize("name", ["gate_rules", "headline"])
def test_records_of_the_book_belong_to_their_recipes(name: str) -> None:
    """All rows are there: the command has nothing left to measure, and the file lies where the command looks."""
    found = json.loads((ROOT / experiments.RESULTS / f"{name}.json").read_text())
    recipe = RECIPES[name]
    assert found["card"]["command"] == f"python -m sdap_lite experiment {name}"
    wanted = [{"net": recipe.net, "epochs": recipe.epochs, "rate": r, **arm, "seed": s} for s in range(3) for r in recipe.rates for arm in recipe.arms.values()]
    assert len(found["rows"]) == len(wanted)
    for settings in wanted:
        assert sum(all(row[k] == v for k, v in settings.items()) for row in found["rows"]) == 1


def test_dense_network_starts_from_the_same_weights_each_time(tmp_path: Path) -> None:
    experiment = experiments._Experiment("tiny", tmp_path, tmp_path, 1.0, None, False, experiments.MODE)
    torch.manual_seed(0)
    wanted = fingerprint(models.VGG(11, 4, width=4))
    assert_same_bits(experiment.build("tiny"), wanted)


@pytest.mark.parametrize(("asked", "batch"), [(None, 128), (32, 32)], ids=["default", "asked for"])
def test_dense_network_is_trained_with_the_batches_of_the_recipe(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, asked: int | None, batch: int) -> None:
    monkeypatch.setitem(RECIPES, "tiny", replace(TINY, dense_batch=asked))
    record(tmp_path, arms=("sdap",))
    assert read_checkpoint(tmp_path / "work/dense-seed0")["settings"]["batch_size"] == batch
    assert written(tmp_path)["card"]["settings"].get("dense_batch") == asked
    assert written(tmp_path)["rows"][0].get("batch_size") is None  # that of the pruning is the arm's own


# Mistakes, and the command


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"seeds": 0}, "seeds must be a whole number from 1 on, got 0"),
        ({"scale": 0}, "scale must be above 0 and at most 1, got 0"),
        ({"scale": 1.5}, "scale must be above 0 and at most 1, got 1.5"),
        ({"mode": "fast"}, "mode must be one of fp32, fp32-channels-last, bf16-channels-last, got 'fast'"),
        ({"arms": ("sdap", "magic")}, "arms must be some of sdap, random, from scratch, got magic"),
        ({"teacher": "nowhere"}, "teacher must go with a recipe that has an arm for it, but tiny has none"),
    ],
)
def test_wrong_arguments_are_refused(tmp_path: Path, arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        record(tmp_path, **arguments)


def test_unknown_recipe_is_refused() -> None:
    with pytest.raises(ValueError, match=r"name must be one of gate_rules, headline, .*, got 'magic'"):
        run("magic")


def test_command_lists_runs_and_refuses(tmp_path: Path) -> None:
    def command(*arguments: object) -> Any:
        return CliRunner().invoke(app, ["experiment", *map(str, arguments)], env={"COLUMNS": "300", "NO_COLOR": "1", "TERM": "dumb"})

    listed = command("--list").output
    assert all(name in listed for name in RECIPES)
    assert "tiny on pictures: 2 epochs dense, 2 epochs at 0.5, 3 arms" in " ".join(listed.split())
    assert "shipped weights" in listed
    done = command("tiny", "--seeds", 1, "--arm", "sdap", "--threads", 1, "--out", tmp_path / "out", "--work", tmp_path / "work")
    assert done.exit_code == 0, done.output
    assert "sdap, rate 0.5, seed 0:" in done.output
    assert len(written(tmp_path)["rows"]) == 1
    assert "name must be one of" in command("magic").output
    assert "scale must be above 0" in command("tiny", "--scale", 2, "--out", tmp_path, "--work", tmp_path).output
