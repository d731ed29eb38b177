"""Pruning within the loop: gates and a teacher along a ramp, surgery, then the small network. Chapter 5.

The rate rises along the ramp; at its end the masks freeze, surgery happens there and then with the
optimizer's state cut along, and the same loop goes on with the small model.
"""

from __future__ import annotations

import itertools
import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .budget import cost, largest_rate, schedule, share_gone, threshold
from .checks import undisturbed
from .copies import copied, in_mode
from .distill import distillation_loss
from .folding import fold_norms
from .gates import Gates
from .graph import ChannelGraph
from .images import Images, batches
from .loop import Training
from .measure import arrange
from .rules import RULES, RootMeanSquare
from .surgery import remove_channels, slice_optimizer
from .variants import COMPARISONS, Variant, attention_loss, floored, noisy, recalibrate, soft_cost, stages, watched

__all__ = ["CLOSE_EVERY", "HOLD", "Pruning"]

CLOSE_EVERY = 5  # steps between two looks at which gates are open
HOLD = 1.0  # chosen on validation images of two networks: chapter 11
CRISPEST = 10.0  # what a soft gate's score is multiplied by at the ramp's end, from 1 on


class Pruning(Training):
    """Gates and a teacher until the ramp's end, with surgery on the way; then the small model with the teacher.

    ``graph`` and ``gates`` are of the model as it is now; ``stays`` says which channels of ``whole`` that has.
    """

    def __init__(
        self, model: nn.Module, teacher: nn.Module, graph: ChannelGraph, scores: dict[str, Tensor] | None, images: Images, settings: dict[str, Any]
    ) -> None:
        super().__init__(copied(model), images, settings)
        self.variant = Variant(**(settings["variant"] or {}))
        example = torch.zeros(2, *images.train.images.shape[1:])
        with undisturbed(teacher):
            if settings["alpha"] or self.variant.maps:
                self.teacher = arrange(fold_norms(teacher, example).to(self.device), self.layout)
            self.stages = stages(in_mode(copied(model), False), graph, example) if self.variant.maps else []
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
        over = soft_cost(self.graph, values, unit) / max(1, cost(self.whole, unit=unit)) - (1 - rate)
        return torch.autograd.grad((gradient * values).sum() + self.variant.soft * over.square(), scores)[0]

    def after_backward(self) -> None:
        if self.gates is not None:
            gradient = self.of_labels if self.variant.labels else self.gates.flat.grad
            gradient = torch.zeros_like(self.gates.flat) if gradient is None else self.team.mean(gradient)  # None: no layer has gates
            self.gates.flat.grad = self.softened(gradient) if self.variant.soft else gradient
            self.gates.learn()

    def finish(self) -> None:
        if self.gates is not None:  # a ramp so long that the run ended in it
            self.operate(self.choose_last())
            self.history[-1] |= self.worth()  # of the network that the run returns

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
        return max(0.0, share_gone(cost(graph, unit=unit), target))

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
        return share_gone(cost(self.whole), cost(self.whole, self.kept))

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
