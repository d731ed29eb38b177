"""What a run is given, looked at before any work: each mistake is a sentence with the way out. Chapter 5."""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize
from torch.nn.utils.prune import BasePruningMethod

from .copies import copied, in_mode
from .graph import ChannelGraph
from .images import Images, check_set
from .measure import best_device, evaluating

__all__ = [
    "check_device",
    "check_gradients",
    "check_images",
    "check_model",
    "check_module",
    "check_number",
    "check_plain",
    "check_steady",
    "check_unwrapped",
    "plain",
    "undisturbed",
]

WRAPPERS = {"OptimizedModule": "_orig_mod", "DataParallel": "module", "DistributedDataParallel": "module", "FullyShardedDataParallel": "module"}
REMOVERS = {"WeightNorm": "remove_weight_norm", "SpectralNorm": "remove_spectral_norm"}  # of PyTorch's older norms of weights, which are hooks


def check_number(name: str, value: float, rule: str, holds: Callable[[float], bool]) -> None:
    """Raises ValueError unless ``value`` is a finite number for which the rule holds."""
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not math.isfinite(value) or not holds(value):
        raise ValueError(f"{name} must {rule}, got {value!r}")


def plain(value: Any) -> Any:
    """A number of numpy's as Python's own, as settings and checkpoints hold it; all else as it is."""
    return value.item() if isinstance(value, np.generic) else value


def check_device(device: str | torch.device | None) -> torch.device:
    """The device, if this PyTorch can compute on it; None: the best one.

    Raises:
        ValueError: it cannot.
    """
    if device is None:
        return best_device()
    try:
        torch.ones(1, device=device).item()
        return torch.device(device)
    except (RuntimeError, AssertionError, TypeError) as error:
        raise ValueError(f"device must be one that this PyTorch can compute on, got {str(device)!r}: {str(error).splitlines()[0]}") from error


def check_images(images: Images, validation: float) -> None:
    """Raises ValueError unless there is something to learn from the images, when a share of them is held out."""
    check_set(images)
    if len(images.train) < 4:
        raise ValueError(f"there must be at least 4 training images, got {len(images.train)}")
    held_out = max(1, round(validation * len(images.train))) if images.validation is None else 0
    if len(images.train) - held_out < 2:
        raise ValueError(f"validation must leave at least 2 of {len(images.train)} training images, got {validation}")
    seen = images.train.labels.unique().tolist()
    if len(seen) < 2:
        raise ValueError(f"the training images must be of at least 2 classes, but all are of class {images.classes[seen[0]]!r}")


def check_model(model: nn.Module, images: Images, what: str = "model", *, frozen: bool = False) -> int:
    """Raises ValueError unless the model classifies the images and can learn (a teacher may be frozen); returns its classes."""
    check_module(model, what)
    _check_tensors(model, what)
    if not any(p.requires_grad or frozen for p in model.parameters()):
        raise ValueError(f"the {what} must have parameters that require a gradient, but all are frozen (or there are none): call requires_grad_(True)")
    _check_numbers(model, what)
    shape = (1, *images.train.images.shape[1:])
    try:
        with evaluating(model), undisturbed(model), torch.no_grad():
            logits = model(torch.zeros(shape, device=next(model.parameters()).device))
    except Exception as error:  # what user code may raise
        raise ValueError(f"the {what} must take images of shape {list(shape)}, but: {error}") from error
    classes = len(images.classes)
    if not isinstance(logits, Tensor) or logits.ndim != 2 or logits.shape[1] < classes:
        found = list(logits.shape) if isinstance(logits, Tensor) else type(logits).__name__
        raise ValueError(f"the {what} must give logits of shape [n, {classes}], one for each class of {images.name}, got {found}")
    if not frozen:
        _check_training(model, what, shape)
    return logits.shape[1]


def check_steady(model: nn.Module, images: Images) -> None:
    """Raises ValueError where the model answers the same images differently in eval mode: surgery could never be checked."""
    with undisturbed(model), torch.no_grad():
        twin, x = in_mode(copied(model), False), _noise(model, images.train.images.shape[1:])
        before = torch.get_rng_state()
        first = twin(x.clone())  # a copy: a network may work in place on what it is given
        again = 1 if torch.equal(before, torch.get_rng_state()) else 10  # what is drawn may make a difference only at times
        rounding = 1e-4 * float(first.nan_to_num().abs().max())  # a GPU may add up in another order
        if not all(torch.allclose(first, twin(x.clone()), rtol=0, atol=rounding, equal_nan=True) for _ in range(again)):
            raise ValueError(
                "the model must give the same logits for the same images in eval mode, but does not: whatever is random in it must ask for "
                "self.training, as in F.dropout(x, 0.5, self.training)"
            )


def check_gradients(model: nn.Module, graph: ChannelGraph, images: Images) -> None:
    """Raises ValueError where no gradient can reach a group's gates: all would score zero, and the group would be emptied.

    Not where the gradient happens to be zero, as behind a norm that starts at zero; and a part must be out of reach in both modes,
    for in train mode it may have been skipped by chance.
    """
    reached: set[str] = set()
    consumers = {name: layer for name, layer in graph.layers.items() if layer.mixes}
    for training in (False, True):
        twin = in_mode(copied(model), training).requires_grad_(True)
        twin.zero_grad()
        try:
            with undisturbed(model):
                logits = twin(_noise(model, images.train.images.shape[1:]))
                if logits.requires_grad:
                    logits.sum().backward()
        except Exception:  # as in _check_training
            return
        reached |= {name for name in consumers if twin.get_parameter(f"{name}.weight").grad is not None}
    for name, group in graph.prunable.items():
        behind = [n for n, layer in consumers.items() if bool(((layer.columns >= group.start) & (layer.columns < group.stop)).any())]
        if behind and not reached.intersection(behind):
            raise ValueError(
                f"a gradient must reach the gates of every group, but none reaches those of {name!r} at {behind[0]!r}, as under torch.no_grad() "
                "or before a detach(): take that out, or give rule='frozen'"
            )


@contextmanager
def undisturbed(model: nn.Module) -> Iterator[None]:
    """Leaves all random states as they were, whatever the model draws from them."""
    python, numpy = random.getstate(), np.random.get_state()  # noqa: NPY002 - it is the model's code that may draw from it
    try:
        with torch.random.fork_rng(sorted({p.get_device() for p in model.parameters() if p.is_cuda})):
            yield
    finally:
        random.setstate(python)
        np.random.set_state(numpy)  # noqa: NPY002


def check_module(model: nn.Module, what: str = "model") -> None:
    """Raises ValueError unless it is a network, and not its class or its weights."""
    if not isinstance(model, nn.Module):
        raise ValueError(f"the {what} must be a torch.nn.Module, got {type(model).__name__}")


def check_unwrapped(model: nn.Module) -> None:
    """Raises ValueError unless the model is a network, and not one within another object whose names and code are its own."""
    check_module(model)
    kind = type(model).__name__
    if kind in WRAPPERS:
        raise ValueError(f"the model must be the network itself, but is wrapped in {kind}: give model.{WRAPPERS[kind]}")


def check_plain(model: nn.Module) -> None:
    """Raises ValueError where something around the layers would see other channels after surgery, or hide them."""
    check_unwrapped(model)
    _check_tensors(model, "model")
    if isinstance(model, torch.jit.ScriptModule):
        raise ValueError(f"the model must be Python code that torch.fx can read, but is a {type(model).__name__}: give the module that it was made from")
    for name, module in model.named_modules():
        if "forward" in vars(module) and type(module).__name__ not in WRAPPERS:  # a copy's would still be bound to the original, and no trace would show it
            raise ValueError(f"the model must have no forward of an instance's own, which surgery cannot copy, but {name!r} has: write it into a class")
        if parametrize.is_parametrized(module):
            found = ", ".join(module.parametrizations)
            raise ValueError(f"the model must have no gates or other parametrizations, but {name!r} has, on {found}: detach() or remove them first")
        if module._forward_hooks or module._forward_pre_hooks or module._backward_hooks or module._backward_pre_hooks:
            raise ValueError(f"the model must have no hooks, which may compute anything, but {name!r} has: {_way_out(module)} first")


# ---------------------------------------------------------------------------------------------


def _check_tensors(model: nn.Module, what: str) -> None:
    for name, tensor in [*model.named_parameters(), *model.named_buffers()]:
        if nn.parameter.is_lazy(tensor):
            raise ValueError(f"the {what} must have all its tensors, but {name!r} has no shape before a first call: run it once on an example")


def _way_out(module: nn.Module) -> str:
    """How a module's hooks are taken away."""
    for hook in module._forward_pre_hooks.values():
        if isinstance(hook, BasePruningMethod):
            return f"torch.nn.utils.prune.remove(module, {hook._tensor_name!r})"
        if type(hook).__name__ in REMOVERS:
            return f"torch.nn.utils.{REMOVERS[type(hook).__name__]}(module)"
    return "remove() them"


def _check_training(model: nn.Module, what: str, shape: tuple[int, ...]) -> None:
    """Some networks have further heads in train mode, and give more than logits."""
    try:
        with undisturbed(model), torch.no_grad():
            given = in_mode(copied(model), True)(_noise(model, shape[1:]))
    except Exception:  # it may want larger batches or another device: the first step will tell
        return
    if not isinstance(given, Tensor) or given.ndim != 2:
        found = list(given.shape) if isinstance(given, Tensor) else type(given).__name__
        raise ValueError(f"the {what} must return one tensor [n, classes] in train mode, too, got {found}: build it without further heads (aux_logits=False)")


def _noise(model: nn.Module, shape: tuple[int, ...]) -> Tensor:
    """Two images, on the model's device; always the same ones."""
    return torch.randn(2, *shape, generator=torch.Generator().manual_seed(0)).to(next(model.parameters()).device)


def _check_numbers(model: nn.Module, what: str) -> None:
    """float32, finite, and all on one device that holds numbers."""
    devices = sorted({str(p.device) for p in model.parameters()})
    if len(devices) > 1 or devices == ["meta"]:
        raise ValueError(f"the {what} must be on one device that holds numbers, got {' and '.join(devices)}")
    for name, p in model.named_parameters():
        if p.dtype != torch.float32:
            raise ValueError(f"the {what} must be float32 (mixed precision is chosen by mode=), got {p.dtype} in {name!r}")
    trained = dict(model.named_parameters())
    for name, tensor in model.state_dict().items():
        if not isinstance(tensor, Tensor):
            raise ValueError(f"the {what}'s state must be tensors, but {name!r} is a {type(tensor).__name__}: take get_extra_state out of the class")
        if bool(torch.isnan(tensor).any()) or (name in trained and bool(torch.isinf(tensor).any())):  # a buffer may hold infinity: a mask
            raise ValueError(f"the {what} must hold finite numbers, but there is NaN or infinity in {name!r}")
