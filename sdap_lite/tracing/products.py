"""Products of tensors, spelled: which axes of the factors are the same, and which of them the result has.

A product of matrices, an ``einsum`` and attention are one operation, in einsum's letters: at each choice
of all letters the factors are multiplied, and sums run over the letters that the result lacks.
"""

from __future__ import annotations

import operator
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F

__all__ = ["PRODUCTS", "Spelled", "spell"]

PRODUCTS: set[Any] = {torch.matmul, torch.mm, torch.bmm, operator.matmul, torch.einsum, F.scaled_dot_product_attention, "matmul", "mm", "bmm"}
_BATCH = "ABCDEFGHIJ"


@dataclass(frozen=True)
class Spelled:
    """A product in einsum's letters.

    Attributes:
        factors: the tensors.
        terms: for each factor, a letter an axis; no letter twice.
        result: the letters of the result's axes.
        mixed: tensors that enter with all their channels mixed: attention's queries, keys and mask.
        share: of the operation's MACs, the part that is this product's.
    """

    factors: list[Any]
    terms: list[str]
    result: str
    mixed: list[Any] = field(default_factory=list)
    share: float = 1.0


def spell(target: Any, args: tuple[Any, ...], kwargs: dict[str, Any], shape: Callable[[Any], torch.Size]) -> Spelled | None:
    """An operation of :data:`PRODUCTS` in einsum's letters, or None where that would take more than letters: dots, or one twice in a term.

    Args:
        target: the operation.
        args: its positional arguments.
        kwargs: its arguments by name.
        shape: gives that of an argument that is a tensor.
    """
    if target is torch.einsum:
        return _spell_einsum(args)
    if target is F.scaled_dot_product_attention:
        return _spell_attention(args, kwargs, shape)
    factors = [*args, *(kwargs[name] for name in ("input", "other", "mat2") if name in kwargs)]
    axes = [len(shape(x)) for x in factors]
    batch = _BATCH[: max(0, *(count - 2 for count in axes))]
    terms = [_last(batch, count - 2) + (matrix if count > 1 else "k") for count, matrix in zip(axes, ("mk", "kn"), strict=True)]
    return Spelled(factors, terms, batch + "".join(letter for count, letter in zip(axes, "mn", strict=True) if count > 1))


def _spell_einsum(args: tuple[Any, ...]) -> Spelled | None:
    equation, *factors = args
    if len(factors) == 1 and isinstance(factors[0], (list, tuple)):
        factors = list(factors[0])
    if not isinstance(equation, str):
        return None
    left, arrow, result = equation.replace(" ", "").partition("->")
    terms = left.split(",")
    if not arrow or "." in equation or any(len(set(term)) < len(term) for term in terms):
        return None
    return Spelled(factors, terms, result)


def _spell_attention(args: tuple[Any, ...], kwargs: dict[str, Any], shape: Callable[[Any], torch.Size]) -> Spelled | None:
    """What it does with the values: their sum over places, weighted with numbers that have no channels."""
    named = dict(zip(("query", "key", "value", "attn_mask", "dropout_p", "is_causal", "scale", "enable_gqa"), args, strict=False)) | kwargs
    if named.get("enable_gqa"):  # one head of the values serves several
        return None
    query, key, value, mask = named["query"], named["key"], named["value"], named.get("attn_mask")
    batch, wide, deep = _BATCH[: len(shape(query)) - 2], shape(value)[-1], shape(query)[-1]
    term = _last(batch, len(shape(value)) - 2) + "sv"
    return Spelled([value], [term], batch + "qv", [x for x in (query, key, mask) if x is not None], wide / (wide + deep))


def _last(letters: str, count: int) -> str:
    return letters[len(letters) - count :] if count > 0 else ""
