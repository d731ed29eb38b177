"""One run on several devices: each process takes its share of every batch, and all decide alike. Chapter 12.

    accelerate launch my_pruning.py        # or: torchrun --nproc-per-node 8 my_pruning.py

The same :func:`sdap_lite.prune` notices that it is one of several processes. Accelerate sets up the
process group and each one's device, and DDP averages the weights' gradients; here is what pruning
needs beyond that: the gates' gradients are averaged too, so that scores, threshold and masks are the
same on all, and surgery happens on all at the same step. The batch size is that of all together.
"""

from __future__ import annotations

import copy
import os
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from .measure import evaluating

__all__ = ["Team", "team"]

T = TypeVar("T")


class Team:
    """A single process: nothing is shared, and nothing is waited for.

    Attributes:
        rank: which of the processes this is, from 0 on; the first one writes files and shows progress.
        size: how many there are.
    """

    rank, size = 0, 1

    def share(self, batch: Tensor) -> Tensor:
        """This process's part of a batch that all have drawn alike."""
        return batch

    def weight(self, count: int) -> float:
        """What a mean over ``share(batch)`` must be multiplied by, so that the mean over processes is that over all ``count`` images."""
        return 1.0

    def mean(self, value: Tensor) -> Tensor:
        """The mean over all processes."""
        return value

    def agree(self, value: T) -> T:
        """The first process's value: for what is measured, and may come out differently on each."""
        return value

    def wrap(self, model: nn.Module, example: Tensor | None = None) -> nn.Module:
        """The model as it is called in training, so that gradients are means over all processes.

        Args:
            model: any network.
            example: an input, shape [n, channels, height, width]; without it each parameter must get a gradient.
        """
        return model

    def settle(self, model: nn.Module) -> None:
        """Averages the model's running statistics, in place, so that it is the same network everywhere."""

    def wait(self) -> None:
        """Goes on when all processes are here."""


class _Many(Team):
    """One of several processes."""

    def __init__(self, device: torch.device) -> None:
        try:
            from accelerate import Accelerator
        except ImportError as error:
            raise ImportError("a run on several devices needs the package accelerate: pip install accelerate") from error
        # Mixed precision is chosen by mode=, so Accelerate's own stays off, whatever its configuration says.
        self.accelerator = Accelerator(cpu=device.type == "cpu", mixed_precision="no")
        self.rank, self.size = self.accelerator.process_index, self.accelerator.num_processes
        self.wrapped: tuple[nn.Module, nn.Module] | None = None

    def share(self, batch: Tensor) -> Tensor:
        return batch[self.rank :: self.size]

    def weight(self, count: int) -> float:
        return len(range(self.rank, count, self.size)) * self.size / count

    def mean(self, value: Tensor) -> Tensor:
        return self.accelerator.reduce(value, reduction="mean")

    def agree(self, value: T) -> T:
        from accelerate.utils import broadcast_object_list

        found: list[Any] = broadcast_object_list([value])
        return found[0]

    def wrap(self, model: nn.Module, example: Tensor | None = None) -> nn.Module:
        if self.wrapped is None or self.wrapped[0] is not model:
            twin = _twin(model)
            if self.accelerator.device.type == "cuda":  # PyTorch has it for GPUs only
                twin = nn.SyncBatchNorm.convert_sync_batchnorm(twin)
            idle = self.agree(example is not None and _has_idle(model, example))  # only then, since looking for them costs time each step
            self.wrapped = model, nn.parallel.DistributedDataParallel(twin, broadcast_buffers=False, find_unused_parameters=idle)
        return self.wrapped[1].train(model.training)

    def settle(self, model: nn.Module) -> None:
        with torch.no_grad():
            for buffer in model.buffers():
                if buffer.is_floating_point():
                    buffer.copy_(self.mean(buffer.clone()))

    def wait(self) -> None:
        self.accelerator.wait_for_everyone()


def team(device: torch.device) -> Team:
    """The processes that a launcher started together with this one, which it may have started alone.

    Args:
        device: the kind that the run is for.

    Raises:
        ImportError: there are several, and Accelerate is not installed.

    >>> team(torch.device("cpu")).size
    1
    """
    return _Many(device) if int(os.environ.get("WORLD_SIZE", "1")) > 1 else Team()


def _has_idle(model: nn.Module, example: Tensor) -> bool:
    """Whether there are parameters without a gradient, such as those of a layer that is never called: DDP would wait for it."""
    trained = [p for p in model.parameters() if p.requires_grad]
    with evaluating(model):  # which leaves running statistics as they are
        gradients = torch.autograd.grad(model(example[:1].clone()).sum(), trained, allow_unused=True)
    return any(gradient is None for gradient in gradients)


def _twin(model: nn.Module) -> nn.Module:
    """A copy with the very same parameters and buffers, whose modules may be exchanged while the model's stay plain."""
    memo: dict[int, Any] = {id(tensor): tensor for tensor in [*model.parameters(), *model.buffers()]}
    for module in model.modules():
        gates = getattr(module, "gates", None)  # a parametrization's: both act by the same masks
        if isinstance(gates, tuple):
            memo[id(gates)] = gates
    return copy.deepcopy(model, memo)
