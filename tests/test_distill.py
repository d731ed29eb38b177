"""The loss of a student that follows its teacher."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from sdap_lite import distillation_loss


def logits(seed: int, n: int = 6, classes: int = 5, scale: float = 3.0) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    student, teacher = (scale * torch.randn(n, classes, generator=generator, dtype=torch.float64) for _ in range(2))
    return student, teacher, torch.randint(0, classes, (n,), generator=generator)


@given(seed=st.integers(0, 10**6), temperature=st.floats(0.5, 20), alpha=st.floats(0, 1))
def test_loss_by_hand(seed: int, temperature: float, alpha: float) -> None:
    """The formula, written with lists and logarithms only."""
    student, teacher, labels = logits(seed)

    def softmax(row: list[float], t: float) -> list[float]:
        powers = [math.exp((v - max(row)) / t) for v in row]
        return [p / sum(powers) for p in powers]

    total = 0.0
    for s, t, y in zip(student.tolist(), teacher.tolist(), labels.tolist(), strict=True):
        p, q = softmax(t, temperature), softmax(s, temperature)
        divergence = sum(a * math.log(a / b) for a, b in zip(p, q, strict=True) if a > 0)
        total += (1 - alpha) * -math.log(softmax(s, 1.0)[y]) + alpha * temperature**2 * divergence
    found = distillation_loss(student, teacher, labels, temperature=temperature, alpha=alpha)
    assert found.ndim == 0
    assert float(found) == pytest.approx(total / len(labels), rel=1e-6, abs=1e-9)


@given(seed=st.integers(0, 10**6), temperature=st.floats(0.5, 20))
def test_equal_logits_diverge_by_zero(seed: int, temperature: float) -> None:
    student, _, labels = logits(seed)
    student.requires_grad_()
    loss = distillation_loss(student, student, labels, temperature=temperature, alpha=1.0)
    assert float(loss.detach()) == pytest.approx(0, abs=1e-12)
    loss.backward()
    assert student.grad is not None
    assert float(student.grad.abs().max()) < 1e-12, "no gradient where the student agrees"


@given(seed=st.integers(0, 10**6), temperature=st.floats(0.5, 20))
def test_divergence_is_not_negative(seed: int, temperature: float) -> None:
    student, teacher, labels = logits(seed)
    assert float(distillation_loss(student, teacher, labels, temperature=temperature, alpha=1.0)) >= 0


def test_alpha_zero_is_cross_entropy() -> None:
    student, teacher, labels = logits(0)
    torch.testing.assert_close(distillation_loss(student, teacher, labels, alpha=0.0), F.cross_entropy(student, labels))


def test_alpha_one_ignores_labels() -> None:
    student, teacher, labels = logits(0)
    found = [distillation_loss(student, teacher, y, alpha=1.0) for y in (labels, labels.roll(1))]
    assert torch.equal(*found)


@given(seed=st.integers(0, 10**6))
def test_gradient_keeps_its_size_at_every_temperature(seed: int) -> None:
    """For high temperatures it is (z_s - z_t) / classes, less the means; without the factor T^2 it would vanish."""
    student, teacher, labels = logits(seed, scale=1.0)
    student.requires_grad_()
    sizes = []
    for temperature in (8.0, 64.0, 512.0):
        (gradient,) = torch.autograd.grad(distillation_loss(student, teacher, labels, temperature=temperature, alpha=1.0), student)
        sizes.append(float(gradient.norm()))
    assert sizes == pytest.approx([sizes[-1]] * 3, rel=0.3)
    difference = (student - teacher).detach()
    difference -= difference.mean(1, keepdim=True)
    torch.testing.assert_close(gradient, difference / 5 / len(labels), rtol=0.05, atol=1e-3)


def test_mean_over_the_batch_and_not_over_the_classes() -> None:
    student, teacher, labels = logits(0)
    once = distillation_loss(student, teacher, labels)
    twice = distillation_loss(*(torch.cat([t, t]) for t in (student, teacher, labels)))
    torch.testing.assert_close(once, twice)


def test_no_gradient_flows_into_the_teacher() -> None:
    student, teacher, labels = logits(0)
    teacher.requires_grad_()
    student.requires_grad_()
    distillation_loss(student, teacher, labels).backward()
    assert teacher.grad is None
    assert student.grad is not None


def test_far_apart_logits_stay_finite() -> None:
    student = torch.tensor([[1e4, 0.0, -1e4]])
    assert torch.isfinite(distillation_loss(student, student.flip(1), torch.tensor([2])))


@pytest.mark.parametrize("shapes", [((4, 5), (4, 6)), ((4, 5), (3, 5)), ((5,), (5,)), ((4, 5, 2), (4, 5, 2))])
def test_wrong_shapes_are_refused(shapes: tuple[tuple[int, ...], tuple[int, ...]]) -> None:
    with pytest.raises(ValueError, match=r"student and teacher must be logits of the same shape \[n, classes\], got \["):
        distillation_loss(torch.zeros(shapes[0]), torch.zeros(shapes[1]), torch.zeros(4, dtype=torch.long))


@pytest.mark.parametrize("temperature", [0.0, -1.0, math.nan])
def test_wrong_temperature_is_refused(temperature: float) -> None:
    with pytest.raises(ValueError, match=r"temperature must be above 0, got"):
        distillation_loss(*logits(0), temperature=temperature)


@pytest.mark.parametrize("alpha", [-0.1, 1.1, math.nan])
def test_wrong_alpha_is_refused(alpha: float) -> None:
    with pytest.raises(ValueError, match=r"alpha must lie between 0 and 1, got"):
        distillation_loss(*logits(0), alpha=alpha)
