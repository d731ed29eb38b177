"""Batch files of the authors of CIFAR and of downsampled ImageNet: pickles, and nothing but arrays is taken out of them."""

from __future__ import annotations

import io
import pickle
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor

from .archives import check_zip, read_checked

__all__ = ["read_cifar", "read_downsampled"]

Part = tuple[Tensor, Tensor]  # uint8 images of shape [n, channels, side, side], int64 labels of shape [n]


def read_cifar(folder: Path, name: str) -> tuple[tuple[Part, Part], tuple[str, ...]]:
    """CIFAR-10 or -100 in its authors' files: training and test part, and the classes' names.

    Images come class by class, each class in its authors' order. So they lie in an image tree, too, and images are held out
    by their place: a network that was trained on one layout has never seen those that the other holds out.

    Raises:
        ValueError: a file is missing or no batch of images, or the classes' names are.
    """
    ten = name == "cifar10"
    train = [f"data_batch_{i}" for i in range(1, 6)] if ten else ["train"]
    test, labels = ("test_batch", "labels") if ten else ("test", "fine_labels")
    names = _names(folder / ("batches.meta" if ten else "meta"), "label_names" if ten else "fine_label_names")
    parts = _part([_read_batch(folder / f) for f in train], labels, 32), _part([_read_batch(folder / test)], labels, 32)
    return (_by_class(*parts[0]), _by_class(*parts[1])), names


def read_downsampled(name: str, root: Path) -> tuple[tuple[Part, Part], tuple[str, ...]]:
    """Downsampled ImageNet (Chrabaszcz et al. 2017): ten training batches and one of validation, labels from 1 on.

    Raises:
        FileNotFoundError: it is not there.
        ValueError: a file is no batch of images.
    """
    side = int(name[-2:])
    # Both sizes have files of the same names, and may lie side by side.
    files = sorted({p for folder in (root / name, root) for p in folder.glob("**/*_data*") if p.suffix in ("", ".npz")})
    here = [p for p in files if root / name in p.parents or f"net{side}" in str(p)]
    train = [p for p in here if p.name.startswith("train_data_batch")]
    val = [p for p in here if p.name.startswith("val_data")]
    if not train or not val:
        raise FileNotFoundError(f"no train_data_batch_* and val_data files under {root / name}; image-net.org hands them out on request")
    parts = _part([_read_batch(p) for p in train], "labels", side, 1), _part([_read_batch(p) for p in val], "labels", side, 1)
    return parts, tuple(str(i) for i in range(1000))


# ---------------------------------------------------------------------------------------------


class _ArraysOnly(pickle.Unpickler):
    """Refuses everything but numpy arrays: a pickle from outside must not run code."""

    allowed: ClassVar = {
        (module, name)
        for module in ("numpy.core.multiarray", "numpy._core.multiarray", "numpy", "numpy.core.numeric", "numpy._core.numeric", "_codecs")
        for name in ("_reconstruct", "scalar", "ndarray", "dtype", "_frombuffer", "encode")
    }

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in self.allowed:
            raise pickle.UnpicklingError(f"may hold numpy arrays and plain containers only, but names {module}.{name}")
        return super().find_class(module, name)


def _read_batch(path: Path) -> dict[str, Any]:
    """One batch file, ``.npz`` or a pickled dictionary."""
    try:
        stream = io.BytesIO(read_checked(path))
        if path.suffix == ".npz":
            check_zip(stream)
            with np.load(stream, allow_pickle=False) as stored:
                return dict(stored)
        content = _ArraysOnly(stream, encoding="latin1").load()
    except FileNotFoundError as error:
        raise ValueError(f"{path} is missing: the set is not complete") from error
    except Exception as error:  # a broken pickle can raise nearly anything
        raise ValueError(f"{path} must be a batch of images, but cannot be read as one: {error}") from error
    if not isinstance(content, dict):
        raise ValueError(f"{path} must hold a dictionary, got {type(content).__name__}")
    return content


def _names(path: Path, key: str) -> tuple[str, ...]:
    """The classes' names, in the order of their numbers."""
    names = _read_batch(path).get(key)
    if not isinstance(names, (list, tuple)) or not all(isinstance(name, str) for name in names):
        raise ValueError(f"{path} must hold a list of the classes' names as {key!r}, got {'none' if names is None else type(names).__name__}")
    return tuple(names)


def _by_class(pixels: Tensor, labels: Tensor) -> Part:
    order = torch.argsort(labels, stable=True)
    return pixels[order], labels[order]


def _part(batches: list[dict[str, Any]], labels: str, side: int, first: int = 0) -> Part:
    """Images and labels of several batches, which count classes from ``first`` on."""
    for part in batches:
        if "data" not in part or labels not in part:
            raise ValueError(f"a batch must hold 'data' and {labels!r}, got {', '.join(map(str, part))}")
        width = np.asarray(part["data"]).shape[1:]
        if width != (3 * side * side,):
            raise ValueError(f"an image of {side}x{side} pixels has {3 * side * side} numbers, got {width}")
        if np.size(part[labels]) != len(part["data"]):
            raise ValueError(f"a batch must hold one label for each of its {len(part['data'])} images, got {np.size(part[labels])}")
    pixels = np.concatenate([np.asarray(part["data"], np.uint8) for part in batches]).reshape(-1, 3, side, side)
    numbers = np.concatenate([np.asarray(part[labels], np.int64).reshape(-1) for part in batches]) - first
    return torch.from_numpy(pixels), torch.from_numpy(numbers)
