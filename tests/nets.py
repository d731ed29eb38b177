"""Small networks of every wiring, and a masked network that owes nothing to the library's masks."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor, nn

from sdap_lite import loop, models, remove_channels
from sdap_lite.data import Images, Split
from sdap_lite.graph import ChannelGraph

EXAMPLE = torch.zeros(1, 3, 16, 16)


def randomize(model: nn.Module, seed: int = 0) -> nn.Module:
    """Gives batch norms statistics and scales as training would; a fresh net's zeros and ones hide mistakes."""
    generator = torch.Generator().manual_seed(seed)
    for module in model.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            with torch.no_grad():
                for tensor, low, high in (
                    (module.weight, 0.5, 1.5),
                    (module.bias, -0.5, 0.5),
                    (module.running_mean, -0.5, 0.5),
                    (module.running_var, 0.5, 2.0),
                ):
                    if tensor is not None:
                        tensor.copy_(low + (high - low) * torch.rand(tensor.shape, generator=generator))
    return model


class Grouped(nn.Module):
    """A ResNeXt block: its grouped convolution must keep the same count in each of its groups."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, padding=1)
        self.reduce = nn.Conv2d(8, 12, 1)
        self.grouped = nn.Conv2d(12, 12, 3, padding=1, groups=3)
        self.expand = nn.Conv2d(12, 8, 1)
        self.fc = nn.Linear(8, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.stem(x))
        y = F.relu(self.grouped(F.relu(self.reduce(x))))
        return self.fc((x + self.expand(y)).mean((2, 3)))


class Viewed(nn.Module):
    """A LeNet; ``view`` after a convolution works in one layout of memory only."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.conv, self.fc = nn.Conv2d(3, 6, 5), nn.Conv2d(6, 8, 3), nn.Linear(8 * 16, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.conv(F.max_pool2d(F.relu(self.stem(x)), 2)))
        return self.fc(x.view(x.size(0), -1))


class OwnInput(Viewed):
    """It normalises its input by itself: in place, and as float32."""

    def forward(self, x: Tensor) -> Tensor:
        x -= 0.5
        return super().forward(x.float())


class Tokens(nn.Conv2d):
    """It gives [n, positions, channels]."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x).flatten(2).transpose(1, 2)


class SubPixel(nn.Conv2d):
    """Four channels become one of twice the side."""

    def forward(self, x: Tensor) -> Tensor:
        return F.pixel_shuffle(super().forward(x), 2)


class Partial(nn.Conv2d):
    """It gives its mask, too."""

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:  # type: ignore[override]
        return super().forward(x), torch.ones_like(x[:, :1])


class Named(nn.Conv2d):
    def forward(self, x: Tensor) -> dict[int, Tensor]:  # type: ignore[override]
        return {0: super().forward(x)}


class HalfOpen(nn.Conv2d):
    def forward(self, x: Tensor) -> Tensor:
        return F.glu(super().forward(x), 1)


class First(nn.Module):
    """The first of what a module gives."""

    def __init__(self, body: nn.Module) -> None:
        super().__init__()
        self.body = body

    def forward(self, x: Tensor) -> Tensor:
        return self.body(x)[0]


class SqueezeExcitation(nn.Module):
    """A channel's image times a number that all channels agreed on."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8), nn.Hardswish())
        self.squeeze, self.excite = nn.Conv2d(8, 4, 1), nn.Conv2d(4, 8, 1)
        self.fc = nn.Linear(8, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv(x)
        scale = F.hardsigmoid(self.excite(F.relu(self.squeeze(F.adaptive_avg_pool2d(x, 1)))))
        return self.fc(torch.flatten(F.adaptive_avg_pool2d(x * scale, 1), 1))


class Shared(nn.Module):
    """One convolution called twice, with the same weights."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.twice = nn.Conv2d(3, 6, 3, padding=1), nn.Conv2d(6, 6, 3, padding=1)
        self.fc = nn.Linear(6, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.stem(x))
        x = F.relu(self.twice(F.relu(self.twice(x))))
        return self.fc(x.mean((2, 3)))


class Hourglass(nn.Module):
    """Down by a strided, up by a transposed convolution, and the two halves side by side."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 4, 3, padding=1)
        self.down = nn.Conv2d(4, 8, 3, stride=2, padding=1)
        self.norm = nn.BatchNorm2d(8)
        self.up = nn.ConvTranspose2d(8, 6, 2, stride=2)
        self.head = nn.Conv2d(10, 5, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = F.leaky_relu(self.stem(x))
        return self.head(torch.cat([x, self.up(F.gelu(self.norm(self.down(x))))], dim=1)).mean((2, 3))


class Flattened(nn.Module):
    """Each channel feeds many columns of the linear layer behind it."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Sequential(nn.Conv2d(3, 6, 3, stride=2), nn.InstanceNorm2d(6, affine=True), nn.SiLU(), nn.MaxPool2d(2))
        self.fc1, self.norm, self.fc2 = nn.Linear(6 * 9, 7), nn.BatchNorm1d(7), nn.Linear(7, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv(x)
        return self.fc2(torch.tanh(self.norm(self.fc1(x.view(x.size(0), -1)))))


MODELS: dict[str, Callable[[], nn.Module]] = {
    "vgg": lambda: models.VGG(11, width=4),
    "resnet-pad": lambda: models.ResNet(8, width=4),
    "resnet-conv": lambda: models.ResNet(8, width=4, shortcut="conv"),
    "mobilenet": lambda: models.MobileNetV2(width=0.1),
    "densenet": lambda: models.DenseNet(10, growth=4),
}
NETS: dict[str, Callable[[], nn.Module]] = {
    **MODELS,
    "grouped": Grouped,
    "squeeze-excitation": SqueezeExcitation,
    "shared": Shared,
    "hourglass": Hourglass,
    "flattened": Flattened,
}


def build(name: str, seed: int = 0) -> nn.Module:
    """A net by its name, always with the same weights."""
    with torch.random.fork_rng([]):
        torch.manual_seed(seed)
        return randomize(NETS[name](), seed).eval()


@contextmanager
def hooked(model: nn.Module, graph: ChannelGraph, mask: Tensor) -> Iterator[nn.Module]:
    """The model with each consumer's *input* times its channels' mask: what a gate means, spelt out by hooks."""

    def multiply(channels: Tensor, axis: int) -> Any:
        def hook(module: nn.Module, inputs: tuple[Tensor]) -> tuple[Tensor]:
            x = inputs[0]
            shape = [1] * x.ndim
            shape[axis] = len(channels)
            return (x * mask[channels].to(x.dtype).view(shape),)

        return hook

    handles = []
    for name, module in model.named_modules():
        depthwise = isinstance(module, nn.modules.conv._ConvNd) and module.groups == module.in_channels > 1
        if isinstance(module, (nn.modules.conv._ConvNd, nn.Linear)) and not depthwise and name in graph.layers:
            handles.append(module.register_forward_pre_hook(multiply(graph.layers[name].inputs, -1 if isinstance(module, nn.Linear) else 1)))
    try:
        yield model
    finally:
        for handle in handles:
            handle.remove()


def cut_like_masked(net: nn.Module, graph: ChannelGraph, kept: dict[str, Tensor]) -> nn.Module:
    """The network after surgery, which must compute what it computes with its channels masked; both in float64."""
    x = torch.randn(2, *EXAMPLE.shape[1:], dtype=torch.float64)
    small = remove_channels(net, graph, kept)
    with hooked(net, graph, graph.join(kept, True)), torch.no_grad():
        torch.testing.assert_close(small(x), net(x), rtol=1e-10, atol=1e-10)
    return small


def some_kept(graph: ChannelGraph, seed: int, share: float = 0.5) -> dict[str, Tensor]:
    """A random choice that the network can live with: channels that must stay do, and no layer is emptied."""
    flat = torch.rand(len(graph), generator=torch.Generator().manual_seed(seed)) < share
    flat |= ~graph.removable
    for layer in graph.layers.values():
        for line in (layer.inputs, layer.outputs):
            if not flat[line].any():
                flat[line[0]] = True
    return graph.split(flat)


def fingerprint(model: nn.Module) -> dict[str, Tensor]:
    """All numbers of a model, to see later whether they are still the same bits."""
    return {name: tensor.detach().clone() for name, tensor in model.state_dict().items()}


def assert_same_bits(model: nn.Module, before: dict[str, Tensor]) -> None:
    now = model.state_dict()
    assert list(now) == list(before)
    for name, tensor in before.items():
        assert now[name].dtype == tensor.dtype, name
        assert torch.equal(now[name], tensor), name


def pictures(train: int = 48, test: int = 24, *, classes: int = 4, size: int = 16, channels: int = 3, seed: int = 0) -> Images:
    """Noise around a class's own picture: images that a small network learns in a few steps."""
    generator = torch.Generator().manual_seed(seed)
    prototypes = torch.randint(0, 256, (classes, channels, size, size), generator=generator)

    def split(count: int) -> Split:
        labels = torch.arange(count) % classes
        noise = torch.randint(-60, 61, (count, channels, size, size), generator=generator)
        return Split((prototypes[labels] + noise).clamp(0, 255).to(torch.uint8), labels)

    names = tuple(f"class {i}" for i in range(classes))
    return Images("pictures", split(train), split(test), names, (0.5,) * channels, (0.25,) * channels, "pictures made by the tests")


def write_tree(
    tree: Path, *, test: str = "test", classes: tuple[str, ...] = ("cat", "dog"), size: tuple[int, int] = (32, 32), ending: str = "png"
) -> dict[str, list[np.ndarray]]:
    """Images of one colour each; returns them by part."""
    written: dict[str, list[np.ndarray]] = {"train": [], test: []}
    for part, count in (("train", 3), (test, 2)):
        for label, name in enumerate(classes):
            (tree / part / name).mkdir(parents=True)
            for i in range(count):
                pixels = np.zeros((*size, 3), np.uint8) + np.array([40 * i, 100 * label % 256, 77], np.uint8)
                Image.fromarray(pixels).save(tree / part / name / f"{i}.{ending}")
                written[part].append(pixels)
    return written


# Short runs

QUICK: dict[str, Any] = {"epochs": 2, "batch_size": 16, "lr": 0.01, "mode": "fp32", "device": "cpu", "progress": False}


class Stopped(Exception):
    pass


def stop_after(monkeypatch: pytest.MonkeyPatch, epochs: int) -> None:
    """Runs end with an error after so many epochs."""
    epoch = loop.Training.epoch

    def stopping(self: Any, bar: Any) -> None:
        if len(self.history) == epochs:
            raise Stopped
        epoch(self, bar)

    monkeypatch.setattr(loop.Training, "epoch", stopping)
