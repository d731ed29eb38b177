"""The one run: pruning and fine-tuning in a single training (Diao et al. 2025). Chapter 5.

``train`` is plain training; ``prune`` is the same loop with gates, a teacher and surgery in it.
"""

from __future__ import annotations

import math
import os
import sys
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from tqdm import tqdm

from .data import Images, Split, batches
from .measure import MODES, best_device, choose_mode, predict

__all__ = ["Result", "train"]


@dataclass(frozen=True)
class Result:
    """What a run gives back.

    Attributes:
        model: the trained network, a plain module.
        history: one record an epoch: loss, accuracy on training and validation images (0 to 1),
            removed share, learning rate, seconds.
        report: accuracy on the test images, sizes, and all settings of the run.
    """

    model: nn.Module
    history: list[dict[str, float]]
    report: dict[str, Any] = field(default_factory=dict)


def learning_rate(progress: float, peak: float, *, warmup: float = 0.1) -> float:
    """Linear up to ``peak``, then down along a cosine to zero; ``progress`` goes from 0 to 1."""
    if progress < warmup:
        return peak * (0.1 + 0.9 * progress / warmup)
    return peak * 0.5 * (1 + math.cos(math.pi * (progress - warmup) / (1 - warmup)))


class _Training:
    """Plain training. Each epoch depends on the seed and the state before it, on nothing else."""

    def __init__(self, model: nn.Module, images: Images, settings: dict[str, Any]) -> None:
        self.settings = settings
        self.images = images
        self.device = torch.device(settings["device"])
        count = max(1, round(settings["validation"] * len(images.train)))
        # The same part whatever the seed: the shipped pretrained networks never saw it.
        held_out, kept = images.train.divide(count, seed=0)
        self.validation, self.training = held_out.to(self.device), kept.to(self.device)
        self.model = model.to(self.device).to(memory_format=MODES[settings["mode"]][1])
        self.optimizer = self.make_optimizer()
        self.history: list[dict[str, float]] = []
        self.steps_an_epoch = sum(1 for _ in range(0, len(self.training), settings["batch_size"]))

    def make_optimizer(self) -> torch.optim.Optimizer:
        decayed = [p for p in self.model.parameters() if p.ndim > 1]
        plain = [p for p in self.model.parameters() if p.ndim <= 1]  # norms and biases
        groups = [{"params": decayed, "weight_decay": self.settings["weight_decay"]}, {"params": plain, "weight_decay": 0.0}]
        return torch.optim.SGD(groups, lr=self.settings["lr"], momentum=0.9, nesterov=True)

    # What pruning does differently

    def loss(self, logits: Tensor, x: Tensor, y: Tensor) -> Tensor:
        return F.cross_entropy(logits, y, label_smoothing=self.settings["label_smoothing"])

    def before_step(self, progress: float) -> None:
        """Called with the share of the run that is done."""

    def after_backward(self) -> None:
        """Called when the gradients are there."""

    def record(self) -> dict[str, float]:
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

    def autocast(self) -> torch.autocast:
        return torch.autocast(self.device.type, torch.bfloat16, enabled=MODES[self.settings["mode"]][0] != torch.float32)

    def step(self, x: Tensor, y: Tensor, progress: float) -> tuple[float, float]:
        """One batch; returns its loss and its share of right answers."""
        self.before_step(progress)
        lr = learning_rate(progress, self.settings["lr"])
        for group in self.optimizer.param_groups:
            group["lr"] = lr
        x = x.to(memory_format=MODES[self.settings["mode"]][1])
        with self.autocast():
            logits = self.model(x)
        loss = self.loss(logits.float(), x, y)
        if not torch.isfinite(loss):
            raise FloatingPointError(f"the loss must be finite, got {loss.item()} in epoch {len(self.history) + 1} at learning rate {lr:.4g}: try a smaller one")
        self.optimizer.zero_grad()
        loss.backward()
        self.after_backward()
        self.optimizer.step()
        return float(loss.detach()), float((logits.argmax(1) == y).float().mean())

    def epoch(self, bar: tqdm) -> None:
        epoch, start = len(self.history), time.perf_counter()
        torch.manual_seed(1_000_003 * self.settings["seed"] + epoch)  # dropout
        shuffle = torch.Generator().manual_seed(1_000_003 * self.settings["seed"] + epoch)
        totals, seen = [0.0, 0.0], 0
        self.model.train()
        for i, (x, y) in enumerate(batches(self.training, self.settings["batch_size"], self.images, shuffle=shuffle)):
            values = self.step(x, y, (epoch + i / self.steps_an_epoch) / self.settings["epochs"])
            totals, seen = [t + v * len(x) for t, v in zip(totals, values, strict=True)], seen + len(x)
            bar.set_postfix(loss=f"{totals[0] / seen:.3f}", accuracy=f"{totals[1] / seen:.1%}", **{k: f"{v:.1%}" for k, v in self.record().items()}, refresh=False)
            bar.update()
        right = predict(self.model, self.validation, self.images, mode=self.settings["mode"]).argmax(1) == self.validation.labels.cpu()
        record = {"epoch": epoch + 1, "loss": totals[0] / seen, "train": totals[1] / seen, "validation": float(right.double().mean())}
        self.history.append({**record, **self.record(), "lr": self.optimizer.param_groups[0]["lr"], "seconds": time.perf_counter() - start})

    def run(self, checkpoint: Path | None, progress: bool) -> None:
        total, live = self.settings["epochs"] * self.steps_an_epoch, _is_live()
        done = len(self.history) * self.steps_an_epoch
        with torch.random.fork_rng(), tqdm(total=total, initial=done, disable=not (progress and live), file=sys.stdout, unit="batch") as bar:
            while len(self.history) < self.settings["epochs"]:
                self.epoch(bar)
                if checkpoint:
                    save_checkpoint(checkpoint, {"settings": self.settings, **self.state()})
                if progress and not live:
                    print(self.line(), flush=True)

    def line(self) -> str:
        last, epochs = self.history[-1], self.settings["epochs"]
        left = sum(r["seconds"] for r in self.history) / len(self.history) * (epochs - len(self.history))
        extra = "".join(f" | {k} {v:.1%}" for k, v in self.record().items())
        return f"epoch {int(last['epoch']):3d}/{epochs} | loss {last['loss']:.3f} | train {last['train']:.1%} | validation {last['validation']:.1%}{extra} | {last['seconds']:.0f} s | {left:.0f} s left"


def _is_live() -> bool:
    """Whether somebody is watching: in a build or a log, a line an epoch reads better than a bar."""
    return sys.stdout.isatty() or "JPY_SESSION_NAME" in os.environ or "google.colab" in sys.modules


def save_checkpoint(folder: Path, content: dict[str, Any]) -> None:
    """Written beside its place and then moved there: a reader finds the old one or the new one."""
    folder.mkdir(parents=True, exist_ok=True)
    handle, temporary = tempfile.mkstemp(dir=folder, suffix=".tmp")
    try:
        with os.fdopen(handle, "wb") as file:
            torch.save(content, file)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, folder / "checkpoint.pt")
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise


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
    progress: bool = True,
) -> Result:
    """Trains ``model`` in place (in development)."""
    device = torch.device(device) if device else best_device()
    example = torch.zeros(min(64, batch_size), *images.train.images.shape[1:], device=device)
    mode = choose_mode(model.to(device), example) if mode == "auto" else mode
    settings = dict(epochs=epochs, lr=lr, batch_size=batch_size, weight_decay=weight_decay, label_smoothing=label_smoothing, validation=validation, seed=seed, device=str(device), mode=mode)
    run = _Training(model, images, settings)
    run.run(Path(checkpoint) if checkpoint else None, progress)
    right = predict(model, images.test, images, mode=mode).argmax(1) == images.test.labels
    return Result(model, run.history, {"test": float(right.double().mean()), "settings": settings})
