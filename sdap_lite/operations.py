"""The operations that the tracer knows, by what they do with channels. Tables, nothing else.

An operation that stands in none of them keeps its channels (:mod:`sdap_lite.channels`).
"""

from __future__ import annotations

import operator
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn


def _of(home: object, names: str) -> set[Any]:
    return {getattr(home, name) for name in names.split()}


_POOLS = " ".join(f"{kind}Pool{d}d" for kind in ("Max", "Avg", "AdaptiveAvg", "AdaptiveMax") for d in (1, 2, 3))

# Each value on its own, or values at the same place together.
_ACTIVATIONS = """
    Threshold ReLU ReLU6 LeakyReLU ELU CELU SELU GELU SiLU Mish Hardswish Hardsigmoid Hardtanh Sigmoid Tanh
    Softplus Softsign LogSigmoid Identity Dropout Dropout1d Dropout2d Dropout3d AlphaDropout
"""
_FUNCTIONS = """
    relu relu6 leaky_relu elu selu gelu silu mish hardswish hardsigmoid hardtanh sigmoid tanh softplus
    dropout dropout2d
"""
ELEMENTWISE_MODULES = tuple(_of(nn, _ACTIVATIONS))
ELEMENTWISE = _of(F, _FUNCTIONS)
ELEMENTWISE |= _of(torch, "relu sigmoid tanh exp abs sqrt clamp add sub mul div maximum minimum pow")
ELEMENTWISE |= _of(operator, "neg add sub mul truediv pow iadd imul isub")
ELEMENTWISE_METHODS = set(
    """
    relu relu_ sigmoid sigmoid_ tanh clamp exp abs sqrt add add_ sub mul mul_ div neg pow
    contiguous clone detach float double half to
    """.split()
)

# Each channel's image on its own.
PER_CHANNEL_MODULES = tuple(_of(nn, f"{_POOLS} LPPool2d Upsample UpsamplingNearest2d UpsamplingBilinear2d ZeroPad2d ReflectionPad2d ReplicationPad2d"))
PER_CHANNEL = _of(F, "max_pool2d avg_pool2d adaptive_avg_pool2d adaptive_max_pool2d interpolate") | {torch.max_pool2d}
NORM_MODULES = tuple(_of(nn, "BatchNorm1d BatchNorm2d BatchNorm3d InstanceNorm1d InstanceNorm2d InstanceNorm3d"))

# Values change their place only: done to the labels as to the values.
MOVING_MODULES = tuple(_of(nn, "Flatten PixelShuffle PixelUnshuffle ChannelShuffle Unflatten"))
MOVING = _of(torch, "flatten reshape permute transpose squeeze unsqueeze chunk split stack roll flip")
MOVING |= _of(F, "pad pixel_shuffle pixel_unshuffle") | {operator.getitem}
MOVING_METHODS = set("flatten reshape view permute transpose squeeze unsqueeze chunk split expand repeat roll flip".split())
JOINING = {torch.cat, torch.concat}

# Some axes vanish.
REDUCING = _of(torch, "mean sum amax amin")
REDUCING_METHODS = {"mean", "sum", "amax", "amin"}

# What a module of these classes does is known, unless its forward was replaced.
FORWARDS = {c.forward for c in (nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d, nn.Linear)}
