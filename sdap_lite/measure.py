"""What a network costs and what it is worth: parameters, MACs, latency, accuracy.

Chapter 1 measures with it, chapter 6 before and after surgery.
"""

from __future__ import annotations

import math
import time
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .copies import copied, in_mode
from .images import Images, Split, batches, check_set
from .tracing.counting import macs_of

__all__ = ["MODES", "Latency", "accuracy", "arrange", "best_device", "choose_mode", "count_macs", "count_params", "evaluating", "latency", "predict"]

#: The ways in which a network may run, each the type of its products and how its images lie in memory.
MODES: dict[str, tuple[torch.dtype, torch.memory_format]] = {
    "fp32": (torch.float32, torch.contiguous_format),
    "fp32-channels-last": (torch.float32, torch.channels_last),
    "bf16-channels-last": (torch.bfloat16, torch.channels_last),
}


@contextmanager
def evaluating(model: nn.Module) -> Iterator[nn.Module]:
    """The model in eval mode; afterwards each module has the mode again that it had."""
    modes = [(module, module.training) for module in model.modules()]
    try:
        yield in_mode(model, False)
    finally:
        for module, training in modes:
            module.training = training


def count_params(model: nn.Module) -> int:
    """The number of parameters, a shared one counted once.

    >>> count_params(nn.Linear(3, 2))
    8
    """
    return sum(p.numel() for p in model.parameters())


def count_macs(model: nn.Module, example: Tensor) -> int:
    """Multiply-accumulate operations of the convolutions and of all products of matrices: linear layers, attention (1 MAC = 2 FLOPs).

    Not of what PyTorch computes in one fused operation: an LSTM on the CPU, the fast path of ``nn.MultiheadAttention``.

    Args:
        model: any network.
        example: one input, batch size 1.

    >>> count_macs(nn.Linear(3, 2), torch.zeros(1, 3))
    6
    """
    with evaluating(model):
        return macs_of(model, example)


@dataclass(frozen=True)
class Latency:
    """How long one call takes, in milliseconds: the median, and the spread of the middle half."""

    median: float
    spread: float

    def __str__(self) -> str:
        return f"{self.median:.2f} ms ± {self.spread / 2:.2f}"


def latency(model: nn.Module, example: Tensor, *, threads: int = 1, seconds: float = 0.5) -> Latency:
    """Times a forward pass, after warming up.

    Args:
        model: any network; timed in eval mode.
        example: the input, shape [batch, channels, height, width].
        threads: CPU threads.
        seconds: how long to measure.
    """
    from torch.utils import benchmark  # slow to import

    timer = benchmark.Timer("model(example)", globals={"model": model, "example": example}, num_threads=threads)
    with evaluating(model), torch.no_grad():
        timer.timeit(3)  # caches fill, kernels are chosen
        measured = timer.blocked_autorange(min_run_time=seconds)
    return Latency(measured.median * 1e3, measured.iqr * 1e3)


def best_device() -> torch.device:
    """CUDA if it is there, else MPS, else the CPU."""
    if torch.cuda.is_available():
        return torch.device("cuda")
    return torch.device("mps" if torch.backends.mps.is_available() else "cpu")


def predict(model: nn.Module, split: Split, images: Images, *, mode: str = "fp32", batch_size: int | None = None) -> Tensor:
    """The logits of all images of a split: float32 of shape [n, classes], on the CPU.

    Args:
        model: any classifier.
        split: the images.
        images: the set, which says how images are normalised.
        mode: one of :data:`sdap_lite.measure.MODES`.
        batch_size: images a step.

    Raises:
        ValueError: there is no such mode, or the images are no set.
    """
    if mode not in MODES:
        raise ValueError(f"mode must be one of {', '.join(MODES)}, got {mode!r}")
    check_set(images)
    dtype, layout = MODES[mode]
    device = next(model.parameters(), torch.zeros(0)).device
    batch_size = batch_size or (64 if device.type == "cpu" else 512)  # what a CPU's caches hold goes through twice as fast
    logits = []
    with evaluating(model), torch.no_grad(), torch.autocast(device.type, torch.bfloat16, enabled=dtype != torch.float32):
        for x, _ in batches(split, batch_size, images):
            logits.append(model(x.to(device).to(memory_format=layout)).float().cpu())
    return torch.cat(logits)


def accuracy(model: nn.Module, images: Images, *, split: Split | None = None, mode: str = "fp32") -> float:
    """The share of images that the model names rightly, from 0 to 1.

    Args:
        model: any classifier.
        images: the set, which says how images are normalised.
        split: which of its images; default: the test images.
        mode: one of :data:`sdap_lite.measure.MODES`.

    Raises:
        ValueError: there is no such mode, or the images are no set.
    """
    check_set(images)
    split = images.test if split is None else split
    return float((predict(model, split, images, mode=mode).argmax(1) == split.labels.cpu()).double().mean())


def arrange(model: nn.Module, layout: torch.memory_format) -> nn.Module:
    """Lays the model's weights out in memory, in place; returns the model."""
    return model.to(memory_format=layout)  # type: ignore[call-overload]


def choose_mode(model: nn.Module, example: Tensor, *, steps: int = 3) -> str:
    """The fastest of :data:`sdap_lite.measure.MODES` for training this model on this machine, by a quick measurement.

    PyTorch's random state stays as it is, whatever the model draws.

    Args:
        model: stays as it is; a copy is trained, on the example's device.
        example: a batch, shape [batch, channels, height, width], on the device to train on.
        steps: training steps timed a mode, after one that warms up; a mode twice as slow as another gets only one.

    Returns:
        A key of :data:`sdap_lite.measure.MODES`, of those in which the model can be trained. On MPS always ``"fp32"``, the one
        mode that works on every version.
    """
    if example.device.type == "mps":
        return "fp32"
    no_bf16 = example.device.type == "cuda" and not torch.cuda.is_bf16_supported()
    times: dict[str, float] = {}
    for mode in MODES:
        if not (no_bf16 and mode.startswith("bf16")):
            try:
                with _same_random_state(example):
                    times[mode] = _time_steps(model, example, mode, steps, 2 * min(times.values(), default=math.inf))
            except RuntimeError:  # a view of what a convolution gives, say, asks for the layout of the first mode
                if mode == "fp32":
                    raise
    return min(times, key=times.__getitem__)


def check_mode(model: nn.Module, example: Tensor, mode: str) -> None:
    """That the model can be trained in a mode.

    Args:
        model: stays as it is.
        example: a batch, shape [batch, channels, height, width], on the device to train on.
        mode: one of :data:`sdap_lite.measure.MODES`.

    Raises:
        ValueError: a step of training fails in this mode.
    """
    try:
        with _same_random_state(example):
            _time_steps(model, example, mode, 1, math.inf)
    except RuntimeError as error:
        raise ValueError(f"mode must be one in which the model can be trained, but in {mode!r} a step fails: {error}; 'auto' leaves such modes out") from error


def _same_random_state(example: Tensor) -> AbstractContextManager[None]:
    """Afterwards PyTorch's random states are what they were, on the CPU and on the example's device."""
    return torch.random.fork_rng([example.device] if example.device.type == "cuda" else [])


def _time_steps(model: nn.Module, example: Tensor, mode: str, steps: int, hopeless: float) -> float:
    """The fastest of some training steps, in seconds; no more of them once one took longer than ``hopeless``."""
    dtype, layout = MODES[mode]
    model = arrange(in_mode(copied(model).to(example.device), True), layout)
    example = example.to(memory_format=layout)
    times = []
    for _ in range(steps + 1):
        start = time.perf_counter()
        with torch.autocast(example.device.type, torch.bfloat16, enabled=dtype != torch.float32):
            logits = model(example)
        F.cross_entropy(logits.float(), torch.zeros(len(example), dtype=torch.long, device=example.device)).backward()
        if example.device.type == "cuda":
            torch.cuda.synchronize()
        times.append(time.perf_counter() - start)
        if len(times) > 1 and times[-1] > hopeless:  # bf16 on a processor without it: ten times slower
            break
    return min(times[1:])
