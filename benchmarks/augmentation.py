"""Augmented batches a second on one core, held against torchvision's v2 transforms in a ``DataLoader``.

Both shift by up to four pixels, mirror and normalise uint8 tensors that lie in memory; torchvision's
transforms one image at a time, as a ``DataLoader`` without worker processes has it.
"""

import torch
from harness import Row, show, take_turns
from torch.utils.data import DataLoader, Dataset

import sdap_lite as sdap
from sdap_lite import _torchvision

BATCHES, SIZE = 8, 128
MEAN, STD = (0.49, 0.48, 0.45), (0.25, 0.24, 0.26)


class Transformed(Dataset[tuple[torch.Tensor, torch.Tensor]]):
    """Images of a split, each transformed when it is asked for."""

    def __init__(self, split: sdap.Split) -> None:
        _torchvision.load()
        from torchvision.transforms import v2

        self.split = split
        steps = [v2.RandomCrop(32, padding=4), v2.RandomHorizontalFlip(), v2.ToDtype(torch.float32, scale=True), v2.Normalize(MEAN, STD)]
        self.transform = v2.Compose(steps)

    def __len__(self) -> int:
        return len(self.split)

    def __getitem__(self, i: int) -> tuple[torch.Tensor, torch.Tensor]:
        return self.transform(self.split.images[i]), self.split.labels[i]


def measure() -> list[Row]:
    torch.manual_seed(0)
    split = sdap.Split(torch.randint(256, (BATCHES * SIZE, 3, 32, 32)).to(torch.uint8), torch.randint(10, (BATCHES * SIZE,)))
    images = sdap.Images("noise", split, split, tuple("0123456789"), MEAN, STD, "noise")
    loader = DataLoader(Transformed(split), SIZE, shuffle=True)
    tasks = {
        "ours": lambda: list(sdap.data.batches(split, SIZE, images, shuffle=torch.Generator())),
        "torchvision v2": lambda: list(loader),
    }
    speeds = {name: BATCHES / seconds for name, seconds in take_turns(tasks).items()}
    return [Row("augmented batches", "torchvision v2", speeds["ours"] / speeds["torchvision v2"], 10.0, speeds, unit="batches/s", at_least=True)]


if __name__ == "__main__":
    show(measure)
