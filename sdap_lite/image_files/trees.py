"""Image trees: a folder for each class, decoded once and kept beside the images.

Sixty thousand JPEGs take some ten seconds to decode, each time that a program starts; the pixels
themselves are read in less than one. They lie in ``.decoded-<size>.safetensors`` within the tree,
with a fingerprint of the files that they came from: where one differs, all are decoded anew.
Chapter 1 loads its first images with it.
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import os
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from ..checkpoint import clear_leftovers, fingerprint, write_atomically

if TYPE_CHECKING:
    from PIL.Image import Image

__all__ = ["Pixels", "has_jpegs", "read_tree", "square"]

ENDINGS = (".jpg", ".jpeg", ".png", ".ppm", ".bmp", ".pgm", ".tif", ".tiff", ".webp")  # torchvision's ImageFolder has the same
LARGEST = 2**29  # bytes of pixels that are kept: a disk is not ours to fill
DECODER = 2  # to be raised when the same files give other pixels or labels

NAMES = ("train images", "train labels", "test images", "test labels")  # of what is kept

Pixels = tuple[Tensor, Tensor]  # uint8 of shape [n, 3, size, size]; int64 labels


def read_tree(tree: Path, size: int, *, keep: bool = True) -> tuple[tuple[Pixels, Pixels], tuple[str, ...]]:
    """The training and the test images of a tree ``{train,test|val}/<class>/*``, and its classes.

    A class's folder may have folders within. Files of other kinds than :data:`ENDINGS` are passed over, and so is what is hidden:
    a notebook's ``.ipynb_checkpoints`` is no class, and macOS's ``._0.png`` no image.

    Args:
        tree: the folder.
        size: pixels a side; other images are cropped to their middle square and resized.
        keep: whether the decoded pixels are kept in the tree (and looked for there), if it can be written to.

    Raises:
        ValueError: an image cannot be read, or its grey levels have no known range, or a class has no training image.
    """
    test, classes = _test(tree), _classes(tree / "train")
    if strangers := sorted(set(_classes(test)) - set(classes)):
        raise ValueError(f"{test}: every class must also be in {tree / 'train'}, but {', '.join(strangers)} is not")
    parts = [_files(folder, classes) for folder in (tree / "train", test)]
    if empty := sorted(set(range(len(classes))) - set(parts[0][1].tolist())):
        names = ", ".join(classes[label] for label in empty)
        raise ValueError(f"{tree / 'train'}: every class must have at least one training image ({', '.join(ENDINGS)}), but {names} has none")
    count = sum(len(files) for files, _ in parts)
    if not keep or count * 3 * size * size > LARGEST:
        return (_decode(*parts[0], size), _decode(*parts[1], size)), classes
    kept, state = tree / f".decoded-{size}.safetensors", _state(tree, parts, size)
    found = _read_kept(kept, state)
    if found is None:
        found = _decode(*parts[0], size), _decode(*parts[1], size)
        with contextlib.suppress(OSError, SafetensorError):  # read-only or full: then it is decoded each time
            clear_leftovers(kept)
            write_atomically(kept, lambda file: _write_kept(file, found, state))
    return found, classes


def has_jpegs(tree: Path) -> bool:
    """Whether an image of the tree is a JPEG, whose pixels are not quite those that it was made from."""
    files = (entry for part in (tree / "train", _test(tree)) for name in _classes(part) for entry in _images(part / name))
    return any(entry.name.lower().endswith((".jpg", ".jpeg")) for entry in files)


def _test(tree: Path) -> Path:
    """The folder of the test images."""
    return tree / "test" if (tree / "test").is_dir() else tree / "val"


def _classes(folder: Path) -> tuple[str, ...]:
    return tuple(sorted(entry.name for entry in os.scandir(folder) if entry.is_dir() and not entry.name.startswith(".")))


def _files(folder: Path, classes: tuple[str, ...]) -> tuple[list[os.DirEntry[str]], Tensor]:
    """The images of a folder, class by class, and their labels."""
    files: list[os.DirEntry[str]] = []
    labels: list[int] = []
    for label, name in enumerate(classes):
        if (folder / name).is_dir():
            inside = sorted(_images(folder / name), key=lambda e: e.path)
            files += inside
            labels += [label] * len(inside)
    return files, torch.tensor(labels, dtype=torch.int64)


def _images(folder: Path) -> Iterator[os.DirEntry[str]]:
    """The images of a folder and of all folders within, in any order."""
    with os.scandir(folder) as entries:
        for entry in entries:
            if entry.name.startswith("."):
                continue
            if entry.is_dir():
                yield from _images(Path(entry.path))
            elif entry.name.lower().endswith(ENDINGS):
                yield entry


def _decode(files: list[os.DirEntry[str]], labels: Tensor, size: int) -> Pixels:
    pixels = np.empty((len(files), size, size, 3), np.uint8)

    def read(i: int) -> None:
        pixels[i] = _read_image(files[i].path, size)

    with ThreadPoolExecutor(os.cpu_count()) as pool:  # the decoder frees Python's lock
        for _ in pool.map(read, range(len(files)), chunksize=256):
            pass
    return torch.from_numpy(pixels).permute(0, 3, 1, 2).contiguous(), labels


def _read_image(path: str, size: int) -> np.ndarray:
    """The middle square of an image, resized; uint8 of shape [size, size, 3]."""
    from PIL import Image

    try:
        with Image.open(io.BytesIO(Path(path).read_bytes())) as opened:  # from memory: twice as fast
            return np.asarray(square(opened, size))
    except Exception as error:  # a broken image can raise nearly anything
        raise ValueError(f"{path} must be an image, but cannot be read as one: {error}") from error


def square(image: Image, size: int, mode: str = "RGB") -> Image:
    """The middle square of an image, resized, in colour or (mode ``"L"``) in grey."""
    from PIL.Image import Resampling

    image = image if image.mode == mode else _of_8_bits(image).convert(mode)
    if image.size == (size, size):
        return image
    side = min(image.size)
    left, top = (image.width - side) // 2, (image.height - side) // 2
    return image.resize((size, size), Resampling.BILINEAR, (left, top, left + side, top + side))


def _of_8_bits(image: Image) -> Image:
    """Sixteen bits a grey level become eight: the higher ones, as Pillow has it for colours. It would clip grey levels to 255."""
    from PIL.Image import fromarray

    if image.mode.startswith("I;16") or (image.mode == "I" and image.format in ("PNG", "PPM")):  # which "I" are of 16 bits, too
        return fromarray((np.asarray(image) >> 8).astype(np.uint8))
    if image.mode in ("I", "F"):
        raise ValueError(f"its grey levels must have 8 or 16 bits, but are of Pillow's mode {image.mode!r}, whose black and white are not known")
    return image


# ---------------------------------------------------------------------------------------------
# The decoded pixels


def _state(tree: Path, parts: list[tuple[list[os.DirEntry[str]], Tensor]], size: int) -> str:
    """Names, lengths and times of all files: what makes them other images changes it. And the decoder's version."""
    import PIL

    digest = hashlib.sha256(f"{PIL.__version__} {DECODER} {size}".encode())
    for files, _ in parts:
        for file in files:
            about = file.stat()
            digest.update(f"{os.path.relpath(file.path, tree)}\0{about.st_size} {about.st_mtime_ns}\n".encode(errors="surrogateescape"))
    return digest.hexdigest()


def _write_kept(file: str, parts: tuple[Pixels, Pixels], state: str) -> None:
    tensors = dict(zip(NAMES, (*parts[0], *parts[1]), strict=True))
    save_file(tensors, file, {"files": state, "pixels": fingerprint(tensors.values())})


def _read_kept(path: Path, state: str) -> tuple[Pixels, Pixels] | None:
    """What was kept, if it is of these files and as it was written; else it is as if it were not there."""
    try:
        with safe_open(path, "pt") as kept:
            about = kept.metadata() or {}
            if about.get("files") != state:
                return None
            tensors = {name: kept.get_tensor(name) for name in NAMES}
    except (OSError, SafetensorError):
        return None
    if about.get("pixels") != fingerprint(tensors.values()):
        return None
    train_images, train_labels, test_images, test_labels = tensors.values()
    return (train_images, train_labels), (test_images, test_labels)
