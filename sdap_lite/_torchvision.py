"""Imports torchvision, also beside a PyTorch that it was not built for.

torchvision's compiled operators come with its wheel. Where they cannot be loaded (a CUDA wheel
beside a CPU build of PyTorch), ``import torchvision`` stops with 'operator torchvision::nms does
not exist', though the data sets and models that we want need none of them. Naming the two
operators that the import looks at is enough; calling one of them still raises an error.
"""

from __future__ import annotations

import importlib
from types import ModuleType

import torch

_schemas = {
    "nms": "nms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
    "qnms": "qnms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
}
_library: torch.library.Library | None = None  # the names live as long as this object


def load() -> ModuleType:
    """torchvision, imported when it is first asked for.

    >>> load().__name__
    'torchvision'
    """
    global _library
    try:
        return importlib.import_module("torchvision")
    except RuntimeError as error:
        if "torchvision::" not in str(error) or _library is not None:
            raise
    _library = torch.library.Library("torchvision", "FRAGMENT")
    for schema in _schemas.values():
        _library.define(schema)
    return importlib.import_module("torchvision")
