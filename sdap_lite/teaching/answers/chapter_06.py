"""Answers to the exercises of chapter 6: surgery."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ...channels import trace
from ...measure import count_params
from ..comparing import compare, exercise, kind


def _block() -> Any:
    """Convolution, norm, depthwise convolution, norm, ReLU, convolution; as if it were trained, in float64."""
    block: Any = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.Conv2d(8, 8, 3, groups=8), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 4, 1))
    for norm in (block[1], block[3]):
        for values in (norm.bias, norm.running_mean):
            nn.init.normal_(values, 0.0, 0.5)
        for values in (norm.weight, norm.running_var):
            nn.init.uniform_(values, 0.5, 1.5)
    return block.double().eval()


@exercise("6.1", "Rows of [0], entries of [1] and [3] (with their running mean and variance), rows of [2] and its groups, columns of [5]; all on a deepcopy.")
def cut_a_block(answer: Callable[[nn.Sequential, Tensor], nn.Module]) -> str | None:
    """``cut(block, stay)``: the block without the channels that do not stay."""
    block, stay, x = _block(), torch.tensor([1, 0, 1, 1, 0, 1, 0, 1]).bool(), torch.randn(2, 3, 7, 7, dtype=torch.float64)
    before, masked = copy.deepcopy(block.state_dict()), copy.deepcopy(block)
    with torch.no_grad():
        masked[5].weight[:, ~stay] = 0
        small = answer(block, stay.clone())
        if not isinstance(small, nn.Module):
            return f"the answer must be a module, got {kind(small)}"
        after = block.state_dict()
        if any(before[key].shape != after[key].shape or not torch.equal(before[key], after[key]) for key in before):
            return "the given block has changed: cut a copy.deepcopy of it"
        wanted, sizes = count_params(block) - 3 * (9 * 3 + 1 + 2 + 9 + 1 + 2 + 4), {}
        for name, module in small.named_modules():
            sizes.update({f"{name}.{key}": len(value) for key, value in module.named_buffers(recurse=False) if key != "num_batches_tracked"})
        if any(size != 5 for size in sizes.values()):
            return f"running mean and variance have an entry for each channel, too; they have {sizes}"
        got = compare(small(x), masked(x), {"the first channels stay here: those must stay where the mask is True": _first_five(block)(x)}, tolerance=1e-8)
    if got is None and count_params(small) != wanted:
        return f"{wanted} parameters must be left, got {count_params(small)}"
    return got


def _first_five(block: Any) -> Any:
    """The block with its first five channels, whatever the mask: a mistake."""
    wrong = copy.deepcopy(block)
    wrong[5].weight[:, 5:] = 0
    return wrong


@exercise("6.2", "Put a zero into batch norm's formula, (0 - mean) / sqrt(variance + eps) * weight + bias, and the result into ReLU.")
def leak(answer: Callable[[nn.BatchNorm2d], Tensor]) -> str | None:
    """``leak(norm)``: the constant that ReLU lets through where a channel is written as zeros."""
    norm: Any = _block()[1]
    norm.running_var *= 1e-3  # so that eps counts
    mean, scale, deviation = norm.running_mean, norm.weight.detach(), (norm.running_var + norm.eps).sqrt()
    constant = norm.bias.detach() - scale * mean / deviation
    mistakes = {
        "ReLU comes after the norm: a negative constant does not pass": constant,
        "batch norm's shift is not all: the zero is also centred and scaled": norm.bias.relu(),
        "the sign of the running mean: batch norm subtracts it": (norm.bias + scale * mean / deviation).relu(),
        "divide by the standard deviation, the root of the variance": (norm.bias - scale * mean / (norm.running_var + norm.eps)).relu(),
        "eps is forgotten: the root is of variance + eps": (norm.bias - scale * mean / norm.running_var.sqrt()).relu(),
        "batch norm's scale is forgotten": (norm.bias - mean / deviation).relu(),
    }
    return compare(answer(norm), constant.relu(), mistakes)


@exercise(
    "6.3", "The means are x.mean((2, 3)), of shape [n, 16]; the weights become [n, 16, 1, 1] by [:, :, None, None] and multiply x before the last convolution."
)
def excite(answer: Any) -> str | None:
    """A network with a squeeze-and-excitation block, in the layers that the task names."""
    if not isinstance(answer, nn.Module):
        return f"hand in a network, such as Excite(), got {kind(answer)}"
    net: Any = copy.deepcopy(answer).double().eval()
    missing = [name for name in ("conv", "squeeze", "excite", "last") if not hasattr(net, name)]
    if missing:
        return f"the network must have the layers conv, squeeze, excite and last; missing: {', '.join(missing)}"
    image = torch.randn(3, 3, 12, 12, dtype=torch.float64)
    with torch.no_grad():
        x = net.conv(image)
        inner = F.relu(net.squeeze(x.mean((2, 3))))
        raw, got = net.excite(inner), net(image)
        weights = raw.sigmoid()[:, :, None, None]
        linear = net.excite(net.squeeze(x.mean((2, 3)))).sigmoid()[:, :, None, None]
        mistakes = {
            "the weights never reach the channels: multiply x by them": net.last(x),
            "the weights must lie between 0 and 1: the sigmoid is missing": net.last(x * raw[:, :, None, None]),
            "the ReLU between the two linear layers is missing": net.last(x * linear),
            "the weights are added: they must multiply x": net.last(x + weights),
        }
        wrong = compare(got, net.last(x * weights), mistakes)
    if wrong:
        return wrong
    tied = trace(net, image).groups["conv"].layers
    return None if "excite" in tied else f"the tracer must see conv and excite in one group, but this one holds {', '.join(tied)}"
