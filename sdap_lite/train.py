"""The one run: pruning and fine-tuning in a single training (Diao et al. 2025). Chapter 5.

``train`` is plain training. ``prune`` is the same loop with gates, a teacher and surgery in it:
the rate rises along a ramp, the masks freeze, surgery happens there and then with the optimizer's
state cut along, and the same run goes on with the small model.
"""

from __future__ import annotations

import copy
import hashlib
import math
import os
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from tqdm import tqdm

from .budget import Report, check_rate, check_round_to, cost, largest_rate, report, schedule, threshold
from .channels import trace
from .checkpoint import read_checkpoint, write_checkpoint
from .data import Images, batches
from .distill import distillation_loss
from .folding import fold_norms
from .gates import RULES, Gates
from .graph import ChannelGraph
from .measure import MODES, accuracy, arrange, best_device, choose_mode, evaluating
from .surgery import remove_channels, slice_optimizer

__all__ = ["Result", "learning_rate", "prune", "train"]

CLOSE_EVERY = 5  # steps between two looks at which gates are open


@dataclass(frozen=True)
class Result:
    """What a run gives back.

    Attributes:
        model: the trained network, a plain module in eval mode.
        history: one record an epoch: loss, accuracy on training and validation images (0 to 1),
            removed share of the parameters, learning rate, seconds.
        test: accuracy on the test images, 0 to 1, looked at once, at the end.
        settings: all that the run depended on.
        dense_test: accuracy of the network before pruning (``prune`` only).
        report: what was asked for and what was reached (``prune`` only).
        graph: of the network before pruning (``prune`` only).
        kept: the channels that stayed (``prune`` only).
    """

    model: nn.Module
    history: list[dict[str, float]]
    test: float
    settings: dict[str, Any]
    dense_test: float | None = None
    report: Report | None = None
    graph: ChannelGraph | None = None
    kept: dict[str, Tensor] = field(default_factory=dict)

    def __str__(self) -> str:
        dense = "" if self.dense_test is None else f"{self.dense_test:.2%} -> "
        return f"test accuracy {dense}{self.test:.2%} in {len(self.history)} epochs\n{self.report or ''}".rstrip()


def train(
    model: nn.Module,
    images: Images,
    *,
    epochs: int = 30,
    lr: float = 0.1,
    batch_size: int = 128,
    weight_decay: float = 5e-4,
    label_smoothing: float = 0.0,
    validation: float = 0.1,
    seed: int = 0,
    device: str | torch.device | None = None,
    mode: str = "auto",
    checkpoint: str | Path | None = None,
    resume: str | Path | None = None,
    progress: bool = True,
) -> Result:
    """Trains a network in place: SGD with Nesterov momentum, a warm-up, then a cosine to zero.

    Args:
        model: a classifier.
        images: the set; its test images are looked at once, at the end.
        epochs: passes over the training images.
        lr: the highest learning rate.
        batch_size: images a step.
        weight_decay: on weights, not on norms and biases.
        label_smoothing: share of the label spread over all classes.
        validation: share of the training images that is held out, the same ones for every seed
            (if ``images.validation`` does not hold them already).
        seed: same seed, same machine, same thread count: the same weights, bit for bit on the CPU.
        device: default: CUDA, else MPS, else the CPU.
        mode: ``"auto"`` measures which of :data:`sdap_lite.measure.MODES` is fastest here.
        checkpoint: a folder that gets a checkpoint each epoch.
        resume: a folder with such a checkpoint; the run goes on there as if never stopped.
        progress: whether to show a bar (or, in a log, a line an epoch).

    Raises:
        ValueError: an argument, the model or the images won't do; raised before any training.
        FloatingPointError: the loss is not finite.
    """
    if not 0 <= label_smoothing <= 1:
        raise ValueError(f"label_smoothing must lie between 0 and 1, got {label_smoothing!r}")
    settings = _settings(images, epochs, lr, batch_size, weight_decay, validation, seed, device)
    settings.update(kind="train", label_smoothing=label_smoothing, model=_check_classifier(model, images))
    folder, saved = _open(settings, mode, checkpoint, resume, model, images)
    run = _Training(model, images, settings)
    run.run(folder, saved, progress)
    return Result(run.model.eval(), run.history, accuracy(run.model, images), settings)


def prune(
    model: nn.Module,
    images: Images,
    rate: float = 0.75,
    *,
    epochs: int = 30,
    unit: str = "params",
    lr: float = 0.02,
    temperature: float = 4.0,
    alpha: float = 0.9,
    ramp: float = 0.5,
    rule: str = "rms",
    cost_power: float = 0.5,
    round_to: int = 1,
    teacher: nn.Module | None = None,
    batch_size: int = 128,
    weight_decay: float = 5e-4,
    validation: float = 0.1,
    seed: int = 0,
    device: str | torch.device | None = None,
    mode: str = "auto",
    checkpoint: str | Path | None = None,
    resume: str | Path | None = None,
    progress: bool = True,
) -> Result:
    """The whole paper: prunes a pretrained network and fine-tunes it in one run.

    Args:
        model: a pretrained classifier; it stays as it is, a copy is pruned.
        images: the set; its test images are looked at once, at the end.
        rate: the share of ``unit`` that goes, from 0 to below 1.
        epochs: passes over the training images, in all.
        unit: ``"params"``, ``"macs"`` or ``"channels"``.
        lr: the highest learning rate.
        temperature: of the distillation (:func:`sdap_lite.distillation_loss`).
        alpha: the teacher's share in the loss; 0 trains without a teacher.
        ramp: the share of the run after which the rate is reached and surgery happens.
        rule: how scores learn: ``"rms"``, ``"straight-through"`` or ``"frozen"``.
        cost_power: see :func:`sdap_lite.threshold`.
        round_to: each group of channels keeps a multiple of this many (:func:`sdap_lite.threshold`).
        teacher: default: the pretrained network itself.
        batch_size: images a step.
        weight_decay: on weights, not on norms and biases.
        validation: share of the training images that is held out, the same ones for every seed
            (if ``images.validation`` does not hold them already).
        seed: same seed, same machine, same thread count: the same weights, bit for bit on the CPU.
        device: default: CUDA, else MPS, else the CPU.
        mode: ``"auto"`` measures which of :data:`sdap_lite.measure.MODES` is fastest here.
        checkpoint: a folder that gets a checkpoint each epoch.
        resume: a folder with such a checkpoint; the run goes on there as if never stopped.
        progress: whether to show a bar (or, in a log, a line an epoch).

    Raises:
        ValueError: an argument, the model or the images won't do; raised before any training.
        TraceError: the model cannot be traced.
        FloatingPointError: the loss is not finite.
    """
    check_rate(rate)
    for name, value, low, high in (("alpha", alpha, 0, 1), ("ramp", ramp, 0, 1), ("cost_power", cost_power, 0, 1)):
        if not low <= value <= high:
            raise ValueError(f"{name} must lie between {low} and {high}, got {value!r}")
    if not temperature > 0:
        raise ValueError(f"temperature must be above 0, got {temperature!r}")
    if rule not in RULES:
        raise ValueError(f"rule must be one of {', '.join(RULES)}, got {rule!r}")
    check_round_to(round_to)
    fingerprint, taught = _check_classifier(model, images), "" if teacher is None else _check_classifier(teacher, images, frozen=True)
    graph = trace(model, torch.zeros(1, *images.train.images.shape[1:]))
    if rate > largest_rate(graph, unit, round_to):
        raise ValueError(f"rate must be at most {largest_rate(graph, unit, round_to):.4f} for this network, where every layer keeps one channel, got {rate}")
    settings = _settings(images, epochs, lr, batch_size, weight_decay, validation, seed, device)
    settings.update(kind="prune", rate=rate, unit=unit, temperature=temperature, alpha=alpha, ramp=ramp, rule=rule, cost_power=cost_power, round_to=round_to)
    settings.update(model=fingerprint, teacher=taught)
    folder, saved = _open(settings, mode, checkpoint, resume, model, images)
    run = _Pruning(model, model if teacher is None else teacher, graph, images, settings)
    run.run(folder, saved, progress)
    summary = report(graph, run.kept, asked=rate, unit=unit)
    dense = accuracy(copy.deepcopy(model).to(run.device), images)
    return Result(run.model.eval(), run.history, accuracy(run.model, images), settings, dense, summary, graph, run.kept)


def learning_rate(progress: float, peak: float, *, warmup: float = 0.1) -> float:
    """Linear up to ``peak``, then down along a cosine to zero; ``progress`` goes from 0 to 1.

    >>> [round(learning_rate(p, 0.1), 4) for p in (0, 0.1, 0.55, 1)]
    [0.01, 0.1, 0.05, 0.0]
    """
    if progress < warmup:
        return peak * (0.1 + 0.9 * progress / warmup)
    return peak * 0.5 * (1 + math.cos(math.pi * (progress - warmup) / (1 - warmup)))


class _Training:
    """Plain training. Each epoch depends on the seed and the state before it, on nothing else."""

    def __init__(self, model: nn.Module, images: Images, settings: dict[str, Any]) -> None:
        self.settings, self.images = settings, images
        self.device = torch.device(settings["device"])
        self.dtype, self.layout = MODES[settings["mode"]]
        held_out, kept = images.hold_out(settings["validation"])
        self.validation, self.training = held_out.to(self.device), kept.to(self.device)
        self.model = arrange(model.to(self.device), self.layout)
        self.optimizer = self.make_optimizer()
        self.history: list[dict[str, float]] = []
        whole, rest = divmod(len(self.training), settings["batch_size"])
        self.steps_an_epoch = max(1, whole + (rest > 1))  # a single image left over is no batch

    def make_optimizer(self) -> torch.optim.Optimizer:
        trained = [p for p in self.model.parameters() if p.requires_grad]
        weights, others = [p for p in trained if p.ndim > 1], [p for p in trained if p.ndim <= 1]
        groups = [{"params": weights, "weight_decay": self.settings["weight_decay"]}, {"params": others, "weight_decay": 0.0}]
        return torch.optim.SGD(groups, lr=self.settings["lr"], momentum=0.9, nesterov=True)

    # What pruning does differently

    def loss(self, logits: Tensor, x: Tensor, y: Tensor) -> Tensor:
        return F.cross_entropy(logits, y, label_smoothing=self.settings["label_smoothing"])

    def before_step(self, step: int) -> None:
        """Called before each step, with the count of those that are done."""

    def after_backward(self) -> None:
        """Called when the gradients are there."""

    def finish(self) -> None:
        """Called after the last epoch."""

    def extra(self) -> dict[str, float]:
        """What an epoch's record holds beside the usual."""
        return {}

    def state(self) -> dict[str, Any]:
        """All that the next epoch depends on."""
        return {"model": self.model.state_dict(), "optimizer": self.optimizer.state_dict(), "history": self.history}

    def load_state(self, state: dict[str, Any]) -> None:
        self.model.load_state_dict(state["model"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.history = state["history"]

    # The loop

    @property
    def total_steps(self) -> int:
        return self.settings["epochs"] * self.steps_an_epoch

    def forward(self, model: nn.Module, x: Tensor) -> Tensor:
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.dtype != torch.float32):
            return model(x).float()

    def step(self, x: Tensor, y: Tensor, step: int) -> tuple[float, float]:
        """One batch; returns its loss and its share of right answers."""
        self.before_step(step)
        lr = learning_rate(step / self.total_steps, self.settings["lr"])
        for group in self.optimizer.param_groups:
            group["lr"] = lr
        x = x.to(memory_format=self.layout)
        logits = self.forward(self.model, x)
        loss = self.loss(logits, x, y)
        if not torch.isfinite(loss):
            where = f"epoch {len(self.history) + 1}, step {step}"
            raise FloatingPointError(f"the loss must be finite, got {loss.item()} in {where} at learning rate {lr:.4g}: try a smaller one")
        self.optimizer.zero_grad()
        loss.backward()
        self.after_backward()
        self.optimizer.step()
        return float(loss.detach()), float((logits.detach().argmax(1) == y).float().mean())

    def epoch(self, bar: tqdm) -> None:
        epoch, start = len(self.history), time.perf_counter()
        seed = 1_000_003 * self.settings["seed"] + epoch
        torch.manual_seed(seed)  # dropout
        totals, seen = [0.0, 0.0], 0
        shuffled = batches(self.training, self.settings["batch_size"], self.images, shuffle=torch.Generator().manual_seed(seed))
        for i, (x, y) in enumerate(shuffled):
            self.model.train()
            values = self.step(x, y, epoch * self.steps_an_epoch + i)
            totals, seen = [t + v * len(x) for t, v in zip(totals, values, strict=True)], seen + len(x)
            shown = {"accuracy": totals[1] / seen, **self.extra()}
            bar.set_postfix(loss=f"{totals[0] / seen:.3f}", **{k: f"{v:.1%}" for k, v in shown.items()}, refresh=False)
            bar.update()
        right = accuracy(self.model, self.images, split=self.validation, mode=self.settings["mode"])
        record = {"epoch": epoch + 1, "loss": totals[0] / seen, "train": totals[1] / seen, "validation": right, **self.extra()}
        self.history.append({**record, "lr": self.optimizer.param_groups[0]["lr"], "seconds": time.perf_counter() - start})

    def run(self, folder: Path | None, saved: dict[str, Any] | None, progress: bool) -> None:
        if saved:
            self.load_state(saved)
        live, done = _is_live(), len(self.history) * self.steps_an_epoch
        bar = tqdm(total=self.total_steps, initial=done, disable=not (progress and live), file=sys.stdout, unit="batch")
        with torch.random.fork_rng([self.device] if self.device.type == "cuda" else []), bar:
            while len(self.history) < self.settings["epochs"]:
                self.epoch(bar)
                if folder:
                    write_checkpoint(folder, {"settings": self.settings, **self.state()})
                if progress and not live:
                    print(self.line(), flush=True)
            self.finish()

    def line(self) -> str:
        last, epochs = self.history[-1], self.settings["epochs"]
        left = sum(r["seconds"] for r in self.history) / len(self.history) * (epochs - len(self.history))
        extra = "".join(f" | {k} {v:.1%}" for k, v in self.extra().items())
        scores = f"loss {last['loss']:.3f} | train {last['train']:.1%} | validation {last['validation']:.1%}"
        return f"epoch {int(last['epoch']):3d}/{epochs} | {scores}{extra} | {last['seconds']:.0f} s | {left:.0f} s left"


class _Pruning(_Training):
    """Gates and a teacher until the ramp's end; then surgery, and the small model with the teacher."""

    def __init__(self, model: nn.Module, teacher: nn.Module, graph: ChannelGraph, images: Images, settings: dict[str, Any]) -> None:
        super().__init__(copy.deepcopy(model), images, settings)
        if settings["alpha"]:
            example = torch.zeros(2, *images.train.images.shape[1:])
            self.teacher = arrange(fold_norms(teacher, example).to(self.device), self.layout)
        self.graph = graph
        self.gates: Gates | None = Gates(graph, RULES[settings["rule"]]())
        if settings["rule"] == "frozen":
            self.gates.scores = norm_scales(self.model, graph)
        self.gates.attach(self.model)
        self.kept: dict[str, Tensor] = graph.split(torch.ones(len(graph), dtype=torch.bool))
        self.removed = 0.0

    def loss(self, logits: Tensor, x: Tensor, y: Tensor) -> Tensor:
        if self.settings["alpha"] == 0:
            return F.cross_entropy(logits, y)
        with torch.no_grad():
            teacher = self.forward(self.teacher, x)
        return distillation_loss(logits, teacher, y, temperature=self.settings["temperature"], alpha=self.settings["alpha"])

    def before_step(self, step: int) -> None:
        progress = step / self.total_steps
        if self.gates is None:
            return
        if progress >= self.settings["ramp"]:
            self.operate(self.final_choice())
        elif step % CLOSE_EVERY == 0:
            rate = schedule(progress, self.settings["rate"], self.settings["ramp"])
            self.kept = self.gates.close_to(rate, unit=self.settings["unit"], cost_power=self.settings["cost_power"])
            self.removed = self.share_removed()

    def after_backward(self) -> None:
        if self.gates is not None:
            self.gates.learn()

    def finish(self) -> None:
        if self.gates is not None:  # a ramp so long that the run ended in it
            self.operate(self.final_choice())

    def final_choice(self) -> dict[str, Tensor]:
        assert self.gates is not None
        settings = {name: self.settings[name] for name in ("unit", "cost_power", "round_to")}
        return threshold(self.graph, self.gates.scores, self.settings["rate"], **settings)

    def operate(self, kept: dict[str, Tensor]) -> None:
        """The masks freeze, and the run goes on with the small model and its share of the optimizer."""
        assert self.gates is not None
        self.gates.detach()
        self.gates, self.kept = None, kept
        small = arrange(remove_channels(self.model, self.graph, kept), self.layout)
        slice_optimizer(self.optimizer, self.model, small, self.graph, kept)
        self.model, self.removed = small, self.share_removed()

    def share_removed(self) -> float:
        """Of the parameters, at this moment."""
        return 1 - cost(self.graph, self.kept) / cost(self.graph)

    def extra(self) -> dict[str, float]:
        return {"removed": self.removed}

    def state(self) -> dict[str, Any]:
        gates = None if self.gates is None else self.gates.state_dict()
        return {**super().state(), "gates": gates, "kept": self.kept, "removed": self.removed}

    def load_state(self, state: dict[str, Any]) -> None:
        if state["gates"] is None:
            self.operate(state["kept"])
        elif self.gates is not None:
            self.gates.load_state_dict(state["gates"])
        self.kept, self.removed = state["kept"], state["removed"]
        super().load_state(state)


# ---------------------------------------------------------------------------------------------


def norm_scales(model: nn.Module, graph: ChannelGraph) -> dict[str, Tensor]:
    """Each channel's largest batch-norm scale: the scores of network slimming (Liu et al. 2017)."""
    flat = torch.zeros(len(graph))
    for name, layer in graph.layers.items():
        scale = getattr(model.get_submodule(name), "weight", None) if layer.kind == "norm" else None
        if scale is not None:
            flat.scatter_reduce_(0, layer.outputs, scale.detach().abs().float().cpu(), "amax")
    return graph.split(flat)


def _settings(
    images: Images, epochs: int, lr: float, batch_size: int, weight_decay: float, validation: float, seed: int, device: str | torch.device | None
) -> dict[str, Any]:
    """The settings that every run has, checked."""
    if isinstance(epochs, bool) or not isinstance(epochs, int) or epochs < 1:
        raise ValueError(f"epochs must be a whole number from 1 on, got {epochs!r}")
    if not isinstance(batch_size, int) or batch_size < 2:
        raise ValueError(f"batch_size must be a whole number from 2 on (batch norm needs two images), got {batch_size!r}")
    if not (lr > 0 and math.isfinite(lr)):
        raise ValueError(f"lr must be a number above 0, got {lr!r}")
    if not (weight_decay >= 0 and math.isfinite(weight_decay)):
        raise ValueError(f"weight_decay must be a number from 0 on, got {weight_decay!r}")
    if not 0 < validation < 1:
        raise ValueError(f"validation must be the share that is held out, above 0 and below 1, got {validation!r}")
    if len(images.train) < 4:
        raise ValueError(f"there must be at least 4 training images, got {len(images.train)}")
    device = torch.device(device) if device else best_device()
    counts = [len(images.train), len(images.validation or ()), len(images.test), *images.train.images.shape[1:]]
    return {
        "data": images.name,
        "counts": counts,
        "epochs": epochs,
        "lr": lr,
        "batch_size": batch_size,
        "weight_decay": weight_decay,
        "validation": validation,
        "seed": seed,
        "device": str(device),
    }


def _check_classifier(model: nn.Module, images: Images, *, frozen: bool = False) -> str:
    """That the model gives a logit for each class, and has something to train (unless it may be frozen); returns its fingerprint."""
    if not any(p.requires_grad or frozen for p in model.parameters()):
        raise ValueError("the model must have parameters that require a gradient, but all are frozen (or there are none): call requires_grad_(True)")
    parameter = next(model.parameters())
    if parameter.dtype != torch.float32:
        raise ValueError(f"the model must be float32 (mixed precision is chosen by mode=), got {parameter.dtype}")
    shape = (1, *images.train.images.shape[1:])
    try:
        with evaluating(model), torch.no_grad():
            logits = model(torch.zeros(shape, device=parameter.device))
    except RuntimeError as error:
        raise ValueError(f"the model must take images of shape {list(shape)}, but: {error}") from error
    classes = len(images.classes)
    if not isinstance(logits, Tensor) or logits.ndim != 2 or logits.shape[1] < classes:
        found = list(logits.shape) if isinstance(logits, Tensor) else type(logits).__name__
        raise ValueError(f"the model must give logits of shape [n, {classes}], one for each class of {images.name}, got {found}")
    digest = hashlib.sha256()
    for tensor in model.state_dict().values():
        digest.update(tensor.detach().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()[:16]


def _open(
    settings: dict[str, Any], mode: str, checkpoint: str | Path | None, resume: str | Path | None, model: nn.Module, images: Images
) -> tuple[Path | None, dict[str, Any] | None]:
    """Where checkpoints go, and the one to go on from; completes the settings by the mode."""
    saved = read_checkpoint(Path(resume)) if resume else None
    if mode not in ("auto", *MODES):
        raise ValueError(f"mode must be auto or one of {', '.join(MODES)}, got {mode!r}")
    if saved and mode == "auto":
        settings["mode"] = saved["settings"]["mode"]  # measured when the run began
    elif mode == "auto":
        example = torch.zeros(min(64, settings["batch_size"]), *images.train.images.shape[1:], device=settings["device"])
        settings["mode"] = choose_mode(copy.deepcopy(model).to(settings["device"]), example)
    else:
        settings["mode"] = mode
    if saved:
        differ = [k for k in {**settings, **saved["settings"]} if settings.get(k) != saved["settings"].get(k)]
        if differ:
            found = ", ".join(f"{k} was {saved['settings'].get(k)!r} and is now {settings.get(k)!r}" for k in differ)
            raise ValueError(f"a run must be resumed with what it was begun with, but {found}")
    folder = Path(resume or checkpoint) if resume or checkpoint else None  # type: ignore[arg-type]
    if folder:
        folder.mkdir(parents=True, exist_ok=True)
    return folder, saved


def _is_live() -> bool:
    """Whether somebody is watching: in a build or a log, a line an epoch reads better than a bar."""
    return sys.stdout.isatty() or "JPY_SESSION_NAME" in os.environ or "google.colab" in sys.modules
