"""What a run depends on, checked before any work, and the checkpoint that it goes on from. Chapter 5."""

from __future__ import annotations

from pathlib import Path
from types import NoneType
from typing import Any

import torch
from torch import Tensor, nn

from .budget import check_rate, check_round_to
from .checkpoint import fingerprint, read_checkpoint
from .checks import check_device, check_images, check_number, plain, undisturbed
from .graph import ChannelGraph
from .images import Images
from .measure import MODES, check_mode, choose_mode
from .rules import RULES
from .team import team
from .variants import Variant

__all__ = ["check_asked", "check_scores", "check_variant", "common_settings", "open_run"]


def common_settings(
    images: Images,
    epochs: int,
    lr: float,
    batch_size: int,
    weight_decay: float,
    validation: float,
    seed: int,
    device: str | torch.device | None,
    replay: bool,
) -> dict[str, Any]:
    """The settings that every run has, checked."""
    epochs, lr, batch_size, weight_decay, validation, seed = map(plain, (epochs, lr, batch_size, weight_decay, validation, seed))
    if isinstance(epochs, bool) or not isinstance(epochs, int) or epochs < 1:
        raise ValueError(f"epochs must be a whole number from 1 on, got {epochs!r}")
    if not isinstance(batch_size, int) or batch_size < 2:
        raise ValueError(f"batch_size must be a whole number from 2 on (batch norm needs two images), got {batch_size!r}")
    check_number("lr", lr, "be a number above 0", lambda v: v > 0)
    check_number("weight_decay", weight_decay, "be a number from 0 on", lambda v: v >= 0)
    check_number("validation", validation, "be the share that is held out, above 0 and below 1", lambda v: 0 < v < 1)
    if isinstance(seed, bool) or not isinstance(seed, int) or abs(seed) >= 2**32:
        raise ValueError(f"seed must be a whole number below 2**32, got {seed!r}")
    check_images(images, validation)
    if not isinstance(replay, bool):
        raise ValueError(f"replay must be True or False, got {replay!r}")
    kind = check_device(device)
    tensors = [t for split in (images.train, images.validation, images.test) if split is not None for t in (split.images, split.labels)]
    counts = [len(images.train), len(images.validation or ()), len(images.test), *images.train.images.shape[1:]]
    return {
        "data": images.name,
        "counts": counts,
        "images": fingerprint([*tensors, torch.tensor([images.mean, images.std])]),
        **({} if images.flip else {"flip": False}),
        "epochs": epochs,
        "lr": lr,
        "batch_size": batch_size,
        "weight_decay": weight_decay,
        "validation": validation,
        "seed": seed,
        "device": str(kind),
        **({"replay": replay} if kind.type == "cuda" else {}),  # elsewhere it says nothing
    }


def check_asked(
    *, rate: float, unit: str, temperature: float, alpha: float, ramp: float, cuts: int, rule: str, cost_power: float, hold: float, round_to: int
) -> None:
    """That what is asked of a pruning makes sense, whatever the network; the unit is checked where it is counted."""
    check_rate(rate)
    for name, value in (("alpha", alpha), ("ramp", ramp), ("cost_power", cost_power)):
        check_number(name, value, "lie between 0 and 1", lambda v: 0 <= v <= 1)
    check_number("temperature", temperature, "be above 0", lambda v: v > 0)
    check_number("hold", hold, "be a number from 0 on", lambda v: v >= 0)
    if not isinstance(rule, str) or rule not in RULES:
        raise ValueError(f"rule must be one of {', '.join(RULES)}, got {rule!r}")
    check_round_to(round_to)
    if isinstance(cuts, bool) or not isinstance(cuts, int) or cuts < 1:
        raise ValueError(f"cuts must be a whole number from 1 on, got {cuts!r}")


def check_variant(variant: Variant, **asked: Any) -> None:
    """That what is done otherwise goes with what is asked."""
    if not isinstance(variant, Variant):
        raise ValueError(f"variant must be an sdap_lite.variants.Variant, got {type(variant).__name__}")
    if variant.start is not None and asked["rule"] not in ("straight-through", "adam"):
        raise ValueError(f"rule must be straight-through or adam where a gate's value is trained (scaling, soft), got {asked['rule']!r}")
    if variant.unsigned and asked["rule"] in ("straight-through", "adam"):
        raise ValueError(f"rule must be one whose scores are from 0 on where they are {variant.unsigned}, got {asked['rule']!r}")
    if variant.soft and asked["unit"] not in ("params", "macs"):
        raise ValueError(f"unit must be params or macs for soft gates, got {asked['unit']!r}")
    if variant.soft and not asked["ramp"]:
        raise ValueError("ramp must be above 0 for soft gates, which learn along it, got 0")


def check_scores(scores: dict[str, Tensor] | None, graph: ChannelGraph, variant: Variant) -> str | None:
    """That the scores are this network's, and from 0 on where the variant wants it; returns their fingerprint."""
    if scores is None:
        return None
    try:
        flat = graph.join(scores, 0.0)
    except ValueError as error:
        raise ValueError(f"scores must fit the network: {error}") from error
    if not (flat.is_floating_point() and bool(torch.isfinite(flat).all())):
        raise ValueError(f"scores must be finite floating-point numbers, got {flat.dtype}{' with NaN or infinity' if flat.is_floating_point() else ''}")
    if variant.unsigned and bool((flat < 0).any()):
        raise ValueError(f"scores must be from 0 on where they are {variant.unsigned}, got {float(flat.min()):.4g}")
    return fingerprint([flat])


def open_run(
    settings: dict[str, Any], mode: str, checkpoint: str | Path | None, resume: str | Path | None, model: nn.Module, images: Images
) -> tuple[Path | None, dict[str, Any] | None]:
    """Where checkpoints go, and the one to go on from; completes the settings by the mode."""
    for name, folder in (("checkpoint", checkpoint), ("resume", resume)):
        if not isinstance(folder, (str, Path, NoneType)):
            raise ValueError(f"{name} must name a folder, got {folder!r}")
    if resume and checkpoint and Path(resume).resolve() != Path(checkpoint).resolve():
        raise ValueError(f"checkpoint must be left out or name the folder that resume names, in which the run goes on, got {checkpoint} and {resume}")
    saved = read_checkpoint(Path(resume)) if resume else None
    if mode not in ("auto", *MODES):
        raise ValueError(f"mode must be auto or one of {', '.join(MODES)}, got {mode!r}")
    if saved and mode == "auto":
        settings["mode"] = saved["settings"]["mode"]  # measured when the run began
    else:
        settings["mode"] = _tried_mode(settings, mode, model, images)
    if saved:
        if settings["kind"] == saved["settings"].get("kind") == "train":
            _check_fits(model, saved["model"])
            settings["model"] = saved["settings"].get("model")  # training works in place: the weights may have come further
        names = [k for k in {**settings, **saved["settings"]} if k != "times"]  # which came from there, if the unit is the same
        differ = [k for k in names if settings.get(k) != saved["settings"].get(k)]
        if differ:
            found = ", ".join(f"{k} was {saved['settings'].get(k)!r} and is now {settings.get(k)!r}" for k in differ)
            raise ValueError(f"a run must be resumed with what it was begun with, but {found}")
    return Path(resume or checkpoint) if resume or checkpoint else None, saved  # type: ignore[arg-type]


# ---------------------------------------------------------------------------------------------


def _tried_mode(settings: dict[str, Any], mode: str, model: nn.Module, images: Images) -> str:
    """The mode to run in: the fastest, or the one asked for, if the model can be trained in it."""
    shape, device = images.train.images.shape[1:], torch.device(settings["device"])
    with undisturbed(model):
        if mode == "auto":
            return team(device).agree(choose_mode(model, torch.zeros(min(64, settings["batch_size"]), *shape, device=device)))
        if mode != "fp32":  # in which it was traced
            check_mode(model, torch.zeros(2, *shape, device=device), mode)
        return mode


def _check_fits(model: nn.Module, saved: dict[str, Tensor]) -> None:
    """That a checkpoint's weights are those of a network like this one."""
    here, there = ({name: list(tensor.shape) for name, tensor in state.items()} for state in (model.state_dict(), saved))
    differ = [name for name in {**there, **here} if here.get(name) != there.get(name)]
    if differ:
        found = ", ".join(f"{name} was {there.get(name)} and is now {here.get(name)}" for name in differ[:3])
        raise ValueError(f"a run must be resumed with the network that it was begun with, but the shape of {found}")
