"""Recipes: a dense network, the ways to prune it, and a record of what came of each. Chapters 8 and 11.

    python -m sdap_lite experiment rivals-vgg --seeds 3

trains the dense network (or takes the shipped weights), prunes it by each arm of the recipe at each
rate with each seed, and writes ``NAME.json``: a card with all that the figures depend on, the dense
network, and a row for each pruning. Rows are written as they come. A killed command goes on where it
was: finished rows are not run again, an unfinished one goes on from its checkpoint.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from filelock import FileLock
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from . import baselines, data, provenance, saving
from .channels import trace
from .checkpoint import NAME, PREVIOUS, fingerprint, read_checkpoint, read_sealed, write_atomically, write_sealed
from .copies import copied, in_mode
from .distill import ALPHA
from .graph import ChannelGraph
from .images import Images
from .measure import MODES, accuracy, best_device, count_macs, count_params, latency
from .models import NETS, PRETRAINED, pruned
from .pruning import HOLD
from .recipes import RECIPES, Recipe
from .train import Result, prune, train
from .variants import Variant

__all__ = ["SCORES", "run"]

MODE = "bf16-channels-last"  # not measured by each run, so that all rows of a file are alike
RESULTS = Path("book/results")

#: Ways to fill the score vector before pruning, each a function of model, graph, images and seed.
SCORES: dict[str, Callable[[nn.Module, ChannelGraph, Images, int], dict[str, Tensor]]] = {
    "batch-norm scale": lambda model, graph, images, seed: baselines.norm_scales(model, graph),
    "L1": lambda model, graph, images, seed: baselines.l1(model, graph),
    "uniform L1": lambda model, graph, images, seed: baselines.uniform(baselines.l1(model, graph)),
    "Taylor": lambda model, graph, images, seed: baselines.taylor(model, graph, images, seed=seed),
    "uniform Taylor": lambda model, graph, images, seed: baselines.uniform(baselines.taylor(model, graph, images, seed=seed)),
    "random": lambda model, graph, images, seed: baselines.random(graph, seed=seed),
}


def run(
    name: str,
    *,
    seeds: int = 3,
    out: str | Path = RESULTS,
    work: str | Path | None = None,
    scale: float = 1.0,
    arms: tuple[str, ...] = (),
    teacher: str | Path | None = None,
    root: str | Path | None = None,
    mode: str = MODE,
    progress: bool = True,
) -> Iterator[str]:
    """Runs a recipe, as far as its file does not hold the rows yet.

    Args:
        name: a key of :data:`sdap_lite.recipes.RECIPES`.
        seeds: how many, from 0 on; the dense network is trained once, with seed 0.
        out: the folder of ``NAME.json``.
        work: a folder for checkpoints and pruned networks; default: ``runs/NAME``.
        scale: the share of the epochs and of the training images, for a smaller machine.
        arms: which ones; default: all.
        teacher: a checkpoint's folder, of the bigger teacher; default: the weights that come along. Where there are none, its arm is left out.
        root: where the images are (:func:`sdap_lite.data.load`).
        mode: one of :data:`sdap_lite.measure.MODES`, for all rows of the file.
        progress: whether runs show how far they are.

    Yields:
        A line for each row, when it is written or left out.

    Raises:
        ValueError: an argument won't do, the file is damaged or holds rows that were measured otherwise, or another run uses a row's folder.
        DatasetUnavailable: the images are neither here nor could they be downloaded.
        FloatingPointError: the loss or a weight of a run is not finite.
        OSError: a checkpoint or the file cannot be written.
        KeyboardInterrupt: Ctrl-C; the same call goes on where it was.
    """
    if seeds < 1:
        raise ValueError(f"seeds must be a whole number from 1 on, got {seeds!r}")
    experiment = _Experiment(name, Path(out), Path(work or Path("runs") / name), scale, root, progress, mode)
    if teacher is not None:
        experiment.read_teacher(Path(teacher))
    unknown = [arm for arm in arms if arm not in experiment.recipe.arms]
    if unknown:
        raise ValueError(f"arms must be some of {', '.join(experiment.recipe.arms)}, got {', '.join(unknown)}")
    chosen = {arm: different for arm, different in experiment.recipe.arms.items() if not arms or arm in arms}
    return experiment.rows_to_come(chosen, range(seeds))


class _Experiment:
    """A recipe at a scale, its images, its dense networks, and the rows so far."""

    def __init__(self, name: str, out: Path, work: Path, scale: float, root: str | Path | None, progress: bool, mode: str) -> None:
        if name not in RECIPES:
            raise ValueError(f"name must be one of {', '.join(RECIPES)}, got {name!r}")
        if not 0 < scale <= 1:
            raise ValueError(f"scale must be above 0 and at most 1, got {scale!r}")
        if mode not in MODES:
            raise ValueError(f"mode must be one of {', '.join(MODES)}, got {mode!r}")
        self.name, self.scale, self.work, self.progress, self.mode = name, scale, work, progress, mode
        self.recipe = recipe = _scaled(RECIPES[name], scale)
        self.full = data.load(recipe.data, root, size=recipe.size)
        count = round(scale * len(self.full.hold_out()[1])) if scale < 1 and recipe.images is None else recipe.images
        self.images = self.full if count is None else self.full.limit(count, len(self.full.test))
        if recipe.all_validation:
            self.images = replace(self.images, validation=self.full.hold_out()[0])
        self.example = torch.zeros(1, *self.images.train.images.shape[1:])
        self.path = out / f"{name}.json"
        self.card = self.about()
        self.nets: dict[str, nn.Module] = {}  # dense ones, by name
        self.teacher: nn.Module | None = None
        self.dense: dict[str, dict[str, Any]] = {}
        self.rows: list[dict[str, Any]] = []
        self.read()

    def read_teacher(self, folder: Path) -> None:
        """The bigger teacher, from the checkpoint of its training."""
        nets = {arm["teacher"] for arm in self.recipe.arms.values() if "teacher" in arm}
        if not nets:
            raise ValueError(f"teacher must go with a recipe that has an arm for it, but {self.name} has none")
        (net,) = nets
        self.teacher = self.build(net)
        try:
            self.teacher.load_state_dict(read_checkpoint(folder)["model"])
        except RuntimeError as error:
            raise ValueError(f"teacher must hold the weights of {net}, but {folder} has others: {error}") from error

    def bigger_teacher(self, net: str) -> nn.Module | None:
        """The one that was read, else the one whose weights come along, if any."""
        if self.teacher is None and f"{net}-{self.recipe.data}" in PRETRAINED:
            self.teacher = self.build(net, pretrained=self.recipe.data)
        return self.teacher

    def about(self) -> dict[str, Any]:
        """All that the figures depend on."""
        held_out, training = (f"{len(part):,}" for part in self.images.hold_out())
        recipe = {key: value for key, value in vars(self.recipe).items() if key not in ("arms", "images", "size", "all_validation") and value is not None}
        return {
            "command": f"python -m sdap_lite experiment {self.name}"
            + ("" if self.scale == 1 else f" --scale {self.scale:g}")
            + ("" if self.mode == MODE else f" --mode {self.mode}"),
            "commit": provenance.commit(),
            "data": f"{self.full.note}: {training} training images, {held_out} others for validation, all {len(self.full.test):,} test images",
            "settings": {**recipe, "rates": list(self.recipe.rates), "size": self.full.train.images.shape[-1], "mode": self.mode},
            "scale": self.scale,
            "dense test": {},
            "parameters": {},
            "hardware": provenance.hardware(),
            "versions": provenance.versions(),
        }

    def read(self) -> None:
        """Takes over the rows that the file has already; another process may have added some."""
        if not self.path.exists():
            return
        found = read_sealed(self.path)
        differ = [key for key in ("data", "settings", "scale") if found["card"].get(key) != self.card[key]]
        if differ:
            was = ", ".join(f"{key} was {found['card'].get(key)!r} and is now {self.card[key]!r}" for key in differ)
            raise ValueError(f"all rows of {self.path} must be measured alike, but {was}: choose another folder with out=")
        self.dense, self.rows = found.get("dense", {}) | self.dense, found["rows"]
        for key in ("dense test", "parameters"):
            self.card[key] = found["card"][key] | self.card[key]

    def write(self) -> None:
        write_sealed(self.path, {"card": self.card, "dense": self.dense, "rows": self.rows})

    def rows_to_come(self, arms: dict[str, dict[str, Any]], seeds: range) -> Iterator[str]:
        """Measures what is missing, a seed at a time, so that a file that is not finished has all arms of the seeds it has."""
        for seed, rate, (arm, different) in itertools.product(seeds, self.recipe.rates, arms.items()):
            settings = self.settings(different, rate, seed)
            label = f"{arm}, rate {settings['rate']:g}, seed {seed}"
            self.read()
            if self.has(arm, settings):
                continue
            if "teacher" in settings and self.bigger_teacher(settings["teacher"]) is None:
                yield f"{label}: left out, since it needs the weights of {settings['teacher']} (--teacher)"
                continue
            row = self.measure(arm, settings)
            if self.add(arm, settings, row):
                yield f"{label}: {row['test']:.2%} of the test images, {row['achieved']:.2%} of the parameters gone, {row['seconds']:.0f} s"
            else:
                yield f"{label}: left out, since another command wrote it meanwhile"

    def has(self, arm: str, settings: dict[str, Any]) -> bool:
        """Whether the row is there."""
        return any(row.get("arm", arm) == arm and all(row.get(k) == v for k, v in settings.items()) for row in self.rows)

    def add(self, arm: str, settings: dict[str, Any], row: dict[str, Any]) -> bool:
        """Writes a row, if it is not there by now; whether it did."""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(self.path.with_name(f".{self.name}.lock")):  # several commands may measure rows of one file
            self.read()
            if self.has(arm, settings):
                return False
            self.rows.append(row)
            self.write()
        return True

    def settings(self, different: dict[str, Any], rate: float, seed: int) -> dict[str, Any]:
        """All that a row depends on, beside the card."""
        scaled = {"epochs": _epochs(different["epochs"], self.scale)} if "epochs" in different else {}
        return {"net": self.recipe.net, "epochs": self.recipe.epochs, "rate": rate, "hold": HOLD, "alpha": ALPHA, **different, **scaled, "seed": seed}

    def measure(self, arm: str, settings: dict[str, Any]) -> dict[str, Any]:
        """One row."""
        dense = self.dense_net(settings["net"])
        result = self.scratch(dense, settings) if "scratch" in settings else self.prune(dense, settings)
        model = result.model.cpu()
        saving.save(model, self.folder(settings) / "pruned")
        size, before = self.size(model), self.dense[settings["net"]]
        return {
            "arm": arm,
            **settings,
            "test": result.test,
            "validation": result.history[-1]["validation"],
            "achieved": 1 - size["params"] / before["params"],
            "macs removed": 1 - size["macs"] / before["macs"],
            **size,
            "widths": {} if result.report is None else {name: kept for name, (kept, _) in result.report.widths.items()},
            "commit": self.card["commit"],  # a file grows over many of them, and over machines
            "hardware": provenance.hardware(result.settings["device"]),
            "torch": provenance.versions()["torch"],
            **_course(result.history),
        }

    def size(self, model: nn.Module) -> dict[str, Any]:
        """What a network costs; the latency is that of one image on one thread."""
        time = latency(model, self.example)
        return {
            "params": count_params(model),
            "macs": count_macs(model, self.example),
            "milliseconds": round(time.median, 3),
            "milliseconds spread": round(time.spread, 3),
        }

    def prune(self, dense: nn.Module, settings: dict[str, Any]) -> Result:
        """The pruning that a row's settings ask for."""
        arguments = {k: v for k, v in settings.items() if k not in ("net", "scratch")}
        if "scores" in arguments:
            arguments["scores"] = self.scores(dense, settings)
        if "variant" in arguments:
            arguments["variant"] = Variant(**arguments["variant"])
        if "teacher" in arguments:
            arguments["teacher"] = self.bigger_teacher(arguments["teacher"])
        return prune(dense, self.images, **arguments, **self.going_on(self.folder(settings)))

    def scores(self, dense: nn.Module, settings: dict[str, Any]) -> dict[str, Tensor]:
        """Those that a row starts from, kept beside its checkpoint: a GPU adds up in another order each time, and a run goes on with the same bits only."""
        path = self.folder(settings) / "scores.safetensors"
        of = fingerprint([*dense.state_dict().values(), self.images.train.images, self.images.train.labels])
        kept = _read_scores(path, of)
        if kept is not None:
            return kept
        scored = copied(dense).to(best_device())
        taken = SCORES[settings["scores"]](scored, trace(dense, self.example), self.images, settings["seed"])
        apart = {name: values.clone() for name, values in taken.items()}  # views of one storage would be refused
        path.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(path, lambda file: save_file(apart, file, {"of": of}))
        return taken

    def scratch(self, dense: nn.Module, settings: dict[str, Any]) -> Result:
        """The small network of another arm (its checkpoint is there, else it is run again), trained from random weights."""
        other = self.settings(self.recipe.arms[settings["scratch"]], settings["rate"], settings["seed"])
        small = self.prune(dense, other)
        fresh = baselines.reinitialise(small.model.cpu(), seed=settings["seed"])  # where the same seed draws the same weights
        arguments = {key: settings[key] for key in ("epochs", "lr", "batch_size", "seed") if key in settings}
        trained = train(fresh, self.images, **arguments, **self.going_on(self.folder(settings)))
        return replace(trained, report=small.report)

    def dense_net(self, net: str) -> nn.Module:
        """The network before pruning: shipped (whole or pruned), or trained here with seed 0; what it is worth is put down once."""
        if net not in self.nets:
            recipe = self.recipe
            history: list[dict[str, float]] = []
            model = pruned(recipe.begin_with) if recipe.begin_with else self.build(net, **({} if recipe.dense else {"pretrained": recipe.data}))
            if recipe.dense:
                batch: dict[str, Any] = {} if recipe.dense_batch is None else {"batch_size": recipe.dense_batch}
                trained = train(model, self.images, epochs=recipe.dense, lr=recipe.dense_lr, seed=0, **batch, **self.going_on(self.work / "dense-seed0"))
                history = trained.history
            model = in_mode(model.to(best_device()), False)
            worth = {"test": accuracy(model, self.images), "validation": accuracy(model, self.images, split=self.images.hold_out()[0])}
            self.nets[net] = model.cpu()
            self.dense[net] = {**worth, **self.size(model), **_course(history)}
            self.card["dense test"][net], self.card["parameters"][net] = worth["test"], self.dense[net]["params"]
        return self.nets[net]

    def build(self, net: str, **pretrained: str) -> nn.Module:
        torch.manual_seed(0)
        return NETS[net](in_channels=self.example.shape[1], classes=len(self.images.classes), **pretrained)

    def folder(self, settings: dict[str, Any]) -> Path:
        """Where a row's checkpoint lies."""
        return self.work / folder_name(settings)

    def going_on(self, folder: Path) -> dict[str, Any]:
        """Arguments of a run that goes on from its checkpoint, where there is one."""
        folder.mkdir(parents=True, exist_ok=True)
        there = any((folder / name).is_file() for name in (NAME, PREVIOUS))  # killed between two renamings, a run has the second only
        return {"mode": self.mode, "checkpoint": folder, "resume": folder if there else None, "progress": self.progress}


def folder_name(settings: dict[str, Any]) -> str:
    """The name of the folder of a row's checkpoint and pruned network: its settings."""
    words = [str(settings["net"]), *(f"{key}-{value}" for key, value in settings.items() if key != "net")]
    return re.sub(r"[^\w.-]+", "-", "_".join(words))


# ---------------------------------------------------------------------------------------------


def _scaled(recipe: Recipe, scale: float) -> Recipe:
    """The recipe with a share of its epochs and images."""
    images = None if recipe.images is None else round(scale * recipe.images)
    return replace(recipe, epochs=_epochs(recipe.epochs, scale), dense=_epochs(recipe.dense, scale), images=images)


def _epochs(count: int, scale: float) -> int:
    """A share of the epochs, at least one where there are any."""
    return max(min(count, 1), round(scale * count))


def _course(history: list[dict[str, float]]) -> dict[str, Any]:
    """How long a run took, over all its sessions, and its epochs."""
    seconds = round(sum(record["seconds"] for record in history), 1)
    return {"seconds": seconds, "history": [{key: round(value, 4) for key, value in record.items()} for record in history]}


def _read_scores(path: Path, of: str) -> dict[str, Tensor] | None:
    """The scores that were kept, if they are of this network and of these images."""
    with suppress(OSError, SafetensorError), safe_open(path, "pt") as kept:
        if (kept.metadata() or {}).get("of") == of:
            return {name: kept.get_tensor(name) for name in list(kept.keys())}
    return None
