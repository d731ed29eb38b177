"""The network teaches itself: the loss of a student that follows its own unpruned self. Chapter 4."""

from __future__ import annotations

import torch  # noqa: F401 - the docstring's example
import torch.nn.functional as F
from torch import Tensor

__all__ = ["distillation_loss"]


ALPHA = 0.5  # the teacher's share: as good as 0.9 on two networks, better on a third: chapters 10 and 11


def distillation_loss(student: Tensor, teacher: Tensor, labels: Tensor, *, temperature: float = 4.0, alpha: float = ALPHA) -> Tensor:
    r"""Cross-entropy with the labels, mixed with the divergence from the teacher.

    .. math:: L = (1-\alpha)\,\mathrm{CE}(z_s, y) + \alpha T^2\,\mathrm{KL}(p_t^T \,\|\, p_s^T)

    Hinton et al. 2015. The factor :math:`T^2` keeps the second term's gradient the same size at
    every temperature. Equal logits give a divergence of 0.

    Args:
        student: logits, shape [n, classes].
        teacher: logits of the same shape; no gradient flows into them.
        labels: int64, shape [n].
        temperature: T; above 1 it shows which wrong classes the teacher finds likely.
        alpha: the teacher's share, from 0 (labels only) to 1 (teacher only).

    Returns:
        A scalar, the mean over the batch.

    Raises:
        ValueError: shapes differ, or a number is out of its range.

    >>> z = torch.tensor([[2.0, 0.0, -1.0]])
    >>> distillation_loss(z, z, torch.tensor([0]), alpha=1.0).item()
    0.0
    """
    if student.shape != teacher.shape or student.ndim != 2:
        raise ValueError(f"student and teacher must be logits of the same shape [n, classes], got {list(student.shape)} and {list(teacher.shape)}")
    if not temperature > 0:
        raise ValueError(f"temperature must be above 0, got {temperature!r}")
    if not 0 <= alpha <= 1:
        raise ValueError(f"alpha must lie between 0 and 1, got {alpha!r}")
    log_student = F.log_softmax(student / temperature, dim=1)
    log_teacher = F.log_softmax(teacher.detach() / temperature, dim=1)
    divergence = F.kl_div(log_student, log_teacher, reduction="batchmean", log_target=True)
    return (1 - alpha) * F.cross_entropy(student, labels) + alpha * temperature**2 * divergence
