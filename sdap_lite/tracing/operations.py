"""The operations that the tracer knows, by what they do with channels. Tables, nothing else.

An operation that stands in none of them keeps its channels (:mod:`sdap_lite.tracing.labeller`).
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
_PADS = " ".join(f"{kind}Pad{d}d" for kind in ("Zero", "Constant", "Reflection", "Replication", "Circular") for d in (1, 2, 3))

# Each value on its own, or values at the same place together.
_ACTIVATIONS = """
    Threshold ReLU ReLU6 RReLU LeakyReLU ELU CELU SELU GELU SiLU Mish Hardswish Hardsigmoid Hardtanh Hardshrink Softshrink Tanhshrink
    Sigmoid Tanh Softplus Softsign LogSigmoid Identity Dropout Dropout1d Dropout2d Dropout3d AlphaDropout FeatureAlphaDropout
"""
_FUNCTIONS = """
    threshold relu relu_ relu6 rrelu leaky_relu leaky_relu_ elu elu_ celu celu_ selu selu_ gelu silu mish hardswish hardsigmoid hardtanh hardtanh_
    hardshrink softshrink tanhshrink sigmoid tanh softplus softsign logsigmoid
    dropout dropout1d dropout2d dropout3d alpha_dropout feature_alpha_dropout
"""
_MATHS = """
    abs absolute acos acosh addcdiv addcmul arctan asin asinh atan atan2 atanh add ceil clamp clamp_max clamp_min clip clone copysign cos cosh
    div eq erf erfc exp exp2 expm1 floor floor_divide fmax fmin fmod frac ge gt hypot
    isfinite isinf isnan le lerp log log10 log1p log2 logaddexp logical_and logical_not logical_or logical_xor logit lt masked_fill maximum minimum mul
    nan_to_num ne neg pow reciprocal relu remainder round rsqrt sigmoid sign sin sinh sqrt square sub tan tanh trunc where
    empty_like full_like ones_like rand_like randn_like zeros_like
"""
ELEMENTWISE_MODULES = tuple(_of(nn, _ACTIVATIONS))
ELEMENTWISE = _of(F, _FUNCTIONS) | _of(torch, _MATHS) | _of(torch, "sigmoid_ tanh_ true_divide multiply subtract divide celu selu threshold")
ELEMENTWISE |= _of(operator, "neg pos add sub mul truediv floordiv mod pow iadd imul isub itruediv abs gt lt ge le eq ne and_ or_ xor invert")
ELEMENTWISE_METHODS = {
    *_MATHS.replace("empty_like full_like ones_like rand_like randn_like zeros_like", "").split(),
    *"relu_ sigmoid_ tanh_ add_ sub_ mul_ div_ clamp_ exp_ neg_ masked_fill_ copy_ fill_ zero_ expand_as".split(),
    *"contiguous detach float double half bfloat16 bool int long cpu to type type_as".split(),
}
ELEMENTWISE_ATTRIBUTES = {"data"}
KINDS = {"dtype", "device", "is_cuda", "ndim"}  # of a tensor: what no channel has a part in
FIRST_ONLY = {"to", "type_as"}  # a second tensor gives its type, and no channel
# Functions of other packages, by the names that torch.fx writes down; the packages need not be there.
ELEMENTWISE_NAMES = {("torchvision.ops.stochastic_depth", "stochastic_depth"), ("torchvision.ops.drop_block", "drop_block2d")}
MOVING_NAMES = {("einops.einops", "rearrange"), ("einops.einops", "repeat"), ("einops.layers.torch", "Rearrange")}
REDUCING_NAMES = {("einops.einops", "reduce")}
# A new tensor of a size that is given; the tensor says only where it lies and of which type it is.
CREATING_METHODS = {"new_zeros", "new_ones", "new_full", "new_empty"}

# Each channel's image on its own.
PER_CHANNEL_MODULES = tuple(_of(nn, f"{_POOLS} {_PADS} LPPool1d LPPool2d Upsample UpsamplingNearest2d UpsamplingBilinear2d"))
_POOL_FUNCTIONS = " ".join(f"{kind}_pool{d}d" for kind in ("max", "avg", "adaptive_avg", "adaptive_max") for d in (1, 2, 3))
PER_CHANNEL = _of(F, f"{_POOL_FUNCTIONS} lp_pool1d lp_pool2d interpolate upsample") | _of(torch, "max_pool1d max_pool2d max_pool3d")

PER_CHANNEL |= _of(F, "max_pool1d_with_indices max_pool2d_with_indices max_pool3d_with_indices")
UNPOOLING_MODULES = tuple(_of(nn, "MaxUnpool1d MaxUnpool2d MaxUnpool3d"))
UNPOOLING = _of(F, "max_unpool1d max_unpool2d max_unpool3d")

NORM_MODULES = tuple(_of(nn, "BatchNorm1d BatchNorm2d BatchNorm3d SyncBatchNorm InstanceNorm1d InstanceNorm2d InstanceNorm3d"))
NORMS = _of(F, "batch_norm instance_norm prelu") | {torch.prelu}  # with one parameter a channel

# Norms over the last axes, as many as the second argument names.
LAYER_NORM_MODULES = (nn.LayerNorm, nn.RMSNorm)
LAYER_NORMS = _of(F, "layer_norm rms_norm")

# Values along some axes together, of which the arguments speak: shape stays.
ALONG = _of(F, "softmax log_softmax softmin normalize") | _of(torch, "softmax log_softmax cumsum cumprod")
ALONG_METHODS = {"softmax", "log_softmax", "cumsum", "cumprod"}

# Values along one axis in their order, or some of them: the axis that the argument at this place names, or the last. They come with their places.
ORDERING: dict[Any, int] = {torch.sort: 1, torch.topk: 2, torch.kthvalue: 2, "sort": 1, "topk": 2, "kthvalue": 2}

# Values change their place only: done to the labels as to the values.
MOVING_MODULES = tuple(_of(nn, "Flatten PixelShuffle PixelUnshuffle ChannelShuffle Unflatten"))
_MOVES = "flatten reshape permute transpose swapaxes movedim squeeze unsqueeze chunk split tensor_split hsplit vsplit narrow select roll flip unbind"
MOVING = _of(torch, f"{_MOVES} repeat_interleave channel_shuffle pixel_shuffle pixel_unshuffle broadcast_to tile")
MOVING |= _of(F, "pad pixel_shuffle pixel_unshuffle channel_shuffle") | {operator.getitem}
MOVING_METHODS = {*_MOVES.split(), *"view expand repeat unflatten view_as reshape_as broadcast_to tile repeat_interleave".split()}
JOINING = {torch.cat, torch.concat, torch.concatenate}

# Some axes vanish: those that the argument at this place names.
_REDUCE = "mean nanmean sum nansum amax amin var std logsumexp max min median nanmedian prod argmax argmin any all var_mean std_mean"
REDUCING = {**dict.fromkeys(_of(torch, _REDUCE), 1), torch.norm: 2, torch.linalg.vector_norm: 2, torch.quantile: 2}
REDUCING_METHODS = {**dict.fromkeys(_REDUCE.replace("var_mean std_mean", "").split(), 1), "norm": 2, "quantile": 2}

# Numbers and not tensors.
ASKING_METHODS = {"size", "dim", "numel", "ndimension", "stride", "is_contiguous", "element_size", "nelement"}

# What a module of these classes does is known, unless its forward was replaced.
FORWARDS = {c.forward for c in (nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d, nn.Linear)}

# The same computed by a subclass's own code, a function of the module's own weight and bias: the module's class, and the arguments' names.
_SLIDING = "input weight bias stride padding dilation groups"
_TRANSPOSED = "input weight bias stride padding output_padding groups dilation"
WEIGHTED: dict[Any, tuple[type[nn.Module], list[str]]] = {
    F.linear: (nn.Linear, "input weight bias".split()),
    F.group_norm: (nn.GroupNorm, "input num_groups weight bias".split()),
    **{getattr(F, f"conv{d}d"): (getattr(nn, f"Conv{d}d"), _SLIDING.split()) for d in (1, 2, 3)},
    **{getattr(F, f"conv_transpose{d}d"): (getattr(nn, f"ConvTranspose{d}d"), _TRANSPOSED.split()) for d in (1, 2, 3)},
}
