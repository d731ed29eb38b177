"""The one run: pruning and fine-tuning in a single training (Diao et al. 2025). Chapter 5.

``train`` is plain training. ``prune`` is the same loop with gates, a teacher and surgery in it:
the rate rises along a ramp, the masks freeze, surgery happens there and then with the optimizer's
state cut along, and the same run goes on with the small model.
"""

from __future__ import annotations

import copy
import itertools
import math
import os
import sys
import time
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from tqdm import tqdm

from .baselines import norm_scales
from .budget import Report, check_rate, check_round_to, cost, largest_rate, least_width, report, schedule, threshold
from .channels import trace
from .checkpoint import RunFolder, fingerprint, read_checkpoint
from .checks import check_device, check_gradients, check_images, check_model, check_number, check_plain, check_steady, plain, undisturbed
from .data import Images, batches
from .distill import ALPHA, distillation_loss
from .folding import fold_norms
from .gates import RULES, Gates, RootMeanSquare
from .graph import ChannelGraph
from .latency_table import LatencyTable
from .measure import MODES, accuracy, arrange, check_mode, choose_mode
from .replay import Recording
from .surgery import remove_channels, slice_optimizer
from .team import team
from .timing import time_both, time_layers
from .variants import COMPARISONS, Variant, attention_loss, floored, noisy, recalibrate, soft_cost, stages, watched

__all__ = ["Result", "learning_rate", "prune", "train"]

CLOSE_EVERY = 5  # steps between two looks at which gates are open
HOLD = 1.0  # chosen on validation images of two networks: chapter 11
CRISPEST = 10.0  # what a soft gate's score is multiplied by at the ramp's end, from 1 on


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
    replay: bool = True,
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
        seed: same seed, machine, thread count and ``mode``: the same weights, bit for bit on the CPU.
        device: default: CUDA, else MPS, else the CPU.
        mode: ``"auto"`` measures which of :data:`sdap_lite.measure.MODES` is fastest here; the answer is in ``settings``.
        replay: whether one GPU by itself replays a recorded step (:mod:`sdap_lite.replay`). False for a model whose forward pass
            does more than compute on tensors: counts its calls, draws Python's random numbers, asks for an ``.item()``.
        checkpoint: a folder that gets a checkpoint each epoch, and is this run's alone as long as it lasts.
        resume: a folder with such a checkpoint; the run goes on there as if never stopped.
        progress: whether to show a bar (or, in a log, a line an epoch).

    Raises:
        ValueError: an argument, the model or the images won't do; raised before any training.
        FloatingPointError: the loss or a weight is not finite; the message names the last good checkpoint.
        OSError: a checkpoint cannot be written; the one before it is still there.
        KeyboardInterrupt: Ctrl-C; the message says what is saved and how to go on.
    """
    label_smoothing = plain(label_smoothing)
    check_number("label_smoothing", label_smoothing, "lie between 0 and 1", lambda v: 0 <= v <= 1)
    settings = _settings(images, epochs, lr, batch_size, weight_decay, validation, seed, device, replay)
    check_model(model, images)
    settings.update(kind="train", label_smoothing=label_smoothing, model=fingerprint(model.state_dict().values()))
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
    alpha: float = ALPHA,
    ramp: float = 0.5,
    cuts: int = 1,
    rule: str = "rms",
    scores: dict[str, Tensor] | None = None,
    cost_power: float = 0.5,
    hold: float = HOLD,
    round_to: int = 1,
    teacher: nn.Module | None = None,
    variant: Variant | None = None,
    batch_size: int = 128,
    weight_decay: float = 5e-4,
    validation: float = 0.1,
    seed: int = 0,
    device: str | torch.device | None = None,
    mode: str = "auto",
    replay: bool = True,
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
        unit: ``"params"``, ``"macs"``, ``"channels"`` or ``"latency"``: how long one image takes on
            this device, looked up in a table of times that is measured when the run begins.
        lr: the highest learning rate.
        temperature: of the distillation (:func:`sdap_lite.distillation_loss`).
        alpha: the teacher's share in the loss; 0 trains without a teacher.
        ramp: the share of the run after which the rate is reached and the last surgery happens.
        cuts: surgeries along the ramp, evenly spaced: each cuts out what is closed at that moment, so that the run goes on
            with a smaller network and is over sooner. With 1, a closed channel may open again until the ramp's end.
        rule: how scores learn: ``"rms"``, ``"straight-through"``, ``"adam"`` or ``"frozen"``.
        scores: those that the gates start from, for each prunable group a tensor, such as :mod:`sdap_lite.baselines` gives;
            default: the batch-norm scales where they stay frozen, else zero.
        cost_power: see :func:`sdap_lite.threshold`.
        hold: how much more, as a share, an open channel's score counts than a closed one's, from 0 on: a closed channel that is
            but a little better then does not take an open one's place (:meth:`sdap_lite.Gates.held`).
        round_to: each group of channels keeps a multiple of this many (:func:`sdap_lite.threshold`).
        teacher: default: the pretrained network itself.
        variant: what else is done otherwise, for the questions of chapter 11.
        batch_size: images a step.
        weight_decay: on weights, not on norms and biases.
        validation: share of the training images that is held out, the same ones for every seed
            (if ``images.validation`` does not hold them already).
        seed: same seed, machine, thread count and ``mode``: the same weights, bit for bit on the CPU.
        device: default: CUDA, else MPS, else the CPU.
        mode: ``"auto"`` measures which of :data:`sdap_lite.measure.MODES` is fastest here; the answer is in ``settings``.
        replay: whether one GPU by itself replays a recorded step (:mod:`sdap_lite.replay`). False for a model whose forward pass
            does more than compute on tensors: counts its calls, draws Python's random numbers, asks for an ``.item()``.
        checkpoint: a folder that gets a checkpoint each epoch, and is this run's alone as long as it lasts.
        resume: a folder with such a checkpoint; the run goes on there as if never stopped.
        progress: whether to show a bar (or, in a log, a line an epoch).

    Raises:
        ValueError: an argument, the model or the images won't do; raised before any training.
        TraceError: the model cannot be traced.
        SurgeryError: the model cannot be cut; a trial tells before any training.
        FloatingPointError: the loss or a weight is not finite; the message names the last good checkpoint.
        OSError: a checkpoint cannot be written; the one before it is still there.
        KeyboardInterrupt: Ctrl-C; the message says what is saved and how to go on.
    """
    asked: dict[str, Any] = {"rate": rate, "unit": unit, "temperature": temperature, "alpha": alpha, "ramp": ramp, "cuts": cuts}
    asked |= {"rule": rule, "cost_power": cost_power, "hold": hold, "round_to": round_to}
    asked = {name: plain(value) for name, value in asked.items()}
    rate, round_to = asked["rate"], asked["round_to"]
    _check_asked(**asked)
    _check_variant(variant or Variant(), **asked)
    settings = _settings(images, epochs, lr, batch_size, weight_decay, validation, seed, device, replay)
    check_plain(model)
    classes = check_model(model, images)
    if teacher is not None and (given := check_model(teacher, images, "teacher", frozen=True)) != classes:
        raise ValueError(f"the teacher must give as many logits as the model, {classes}, got {given}")
    graph = _traced(model, images, rate, unit, round_to, settings, resume)
    check_steady(model, images)
    if rule != "frozen":
        check_gradients(model, graph, images)
    prints = {name: "" if net is None else fingerprint(net.state_dict().values()) for name, net in (("model", model), ("teacher", teacher))}
    settings |= {"kind": "prune", **asked, **prints, "scores": _check_scores(scores, graph), "variant": (variant and variant.differs) or None}
    folder, saved = _open(settings, mode, checkpoint, resume, model, images)
    if scores is None and rule == "frozen":
        scores = norm_scales(model, graph)
    if saved is None:
        _try_surgery(model, graph, scores, asked)
    run = _Pruning(model, model if teacher is None else teacher, graph, scores, images, settings)
    run.run(folder, saved, progress)
    summary = report(graph, run.kept, asked=rate, unit=unit)
    dense = copy.deepcopy(model).to(run.device)
    if unit == "latency":
        summary = replace(summary, measured=time_both(dense, run.model, torch.zeros(graph.shape, device=run.device)))
    return Result(run.model.eval(), run.history, accuracy(run.model, images), settings, accuracy(dense, images), summary, graph, run.kept)


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
        self.team = team(self.device)
        if settings["batch_size"] < 2 * self.team.size:
            raise ValueError(f"batch_size must hold two images for each of {self.team.size} processes, got {settings['batch_size']}")
        self.dtype, self.layout = MODES[settings["mode"]]
        held_out, kept = images.hold_out(settings["validation"])
        self.validation, self.training = held_out.to(self.device), kept.to(self.device)
        self.model = arrange(model.to(self.device), self.layout)
        self.optimizer = self.make_optimizer()
        self.history: list[dict[str, float]] = []
        self.recording: Recording | None = None  # of a step of the model as it is
        self.weight = 1.0  # of this process's share of the batch in the mean over all
        whole, rest = divmod(len(self.training), settings["batch_size"])
        self.steps_an_epoch = max(1, whole + (rest >= 2 * self.team.size))  # a single image left over is no batch

    def make_optimizer(self) -> torch.optim.Optimizer:
        trained = [p for p in self.model.parameters() if p.requires_grad]
        weights, others = [p for p in trained if p.ndim > 1], [p for p in trained if p.ndim <= 1]
        groups = [{"params": weights, "weight_decay": self.settings["weight_decay"]}, {"params": others, "weight_decay": 0.0}]
        return torch.optim.SGD(groups, lr=self.settings["lr"], momentum=0.9, nesterov=True)

    # What pruning does differently

    def loss(self, logits: Tensor, x: Tensor, y: Tensor) -> Tensor:
        return F.cross_entropy(logits, y, label_smoothing=self.settings["label_smoothing"])

    def place(self, progress: float) -> float:
        """Where on the learning rate's curve a moment of the run lies; both from 0 to 1."""
        return progress

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
            return model(x.clone()).float()  # a copy: a network may work in place on what it is given, and the teacher gets the same batch

    def step(self, x: Tensor, y: Tensor, step: int) -> tuple[float, float]:
        """One batch; returns its loss and its share of right answers."""
        self.before_step(step)
        lr = learning_rate(self.place(step / self.total_steps), self.settings["lr"])
        for group in self.optimizer.param_groups:
            group["lr"] = lr
        self.weight, x, y = self.team.weight(len(x)), self.team.share(x).to(memory_format=self.layout), self.team.share(y)
        whole = len(x) == self.settings["batch_size"]  # an epoch's last batch may be smaller, and has no recording
        values = self.team.mean(self.replay(x, y) if self.records and whole else self.compute(x, y)).tolist()
        if not math.isfinite(values[0]):
            where = f"epoch {len(self.history) + 1}, step {step}"
            raise FloatingPointError(f"the loss must be finite, got {values[0]} in {where} at learning rate {lr:.4g}: try a smaller one")
        self.after_backward()
        self.optimizer.step()
        return values[0], values[1]

    def compute(self, x: Tensor, y: Tensor) -> Tensor:
        """Leaves a batch's gradients; returns its loss and its share of right answers, a tensor of two."""
        logits = self.forward(self.team.wrap(self.model, x), x)
        loss = self.weight * self.loss(logits, x, y)
        right = self.weight * (logits.detach().argmax(1) == y).float().mean()
        for leaf in self.leaves():
            leaf.grad = None
        loss.backward()
        return torch.stack([loss.detach(), right])

    def leaves(self) -> list[Tensor]:
        """What gets gradients."""
        return [p for p in self.model.parameters() if p.requires_grad]

    @property
    def records(self) -> bool:
        """Whether steps are recorded and replayed: on one GPU, where that is wanted."""
        return self.device.type == "cuda" and self.team.size == 1 and bool(self.settings["replay"])

    def replay(self, x: Tensor, y: Tensor) -> Tensor:
        """What :meth:`compute` does, from a recording, which the first batch makes that the model, as it is now, is given."""
        if self.recording is None:
            self.recording = Recording(self.compute, (x, y), self.leaves(), self.model.buffers())
        return self.recording(x, y)

    def epoch(self, bar: tqdm) -> None:
        epoch, start = len(self.history), time.perf_counter()
        seed = 1_000_003 * self.settings["seed"] + epoch
        torch.manual_seed(seed + 500_009 * self.team.rank)  # dropout, of each process's own images
        totals, seen = [0.0, 0.0], 0
        shuffled = batches(self.training, self.settings["batch_size"], self.images, shuffle=torch.Generator().manual_seed(seed))
        for i, (x, y) in enumerate(itertools.islice(shuffled, self.steps_an_epoch)):
            self.model.train()
            values = self.step(x, y, epoch * self.steps_an_epoch + i)
            totals, seen = [t + v * len(x) for t, v in zip(totals, values, strict=True)], seen + len(x)
            shown = {"accuracy": totals[1] / seen, **self.extra()}
            bar.set_postfix(loss=f"{totals[0] / seen:.3f}", **{k: f"{v:.1%}" for k, v in shown.items()}, refresh=False)
            bar.update()
        self.team.settle(self.model)
        right = accuracy(self.model, self.images, split=self.validation, mode=self.settings["mode"])
        record = {"epoch": epoch + 1, "loss": totals[0] / seen, "train": totals[1] / seen, "validation": right, **self.extra()}
        self.history.append({**record, "lr": self.optimizer.param_groups[0]["lr"], "seconds": time.perf_counter() - start})

    def run(self, folder: Path | None, saved: dict[str, Any] | None, progress: bool) -> None:
        if saved:
            self.load_state(saved)
        live, done, progress = _is_live(), len(self.history) * self.steps_an_epoch, progress and self.team.rank == 0
        bar = tqdm(total=self.total_steps, initial=done, disable=not (progress and live), file=sys.stdout, unit="batch")
        with (
            RunFolder(folder if self.team.rank == 0 else None, len(self.history)) as place,
            torch.random.fork_rng([self.device] if self.device.type == "cuda" else []),
            bar,
        ):
            while len(self.history) < self.settings["epochs"]:
                self.epoch(bar)
                self.check_weights()
                place.write({"settings": self.settings, **self.state()})
                self.team.wait()
                if progress and not live:
                    print(self.line(), flush=True)
            self.finish()

    def check_weights(self) -> None:
        """The loss of the next step would tell, but then they would be saved already."""
        if not all(bool(torch.isfinite(p).all()) for p in self.model.parameters()):
            where = f"epoch {len(self.history)} at learning rate {self.history[-1]['lr']:.4g}"
            raise FloatingPointError(f"the weights must be finite, got NaN or infinity after {where}: try a smaller one")

    def line(self) -> str:
        last, epochs = self.history[-1], self.settings["epochs"]
        left = sum(r["seconds"] for r in self.history) / len(self.history) * (epochs - len(self.history))
        extra = "".join(f" | {k} {v:.1%}" for k, v in self.extra().items())
        scores = f"loss {last['loss']:.3f} | train {last['train']:.1%} | validation {last['validation']:.1%}"
        return f"epoch {int(last['epoch']):3d}/{epochs} | {scores}{extra} | {last['seconds']:.0f} s | {left:.0f} s left"


class _Pruning(_Training):
    """Gates and a teacher until the ramp's end, with surgery on the way; then the small model with the teacher.

    ``graph`` and ``gates`` are of the model as it is now; ``stays`` says which channels of ``whole`` that has.
    """

    def __init__(
        self, model: nn.Module, teacher: nn.Module, graph: ChannelGraph, scores: dict[str, Tensor] | None, images: Images, settings: dict[str, Any]
    ) -> None:
        super().__init__(copy.deepcopy(model), images, settings)
        self.variant = Variant(**(settings["variant"] or {}))
        example = torch.zeros(2, *images.train.images.shape[1:])
        if settings["alpha"] or self.variant.maps:
            self.teacher = arrange(fold_norms(teacher, example).to(self.device), self.layout)
        self.stages = stages(copy.deepcopy(model).eval(), graph, example) if self.variant.maps else []
        if missing := set(self.stages) - {name for name, _ in teacher.named_modules()}:
            raise ValueError(f"the teacher must have the convolutions whose feature maps are compared, but has no {', '.join(sorted(missing))}")
        self.graph = self.whole = graph
        self.stays = torch.ones(len(graph), dtype=torch.bool)
        rule = RULES[settings["rule"]]
        self.gates: Gates | None = Gates(graph, rule(self.variant.decay) if rule is RootMeanSquare else rule())
        if scores is not None:
            self.gates.scores = scores
        elif self.variant.start is not None:
            self.gates.scores = {name: torch.full((len(group),), self.variant.start) for name, group in graph.prunable.items()}
        self.gates.attach(self.model)
        self.kept: dict[str, Tensor] = graph.split(torch.ones(len(graph), dtype=torch.bool))
        self.progress = 0.0  # along the ramp, from 0 to 1
        self.mask = self.gates.kept  # the one that a recording reads
        self.maps: dict[str, Tensor] = {}  # what the network that ran last made of the batch
        self.cuts = 0  # surgeries on the way so far
        self.removed = 0.0

    def loss(self, logits: Tensor, x: Tensor, y: Tensor) -> Tensor:
        if self.variant.labels and self.gates is not None:
            (self.of_labels,) = torch.autograd.grad(self.weight * F.cross_entropy(logits, y), self.gates.flat, retain_graph=True)
        if self.settings["alpha"] == 0 and not self.variant.maps:
            return F.cross_entropy(logits, y)
        student = self.maps  # before the teacher's take their place
        with torch.no_grad():
            teacher = self.forward(self.teacher, x)
        loss = distillation_loss(logits, teacher, y, temperature=self.settings["temperature"], alpha=self.settings["alpha"])
        return loss + self.variant.maps * attention_loss(self.seen(student), self.maps) if self.variant.maps else loss

    @property
    def records(self) -> bool:
        """Not where a step depends on more than weights and masks, or leaves more than gradients."""
        return super().records and not (self.variant.labels or self.variant.maps or self.variant.start is not None)

    def leaves(self) -> list[Tensor]:
        return super().leaves() if self.gates is None else [*super().leaves(), self.gates.flat]

    def compute(self, x: Tensor, y: Tensor) -> Tensor:
        if self.gates is not None and self.records:
            self.gates.renew()
        return super().compute(x, y)

    def replay(self, x: Tensor, y: Tensor) -> Tensor:
        if self.gates is not None and self.recording is None:
            self.mask = self.gates.kept
        elif self.gates is not None and self.gates.kept is not self.mask:  # gates have moved: into the mask that is recorded
            self.gates.kept = self.mask.copy_(self.gates.kept)
        return super().replay(x, y)

    def forward(self, model: nn.Module, x: Tensor) -> Tensor:
        with watched(model, self.stages) as self.maps:
            return super().forward(model, x)

    def seen(self, maps: dict[str, Tensor]) -> dict[str, Tensor]:
        """Feature maps as the convolutions see them, to which closed gates are zeros."""
        if self.gates is None:
            return maps
        kept = self.gates.kept.cpu()
        masks = {name: kept[self.graph.layers[name].inputs].to(x) for name, x in maps.items()}
        return {name: x * masks[name][:, None, None] for name, x in maps.items()}

    def before_step(self, step: int) -> None:
        progress, ramp = step / self.total_steps, self.settings["ramp"]
        self.progress = min(1.0, progress / ramp) if ramp else 1.0
        if self.gates is None:
            return
        if progress >= ramp:
            self.operate(self.choose_last())
        elif step % CLOSE_EVERY == 0:
            rate = schedule(progress, self.settings["rate"], ramp, power=self.variant.shape)
            drawn = torch.Generator().manual_seed(1_000_003 * self.settings["seed"] + step) if self.variant.noise else None
            due = math.floor(progress / ramp * self.settings["cuts"])
            if due > self.cuts:
                self.cuts = due
                kept = self.cut(self.choose(rate, drawn, round_to=self.settings["round_to"]))
            else:
                kept = self.choose(rate, drawn, fill=False)
            if self.variant.soft:  # they close by themselves
                kept = self.all_here()
            self.kept = self.of_whole(kept)
            self.gates.close(kept)
            self.removed = self.share_removed()
        self.dim()

    def dim(self) -> None:
        """Sets what gates multiply by, where that follows from their scores at this moment."""
        if self.gates is not None and self.variant.start is not None:
            self.gates.values = self.values(self.gates.flat.detach())

    def values(self, scores: Tensor) -> Tensor:
        """What gates multiply by that are not just open or closed."""
        assert self.gates is not None
        crispness = 1 + (CRISPEST - 1) * self.progress
        values = scores * self.gates.kept if self.variant.scaling else torch.sigmoid(crispness * scores)
        return torch.where(self.graph.removable.to(scores.device), values, self.gates.kept.to(scores))

    def softened(self, gradient: Tensor) -> Tensor:
        """The scores' gradient: the loss's through the sigmoid, and the penalty's for what is over the budget."""
        assert self.gates is not None
        unit, rate = self.settings["unit"], schedule(self.progress, self.settings["rate"], 1.0, power=self.variant.shape)
        scores = self.gates.flat.detach().requires_grad_()
        values = self.values(scores)
        over = soft_cost(self.graph, values, unit) / cost(self.whole, unit=unit) - (1 - rate)
        return torch.autograd.grad((gradient * values).sum() + self.variant.soft * over.square(), scores)[0]

    def after_backward(self) -> None:
        if self.gates is not None:
            gradient = self.of_labels if self.variant.labels else self.gates.flat.grad
            assert gradient is not None
            gradient = self.team.mean(gradient)
            self.gates.flat.grad = self.softened(gradient) if self.variant.soft else gradient
            self.gates.learn()

    def finish(self) -> None:
        if self.gates is not None:  # a ramp so long that the run ended in it
            self.operate(self.choose_last())

    def choose(self, rate: float, drawn: torch.Generator | None = None, **arguments: Any) -> dict[str, Tensor]:
        """The channels to keep of those that are here, by the scores as they are, or drawn by them."""
        assert self.gates is not None
        # The hold comes first: among ranks, open channels of one group would take the places of another's
        scores = COMPARISONS[self.variant.compare](self.gates.held(self.settings["hold"]))
        if self.variant.floor:
            scores = floored(scores, self.variant.floor)
        if drawn is not None:
            scores = noisy(scores, self.variant.noise, drawn)
        at = self.graph.split(self.gates.kept) if self.variant.current_costs else None
        unit = self.settings["unit"]
        return threshold(self.graph, scores, self.still_to_go(rate, self.graph), unit=unit, cost_power=self.settings["cost_power"], at=at, **arguments)

    def choose_last(self) -> dict[str, Tensor]:
        return self.choose(self.settings["rate"], round_to=self.settings["round_to"])

    def still_to_go(self, rate: float, graph: ChannelGraph) -> float:
        """What share of a smaller network must go, so that the rate is that of the whole one."""
        unit = self.settings["unit"]
        target = math.floor((1 - rate) * cost(self.whole, unit=unit) + 1e-9)
        return max(0.0, 1 - target / cost(graph, unit=unit))

    def of_whole(self, kept: dict[str, Tensor]) -> dict[str, Tensor]:
        """The same choice, said of the whole network's channels."""
        flat = self.stays.clone()
        flat[self.stays] = self.graph.join(kept, True).cpu()
        return self.whole.split(flat)

    def place(self, progress: float) -> float:
        ramp = self.settings["ramp"]
        return (progress - ramp) / (1 - ramp) if self.variant.restart and ramp <= progress < 1 else progress

    def cut(self, kept: dict[str, Tensor]) -> dict[str, Tensor]:
        """Surgery on the way: what is not kept goes, with its gates; returns what is kept of the rest, which is all."""
        assert self.gates is not None
        small = self.graph.narrowed(kept)
        if self.still_to_go(self.settings["rate"], small) > largest_rate(small, self.settings["unit"], self.settings["round_to"]):
            return kept  # the last choice will need a channel that is closed at this moment
        self.narrow(kept)
        return self.all_here()

    def all_here(self) -> dict[str, Tensor]:
        """A choice that keeps every channel of the model as it is now."""
        return self.graph.split(torch.ones(len(self.graph), dtype=torch.bool))

    def narrow(self, kept: dict[str, Tensor]) -> None:
        """The run goes on with the smaller model, its gates and its share of the optimizer."""
        assert self.gates is not None
        self.gates.detach()
        self.gates = self.gates.narrowed(kept)
        self.remove(kept)
        self.gates.attach(self.model)

    def remove(self, kept: dict[str, Tensor]) -> None:
        """The smaller model takes the model's place, and its optimizer with it; a recording of the larger one has had its day."""
        self.recording = None
        self.team.settle(self.model)
        small = arrange(remove_channels(self.model, self.graph, kept), self.layout)
        slice_optimizer(self.optimizer, self.model, small, self.graph, kept)
        self.stays = self.whole.join(self.of_whole(kept), True)
        self.model, self.graph = small, self.graph.narrowed(kept)

    def operate(self, kept: dict[str, Tensor]) -> None:
        """The masks freeze; surgery for the last time."""
        assert self.gates is not None
        self.dim()
        if self.gates.values is not None:
            self.gates.fold()
        self.gates.detach()
        self.gates, self.kept = None, self.of_whole(kept)
        self.remove(kept)
        self.removed = self.share_removed()
        if self.variant.recalibrate:
            shuffled = batches(self.training, self.settings["batch_size"], self.images, shuffle=torch.Generator().manual_seed(self.settings["seed"]))
            inputs = (x.to(memory_format=self.layout) for x, _ in itertools.islice(shuffled, self.variant.recalibrate))
            with torch.autocast(self.device.type, torch.bfloat16, enabled=self.dtype != torch.float32):
                recalibrate(self.model, inputs)

    def share_removed(self) -> float:
        """Of the parameters, at this moment."""
        return 1 - cost(self.whole, self.kept) / cost(self.whole)

    def extra(self) -> dict[str, float]:
        return {"removed": self.removed}

    def state(self) -> dict[str, Any]:
        gates = None if self.gates is None else self.gates.state_dict()
        return {**super().state(), "gates": gates, "kept": self.kept, "stays": self.stays, "cuts": self.cuts, "removed": self.removed}

    def load_state(self, state: dict[str, Any]) -> None:
        if state["gates"] is None:
            self.operate(state["kept"])
        elif self.gates is not None:
            if not bool(state["stays"].all()):
                self.narrow(self.whole.split(state["stays"]))
            self.gates.load_state_dict(state["gates"])
        self.kept, self.cuts, self.removed = state["kept"], state["cuts"], state["removed"]
        super().load_state(state)


# ---------------------------------------------------------------------------------------------


def _settings(
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
        "epochs": epochs,
        "lr": lr,
        "batch_size": batch_size,
        "weight_decay": weight_decay,
        "validation": validation,
        "seed": seed,
        "device": str(kind),
        **({"replay": replay} if kind.type == "cuda" else {}),  # elsewhere it says nothing
    }


def _check_asked(
    *, rate: float, unit: str, temperature: float, alpha: float, ramp: float, cuts: int, rule: str, cost_power: float, hold: float, round_to: int
) -> None:
    """That what is asked of a pruning makes sense, whatever the network; the unit is checked where it is counted."""
    check_rate(rate)
    for name, value in (("alpha", alpha), ("ramp", ramp), ("cost_power", cost_power)):
        check_number(name, value, "lie between 0 and 1", lambda v: 0 <= v <= 1)
    check_number("temperature", temperature, "be above 0", lambda v: v > 0)
    check_number("hold", hold, "be a number from 0 on", lambda v: v >= 0)
    if rule not in RULES:
        raise ValueError(f"rule must be one of {', '.join(RULES)}, got {rule!r}")
    check_round_to(round_to)
    if isinstance(cuts, bool) or not isinstance(cuts, int) or cuts < 1:
        raise ValueError(f"cuts must be a whole number from 1 on, got {cuts!r}")


def _check_variant(variant: Variant, **asked: Any) -> None:
    """That what is done otherwise goes with what is asked."""
    if variant.start is not None and asked["rule"] not in ("straight-through", "adam"):
        raise ValueError(f"rule must be straight-through or adam where a gate's value is trained (scaling, soft), got {asked['rule']!r}")
    if variant.compare == "adaptive" and asked["rule"] in ("straight-through", "adam"):
        raise ValueError(f"rule must be one whose scores are from 0 on where they are compared as shares (adaptive), got {asked['rule']!r}")
    if variant.soft and asked["unit"] not in ("params", "macs"):
        raise ValueError(f"unit must be params or macs for soft gates, got {asked['unit']!r}")
    if variant.soft and not asked["ramp"]:
        raise ValueError("ramp must be above 0 for soft gates, which learn along it, got 0")


def _check_scores(scores: dict[str, Tensor] | None, graph: ChannelGraph) -> str | None:
    """That the scores are this network's; returns their fingerprint."""
    if scores is None:
        return None
    try:
        flat = graph.join(scores, 0.0)
    except ValueError as error:
        raise ValueError(f"scores must fit the network: {error}") from error
    if not (flat.is_floating_point() and bool(torch.isfinite(flat).all())):
        raise ValueError(f"scores must be finite floating-point numbers, got {flat.dtype}{' with NaN or infinity' if flat.is_floating_point() else ''}")
    return fingerprint([flat])


def _traced(model: nn.Module, images: Images, rate: float, unit: str, round_to: int, settings: dict[str, Any], resume: str | Path | None) -> ChannelGraph:
    """The graph, in which the rate can be reached; the settings get the times, where latency is what counts."""
    graph = trace(model, torch.zeros(1, *images.train.images.shape[1:]))
    if unit == "latency":
        graph = _timed(model, graph, settings["device"], resume)
        settings["times"] = graph.times and graph.times.state_dict()
    if rate > (most := largest_rate(graph, unit, round_to)):
        if not graph.prunable:
            raise ValueError(f"rate must be 0 for this network, of which no channel may go, got {rate}: print(sdap.trace(model, example)) says why")
        raise ValueError(f"rate must be at most {most:.4f} for this network, where every layer keeps {least_width(round_to)}, got {rate}")
    return graph


def _try_surgery(model: nn.Module, graph: ChannelGraph, scores: dict[str, Tensor] | None, asked: dict[str, Any]) -> None:
    """What the ramp's end will do, with the scores as they are: if the network cannot be cut, it is known before any training."""
    start = graph.split(torch.zeros(len(graph))) if scores is None else scores
    with undisturbed(model):
        remove_channels(model, graph, threshold(graph, start, **{key: asked[key] for key in ("rate", "unit", "cost_power", "round_to")}))


def _timed(model: nn.Module, graph: ChannelGraph, device: str, resume: str | Path | None) -> ChannelGraph:
    """The graph with its layers timed; a run that is resumed goes on with the times that it was begun with."""
    saved = read_checkpoint(Path(resume))["settings"].get("times") if resume else None
    if saved:
        return replace(graph, times=LatencyTable.from_state_dict(saved))
    return team(torch.device(device)).agree(time_layers(copy.deepcopy(model).to(device), graph))


def _open(
    settings: dict[str, Any], mode: str, checkpoint: str | Path | None, resume: str | Path | None, model: nn.Module, images: Images
) -> tuple[Path | None, dict[str, Any] | None]:
    """Where checkpoints go, and the one to go on from; completes the settings by the mode."""
    if resume and checkpoint and Path(resume).resolve() != Path(checkpoint).resolve():
        raise ValueError(f"checkpoint must be left out or name the folder that resume names, in which the run goes on, got {checkpoint} and {resume}")
    saved = read_checkpoint(Path(resume)) if resume else None
    if mode not in ("auto", *MODES):
        raise ValueError(f"mode must be auto or one of {', '.join(MODES)}, got {mode!r}")
    if saved and mode == "auto":
        settings["mode"] = saved["settings"]["mode"]  # measured when the run began
    elif mode == "auto":
        example = torch.zeros(min(64, settings["batch_size"]), *images.train.images.shape[1:], device=settings["device"])
        settings["mode"] = team(torch.device(settings["device"])).agree(choose_mode(model, example))
    else:
        settings["mode"] = mode
        if mode != "fp32":  # in which it was traced
            check_mode(model, torch.zeros(2, *images.train.images.shape[1:], device=settings["device"]), mode)
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


def _check_fits(model: nn.Module, saved: dict[str, Tensor]) -> None:
    """That a checkpoint's weights are those of a network like this one."""
    here, there = ({name: list(tensor.shape) for name, tensor in state.items()} for state in (model.state_dict(), saved))
    differ = [name for name in {**there, **here} if here.get(name) != there.get(name)]
    if differ:
        found = ", ".join(f"{name} was {there.get(name)} and is now {here.get(name)}" for name in differ[:3])
        raise ValueError(f"a run must be resumed with the network that it was begun with, but the shape of {found}")


def _is_live() -> bool:
    """Whether somebody is watching: in a build or a log, a line an epoch reads better than a bar."""
    return sys.stdout.isatty() or "JPY_SESSION_NAME" in os.environ or "google.colab" in sys.modules
