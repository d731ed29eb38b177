"""The operations that the tracer knows, by what they do with channels. Tables, nothing else.

An operation that stands in none of them keeps its channels (:mod:`sdap_lite.channels`).
"""

from __future__ import annotations

import operator

import torch
import torch.nn.functional as F
from torch import nn

# Each value on its own, or values at the same place together.
_each = "Threshold ReLU ReLU6 LeakyReLU ELU CELU SELU GELU SiLU Mish Hardswish Hardsigmoid Hardtanh Sigmoid Tanh Softplus Softsign LogSigmoid "
ELEMENTWISE_MODULES = tuple(getattr(nn, name) for name in (_each + "Identity Dropout Dropout1d Dropout2d Dropout3d AlphaDropout").split())
_dims = [f"{kind}Pool{d}d" for kind in ("Max", "Avg", "AdaptiveAvg", "AdaptiveMax") for d in (1, 2, 3)]
PER_CHANNEL_MODULES = tuple(getattr(nn, n) for n in [*_dims, "LPPool2d", "Upsample", "UpsamplingNearest2d", "UpsamplingBilinear2d", "ZeroPad2d", "ReflectionPad2d", "ReplicationPad2d"])
NORM_MODULES = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, nn.InstanceNorm1d, nn.InstanceNorm2d, nn.InstanceNorm3d)
MOVING_MODULES = (nn.Flatten, nn.PixelShuffle, nn.PixelUnshuffle, nn.ChannelShuffle, nn.Unflatten)

_names = "relu relu6 leaky_relu elu selu gelu silu mish hardswish hardsigmoid hardtanh sigmoid tanh softplus dropout dropout2d"
ELEMENTWISE = {getattr(F, name) for name in _names.split()} | {torch.relu, torch.sigmoid, torch.tanh, torch.exp, torch.abs, torch.sqrt, torch.clamp, operator.neg}
ELEMENTWISE |= {torch.add, torch.sub, torch.mul, torch.div, torch.maximum, torch.minimum, torch.pow}
ELEMENTWISE |= {operator.add, operator.sub, operator.mul, operator.truediv, operator.pow, operator.iadd, operator.imul, operator.isub}
ELEMENTWISE_METHODS = set("relu relu_ sigmoid sigmoid_ tanh clamp exp abs sqrt add add_ sub mul mul_ div neg pow contiguous clone detach float double half to".split())
PER_CHANNEL = {F.max_pool2d, F.avg_pool2d, F.adaptive_avg_pool2d, F.adaptive_max_pool2d, F.interpolate, torch.max_pool2d}
MOVING = {torch.flatten, torch.reshape, torch.permute, torch.transpose, torch.squeeze, torch.unsqueeze, torch.chunk, torch.split}
MOVING |= {F.pad, F.pixel_shuffle, F.pixel_unshuffle, torch.stack, torch.roll, torch.flip, operator.getitem}
MOVING_METHODS = set("flatten reshape view permute transpose squeeze unsqueeze chunk split expand repeat roll flip".split())
JOINING = {torch.cat, torch.concat}
REDUCING = {torch.mean, torch.sum, torch.amax, torch.amin}
REDUCING_METHODS = {"mean", "sum", "amax", "amin"}


FORWARDS = {c.forward for c in (nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d, nn.Linear)}
