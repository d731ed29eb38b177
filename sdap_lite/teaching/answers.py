"""What a right answer to each exercise is, and what the typical wrong ones have got wrong.

One function an exercise: from an answer to None, or to a sentence. It works out the right answer
with the library on small data of its own, and each typical mistake by making it.
:func:`sdap_lite.exercises.check` calls them.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..budget import channel_costs, cost, schedule
from ..channels import trace
from ..distill import distillation_loss
from ..gates import Gates
from ..measure import count_macs, count_params
from ..models import InvertedResidual, resnet20, vgg
from ..rules import RootMeanSquare
from ..train import Result

__all__ = ["EXERCISES", "Exercise", "compare", "exercise"]

Check = Callable[[Any], str | None]


@dataclass(frozen=True)
class Exercise:
    """What tells right from wrong, what helps at the second failure, and points if it is marked."""

    check: Check
    hint: str
    points: int = 0


EXERCISES: dict[str, Exercise] = {}


def exercise(number: str, hint: str, *, points: int = 0) -> Callable[[Check], Check]:
    """Enters the check below it as that of the exercise ``number``."""

    def enter(function: Check) -> Check:
        EXERCISES[number] = Exercise(function, hint, points)
        return function

    return enter


def compare(got: Any, right: Any, mistakes: Mapping[str, Any] | None = None, *, tolerance: float = 1e-5) -> str | None:
    """None for the right numbers; else the mistake that leads to those that came, or how they differ.

    Args:
        got: a number, a tensor, or a list of numbers.
        right: the same.
        mistakes: for each sentence the numbers that one gets by the mistake it names.
        tolerance: relative, to the largest number.

    >>> compare(4, 2.0, {"this is the square": 4.0})
    'this is the square'
    >>> compare(-2, 2.0)
    'the sign is wrong: all else is right'
    """
    found, wanted = _numbers(got), _numbers(right)
    if found is None or wanted is None:
        return f"the answer must be a number or a tensor, got {_kind(got)}"
    if _close(found, wanted, tolerance):
        return None
    for sentence, wrong in (mistakes or {}).items():
        if _close(found, _numbers(wrong), tolerance):
            return sentence
    return _difference(found, wanted, tolerance)


def _difference(found: Tensor, wanted: Tensor, tolerance: float) -> str:
    if found.shape != wanted.shape:
        return f"the shape must be {list(wanted.shape)}, got {list(found.shape)}"
    if not bool(found.isfinite().all()):
        return "the answer must be finite, got NaN or infinity"
    if _close(found, -wanted, tolerance):
        return "the sign is wrong: all else is right"
    factor = float((found * wanted).sum() / wanted.square().sum().clamp(min=1e-30))
    if found.ndim and abs(factor) > 1e-6 and _close(found, factor * wanted, tolerance):
        return f"all numbers are {factor:.3g} times what they must be"
    return f"the answer is off by {float((found - wanted).abs().max()):.3g}" + (" in the worst place" if found.ndim else "")


def _numbers(value: Any) -> Tensor | None:
    """As float64 on the CPU; None for what is no number, tensor or list of these."""
    if isinstance(value, Tensor):
        return value.detach().cpu().double()
    if isinstance(value, (list, tuple)):
        parts = [_numbers(v) for v in value]
        return None if not parts or any(p is None or p.ndim for p in parts) else torch.stack([p for p in parts if p is not None])
    try:
        return torch.tensor(float(value), dtype=torch.float64)
    except (TypeError, ValueError, OverflowError):
        return None


def _close(a: Tensor, b: Tensor | None, tolerance: float) -> bool:
    if b is None or a.shape != b.shape:
        return False
    return not a.numel() or float((a - b).abs().max()) <= tolerance * max(1e-12, float(b.abs().max()))


def _kind(value: Any) -> str:
    return f"a {'class' if isinstance(value, type) else type(value).__name__}"


# Chapter 1 ------------------------------------------------------------------------------------


@exercise("1.1", "The channel has a filter of 9 × inputs, a scale and a shift in its batch norm, and a 3 × 3 column in every filter of the next layer.")
def one_channel(answer: Any) -> str | None:
    """How many parameters go with one channel of the VGG's ``features.24``."""
    net: Any = vgg()
    writes, reads = 9 * net.features[24].in_channels, 9 * net.features[27].out_channels
    mistakes = {
        "the batch norm is forgotten: it has a scale and a shift for the channel": writes + reads,
        "the columns that read the channel are forgotten: without it they are of no use": writes + 2,
        "the filter that writes the channel is forgotten": reads + 2,
        "batch norm's running mean and variance are buffers, not parameters: only scale and shift count": writes + reads + 4,
        "the columns that read it and the batch norm are forgotten: this is its filter only": writes,
    }
    return compare(answer, channel_costs(trace(net, torch.zeros(1, 3, 32, 32)))["features.24"][0], mistakes)


@exercise("1.2", "Count both networks by sdap.count_params and sdap.count_macs, and divide the wide one by the narrow one.")
def half_the_width(answer: Any) -> str | None:
    """By which factors parameters and MACs shrink at half the width."""
    mistakes = {
        "not exactly four: what has one width only (norms, the layers at the image and at the classes) halves at most": (4, 4),
        "a layer's cost is a product of two widths, and both are halved": (2, 2),
    }
    verdicts = []
    for shape in ((1, 3, 32, 32), (1, 1, 28, 28)):  # the chapter's image sets
        wide, narrow = (vgg(width=width, in_channels=shape[1]) for width in (16, 8))
        params = count_params(wide) / count_params(narrow)
        macs = count_macs(wide, torch.zeros(shape)) / count_macs(narrow, torch.zeros(shape))
        more = {"this is narrow by wide: divide the other way round": (1 / params, 1 / macs), "first the parameters, then the MACs": (macs, params)}
        verdicts.append(compare(answer, (params, macs), {**mistakes, **more}, tolerance=1e-3))
    return None if None in verdicts else verdicts[0]


@exercise("1.4", "Print the trace: each line with a number above 0 under 'may go' is a group whose channels could be removed.")
def groups_of_a_resnet(answer: Any) -> str | None:
    """Into how many prunable groups ResNet-20's channels fall."""
    graph = trace(resnet20(), torch.zeros(1, 3, 32, 32))
    convolutions = sum(layer.kind == "conv" for layer in graph.layers.values())
    mistakes = {
        "that is one group for each convolution; but a sum ties the channels of both its sides": convolutions,
        "the ten classes form a group, too, but none of its channels may go": len(graph.groups),
        "the three stages share their sum: the shortcuts between them carry its channels on": len(graph.prunable) + 2,
    }
    return compare(answer, len(graph.prunable), mistakes)


# Chapter 2 ------------------------------------------------------------------------------------


@exercise("2.1", "For each layer multiply weight and gradient, and sum over every axis but the second, the one of the inputs; then add up the layers.")
def two_consumers(answer: Callable[[list[nn.Module]], Tensor]) -> str | None:
    """``gate_gradient(layers)``, from the weights and gradients of all layers that read the channels."""
    x, mask = torch.randn(5, 4, 3, 3), torch.ones(4, requires_grad=True)
    layers: list[Any] = [nn.Conv2d(4, 4, 3), nn.Conv2d(4, 4, 1), nn.Linear(4, 4)]
    inputs = x * mask.view(1, 4, 1, 1)
    (layers[0](inputs).square().sum() + layers[1](inputs).exp().sum() + layers[2](inputs.mean((2, 3))).cos().sum()).backward()
    assert mask.grad is not None
    products = [(layer.weight * layer.weight.grad).reshape(4, 4, -1).sum(2) for layer in layers]  # [outputs, inputs]
    columns, rows = ([product.sum(axis) for product in products] for axis in (0, 1))
    mistakes = {
        "the sign is wrong: minus the gradient is the channel's importance, not the gradient": -mask.grad,
        "only the first layer counts here: every layer that reads the channel has a term": columns[0],
        "only the last layer counts here: every layer that reads the channel has a term": columns[-1],
        "this is the mean over the layers: the terms add up": sum(columns) / 3,
        "the wrong axis: these sums run over the inputs and leave a number for each output, a producer's row, not a consumer's column": sum(rows),
        "the weights are forgotten: weight times gradient": sum(layer.weight.grad.reshape(4, 4, -1).sum((0, 2)) for layer in layers),
    }
    return compare(answer(layers), mask.grad, mistakes, tolerance=1e-4)


@exercise("2.2", "Count the steps in __init__. A running mean of values v is: mean + (v - mean) / steps.")
def mean_absolute(answer: Callable[[], Any]) -> str | None:
    """A class of rules whose score is the mean absolute gradient."""
    if not isinstance(answer, type):
        return f"hand in the class itself, such as MeanAbsolute, so that the check starts from a fresh rule; got {_kind(answer)}"
    rule, scores, gradients = answer(), torch.zeros(6), torch.randn(4, 6)
    for gradient in gradients:
        scores = rule(scores, gradient)
    mistakes = {
        "this is the last gradient only: the rule must remember all of them": gradients[-1].abs(),
        "this is the sum: divide by the number of steps": gradients.abs().sum(0),
        "the sign is still there: take the absolute value of each gradient before the mean": gradients.mean(0),
        "the absolute value comes too late: take it of each gradient, not of the mean": gradients.mean(0).abs(),
        "this is the root mean square: take absolute values, not squares": gradients.square().mean(0).sqrt(),
    }
    wrong = compare(scores, gradients.abs().mean(0), mistakes)
    if wrong is None and not hasattr(rule, "state_dict"):
        return "a rule must also have state_dict and load_state_dict, for checkpoints: let it inherit from sdap.Frozen"
    return wrong


@exercise("2.5", "Let passed = scores.clamp(threshold - 1, threshold + 1): its slope is 1 inside and 0 outside. Then passed + (mask - passed).detach().")
def clipped(answer: Callable[[Tensor, float], Tensor]) -> str | None:
    """``clipped(scores, threshold)``: a hard mask whose gradient passes only near the threshold."""
    scores = torch.tensor([-3.0, -0.4, 0.2, 0.7, 1.4, 4.0], requires_grad=True)
    weights, inside = torch.tensor([1.0, 2.0, 3.0, 4.0, 5.0, 6.0]), torch.tensor([0.0, 1, 1, 1, 1, 0])
    mask = answer(scores, 0.5)
    wrong = compare(mask, (scores > 0.5).float(), {"the mask must be 1 or 0: these are the scores, clipped": scores.clamp(-0.5, 1.5)})
    if wrong:
        return f"forward: {wrong}"
    if not mask.requires_grad:
        return "no gradient reaches the scores: a step has no slope, so another function must lend it one"
    (mask * weights).sum().backward()
    mistakes = {
        "the gradient passes everywhere: it must be 0 where a score is further than 1 from the threshold": weights,
        "the distance must be taken from the threshold, not from 0": weights * torch.tensor([0.0, 1, 1, 1, 0, 0]),
        "the gradient passes only above the threshold: a closed gate must get one, too": weights * torch.tensor([0.0, 0, 0, 1, 1, 0]),
    }
    wrong = compare(scores.grad, weights * inside, mistakes)
    return wrong and f"backward: {wrong}"


# Chapter 3 ------------------------------------------------------------------------------------


@exercise("3.1", "A layer keeps a quarter of its inputs and a quarter of its outputs: which part of the products of both is left, and which part is gone?")
def a_quarter_of_the_channels(answer: Any) -> str | None:
    """Which share of the VGG's parameters goes when each group keeps a quarter."""
    graph = trace(vgg(), torch.zeros(1, 3, 32, 32))
    quarter = {name: torch.arange(len(group)) < len(group) // 4 for name, group in graph.prunable.items()}
    gone = 1 - cost(graph, quarter) / cost(graph)
    mistakes = {
        "this is the rate of the channels: a layer's parameters are a product of two widths": 0.75,
        "as a share from 0 to 1, not in per cent": 100 * gone,
    }
    if compare(answer, 1 - gone, tolerance=0.1) is None:
        return "this is the share that stays: the question is what goes"
    return compare(answer, gone, mistakes, tolerance=0.01)


@exercise("3.2", "The rank of each score is scores.argsort().argsort(): 0 for the lowest. A channel stays if its rank is at least int(share * len(scores)).")
def same_share(answer: Callable[[dict[str, Tensor], float], dict[str, Tensor]]) -> str | None:
    """``same_share(scores, share)``: the masks that close the lowest share of each group."""
    scores = {"a": torch.rand(8), "b": 5 + torch.rand(20)}
    got = answer({name: s.clone() for name, s in scores.items()}, 0.25)
    if not isinstance(got, dict) or got.keys() != scores.keys():
        return f"the answer must be a dictionary with a mask for each group of the scores, got {_kind(got)}"
    wrong_types = {str(getattr(mask, "dtype", type(mask).__name__)) for mask in got.values()} - {"torch.bool"}
    if wrong_types:
        return f"the masks must be bool tensors, True for a channel that stays, got {', '.join(sorted(wrong_types))}"
    flat, kept = torch.cat(list(scores.values())), [s.argsort().argsort() >= len(s) // 4 for s in scores.values()]
    right = torch.cat(kept)
    mistakes = {
        "True must mean that a channel stays: these masks are the other way round": ~right,
        "the lowest scores must go: here the highest go": torch.cat([s.argsort().argsort() < len(s) - len(s) // 4 for s in scores.values()]),
        "this is one threshold over all groups: take the share in each group for itself": flat.argsort().argsort() >= len(flat) // 4,
    }
    return compare(torch.cat(list(got.values())), right, mistakes)


@exercise("3.4", "Half a period: (1 - cos(π u)) / 2 rises from 0 to 1 while u does. Here u is the progress divided by the ramp, but at most 1.")
def cosine_schedule(answer: Callable[[float, float, float], float]) -> str | None:
    """``cosine(progress, rate, ramp)``."""
    moments, rate, ramp = [i / 10 for i in range(11)], 0.8, 0.5

    def rise(position: Callable[[float], float]) -> list[float]:
        return [rate * (1 - math.cos(math.pi * position(t))) / 2 for t in moments]

    right = rise(lambda t: min(1, t / ramp))
    mistakes = {
        "after the ramp the rate must stay: limit progress / ramp to 1": rise(lambda t: t / ramp),
        "the rate must be reached at the end of the ramp, not of the run: divide the progress by the ramp": rise(lambda t: t),
        "it falls: it must start at 0 and end at the rate": [rate - r for r in right],
        "it ends at 1, not at the rate": [r / rate for r in right],
        "this is the cubic schedule": [schedule(t, rate, ramp) for t in moments],
    }
    return compare([answer(t, rate, ramp) for t in moments], right, mistakes)


# Chapter 4 ------------------------------------------------------------------------------------


@exercise(
    "4.1", "The softmax of z / T is about 1 / classes + centred z / (T classes). The gradient has a factor 1 / T, and the loss a factor T² and a mean over n."
)
def very_hot(answer: Callable[[Tensor, Tensor], Tensor]) -> str | None:
    """``hot_gradient(z_s, z_t)``: the limit of the loss's gradient with respect to the student's logits."""
    z_s, z_t = torch.randn(2, 5, 7, dtype=torch.float64)
    z = z_s.clone().requires_grad_()
    distillation_loss(z, z_t, torch.zeros(5, dtype=torch.long), temperature=1e5, alpha=1.0).backward()
    centred = [v - v.mean(1, keepdim=True) for v in (z_s, z_t)]
    right = (centred[0] - centred[1]) / 7 / 5
    mistakes = {
        "the sign is wrong: where the student's logit is too high, the gradient is positive": -right,
        "the logits must be centred: a constant added to all of them changes no softmax": (z_s - z_t) / 35,
        "divide by the number of classes": right * 7,
        "divide by the number of images: the loss is their mean": right * 5,
        "divide by the number of classes and by the number of images": right * 35,
    }
    assert z.grad is not None
    return compare(answer(z_s, z_t), z.grad, mistakes, tolerance=1e-3)


@exercise(
    "4.2", "with torch.no_grad(): z_t = teacher.eval()(x). Then F.kl_div(log_softmax of the student, softmax of the teacher, reduction='batchmean') * T**2."
)
def loss_of_two_networks(answer: Callable[[nn.Module, nn.Module, Tensor, Tensor], Tensor]) -> str | None:
    """``loss(student, teacher, x, y)`` at T = 4 and alpha = 0.9; the teacher comes in train mode."""
    teacher: Any = nn.Sequential(nn.Linear(6, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 5))
    teacher(10 * torch.randn(50, 6))  # running statistics that differ from the batch's
    student, x, y = copy.deepcopy(teacher), torch.randn(9, 6), torch.randint(5, (9,))
    nn.init.normal_(student[3].weight)
    z_s, soft, moving = copy.deepcopy(student)(x), copy.deepcopy(teacher).eval()(x), copy.deepcopy(teacher)(x)

    def mix(z_t: Tensor, *, T: float = 4, square: float = 16, alpha: float = 0.9, back: bool = False) -> Tensor:
        p, q = (z_t, z_s) if not back else (z_s, z_t)
        divergence = F.kl_div(F.log_softmax(q / T, 1), F.softmax(p / T, 1), reduction="batchmean")
        return (1 - alpha) * F.cross_entropy(z_s, y) + alpha * square * divergence

    mistakes = {
        "the teacher is in train mode: its answers depend on the rest of the batch; call teacher.eval()": mix(moving),
        "the factor T² of the divergence is forgotten": mix(soft, square=1),
        "the factor is T², not T": mix(soft, square=4),
        "use reduction='batchmean': 'mean' divides by the number of classes, too": mix(soft, square=16 / 5),
        "alpha is the teacher's share; here it is the labels'": mix(soft, alpha=0.1),
        "the divergence is the other way round: the teacher's answer comes first, KL(p_t || p_s)": mix(soft, back=True),
        "both must be softened: divide the logits by T before the softmax": mix(soft, T=1),
    }
    loss = answer(student, teacher, x, y)
    wrong = compare(loss, mix(soft), mistakes, tolerance=1e-4)
    if wrong:
        return wrong
    if not loss.requires_grad:
        return "the loss has no gradient for the student: only the teacher belongs under no_grad"
    loss.backward()
    return "a gradient flows into the teacher: compute its logits under torch.no_grad()" if any(p.grad is not None for p in teacher.parameters()) else None


@exercise(
    "4.3", "With p = softmax(z / T): the best class keeps its p, all others share 1 - p evenly. Logits for the same T are T * log(p), for softmax(log p) is p."
)
def no_dark_knowledge(answer: Callable[[Tensor, float], Tensor]) -> str | None:
    """``flatten(z, T)``: logits whose softened answer keeps the best class and spreads the rest."""
    z, T = 3 * torch.randn(4, 6), 2.5
    got = answer(z.clone(), T)

    def even(temperature: float, others: int = 5) -> Tensor:
        best, place = (z / temperature).softmax(1).max(1, keepdim=True)
        return ((1 - best) / others).expand(4, 6).scatter(1, place, best)

    if compare(got, even(T), {}) is None:
        return "these are probabilities: hand back logits, T times the logarithm"
    if not isinstance(got, Tensor) or got.shape != z.shape:
        return f"the answer must be a tensor of shape {list(z.shape)}, as the logits, got {list(got.shape) if isinstance(got, Tensor) else _kind(got)}"
    mistakes = {
        "the temperature is forgotten: both the probabilities and the way back need it": (even(1.0).log() / T).softmax(1),
        "the way back forgets the temperature: T * log(p)": (even(T).log() / T).softmax(1),
        "the rest is shared by the *other* classes: one less than all": even(T, 6) / even(T, 6).sum(1, keepdim=True),
        "the number of classes is z.shape[1], not that of the chapter's images": even(T, 9) / even(T, 9).sum(1, keepdim=True),
        "this is still the teacher's own answer": (z / T).softmax(1),
    }
    return compare((got / T).softmax(1), even(T), mistakes, tolerance=1e-4)


# Chapter 5 ------------------------------------------------------------------------------------


@exercise("5.1", "Solve 1 - (1 - t / ramp)³ = share for t: a cube root.")
def when_a_share_is_gone(answer: Callable[[float, float], float]) -> str | None:
    """``when(share, ramp)``: the moment at which a share of the rate is reached."""
    shares, ramp = [0.1, 0.5, 0.9, 1.0], 0.5
    right = [ramp * (1 - (1 - s) ** (1 / 3)) for s in shares]
    mistakes = {
        "the ramp is missing: its end, not the run's, is where the whole rate is reached": [r / ramp for r in right],
        "this is a straight rise; the schedule is cubic": [ramp * s for s in shares],
        "this is the schedule itself: from the moment to the share; the question is the inverse": [schedule(s, 1, ramp) for s in shares],
        "take the cube root of what is left, 1 - share, not of the share": [ramp * s ** (1 / 3) for s in shares],
    }
    return compare([answer(s, ramp) for s in shares], right, mistakes)


@exercise("5.3", "sdap.prune(model, images, 0.4, unit='macs', ...): the rate is the share that goes, and unit says of what.")
def macs_instead(answer: Any) -> str | None:
    """The result of a run that removed 40 % of the MACs."""
    if not isinstance(answer, Result) or answer.report is None or answer.graph is None:
        return f"hand in what sdap.prune gives back, its Result, got {_kind(answer)}"
    report = answer.report
    if report.unit != "macs":
        return f"the rate must be one of the MACs: here it counts the {report.unit}"
    if report.asked == 0.6:
        return "the rate is the share that goes: this run keeps 40 %"
    parameter = next(answer.model.parameters())
    gone = 1 - count_macs(answer.model, torch.zeros(1, *answer.graph.shape[1:], device=parameter.device)) / report.before["macs"]
    return None if 0.4 <= gone < 0.42 else f"40 % of the MACs must go, but {gone:.1%} are gone in the network that came"


@exercise(
    "5.5",
    "zero_grad() once, before both halves; backward() of half of each half's loss; then, with the whole gradient there, gates.learn() and optimizer.step().",
)
def two_halves(answer: Callable[..., Any]) -> str | None:
    """``step(student, teacher, gates, optimizer, halves)``: one step from two half batches."""
    moved, scores, learned = _after(answer)
    right, right_scores, _ = _after(_two_halves)
    mistakes = {
        "each half's loss is a mean over its own images: average the halves, do not add them": _after(_two_halves, factor=1.0)[0],
        "an old gradient is still there: call optimizer.zero_grad() before the first half": _after(_two_halves, clear=())[0],
        "only the last half counts: call optimizer.zero_grad() once, before both": _after(_two_halves, clear=(1,))[0],
        "only the last half counts, and it counts whole: clear once, before both, and average them": _after(_two_halves, clear=(1,), factor=1.0)[0],
        "the weights do not move: call optimizer.step() after both halves": torch.zeros_like(moved),
    }
    wrong = compare(moved, right, mistakes, tolerance=1e-4)
    if wrong:
        return wrong
    if learned != 1:
        return f"the gates must learn once a step, from the whole gradient: here gates.learn() was called {learned} times"
    return compare(scores, right_scores, tolerance=1e-4)


def _two_halves(net: nn.Module, teacher: nn.Module, gates: Gates, optimizer: Any, halves: Any, *, factor: float = 0.5, clear: tuple[int, ...] = (0,)) -> None:
    """The right step, or one with a factor that is wrong, or gradients cleared before the wrong halves."""
    for i, (x, y) in enumerate(halves):
        if i in clear:
            optimizer.zero_grad()
        (factor * distillation_loss(net(x), teacher(x), y)).backward()
    gates.learn()
    optimizer.step()


def _after(step: Callable[..., Any], **options: Any) -> tuple[Tensor, Tensor, int]:
    """What one step on a small network does: how far the weights move, the gates' scores, how often they learned."""
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(2, 5, 3), nn.ReLU(), nn.Conv2d(5, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(16, 3))
    teacher, halves = copy.deepcopy(net).requires_grad_(False), [(torch.randn(6, 2, 6, 6), torch.randint(3, (6,))) for _ in range(2)]
    net(halves[0][0]).sum().backward()  # the gradient that an earlier step left behind
    rule, start = RootMeanSquare(), nn.utils.parameters_to_vector(net.parameters()).detach().clone()
    with Gates(trace(net, halves[0][0]), rule).attach(net) as gates:
        step(net, teacher, gates, torch.optim.SGD(net.parameters(), lr=0.1), halves, **options)
    return nn.utils.parameters_to_vector(net.parameters()).detach() - start, torch.cat(list(gates.scores.values())), rule.steps


# Chapter 6 ------------------------------------------------------------------------------------


def _block() -> Any:
    """Convolution, norm, depthwise convolution, norm, ReLU, convolution; as if it were trained, in float64."""
    block: Any = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.Conv2d(8, 8, 3, groups=8), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 4, 1))
    for norm in (block[1], block[3]):
        for values in (norm.bias, norm.running_mean):
            nn.init.normal_(values, 0.0, 0.5)
        for values in (norm.weight, norm.running_var):
            nn.init.uniform_(values, 0.5, 1.5)
    return block.double().eval()


@exercise("6.1", "Rows of [0], entries of [1] and [3] (with their running mean and variance), rows of [2] and its groups, columns of [5]; all on a deepcopy.")
def cut_a_block(answer: Callable[[nn.Sequential, Tensor], nn.Module]) -> str | None:
    """``cut(block, stay)``: the block without the channels that do not stay."""
    block, stay, x = _block(), torch.tensor([1, 0, 1, 1, 0, 1, 0, 1]).bool(), torch.randn(2, 3, 7, 7, dtype=torch.float64)
    before, masked = copy.deepcopy(block.state_dict()), copy.deepcopy(block)
    with torch.no_grad():
        masked[5].weight[:, ~stay] = 0
        small = answer(block, stay.clone())
        if not isinstance(small, nn.Module):
            return f"the answer must be a module, got {_kind(small)}"
        after = block.state_dict()
        if any(before[key].shape != after[key].shape or not torch.equal(before[key], after[key]) for key in before):
            return "the given block has changed: cut a copy.deepcopy of it"
        wanted, sizes = count_params(block) - 3 * (9 * 3 + 1 + 2 + 9 + 1 + 2 + 4), {}
        for name, module in small.named_modules():
            sizes.update({f"{name}.{key}": len(value) for key, value in module.named_buffers(recurse=False) if key != "num_batches_tracked"})
        if any(size != 5 for size in sizes.values()):
            return f"running mean and variance have an entry for each channel, too; they have {sizes}"
        got = compare(small(x), masked(x), {"the first channels stay here: those must stay where the mask is True": _first_five(block)(x)}, tolerance=1e-8)
    if got is None and count_params(small) != wanted:
        return f"{wanted} parameters must be left, got {count_params(small)}"
    return got


def _first_five(block: Any) -> Any:
    """The block with its first five channels, whatever the mask: a mistake."""
    wrong = copy.deepcopy(block)
    wrong[5].weight[:, 5:] = 0
    return wrong


@exercise("6.2", "Put a zero into batch norm's formula, (0 - mean) / sqrt(variance + eps) * weight + bias, and the result into ReLU.")
def leak(answer: Callable[[nn.BatchNorm2d], Tensor]) -> str | None:
    """``leak(norm)``: the constant that ReLU lets through where a channel is written as zeros."""
    norm: Any = _block()[1]
    norm.running_var *= 1e-3  # so that eps counts
    mean, scale, deviation = norm.running_mean, norm.weight.detach(), (norm.running_var + norm.eps).sqrt()
    constant = norm.bias.detach() - scale * mean / deviation
    mistakes = {
        "ReLU comes after the norm: a negative constant does not pass": constant,
        "batch norm's shift is not all: the zero is also centred and scaled": norm.bias.relu(),
        "the sign of the running mean: batch norm subtracts it": (norm.bias + scale * mean / deviation).relu(),
        "divide by the standard deviation, the root of the variance": (norm.bias - scale * mean / (norm.running_var + norm.eps)).relu(),
        "eps is forgotten: the root is of variance + eps": (norm.bias - scale * mean / norm.running_var.sqrt()).relu(),
        "batch norm's scale is forgotten": (norm.bias - mean / deviation).relu(),
    }
    return compare(answer(norm), constant.relu(), mistakes)


@exercise(
    "6.3", "The means are x.mean((2, 3)), of shape [n, 16]; the weights become [n, 16, 1, 1] by [:, :, None, None] and multiply x before the last convolution."
)
def excite(answer: Any) -> str | None:
    """A network with a squeeze-and-excitation block, in the layers that the task names."""
    if not isinstance(answer, nn.Module):
        return f"hand in a network, such as Excite(), got {_kind(answer)}"
    net: Any = copy.deepcopy(answer).double().eval()
    missing = [name for name in ("conv", "squeeze", "excite", "last") if not hasattr(net, name)]
    if missing:
        return f"the network must have the layers conv, squeeze, excite and last; missing: {', '.join(missing)}"
    image = torch.randn(3, 3, 12, 12, dtype=torch.float64)
    with torch.no_grad():
        x = net.conv(image)
        inner = F.relu(net.squeeze(x.mean((2, 3))))
        raw, got = net.excite(inner), net(image)
        weights = raw.sigmoid()[:, :, None, None]
        linear = net.excite(net.squeeze(x.mean((2, 3)))).sigmoid()[:, :, None, None]
        mistakes = {
            "the weights never reach the channels: multiply x by them": net.last(x),
            "the weights must lie between 0 and 1: the sigmoid is missing": net.last(x * raw[:, :, None, None]),
            "the ReLU between the two linear layers is missing": net.last(x * linear),
            "the weights are added: they must multiply x": net.last(x + weights),
        }
        wrong = compare(got, net.last(x * weights), mistakes)
    if wrong:
        return wrong
    tied = trace(net, image).groups["conv"].layers
    return None if "excite" in tied else f"the tracer must see conv and excite in one group, but this one holds {', '.join(tied)}"


# Chapter 7 ------------------------------------------------------------------------------------


class _Dealt(nn.Module):
    """32 channels, dealt out by a function."""

    def __init__(self, deal: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.deal = deal
        self.stem, self.last = nn.Conv2d(3, 32, 3), nn.Conv2d(32, 8, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.deal(self.stem(x)))


def _may_go(deal: Callable[[Tensor], Tensor]) -> int:
    """How many channels of the stem may go."""
    graph = trace(_Dealt(deal), torch.zeros(1, 3, 8, 8))
    group = graph.groups["stem"]
    return int(graph.removable[group.start : group.stop].sum())


@exercise("7.2", "n, channels, height, width = x.shape, then channels // 2 in view and channels in reshape: numbers that are read, not written.")
def mended_shuffle(answer: Callable[[Tensor], Tensor]) -> str | None:
    """``mended(x)``: the two halves of the channels in turns, whatever their number."""
    x = torch.randn(2, 32, 3, 3)
    right, apart = (x.view(2, *piles, 3, 3).transpose(1, 2).reshape(x.shape) for piles in ((2, 16), (16, 2)))
    mistakes = {
        "these are the channels as they came: the halves must take turns": x,
        "this takes the cards apart again: two halves of many, not many piles of two": apart,
    }
    wrong = compare(answer(x), right, mistakes)
    if wrong:
        return wrong
    return None if _may_go(answer) else "the order is right, but no channel may go: a number of channels stands in the code; read it from x.shape"


@exercise("7.3", "With 8: which eight can never change places, and what must be left behind them? With a quarter: channel i of each quarter goes together.")
def uneven_shuffles(answer: Any) -> str | None:
    """How many channels may go when the first 8, or a quarter, are put behind the others."""
    fixed = _may_go(lambda x: torch.cat([x[:, 8:], x[:, :8]], 1))
    quarter = _may_go(lambda x: torch.cat([x[:, x.shape[1] // 4 :], x[:, : x.shape[1] // 4]], 1))
    mistakes = {
        "the 8 stands in the code, so the first eight must stay, whatever the others do": (32, quarter),
        "the first eight stay, but one behind them, too: something must be left to put in front": (fixed + 1, quarter),
        "only the first eight are named in the code: most of the others may go": (0, quarter),
        "a quarter of what is left must be cut where it was cut: one of each quarter at a time, which counts as one": (fixed, 32),
        "four go together, one of each quarter, and so they can go: the report counts each four as one": (fixed, 0),
        "first the 8, then the quarter": (quarter, fixed),
    }
    return compare(answer, (fixed, quarter), mistakes)


class _TwoOutputs(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Conv2d(3, 16, 3, padding=1), nn.Conv2d(16, 24, 3, stride=2)
        self.head, self.map = nn.Linear(24, 10), nn.Conv2d(16, 1, 1)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        x = F.relu(self.first(x))
        return self.head(F.relu(self.second(x)).mean((2, 3))), self.map(x)


@exercise("7.5", "What a caller sees must stay: every channel of every output. The others only pass between layers.")
def two_outputs(answer: Any) -> str | None:
    """How many channels of a network with ten classes and a map must stay."""
    graph = trace(_TwoOutputs(), torch.zeros(1, 3, 8, 8))
    channels = sum(len(group) for group in graph.groups.values())
    mistakes = {
        "the map is an output, too: its channel stays": 10,
        "the ten classes are an output, too: their channels stay": 1,
        "count channels, not outputs": 2,
        "the map reads these 16, but it can read fewer: only its own channel stays": 27,
        "that is all channels: those between the layers may go": channels,
    }
    return compare(answer, channels - int(graph.removable.sum()), mistakes)


# Chapter 9 ------------------------------------------------------------------------------------


@exercise(
    "9.1", "torch.cov centres the rows and gives the covariances; torch.linalg.eigvalsh gives their eigenvalues. Square of the sum by sum of the squares."
)
def participation_ratio(answer: Callable[[Tensor], Any]) -> str | None:
    """``participation(activations)``: how many directions, counted by their variances."""
    activations = torch.randn(6, 6) @ torch.randn(6, 40) + 3.0  # [channels, samples]

    def ratio(matrix: Tensor, power: float = 1) -> float:
        values = torch.linalg.eigvalsh(matrix).clamp(min=0) ** power
        return float(values.sum() ** 2 / values.square().sum())

    right, shares = ratio(activations.cov()), torch.linalg.eigvalsh(activations.cov()).clamp(min=0).sqrt()
    mistakes = {
        "the mean of each channel must go first, or the largest direction is the mean itself": ratio(activations @ activations.T),
        "these are the singular values; the variances are their squares": ratio(activations.cov(), 0.5),
        "with the correlations each channel counts alike: take the covariances": ratio(activations.corrcoef()),
        "this is one by the ratio: the square of the sum comes first": 1 / right,
        "this is the effective rank of the chapter": float(torch.special.entr(shares / shares.sum()).sum().exp()),
        "this is the rank, which counts every direction alike": 6,
    }
    return compare(answer(activations.clone()), right, mistakes, tolerance=1e-3)


@exercise("9.2", "Probabilities add up, and a logit is the logarithm of one up to a constant: log of the sum of exp, that is z[:, group].logsumexp(1).")
def coarse_question(answer: Callable[[Tensor, list[list[int]]], Tensor]) -> str | None:
    """``coarse(z, groups)``: logits of groups of classes from those of the classes."""
    z, groups = 2 * torch.randn(5, 6), [[0, 4], [1], [2, 3, 5]]
    got = answer(z.clone(), groups)
    if not isinstance(got, Tensor) or got.shape != (5, 3):
        return f"the answer must be a tensor of shape [5, 3], [n, groups], got {list(got.shape) if isinstance(got, Tensor) else _kind(got)}"

    def each(part: Callable[[Tensor], Tensor]) -> Tensor:
        return torch.stack([part(z[:, group]) for group in groups], 1).softmax(1)

    right = torch.stack([z.softmax(1)[:, group].sum(1) for group in groups], 1)
    if compare(got, right) is None:
        return "these are the probabilities: hand back logits, their logarithms"
    mistakes = {
        "probabilities add up, logits do not": each(lambda part: part.sum(1)),
        "this is the mean of the logits: add the probabilities up": each(lambda part: part.mean(1)),
        "this is the best class of each group: the others' probabilities belong to it, too": each(lambda part: part.amax(1)),
        "this is the mean of the probabilities: a group of three classes counts three times, so take the sum": each(
            lambda part: part.logsumexp(1) - math.log(part.shape[1])
        ),
    }
    return compare(got.softmax(1), right, mistakes, tolerance=1e-4)


@exercise("9.3", "Both accuracies are measured from 1 / classes up: subtract it from each, then divide what is left of the pruned one by the dense one's.")
def from_guessing_up(answer: Callable[[float, float, int], float]) -> str | None:
    """``kept_of_it(dense, pruned, classes)``: the share of the knowledge beyond guessing that is kept."""
    cases = [(0.95, 0.8, 2), (0.9, 0.7, 5), (0.85, 0.4, 10)]
    right = [(pruned - 1 / c) / (dense - 1 / c) for dense, pruned, c in cases]
    mistakes = {
        "guessing is not subtracted: a network that guesses must get 0": [pruned / dense for dense, pruned, _ in cases],
        "guessing must be subtracted from the dense accuracy, too: nothing lost is 1": [pruned - 1 / c for _, pruned, c in cases],
        "this is the share that is lost": [1 - kept for kept in right],
        "in points this is what is lost; the share of what was there is asked for": [dense - pruned for dense, pruned, _ in cases],
        "this takes guessing among ten in every case: it is right once in 1 / classes": [(pruned - 0.1) / (dense - 0.1) for dense, pruned, _ in cases],
        "as a share from 0 to 1, not in per cent": [100 * kept for kept in right],
        "dense by pruned: divide the other way round": [1 / kept for kept in right],
    }
    return compare([answer(*case) for case in cases], right, mistakes, tolerance=1e-4)


# Chapter 10 -----------------------------------------------------------------------------------


@exercise("10.1", "A convolution does the same work at every pixel of its output: how many times as many pixels has an image whose side is 3.5 times as long?")
def at_full_size(answer: Any) -> str | None:
    """How many times the work at 64 pixels a network does at 224."""
    mistakes = {
        "the side grows by that factor; the work is done at every pixel of the area": 224 / 64,
        "parameters do not grow with the image, but MACs do": 1,
        "this is small by large: divide the other way round": (64 / 224) ** 2,
    }
    return compare(answer, (224 / 64) ** 2, mistakes, tolerance=0.01)  # the last layer, which sees one pixel, is less than a hundredth


@exercise("10.2", "The filter that expands to it, its depthwise filter, a scale and a shift for each of the two, and its weight in each filter that projects.")
def one_expanded_channel(answer: Any) -> str | None:
    """How many parameters go with one of the expanded channels of ``features.4``."""
    expand, depthwise, project, norm = 24, 9, 32, 2
    mistakes = {
        "the depthwise filter and its norm are forgotten: no other channel uses them": expand + norm + project,
        "the depthwise filter is forgotten: nine weights of its own": expand + project + 2 * norm,
        "the batch norms are forgotten: a scale and a shift in each of two": expand + depthwise + project,
        "there are two norms with a scale and a shift for it: after the expansion, and after the filtering": expand + depthwise + project + norm,
        "the weights that read the channel are forgotten: one in each of the 32 filters that project": expand + depthwise + 2 * norm,
        "the filter that expands to it is forgotten: 24 weights": depthwise + project + 2 * norm,
        "a depthwise filter reads one channel only: nine weights, not nine for each of the 144": expand + 144 * depthwise + project + 2 * norm,
        "the norm after the projection belongs to the 32 channels, which stay": expand + depthwise + project + 3 * norm,
    }
    block = InvertedResidual(24, 32, 2, 6)
    return compare(answer, channel_costs(trace(block, torch.zeros(1, 24, 8, 8)))["layers.0"][0], mistakes)


@exercise("10.3", "newly wrong: (before == labels) & (after != labels), counted by .sum(); newly right is the same with before and after exchanged.")
def answers_that_changed(answer: Callable[[Tensor, Tensor, Tensor], Any]) -> str | None:
    """``turnover(labels, before, after)``: how many images are newly wrong, and how many newly right."""
    labels, before, after = torch.randint(0, 4, (3, 200))
    before[:120], after[40:150] = labels[:120], labels[40:150]
    wrong, right = ((before == labels) & (after != labels)).sum(), ((before != labels) & (after == labels)).sum()
    changed, errors = (before != after).sum(), [(found != labels).sum() for found in (before, after)]
    mistakes = {
        "first the newly wrong, then the newly right": [right, wrong],
        "an image that was wrong and is wrong in another way is not newly wrong": [changed - right, right],
        "these are all errors before and after: count those that are new": errors,
        "an error that is there before and after is not new: count images, not errors": errors[::-1],
        "counts, not shares of the images": [wrong / 200, right / 200],
        "this is only the difference, which accuracy shows, too: give both numbers": wrong - right,
    }
    return compare(answer(labels.clone(), before.clone(), after.clone()), torch.stack([wrong, right]), mistakes)
