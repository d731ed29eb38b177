"""MACs of whatever runs."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

__all__ = ["macs_of"]


def macs_of(run: Callable[..., Any], *args: Any, **kwargs: Any) -> int:
    """The multiply-accumulate operations of a call; attention is computed step by step, since fused into one operation it is not counted on a CPU."""
    with torch.no_grad(), sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        run(*args, **kwargs)
    return int(counter.get_total_flops()) // 2
