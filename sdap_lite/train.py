"""The one run: pruning and fine-tuning in a single training (Diao et al. 2025). Chapter 5.

``train`` is plain training (:mod:`sdap_lite.loop`). ``prune`` is the same loop with gates, a teacher
and surgery in it (:mod:`sdap_lite.pruning`).
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from .baselines import norm_scales
from .budget import Report, largest_rate, least_width, report, threshold
from .channels import trace
from .checkpoint import fingerprint, read_checkpoint
from .checks import check_gradients, check_model, check_number, check_plain, check_steady, plain, undisturbed
from .copies import copied, in_mode
from .distill import ALPHA
from .graph import ChannelGraph
from .images import Images
from .latency_table import LatencyTable
from .loop import Training
from .measure import accuracy
from .pruning import HOLD, Pruning
from .settings import check_asked, check_scores, check_variant, common_settings, open_run
from .surgery import remove_channels
from .team import team
from .timing import time_both, time_layers
from .variants import Variant

__all__ = ["Result", "prune", "train"]


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
    settings = common_settings(images, epochs, lr, batch_size, weight_decay, validation, seed, device, replay)
    check_model(model, images)
    settings.update(kind="train", label_smoothing=label_smoothing, model=fingerprint(model.state_dict().values()))
    folder, saved = open_run(settings, mode, checkpoint, resume, model, images)
    run = Training(model, images, settings)
    run.run(folder, saved, progress)
    return Result(in_mode(run.model, False), run.history, accuracy(run.model, images), settings)


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
            default: the batch-norm scales where they stay frozen (a network without batch norms wants ``scores`` then), else zero.
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
    check_asked(**asked)
    variant = variant or Variant()
    check_variant(variant, **asked)
    settings = common_settings(images, epochs, lr, batch_size, weight_decay, validation, seed, device, replay)
    check_plain(model)
    classes = check_model(model, images)
    if teacher is not None and (given := check_model(teacher, images, "teacher", frozen=True)) != classes:
        raise ValueError(f"the teacher must give as many logits as the model, {classes}, got {given}")
    graph = _traced(model, images, rate, unit, round_to, settings, resume)
    check_steady(model, images)
    if rule != "frozen":
        check_gradients(model, graph, images)
    prints = {name: "" if net is None else fingerprint(net.state_dict().values()) for name, net in (("model", model), ("teacher", teacher))}
    settings |= {"kind": "prune", **asked, **prints, "scores": check_scores(scores, graph, variant), "variant": variant.differs or None}
    folder, saved = open_run(settings, mode, checkpoint, resume, model, images)
    if scores is None and rule == "frozen":
        scores = norm_scales(model, graph)
    if saved is None:
        _try_surgery(model, graph, scores, asked)
    run = Pruning(model, model if teacher is None else teacher, graph, scores, images, settings)
    run.run(folder, saved, progress)
    summary = report(graph, run.kept, asked=rate, unit=unit)
    dense = copied(model).to(run.device)
    if unit == "latency":
        summary = replace(summary, measured=time_both(dense, run.model, torch.zeros(graph.shape, device=run.device)))
    return Result(in_mode(run.model, False), run.history, accuracy(run.model, images), settings, accuracy(dense, images), summary, graph, run.kept)


# ---------------------------------------------------------------------------------------------


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
    return team(torch.device(device)).agree(time_layers(copied(model).to(device), graph))
