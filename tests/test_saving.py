"""Saved models: the same bits again, or a reason why not; and ONNX."""

from __future__ import annotations

import copy
import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from nets import EXAMPLE, NETS, assert_same_bits, build, fingerprint, pictures, some_kept
from safetensors.torch import load as read_tensors
from safetensors.torch import save as to_bytes
from torch import Tensor, nn

from sdap_lite import Gates, count_params, export_onnx, load, models, prune, remove_channels, save, threshold, trace
from sdap_lite.checkpoint import sealed


def pruned(name: str, seed: int = 0) -> nn.Module:
    net = build(name)
    graph = trace(net, EXAMPLE)
    return remove_channels(net, graph, some_kept(graph, seed))


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    save(pruned("resnet-pad"), tmp_path / "net")
    return tmp_path / "net"


def files(path: Path) -> tuple[Path, Path]:
    return path.with_name(path.name + ".safetensors"), path.with_name(path.name + ".json")


def edit(path: Path, change: Callable[[dict[str, Any]], object]) -> None:
    """Changes a recipe by hand, with the right checksum."""
    recipe = files(path)[1]
    card = json.loads(recipe.read_text())
    del card["checksum"]
    change(card)
    recipe.write_text(json.dumps(sealed(card)))


def exchange(path: Path, content: bytes) -> None:
    """Exchanges the weights, with the right checksum in the recipe."""
    files(path)[0].write_bytes(content)
    edit(path, lambda card: card.update(sha256=hashlib.sha256(content).hexdigest()))


# Round trips


@pytest.mark.parametrize("name", list(NETS))
def test_round_trip_is_exact(tmp_path: Path, name: str) -> None:
    small = pruned(name)
    save(small, tmp_path / "net")
    stock = build(name, seed=9)
    before = fingerprint(stock)
    again = load(tmp_path / "net", stock)
    assert type(again) is type(small)
    assert_same_bits(again, fingerprint(small))
    assert str(again) == str(small), "what the modules say of themselves is the same too"
    x = torch.randn(2, 3, 16, 16)
    with torch.no_grad():
        assert torch.equal(again(x), small(x))
    assert_same_bits(stock, before)


class Transient(nn.Module):
    """It has buffers that are not persistent: one value a channel, and some that are nobody's business."""

    def __init__(self, side: int = 3) -> None:
        super().__init__()
        self.conv, self.fc = nn.Conv2d(3, 8, 3), nn.Linear(8, 5)
        self.register_buffer("scale", torch.rand(8, 1, 1), persistent=False)
        self.register_buffer("cache", torch.zeros([2] * side), persistent=False)
        self.register_buffer("phases", torch.zeros(4, dtype=torch.complex128), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc((self.conv(x) * self.scale).mean((2, 3)))


def test_buffers_that_are_not_persistent_come_back(tmp_path: Path) -> None:
    net = Transient()
    graph = trace(net, EXAMPLE)
    small = remove_channels(net, graph, some_kept(graph, 0), check=False)  # whose float64 is not for complex numbers
    assert small.scale.shape != net.scale.shape
    save(small, tmp_path / "net")
    again = load(tmp_path / "net", Transient(side=1))
    x = torch.rand(2, 3, 16, 16)
    assert torch.equal(again(x), small.eval()(x))
    assert (again.scale.shape, again.cache.shape) == (small.scale.shape, small.cache.shape)
    assert again.state_dict().keys() == net.state_dict().keys()


def test_recipe_that_has_no_buffers_that_are_not_persistent_is_loaded(tmp_path: Path) -> None:
    """As earlier versions wrote it."""
    net = Transient()
    save(net, tmp_path / "net")
    exchange(tmp_path / "net", to_bytes(net.state_dict()))
    assert torch.equal(load(tmp_path / "net", net).scale, net.scale)


class Versioned(nn.Linear):
    def get_extra_state(self) -> dict[str, int]:
        return {"version": 1}

    def set_extra_state(self, state: object) -> None:
        pass


def test_state_that_is_no_tensor_is_not_saved(tmp_path: Path) -> None:
    message = r"the model's state must be tensors, but '_extra_state' is a dict: take get_extra_state out of the class"
    with pytest.raises(ValueError, match=message):
        save(Versioned(3, 2), tmp_path / "net")
    assert not list(tmp_path.iterdir())
    save(nn.Linear(3, 2), tmp_path / "net")
    edit(tmp_path / "net", lambda card: card.update({"class": "Versioned"}))
    with pytest.raises(ValueError, match=message):
        load(tmp_path / "net", Versioned(3, 2))


def test_whole_model_and_any_width_of_stock_model(tmp_path: Path) -> None:
    model = build("vgg")
    save(model, str(tmp_path / "net.v1"))
    assert {p.name for p in tmp_path.iterdir()} == {"net.v1.safetensors", "net.v1.json"}
    assert_same_bits(load(tmp_path / "net.v1", models.VGG(11, width=8)), fingerprint(model))


def test_loaded_model_is_in_eval_mode_and_can_be_trained(saved: Path) -> None:
    again = load(saved, build("resnet-pad").train())
    assert not any(m.training for m in again.modules())
    again.train()(torch.randn(4, 3, 16, 16)).square().sum().backward()
    assert all(p.grad is not None for p in again.parameters())


def test_saving_leaves_the_model_alone(tmp_path: Path) -> None:
    model = build("resnet-pad").train()
    before = fingerprint(model)
    save(model, tmp_path / "net")
    assert_same_bits(model, before)
    assert model.training


def test_loaded_model_can_be_pruned_again(saved: Path, tmp_path: Path) -> None:
    once = load(saved, build("resnet-pad"))
    graph = trace(once, EXAMPLE)
    kept = threshold(graph, graph.split(torch.rand(len(graph))), 0.3)
    twice = remove_channels(once, graph, kept)
    save(twice, tmp_path / "twice")
    assert_same_bits(load(tmp_path / "twice", build("resnet-pad")), fingerprint(twice))
    result = prune(once, pictures(), rate=0.3, epochs=1, batch_size=16, mode="fp32", device="cpu", progress=False)
    assert count_params(result.model) <= 0.7 * count_params(once)


def test_channels_last_model_is_saved(tmp_path: Path) -> None:
    small = pruned("vgg").to(memory_format=torch.channels_last)
    save(small, tmp_path / "net")
    assert_same_bits(load(tmp_path / "net", build("vgg")), fingerprint(small))


def test_saving_again_replaces_both_files(saved: Path) -> None:
    other = pruned("resnet-pad", seed=5)
    save(other, saved)
    assert_same_bits(load(saved, build("resnet-pad")), fingerprint(other))
    assert sorted(p.name for p in saved.parent.iterdir()) == ["net.json", "net.safetensors"]


def test_recipe_holds_numbers_and_names_only(saved: Path) -> None:
    card = json.loads(files(saved)[1].read_text())
    assert card.keys() == {"format", "class", "sha256", "modules", "checksum"}
    assert (card["format"], card["class"]) == ("sdap_lite 1", "ResNet")
    for module in card["modules"].values():
        assert all(type(v) is int for k, v in module.items() if k != "class")


# Layers that are not torch.nn's own, or not quite


class Cosine(nn.Module):
    """An ArcFace head, without its margin."""

    def __init__(self) -> None:
        super().__init__()
        self.in_features, self.out_features = 8, 4
        self.weight = nn.Parameter(torch.randn(4, 8))

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(F.normalize(x), F.normalize(self.weight))


class SubCenters(nn.Linear):
    """Three rows for each class: a subclass whose weight has another shape than its widths say."""

    def __init__(self) -> None:
        super().__init__(8, 4, bias=False)
        self.weight = nn.Parameter(torch.randn(12, 8))

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(x, F.normalize(self.weight)).unflatten(1, (4, 3)).amax(2)


class Bilinear(nn.Bilinear):
    def __init__(self) -> None:
        super().__init__(8, 8, 4)

    def forward(self, x: Tensor) -> Tensor:  # type: ignore[override]
        return super().forward(x, x)


class FilterResponseNorm(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.num_features = 8
        self.weight, self.bias = nn.Parameter(torch.randn(1, 8, 1, 1)), nn.Parameter(torch.randn(1, 8, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        return x * torch.rsqrt(x.square().mean((2, 3), keepdim=True) + 1e-6) * self.weight + self.bias


class Gamma(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.num_features = 8
        self.gamma = nn.Parameter(torch.randn(1, 8, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        return x * self.gamma


class NormAndGamma(nn.BatchNorm2d):
    def __init__(self) -> None:
        super().__init__(8)
        self.gamma = nn.Parameter(torch.randn(1, 8, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) * self.gamma


class Line(nn.Module):
    """A norm's attributes and a norm's shape."""

    def __init__(self) -> None:
        super().__init__()
        self.num_features = 8
        self.weight = nn.Parameter(torch.randn(8))

    def forward(self, x: Tensor) -> Tensor:
        return x * self.weight[:, None, None]


class Computed(nn.Module):
    """A width that nobody can set."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(1, 8, 1, 1))

    @property
    def num_features(self) -> int:
        return self.weight.shape[1]

    def forward(self, x: Tensor) -> Tensor:
        return x * self.weight


OWN: list[type[nn.Module]] = [Cosine, SubCenters, Bilinear, FilterResponseNorm, Gamma, NormAndGamma, Line, Computed]


def with_own(layer: type[nn.Module], seed: int = 0) -> nn.Module:
    """A net with one such layer, as its head or behind its first convolution."""
    with torch.random.fork_rng([]):
        torch.manual_seed(seed)
        own = layer()
        middle, head = (nn.Identity(), own) if layer in (Cosine, SubCenters, Bilinear) else (own, nn.Linear(8, 4))
        return nn.Sequential(nn.Conv2d(3, 8, 3), middle, nn.ReLU(), nn.Conv2d(8, 8, 3, groups=2), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), head).eval()


def cut(model: nn.Module) -> nn.Module:
    graph = trace(model, EXAMPLE)
    assert graph.removable.any()
    return remove_channels(model, graph, some_kept(graph, 0))


def assert_loads(model: nn.Module, path: Path, stock: nn.Module) -> nn.Module:
    save(model, path)
    again = load(path, stock)
    assert_same_bits(again, fingerprint(model))
    assert count_params(again) == count_params(model), "what was tied is tied"
    x = torch.randn(2, 3, 16, 16)
    with torch.no_grad():
        assert torch.equal(again(x), model(x))
    return again


@pytest.mark.parametrize("layer", OWN)
def test_own_layer_is_loaded(tmp_path: Path, layer: type[nn.Module]) -> None:
    model = with_own(layer)
    assert_loads(model, tmp_path / "whole", with_own(layer, seed=1))
    small = cut(model)
    assert count_params(small) < count_params(model)
    again = assert_loads(small, tmp_path / "small", with_own(layer, seed=1))
    assert_loads(model, tmp_path / "whole", again)


def test_model_that_is_one_layer_is_loaded(tmp_path: Path) -> None:
    layer = nn.Conv2d(3, 4, 3)
    assert_loads(layer, tmp_path / "net", nn.Conv2d(3, 8, 3))


def test_recipes_of_earlier_versions_are_loaded(tmp_path: Path) -> None:
    """They hold no shapes of a layer that has widths: a norm's are guessed from them, other layers' are the stock ones."""
    for name, model, stock in (
        ("norm", cut(with_own(Line)), with_own(Line, seed=1)),
        ("head", with_own(Cosine), with_own(Cosine, seed=1)),
        ("frn", with_own(FilterResponseNorm), with_own(FilterResponseNorm, seed=1)),
    ):
        save(model, tmp_path / name)
        edit(tmp_path / name, lambda card: card.pop("parameters"))
        assert_same_bits(load(tmp_path / name, stock), fingerprint(model))


def test_shapes_of_own_layers_are_checked(tmp_path: Path) -> None:
    path = tmp_path / "net"
    save(with_own(FilterResponseNorm), path)
    for shape in ([1, 2**40, 1, 1], [1, 7, 1, 1], [8], [], None, "8", {}, 8):
        edit(path, lambda card, shape=shape: card["parameters"].update({"1.weight": shape}))  # type: ignore[misc]
        with pytest.raises(ValueError, match=r"must hold the model's tensors in the recipe's widths, but these differ: \['1.weight'\]"):
            load(path, with_own(FilterResponseNorm))


def test_stock_layer_is_of_no_other_shape_than_its_widths_say(tmp_path: Path) -> None:
    """A recipe that names another one would make a convolution whose kernel is not what it says of itself."""
    net = nn.Sequential(nn.Conv2d(3, 4, 3))
    net[0].weight = nn.Parameter(torch.randn(4, 3, 5, 5))
    save(net, tmp_path / "net")
    edit(tmp_path / "net", lambda card: card.update(parameters={"0.weight": [4, 3, 5, 5]}))
    with pytest.raises(ValueError, match=r"in the recipe's widths, but these differ: \['0.weight'\]"):
        load(tmp_path / "net", nn.Sequential(nn.Conv2d(3, 4, 3)))


# One tensor under several names


class TwoNames(nn.Module):
    """A convolution and a norm that are found by two names each."""

    def __init__(self, seed: int = 0, *, shared: bool = True) -> None:
        super().__init__()
        with torch.random.fork_rng([]):
            torch.manual_seed(seed)
            self.conv, self.norm = nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8)
            first = [self.conv, self.norm] if shared else [nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8)]
            self.body = nn.Sequential(*first, nn.ReLU(), nn.Conv2d(8, 6, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(6, 4))

    def forward(self, x: Tensor) -> Tensor:
        return self.body(x)


class TiedWeights(nn.Module):
    """Two convolutions of one weight, and a layer that has one parameter under two names."""

    def __init__(self, seed: int = 0, *, shared: bool = True) -> None:
        super().__init__()
        with torch.random.fork_rng([]):
            torch.manual_seed(seed)
            self.stem, self.a, self.b = nn.Conv2d(3, 8, 3), nn.Conv2d(8, 8, 3, padding=1), nn.Conv2d(8, 8, 3, padding=1)
            self.fc, self.scale, self.shift = nn.Linear(8, 4), nn.Parameter(torch.randn(1, 8, 1, 1)), nn.Parameter(torch.randn(1, 8, 1, 1))
        if shared:
            self.b.weight, self.shift = self.a.weight, self.scale

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.stem(x)) * self.scale + self.shift
        return self.fc(F.relu(self.b(F.relu(self.a(x)))).mean((2, 3)))


TIED = {
    TwoNames: {f"body.{i}.{key}" for i, keys in enumerate(["weight bias", "weight bias running_mean running_var num_batches_tracked"]) for key in keys.split()},
    TiedWeights: {"b.weight", "shift"},
}


@pytest.mark.parametrize("net", TIED)
def test_shared_tensor_is_saved_once_and_stays_shared(tmp_path: Path, net: Any) -> None:
    model = net().eval()
    for name, saved in (("whole", model), ("small", cut(model))):
        again = assert_loads(saved, tmp_path / name, net(seed=1))
        names = read_tensors(files(tmp_path / name)[0].read_bytes()).keys()
        assert saved.state_dict().keys() - names == TIED[net]
        assert names < saved.state_dict().keys()
        assert again.state_dict(keep_vars=True)[min(TIED[net])].requires_grad
    assert_loads(model, tmp_path / "whole", again)


@pytest.mark.parametrize("net", TIED)
def test_shared_tensor_is_not_loaded_into_two(tmp_path: Path, net: Any) -> None:
    save(net(), tmp_path / "net")
    with pytest.raises(
        ValueError, match=r"the model to load into must tie what .*net.json ties, but has two tensors for \['(body.0.weight and conv|shift and scale)"
    ):
        load(tmp_path / "net", net(shared=False))


def test_two_tensors_are_loaded_into_one_where_they_are_equal(tmp_path: Path) -> None:
    two = TiedWeights(shared=False).eval()
    save(two, tmp_path / "net")
    message = r"net.safetensors must hold equal numbers for names that the model ties to one tensor, but these differ: \['shift and scale', 'b.weight and a"
    with pytest.raises(ValueError, match=message):
        load(tmp_path / "net", TiedWeights())
    two.load_state_dict(TiedWeights().state_dict())
    save(two, tmp_path / "net")
    again = load(tmp_path / "net", TiedWeights(seed=1))
    assert_same_bits(again, fingerprint(two))
    assert again.get_submodule("b").weight is again.get_submodule("a").weight


def test_tensors_that_are_views_of_the_same_numbers_are_saved(tmp_path: Path) -> None:
    numbers = torch.randn(8)
    model, stock = with_own(Gamma), with_own(Gamma, seed=1)
    for name, end in (("all_of_them", 8), ("some", 4)):
        model.register_buffer(name, numbers[:end])
        stock.register_buffer(name, torch.zeros(end))
    save(model, tmp_path / "net")
    assert_same_bits(load(tmp_path / "net", stock), fingerprint(model))


@pytest.mark.parametrize("part", [{"parameters": [3]}, {"parameters": None}, {"tied": []}, {"tied": {"fc.bias": 3}}, {"tied": {"fc.bias": ["fc.weight"]}}])
def test_recipe_with_other_things_than_shapes_and_ties_is_refused(saved: Path, part: dict[str, Any]) -> None:
    edit(saved, lambda card: card.update(part))
    with pytest.raises(ValueError, match=r"net.json must hold shapes and ties by the tensors' names"):
        load(saved, build("resnet-pad"))


def test_ties_that_would_fill_the_memory_are_refused(tmp_path: Path) -> None:
    """A small file must not ask for a tensor in each of many layers."""
    net = nn.Sequential(*(nn.Conv2d(8, 8, 1, bias=False) for _ in range(3)))
    save(net[:1], tmp_path / "net")
    edit(
        tmp_path / "net",
        lambda card: card.update(modules={f"{i}": card["modules"]["0"] for i in range(3)}, tied={"1.weight": "0.weight", "2.weight": "0.weight"}),
    )
    with pytest.raises(ValueError, match=r"the model to load into must tie what .*, but has two tensors for \['1.weight and 0.weight', '2.weight"):
        load(tmp_path / "net", net)


def test_ties_to_what_is_not_there_are_refused(tmp_path: Path) -> None:
    save(TiedWeights(), tmp_path / "net")
    edit(tmp_path / "net", lambda card: card.update(tied={"a.weight": "b.weight"}))
    with pytest.raises(ValueError, match=r"in the recipe's widths, but these differ: \['shift', 'b.weight'\]"):
        load(tmp_path / "net", TiedWeights())


# What is refused


def test_gated_model_is_not_saved(tmp_path: Path) -> None:
    model = build("vgg")
    message = r"the model must have no gates or other parametrizations: detach\(\) them first"
    with Gates(trace(model, EXAMPLE)).attach(model), pytest.raises(ValueError, match=message):
        save(model, tmp_path / "net")
    assert not list(tmp_path.iterdir())


def test_missing_folder_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"the folder must exist, but there is no .*nowhere"):
        save(build("vgg"), tmp_path / "nowhere/net")


def test_missing_files_are_refused(saved: Path) -> None:
    with pytest.raises(ValueError, match=r"other.json must be a recipe, but cannot be read as one"):
        load(saved.with_name("other"), build("resnet-pad"))
    files(saved)[0].unlink()
    with pytest.raises(ValueError, match=r"net.safetensors must be the model's weights, but cannot be read"):
        load(saved, build("resnet-pad"))


@pytest.mark.parametrize("place", [10, 5000, -1])
def test_changed_bit_is_found(saved: Path, place: int) -> None:
    content = bytearray(files(saved)[0].read_bytes())
    content[place] ^= 1
    files(saved)[0].write_bytes(content)
    with pytest.raises(ValueError, match=r"net.safetensors must be the file that net.json was written with, but its checksum differs"):
        load(saved, build("resnet-pad"))


@pytest.mark.parametrize("length", [0, 7, 1000])
def test_truncated_weights_are_refused(saved: Path, length: int) -> None:
    content = files(saved)[0].read_bytes()[:length]
    files(saved)[0].write_bytes(content)
    with pytest.raises(ValueError, match="its checksum differs: it was damaged or exchanged"):
        load(saved, build("resnet-pad"))
    exchange(saved, content)
    with pytest.raises(ValueError, match=r"net.safetensors must be a safetensors file, but cannot be read as one"):
        load(saved, build("resnet-pad"))


@pytest.mark.parametrize("ending", [0, 1], ids=["weights", "recipe"])
def test_damage_anywhere_is_found(saved: Path, ending: int) -> None:
    """One bit of one byte, at every 97th place; where the recipe's meaning is the same all the same, the model is."""
    path, stock, wanted = files(saved)[ending], build("resnet-pad"), fingerprint(load(saved, build("resnet-pad")))
    content, reasons = path.read_bytes(), list[str]()
    for place in range(0, len(content), 97):
        damaged = bytearray(content)
        damaged[place] ^= 1 << place % 8
        path.write_bytes(damaged)
        try:
            assert_same_bits(load(saved, stock), wanted)
        except ValueError as error:
            reasons.append(str(error))
    assert all(path.name in reason for reason in reasons)
    assert len(reasons) >= 0.9 * (len(content) // 97), "only what JSON does not care for, blanks, goes unnoticed"


@pytest.mark.parametrize("length", [0, 1, 300, -2, -40])
def test_truncated_recipe_is_refused(saved: Path, length: int) -> None:
    recipe = files(saved)[1]
    recipe.write_text(recipe.read_text()[:length])
    with pytest.raises(ValueError, match=r"net.json must be a recipe, but cannot be read as one"):
        load(saved, build("resnet-pad"))


def test_changed_recipe_is_refused_though_every_tensor_fits(tmp_path: Path) -> None:
    """A group norm's count of groups, or a shortcut's zeros, are in no tensor's shape."""
    net = nn.Sequential(nn.Conv2d(3, 8, 1), nn.GroupNorm(4, 8), nn.Conv2d(8, 5, 1))
    save(net, tmp_path / "net")
    recipe = files(tmp_path / "net")[1]
    recipe.write_text(recipe.read_text().replace('"num_groups": 4', '"num_groups": 2'))
    with pytest.raises(ValueError, match=r"net.json must be as it was written, but its checksum differs: it was damaged or changed by hand"):
        load(tmp_path / "net", net)


def test_foreign_weights_are_refused(saved: Path, tmp_path: Path) -> None:
    torch.save(build("resnet-pad").state_dict(), tmp_path / "pickle.pt")
    exchange(saved, (tmp_path / "pickle.pt").read_bytes())
    with pytest.raises(ValueError, match=r"net.safetensors must be a safetensors file, but cannot be read as one"):
        load(saved, build("resnet-pad"))
    save(build("vgg"), tmp_path / "vgg")
    exchange(saved, files(tmp_path / "vgg")[0].read_bytes())
    with pytest.raises(ValueError, match=r"net.safetensors must hold the model's tensors in the recipe's widths, but these differ: \['conv1.weight'"):
        load(saved, build("resnet-pad"))
    save(pruned("resnet-pad", seed=5), tmp_path / "other")
    exchange(saved, files(tmp_path / "other")[0].read_bytes())
    with pytest.raises(ValueError, match="in the recipe's widths, but these differ"):
        load(saved, build("resnet-pad"))


@pytest.mark.parametrize(
    "content", ["", "{", "[1, 2]", '"text"', "{}", '{"format": "sdap_lite 2"}', '{"format": "sdap_lite 1", "class": "ResNet"}', "\x00\x01"]
)
def test_foreign_recipes_are_refused(saved: Path, content: str) -> None:
    files(saved)[1].write_text(content)
    with pytest.raises(ValueError, match=r"net.json must be a recipe"):
        load(saved, build("resnet-pad"))


def test_recipe_changed_by_hand_is_refused(saved: Path) -> None:
    recipe = files(saved)[1]
    recipe.write_text(recipe.read_text().replace('"in_channels": 3', '"in_channels": 4'))
    with pytest.raises(ValueError, match=r"net.json must be as it was written, but its checksum differs: it was damaged or changed by hand"):
        load(saved, build("resnet-pad"))


@pytest.mark.parametrize("name", ["a net", "сеть ☃", "net.v1.2", "sub/net"])
def test_every_name_is_a_name(tmp_path: Path, name: str) -> None:
    (tmp_path / "sub").mkdir()
    model = build("vgg")
    save(model, tmp_path / name)
    assert_same_bits(load(tmp_path / name, build("vgg", seed=1)), fingerprint(model))


@pytest.mark.parametrize("path", ["", ".", "/"])
def test_path_without_a_name_is_refused(path: str) -> None:
    with pytest.raises(ValueError, match=r"path must name a file, without an ending, got"):
        save(build("vgg"), path)


def test_recipe_that_is_no_text_is_refused(saved: Path) -> None:
    files(saved)[1].write_bytes(b"\xff\xfe\x00\x80")
    with pytest.raises(ValueError, match=r"net.json must be a recipe, but cannot be read as one"):
        load(saved, build("resnet-pad"))


@pytest.mark.parametrize("modules", [[], 3, {"conv1": 3}])
def test_recipe_without_widths_is_refused(saved: Path, modules: object) -> None:
    edit(saved, lambda card: card.update(modules=modules))
    with pytest.raises(ValueError, match=r"net.json must hold the widths of each module"):
        load(saved, build("resnet-pad"))


def test_model_of_another_class_is_refused(saved: Path) -> None:
    with pytest.raises(ValueError, match=r"net.json is of class ResNet, but the model to load into is a VGG"):
        load(saved, build("vgg"))


def test_model_of_other_layers_is_refused(saved: Path) -> None:
    with pytest.raises(ValueError, match=r"net.json must name the model's layers, but these differ: \['layer1.1.bn1'"):
        load(saved, models.ResNet(14, width=4))
    with pytest.raises(ValueError, match=r"these differ: \['layer2.0.shortcut'"):
        load(saved, build("resnet-conv"))


@pytest.mark.parametrize("value", [0, -4, 2**40, 3.0, "4", None, True])
def test_wrong_width_is_refused(saved: Path, value: object) -> None:
    edit(saved, lambda card: card["modules"]["conv1"].update(out_channels=value))
    with pytest.raises(ValueError, match=r"module 'conv1': out_channels must be a whole number from 1 on, got"):
        load(saved, build("resnet-pad"))


def test_other_width_is_refused(saved: Path) -> None:
    edit(saved, lambda card: card["modules"]["conv1"].update(out_channels=9))
    with pytest.raises(ValueError, match=r"must hold the model's tensors in the recipe's widths, but these differ: \['conv1.weight'\]"):
        load(saved, build("resnet-pad"))


def test_other_width_is_refused_where_the_stock_model_fits(tmp_path: Path) -> None:
    save(build("resnet-pad"), tmp_path / "net")
    edit(tmp_path / "net", lambda card: card["modules"]["fc"].update(in_features=17))
    with pytest.raises(ValueError, match=r"in the recipe's widths, but these differ: \['fc.weight'\]"):
        load(tmp_path / "net", build("resnet-pad"))


def test_width_that_would_fill_the_memory_is_refused(saved: Path) -> None:
    """A recipe of a few bytes must not ask for terabytes."""
    edit(saved, lambda card: card["modules"]["layer3.0.conv2"].update(in_channels=2**20, out_channels=2**20))
    with pytest.raises(ValueError, match=r"must hold the model's tensors in the recipe's widths, but these differ: \['layer3.0.conv2.weight'\]"):
        load(saved, build("resnet-pad"))


def test_groups_that_do_not_divide_are_refused(tmp_path: Path) -> None:
    save(pruned("grouped"), tmp_path / "net")
    edit(tmp_path / "net", lambda card: card["modules"]["grouped"].update(groups=7))
    with pytest.raises(ValueError, match=r"module 'grouped': groups must divide the channels, got 7 of"):
        load(tmp_path / "net", build("grouped"))


def test_module_of_another_class_is_refused(saved: Path) -> None:
    edit(saved, lambda card: card["modules"]["conv1"].update({"class": "Linear"}))
    with pytest.raises(ValueError, match=r"module 'conv1' must be a Linear as in the recipe, but the model's is a Conv2d"):
        load(saved, build("resnet-pad"))


def test_failing_write_leaves_the_old_files(saved: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = [f.read_bytes() for f in files(saved)]

    def full(self: Path, content: bytes) -> int:
        raise OSError("no space left on device")

    monkeypatch.setattr(Path, "write_bytes", full)
    with pytest.raises(OSError, match="no space left"):
        save(pruned("resnet-pad", seed=5), saved)
    assert [f.read_bytes() for f in files(saved)] == before
    assert len(list(saved.parent.iterdir())) == 2


# ONNX


EXPORTS = pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::DeprecationWarning")  # PyTorch's exporter warns of its own code


@pytest.fixture
def runtime() -> Any:
    pytest.importorskip("onnxscript")
    return pytest.importorskip("onnxruntime")


@EXPORTS
@pytest.mark.parametrize("name", ["vgg", "resnet-pad", "mobilenet", "densenet"])
def test_onnx_computes_the_same(tmp_path: Path, runtime: Any, name: str) -> None:
    small = pruned(name).train()
    before = fingerprint(small)
    difference = export_onnx(small, tmp_path / "net.onnx", EXAMPLE)
    assert 0 <= difference <= 1e-4
    assert_same_bits(small, before)
    assert small.training
    session = runtime.InferenceSession(str(tmp_path / "net.onnx"), providers=["CPUExecutionProvider"])
    for batch in (1, 5):
        x = torch.randn(batch, 3, 16, 16)
        (found,) = session.run(None, {session.get_inputs()[0].name: x.numpy()})
        with torch.no_grad():
            torch.testing.assert_close(torch.from_numpy(found), copy.deepcopy(small).eval()(x), rtol=1e-4, atol=1e-4)
    assert [p.name for p in tmp_path.iterdir()] == ["net.onnx"], "the weights are inside"


@EXPORTS
def test_onnx_of_a_model_that_names_its_input_otherwise(tmp_path: Path, runtime: Any) -> None:
    net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 3))
    assert export_onnx(net, tmp_path / "net.onnx", EXAMPLE) <= 1e-4


@EXPORTS
def test_onnx_that_computes_otherwise_is_refused(tmp_path: Path, runtime: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    class Wrong(runtime.InferenceSession):  # type: ignore[misc, name-defined]
        def run(self, *args: Any) -> list[Any]:
            return [output + 1.0 for output in super().run(*args)]

    monkeypatch.setattr(runtime, "InferenceSession", Wrong)
    with pytest.raises(RuntimeError, match=r"ONNX Runtime must compute what the model computes, but differs by"):
        export_onnx(build("vgg"), tmp_path / "net.onnx", EXAMPLE)
    assert not list(tmp_path.iterdir()), "a wrong file is not left behind"
