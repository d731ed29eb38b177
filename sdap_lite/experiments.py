"""Recipes: a dense network, the ways to prune it, and a record of what came of each. Chapters 8 and 11.

    python -m sdap_lite experiment rivals-vgg --seeds 3

trains the dense network (or takes the shipped weights), prunes it by each arm of the recipe at each
rate with each seed, and writes ``NAME.json``: a card with all that the figures depend on, the dense
network, and a row for each pruning. Rows are written as they come. A killed command goes on where it
was: finished rows are not run again, an unfinished one goes on from its checkpoint.
"""

from __future__ import annotations

import copy
import itertools
import platform
import re
import subprocess
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from filelock import FileLock
from torch import Tensor, nn

from . import __version__, baselines, data, saving
from .channels import trace
from .checkpoint import NAME, PREVIOUS, read_checkpoint, read_sealed, write_sealed
from .data import Images
from .distill import ALPHA
from .graph import ChannelGraph
from .measure import MODES, accuracy, best_device, count_macs, count_params, latency
from .models import NETS, pruned
from .pruning import HOLD
from .train import Result, prune, train
from .variants import Variant

__all__ = ["RECIPES", "SCORES", "Recipe", "run"]

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


@dataclass(frozen=True)
class Recipe:
    """One experiment.

    Attributes:
        net: a key of :data:`sdap_lite.models.NETS`.
        data: an image set of :func:`sdap_lite.data.load`.
        epochs: of pruning.
        arms: by name, what each does differently: arguments of :func:`sdap_lite.prune`, of which ``scores`` names
            one of :data:`SCORES`, ``teacher`` one of :data:`sdap_lite.models.NETS` and ``variant`` the fields of a
            :class:`sdap_lite.variants.Variant`; ``net``; or ``scratch``, to train the small
            network of another arm from random weights.
        rates: to prune at.
        images: training images; default: all.
        size: pixels a side; default: the set's own.
        all_validation: whether all held-out images validate where fewer are trained on than there are.
        begin_with: a pruned network of :data:`sdap_lite.models.PRUNED` to prune further, of class ``net``; rates count from it.
        dense: epochs that train the dense network; 0 takes the shipped weights.
        dense_lr: its learning rate.
        dense_batch: its batch size; default: that of :func:`sdap_lite.train`.
    """

    net: str
    data: str
    epochs: int
    arms: dict[str, dict[str, Any]]
    rates: tuple[float, ...] = (0.75, 0.9)
    images: int | None = None
    size: int | None = None
    dense: int = 0
    dense_lr: float = 0.1
    all_validation: bool = False
    begin_with: str | None = None
    dense_batch: int | None = None

    def __str__(self) -> str:
        dense = self.begin_with or (f"{self.dense} epochs dense" if self.dense else "shipped weights")
        images = "" if self.images is None else f", {self.images:,} images"
        return f"{self.net} on {self.data}{images}: {dense}, {self.epochs} epochs at {' and '.join(f'{r:g}' for r in self.rates)}, {len(self.arms)} arms"


FREE: dict[str, Any] = {"hold": 0.0}  # open channels and closed ones compete alike


def _taught(arms: dict[str, dict[str, Any]]) -> dict[str, dict[str, Any]]:
    """Arms in which the teacher has nine tenths of the loss where they do not say otherwise: the default when these were recorded."""
    return {name: {"alpha": 0.9} | arm for name, arm in arms.items()}


def _free(arms: dict[str, dict[str, Any]]) -> dict[str, dict[str, Any]]:
    """The same without a hold where they do not name one: it was no part of the method when these were recorded."""
    return _taught({name: FREE | arm for name, arm in arms.items()})


def _small_batches(arms: dict[str, dict[str, Any]]) -> dict[str, dict[str, Any]]:
    """Imagenette has few images: batches as small as those of the dense training."""
    return {name: {**arm, "batch_size": 64} for name, arm in arms.items()}


def _fixed(scores: str, **others: Any) -> dict[str, Any]:
    """A rival whose scores are taken once and compared as they are."""
    return {"rule": "frozen", "cost_power": 0.0, "scores": scores, **FREE, **others}  # what stands still needs no hold


RIVALS: dict[str, dict[str, Any]] = {
    "sdap": {},
    "sdap without a hold": FREE,
    "sdap without distillation": {"alpha": 0.0},
    "sdap without hold and distillation": {**FREE, "alpha": 0.0},
    "sdap without learned gates": {"rule": "frozen", **FREE},
    "batch-norm slimming": _fixed("batch-norm scale"),
    "global L1": _fixed("L1"),
    "uniform L1": _fixed("uniform L1"),
    "Taylor": _fixed("Taylor"),
    "random": _fixed("random"),
    "two stages": _fixed("Taylor", ramp=0.0),
    "from scratch": {"scratch": "sdap without a hold", "lr": 0.1, **FREE},
}
LABELS = {"gradient of the labels' loss": {"variant": {"labels": True}}}  # the nearest rival within the ablation
STEADIER: dict[str, dict[str, Any]] = {"hold 10": {"hold": 10.0}}  # hardly a channel comes back
# With today's share of the teacher: is a longer hold worth it on every network, and who is ahead?
TODAY: dict[str, dict[str, Any]] = {
    "hold 1, alpha 0.5": {"hold": 1.0, "alpha": 0.5},
    "hold 10, alpha 0.5": {"hold": 10.0, "alpha": 0.5},
    "uniform L1, alpha 0.5": _fixed("uniform L1", alpha=0.5),
    "Taylor, alpha 0.5": _fixed("Taylor", alpha=0.5),
}
CUT_EARLY: dict[str, dict[str, Any]] = {"sdap": {"ramp": 0.25, "cuts": 2}}  # most of the run belongs to the small network
TRAINED_ON: dict[str, dict[str, Any]] = {"dense, trained on": {"rate": 0.0}}  # what the extra epochs alone give
# Depthwise kernels are made for widths that 8 divides: others can run slower than the dense network
BY_EIGHTS = {"sdap, widths by eights": {**CUT_EARLY["sdap"], "round_to": 8}}
SMALL_BATCHES = _small_batches({**CUT_EARLY, **BY_EIGHTS, **TRAINED_ON})
# For the long runs of a GPU: the rivals that were strongest in the short ones, cut on the same schedule
STRONGEST: dict[str, dict[str, Any]] = {
    "uniform L1": _fixed("uniform L1", **CUT_EARLY["sdap"]),
    "batch-norm slimming": _fixed("batch-norm scale", **CUT_EARLY["sdap"]),
    "Taylor": _fixed("Taylor", **CUT_EARLY["sdap"]),
    "two stages": RIVALS["two stages"],
}
# The rate counts multiply-accumulates instead of parameters: who is ahead when all are equally fast?
BY_MACS: dict[str, dict[str, Any]] = {
    "sdap, by MACs": {**CUT_EARLY["sdap"], "unit": "macs"},
    "uniform L1, by MACs": {**STRONGEST["uniform L1"], "unit": "macs"},
}
BIGGER_TEACHER = {"bigger teacher": {"teacher": "vgg-half"}}
# How a gate's score may learn: chapters 2 to 5
GATE_RULES = {
    f"{rule}, cost power {power:g}, alpha {alpha:g}": {"rule": rule, "cost_power": power, "alpha": alpha}
    for rule, power, alpha in [
        ("frozen", 0.0, 0.9),
        ("frozen", 0.5, 0.9),
        ("straight-through", 0.0, 0.9),
        ("straight-through", 0.5, 0.9),
        ("rms", 0.0, 0.9),
        ("rms", 0.5, 0.9),
        ("rms", 1.0, 0.9),
        ("rms", 0.5, 0.0),
    ]
}
# The open questions, each as one change to the settings of the first arm; chosen on validation images: chapter 11
ONE_CUT: dict[str, Any] = {"ramp": 0.5, "cuts": 1}
CHANGES: dict[str, dict[str, Any]] = {
    "sdap": {},
    "two cuts": {"cuts": 2},
    "ramp 0.3": {"ramp": 0.3},
    "ramp 0.3, two cuts": {"ramp": 0.3, "cuts": 2},
    "start: Taylor, decay 0.999": {"scores": "Taylor", "variant": {"decay": 0.999}},
    "gradient of the labels' loss": {"variant": {"labels": True}},
    "current costs": {"variant": {"current_costs": True}},
    "floor 0.1": {"variant": {"floor": 0.1}},
    "learning rate 0.05": {"lr": 0.05},
    "alpha 1": {"alpha": 1.0},
    "cost power 0": {"cost_power": 0.0},
    "cost power 1": {"cost_power": 1.0},
    "Taylor, taken once, cost power 0": _fixed("Taylor"),
    "restart": {"variant": {"restart": True}},
    "start: Taylor, decay 0.999, labels": {"scores": "Taylor", "variant": {"decay": 0.999, "labels": True}},
    "temperature 2": {"temperature": 2.0},
    "alpha 0.5": {"alpha": 0.5},
    "decay 0.9": {"variant": {"decay": 0.9}},
    "decay 0.999": {"variant": {"decay": 0.999}},
    "start: Taylor": {"scores": "Taylor"},
    "start: batch-norm scale": {"scores": "batch-norm scale"},
    "Taylor, taken once": {"rule": "frozen", "scores": "Taylor"},
    "current costs, power 1": {"cost_power": 1.0, "variant": {"current_costs": True}},
    "noise 0.3": {"variant": {"noise": 0.3}},
    "ramp 0.7": {"ramp": 0.7},
    "learning rate 0.01": {"lr": 0.01},
    "recalibrate": {"variant": {"recalibrate": 20}},
    "Adam, cost power 0": {"rule": "adam", "cost_power": 0.0},
    "Adam": {"rule": "adam"},
    "gate that scales, Adam, cost power 0": {"rule": "adam", "cost_power": 0.0, "variant": {"scaling": True}},
    "soft gate, penalty 30": {"rule": "adam", "cost_power": 0.0, "variant": {"soft": 30.0}},
    "feature maps, weight 1": {"variant": {"maps": 1.0}},
    "feature maps, weight 10": {"variant": {"maps": 10.0}},
    "feature maps, weight 100": {"variant": {"maps": 100.0}},
    "feature maps, weight 10, labels": {"variant": {"maps": 10.0, "labels": True}},
    "straight ramp": {"variant": {"shape": 1.0}},
    "no way back": {"cuts": 1000},
    **{f"hold {hold:g}": {"hold": hold} for hold in (0.5, 1.0, 2.0, 10.0)},
}
# How scores of different layers compare, and how steady the choice is: it matters most where there are few channels to spare
STEADY: dict[str, dict[str, Any]] = {
    **{name: CHANGES[name] for name in ("sdap", "hold 0.5", "hold 1", "hold 2", "hold 10", "no way back", "cost power 1", "start: Taylor, decay 0.999")},
    "uniform L1": RIVALS["uniform L1"],
    "uniform Taylor": _fixed("uniform Taylor"),
    "uniform scores": {"cost_power": 0.0, "variant": {"compare": "uniform"}},
    "uniform scores, hold 2": {"hold": 2.0, "cost_power": 0.0, "variant": {"compare": "uniform"}},
    "adaptive scores": {"variant": {"compare": "adaptive"}},
    "adaptive scores, cost power 0": {"cost_power": 0.0, "variant": {"compare": "adaptive"}},
    "adaptive scores, cost power 0.25": {"cost_power": 0.25, "variant": {"compare": "adaptive"}},
    "floor 0.25": {"variant": {"floor": 0.25}},
    **TODAY,
}
ABLATION = _free({name: ONE_CUT | change for name, change in {**CHANGES, **TODAY}.items()})

#: The experiments by name; ``python -m sdap_lite experiment --list`` shows them.
RECIPES: dict[str, Recipe] = {
    # Hours on one CPU core, from shipped weights
    "gate_rules": Recipe("vgg", "cifar10", 3, _free(GATE_RULES), images=15_000),
    "headline": Recipe("vgg", "cifar10", 40, _free({"vgg": {}, "resnet20": {"net": "resnet20", "epochs": 10}}), rates=(0.75,)),
    "rivals-fashion": Recipe("vgg", "fashion-mini", 3, {**RIVALS, **STEADIER}),
    "rivals-resnet20-fashion": Recipe("resnet20", "fashion-mini", 3, {**RIVALS, **STEADIER}),
    "rivals-vgg": Recipe("vgg", "cifar10", 3, _taught({**RIVALS, **BIGGER_TEACHER}), images=15_000),
    "rivals-resnet20": Recipe("resnet20", "cifar10", 3, _taught({**RIVALS, **LABELS, **BIGGER_TEACHER}), images=15_000),
    "rivals-mobilenetv2-imagenette": Recipe(
        "torchvision:mobilenet_v2",
        "imagenette",
        4,
        _taught(_small_batches({**RIVALS, "alpha 0.5": {"alpha": 0.5}, **{name: TODAY[name] for name in ("hold 10, alpha 0.5", "Taylor, alpha 0.5")}})),
        size=64,
    ),
    "ablation-vgg": Recipe("vgg", "cifar10", 3, ABLATION, images=15_000, all_validation=True),
    "comparisons-resnet20": Recipe("resnet20", "cifar10", 3, _free(STEADY), images=15_000, all_validation=True),
    "comparisons-resnet56": Recipe("resnet56", "cifar10", 3, TODAY, images=15_000, all_validation=True),
    "comparisons-vgg": Recipe("vgg", "cifar10", 3, _free(STEADY), images=15_000, all_validation=True),
    # Cut early, so that the time goes to the small network; the same extra epochs without pruning say what the extra epochs alone give
    "headline-vgg-half": Recipe("vgg-half", "cifar10", 8, _free({**CUT_EARLY, **TRAINED_ON}), rates=(0.9,), dense=30),
    "headline-vgg-half-long": Recipe("vgg-half", "cifar10", 24, _free(CUT_EARLY), rates=(0.9,), dense=30),
    "headline-vgg-half-75": Recipe("vgg-half", "cifar10", 12, _free(CUT_EARLY), rates=(0.75,), dense=30),
    # A second step down: what is removed is nine tenths of the whole network, 1 - (1 - 0.75) * (1 - 0.6)
    "headline-vgg-half-again": Recipe("vgg-half", "cifar10", 24, _taught({**CUT_EARLY, **TRAINED_ON}), rates=(0.6,), begin_with="vgg-half-cifar10-75"),
    "headline-mobilenetv2-imagenette": Recipe("torchvision:mobilenet_v2", "imagenette", 16, _free(SMALL_BATCHES), rates=(0.75,), size=64),
    "headline-mobilenetv2-imagenette-90": Recipe(
        "torchvision:mobilenet_v2", "imagenette", 16, _taught(_small_batches({**CUT_EARLY, **BY_EIGHTS})), rates=(0.9,), size=64
    ),
    "headline-mobilenetv2-imagenette-again": Recipe(
        "torchvision:mobilenet_v2", "imagenette", 16, SMALL_BATCHES, rates=(0.6,), size=64, begin_with="mobilenet_v2-imagenette-75"
    ),
    "headline-resnet18-imagenette": Recipe(
        "torchvision:resnet18",
        "imagenette",
        8,
        _small_batches({**CUT_EARLY, "alpha 0.9": {**CUT_EARLY["sdap"], "alpha": 0.9}, **STRONGEST, **BY_MACS, **TRAINED_ON}),
        size=64,
        dense=20,
        dense_lr=0.05,
        dense_batch=64,
    ),
}
# For one GPU, with the dense networks; what is recorded, nine runs at a time, took ten minutes of an H200
RECIPES |= {
    "headline-vgg-full": Recipe("vgg-full", "cifar10", 32, _taught({**CUT_EARLY, **STRONGEST, **TRAINED_ON}), dense=48),
    "headline-resnet56-long": Recipe("resnet56", "cifar10", 30, _taught({**CUT_EARLY, **STRONGEST, **TRAINED_ON}), rates=(0.75,), dense=40),
}
# For a GPU. On CIFAR-10 and CIFAR-100: dense epochs, their learning rate, epochs of pruning
CIFAR: dict[str, tuple[int, float, int]] = {
    "vgg": (160, 0.1, 120),
    "vgg-half": (160, 0.1, 120),
    "vgg-full": (160, 0.1, 120),
    "resnet20": (200, 0.1, 160),
    "resnet56": (200, 0.1, 160),
    "mobilenetv2-half": (200, 0.05, 160),
    "mobilenetv2": (200, 0.05, 160),
    "densenet40": (200, 0.1, 160),
}
RECIPES |= {
    f"{net}-{images}": Recipe(net, images, epochs, RIVALS, dense=dense, dense_lr=lr)
    for net, (dense, lr, epochs) in CIFAR.items()
    for images in ("cifar10", "cifar100")
}
RECIPES |= {
    "resnet18-imagenette": Recipe("torchvision:resnet18", "imagenette", 60, RIVALS, size=64, dense=100, dense_lr=0.1),
    "mobilenetv2-imagenette": Recipe("torchvision:mobilenet_v2", "imagenette", 60, RIVALS, size=64, dense=100, dense_lr=0.05),
    "resnet18-imagenet64": Recipe("torchvision:resnet18", "imagenet64", 20, RIVALS, dense=40, dense_lr=0.1),
    "vgg-full-imagenet32": Recipe("vgg-full", "imagenet32", 20, RIVALS, dense=40, dense_lr=0.05),
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
        name: a key of :data:`RECIPES`.
        seeds: how many, from 0 on; the dense network is trained once, with seed 0.
        out: the folder of ``NAME.json``.
        work: a folder for checkpoints and pruned networks; default: ``runs/NAME``.
        scale: the share of the epochs and of the training images, for a smaller machine.
        arms: which ones; default: all.
        teacher: a checkpoint's folder, of the bigger teacher; without it the arm that asks for it is left out.
        root: where the images are (:func:`sdap_lite.data.load`).
        mode: one of :data:`sdap_lite.measure.MODES`, for all rows of the file.
        progress: whether runs show how far they are.

    Yields:
        A line for each row, when it is written or left out.

    Raises:
        ValueError: an argument won't do, or the file holds rows that were measured otherwise.
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

    def about(self) -> dict[str, Any]:
        """All that the figures depend on."""
        held_out, training = (f"{len(part):,}" for part in self.images.hold_out())
        device = f"{torch.cuda.get_device_name()} GPU" if torch.cuda.is_available() else f"{platform.machine()} CPU, {torch.get_num_threads()} thread(s)"
        recipe = {key: value for key, value in vars(self.recipe).items() if key not in ("arms", "images", "size", "all_validation") and value is not None}
        return {
            "command": f"python -m sdap_lite experiment {self.name}"
            + ("" if self.scale == 1 else f" --scale {self.scale:g}")
            + ("" if self.mode == MODE else f" --mode {self.mode}"),
            "commit": _commit(),
            "data": f"{self.full.note}: {training} training images, {held_out} others for validation, all {len(self.full.test):,} test images",
            "settings": {**recipe, "rates": list(self.recipe.rates), "size": self.full.train.images.shape[-1], "mode": self.mode},
            "scale": self.scale,
            "dense test": {},
            "parameters": {},
            "hardware": device,
            "versions": {"python": platform.python_version(), "torch": torch.__version__, "sdap_lite": __version__},
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
            if any(row.get("arm", arm) == arm and all(row.get(k) == v for k, v in settings.items()) for row in self.rows):
                continue
            if "teacher" in settings and self.teacher is None:
                yield f"{label}: left out, since it needs the weights of {settings['teacher']} (--teacher)"
                continue
            row = self.measure(arm, settings)
            self.path.parent.mkdir(parents=True, exist_ok=True)
            with FileLock(self.path.with_name(f".{self.name}.lock")):  # several commands may measure rows of one file
                self.read()
                self.rows.append(row)
                self.write()
            yield f"{label}: {row['test']:.2%} of the test images, {row['achieved']:.2%} of the parameters gone, {row['seconds']:.0f} s"

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
            "commit": self.card["commit"],  # a file grows over many of them
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
            scored = copy.deepcopy(dense).to(best_device())
            arguments["scores"] = SCORES[arguments["scores"]](scored, trace(dense, self.example), self.images, settings["seed"])
        if "variant" in arguments:
            arguments["variant"] = Variant(**arguments["variant"])
        if "teacher" in arguments:
            arguments["teacher"] = self.teacher
        return prune(dense, self.images, **arguments, **self.going_on(self.folder(settings)))

    def scratch(self, dense: nn.Module, settings: dict[str, Any]) -> Result:
        """The small network of another arm (its checkpoint is there, else it is run again), trained from random weights."""
        other = self.settings(self.recipe.arms[settings["scratch"]], settings["rate"], settings["seed"])
        small = self.prune(dense, other)
        fresh = baselines.reinitialise(small.model, seed=settings["seed"])
        arguments = {key: settings[key] for key in ("epochs", "lr", "seed")}
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
            model = model.to(best_device()).eval()
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


def _commit() -> str:
    """The version of the code, where it lies in a clone."""
    command = ["git", "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*"]
    try:
        return subprocess.run(command, cwd=Path(__file__).parent, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return "unknown: not run from a clone"
