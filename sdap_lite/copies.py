"""Copies of a network: quick, and also of one whose code keeps activations."""

from __future__ import annotations

import copy
from collections import OrderedDict
from typing import Any, TypeVar

import torch
from torch import nn

__all__ = ["copied", "in_mode", "starting_memo"]

M = TypeVar("M", bound=nn.Module)


def starting_memo(model: nn.Module) -> dict[int, Any]:
    """A ``memo`` for ``copy.deepcopy(model, memo)``, which says what has a copy already.

    A module has more than ten tables, for hooks, buffers and modules within it; nearly all are
    empty, and to copy them one by one takes longer than all the rest. And an activation that the
    code keeps (``self.features = x``) has a history, which deepcopy refuses: its copy has the numbers alone.

    >>> net = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU())
    >>> twin = copy.deepcopy(net, starting_memo(net))
    >>> twin[1]._forward_hooks, twin[1]._forward_hooks is net[1]._forward_hooks
    (OrderedDict(), False)
    """
    memo: dict[int, Any] = {}
    seen: set[int] = set()
    for module in model.modules():
        for name, value in vars(module).items():
            if type(value) in (dict, OrderedDict, set) and not value:
                memo[id(value)] = type(value)()
            elif name not in ("_parameters", "_modules"):
                _note_activations(value, memo, seen)
    return memo


def _note_activations(value: Any, memo: dict[int, Any], seen: set[int]) -> None:
    if isinstance(value, torch.Tensor) and not value.is_leaf:
        memo[id(value)] = value.detach().clone()
    elif isinstance(value, (list, tuple, dict)) and id(value) not in seen:  # one may hold itself
        seen.add(id(value))
        for part in value.values() if isinstance(value, dict) else value:
            _note_activations(part, memo, seen)


def copied(model: M) -> M:
    """A copy of the model that shares nothing with it."""
    return copy.deepcopy(model, starting_memo(model))


def in_mode(model: M, training: bool) -> M:
    """The model itself, switched to training or evaluation. (Its own ``train()`` may forget to return it.)

    >>> in_mode(nn.Dropout(), False).training
    False
    """
    model.train(training)
    return model
