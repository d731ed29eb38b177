"""The networks of the book: their sizes, what they refuse, and the weights that come with them."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from functools import cache, partial
from pathlib import Path
from typing import Any

import pytest
import torch
from nets import build
from torch import nn

from sdap_lite import _torchvision, accuracy, count_params, models
from sdap_lite.data import DatasetUnavailable, load
from sdap_lite.layers import ChannelPad

PRETRAINED = [tuple(name.split("-", 1)) for name in models.PRETRAINED]


@pytest.mark.parametrize(
    ("net", "count"),
    [
        (models.resnet20, 269_722),  # 0.27 million (He et al. 2016, table 6)
        (models.resnet56, 853_018),  # 0.85 million
        (models.vgg, 923_130),
        (lambda: models.vgg(width=64), 14_724_042),
        (models.mobilenetv2, 2_236_682),
        (models.densenet40, 1_059_298),  # 1.0 million (Huang et al. 2017, table 2)
    ],
)
def test_sizes_are_those_of_the_papers(net: Callable[[], nn.Module], count: int) -> None:
    assert count_params(net()) == count


@pytest.mark.parametrize("size", [16, 28, 32, 40])
def test_every_image_size_from_16_pixels_on(model: nn.Module, size: int) -> None:
    with torch.no_grad():
        assert model(torch.randn(2, 3, size, size)).shape == (2, 10)


@pytest.mark.parametrize("net", [models.VGG, models.ResNet, models.MobileNetV2, models.DenseNet])
def test_classes_and_channels(net: Callable[..., nn.Module]) -> None:
    sizes: dict[str, Any] = {models.MobileNetV2: {"width": 0.1}, models.DenseNet: {"depth": 7, "growth": 4}}.get(net, {"width": 4})  # type: ignore[call-overload]
    with torch.no_grad():
        assert net(classes=7, in_channels=1, **sizes).eval()(torch.randn(2, 1, 16, 16)).shape == (2, 7)


@pytest.mark.parametrize("depth", [20, 32, 44, 56])
def test_resnet_has_as_many_layers_as_it_says(depth: int) -> None:
    layers = [m for m in models.ResNet(depth, width=2).modules() if isinstance(m, (nn.Conv2d, nn.Linear))]
    assert len(layers) == depth
    projections = [m for m in models.ResNet(depth, width=2, shortcut="conv").modules() if isinstance(m, nn.Conv2d)]
    assert len(projections) == depth - 1 + 2


@pytest.mark.parametrize("depth", [11, 13, 16, 19])
def test_vgg_has_as_many_convolutions_as_the_paper(depth: int) -> None:
    """Two of the paper's three linear layers are left out, as on CIFAR-10 everywhere."""
    assert sum(isinstance(m, nn.Conv2d) for m in models.VGG(depth, width=2).modules()) == depth - 3


@pytest.mark.parametrize("depth", [7, 10, 40])
def test_densenet_has_as_many_layers_as_it_says(depth: int) -> None:
    assert sum(isinstance(m, (nn.Conv2d, nn.Linear)) for m in models.DenseNet(depth, growth=2).modules()) == depth


def test_wrong_sizes_are_refused() -> None:
    with pytest.raises(ValueError, match=r"a CIFAR ResNet has 6n \+ 2 layers \(8, 14, 20, …\), got depth=18"):
        models.ResNet(18)
    with pytest.raises(ValueError, match="shortcut must be 'pad' or 'conv', got 'none'"):
        models.ResNet(20, shortcut="none")
    with pytest.raises(ValueError, match=r"VGG comes in the depths \[11, 13, 16, 19\], got 12"):
        models.VGG(12)
    with pytest.raises(ValueError, match=r"a CIFAR DenseNet has 3n \+ 4 layers \(7, 10, …, 40\), got depth=12"):
        models.DenseNet(12)


@pytest.mark.parametrize("stride", [1, 2])
def test_channel_pad_by_hand(stride: int) -> None:
    x = torch.randn(2, 3, 8, 8)
    found = ChannelPad(1, 2, stride)(x)
    assert found.shape == (2, 6, 8 // stride, 8 // stride)
    assert torch.equal(found[:, 1:4], x[:, :, ::stride, ::stride])
    assert not found[:, [0, 4, 5]].any()
    assert str(ChannelPad(1, 2, stride)) == f"ChannelPad(before=1, after=2, stride={stride})"


def test_shortcut_adds_what_it_says() -> None:
    """A block whose convolutions are zero passes its padded input on."""
    block = build("resnet-pad").layer2[0]
    for p in block.parameters():
        p.data.zero_()
    x = torch.rand(2, 4, 8, 8)
    with torch.no_grad():
        torch.testing.assert_close(block(x), block.shortcut(x))


# torchvision's own


def test_stock_network_is_the_one_of_torchvision() -> None:
    wanted = _torchvision.load().models.mobilenet_v2(num_classes=7, width_mult=0.25)
    found = models.stock("mobilenet_v2", num_classes=7, width_mult=0.25)
    assert type(found) is type(wanted)
    assert {k: v.shape for k, v in found.state_dict().items()} == {k: v.shape for k, v in wanted.state_dict().items()}
    with pytest.raises(ValueError, match="Unknown model magic"):
        models.stock("magic")


# Weights that come with the library


@pytest.mark.parametrize(("net", "name"), PRETRAINED)
def test_pretrained_weights_are_what_their_card_says(net: str, name: str) -> None:
    model = getattr(models, net, partial(models.stock, net))(pretrained=name)
    assert all(p.dtype == torch.float32 for p in model.parameters())
    assert all(torch.isfinite(t).all() for t in model.state_dict().values())
    path = Path(models.__file__).parent / f"bundled/{net}-{name}"
    card = json.loads(path.with_suffix(".json").read_text())
    assert card, "data, recipe, accuracy and commit"
    assert path.with_suffix(".safetensors").stat().st_size < 2.2 * count_params(model) + 40_000, "half precision"


@pytest.mark.parametrize("net", [net for net, name in PRETRAINED if name == "fashion-mini"])
def test_pretrained_network_names_the_bundled_images(net: str) -> None:
    images = load("fashion-mini")
    assert accuracy(getattr(models, net)(pretrained="fashion-mini"), images, split=images.test.divide(400)[0]) > 0.8


@pytest.mark.parametrize(("net", "name", "size"), [("vgg", "cifar10", "width"), ("resnet20", "fashion-mini", "width"), ("densenet40", "cifar10", "growth")])
def test_pretrained_weights_need_their_own_sizes(net: str, name: str, size: str) -> None:
    with pytest.raises(ValueError, match=rf"pretrained='{name}' must have the sizes of those weights, got \{{.*'{size}': 4"):
        getattr(models, net)(pretrained=name, **{size: 4})


def test_unknown_weights_are_refused() -> None:
    with pytest.raises(ValueError, match=r"pretrained must be one of .*fashion-mini.* for resnet20, got 'mnist'"):
        models.resnet20(pretrained="mnist")
    with pytest.raises(ValueError, match=r"pretrained must be one of \(none for this network\) for mobilenetv2, got 'cifar10'"):
        models.mobilenetv2(pretrained="cifar10")
    with pytest.raises(ValueError, match="pretrained must be one of imagenette for mobilenet_v2, got 'cifar10'"):
        models.stock("mobilenet_v2", pretrained="cifar10")
    with pytest.raises(ValueError, match=r"must have the sizes of those weights, got \{'num_classes': 7\}: .*size mismatch"):
        models.stock("mobilenet_v2", pretrained="imagenette", num_classes=7)


@pytest.mark.parametrize("name", models.PRETRAINED)
def test_shipped_weights_are_held_against_their_card(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    net, _, data = name.partition("-")
    for ending in (".safetensors", ".json"):
        shutil.copy(models.BUNDLED / (name + ending), tmp_path)
    monkeypatch.setattr(models, "BUNDLED", tmp_path)
    net_of = getattr(models, net, partial(models.stock, net))
    net_of(pretrained=data)
    content = bytearray((tmp_path / f"{name}.safetensors").read_bytes())
    content[-1000] ^= 1
    (tmp_path / f"{name}.safetensors").write_bytes(content)
    with pytest.raises(ValueError, match=rf"{name}.safetensors must be the file that its card was written with, but its checksum differs"):
        net_of(pretrained=data)


# Pruned networks that come with the library


@pytest.fixture(scope="module")
def images_of() -> Callable[[str], Any]:
    """The test images of a set, if this machine has it."""

    @cache
    def of(name: str, **asked: Any) -> Any:
        try:
            return load(name, download=False, **asked)
        except DatasetUnavailable as error:
            pytest.skip(str(error).splitlines()[0])

    return of


@pytest.mark.parametrize("name", models.PRUNED)
def test_pruned_network_is_a_stock_one_only_narrower(name: str) -> None:
    card, model = models.pruned_card(name), models.pruned(name)
    net, _, percent = name.rsplit("-", 2)
    stock = models.NETS[card["net"]](in_channels=card["in_channels"], classes=len(card["classes"]))
    assert type(model) is type(stock)
    assert not any(m.training for m in model.modules())
    assert [n for n, _ in model.named_modules()] == [n for n, _ in stock.named_modules()]
    assert card["net"].removeprefix("torchvision:") == net
    assert card["dense"]["params"] == count_params(stock)
    assert card["pruned"]["params"] == count_params(model) <= (1 - int(percent) / 100) * count_params(stock)
    assert {"command", "commit", "data", "settings", "hardware", "versions"} <= card.keys()
    assert {"seed", "history", "validation", "seconds"} <= card["pruned"].keys()


@pytest.mark.parametrize("name", models.PRUNED)
def test_pruned_network_is_as_good_as_its_card_says(images_of: Callable[[str], Any], name: str) -> None:
    """On all test images: bfloat16 may round otherwise on another processor, and then a few images differ."""
    card = models.pruned_card(name)
    found = accuracy(models.pruned(name), images_of(name.rsplit("-", 2)[1], size=card["settings"]["size"]), mode=card["settings"]["mode"])
    assert found == pytest.approx(card["pruned"]["test"], abs=0.003)


def test_unknown_pruned_network_is_refused() -> None:
    with pytest.raises(ValueError, match=r"name must be one of .*vgg-half-cifar10-90.*, got 'vgg-cifar10-99'"):
        models.pruned("vgg-cifar10-99")
    with pytest.raises(ValueError, match=r"name must be one of .*, got '\.\./vgg-cifar10'"):
        models.pruned_card("../vgg-cifar10")


@pytest.mark.parametrize("name", models.PRUNED)
@pytest.mark.parametrize("ending", [".safetensors", ".json", ".card.json"])
def test_damaged_pruned_network_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, ending: str) -> None:
    shutil.copytree(models.BUNDLED / "pruned", tmp_path / "pruned")
    monkeypatch.setattr(models, "BUNDLED", tmp_path)
    models.pruned(name)
    path = tmp_path / "pruned" / (name + ending)
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    with pytest.raises(ValueError, match=r"must be|cannot be read"):
        models.pruned(name)


def test_shipped_networks_are_small() -> None:
    assert sum(path.stat().st_size for path in (models.BUNDLED / "pruned").iterdir()) < 25e6
