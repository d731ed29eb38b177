"""PyTorch's datasets as image sets: the same pixels whatever an item is made of, and the same as an image tree's."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import Dataset

import sdap_lite as sdap
from sdap_lite.image_files.datasets import moments

SIZE = 16


class Pictures(Dataset[tuple[Any, int]]):
    """Images of any kind, made of the same pixels."""

    def __init__(self, kind: str, count: int = 8, shape: tuple[int, int] = (20, 24)) -> None:
        self.kind = kind
        self.pixels = np.random.default_rng(count).integers(0, 256, (count, *shape, 3), dtype=np.uint8)

    def __len__(self) -> int:
        return len(self.pixels)

    def __getitem__(self, i: int) -> tuple[Any, int]:
        pixels = self.pixels[i]
        tensor = torch.from_numpy(pixels).permute(2, 0, 1)
        kinds = {
            "pillow": Image.fromarray(pixels),
            "array": pixels,
            "tensor": tensor,
            "floats": tensor / 255,
            "half floats": (tensor / 255).numpy().transpose(1, 2, 0),
        }
        return kinds[self.kind], i % 2


def loaded(kind: str, **arguments: Any) -> sdap.data.Images:
    return sdap.data.from_datasets(Pictures(kind), Pictures(kind, 4), **{"size": SIZE, **arguments})


@pytest.fixture
def tree(tmp_path: Path) -> sdap.data.Images:
    """The same images in a tree of files, class by class."""
    for part, pictures in (("train", Pictures("pillow")), ("test", Pictures("pillow", 4))):
        for i in range(len(pictures)):
            image, label = pictures[i]
            folder = tmp_path / part / str(label)
            folder.mkdir(parents=True, exist_ok=True)
            image.save(folder / f"{i}.png")
    return sdap.data.load("folder", tmp_path, size=SIZE)


@pytest.mark.parametrize("kind", ["pillow", "array", "tensor", "floats", "half floats"])
def test_a_dataset_gives_the_pixels_of_an_image_tree(tree: sdap.data.Images, kind: str) -> None:
    images = loaded(kind)
    for mine, other in ((images.train, tree.train), (images.test, tree.test)):
        by_class = torch.argsort(mine.labels, stable=True)
        assert torch.equal(mine.images[by_class], other.images)
        assert torch.equal(mine.labels[by_class], other.labels)
    assert images.classes == ("0", "1")


@pytest.mark.parametrize("channels", [1, 3])
def test_grey_and_colour(channels: int) -> None:
    grey = [(torch.full((1, 8, 8), level, dtype=torch.uint8), 0) for level in (0, 100, 200)]
    images = sdap.data.from_datasets(grey, grey, size=8, channels=channels)
    assert images.train.images.shape == (3, channels, 8, 8)
    assert images.train.images[:, :, 0, 0].tolist() == [[level] * channels for level in (0, 100, 200)]
    assert loaded("pillow", channels=channels).train.images.shape[1] == channels


def test_mean_and_deviation_are_those_of_the_training_images() -> None:
    images = loaded("pillow")
    floats = images.train.images.double() / 255
    assert torch.allclose(torch.tensor(images.mean, dtype=torch.float64), floats.mean((0, 2, 3)))
    assert torch.allclose(torch.tensor(images.std, dtype=torch.float64), floats.std((0, 2, 3), correction=0))
    x = next(sdap.data.batches(images.train, 8, images))[0]
    assert x.mean((0, 2, 3)).abs().max() < 1e-5


def test_moments_of_one_value_have_no_deviation() -> None:
    assert moments(torch.full((2, 1, 3, 3), 51, dtype=torch.uint8)) == ((pytest.approx(0.2),), (pytest.approx(0.0, abs=1e-8),))


def test_classes_are_the_datasets_or_the_callers() -> None:
    train, test = Pictures("pillow"), Pictures("pillow", 4)
    train.classes = ["cat", "dog", "unseen"]  # type: ignore[attr-defined]
    assert sdap.data.from_datasets(train, test, size=SIZE).classes == ("cat", "dog", "unseen")
    assert sdap.data.from_datasets(train, test, size=SIZE, classes=("a", "b"), name="pets").classes == ("a", "b")


@pytest.mark.parametrize("flip", [True, False])
def test_a_network_is_pruned_on_them(flip: bool) -> None:
    net = sdap.models.VGG(11, width=4)
    result = sdap.prune(net, loaded("floats", flip=flip), 0.5, epochs=1, batch_size=4, validation=0.25, mode="fp32", progress=False)
    assert result.report is not None
    assert result.report.achieved() >= 0.5
    assert result.settings.get("flip", True) == flip, "a run that mirrors is not resumed as one that does not"


def item(image: object, label: object = 0) -> list[tuple[object, object]]:
    return [(torch.zeros(3, 8, 8), 0), (image, label)]


NORMALISED = torch.linspace(-2, 2, 192).view(3, 8, 8)
WRONG: dict[str, tuple[Any, str]] = {
    "no dataset": (5, "training images must be a dataset, which has a length and items, got int"),
    "a stream": (iter(item(0)), "has a length and items, got list_iterator"),
    "no pair": ([torch.zeros(3, 8, 8)], "item 0 of the training images must be an image and its class's number, but: too many values"),
    "no image": (item("cat.png"), "item 1 .* an image must be one of Pillow, a tensor or an array, got str"),
    "normalised": (item(NORMALISED), "pixels must be uint8, or floats from 0 to 1, got float32 from -2 to 2: take what normalises them out"),
    "NaN": (item(torch.full((3, 8, 8), torch.nan)), "floats from 0 to 1, got float32 from nan to nan"),
    "whole numbers": (item(torch.zeros(3, 8, 8, dtype=torch.int64)), "got int64 from 0 to 0"),
    "four channels": (item(torch.zeros(4, 8, 8)), r"must have 1 or 3 channels \(a tensor's come first, an array's last\), got shape \[4, 8, 8\]"),
    "channels first in an array": (item(np.zeros((3, 8, 8), np.uint8)), r"1 or 3 channels .* got shape \[3, 8, 8\]"),
    "a batch": (item(torch.zeros(2, 3, 8, 8)), r"got shape \[2, 3, 8, 8\]"),
    "a name for a label": (item(torch.zeros(3, 8, 8), "cat"), "item 1 .* class's number, but: invalid literal"),
    "a label below 0": (item(torch.ones(3, 8, 8), -1), "labels of the training images must lie in 0…0, one for each class, got -1…0"),
    "nothing": ([], "at least one training image, got none"),
    "all pixels alike": (item(torch.zeros(3, 8, 8)), "std must be one number above 0"),
}


@pytest.mark.parametrize("case", WRONG)
def test_what_is_no_dataset_of_images_is_refused(case: str) -> None:
    given, message = WRONG[case]
    with pytest.raises(ValueError, match=message):
        sdap.data.from_datasets(given, item(torch.ones(3, 8, 8)), size=8)


@pytest.mark.parametrize(
    ("arguments", "message"), [({"size": 0}, "size must be a whole number of pixels from 1 on, got 0"), ({"channels": 2}, "channels must be 1 or 3, got 2")]
)
def test_wrong_arguments_are_refused(arguments: dict[str, int], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        loaded("pillow", **arguments)


def test_the_test_images_are_named_where_they_are_wrong() -> None:
    pictures: list[tuple[Tensor, int]] = [(torch.rand(3, 8, 8), 0)]
    with pytest.raises(ValueError, match=r"^item 0 of the test images must be"):
        sdap.data.from_datasets(pictures, [(torch.rand(2, 8, 8), 0)], size=8)
