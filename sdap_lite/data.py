"""Where image sets come from: this machine, their authors, PyTorch's datasets, or the library itself.

Chapter 1 loads its first images with it. What an image set is, and how batches are made of it, is in
``images.py``; both are reached as ``sdap_lite.data``.
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from dataclasses import dataclass, replace
from importlib import resources
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from .image_files import archives
from .image_files.batch_files import read_cifar, read_downsampled
from .image_files.datasets import moments, read_dataset
from .image_files.trees import has_jpegs, read_tree
from .images import Images, Split, augment, batches, check_count, normalize

__all__ = [
    "DatasetUnavailable",
    "Images",
    "Split",
    "augment",
    "batches",
    "by_scale",
    "data_root",
    "from_datasets",
    "load",
    "normalize",
]

T = TypeVar("T")


class DatasetUnavailable(RuntimeError):
    """An image set is neither on this machine nor could it be downloaded."""


def by_scale(*, tiny: T, book: T, full: T) -> T:
    """One of three values, by the environment variable ``SDAP_SCALE``.

    ``tiny`` runs a chapter in seconds (the tests), ``book`` in at most 90 s on two CPU cores
    (the default), ``full`` wants a GPU.

    Raises:
        ValueError: the variable holds another word.
    """
    scale = os.environ.get("SDAP_SCALE", "book")
    choices = {"tiny": tiny, "book": book, "full": full}
    if scale not in choices:
        raise ValueError(f"SDAP_SCALE must be one of {', '.join(choices)}, got {scale!r}")
    return choices[scale]


def data_root(root: str | Path | None = None) -> Path:
    """The folder that holds image sets: ``root``, else ``$SDAP_DATA``, else ``~/.cache/sdap_lite``."""
    return Path(root or os.environ.get("SDAP_DATA") or Path.home() / ".cache" / "sdap_lite").expanduser()


def load(
    name: str, root: str | Path | None = None, *, size: int | None = None, flip: bool = True, download: bool = True, fallback: str | None = None
) -> Images:
    """Loads an image set into memory.

    Looked for in :func:`data_root`: as an image tree ``<name>/{train,test|val}/<class>/*``, or in
    the layout of its authors or of torchvision. In a tree, folders within a class's are read, too; hidden
    files are not, nor others than ``.jpg .jpeg .png .ppm .bmp .pgm .tif .tiff .webp``. Not there: downloaded from its authors, where it can.
    The pixels of a tree are decoded once and kept in it, in a file ``.decoded-<size>.safetensors``; a
    ``folder`` of your own is left as it is.

    Args:
        name: ``cifar10``, ``cifar100``, ``imagenette``, ``imagenet32``, ``imagenet64``,
            ``fashion-mini`` (comes with the library) or ``folder`` (``root`` itself is an image tree).
        root: where to look and to download to.
        size: images are resized to this many pixels a side; default: the set's own size.
        flip: whether a mirrored image is still of its class (:class:`sdap_lite.Images`).
        download: whether a missing set may be downloaded.
        fallback: the set to return, with a loud line, when ``name`` cannot be had.

    Raises:
        DatasetUnavailable: the set is not there and could not be downloaded.
        ValueError: the name is unknown, the size is no whole number from 1 on, or a file is not what it should be.

    >>> load("fashion-mini").test.images.shape
    torch.Size([2000, 1, 28, 28])
    """
    if name not in SETS:
        raise ValueError(f"name must be one of {', '.join(SETS)}, got {name!r}")
    if size is not None:
        check_count("size", size, "pixels")
    try:
        return replace(_load(name, data_root(root), size, download), flip=flip)
    except DatasetUnavailable as error:
        if fallback is None:
            raise
        print(f"!!! {name} cannot be had here, so {fallback} stands in for it: every figure below is {fallback}'s.\n!!! ({str(error).splitlines()[0]})")
        return load(fallback, root, size=size, flip=flip)


def from_datasets(train: Any, test: Any, *, size: int, channels: int = 3, name: str = "own", classes: Iterable[str] | None = None, flip: bool = True) -> Images:
    """An image set of two PyTorch datasets, such as torchvision's: all images are read once, into memory.

    They must come as they are: a run augments them and normalises them itself, by the training images' mean and deviation.

    Args:
        train: the training images: a dataset with a length, each of whose items is an image (of Pillow; or a tensor [channels, height, width]
            or an array [height, width, channels], uint8 or from 0 to 1) and its class's number.
        test: the test images, of the same kind.
        size: pixels a side; other images are cropped to their middle square and resized.
        channels: 3 for colour, 1 for grey; images of the other kind are converted.
        name: what figures are said to be measured on.
        classes: the classes' names; default: those that ``train.classes`` says, else numbers.
        flip: whether a mirrored image is still of its class (:class:`sdap_lite.Images`).

    Raises:
        ValueError: an argument won't do, or an item of a dataset is no image with a label.

    >>> pictures = [(torch.rand(3, 40, 32), n % 2) for n in range(10)]
    >>> from_datasets(pictures[:8], pictures[8:], size=32).train.images.shape
    torch.Size([8, 3, 32, 32])
    """
    check_count("size", size, "pixels")
    if channels not in (1, 3):
        raise ValueError(f"channels must be 1 or 3, got {channels!r}")
    parts = [Split(*read_dataset(dataset, int(size), channels, part)) for part, dataset in (("training", train), ("test", test))]
    counted = range(1 + max((int(split.labels.max()) for split in parts if len(split)), default=-1))
    names = tuple(str(n) for n in (classes or getattr(train, "classes", None) or counted))
    return Images(name, parts[0], parts[1], names, *moments(parts[0].images), f"{name}, {size} pixels", flip=flip)


# ---------------------------------------------------------------------------------------------
# The sets: name → (mean, std, folders of an image tree, torchvision's class, image size, note)


@dataclass(frozen=True)
class _Set:
    mean: tuple[float, ...] = (0.485, 0.456, 0.406)  # ImageNet's
    std: tuple[float, ...] = (0.229, 0.224, 0.225)
    folders: tuple[str, ...] = ()
    size: int = 32
    note: str = ""
    arrays: bool = False  # as its authors hand it out; else it is JPEGs from the start


SETS: dict[str, _Set] = {
    "cifar10": _Set((0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616), ("cifar10",), 32, "CIFAR-10", arrays=True),
    "cifar100": _Set((0.5071, 0.4865, 0.4409), (0.2673, 0.2564, 0.2762), ("cifar100",), 32, "CIFAR-100", arrays=True),
    "imagenette": _Set(folders=("imagenette2-160", "imagenette2-320", "imagenette2", "imagenette"), size=160, note="Imagenette"),
    "imagenet32": _Set(folders=("imagenet32",), size=32, note="downsampled ImageNet, 32 pixels", arrays=True),
    "imagenet64": _Set(folders=("imagenet64",), size=64, note="downsampled ImageNet, 64 pixels", arrays=True),
    "fashion-mini": _Set((0.2860,), (0.3530,), (), 28, "Fashion-MNIST, a subset of 10,000 + 2,000"),
    "folder": _Set(size=64, note="an image folder"),
}


def _load(name: str, root: Path, size: int | None, download: bool) -> Images:
    known = SETS[name]
    size = known.size if size is None else int(size)
    if name == "imagenette" and _find_tree(name, root) is None:
        _download(name, root, download)  # a tree, read below as one that was here: other ways would give other pixels
    if name == "fashion-mini":
        splits, classes, note = *_read_fashion_mini(), known.note
    elif tree := _find_tree(name, root):
        splits, classes = _read_tree(tree, size, keep=name != "folder")  # a folder of the user's own is left as it is
        note = f"{known.note} (JPEG copy)" if known.arrays and has_jpegs(tree) else known.note
    else:
        splits, classes, note = *_read_original(name, root, download), known.note
    train, test = (_resize(s, size) for s in splits)
    for part, split in (("training", train), ("test", test)):
        if len(split) == 0:
            raise ValueError(f"{name} in {root}: there must be at least one {part} image, found none")
        if int(split.labels.min()) < 0 or int(split.labels.max()) >= len(classes):
            raise ValueError(f"{name} in {root}: labels must lie in 0…{len(classes) - 1}, got {int(split.labels.min())}…{int(split.labels.max())}")
    return Images(name, train, test, classes, known.mean, known.std, note)


def _resize(split: Split, size: int) -> Split:
    if split.images.shape[-2:] == (size, size):
        return split
    parts = [F.interpolate(part.float(), (size, size), mode="bilinear", antialias=True) for part in split.images.split(1024)]
    return Split(torch.cat([p.round().clamp(0, 255).to(torch.uint8) for p in parts]), split.labels)


def _find_tree(name: str, root: Path) -> Path | None:
    candidates = [root] if name == "folder" else [root / folder for folder in SETS[name].folders]
    found = [tree for tree in candidates if (tree / "train").is_dir() and ((tree / "test").is_dir() or (tree / "val").is_dir())]
    return found[0] if found else None


def _read_tree(tree: Path, size: int, *, keep: bool = True) -> tuple[tuple[Split, Split], tuple[str, ...]]:
    return _splits(*read_tree(tree, size, keep=keep))


def _splits(parts: Iterable[tuple[Tensor, Tensor]], classes: tuple[str, ...]) -> tuple[tuple[Split, Split], tuple[str, ...]]:
    train, test = (Split(*part) for part in parts)
    return (train, test), classes


def _read_fashion_mini() -> tuple[tuple[Split, Split], tuple[str, ...]]:
    """The bundled subset, made by ``scripts/make_fashion_mini.py`` from the original files."""
    with resources.files("sdap_lite").joinpath("bundled/fashion-mini.npz").open("rb") as file, np.load(file, allow_pickle=False) as stored:
        train, test = ((stored[f"{part}_images"], stored[f"{part}_labels"]) for part in ("train", "test"))
    splits = tuple(Split(torch.from_numpy(x)[:, None], torch.from_numpy(y).long()) for x, y in (train, test))
    names = ("T-shirt", "trouser", "pullover", "dress", "coat", "sandal", "shirt", "sneaker", "bag", "ankle boot")
    return (splits[0], splits[1]), names


def _read_original(name: str, root: Path, download: bool) -> tuple[tuple[Split, Split], tuple[str, ...]]:
    """A set in its authors' files, downloaded when it is missing and may be."""
    if name in ("imagenet32", "imagenet64"):
        try:
            return _splits(*read_downsampled(name, root))
        except FileNotFoundError as error:
            raise _unavailable(name, root, str(error)) from error
    if name in ("cifar10", "cifar100"):
        folder = root / ("cifar-10-batches-py" if name == "cifar10" else "cifar-100-python")
        if not folder.is_dir():
            _download(name, root, download)
        return _splits(*read_cifar(folder, name))
    raise _unavailable(name, root, "no folder with train/<class>/* and test/<class>/* (or val) in it")


def _download(name: str, root: Path, allowed: bool) -> None:
    if not allowed:
        raise _unavailable(name, root, "downloading was switched off")
    try:
        archives.install(name, root)
    except (OSError, RuntimeError) as error:  # no network, no space, a checksum that fails
        raise _unavailable(name, root, f"the download failed: {error}") from error


def _unavailable(name: str, root: Path, why: str) -> DatasetUnavailable:
    folder = (SETS[name].folders or (".",))[0]
    return DatasetUnavailable(
        f"{name} is not in {root}: {why}.\nThree ways out: (1) put the images under {root / folder} as train/<class>/* and test/<class>/*; "
        f"(2) point root= or SDAP_DATA to a folder that has them, or connect to the internet; (3) use the bundled set, load('fashion-mini')."
    )
