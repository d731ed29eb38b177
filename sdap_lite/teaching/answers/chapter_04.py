"""Answers to the exercises of chapter 4: self-distillation."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ...distill import distillation_loss
from ..comparing import compare, exercise, kind


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
        return f"the answer must be a tensor of shape {list(z.shape)}, as the logits, got {list(got.shape) if isinstance(got, Tensor) else kind(got)}"
    mistakes = {
        "the temperature is forgotten: both the probabilities and the way back need it": (even(1.0).log() / T).softmax(1),
        "the way back forgets the temperature: T * log(p)": (even(T).log() / T).softmax(1),
        "the rest is shared by the *other* classes: one less than all": even(T, 6) / even(T, 6).sum(1, keepdim=True),
        "the number of classes is z.shape[1], not that of the chapter's images": even(T, 9) / even(T, 9).sum(1, keepdim=True),
        "this is still the teacher's own answer": (z / T).softmax(1),
    }
    return compare((got / T).softmax(1), even(T), mistakes, tolerance=1e-4)
