"""Image sets held in memory as uint8 tensors, and batches augmented where the tensors live.

No worker processes and no image library in the training loop: the same speed on a laptop, on
Colab and on a GPU. Chapter 1 shows the first ones.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from numbers import Integral, Real

import torch
import torch.nn.functional as F
from torch import Tensor

__all__ = ["Images", "Split", "augment", "batches", "check_count", "check_set", "normalize"]


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
            check_count(name, count, "images")
        held_out, rest = self.hold_out()
        wanted = ((rest, train), (held_out, max(1, train // 10)), (self.test, test))
        few = [split if count >= len(split) else split.divide(count, seed=seed)[0] for split, count in wanted]
        return replace(self, train=few[0], validation=few[1], test=few[2])


def check_set(images: Images) -> None:
    """Raises ValueError unless it is an image set."""
    if not isinstance(images, Images):
        way = "a part of a set is given beside it, as split=" if isinstance(images, Split) else "sdap.data.from_datasets makes one of PyTorch's datasets"
        raise ValueError(f"images must be an image set, as sdap.data.load gives, got {type(images).__name__}: {way}")


def check_count(name: str, count: int, of: str) -> None:
    if isinstance(count, bool) or not isinstance(count, Integral) or count < 1:
        raise ValueError(f"{name} must be a whole number of {of} from 1 on, got {count!r}")


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
