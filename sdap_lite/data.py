"""Image sets held in memory as uint8 tensors, and batches augmented where the tensors live.

No worker processes and no image library in the training loop: the same speed on a laptop, on
Colab and on a GPU. Chapter 1 loads its first images with it.
"""

from __future__ import annotations

import math
import os
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from importlib import resources
from numbers import Integral, Real
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


@dataclass(frozen=True)
class Split:
    """Images and their labels.

    Attributes:
        images: uint8, shape [n, channels, height, width].
        labels: int64, shape [n], from 0 on.

    Raises:
        ValueError: they are no tensors, or not of these types and shapes.
    """

    images: Tensor
    labels: Tensor

    def __post_init__(self) -> None:
        for name, value in (("images", self.images), ("labels", self.labels)):
            if not isinstance(value, Tensor):
                raise ValueError(f"{name} must be a tensor, got {type(value).__name__}")
        if self.images.dtype != torch.uint8 or self.images.ndim != 4:
            raise ValueError(f"images must be uint8 of shape [n, channels, height, width], got {self.images.dtype} {list(self.images.shape)}")
        if self.labels.dtype != torch.int64 or self.labels.shape != self.images.shape[:1]:
            raise ValueError(f"labels must be int64 of shape [{len(self.images)}], got {self.labels.dtype} {list(self.labels.shape)}")

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: Tensor | slice) -> Split:
        return Split(self.images[index], self.labels[index])

    def to(self, device: torch.device | str) -> Split:
        return Split(self.images.to(device), self.labels.to(device))

    def divide(self, count: int, *, seed: int = 0, spare: bool = False) -> tuple[Split, Split]:
        """Divides into ``count`` images, drawn evenly from all classes, and all the others.

        Args:
            count: above 0 and below the number of images.
            seed: which ones are drawn.
            spare: whether a class gives more than half of its images only when all have given half, and its last one
                only when no other is left.

        Raises:
            ValueError: the count does not lie between.

        >>> split = Split(torch.zeros(10, 1, 2, 2, dtype=torch.uint8), torch.arange(10) % 2)
        >>> few, rest = split.divide(4)
        >>> sorted(few.labels.tolist()), len(rest)
        ([0, 0, 1, 1], 6)
        """
        if not 0 < count < len(self):
            raise ValueError(f"count must lie between 0 and the number of images, {len(self)}, got {count}")
        chosen = _stratified(self.labels, count, seed, spare)
        rest = torch.ones(len(self), dtype=torch.bool)
        rest[chosen] = False
        return self[chosen], self[rest.nonzero().flatten()]


@dataclass(frozen=True)
class Images:
    """An image set.

    Attributes:
        name: such as ``"cifar10"``.
        train: the training images, the only ones that choose anything.
        test: the test images, for the last word.
        classes: the names of the classes.
        mean: per channel, on the scale 0 to 1.
        std: per channel, on the scale 0 to 1.
        note: what to say beside a figure measured on these images.
        validation: training images that are held out already; default: a run holds out its own.
        flip: whether a mirrored image is still of its class, so that training may mirror every second one: not a digit, a letter, a sign.

    Raises:
        ValueError: a part has no images or images of another shape, a label is no class's number, or mean, deviation or flip do not fit.
    """

    name: str
    train: Split
    test: Split
    classes: tuple[str, ...]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    note: str
    validation: Split | None = None
    flip: bool = True

    def __post_init__(self) -> None:
        parts = {"training": self.train, "test": self.test} | ({} if self.validation is None else {"validation": self.validation})
        shape, classes = self.train.images.shape[1:], len(self.classes)
        for part, split in parts.items():
            if not len(split):
                raise ValueError(f"there must be at least one {part} image, got none")
            if split.images.shape[1:] != shape:
                raise ValueError(f"{part} images must have the training images' shape {list(shape)}, got {list(split.images.shape[1:])}")
            low, high = int(split.labels.min()), int(split.labels.max())
            if low < 0 or high >= classes:
                raise ValueError(f"labels of the {part} images must lie in 0…{classes - 1}, one for each class, got {low}…{high}")
        for name, given in (("mean", self.mean), ("std", self.std)):
            try:
                numbers = tuple(float(n) for n in given)  # of a list, an array or a tensor, too
            except (TypeError, ValueError):
                numbers = ()
            if len(numbers) != shape[0] or not all(math.isfinite(n) and (n > 0 or name == "mean") for n in numbers):
                what = "number" if name == "mean" else "number above 0"
                raise ValueError(f"{name} must be one {what} for each of {shape[0]} channels, got {given}")
            object.__setattr__(self, name, numbers)
        if not isinstance(self.flip, bool):
            raise ValueError(f"flip must be True or False, got {self.flip!r}")

    def hold_out(self, share: float = 0.1) -> tuple[Split, Split]:
        """The validation and the training part.

        The same whatever a run's seed, so that a network pretrained on this set has never seen
        the images that a later run validates on. Each class gives the same number of images, but a rare
        one no more than half of its own (:meth:`Split.divide`, ``spare``).

        Args:
            share: of the training images, above 0 and below 1, if no validation part is given already.

        Raises:
            ValueError: the share is none, or leaves nothing.
        """
        if isinstance(share, bool) or not isinstance(share, Real) or not 0 < share < 1:
            raise ValueError(f"share must be the share that is held out, above 0 and below 1, got {share!r}")
        if self.validation is not None:
            return self.validation, self.train
        return self.train.divide(max(1, round(share * len(self.train))), seed=0, spare=True)

    def limit(self, train: int, test: int, *, seed: int = 0) -> Images:
        """The same set with fewer images, drawn evenly from all classes.

        Args:
            train: training images; a tenth as many, from those held out, are for validation.
            test: test images.
            seed: which ones are drawn.

        Raises:
            ValueError: a number is none.
        """
        for name, count in (("train", train), ("test", test)):
            _check_count(name, count, "images")
        held_out, rest = self.hold_out()
        wanted = ((rest, train), (held_out, max(1, train // 10)), (self.test, test))
        few = [split if count >= len(split) else split.divide(count, seed=seed)[0] for split, count in wanted]
        return replace(self, train=few[0], validation=few[1], test=few[2])


def check_set(images: Images) -> None:
    """Raises ValueError unless it is an image set."""
    if not isinstance(images, Images):
        way = "a part of a set is given beside it, as split=" if isinstance(images, Split) else "sdap.data.from_datasets makes one of PyTorch's datasets"
        raise ValueError(f"images must be an image set, as sdap.data.load gives, got {type(images).__name__}: {way}")


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
        _check_count("size", size, "pixels")
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
    _check_count("size", size, "pixels")
    if channels not in (1, 3):
        raise ValueError(f"channels must be 1 or 3, got {channels!r}")
    parts = [Split(*read_dataset(dataset, int(size), channels, part)) for part, dataset in (("training", train), ("test", test))]
    counted = range(1 + max((int(split.labels.max()) for split in parts if len(split)), default=-1))
    names = tuple(str(n) for n in (classes or getattr(train, "classes", None) or counted))
    return Images(name, parts[0], parts[1], names, *moments(parts[0].images), f"{name}, {size} pixels", flip=flip)


def normalize(images: Tensor, mean: tuple[float, ...], std: tuple[float, ...]) -> Tensor:
    """From uint8 0…255 to float32 of mean 0 and deviation 1 per channel; the shape stays."""
    shape = (1, -1, 1, 1)
    center = torch.tensor(mean, device=images.device).view(shape) * 255
    scale = torch.tensor(std, device=images.device).view(shape) * 255
    return (images.float() - center) / scale


def augment(images: Tensor, generator: torch.Generator | None = None, *, flip: bool = True) -> Tensor:
    """Shifts each image by up to an eighth of its height and of its width, and mirrors every second one.

    Args:
        images: uint8, shape [n, channels, height, width]; what is shifted in is black.
        generator: a CPU generator that draws the shifts.
        flip: whether images are mirrored.

    Returns:
        Images of the same type and shape.
    """
    n, channels, height, width = images.shape
    tall, wide = max(1, height // 8), max(1, width // 8)
    device = images.device
    down, right = (torch.randint(0, 2 * pad + 1, (n, 1), generator=generator).to(device) for pad in (tall, wide))
    rows, columns = down + torch.arange(height, device=device), right + torch.arange(width, device=device)  # [n, height], [n, width]
    if flip:
        mirrored = torch.randint(0, 2, (n, 1), generator=generator).bool().to(device)
        columns = torch.where(mirrored, columns.flip(1), columns)
    padded = F.pad(images, (wide, wide, tall, tall))
    # One flat index a pixel, the same for all channels of an image: [n, height * width]
    pixels = (rows[:, :, None] * padded.shape[-1] + columns[:, None]).flatten(1)
    return padded.flatten(2).gather(2, pixels[:, None].expand(-1, channels, -1)).view(images.shape)


def batches(split: Split, size: int, images: Images, *, shuffle: torch.Generator | None = None) -> Iterator[tuple[Tensor, Tensor]]:
    """Batches of normalised images, ``[n, channels, height, width]`` float32, with their labels.

    Args:
        split: the images, on any device; batches are made there.
        size: images a batch; the last one may be smaller, but is never a single image when shuffled
            (batch norm cannot train on one).
        images: the set, for its mean and deviation.
        shuffle: a CPU generator: training order and augmentation. Without it: in order, as they are.
    """
    order = torch.arange(len(split)) if shuffle is None else torch.randperm(len(split), generator=shuffle)
    for chosen in order.split(size):
        if shuffle is not None and len(chosen) == 1 < len(order):
            return
        chosen = chosen.to(split.images.device)
        x, y = split.images[chosen], split.labels[chosen]
        yield normalize(x if shuffle is None else augment(x, shuffle, flip=images.flip), images.mean, images.std), y


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


def _check_count(name: str, count: int, of: str) -> None:
    if isinstance(count, bool) or not isinstance(count, Integral) or count < 1:
        raise ValueError(f"{name} must be a whole number of {of} from 1 on, got {count!r}")


def _stratified(labels: Tensor, count: int, seed: int, spare: bool) -> Tensor:
    """Indices of ``count`` items, as even over the classes as can be, in random order."""
    order = torch.randperm(len(labels), generator=torch.Generator().manual_seed(seed))
    by_class = order[torch.argsort(labels[order], stable=True)]
    counts = torch.bincount(labels)
    rank = torch.cat([torch.arange(int(c)) for c in counts])  # the how-manieth of its class
    if spare:
        size = counts.repeat_interleave(counts)
        rank += len(labels) * ((rank >= size // 2).long() + (rank == size - 1).long())
    chosen = by_class[torch.argsort(rank, stable=True)[:count]]
    return chosen[torch.randperm(count, generator=torch.Generator().manual_seed(seed))]


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
