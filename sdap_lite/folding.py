r"""Batch norms that are part of the convolutions before them: a teacher that costs less. Chapter 5.

In eval mode a batch norm multiplies each channel by a number and adds another. The convolution
before it can do both: :math:`\gamma\,(Wx + b - \mu)/\sigma + \beta = (\gamma W/\sigma)\,x + (\gamma(b-\mu)/\sigma + \beta)`.
"""

from __future__ import annotations

from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

from .copies import copied, in_mode

__all__ = ["fold_norms"]

TOLERANCE = 1e-10  # in float64, relative to the largest number where that is above 1


def fold_norms(model: nn.Module, example: Tensor) -> nn.Module:
    """A copy for inference, in which each batch norm that follows a convolution is folded into it.

    Both are run in float64 and compared. Where they differ (the network reads a convolution's
    output elsewhere, too), the copy keeps its norms.

    Args:
        model: stays as it is.
        example: a batch of inputs, whose numbers do not matter; random ones of its shape are compared.

    Returns:
        A copy in eval mode, without gradients; norms that were folded are ``nn.Identity``.

    >>> net = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU())
    >>> fold_norms(net, torch.zeros(2, 3, 8, 8))[1]
    Identity()
    """
    plain = in_mode(copied(model), False).requires_grad_(False)
    exact = copied(plain).cpu().double()
    x = torch.randn(example.shape, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        try:
            wanted, pairs = _pairs(exact, x)
        except RuntimeError:  # code of its own that works in one type of numbers only
            return plain
        for conv, norm in pairs:
            folded = fuse_conv_bn_eval(cast(nn.Conv2d, exact.get_submodule(conv)), cast(nn.BatchNorm2d, exact.get_submodule(norm)))
            exact.set_submodule(conv, folded)
            exact.set_submodule(norm, nn.Identity().eval())
        if float((exact(x) - wanted).abs().max()) > TOLERANCE * max(1.0, float(wanted.abs().max())):
            return plain
    like = next(plain.parameters())
    return exact.to(like.device, like.dtype)


def _pairs(model: nn.Module, x: Tensor) -> tuple[Tensor, list[tuple[str, str]]]:
    """The output, and the names of each convolution and the norm that was given its output; each called once."""
    made: list[tuple[str, Tensor]] = []
    found: list[tuple[str, str]] = []
    calls: list[str] = []

    def remember(name: str) -> Any:
        def hook(module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
            calls.append(name)
            if isinstance(module, nn.Conv2d):
                made.append((name, output))
            else:
                found.extend((conv, name) for conv, tensor in made if tensor is inputs[0])

        return hook

    modules = {name: module for name, module in model.named_modules() if _folds(module)}
    handles = [module.register_forward_hook(remember(name)) for name, module in modules.items()]
    output = model(x)
    for handle in handles:
        handle.remove()
    return output, [pair for pair in found if all(calls.count(name) == 1 for name in pair)]


def _folds(module: nn.Module) -> bool:
    """Whether it is a convolution with a weight of its own, or a batch norm with running statistics."""
    if isinstance(module, nn.BatchNorm2d):
        return module.running_mean is not None and module.weight is not None
    return isinstance(module, nn.Conv2d) and "weight" in module._parameters
