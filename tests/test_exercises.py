"""Exercises: a right answer passes, and a typical wrong one is told what is wrong with it."""

from __future__ import annotations

import copy
import json
import math
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import sdap_lite as sdap
from sdap_lite import exercises
from sdap_lite.teaching.comparing import EXERCISES, compare

BOOK = Path(__file__).parents[1] / "book"


@pytest.fixture(autouse=True)
def forget() -> Iterator[None]:
    exercises._failures.clear()
    yield
    exercises._failures.clear()


# Answers: right ones, and functions with a mistake to choose ----------------------------------


def gate_gradient(layers: list[Any], *, axis: int = 1, use: slice = slice(None), sign: int = 1, divide: int = 1, weighted: bool = True) -> Tensor:
    total = torch.zeros(4)
    for layer in layers[use]:
        product = (layer.weight if weighted else 1) * layer.weight.grad
        total = total + product.sum([a for a in range(product.ndim) if a != axis])
    return sign * total / divide


class Remember(sdap.Frozen):
    """The mean of ``inner(gradient)``, then ``outer`` of it."""

    inner, outer = staticmethod(torch.abs), staticmethod(torch.clone)

    def __init__(self) -> None:
        self.seen: list[Tensor] = []

    def __call__(self, scores: Tensor, gradient: Tensor) -> Tensor:
        self.seen.append(self.inner(gradient))
        return self.outer(torch.stack(self.seen).mean(0))


class Signed(Remember):
    inner = staticmethod(torch.clone)


class Late(Signed):
    outer = staticmethod(torch.abs)


class RootMean(Remember):
    inner, outer = staticmethod(torch.square), staticmethod(torch.sqrt)


class Sum(sdap.Frozen):
    def __call__(self, scores: Tensor, gradient: Tensor) -> Tensor:
        return scores + gradient.abs()


class Last(sdap.Frozen):
    def __call__(self, scores: Tensor, gradient: Tensor) -> Tensor:
        return gradient.abs()


class NoCheckpoint:
    def __init__(self) -> None:
        self.rule = Remember()

    def __call__(self, scores: Tensor, gradient: Tensor) -> Tensor:
        return self.rule(scores, gradient)


def clipped(scores: Tensor, threshold: float, *, low: float = -1, high: float = 1, centre: float | None = None, through: bool = True) -> Tensor:
    mask = (scores > threshold).float()
    around = threshold if centre is None else centre
    passed = scores.clamp(around + low, around + high)
    return passed + (mask - passed).detach() if through else mask


def same_share(scores: dict[str, Tensor], share: float, *, flip: bool = False, highest: bool = False, joint: bool = False) -> dict[str, Tensor]:
    if joint:
        bound = torch.cat(list(scores.values())).quantile(share)
        return {name: s > bound for name, s in scores.items()}
    kept = {}
    for name, s in scores.items():
        order = s.argsort(descending=highest)
        kept[name] = torch.ones(len(s), dtype=torch.bool)
        kept[name][order[: int(share * len(s))]] = False
        kept[name] ^= flip
    return kept


def cosine(t: float, rate: float, ramp: float) -> float:
    return rate * 0.5 * (1 - math.cos(math.pi * min(1, t / ramp)))


def hot_gradient(z_s: Tensor, z_t: Tensor) -> Tensor:
    n, classes = z_s.shape
    return ((z_s - z_s.mean(1, keepdim=True)) - (z_t - z_t.mean(1, keepdim=True))) / (n * classes)


def whole_loss(student: nn.Module, teacher: nn.Module, x: Tensor, y: Tensor, *, mode: bool = False, grad: bool = False, **other: Any) -> Tensor:
    z_s = student(x)
    with torch.set_grad_enabled(grad):
        z_t = teacher.train(mode)(x)
    T, square, alpha, reduction = other.get("T", 4.0), other.get("square", 16.0), other.get("alpha", 0.9), other.get("reduction", "batchmean")
    first, second = (z_s, z_t) if other.get("back") else (z_t, z_s)
    divergence = F.kl_div(F.log_softmax(second / T, 1), F.log_softmax(first / T, 1), reduction="none", log_target=True)
    divergence = divergence.mean() if reduction == "mean" else divergence.sum() / len(x)
    return (1 - alpha) * F.cross_entropy(z_s, y) + alpha * square * divergence


def no_grad_loss(*args: Any) -> Tensor:
    with torch.no_grad():
        return whole_loss(*args)


def flatten(z: Tensor, T: float, *, inside: float | None = None, back: float | None = None, others: int | None = None, logits: bool = True) -> Tensor:
    p = (z / (inside or T)).softmax(1)
    best, place = p.max(1, keepdim=True)
    spread = torch.full_like(p, 1.0) * (1 - best) / (others or z.shape[1] - 1)
    spread = spread.scatter(1, place, best)
    return (T if back is None else back) * spread.log() if logits else spread


def accumulate(
    student: nn.Module,
    teacher: nn.Module,
    gates: Any,
    optimizer: Any,
    halves: Any,
    *,
    clear: str = "first",
    share: float = 0.5,
    learn: str = "end",
    move: bool = True,
) -> None:
    for i, (x, y) in enumerate(halves):
        if clear == "each" or (clear == "first" and i == 0):
            optimizer.zero_grad()
        with torch.no_grad():
            target = teacher(x)
        (share * sdap.distillation_loss(student(x), target, y)).backward()
        if learn == "each":
            gates.learn()
    if learn == "end":
        gates.learn()
    if move:
        optimizer.step()


def cut(block: Any, stay: Tensor, *, statistics: bool = True, depthwise: bool = True, inplace: bool = False, first: bool = False, reader: bool = True) -> Any:
    small = block if inplace else copy.deepcopy(block)
    if first:
        stay = torch.arange(len(stay)) < stay.sum()
    for i in (0, 1, 2, 3) if depthwise else (0, 1, 3):
        for key in ("weight", "bias"):
            setattr(small[i], key, nn.Parameter(getattr(small[i], key)[stay]))
    for norm in (small[1], small[3]) if statistics else ():
        norm.running_mean, norm.running_var = norm.running_mean[stay], norm.running_var[stay]
    small[2].groups = int(stay.sum())
    small[5].weight = nn.Parameter(small[5].weight[:, stay] if reader else small[5].weight[stay[:4]])
    return small


def leak(norm: Any, *, relu: bool = True, scaled: bool = True, sign: int = -1, power: float = 0.5, eps: float | None = None) -> Tensor:
    deviation = (norm.running_var + (norm.eps if eps is None else eps)) ** power
    constant = norm.bias + sign * (norm.weight if scaled else 1) * norm.running_mean / deviation
    return constant.relu() if relu else constant


class Excite(nn.Module):
    def __init__(self, how: str = "right") -> None:
        super().__init__()
        self.how = how
        self.conv, self.squeeze, self.excite, self.last = nn.Conv2d(3, 16, 3), nn.Linear(16, 8), nn.Linear(8, 16), nn.Conv2d(16, 4, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv(x)
        inner = self.squeeze(x.mean((2, 3)))
        weights = self.excite(inner if self.how == "no ReLU" else F.relu(inner))[:, :, None, None]
        weights = weights if self.how == "no sigmoid" else torch.sigmoid(weights)
        return self.last({"unused": x, "added": x + weights}.get(self.how, x * weights))


def deal(x: Tensor, *, halves: bool = True, written: bool = False) -> Tensor:
    n, channels, height, width = x.shape
    if written:
        channels = 32
    sizes = (2, channels // 2) if halves else (channels // 2, 2)
    return x.view(n, *sizes, height, width).transpose(1, 2).reshape(n, channels, height, width)


def participation(a: Tensor, *, centred: bool = True, power: float = 1, scaled: bool = False, inverse: bool = False) -> float:
    a = a - a.mean(1, keepdim=True) if centred else a
    a = a / a.norm(dim=1, keepdim=True) if scaled else a
    variances = torch.linalg.svdvals(a) ** (2 * power)
    ratio = float(variances.sum() ** 2 / variances.square().sum())
    return 1 / ratio if inverse else ratio


def erank(a: Tensor) -> float:
    sigma = torch.linalg.svdvals(a - a.mean(1, keepdim=True))
    return math.exp(torch.special.entr(sigma / sigma.sum()).sum())


def coarse(z: Tensor, groups: list[list[int]], *, how: str = "sum") -> Tensor:
    parts = [z.softmax(1)[:, group] for group in groups]
    if how in ("sum", "mean", "amax"):
        return torch.stack([getattr(p, how)(1) for p in parts], 1).log()
    return torch.stack([getattr(z[:, group], how.split()[0])(1) for group in groups], 1)


def turnover(labels: Tensor, before: Tensor, after: Tensor) -> tuple[int, int]:
    was, now = before == labels, after == labels
    return int((was & ~now).sum()), int((~was & now).sum())


def filter_norms(model: nn.Module, graph: Any, *, value: Callable[[Tensor], Tensor] = lambda w: w.norm(dim=1), add: bool = True) -> dict[str, Tensor]:
    flat = torch.zeros(len(graph))
    for layer in graph.layers.values():
        if layer.kind in ("conv", "linear"):
            found = value(model.get_submodule(layer.name).weight.detach().flatten(1))
            flat[layer.outputs] = found + (flat[layer.outputs] if add else 0)
    return graph.split(flat)


def cost_ratio(whole: float, small: float, ramp: float, *, teachers: tuple[int, int] = (1, 1), passes: int = 3) -> float:
    one = passes * (ramp * whole + (1 - ramp) * small) + teachers[0] * whole
    return one / (passes * small + teachers[1] * whole)


def seeds_needed(difference: float, deviation: float, *, factor: float = 8, power: int = 2, whole: bool = True) -> float:
    found = factor * (deviation / difference) ** power
    return math.ceil(found - 1e-9) if whole else found


def shrunk(measured: float, true: float, error: float, *, power: int = 2, top: int = 1, other: int = 1, root: float = 1) -> float:
    share = (true if top else error) ** power / (other * true**power + error**power)
    return measured * share**root


def two_errors(a: Tensor, b: Tensor, *, correction: int = 1, root: float = 0.5, add: bool = False) -> tuple[Tensor, Tensor]:
    n, alone = len(a) ** root, (a.std(correction=correction), b.std(correction=correction))
    together = sum(alone) if add else sum(x**2 for x in alone) ** 0.5
    return (a - b).std(correction=correction) / n, together / n


def interaction(neither: Tensor, first: Tensor, second: Tensor, both: Tensor, *, add: float = 1, single: float = 1, sign: int = 1) -> tuple[Tensor, Tensor]:
    alone = sign * (both - single * (first + second) + add * neither)
    return alone.mean(), alone.std() / len(alone) ** 0.5


def apart(*arms: Tensor) -> tuple[Tensor, Tensor]:
    return interaction(*arms)[0], sum(arm.var() / len(arm) for arm in arms) ** 0.5


def sent(params: int, devices: int, *, size: int = 4, rounds: float = 2, share: Callable[[int], float] = lambda n: (n - 1) / n) -> float:
    return size * params * rounds * share(devices)


def share_weight(count: int, rank: int, size: int, *, times: bool = True, own: bool = True) -> float:
    n = len(range(rank, count, size)) if own else count // size
    return n * (size if times else 1) / count


def many_scores(gradients: Tensor, *, first: Callable[[Tensor], Tensor] = lambda g: g.mean(1)) -> Tensor:
    return first(gradients).square().mean(0).sqrt()


@pytest.fixture(scope="module")
def results() -> dict[tuple[float, str], sdap.Result]:
    """What ``sdap.prune`` would give back for a rate of a unit, without the training."""
    model, example = sdap.models.ResNet(8, width=8), torch.zeros(1, 3, 16, 16)
    graph, found = sdap.trace(model, example), {}
    for rate, unit in ((0.4, "macs"), (0.6, "macs"), (0.4, "params")):
        kept = sdap.threshold(graph, graph.split(torch.rand(len(graph))), rate, unit=unit)
        small = sdap.remove_channels(model, graph, kept)
        found[rate, unit] = sdap.Result(small, [], 0.0, {}, 0.0, sdap.report(graph, kept, asked=rate, unit=unit), graph, kept)
    return found


def options(function: Callable[..., Any], **chosen: Any) -> Callable[..., Any]:
    return lambda *args: function(*args, **chosen)


def vgg_factors() -> tuple[float, float]:
    wide, narrow = (sdap.models.vgg(width=w) for w in (16, 8))
    example = torch.zeros(1, 3, 32, 32)
    return sdap.count_params(wide) / sdap.count_params(narrow), sdap.count_macs(wide, example) / sdap.count_macs(narrow, example)


RIGHT: dict[str, Callable[[], Any]] = {
    "1.1": lambda: 9 * 64 + 9 * 128 + 2,
    "1.2": vgg_factors,
    "1.4": lambda: 10,
    "2.1": lambda: gate_gradient,
    "2.2": lambda: Remember,
    "2.5": lambda: clipped,
    "3.1": lambda: 1 - 1 / 16,
    "3.2": lambda: same_share,
    "3.4": lambda: cosine,
    "4.1": lambda: hot_gradient,
    "4.2": lambda: whole_loss,
    "4.3": lambda: flatten,
    "5.1": lambda: lambda share, ramp: ramp * (1 - (1 - share) ** (1 / 3)),
    "5.5": lambda: accumulate,
    "6.1": lambda: cut,
    "6.2": lambda: leak,
    "6.3": lambda: Excite(),
    "7.2": lambda: deal,
    "7.3": lambda: (23, 8),
    "7.5": lambda: 11,
    "9.1": lambda: participation,
    "9.2": lambda: coarse,
    "9.3": lambda: lambda dense, pruned, classes: (classes * pruned - 1) / (classes * dense - 1),
    "10.1": lambda: 12.24,
    "10.2": lambda: 24 + 2 + 9 + 2 + 32,
    "10.3": lambda: turnover,
    "8.1": lambda: filter_norms,
    "8.2": lambda: cost_ratio,
    "8.4": lambda: seeds_needed,
    "11.1": lambda: shrunk,
    "11.2": lambda: two_errors,
    "11.3": lambda: interaction,
    "12.1": lambda: sent,
    "12.2": lambda: share_weight,
    "12.3": lambda: many_scores,
}

WRONG: list[tuple[str, Any, str]] = [
    ("1.1", 1728, "the batch norm is forgotten"),
    ("1.1", 578, "the columns that read the channel are forgotten"),
    ("1.1", 1154, "the filter that writes the channel is forgotten"),
    ("1.1", 1732, "running mean and variance are buffers"),
    ("1.1", 576, "its filter only"),
    ("1.1", "many", "must be a number or a tensor, got a str"),
    ("1.2", (4, 4), "not exactly four"),
    ("1.2", [2.0, 2.0], "a product of two widths"),
    ("1.2", tuple(1 / f for f in vgg_factors()), "narrow by wide"),
    ("1.2", vgg_factors()[::-1], "first the parameters, then the MACs"),
    ("1.2", 3.9, r"the shape must be \[2\], got \[\]"),
    ("1.4", 19, "a sum ties the channels of both its sides"),
    ("1.4", 11, "the ten classes form a group"),
    ("1.4", 12, "the three stages share their sum"),
    ("2.1", options(gate_gradient, sign=-1), "minus the gradient is the channel's importance"),
    ("2.1", options(gate_gradient, use=slice(0, 1)), "only the first layer counts"),
    ("2.1", options(gate_gradient, use=slice(2, 3)), "only the last layer counts"),
    ("2.1", options(gate_gradient, axis=0), "a producer's row, not a consumer's column"),
    ("2.1", options(gate_gradient, divide=3), "the mean over the layers"),
    ("2.1", options(gate_gradient, weighted=False), "the weights are forgotten"),
    ("2.1", lambda layers: torch.zeros(3), r"the shape must be \[4\], got \[3\]"),
    ("2.1", lambda layers: layers[0].nothing, "your answer raises AttributeError"),
    ("2.2", Remember(), "hand in the class itself"),
    ("2.2", Last, "the last gradient only"),
    ("2.2", Sum, "this is the sum"),
    ("2.2", Signed, "the sign is still there"),
    ("2.2", Late, "the absolute value comes too late"),
    ("2.2", RootMean, "this is the root mean square"),
    ("2.2", NoCheckpoint, "state_dict and load_state_dict"),
    ("2.5", lambda s, t: s.clamp(t - 1, t + 1), "forward: the mask must be 1 or 0"),
    ("2.5", options(clipped, through=False), "no gradient reaches the scores"),
    ("2.5", options(clipped, low=-100, high=100), "backward: the gradient passes everywhere"),
    ("2.5", options(clipped, centre=0.0), "the distance must be taken from the threshold"),
    ("2.5", options(clipped, low=0), "a closed gate must get one, too"),
    ("3.1", 0.75, "the rate of the channels"),
    ("3.1", 0.0625, "the share that stays"),
    ("3.1", 93.75, "not in per cent"),
    ("3.2", options(same_share, flip=True), "the other way round"),
    ("3.2", options(same_share, highest=True), "here the highest go"),
    ("3.2", options(same_share, joint=True), "one threshold over all groups"),
    ("3.2", lambda scores, share: {name: s.double() for name, s in scores.items()}, "must be bool tensors"),
    ("3.2", lambda scores, share: torch.cat(list(scores.values())), "a mask for each group"),
    ("3.4", lambda t, rate, ramp: rate * 0.5 * (1 - math.cos(math.pi * t / ramp)), "limit progress / ramp to 1"),
    ("3.4", lambda t, rate, ramp: cosine(t, rate, 1), "divide the progress by the ramp"),
    ("3.4", lambda t, rate, ramp: rate - cosine(t, rate, ramp), "it falls"),
    ("3.4", lambda t, rate, ramp: cosine(t, 1, ramp), "it ends at 1"),
    ("3.4", sdap.schedule, "the cubic schedule"),
    ("4.1", lambda a, b: hot_gradient(b, a), "the sign is wrong"),
    ("4.1", lambda a, b: (a - b) / a.numel(), "must be centred"),
    ("4.1", lambda a, b: a.shape[1] * hot_gradient(a, b), "divide by the number of classes$"),
    ("4.1", lambda a, b: a.shape[0] * hot_gradient(a, b), "divide by the number of images"),
    ("4.1", lambda a, b: a.numel() * hot_gradient(a, b), "classes and by the number of images"),
    ("4.1", lambda a, b: hot_gradient(a, b) / 4, "all numbers are 0.25 times"),
    ("4.2", options(whole_loss, mode=True), "the teacher is in train mode"),
    ("4.2", options(whole_loss, square=1.0), "T² of the divergence is forgotten"),
    ("4.2", options(whole_loss, square=4.0), "T², not T"),
    ("4.2", options(whole_loss, reduction="mean"), "use reduction='batchmean'"),
    ("4.2", options(whole_loss, alpha=0.1), "alpha is the teacher's share"),
    ("4.2", options(whole_loss, back=True), "the other way round"),
    ("4.2", options(whole_loss, T=1.0), "both must be softened"),
    ("4.2", options(whole_loss, grad=True), "a gradient flows into the teacher"),
    ("4.2", no_grad_loss, "no gradient for the student"),
    ("4.2", lambda *args: torch.tensor(float("nan")), "must be finite"),
    ("4.3", options(flatten, inside=1.0, back=1.0), "the temperature is forgotten"),
    ("4.3", options(flatten, back=1.0), "the way back forgets the temperature"),
    ("4.3", options(flatten, others=6), "one less than all"),
    ("4.3", options(flatten, others=9), "not that of the chapter's images"),
    ("4.3", options(flatten, logits=False), "these are probabilities"),
    ("4.3", lambda z, T: z, "the teacher's own answer"),
    ("4.3", lambda z, T: z[0], r"of shape \[4, 6\], as the logits, got \[6\]"),
    ("5.1", lambda share, ramp: 1 - (1 - share) ** (1 / 3), "the ramp is missing"),
    ("5.1", lambda share, ramp: share * ramp, "a straight rise"),
    ("5.1", lambda share, ramp: sdap.schedule(share, 1, ramp), "the schedule itself"),
    ("5.1", lambda share, ramp: ramp * share ** (1 / 3), "the cube root of what is left"),
    ("5.3", 0.4, "hand in what sdap.prune gives back"),
    ("5.5", options(accumulate, share=1.0), "average the halves, do not add them"),
    ("5.5", options(accumulate, clear="never"), "an old gradient is still there"),
    ("5.5", options(accumulate, clear="each"), "only the last half counts: "),
    ("5.5", options(accumulate, clear="each", share=1.0), "it counts whole"),
    ("5.5", options(accumulate, learn="each"), "called 2 times"),
    ("5.5", options(accumulate, learn="never"), "called 0 times"),
    ("5.5", options(accumulate, move=False), "the weights do not move"),
    ("6.1", options(cut, statistics=False), "running mean and variance have an entry for each channel"),
    ("6.1", options(cut, inplace=True), "the given block has changed"),
    ("6.1", options(cut, first=True), "the first channels stay here"),
    ("6.1", options(cut, depthwise=False), "your answer raises RuntimeError"),
    ("6.1", options(cut, reader=False), "your answer raises RuntimeError"),
    ("6.1", lambda block, stay: sdap.masked(block, sdap.trace(block, torch.zeros(1, 3, 7, 7)), {"0": stay}), "have an entry for each channel"),
    ("6.1", lambda block, stay: stay, "must be a module, got a Tensor"),
    ("6.2", options(leak, relu=False), "ReLU comes after the norm"),
    ("6.2", lambda norm: norm.bias.relu(), "shift is not all"),
    ("6.2", options(leak, sign=1), "the sign of the running mean"),
    ("6.2", options(leak, power=1), "the root of the variance"),
    ("6.2", options(leak, eps=0.0), "eps is forgotten"),
    ("6.2", options(leak, scaled=False), "batch norm's scale is forgotten"),
    ("6.3", Excite, "hand in a network"),
    ("6.3", nn.Sequential(nn.Conv2d(3, 4, 3)), "missing: conv, squeeze, excite, last"),
    ("6.3", Excite("unused"), "the weights never reach the channels"),
    ("6.3", Excite("no sigmoid"), "the sigmoid is missing"),
    ("6.3", Excite("no ReLU"), "the ReLU between"),
    ("6.3", Excite("added"), "the weights are added"),
    ("7.2", options(deal, written=True), "a number of channels stands in the code"),
    ("7.2", options(deal, halves=False), "takes the cards apart again"),
    ("7.2", lambda x: x, "the channels as they came"),
    ("7.2", lambda x: x[:, :16], r"the shape must be \[2, 32, 3, 3\]"),
    ("7.3", (32, 8), "the first eight must stay"),
    ("7.3", (24, 8), "one behind them, too"),
    ("7.3", (0, 8), "most of the others may go"),
    ("7.3", (23, 32), "one of each quarter at a time"),
    ("7.3", (23, 0), "and so they can go"),
    ("7.3", (8, 23), "first the 8, then the quarter"),
    ("7.3", 23, r"the shape must be \[2\], got \[\]"),
    ("7.5", 10, "the map is an output, too"),
    ("7.5", 1, "the ten classes are an output, too"),
    ("7.5", 2, "count channels, not outputs"),
    ("7.5", 27, "only its own channel stays"),
    ("7.5", 51, "that is all channels"),
    ("9.1", options(participation, centred=False), "the mean of each channel must go first"),
    ("9.1", options(participation, power=0.5), "the variances are their squares"),
    ("9.1", options(participation, scaled=True), "with the correlations each channel counts alike"),
    ("9.1", options(participation, inverse=True), "one by the ratio"),
    ("9.1", erank, "the effective rank of the chapter"),
    ("9.1", lambda a: torch.linalg.matrix_rank(a), "counts every direction alike"),
    ("9.2", lambda z, groups: coarse(z, groups).exp(), "these are the probabilities"),
    ("9.2", options(coarse, how="sum of logits"), "probabilities add up, logits do not"),
    ("9.2", options(coarse, how="mean of logits"), "the mean of the logits"),
    ("9.2", options(coarse, how="amax"), "the best class of each group"),
    ("9.2", options(coarse, how="mean"), "the mean of the probabilities"),
    ("9.2", lambda z, groups: z, r"\[n, groups\], got \[5, 6\]"),
    ("9.3", lambda dense, pruned, classes: pruned / dense, "guessing is not subtracted"),
    ("9.3", lambda dense, pruned, classes: pruned - 1 / classes, "from the dense accuracy, too"),
    ("9.3", lambda dense, pruned, classes: (dense - pruned) / (dense - 1 / classes), "the share that is lost"),
    ("9.3", lambda dense, pruned, classes: dense - pruned, "in points this is what is lost"),
    ("9.3", lambda dense, pruned, classes: (pruned - 0.1) / (dense - 0.1), "guessing among ten in every case"),
    ("9.3", lambda dense, pruned, classes: 100 * (pruned - 1 / classes) / (dense - 1 / classes), "not in per cent"),
    ("9.3", lambda dense, pruned, classes: (dense - 1 / classes) / (pruned - 1 / classes), "dense by pruned"),
    ("10.1", 3.5, "the work is done at every pixel"),
    ("10.1", 1, "parameters do not grow with the image"),
    ("10.1", 1 / 12.25, "small by large"),
    ("10.2", 58, "the depthwise filter and its norm are forgotten"),
    ("10.2", 60, "the depthwise filter is forgotten"),
    ("10.2", 65, "the batch norms are forgotten"),
    ("10.2", 67, "there are two norms"),
    ("10.2", 37, "the weights that read the channel are forgotten"),
    ("10.2", 45, "the filter that expands to it is forgotten"),
    ("10.2", 1356, "a depthwise filter reads one channel only"),
    ("10.2", 71, "the norm after the projection"),
    ("10.3", lambda *args: turnover(*args)[::-1], "first the newly wrong"),
    ("10.3", lambda y, a, b: ((a != b).sum() - turnover(y, a, b)[1], turnover(y, a, b)[1]), "wrong in another way"),
    ("10.3", lambda y, a, b: ((a != y).sum(), (b != y).sum()), "all errors before and after"),
    ("10.3", lambda y, a, b: ((b != y).sum(), (a != y).sum()), "count images, not errors"),
    ("10.3", lambda *args: [count / 200 for count in turnover(*args)], "counts, not shares"),
    ("10.3", lambda y, a, b: turnover(y, a, b)[0] - turnover(y, a, b)[1], "only the difference"),
    ("8.1", options(filter_norms, value=lambda w: w.abs().sum(1)), "this is L1"),
    ("8.1", options(filter_norms, value=lambda w: w.square().sum(1)), "the root is missing"),
    ("8.1", options(filter_norms, value=lambda w: w.square().mean(1).sqrt()), "the root of the mean of squares"),
    ("8.1", options(filter_norms, add=False), "add them, do not overwrite"),
    ("8.1", lambda model, graph: torch.zeros(len(graph)), "a dictionary with a tensor for each prunable group"),
    ("8.2", options(cost_ratio, teachers=(0, 0)), "the teacher is forgotten"),
    ("8.2", options(cost_ratio, teachers=(1, 0)), "two stages have a teacher, too"),
    ("8.2", options(cost_ratio, passes=1), "the backward pass is forgotten"),
    ("8.2", options(cost_ratio, passes=2), "two forward passes, not one"),
    ("8.2", lambda *case: 1 / cost_ratio(*case), "the other way round"),
    ("8.2", lambda whole, small, ramp: cost_ratio(whole, small, 1), "after the ramp the student is small"),
    ("8.4", options(seeds_needed, factor=4), "this is the error of one"),
    ("8.4", options(seeds_needed, factor=2), "two were asked for"),
    ("8.4", options(seeds_needed, factor=16), "errors do not add"),
    ("8.4", options(seeds_needed, whole=False), "round up"),
    ("8.4", options(seeds_needed, factor=8**0.5, power=1), "square the ratio"),
    ("11.1", lambda measured, true, error: measured, "this is what was measured"),
    ("11.1", options(shrunk, top=0), "the share that is luck"),
    ("11.1", options(shrunk, power=1), "variances add, not deviations"),
    ("11.1", options(shrunk, root=0.5), "not its root"),
    ("11.1", options(shrunk, other=0), "the sum of both variances"),
    ("11.2", lambda a, b: two_errors(a, b)[::-1], "in pairs first, then without"),
    ("11.2", options(two_errors, root=0), "deviations of single runs"),
    ("11.2", options(two_errors, root=1), "divide by √n"),
    ("11.2", options(two_errors, correction=0), "over n - 1, not n"),
    ("11.2", options(two_errors, add=True), "variances add, not deviations"),
    ("11.3", options(interaction, sign=-1), "the sign"),
    ("11.3", options(interaction, single=0, add=-1), "what both gain, not what they gain beyond"),
    ("11.3", options(interaction, add=0), "add it once"),
    ("11.3", lambda *arms: (interaction(*arms)[0], interaction(*arms)[1] * len(arms[0]) ** 0.5), "the deviation of one seed"),
    ("11.3", apart, "four runs of one seed belong together"),
    ("12.1", options(sent, size=1), "numbers, not bytes"),
    ("12.1", options(sent, size=32), "these are bits"),
    ("12.1", options(sent, rounds=1), "they must also come back"),
    ("12.1", options(sent, share=lambda n: 1), "its own chunk to nobody"),
    ("12.1", options(sent, rounds=1, share=lambda n: n - 1), "this is all to all"),
    ("12.1", options(sent, share=lambda n: n - 1), "what all devices send together"),
    ("12.2", lambda count, rank, size: 1, "shares are not always equal"),
    ("12.2", options(share_weight, times=False), "multiply by it"),
    ("12.2", lambda count, rank, size: len(range(rank, count, size)), "divide by those of the batch"),
    ("12.2", lambda *case: 1 / share_weight(*case), "upside down"),
    ("12.2", options(share_weight, own=False), "the images left over are forgotten"),
    ("12.3", lambda g: g.square().mean((0, 1)).sqrt(), "so average first"),
    ("12.3", lambda g: g.square().mean(0).sqrt().mean(0), "their mean is not the score"),
    ("12.3", options(many_scores, first=lambda g: g.sum(1)), "the batch's gradient is their mean"),
    ("12.3", lambda g: many_scores(g).square(), "the root is missing"),
    ("12.3", lambda g: g.mean((0, 1)), "this keeps the sign"),
    ("12.3", lambda g: g.mean((0, 1)).abs(), "the sign goes before the mean"),
    ("12.3", lambda g: g[-1].mean(0).abs(), "only the last step"),
    ("12.3", options(many_scores, first=lambda g: g[:, 0]), "the first process's own"),
]


@pytest.mark.parametrize("number", RIGHT)
def test_a_right_answer_passes(number: str) -> None:
    feedback = exercises.check(number, RIGHT[number]())
    assert feedback, repr(feedback)
    assert repr(feedback) == f"{number} passed"


@pytest.mark.parametrize(("number", "answer", "sentence"), WRONG, ids=[f"{number}: {sentence}" for number, _, sentence in WRONG])
def test_a_wrong_answer_is_told_what_is_wrong(number: str, answer: Any, sentence: str) -> None:
    feedback = exercises.check(number, answer)
    assert not feedback
    assert re.search(sentence, feedback.problem or ""), feedback.problem
    assert feedback.hint is None


def test_a_run_by_macs(results: dict[tuple[float, str], sdap.Result]) -> None:
    assert exercises.check("5.3", results[0.4, "macs"])
    assert exercises.mark("5.3", results[0.6, "macs"]) == "the rate is the share that goes: this run keeps 40 %"
    assert exercises.mark("5.3", results[0.4, "params"]) == "the rate must be one of the MACs: here it counts the params"


def test_every_chapters_exercise_is_tested() -> None:
    numbers = {number for number in EXERCISES if number[0].isdigit()}
    assert numbers == {*RIGHT, "5.3"}
    assert numbers == {number for number, _, _ in WRONG}


def test_the_second_failure_brings_the_hint() -> None:
    first, second, third = (exercises.check("1.4", 19) for _ in range(3))
    assert first.hint is None
    assert second.hint == third.hint == EXERCISES["1.4"].hint
    assert repr(second) == f"{first!r}\nHint: {second.hint}"
    assert exercises.check("1.4", 10).hint is None
    assert exercises.check("1.4", 19).hint is None, "a right answer starts the count again"


def test_an_unknown_number_is_refused() -> None:
    with pytest.raises(ValueError, match=r"number must be one of 1\.1, .*, got '9\.9'"):
        exercises.check("9.9", 1)


def test_no_answer_yet() -> None:
    with pytest.raises(NotImplementedError, match=r"exercise 1\.1 has no answer yet"):
        exercises.check("1.1", ...)

    def stub(layers: list[nn.Module]) -> Tensor:
        raise NotImplementedError

    with pytest.raises(NotImplementedError):
        exercises.check("2.1", stub)


def test_a_check_leaves_the_random_numbers_alone() -> None:
    torch.manual_seed(7)
    wanted = torch.rand(3)
    torch.manual_seed(7)
    exercises.check("4.1", hot_gradient)
    assert torch.equal(torch.rand(3), wanted)


def test_compare_names_what_differs() -> None:
    assert compare(torch.tensor([1.0, 2.0]), [1, 2]) is None
    assert compare([2.0, 4.0], [1.0, 2.0]) == "all numbers are 2 times what they must be"
    assert compare([1.0, 3.0], [1.0, 2.0]) == "the answer is off by 1 in the worst place"
    assert compare(3, 2) == "the answer is off by 1"
    assert compare([[1], [2]], [1, 2]) == "the answer must be a number or a tensor, got a list"
    assert compare(10**400, 2) == "the answer must be a number or a tensor, got a int"


def test_each_answer_stands_in_its_chapters_module() -> None:
    for number, exercise in EXERCISES.items():
        chapter = number.split(".")[0]
        module = "assignment" if chapter == "A" else f"answers.chapter_{int(chapter):02}"
        assert exercise.check.__module__ == f"sdap_lite.teaching.{module}"


# The chapters ---------------------------------------------------------------------------------


def cells() -> Iterator[tuple[str, set[str], str]]:
    """Of every code cell of the book: notebook, tags, source."""
    for path in sorted(BOOK.glob("*.ipynb")):
        for cell in json.loads(path.read_text())["cells"]:
            if cell["cell_type"] == "code":
                yield path.stem, set(cell["metadata"].get("tags", [])), "".join(cell["source"])


CALL = re.compile(r'exercises\.check\("([\w.]+)"')
STUBS = {number: (name, tags, source) for name, tags, source in cells() if "exercise" in tags for number in CALL.findall(source)}


def test_every_exercise_has_a_stub_and_a_solution() -> None:
    solved = [number for _, tags, source in cells() if "solution" in tags for number in CALL.findall(source)]
    chapters = {number for number in EXERCISES if number[0].isdigit()}
    assert set(STUBS) == set(EXERCISES)
    assert sorted(solved) == sorted(chapters)
    assert all("assert sdap.exercises.check(" in source for _, tags, source in cells() if "solution" in tags and CALL.search(source))
    per_chapter = [sum(number.startswith(f"{chapter}.") for number in chapters) for chapter in sorted({n.split(".")[0] for n in chapters})]
    assert min(per_chapter) >= 3


@pytest.mark.parametrize("number", STUBS)
def test_a_stub_raises_until_it_is_filled(number: str) -> None:
    name, tags, source = STUBS[number]
    assert {"exercise", "raises-exception", "remove-output"} <= tags
    assert "# YOUR CODE" in source
    assert number.startswith("A.") or int(number.split(".")[0]) == int(name[:2])
    with pytest.raises(NotImplementedError):
        exec(source, {"sdap": sdap, "torch": torch, "nn": nn, "F": F, "copy": copy})


@pytest.mark.parametrize("page", ["for_lecturers", "is_it_right"])
def test_a_page_names_only_what_exists(page: str) -> None:
    text = (BOOK / f"{page}.md").read_text()
    for path in set(re.findall(r"\bsdap\.([a-z_]+(?:\.[a-z_]+)?)\(", text)):
        found: Any = sdap
        for name in path.split("."):
            found = getattr(found, name)


def test_the_lecturers_page_lists_every_exercise() -> None:
    rows = [line for line in (BOOK / "for_lecturers.md").read_text().splitlines() if re.match(r"\| \[\d+\]\(", line)]
    assert {number for row in rows for number in re.findall(r"\b\d+\.\d\b", row)} == {number for number in EXERCISES if number[0].isdigit()}
