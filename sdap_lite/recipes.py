"""The experiments of the book, each a recipe: which network, which images, which ways to prune it. Chapters 8 and 11.

Tables, nothing else; :mod:`sdap_lite.experiments` runs them.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

__all__ = ["RECIPES", "RIVALS", "Recipe"]


@dataclass(frozen=True)
class Recipe:
    """One experiment.

    Attributes:
        net: a key of :data:`sdap_lite.models.NETS`.
        data: an image set of :func:`sdap_lite.data.load`.
        epochs: of pruning.
        arms: by name, what each does differently: arguments of :func:`sdap_lite.prune`, of which ``scores`` names
            one of :data:`sdap_lite.experiments.SCORES`, ``teacher`` one of :data:`sdap_lite.models.NETS` and ``variant`` the fields of a
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
    "sdap without learned gates": {"rule": "frozen", **FREE},
    "batch-norm slimming": _fixed("batch-norm scale"),
    "global L1": _fixed("L1"),
    "uniform L1": _fixed("uniform L1"),
    "Taylor": _fixed("Taylor"),
    "random": _fixed("random"),
    "two stages": _fixed("Taylor", ramp=0.0),
    "from scratch": {"scratch": "sdap without a hold", "lr": 0.1, **FREE},
}
# Without what is ours. Li et al. 2017: cut at once, then fine-tuned. Molchanov et al. 2019: scored anew while channels go. Neither has a teacher;
# the second keeps our ramp, along which a closed channel may come back
WITHOUT_OURS: dict[str, dict[str, Any]] = {
    "uniform L1, as published": _fixed("uniform L1", ramp=0.0, alpha=0.0),
    "Taylor, scored anew, labels alone": {"cost_power": 0.0, **FREE, "alpha": 0.0},
    "Taylor, scored anew": {"cost_power": 0.0, **FREE},  # with our teacher
}
LABELS = {"gradient of the labels' loss": {"variant": {"labels": True}}}  # the nearest rival within the ablation
NEITHER = {"sdap without hold and distillation": {**FREE, "alpha": 0.0}}
STEADIER: dict[str, dict[str, Any]] = {"hold 10": {"hold": 10.0}}  # hardly a channel comes back
# With today's share of the teacher: is a longer hold worth it on every network, and who is ahead?
TODAY: dict[str, dict[str, Any]] = {
    "hold 1, alpha 0.5": {"hold": 1.0, "alpha": 0.5},
    "hold 10, alpha 0.5": {"hold": 10.0, "alpha": 0.5},
    "uniform L1, alpha 0.5": _fixed("uniform L1", alpha=0.5),
    "Taylor, alpha 0.5": _fixed("Taylor", alpha=0.5),
}
SOME_OF_TODAY = {name: TODAY[name] for name in ("hold 10, alpha 0.5", "Taylor, alpha 0.5")}
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
WITHOUT_OURS_EARLY = {name: arm if "ramp" in arm else {**arm, **CUT_EARLY["sdap"]} for name, arm in WITHOUT_OURS.items()}
# What a long run may show; and where there is time, in the steps of a training from random weights, too
LONG: dict[str, dict[str, Any]] = {**CUT_EARLY, **STRONGEST, **WITHOUT_OURS_EARLY, **TRAINED_ON}
LONG_IN_BOTH = LONG | {f"{name}, learning rate 0.1": {**arm, "lr": 0.1} for name, arm in LONG.items()}
OURS_IN_BOTH = {name: LONG_IN_BOTH[name] for name in ("sdap", "sdap, learning rate 0.1")}
# The rate counts multiply-accumulates instead of parameters: who is ahead when all are equally fast?
BY_MACS: dict[str, dict[str, Any]] = {
    "sdap, by MACs": {**CUT_EARLY["sdap"], "unit": "macs"},
    "uniform L1, by MACs": {**STRONGEST["uniform L1"], "unit": "macs"},
}
BIGGER_TEACHER = {"bigger teacher": {"teacher": "resnet56"}}  # its weights come along
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
ABLATION = _free({name: ONE_CUT | change for name, change in CHANGES.items()})

#: The experiments by name; ``python -m sdap_lite experiment --list`` shows them.
RECIPES: dict[str, Recipe] = {
    # Hours on one CPU core, from shipped weights
    "gate_rules": Recipe("vgg", "cifar10", 3, _free(GATE_RULES), images=15_000),
    "headline": Recipe("vgg", "cifar10", 40, _free({"vgg": {}, "resnet20": {"net": "resnet20", "epochs": 10}}), rates=(0.75,)),
    "rivals-fashion": Recipe("vgg", "fashion-mini", 3, {**RIVALS, **WITHOUT_OURS, **STEADIER}),
    "rivals-resnet20-fashion": Recipe("resnet20", "fashion-mini", 3, {**RIVALS, **WITHOUT_OURS, **STEADIER}),
    "rivals-vgg": Recipe("vgg", "cifar10", 3, {**RIVALS, **WITHOUT_OURS, **BIGGER_TEACHER}, images=15_000),
    "rivals-resnet20": Recipe("resnet20", "cifar10", 3, {**RIVALS, **WITHOUT_OURS, **LABELS, **BIGGER_TEACHER}, images=15_000),
    "rivals-mobilenetv2-imagenette": Recipe(
        "torchvision:mobilenet_v2",
        "imagenette",
        4,
        _taught(_small_batches({**RIVALS, **WITHOUT_OURS, **NEITHER, "alpha 0.5": {"alpha": 0.5}, **SOME_OF_TODAY})),
        size=64,
    ),
    "ablation-vgg": Recipe("vgg", "cifar10", 3, ABLATION, images=15_000, all_validation=True),
    "comparisons-resnet20": Recipe("resnet20", "cifar10", 3, _free(STEADY), images=15_000, all_validation=True),
    "comparisons-resnet56": Recipe("resnet56", "cifar10", 3, TODAY, images=15_000, all_validation=True),
    "comparisons-densenet40": Recipe("densenet40", "cifar10", 3, TODAY, images=15_000, all_validation=True),
    "comparisons-vgg": Recipe("vgg", "cifar10", 3, _free(STEADY), images=15_000, all_validation=True),
    # Cut early, so that the time goes to the small network; the same extra epochs without pruning say what the extra epochs alone give
    "headline-resnet20-long": Recipe("resnet20", "cifar10", 20, OURS_IN_BOTH, rates=(0.75,)),
    "headline-vgg-half": Recipe("vgg-half", "cifar10", 8, _free({**CUT_EARLY, **TRAINED_ON}), rates=(0.9,), dense=30),
    "headline-vgg-half-long": Recipe("vgg-half", "cifar10", 24, _free(CUT_EARLY), rates=(0.9,), dense=30),
    "headline-vgg-half-75": Recipe("vgg-half", "cifar10", 12, _free(CUT_EARLY), rates=(0.75,), dense=30),
    # A second step down: what is removed is nine tenths of the whole network, 1 - (1 - 0.75) * (1 - 0.6)
    "headline-vgg-half-again": Recipe("vgg-half", "cifar10", 24, _taught({**CUT_EARLY, **TRAINED_ON}), rates=(0.6,), begin_with="vgg-half-cifar10-75"),
    # The same step with today's share of the teacher
    "headline-vgg-half-90": Recipe("vgg-half", "cifar10", 24, CUT_EARLY, rates=(0.6,), begin_with="vgg-half-cifar10-75"),
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
        _small_batches({**CUT_EARLY, "alpha 0.9": {**CUT_EARLY["sdap"], "alpha": 0.9}, **STRONGEST, **WITHOUT_OURS_EARLY, **BY_MACS, **TRAINED_ON}),
        size=64,
        dense=20,
        dense_lr=0.05,
        dense_batch=64,
    ),
    # Depthwise, at CIFAR size: an hour of two CPU cores for the dense network, then half an hour of one for each run
    "headline-mobilenetv2-half": Recipe("mobilenetv2-half", "cifar10", 4, LONG, dense=11, dense_lr=0.05),
    # Concatenations: every layer reads all before it
    "headline-densenet121-imagenette": Recipe(
        "torchvision:densenet121",
        "imagenette",
        8,
        _small_batches(LONG),
        size=64,
        dense=20,
        dense_lr=0.05,
        dense_batch=64,
    ),
}
# For one GPU, with the dense networks; what is recorded, nine runs at a time, took ten minutes of an H200
RECIPES |= {
    "headline-vgg-full": Recipe("vgg-full", "cifar10", 32, _taught(LONG), dense=48),
    "headline-resnet56-long": Recipe("resnet56", "cifar10", 30, _taught({**CUT_EARLY, **STRONGEST, **TRAINED_ON}), rates=(0.75,), dense=40),
    # Three times as long, from the same dense network, at the learning rate of fine-tuning and at that of training
    "headline-resnet56-90-epochs": Recipe("resnet56", "cifar10", 90, LONG_IN_BOTH),
    "headline-densenet40": Recipe("densenet40", "cifar10", 40, LONG_IN_BOTH, dense=40),
    "headline-mobilenetv2-half-long": Recipe("mobilenetv2-half", "cifar10", 60, LONG_IN_BOTH, dense=40, dense_lr=0.05),
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
