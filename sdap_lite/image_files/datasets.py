"""Images of a PyTorch dataset, read once into memory. Chapter 7."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from .trees import Pixels, square

if TYPE_CHECKING:
    from PIL.Image import Image

__all__ = ["moments", "read_dataset"]


def read_dataset(dataset: Any, size: int, channels: int, part: str) -> Pixels:
    """All images, uint8 of shape [n, channels, size, size], and their labels.

    Args:
        dataset: with a length; each of its items is an image (of Pillow, or uint8 or 0 to 1 in a tensor or an array) and a label.
        size: pixels a side; other images are cropped to their middle square and resized.
        channels: 3 for colour, 1 for grey.
        part: what an error's message calls the images.

    Raises:
        ValueError: the dataset or one of its items is none.
    """
    if not (hasattr(dataset, "__len__") and hasattr(dataset, "__getitem__")):
        raise ValueError(f"{part} images must be a dataset, which has a length and items, got {type(dataset).__name__}")
    pixels = np.empty((len(dataset), size, size, channels), np.uint8)
    labels = torch.empty(len(dataset), dtype=torch.int64)
    for i in range(len(dataset)):
        pixels[i], labels[i] = _item(dataset, i, size, channels, part)
    return torch.from_numpy(pixels).permute(0, 3, 1, 2).contiguous(), labels


def moments(images: Tensor) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and deviation of each channel, on the scale 0 to 1, of uint8 images: counted, so that no copy in floats is made.

    >>> moments(torch.tensor([0, 255], dtype=torch.uint8).view(2, 1, 1, 1))
    ((0.5,), (0.5,))
    """
    levels = torch.arange(256, dtype=torch.float64) / 255
    counts = torch.stack([torch.bincount(channel.flatten(), minlength=256) for channel in images.unbind(1)]).double()
    shares = counts / counts.sum(1, keepdim=True)
    mean = shares @ levels
    deviation = (shares @ levels.square() - mean.square()).clamp(min=0).sqrt()
    return tuple(mean.tolist()), tuple(deviation.tolist())


# ---------------------------------------------------------------------------------------------


def _item(dataset: Any, i: int, size: int, channels: int, part: str) -> tuple[np.ndarray, int]:
    try:
        image, label = dataset[i]
        picture = square(_picture(image), size, "RGB" if channels == 3 else "L")
        return np.asarray(picture).reshape(size, size, channels), int(label)
    except (TypeError, ValueError) as error:
        raise ValueError(f"item {i} of the {part} images must be an image and its class's number, but: {error}") from error


def _picture(image: Any) -> Image:
    """An image of Pillow; a tensor's channels come first, an array's last."""
    from PIL.Image import Image, fromarray

    if isinstance(image, Image):
        return image
    if not isinstance(image, (Tensor, np.ndarray)):
        raise ValueError(f"an image must be one of Pillow, a tensor or an array, got {type(image).__name__}")
    pixels = image.permute(1, 2, 0).cpu().numpy() if isinstance(image, Tensor) and image.ndim == 3 else np.asarray(image)
    pixels = pixels[:, :, 0] if pixels.ndim == 3 and pixels.shape[2] == 1 else pixels
    if pixels.ndim not in (2, 3) or pixels.shape[2:] not in ((), (3,)):
        raise ValueError(f"an image must have 1 or 3 channels (a tensor's come first, an array's last), got shape {list(image.shape)}")
    if pixels.dtype == np.uint8:
        return fromarray(np.ascontiguousarray(pixels))
    if not np.issubdtype(pixels.dtype, np.floating) or not (pixels.min() >= 0 and pixels.max() <= 1):
        found = f"{pixels.dtype} from {pixels.min():.4g} to {pixels.max():.4g}"
        raise ValueError(f"pixels must be uint8, or floats from 0 to 1, got {found}: take what normalises them out of the dataset, for a run does it")
    return fromarray(np.ascontiguousarray((pixels * 255).round().astype(np.uint8)))
