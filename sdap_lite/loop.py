"""The loop: each epoch, each step, and what a run keeps to go on from. Chapter 5.

Plain training; the methods under 'What pruning does differently' are what :mod:`sdap_lite.pruning` replaces.
"""

from __future__ import annotations

import itertools
import math
import os
import sys
import time
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from tqdm import tqdm

from .checkpoint import RunFolder
from .images import Images, batches
from .measure import MODES, accuracy, arrange
from .replay import Recording
from .team import team

__all__ = ["Training", "learning_rate"]


def learning_rate(progress: float, peak: float, *, warmup: float = 0.1) -> float:
    """Linear up to ``peak``, then down along a cosine to zero; ``progress`` goes from 0 to 1.

    >>> [round(learning_rate(p, 0.1), 4) for p in (0, 0.1, 0.55, 1)]
    [0.01, 0.1, 0.05, 0.0]
    """
    if progress < warmup:
        return peak * (0.1 + 0.9 * progress / warmup)
    return peak * 0.5 * (1 + math.cos(math.pi * (progress - warmup) / (1 - warmup)))


class Training:
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
        record = {"epoch": epoch + 1, "loss": totals[0] / seen, "train": totals[1] / seen, **self.worth()}
        self.history.append({**record, "lr": self.optimizer.param_groups[0]["lr"], "seconds": time.perf_counter() - start})

    def worth(self) -> dict[str, float]:
        """What an epoch's record says of the model as it is now."""
        return {"validation": accuracy(self.model, self.images, split=self.validation, mode=self.settings["mode"]), **self.extra()}

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


# ---------------------------------------------------------------------------------------------


def _is_live() -> bool:
    """Whether somebody is watching: in a build or a log, a line an epoch reads better than a bar."""
    return sys.stdout.isatty() or "JPY_SESSION_NAME" in os.environ or "google.colab" in sys.modules
