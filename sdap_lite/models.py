"""CIFAR-size networks: plain, residual, depthwise and concatenating, with pretrained weights.

Small enough to train on a laptop, and one of each kind of wiring that channel pruning must
understand. Every one takes images of any size from 16 pixels on. Chapter 1 introduces them.
:func:`stock` gives torchvision's own classes, which chapter 7 prunes.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from . import _torchvision, saving
from .checkpoint import read_sealed
from .layers import ChannelPad

__all__ = [
    "NETS",
    "PRETRAINED",
    "PRUNED",
    "VGG",
    "DenseNet",
    "MobileNetV2",
    "ResNet",
    "densenet40",
    "mobilenetv2",
    "pruned",
    "pruned_card",
    "resnet20",
    "resnet56",
    "stock",
    "vgg",
]

BUNDLED = Path(__file__).parent / "bundled"
#: The pretrained weights that lie in the package, as ``"<net>-<data>"``.
PRETRAINED = tuple(sorted(path.stem for path in BUNDLED.glob("*-*.safetensors")))
#: The pruned networks that lie in the package, as ``"<net>-<data>-<percent of the parameters gone>"``.
PRUNED = tuple(sorted(path.stem for path in (BUNDLED / "pruned").glob("*.safetensors")))


def conv_bn(inputs: int, outputs: int, kernel: int = 3, stride: int = 1, groups: int = 1) -> list[nn.Module]:
    """A convolution that keeps the image size (at stride 1), and its batch norm."""
    conv = nn.Conv2d(inputs, outputs, kernel, stride, kernel // 2, groups=groups, bias=False)
    return [conv, nn.BatchNorm2d(outputs)]


class Block(nn.Module):
    """The basic residual block: two 3x3 convolutions beside a shortcut."""

    def __init__(self, inputs: int, outputs: int, stride: int, shortcut: str) -> None:
        super().__init__()
        self.conv1, self.bn1 = conv_bn(inputs, outputs, stride=stride)
        self.conv2, self.bn2 = conv_bn(outputs, outputs)
        if stride == 1 and inputs == outputs:
            self.shortcut: nn.Module = nn.Identity()
        elif shortcut == "pad":
            before = (outputs - inputs) // 2
            self.shortcut = ChannelPad(before, outputs - inputs - before, stride)
        else:
            self.shortcut = nn.Sequential(*conv_bn(inputs, outputs, kernel=1, stride=stride))

    def forward(self, x: Tensor) -> Tensor:
        y = F.relu(self.bn1(self.conv1(x)))
        y = self.bn2(self.conv2(y))
        return F.relu(y + self.shortcut(x))


class ResNet(nn.Module):
    """The CIFAR ResNet of He et al. 2016, section 4.2: three stages of basic blocks.

    Args:
        depth: 6n + 2 layers (20, 32, 44, 56, 110).
        classes: number of classes.
        in_channels: 3 for colour images, 1 for grey ones.
        width: channels of the first stage; the second has twice, the third four times as many.
        shortcut: ``"pad"`` (option A, the CIFAR standard) or ``"conv"`` (option B, a projection).
    """

    def __init__(self, depth: int = 20, classes: int = 10, in_channels: int = 3, *, width: int = 16, shortcut: str = "pad") -> None:
        super().__init__()
        if depth % 6 != 2 or depth < 8:
            raise ValueError(f"a CIFAR ResNet has 6n + 2 layers (8, 14, 20, …), got depth={depth}")
        if shortcut not in ("pad", "conv"):
            raise ValueError(f"shortcut must be 'pad' or 'conv', got {shortcut!r}")
        self.layer1: nn.Sequential
        self.layer2: nn.Sequential
        self.layer3: nn.Sequential
        self.conv1, self.bn1 = conv_bn(in_channels, width)
        blocks, inputs = (depth - 2) // 6, width
        for stage, outputs in enumerate((width, 2 * width, 4 * width), start=1):
            layers = []
            for i in range(blocks):
                layers.append(Block(inputs, outputs, 2 if stage > 1 and i == 0 else 1, shortcut))
                inputs = outputs
            setattr(self, f"layer{stage}", nn.Sequential(*layers))
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.fc = nn.Linear(inputs, classes)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.bn1(self.conv1(x)))
        for stage in (self.layer1, self.layer2, self.layer3):
            x = stage(x)
        return self.fc(torch.flatten(self.pool(x), 1))


class VGG(nn.Module):
    """VGG with batch norm and one linear layer (Simonyan & Zisserman 2015, as used on CIFAR-10).

    Args:
        depth: 11, 13, 16 or 19.
        classes: number of classes.
        in_channels: 3 for colour images, 1 for grey ones.
        width: channels of the first layer (64 in the paper); the others follow.
    """

    blocks: ClassVar = {11: (1, 1, 2, 2, 2), 13: (2, 2, 2, 2, 2), 16: (2, 2, 3, 3, 3), 19: (2, 2, 4, 4, 4)}

    def __init__(self, depth: int = 16, classes: int = 10, in_channels: int = 3, *, width: int = 64) -> None:
        super().__init__()
        if depth not in self.blocks:
            raise ValueError(f"VGG comes in the depths {sorted(self.blocks)}, got {depth}")
        layers: list[nn.Module] = []
        inputs = in_channels
        for i, (repeats, factor) in enumerate(zip(self.blocks[depth], (1, 2, 4, 8, 8), strict=True)):
            # The pooling stands before a block, so that a small image is not pooled away at the end.
            layers += [nn.MaxPool2d(2)] if i else []
            for _ in range(repeats):
                layers += [*conv_bn(inputs, width * factor), nn.ReLU(inplace=True)]
                inputs = width * factor
        self.features = nn.Sequential(*layers)
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.fc = nn.Linear(inputs, classes)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(torch.flatten(self.pool(self.features(x)), 1))


class InvertedResidual(nn.Module):
    """Expand, filter each channel on its own (depthwise), project: Sandler et al. 2018."""

    def __init__(self, inputs: int, outputs: int, stride: int, expand: int) -> None:
        super().__init__()
        hidden = inputs * expand
        layers = [*conv_bn(inputs, hidden, kernel=1), nn.ReLU6(inplace=True)] if expand > 1 else []
        layers += [*conv_bn(hidden, hidden, stride=stride, groups=hidden), nn.ReLU6(inplace=True)]
        layers += conv_bn(hidden, outputs, kernel=1)
        self.layers = nn.Sequential(*layers)
        self.residual = stride == 1 and inputs == outputs

    def forward(self, x: Tensor) -> Tensor:
        return x + self.layers(x) if self.residual else self.layers(x)


class MobileNetV2(nn.Module):
    """MobileNetV2 for 32-pixel images: the first strides of the ImageNet net are left out.

    Args:
        classes: number of classes.
        in_channels: 3 for colour images, 1 for grey ones.
        width: multiplies every layer's channel count (1.0 is the paper's).
    """

    # expansion, channels, repeats, stride
    stages = ((1, 16, 1, 1), (6, 24, 2, 1), (6, 32, 3, 2), (6, 64, 4, 2), (6, 96, 3, 1), (6, 160, 3, 2), (6, 320, 1, 1))

    def __init__(self, classes: int = 10, in_channels: int = 3, *, width: float = 1.0) -> None:
        super().__init__()
        inputs, last = max(4, int(32 * width)), max(4, int(1280 * width))
        layers: list[nn.Module] = [*conv_bn(in_channels, inputs), nn.ReLU6(inplace=True)]
        for expand, channels, repeats, stride in self.stages:
            outputs = max(4, int(channels * width))
            for i in range(repeats):
                layers.append(InvertedResidual(inputs, outputs, stride if i == 0 else 1, expand))
                inputs = outputs
        layers += [*conv_bn(inputs, last, kernel=1), nn.ReLU6(inplace=True)]
        self.features = nn.Sequential(*layers)
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.fc = nn.Linear(last, classes)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(torch.flatten(self.pool(self.features(x)), 1))


class DenseLayer(nn.Module):
    """Norm, activation, convolution; the new channels are put beside the old ones."""

    def __init__(self, inputs: int, growth: int) -> None:
        super().__init__()
        self.bn = nn.BatchNorm2d(inputs)
        self.conv = nn.Conv2d(inputs, growth, 3, padding=1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([x, self.conv(F.relu(self.bn(x)))], 1)


class DenseNet(nn.Module):
    """The CIFAR DenseNet of Huang et al. 2017 without bottlenecks: every layer sees all before it.

    Args:
        depth: 3n + 4 layers (40 in the paper).
        classes: number of classes.
        in_channels: 3 for colour images, 1 for grey ones.
        growth: channels that each layer adds.
    """

    def __init__(self, depth: int = 40, classes: int = 10, in_channels: int = 3, *, growth: int = 12) -> None:
        super().__init__()
        if depth % 3 != 1 or depth < 7:
            raise ValueError(f"a CIFAR DenseNet has 3n + 4 layers (7, 10, …, 40), got depth={depth}")
        inputs = 2 * growth
        layers: list[nn.Module] = [nn.Conv2d(in_channels, inputs, 3, padding=1, bias=False)]
        for stage in range(3):
            if stage:
                layers += [nn.BatchNorm2d(inputs), nn.ReLU(inplace=True), nn.Conv2d(inputs, inputs, 1, bias=False), nn.AvgPool2d(2)]
            for _ in range((depth - 4) // 3):
                layers.append(DenseLayer(inputs, growth))
                inputs += growth
        self.features = nn.Sequential(*layers, nn.BatchNorm2d(inputs), nn.ReLU(inplace=True))
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.fc = nn.Linear(inputs, classes)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(torch.flatten(self.pool(self.features(x)), 1))


def resnet20(*, pretrained: str | None = None, **sizes: Any) -> ResNet:
    """ResNet-20: 0.27 million parameters; He et al. 2016.

    Args:
        pretrained: the data set that its weights were trained on, see :data:`PRETRAINED`.
        **sizes: see :class:`ResNet`.

    Raises:
        ValueError: there are no such weights, or they have other sizes.

    >>> sum(p.numel() for p in resnet20().parameters())
    269722
    """
    return _build("resnet20", pretrained, lambda **s: ResNet(20, **s), sizes)


def resnet56(*, pretrained: str | None = None, **sizes: Any) -> ResNet:
    """ResNet-56: 0.85 million parameters. Arguments as for :func:`resnet20`."""
    return _build("resnet56", pretrained, lambda **s: ResNet(56, **s), sizes)


def vgg(*, pretrained: str | None = None, **sizes: Any) -> VGG:
    """VGG-16 with batch norm at a quarter of the paper's width: 0.92 million parameters.

    Arguments as for :func:`resnet20`; ``width=64`` gives the paper's.
    """
    return _build("vgg", pretrained, lambda **s: VGG(16, **{"width": 16, **s}), sizes)


def mobilenetv2(*, pretrained: str | None = None, **sizes: Any) -> MobileNetV2:
    """MobileNetV2 for 32-pixel images: 2.2 million parameters. Arguments as for :func:`resnet20`."""
    return _build("mobilenetv2", pretrained, MobileNetV2, sizes)


def densenet40(*, pretrained: str | None = None, **sizes: Any) -> DenseNet:
    """DenseNet-40 with growth 12: 1.1 million parameters. Arguments as for :func:`resnet20`."""
    return _build("densenet40", pretrained, lambda **s: DenseNet(40, **s), sizes)


def stock(name: str, *, pretrained: str | None = None, num_classes: int = 10, **options: Any) -> nn.Module:
    """A network of torchvision's own: ``torchvision.models.get_model(name, weights=None, …)``. Chapter 7.

    The class is torchvision's, untouched. What this adds: it also works beside a PyTorch that
    torchvision was not built for, and it knows the weights that come with this library.

    Args:
        name: torchvision's, such as ``"mobilenet_v2"``.
        pretrained: the data set that its weights were trained on, see :data:`PRETRAINED`.
        num_classes: how many classes.
        **options: whatever else the network's own function takes.

    Raises:
        ValueError: torchvision has no such network, or there are no such weights, or they have other sizes.

    >>> type(stock("mobilenet_v2")).__module__
    'torchvision.models.mobilenetv2'
    """
    build = _torchvision.load().models.get_model
    return _build(name, pretrained, lambda **s: build(name, weights=None, **s), {"num_classes": num_classes, **options})


#: Networks by the names that recipes and cards use, each a function of the images' channels and of the classes.
NETS: dict[str, Callable[..., nn.Module]] = {
    "vgg": vgg,  # a quarter of the paper's width
    "vgg-half": partial(vgg, width=32),
    "vgg-full": partial(vgg, width=64),
    "resnet20": resnet20,
    "resnet56": resnet56,
    "mobilenetv2-half": partial(mobilenetv2, width=0.5),
    "mobilenetv2": mobilenetv2,
    "densenet40": densenet40,
    "torchvision:resnet18": lambda in_channels, classes, **pretrained: stock("resnet18", num_classes=classes, **pretrained),
    "torchvision:densenet121": lambda in_channels, classes, **pretrained: stock("densenet121", num_classes=classes, **pretrained),
    "torchvision:mobilenet_v2": lambda in_channels, classes, **pretrained: stock("mobilenet_v2", num_classes=classes, **pretrained),
}


def pruned(name: str) -> nn.Module:
    """A pruned network that comes with the library, with its weights, in eval mode. Chapter 8.

    It is of the stock class, only narrower. :func:`pruned_card` says how it was made and what it is worth.

    Args:
        name: one of :data:`PRUNED`.

    Raises:
        ValueError: there is no such network, or its files are not those that it was shipped with.

    >>> small = pruned("vgg-cifar10-75")
    >>> type(small).__name__, sum(p.numel() for p in small.parameters()) <= 0.25 * 923130
    ('VGG', True)
    """
    card = pruned_card(name)
    return saving.load(BUNDLED / "pruned" / name, NETS[card["net"]](in_channels=card["in_channels"], classes=len(card["classes"])))


def pruned_card(name: str) -> dict[str, Any]:
    """What a shipped pruned network is: the command, data and seed that made it, its accuracy and size, and the dense network's.

    Args:
        name: one of :data:`PRUNED`.

    Raises:
        ValueError: there is no such network, or the card is damaged.
    """
    if name not in PRUNED:
        raise ValueError(f"name must be one of {', '.join(PRUNED)}, got {name!r}")
    return read_sealed(BUNDLED / "pruned" / f"{name}.card.json")


def _build(net: str, pretrained: str | None, build: Callable[..., Any], sizes: dict[str, Any]) -> Any:
    if pretrained is None:
        return build(**sizes)
    if f"{net}-{pretrained}" not in PRETRAINED:
        there = [name.removeprefix(f"{net}-") for name in PRETRAINED if name.startswith(f"{net}-")]
        raise ValueError(f"pretrained must be one of {', '.join(there) or '(none for this network)'} for {net}, got {pretrained!r}")
    from safetensors.torch import load as from_bytes

    if pretrained == "fashion-mini":
        sizes = {"in_channels": 1, **sizes}
    model = build(**sizes)
    path = BUNDLED / f"{net}-{pretrained}.safetensors"
    content, card = path.read_bytes(), json.loads(path.with_suffix(".json").read_text(encoding="utf-8"))
    if hashlib.sha256(content).hexdigest() != card.get("sha256"):
        raise ValueError(f"{path} must be the file that its card was written with, but its checksum differs: install the library again")
    # Stored as fp16; copied into the model's own float32 tensors.
    try:
        model.load_state_dict(from_bytes(content))
    except RuntimeError as error:
        raise ValueError(
            f"a network with pretrained={pretrained!r} must have the sizes of those weights, got {sizes}: {str(error).splitlines()[-1].strip()}"
        ) from error
    return model
