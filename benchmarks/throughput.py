"""Images a second of training ResNet-20, held against the usual loop.

The usual loop is float32 in PyTorch's own memory layout, and a ``DataLoader`` whose two workers
crop and mirror PIL images. It has three processes where ``sdap.train`` has one, so the clock on
the wall counts. Both train in as many threads as the environment says.
"""

import time
from collections.abc import Callable

import torch
import torch.nn.functional as F
from harness import Row, show, take_turns
from PIL import Image
from torch.profiler import ProfilerActivity, profile
from torch.utils.data import DataLoader, Dataset

import sdap_lite as sdap
from sdap_lite import _torchvision
from sdap_lite.measure import MODES, arrange, choose_mode

BATCHES, SIZE = 6, 128


def stand_in() -> sdap.Images:
    """Noise in the shape of CIFAR-10: pixels do not matter for the time."""
    split = sdap.Split(torch.randint(256, (BATCHES * SIZE, 3, 32, 32)).to(torch.uint8), torch.randint(10, (BATCHES * SIZE,)))
    return sdap.Images("noise", split, split, tuple("0123456789"), (0.5,) * 3, (0.25,) * 3, "noise")


class Pictures(Dataset[tuple[torch.Tensor, int]]):
    """The same images as torchvision's data sets hold them: PIL images, transformed one by one."""

    def __init__(self, split: sdap.Split) -> None:
        transforms = _torchvision.load().transforms
        self.pictures = [Image.fromarray(image.permute(1, 2, 0).numpy()) for image in split.images]
        self.labels = split.labels.tolist()
        steps = [transforms.RandomCrop(32, padding=4), transforms.RandomHorizontalFlip(), transforms.ToTensor()]
        self.transform = transforms.Compose([*steps, transforms.Normalize((0.5,) * 3, (0.25,) * 3)])

    def __len__(self) -> int:
        return len(self.pictures)

    def __getitem__(self, i: int) -> tuple[torch.Tensor, int]:
        return self.transform(self.pictures[i]), self.labels[i]


def trainer(mode: str) -> Callable[[torch.Tensor, torch.Tensor], None]:
    """A function that makes a training step of a ResNet-20."""
    dtype, layout = MODES[mode]
    model = arrange(sdap.models.resnet20().train(), layout)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01, momentum=0.9, nesterov=True, weight_decay=5e-4)

    def step(x: torch.Tensor, labels: torch.Tensor) -> None:
        with torch.autocast("cpu", torch.bfloat16, enabled=dtype == torch.bfloat16):
            logits = model(x.to(memory_format=layout))
        optimizer.zero_grad()
        F.cross_entropy(logits.float(), labels).backward()
        optimizer.step()

    return step


def profile_convolutions(step: Callable[[torch.Tensor, torch.Tensor], None], images: sdap.Images) -> tuple[float, float]:
    """Milliseconds of a step within convolutions, forwards and backwards, and in all."""
    batches = list(sdap.data.batches(images.train, SIZE, images, shuffle=torch.Generator()))
    step(*batches[0])
    with profile(activities=[ProfilerActivity.CPU]) as found:
        for x, labels in batches:
            step(x, labels)
    times = {event.key: event.self_cpu_time_total / 1000 / len(batches) for event in found.key_averages()}
    return sum(time for name, time in times.items() if "convolution" in name), sum(times.values())


def measure() -> list[Row]:
    torch.manual_seed(0)
    images = stand_in()
    usual, our = trainer("fp32"), trainer(choose_mode(sdap.models.resnet20(), torch.zeros(64, 3, 32, 32)))
    loader = DataLoader(Pictures(images.train), SIZE, shuffle=True, num_workers=2, persistent_workers=True)

    def usual_epoch() -> None:
        for x, labels in loader:
            usual(x, labels)

    def our_epoch() -> None:
        for x, labels in sdap.data.batches(images.train, SIZE, images, shuffle=torch.Generator()):
            our(x, labels)

    times = take_turns({"ours": our_epoch, "usual": usual_epoch}, repeats=5, warmup=1, clock=time.perf_counter)
    speeds = {name: BATCHES * SIZE / seconds for name, seconds in times.items()}
    (usual_convolutions, usual_step), (our_convolutions, _) = profile_convolutions(usual, images), profile_convolutions(our, images)
    parts = {"usual": usual_convolutions, "usual step": usual_step, "ours": our_convolutions}
    return [
        Row("resnet20: training", "the usual loop", speeds["ours"] / speeds["usual"], 3.0, speeds, unit="images/s", at_least=True),
        Row("resnet20: convolutions of a usual step", "all of it", usual_convolutions / usual_step, None, parts, unit="ms"),
        Row("resnet20: convolutions of the usual step", "those of ours", usual_convolutions / our_convolutions, None, parts, unit="ms"),
    ]


if __name__ == "__main__":
    show(measure)
