"""The trace: which channels go together, which must stay, and why."""

from __future__ import annotations

import operator
import random
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from nets import EXAMPLE, Flattened, Grouped, Shared, SqueezeExcitation, assert_same_bits, build, cut_like_masked, fingerprint, hooked, randomize, some_kept
from torch import Tensor, nn

from sdap_lite import ChannelGraph, TraceError, cost, count_macs, count_params, models, remove_channels, threshold, trace


def groups(graph: ChannelGraph) -> dict[str, tuple[int, tuple[str, ...]]]:
    return {name: (len(group), group.layers) for name, group in graph.groups.items()}


# Groups, counted by hand


def test_plain_net_has_a_group_for_each_layer() -> None:
    model = models.VGG(11, width=4)
    convs = {name: module.out_channels for name, module in model.named_modules() if isinstance(module, nn.Conv2d)}
    graph = trace(model, EXAMPLE)
    assert groups(graph) == {name: (width, (name,)) for name, width in {**convs, "fc": 10}.items()}
    assert list(graph.prunable) == list(convs)


def test_projections_tie_a_stage_and_no_more() -> None:
    found = groups(trace(models.ResNet(8, width=4, shortcut="conv"), EXAMPLE))
    assert found == {
        "conv1": (4, ("conv1", "layer1.0.conv2")),
        "layer1.0.conv1": (4, ("layer1.0.conv1",)),
        "layer2.0.conv1": (8, ("layer2.0.conv1",)),
        "layer2.0.conv2": (8, ("layer2.0.conv2", "layer2.0.shortcut.0")),
        "layer3.0.conv1": (16, ("layer3.0.conv1",)),
        "layer3.0.conv2": (16, ("layer3.0.conv2", "layer3.0.shortcut.0")),
        "fc": (10, ("fc",)),
    }


def test_padding_ties_channels_over_all_stages() -> None:
    graph = trace(models.ResNet(8, width=4), EXAMPLE)
    shared = ("conv1", "layer1.0.conv2", "layer2.0.conv2", "layer2.0.shortcut", "layer3.0.conv2", "layer3.0.shortcut")
    assert groups(graph)["conv1"] == (16, shared)
    first, second, third = (graph.layers[name].outputs for name in ("conv1", "layer2.0.conv2", "layer3.0.conv2"))
    assert torch.equal(second[2:6], first), "two zero channels stand before the four of the first stage"
    assert torch.equal(third[4:12], second)


def test_depthwise_convolution_passes_channels_on() -> None:
    graph = trace(build("mobilenet"), EXAMPLE)
    block = "features.4.layers"
    expand, filters, project = (graph.layers[f"{block}.{i}"] for i in (0, 3, 6))
    assert [layer.kind for layer in (expand, filters, project)] == ["conv", "depthwise", "conv"]
    assert torch.equal(expand.outputs, filters.inputs)
    assert torch.equal(filters.inputs, filters.outputs)
    assert torch.equal(filters.outputs, project.inputs)
    assert not filters.mixes


def test_concatenation_puts_channels_side_by_side() -> None:
    graph = trace(build("densenet"), EXAMPLE)
    parts = [name for name, layer in graph.layers.items() if layer.kind == "conv"][-3:]  # the last transition, and two layers behind it
    assert torch.equal(graph.layers["fc"].inputs, torch.cat([graph.layers[name].outputs for name in parts]))
    assert len(graph.layers["fc"].inputs.unique()) == graph.layers["fc"].inputs.numel()


def test_flatten_gives_each_channel_many_columns() -> None:
    graph = trace(Flattened(), EXAMPLE)
    assert torch.equal(graph.layers["fc1"].inputs, graph.layers["conv.0"].outputs.repeat_interleave(9))


def test_excitation_is_tied_to_what_it_multiplies() -> None:
    graph = trace(SqueezeExcitation(), EXAMPLE)
    assert groups(graph) == {"conv.0": (8, ("conv.0", "excite")), "squeeze": (4, ("squeeze",)), "fc": (5, ("fc",))}
    assert list(graph.prunable) == ["conv.0", "squeeze"]


def test_module_called_twice_is_one_layer() -> None:
    graph = trace(Shared(), EXAMPLE)
    assert groups(graph)["stem"] == (6, ("stem", "twice"))
    assert torch.equal(graph.layers["twice"].inputs, graph.layers["twice"].outputs)
    once = 6 * 6 * 9 * 16 * 16
    assert cost(graph, unit="macs") == 3 * 6 * 9 * 16 * 16 + 2 * once + 6 * 5, "the work of both calls counts"


def test_one_module_under_two_names_is_one_layer() -> None:
    class Alias(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.stem = nn.Conv2d(3, 6, 1)
            self.a = nn.Conv2d(6, 6, 1)
            self.b = self.a

        def forward(self, x: Tensor) -> Tensor:
            return self.b(F.relu(self.a(self.stem(x))))

    graph = trace(Alias(), EXAMPLE)
    assert list(graph.layers) == ["stem", "a"]
    assert not graph.prunable, "the second call's outputs are the network's, and the first call gives the same channels"


def test_grouped_convolution_ties_the_same_place_of_each_part() -> None:
    graph = trace(Grouped(), EXAMPLE)
    layer = graph.layers["grouped"]
    assert layer.parts == 3
    for line in (layer.inputs, layer.outputs):
        rows = line.view(3, 4)
        assert torch.equal(rows, rows[:1].expand(3, 4))
    assert (len(graph.groups["reduce"]), len(graph.groups["grouped"])) == (4, 4)


# What must stay, and why


class Net(nn.Module):
    """Two convolutions, something between them, and a classifier."""

    def __init__(self, middle: Callable[[Tensor], Tensor] | nn.Module, width: int = 8) -> None:
        super().__init__()
        self.first, self.second = nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(8, 8, 3, padding=1)
        self.middle = middle if isinstance(middle, nn.Module) else Lambda(middle)
        self.third, self.fc = nn.Conv2d(width, 6, 1), nn.Linear(6, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.middle(F.relu(self.second(F.relu(self.first(x)))))
        return self.fc(F.relu(self.third(x)).mean((2, 3)))


class Lambda(nn.Module):
    def __init__(self, function: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.function = function

    def forward(self, x: Tensor) -> Tensor:
        return self.function(x)


class Scaled(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.gamma, self.shift = nn.Parameter(torch.rand(8)), nn.Parameter(torch.rand(8, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        return self.gamma[None, :, None, None] * x + self.shift


class FunctionalNorm(nn.BatchNorm2d):
    """A norm and an activation in one, as timm has it."""

    __module__ = "somewhere.else"

    def __init__(self) -> None:
        super().__init__(8)
        nn.init.uniform_(self.running_mean)
        nn.init.uniform_(self.weight)

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(F.batch_norm(x, self.running_mean, self.running_var, self.weight, self.bias, False, 0.1, self.eps))


class Buffered(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("scale", torch.rand(1, 8, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        return x * self.scale


class Holding(nn.Module):
    """A function of the input and of a buffer."""

    def __init__(self, function: Callable[[Tensor, Tensor], Tensor], buffer: Tensor) -> None:
        super().__init__()
        self.function = function
        self.register_buffer("held", buffer)

    def forward(self, x: Tensor) -> Tensor:
        return self.function(x, self.held)


class FunctionalGroupNorm(nn.GroupNorm):
    """As timm has it."""

    __module__ = "somewhere.else"

    def forward(self, x: Tensor) -> Tensor:
        return F.group_norm(x, self.num_groups, self.weight, self.bias, self.eps)


def shuffle(x: Tensor) -> Tensor:
    n, c, h, w = x.shape
    return x.view(n, 2, c // 2, h, w).transpose(1, 2).reshape(n, c, h, w)


def sample(x: Tensor, grid: Tensor) -> Tensor:
    return F.grid_sample(x, grid.to(x).expand(x.shape[0], -1, -1, -1), align_corners=False)


UNKNOWN = "the tracer does not know what it does with channels"
BY_NUMBER = "it counts channels by a number written in the code"
STAYS: dict[str, tuple[Net, str, str, str]] = {  # the net, and the operation, module and reason that the graph must name
    "an operation that nobody knows": (Net(lambda x: torch.cummax(x, 1)[0]), "cummax", "middle", UNKNOWN),
    "its values, by name": (Net(lambda x: x.cummax(1).values), "cummax", "middle", UNKNOWN),
    "its singular values": (Net(lambda x: torch.linalg.svd(x.flatten(2), full_matrices=False).S[:, :, None, None]), "linalg_svd", "middle", UNKNOWN),
    "channels in order": (Net(lambda x: torch.sort(x, 1)[0]), "sort", "middle", "it mixes channels"),
    "the three largest channels": (Net(lambda x: x.topk(3, dim=1).values, 3), "topk", "middle", "it mixes channels"),
    "the second smallest channel": (Net(lambda x: x.kthvalue(2, 1, True)[0], 1), "kthvalue", "middle", "it mixes channels"),
    "the largest channel, by name": (Net(lambda x: x * x.max(dim=1, keepdim=True).values), "max", "middle", "it mixes channels"),
    "quantiles by a tensor": (
        Net(Holding(lambda x, q: x * torch.quantile(x, q.to(x), 3)[0, ..., None], torch.tensor([0.2, 0.8]))),
        "quantile",
        "middle",
        UNKNOWN,
    ),
    "a constant as large as it": (
        Net(Holding(lambda x, c: x * c.expand_as(x), torch.rand(8, 16, 1))),
        "expand_as",
        "middle",
        "a tensor that is no layer's meets the channels",
    ),
    "local response norm": (Net(nn.LocalResponseNorm(3)), "LocalResponseNorm", "middle", UNKNOWN),
    "a sum of what came before": (Net(lambda x: torch.cumsum(x, 1)), "cumsum", "middle", "it mixes channels"),
    "softmax over channels": (Net(nn.Softmax(dim=1)), "Softmax", "middle", "it mixes channels"),
    "softmax as a function": (Net(lambda x: F.softmax(x, 1)), "softmax", "middle", "it mixes channels"),
    "channels of length one": (Net(lambda x: F.normalize(x)), "normalize", "middle", "it mixes channels"),
    "group norm over all": (Net(nn.GroupNorm(1, 8)), "GroupNorm", "middle", "it normalizes over all channels"),
    "layer norm over channels": (Net(nn.LayerNorm([8, 16, 16])), "LayerNorm", "middle", "it normalizes over all channels"),
    "a tensor of the user": (Net(lambda x: x * torch.ones(8, 1, 1)), "mul", "middle", "a tensor that is no layer's meets the channels"),
    "the number of channels": (Net(lambda x: x / x.shape[1]), "truediv", "middle", "it computes with the number of channels"),
    "split by a number": (Net(lambda x: torch.split(x, [4, 4], 1)[1], 4), "split", "middle", BY_NUMBER),
    "a view that counts": (Net(lambda x: x.view(-1, 8, 256).view(-1, 8, 16, 16)), "view", "middle", BY_NUMBER),
    "mean over channels": (Net(lambda x: x.mean(1, keepdim=True), 1), "mean", "middle", "it mixes channels"),
    "the largest channel": (Net(lambda x: x * x.max(1, keepdim=True)[0]), "max", "middle", "it mixes channels"),
    "softmax at each position": (Net(nn.Softmax2d()), "Softmax2d", "middle", "it mixes channels"),
    "root mean square over channels": (Net(nn.RMSNorm([8, 16, 16])), "RMSNorm", "middle", "it normalizes over all channels"),
    "channels by a table of places": (Net(Holding(lambda x, i: x[:, i], torch.tensor([3, 1, 0, 2, 7, 6, 5, 4]))), "getitem", "middle", BY_NUMBER),
    "a weight that is no layer's": (
        Net(Holding(lambda x, w: F.conv2d(x, w, padding=1, groups=8), torch.rand(8, 1, 3, 3))),
        "conv2d",
        "middle",
        "its weight is no layer's own",
    ),
    "a group norm of no module": (Net(lambda x: F.group_norm(x, 4)), "group_norm", "middle", "its weight is no layer's own"),
    "a tensor as wide as the channels": (Net(lambda x: x * torch.ones(x.shape[1], 1, 1)), "ones", "middle", "it computes with the number of channels"),
    "zeros as wide as the channels": (
        Net(lambda x: torch.cat([x, x.new_zeros(x.shape)], 1), 16),
        "new_zeros",
        "middle",
        "it computes with the number of channels",
    ),
    "mean over everything": (Net(lambda x: x.mean() * x), "mean", "middle", "it mixes channels"),
}


@pytest.mark.parametrize("case", list(STAYS))
def test_what_is_not_understood_stays(case: str) -> None:
    net, operation, module, reason = STAYS[case]
    graph = trace(net.eval(), EXAMPLE)
    notes = [note for note in graph.kept if note.operation == operation]
    assert notes, f"{operation} must be named: {graph}"
    assert (notes[0].module, notes[0].reason) == (module, reason)
    assert set(graph.layers["second"].outputs.tolist()) <= set(torch.cat([note.channels for note in graph.kept]).tolist())
    assert f"8 channels kept by {operation} at {module}: {reason}" in str(graph)
    assert list(graph.prunable) == ["first", "third"], "and nothing else stays"
    remove_channels(net, graph, threshold(graph, {"first": torch.rand(8), "third": torch.rand(6)}, 0.1))


GOES: dict[str, tuple[Net, int, int, set[str]]] = {  # the net, how many of the second layer's channels there are, how many may go, and why not the others
    "chunk": (Net(lambda x: x.chunk(2, 1)[0] * x.chunk(2, 1)[1], 4), 4, 4, set()),
    "chunk of four, some of it twice": (Net(lambda x: torch.cat([x.chunk(4, 1)[1], x.chunk(4, 1)[3], x.chunk(4, 1)[1]], 1), 6), 2, 2, set()),
    "split in halves": (Net(lambda x: torch.cat(torch.split(x, x.shape[1] // 2, 1)[::-1], 1)), 4, 4, set()),
    "a half": (Net(lambda x: x[:, x.shape[1] // 2 :], 4), 4, 4, set()),
    "every other one": (Net(lambda x: x[:, ::2], 4), 4, 4, set()),
    "the first five": (Net(lambda x: x[:, :5], 5), 8, 3, {BY_NUMBER}),
    "all but the first five": (Net(lambda x: x[:, 5:], 3), 8, 2, {BY_NUMBER}),
    "fours": (Net(lambda x: torch.split(x, 4, 1)[1], 4), 8, 3, {BY_NUMBER}),
    "turned round": (Net(lambda x: x.flip(1)), 8, 8, set()),
    "rolled": (Net(lambda x: torch.roll(x, 1, 1)), 8, 7, {BY_NUMBER}),
    "repeated": (Net(lambda x: x.repeat(1, 2, 1, 1), 16), 8, 8, set()),
    "a shuffle by hand": (Net(shuffle), 4, 4, set()),
    "a shuffle": (Net(nn.ChannelShuffle(4)), 2, 2, set()),
    "pixel shuffle": (Net(nn.PixelShuffle(2), 2), 2, 2, set()),
    "pixel unshuffle": (Net(lambda x: F.pixel_unshuffle(x, 2), 32), 8, 8, set()),
    "space to depth by hand": (Net(lambda x: x.view(x.size(0), x.size(1), 8, 2, 8, 2).permute(0, 1, 3, 5, 2, 4).reshape(x.size(0), -1, 8, 8), 32), 8, 8, set()),
    "group norm": (Net(nn.GroupNorm(2, 8)), 2, 2, set()),
    "softmax over positions": (Net(lambda x: F.softmax(x.flatten(2), -1).view(x.shape)), 8, 8, set()),
    "layer norm over positions": (Net(nn.LayerNorm([16, 16])), 8, 8, set()),
    "a linear layer over positions": (Net(nn.Linear(16, 16)), 8, 8, set()),
    "channels last": (Net(lambda x: x.permute(0, 2, 3, 1).relu().permute(0, 3, 1, 2).contiguous()), 8, 8, set()),
    "a buffer": (Net(Buffered()), 8, 8, set()),
    "layer scale": (Net(Scaled()), 8, 8, set()),
    "prelu": (Net(nn.PReLU(8)), 8, 8, set()),
    "prelu with one parameter": (Net(nn.PReLU()), 8, 8, set()),
    "batch norm as a function": (Net(FunctionalNorm()), 8, 8, set()),
    "maximum of two": (Net(lambda x: torch.maximum(torch.chunk(x, 2, dim=1)[0], torch.chunk(x, 2, dim=1)[1]), 4), 4, 4, set()),
    "a sum of a stack": (Net(lambda x: torch.stack([x, -x.relu()]).sum(0)), 8, 8, set()),
    "zeros beside it": (Net(lambda x: torch.cat([x, torch.zeros_like(x)], 1), 16), 8, 8, set()),
    "zeros around it": (Net(lambda x: F.pad(x, (0, 0, 0, 0, 1, 2)), 11), 8, 8, set()),
    "squeezed": (Net(lambda x: F.adaptive_avg_pool2d(x, 1).squeeze()[:, :, None, None]), 8, 6, {BY_NUMBER}),
    "pooled over positions": (Net(lambda x: x.amax((2, 3), keepdim=True) + x.std(-1, keepdim=True)), 8, 8, set()),
    "excited by hand": (Net(lambda x: x * x.mean((2, 3)).view(x.shape[0], x.shape[1], 1, 1).expand_as(x)), 8, 8, set()),
    "beside each other in space": (Net(lambda x: torch.cat([x, x.relu()], 2)), 8, 8, set()),
    "depthwise with a multiplier": (Net(nn.Conv2d(8, 24, 3, groups=8), 24), 8, 8, set()),
    "transposed depthwise with a multiplier": (Net(nn.ConvTranspose2d(8, 16, 2, 2, groups=8), 16), 8, 8, set()),
    "transposed with groups": (Net(nn.ConvTranspose2d(8, 12, 3, groups=2), 12), 4, 4, set()),
    "group norm as a function": (Net(FunctionalGroupNorm(2, 8)), 2, 2, set()),
    "gated": (Net(nn.GLU(1), 4), 4, 4, set()),
    "gated as a function": (Net(lambda x: F.glu(x, dim=1), 4), 4, 4, set()),
    "maximum over positions, by name": (Net(lambda x: x * x.max(3, keepdim=True).values), 8, 8, set()),
    "maximum of neighbours": (Net(lambda x: x.view(x.shape[0], x.shape[1] // 2, 2, 16, 16).max(2)[0], 4), 4, 4, set()),
    "larger of two": (Net(lambda x: torch.max(x, x.flip(3))), 8, 8, set()),
    "length over positions": (Net(lambda x: x / (1 + x.norm(2, (2, 3), keepdim=True) + torch.linalg.vector_norm(x, dim=(2, 3), keepdim=True))), 8, 8, set()),
    "root mean square over positions": (Net(lambda x: F.rms_norm(x, [16, 16])), 8, 8, set()),
    "median over positions": (Net(lambda x: x - x.flatten(2).median(2)[0][:, :, None, None]), 8, 8, set()),
    "variance and mean": (Net(lambda x: x - torch.var_mean(x, (2, 3), keepdim=True)[1]), 8, 8, set()),
    "in order over positions": (Net(lambda x: x.sort()[0] + torch.sort(x, dim=2, descending=True).values), 8, 8, set()),
    "places in order": (Net(lambda x: x * x.sort(-1).indices), 8, 8, set()),
    "largest over positions": (Net(lambda x: x * x.flatten(2).topk(3, -1).values.mean(-1).view(x.shape[0], -1, 1, 1)), 8, 8, set()),
    "second smallest over positions": (Net(lambda x: x - x.kthvalue(2, 3, True)[0] + torch.kthvalue(x, 2)[0][..., None]), 8, 8, set()),
    "a quantile over positions": (Net(lambda x: x - torch.quantile(x.flatten(2), 0.3, dim=2)[..., None, None] + x.quantile(0.5, 3, True)), 8, 8, set()),
    "means of what is a number": (Net(lambda x: x - x.nanmean((2, 3), True) + (x - 0.1).log().nansum(3, True) + torch.nanmedian(x, 3, True)[0]), 8, 8, set()),
    "products over positions": (Net(lambda x: x.cumprod(3) + torch.cumprod(x, dim=2)), 8, 8, set()),
    "one channel for all": (Net(lambda x: x * x[:, :1].expand_as(x)), 8, 7, {BY_NUMBER, "one channel is spread over many"}),
    "a number for all": (Net(Holding(lambda x, a: x * a.expand_as(x), torch.rand(1))), 8, 8, set()),
    "a map of positions for all": (Net(Holding(lambda x, a: x + a.expand_as(x), torch.rand(1, 1, 16, 16))), 8, 8, set()),
    "a number for all, beside it": (Net(Holding(lambda x, a: torch.cat([x, a.expand_as(x)], 1), torch.rand(1)), 16), 8, 8, set()),
    "its data": (Net(lambda x: shuffle(x.data)), 4, 4, set()),
    "masks": (Net(lambda x: x.masked_fill(x > 1, 0.5) * (~(x > 2) & (x < 3))), 8, 8, set()),
    "a constant beside it": (Net(Holding(lambda x, c: torch.cat([x, c.expand(x.shape[0], -1, -1, -1)], 1), torch.rand(1, 2, 16, 16)), 10), 8, 8, set()),
    "coordinates beside it": (
        Net(lambda x: torch.cat([x, torch.linspace(-1, 1, 16, device=x.device, dtype=x.dtype).view(1, 1, 1, 16).expand(x.shape[0], 1, 16, 16)], 1), 9),
        8,
        8,
        set(),
    ),
    "zeros of a size": (Net(lambda x: torch.cat([x, torch.zeros(x.shape[0], 4, *x.shape[2:], device=x.device, dtype=x.dtype)], 1), 12), 8, 8, set()),
    "new zeros": (Net(lambda x: torch.cat([x, x.new_zeros(x.shape[0], 4, 16, 16)], 1), 12), 8, 8, set()),
    "its shape, item by item": (Net(lambda x: x.flatten(2).view(*x.shape)), 8, 8, set()),
    "a product of its shape, by numpy": (Net(lambda x: x.reshape(-1, np.prod(x.shape[1:])).view(x.shape)), 8, 8, set()),
    "each twice": (Net(lambda x: torch.repeat_interleave(x, 2, dim=1), 16), 8, 8, set()),
    "pooled with its places, and put back": (Net(lambda x: F.max_unpool2d(*F.max_pool2d(x, 2, return_indices=True), 2)), 8, 8, set()),
    "sampled elsewhere": (Net(Holding(sample, torch.rand(1, 4, 4, 2))), 8, 8, set()),
    "dilated with groups": (Net(nn.Conv2d(8, 12, 3, dilation=2, groups=4), 12), 2, 2, set()),
}


@pytest.mark.parametrize("case", list(GOES))
def test_what_is_understood_goes(case: str) -> None:
    net, count, free, reasons = GOES[case]
    net = net.double().eval()
    graph = trace(net, EXAMPLE)
    group = graph.groups["second"]
    assert (len(group), int(graph.removable[group.start : group.stop].sum())) == (count, free)
    assert {note.reason for note in graph.kept} == {*reasons, "the network's output"}
    for seed, share in enumerate((0.5, 0.0, 0.9)):
        kept = some_kept(graph, seed, share)
        small = cut_like_masked(net, graph, kept)
        assert cost(graph, kept) == sum(p.numel() for p in small.parameters())
        again = trace(small, EXAMPLE)
        assert cost(again) == cost(graph, kept), "a pruned net can be pruned again"
        remove_channels(small, again, some_kept(again, seed))


HOOKS: dict[str, tuple[Callable[[nn.Module], object], bool]] = {  # what is hooked to the first layer, and whether its channels may go
    "doubled": (lambda m: m.register_forward_hook(lambda m, x, y: 2 * y), True),
    "turned round": (lambda m: m.register_forward_hook(lambda m, x, y: y.flip(1)), True),
    "looked at": (lambda m: m.register_forward_hook(lambda m, x, y: None), True),
    "a scale": (lambda m: m.register_forward_hook(lambda m, x, y: y * torch.linspace(1, 2, 8).view(8, 1, 1)), False),
    "a softmax in front": (lambda m: m.register_forward_pre_hook(lambda m, x: (x[0].softmax(1),)), False),
}


@pytest.mark.parametrize("case", list(HOOKS))
def test_hooks_are_part_of_the_network(case: str) -> None:
    add, free = HOOKS[case]
    net = nn.Sequential(nn.Conv2d(3, 8, 1), nn.ReLU(), nn.Conv2d(8, 8, 1), nn.Conv2d(8, 5, 1)).double().eval()
    add(net[2 if "front" in case else 0])
    graph = trace(net, EXAMPLE)
    assert list(graph.prunable) == (["0", "2"] if free else ["2"])
    for seed in range(3):
        cut_like_masked(net, graph, some_kept(graph, seed))


def test_pooling_and_unpooling_modules_pass_channels_on() -> None:
    class Hourglass(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.pool, self.b, self.back, self.c = (
                nn.Conv2d(3, 8, 1),
                nn.MaxPool2d(2, return_indices=True),
                nn.Conv2d(8, 8, 1),
                nn.MaxUnpool2d(2),
                nn.Conv2d(8, 5, 1),
            )

        def forward(self, x: Tensor) -> Tensor:
            x, places = self.pool(self.a(x))
            return self.c(self.back(self.b(x), places))

    net = Hourglass().double().eval()
    graph = trace(net, EXAMPLE)
    assert groups(graph)["a"] == (8, ("a", "b"))
    assert list(graph.prunable) == ["a"]
    remove_channels(net, graph, some_kept(graph, 0))


def test_layers_made_on_the_way_are_code_like_any_other() -> None:
    """A slice of a Sequential is a new one, that is no submodule; so is a pooling layer made where it is called."""

    class Sliced(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.features = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 8, 3), nn.BatchNorm2d(8), nn.ReLU())
            self.fc = nn.Linear(8, 5)

        def forward(self, x: Tensor) -> Tensor:
            low = self.features[:3](x)
            return self.fc(nn.AdaptiveAvgPool2d(1)(self.features[3:](low)).flatten(1))

    net = randomize(Sliced()).double().eval()
    graph = trace(net, EXAMPLE)
    assert groups(graph) == {"features.0": (8, ("features.0",)), "features.3": (8, ("features.3",)), "fc": (5, ("fc",))}
    assert list(graph.prunable) == ["features.0", "features.3"]
    cut_like_masked(net, graph, some_kept(graph, 0))


def test_input_may_be_one_of_any_number_of_arguments() -> None:
    class Several(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Conv2d(3, 8, 3), nn.Conv2d(8, 5, 1)

        def forward(self, *images: Tensor) -> Tensor:
            if len(images) != 1 or images[0].shape[-1] < 3:
                raise ValueError("one image is wanted")
            return self.b(self.a(images[0]))

    net = Several()
    graph = trace(net, EXAMPLE)
    assert list(graph.prunable) == ["a"]
    assert graph.layers["a"].kind == "conv"
    remove_channels(net, graph, some_kept(graph, 0))


def test_argument_with_a_default_has_it() -> None:
    class Two(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b, self.c = nn.Conv2d(3, 8, 1), nn.Conv2d(3, 8, 1), nn.Conv2d(8, 5, 1)

        def forward(self, x: Tensor, y: Tensor | None = None, *, twice: bool = False) -> Tensor:
            x = self.a(x) if y is None else self.a(x) + self.b(y)
            return self.c(2 * x if twice else x)

    graph = trace(Two(), EXAMPLE)
    assert list(graph.layers) == ["a", "c"]
    assert list(graph.prunable) == ["a"]


def test_layers_that_the_example_does_not_call_are_told_of() -> None:
    """At the outermost module of which nothing is called; what has no layers, or is called in train mode only, is not."""

    class Large(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.c, self.aux = nn.Conv2d(3, 8, 3, padding=1), nn.Linear(8, 5), nn.Conv2d(8, 8, 1)
            self.halve = nn.Sequential(nn.Sequential(nn.Conv2d(8, 8, 3, 2, 1), nn.BatchNorm2d(8)), nn.Conv2d(8, 8, 1))
            self.stages = nn.ModuleList(nn.Conv2d(8, 8, 1) for _ in range(3))
            self.functional, self.drop = nn.Conv2d(8, 8, 1), nn.Dropout()

        def forward(self, x: Tensor) -> Tensor:
            x = self.stages[0](self.a(x))
            if x.shape[-1] > 16:
                x = self.drop(self.halve(x))
            x = F.conv2d(x, self.functional.weight, self.functional.bias)
            return self.c((x + self.aux(x) if self.training else x).mean((2, 3)))

    net = Large()
    graph = trace(net, EXAMPLE)
    reason = "it is not called on this example, and stays whole"
    assert [(n.operation, n.module) for n in graph.kept if n.reason == reason] == [("Sequential", "halve"), ("Conv2d", "stages.1"), ("Conv2d", "stages.2")]
    assert f"all channels kept by Sequential at halve: {reason}" in str(graph)
    assert f"all channels kept by Conv2d at stages.1: {reason} (1 more of these)" in str(graph)
    assert "is not called" not in str(trace(net, torch.zeros(1, 3, 32, 32))).replace(f"stages.1: {reason}", "")
    assert cost(graph) == count_params(net)


def test_layer_whose_weight_is_computed_is_named_wherever_it_stands() -> None:
    """A net of such layers alone has no channels to speak of, and must say why."""

    class Standardized(nn.Conv2d):
        __module__ = "somewhere.else"

        def forward(self, x: Tensor) -> Tensor:
            return F.conv2d(x, self.weight - self.weight.mean((1, 2, 3), keepdim=True), self.bias)

    graph = trace(nn.Sequential(Standardized(3, 8, 1), nn.ReLU(), nn.utils.parametrizations.weight_norm(nn.Conv2d(8, 5, 1))), EXAMPLE)
    assert not graph.prunable
    assert cost(graph, unit="macs") == (3 * 8 + 8 * 5) * 256, "what nobody cuts still has to be computed"
    assert [str(note) for note in graph.kept] == [
        "all channels kept by conv2d at 0: its weight is no layer's own",
        "all channels kept by ParametrizedConv2d at 2: its weight is computed from other tensors",
    ]


def test_noise_of_the_training_mode_keeps_no_channels() -> None:
    """It is made on the CPU, where the tracer's own copy of the network has no numbers."""

    class DropPath(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x * (torch.rand(x.shape[0], 1, 1, 1) > 0.5) if self.training else x

    net = Net(DropPath())
    assert str(trace(net, EXAMPLE)) == str(trace(Net(nn.Identity()), EXAMPLE))


def test_factories_are_whole_again_after_tracing() -> None:
    before = torch.zeros, torch.linspace
    with pytest.raises(TraceError):
        trace(nn.Sequential(Lambda(lambda x: x if x.sum() > 0 else torch.zeros(x.shape))), EXAMPLE)
    assert (torch.zeros, torch.linspace) == before


class Shortcut(nn.Module):
    """A residual stage with option A, as people write it: a lambda with a functional pad."""

    def __init__(self, value: float = 0.0) -> None:
        super().__init__()
        self.stem, self.inside, self.end = nn.Conv2d(3, 4, 3, padding=1), nn.Conv2d(4, 6, 3, padding=1), nn.Conv2d(6, 8, 3, 2, 1)
        self.shortcut = Lambda(lambda x: F.pad(x[:, :, ::2, ::2], (0, 0, 0, 0, 2, 2), "constant", value))
        self.fc = nn.Linear(8, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.stem(x))
        return self.fc(F.relu(self.end(F.relu(self.inside(x))) + self.shortcut(x)).mean((2, 3)))


def test_user_written_lambda_shortcut_keeps_what_meets_the_zeros() -> None:
    net = Shortcut().eval()
    graph = trace(net, EXAMPLE)
    assert list(graph.prunable) == ["stem", "inside"]
    ends = graph.layers["end"].outputs
    assert torch.equal(ends[2:6], graph.layers["stem"].outputs)
    assert graph.removable[ends].tolist() == [False] * 2 + [True] * 4 + [False] * 2
    note = next(note for note in graph.kept if note.reason == "it meets what must stay" and note.operation == "add")
    assert note.channels.tolist() == sorted(ends[[0, 1, 6, 7]].tolist())
    remove_channels(net, graph, some_kept(graph, 0))


@pytest.mark.parametrize("pad", [lambda x: F.pad(x, (0, 0, 0, 0, 1, 1), value=1.0), lambda x: F.pad(x, (0, 0, 0, 0, 1, 1), "constant", 1.0)])
def test_padding_value_is_no_label(pad: Callable[[Tensor], Tensor]) -> None:
    graph = trace(Net(pad, 10), EXAMPLE)
    columns = graph.layers["third"].inputs
    assert columns[[0, -1]].tolist() == [len(graph) - 1] * 2, "what is padded belongs to no channel of the network"
    remove_channels(Net(pad, 10), graph, some_kept(graph, 0))


@pytest.mark.parametrize("size", [lambda x: x.view(x.size(0), -1), lambda x: torch.flatten(x, start_dim=1), lambda x: x.reshape(x.shape[0], -1)])
def test_flatten_is_understood_however_it_is_written(size: Callable[[Tensor], Tensor]) -> None:
    class Head(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv, self.fc = nn.Conv2d(3, 8, 3, padding=1), nn.Linear(8 * 256, 5)

        def forward(self, x: Tensor) -> Tensor:
            return self.fc(size(F.relu(self.conv(x))))

    assert list(trace(Head(), EXAMPLE).prunable) == ["conv"]


@pytest.mark.parametrize(
    "pad",
    [lambda x: F.pad(x, (1, 1, 1, 1)), lambda x: F.pad(x, pad=(0, 1, 0, 1), mode="constant", value=2.0), lambda x: F.pad(x, (1, 2, 2, 1), mode="reflect")],
)
def test_padding_images_passes_channels_on(pad: Callable[[Tensor], Tensor]) -> None:
    net = Net(pad)
    graph = trace(net, EXAMPLE)
    assert list(graph.prunable) == ["first", "second", "third"]
    remove_channels(net, graph, some_kept(graph, 0))


@pytest.mark.parametrize("join", [lambda x, y: torch.cat([x, y], 1), lambda x, y: torch.cat((x, y), dim=-3), lambda x, y: torch.concat((x, y), axis=1)])
def test_concatenation_is_understood_however_it_is_written(join: Callable[[Tensor, Tensor], Tensor]) -> None:
    net = Net(lambda x: join(x, torch.relu(x)), 16)
    graph = trace(net, EXAMPLE)
    assert graph.layers["third"].inputs.tolist() == [*graph.layers["second"].outputs.tolist()] * 2
    remove_channels(net, graph, some_kept(graph, 0))


def test_attention_of_one_channel_stays_and_what_it_multiplies_goes() -> None:
    class Attention(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv, self.look, self.fc = nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(8, 1, 3, padding=1), nn.Linear(8, 5)

        def forward(self, x: Tensor) -> Tensor:
            x = F.relu(self.conv(x))
            return self.fc((x * torch.sigmoid(self.look(x))).mean((2, 3)))

    net = Attention().eval()
    graph = trace(net, EXAMPLE)
    assert list(graph.prunable) == ["conv"]
    note = next(note for note in graph.kept if note.operation == "mul")
    assert (note.reason, note.channels.tolist()) == ("one channel is spread over many", graph.layers["look"].outputs.tolist())
    remove_channels(net, graph, some_kept(graph, 0))


def test_layer_that_computes_otherwise_stays() -> None:
    class Standardized(nn.Conv2d):
        def forward(self, x: Tensor) -> Tensor:
            weight = self.weight - self.weight.mean((1, 2, 3), keepdim=True)
            return F.conv2d(x, weight, self.bias, padding=self.padding)

    class Leaf(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.second = nn.Conv2d(3, 6, 1), Standardized(6, 5, 1)

        def forward(self, x: Tensor) -> Tensor:
            return self.second(self.first(x))

    graph = trace(Leaf(), EXAMPLE)
    assert not graph.prunable
    assert "second" not in graph.layers


class SamePadded(nn.Conv2d):
    """TensorFlow's padding, which depends on the image's size, in the user's own code."""

    __module__ = "somewhere.else"

    def forward(self, x: Tensor) -> Tensor:
        pads = [max((-(-size // s) - 1) * s + k - size, 0) for size, s, k in zip(x.shape[-2:], self.stride, self.weight.size()[-2:], strict=False)]
        if any(p > 0 for p in pads):
            x = F.pad(x, [pads[1] // 2, pads[1] - pads[1] // 2, pads[0] // 2, pads[0] - pads[0] // 2])
        return F.conv2d(x, self.weight, self.bias, self.stride, 0, self.dilation, self.groups)


class HalfLinear(nn.Linear):
    __module__ = "somewhere.else"

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(x, self.weight, bias=self.bias)


@pytest.mark.parametrize("groups", [1, 2, 8])
def test_layer_of_a_subclass_with_the_same_function_is_a_layer(groups: int) -> None:
    net = nn.Sequential(SamePadded(3, 8, 3), nn.ReLU(), SamePadded(8, 16, 3, stride=2, groups=groups), nn.AdaptiveAvgPool2d(1), nn.Flatten(), HalfLinear(16, 5))
    net = net.double().eval()
    graph = trace(net, EXAMPLE)
    assert {note.reason for note in graph.kept} == {"the network's output"}
    assert [layer.kind for layer in graph.layers.values()] == ["conv", {1: "conv", 2: "grouped", 8: "depthwise"}[groups], "linear"]
    cut_like_masked(net, graph, some_kept(graph, 0))


IN_PLACE: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "masked_fill_": lambda x, y: x.masked_fill_(y > 0, 0.5),
    "copy_": lambda x, y: x.copy_(y),
    "fill_": lambda x, y: x.fill_(0.5),
    "zero_": lambda x, y: x.zero_(),
}
ELEMENTWISE: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    **{name: lambda x, y, name=name: getattr(x, name)() for name in "absolute arctan asinh exp2 erfc cpu".split()},  # type: ignore[misc]
    **{name: lambda x, y, name=name: getattr(x, name)() * y for name in "bool int long".split()},  # type: ignore[misc]
    **{name: lambda x, y, name=name: getattr(torch, name)(x, y) for name in "fmax fmin logaddexp copysign".split()},  # type: ignore[misc]
    "clamp_min": lambda x, y: x.clamp_min(-0.1) + torch.clamp_min(y, 0.2),
    "clamp_max": lambda x, y: x.clamp_max(0.1) + torch.clamp_max(y, 0.2),
    "acosh, atanh and logit": lambda x, y: x.abs().add(1.1).acosh() + torch.logit(y.sigmoid()) + y.sigmoid().atanh(),
    "celu": lambda x, y: torch.celu(x) + torch.selu(y) + torch.threshold(x, 0.1, 0.0),
    "celu_": lambda x, y: F.celu_(x) + F.selu_(y),
    "data": lambda x, y: x.data + y,
}


@pytest.mark.parametrize("case", [*IN_PLACE, *ELEMENTWISE])
def test_elementwise_operations_tie_what_they_meet(case: str) -> None:
    """Two layers meet; what an operation in place left behind is read by its old name, too."""

    class Meeting(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b, self.c, self.d = nn.Conv2d(3, 8, 3), nn.Conv2d(3, 8, 3), nn.Conv2d(8, 5, 1), nn.Conv2d(8, 5, 1)

        def forward(self, x: Tensor) -> Tensor:
            a, b = self.a(x), self.b(x)
            return self.c({**IN_PLACE, **ELEMENTWISE}[case](a, b).to(x)) + self.d(a)

    net = Meeting().double().eval()
    graph = trace(net, EXAMPLE)
    assert {note.reason for note in graph.kept} == {"the network's output"}
    for seed in range(3):
        cut_like_masked(net, graph, some_kept(graph, seed))


def test_code_that_asks_a_weight_for_its_kind_keeps_nothing() -> None:
    class Kind(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b, self.c = nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(8, 8, 3, padding=1), nn.Conv2d(8, 5, 1)

        def forward(self, x: Tensor) -> Tensor:
            x = self.a(x.to(self.a.weight.dtype)).to(self.b.weight.device).type_as(self.b.weight)
            x = F.pad(x, [self.b.weight.shape[-1] - 3] * 4)
            return self.c(self.b(x).to(self.c.bias))

    net = Kind().double().eval()
    graph = trace(net, EXAMPLE)
    assert list(graph.prunable) == ["a", "b"]
    assert {note.reason for note in graph.kept} == {"the network's output"}
    remove_channels(net, graph, some_kept(graph, 0))


def test_weight_that_code_reads_elsewhere_stays() -> None:
    class Tied(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.code, self.end = nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(3, 5, 1)

        def forward(self, x: Tensor) -> Tensor:
            return self.end(F.conv_transpose2d(F.relu(self.code(x)), self.code.weight, padding=1))

    graph = trace(Tied(), EXAMPLE)
    assert not graph.prunable
    assert any((note.module, note.reason) == ("code", "its weight is used by code of its own") for note in graph.kept)


def test_two_layers_with_one_weight_keep_the_same_channels() -> None:
    class Twins(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.stem, self.a, self.b, self.fc = nn.Conv2d(3, 6, 3), nn.Conv2d(6, 6, 1), nn.Conv2d(6, 6, 1), nn.Linear(6, 5)
            self.b.weight = self.a.weight

        def forward(self, x: Tensor) -> Tensor:
            return self.fc(self.b(F.relu(self.a(self.stem(x)))).mean((2, 3)))

    net = Twins().double()
    graph = trace(net, EXAMPLE)
    assert cost(graph) == sum(p.numel() for p in net.parameters())
    kept = some_kept(graph, 0)
    small = remove_channels(net, graph, kept)
    assert small.a.weight is small.b.weight
    assert cost(graph, kept) == sum(p.numel() for p in small.parameters())


class Trio(nn.Module):
    """Three convolutions, and what comes after each of them."""

    def __init__(self, after: Callable[[], nn.Module]) -> None:
        super().__init__()
        self.convs = nn.ModuleList(nn.Conv2d(inputs, 8, 3, padding=1) for inputs in (3, 8, 8))
        self.norms = nn.ModuleList(after() for _ in range(3))
        self.fc = nn.Linear(8, 5)

    def forward(self, x: Tensor) -> Tensor:
        for c, n in zip(self.convs, self.norms, strict=True):
            x = F.silu(n(c(x)))
        return self.fc(x.mean((2, 3)))


def norm_with_numbers() -> nn.Module:
    return randomize(nn.BatchNorm2d(8))


SHARING: dict[str, tuple[Callable[[], nn.Module], dict[str, str], int]] = {  # what comes after, which tensors are others', how many channels the group has
    "a norm's weight": (norm_with_numbers, {"norms.2.weight": "norms.0.weight"}, 8),
    "a norm's weight and bias": (norm_with_numbers, {"norms.2.weight": "norms.0.weight", "norms.2.bias": "norms.0.bias"}, 8),
    "a norm's weight that is its bias": (norm_with_numbers, {"norms.0.bias": "norms.0.weight", "norms.2.bias": "norms.0.weight"}, 8),
    "a norm's statistics": (norm_with_numbers, {"norms.2.running_mean": "norms.0.running_mean"}, 8),
    "a group norm's weight": (lambda: nn.GroupNorm(2, 8), {"norms.2.weight": "norms.0.weight", "norms.2.bias": "norms.0.bias"}, 2),
    "an activation's slopes": (lambda: nn.PReLU(8), {"norms.2.weight": "norms.0.weight"}, 8),
    "a convolution's bias": (nn.Identity, {"convs.2.bias": "convs.0.bias"}, 8),
    "a norm's weight that is a convolution's bias": (norm_with_numbers, {"norms.2.weight": "convs.0.bias"}, 8),
    "a depthwise convolution": (lambda: nn.Conv2d(8, 8, 3, groups=8), {"norms.2.weight": "norms.0.weight", "norms.2.bias": "norms.0.bias"}, 8),
    "one of a subclass": (lambda: SamePadded(8, 8, 3, groups=8), {"norms.2.weight": "norms.0.weight", "norms.2.bias": "norms.0.bias"}, 8),
}


@pytest.mark.parametrize("case", list(SHARING))
def test_layers_that_share_a_tensor_keep_the_same_channels(case: str) -> None:
    after, same, count = SHARING[case]
    net = Trio(after).double().eval()
    for name, source in same.items():
        owner, _, key = name.rpartition(".")
        module, _, attribute = source.rpartition(".")
        setattr(net.get_submodule(owner), key, getattr(net.get_submodule(module), attribute))
    graph = trace(net, EXAMPLE)
    assert groups(graph)["convs.0"] == (count, ("convs.0", "convs.2"))
    assert {note.reason for note in graph.kept} == {"the network's output"}
    assert cost(graph) == count_params(net)
    for seed in range(3):
        kept = some_kept(graph, seed)
        assert cost(graph, kept) == count_params(cut_like_masked(net, graph, kept))
    kept = threshold(graph, graph.split(torch.rand(len(graph))), 0.5)
    assert cost(graph, kept) == count_params(remove_channels(net, graph, kept)) <= 0.5 * count_params(net)


def test_layer_whose_tensor_has_another_use_stays() -> None:
    """All but the second layer: code multiplies the third by the first's parameter, and a norm over all channels has the fourth's."""

    class Uses(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.convs = nn.ModuleList(nn.Conv2d(inputs, 8, 1) for inputs in (3, 8, 8, 8, 8))
            self.first, self.fourth, self.all = nn.BatchNorm2d(8), nn.BatchNorm2d(8), nn.GroupNorm(1, 8)
            self.all.weight = self.fourth.weight
            self.fc = nn.Linear(8, 5)

        def forward(self, x: Tensor) -> Tensor:
            x = self.convs[1](F.relu(self.first(self.convs[0](x))))
            x = self.convs[2](F.relu(x)) * self.first.weight.view(-1, 1, 1)
            x = self.fourth(self.convs[3](F.relu(x)))
            return self.fc(self.all(self.convs[4](F.relu(x))).mean((2, 3)))

    net = Uses().double().eval()
    graph = trace(net, EXAMPLE)
    assert list(graph.prunable) == ["convs.1"]
    assert {(note.operation, note.module, note.reason) for note in graph.kept} == {
        ("get_attr", "first", "its weight is used by code of its own"),
        ("GroupNorm", "all", "it normalizes over all channels"),
        ("GroupNorm", "all", "it uses the weight of a layer in another way"),
        ("output", "", "the network's output"),
    }
    assert cost(graph) == count_params(net)
    remove_channels(net, graph, some_kept(graph, 0))


def test_layer_that_is_also_called_where_channels_are_mixed_stays() -> None:
    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b, self.fc = nn.Conv2d(3, 16, 1), nn.Linear(16, 16), nn.Linear(16, 5)

        def forward(self, x: Tensor) -> Tensor:
            x = self.b(self.a(x))  # over positions
            return self.fc(self.b(x.mean((2, 3))))  # over channels

    net = Twice().double().eval()
    graph = trace(net, EXAMPLE)
    assert not graph.prunable
    assert [str(note) for note in graph.kept][1:] == ["32 channels kept by Linear at b: it uses the weight of a layer in another way"]


def test_code_that_asks_for_the_number_of_channels_keeps_them() -> None:
    """The branch is taken by the width: with another width it might be the other one."""

    class Branch(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b, self.c = nn.Conv2d(3, 8, 1), nn.Conv2d(8, 8, 1), nn.Conv2d(8, 5, 1)

        def forward(self, x: Tensor) -> Tensor:
            x = self.a(x)
            if x.shape[1] == 8 and x.shape[2] > 4:
                x = -x
            for _ in range(x.ndim - 3):
                x = self.b(x)
            return self.c(x)

    graph = trace(Branch(), EXAMPLE)
    assert list(graph.prunable) == ["b"]
    assert any((note.operation, note.reason) == ("eq", "it computes with the number of channels") for note in graph.kept)


COMPARISONS: dict[str, tuple[Callable[[Tensor, Tensor], Any], set[str]]] = {  # what is compared, and which layers' channels may go
    "shapes": (lambda x, y: x.shape == y.shape, {"a", "d"}),
    "sizes": (lambda x, y: x.size() == y.size(), {"a", "d"}),
    "counts": (lambda x, y: x.size(1) == y.shape[1], {"a", "d"}),
    "counts, the other way round": (lambda x, y: not operator.ne(x.shape[1], y.shape[1]), {"a", "d"}),
    "halves": (lambda x, y: x.shape[1] // 2 == y.shape[1] // 2, {"a", "d"}),
    "a count and a number": (lambda x, y: x.shape[1] == 8, {"b", "d"}),
    "counts that differ elsewhere": (lambda x, y: 2 * x.shape[1] == 16 + y.shape[1] - x.shape[1] + 0 * y.shape[1], {"d"}),
    "positions": (lambda x, y: x.shape[2:] == y.shape[2:], {"a", "b", "d"}),
}


@pytest.mark.parametrize("case", list(COMPARISONS))
def test_equal_widths_that_are_compared_stay_equal(case: str) -> None:
    """The code takes the same branch at every width, if the two go together."""
    compare, free = COMPARISONS[case]

    class Skip(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b, self.d, self.c = nn.Conv2d(3, 8, 1), nn.Conv2d(8, 8, 1), nn.Conv2d(8, 6, 1), nn.Conv2d(6, 5, 1)

        def forward(self, x: Tensor) -> Tensor:
            x = self.a(x)
            y = self.b(x)
            return self.c(self.d(F.relu(y) if compare(x, y) else y))

    net = Skip().double().eval()
    graph = trace(net, EXAMPLE)
    assert set(graph.prunable) == free
    cut_like_masked(net, graph, some_kept(graph, 0))


def test_different_widths_that_are_compared_stay() -> None:
    """They might be equal when channels are gone."""

    class Skip(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b, self.c = nn.Conv2d(3, 8, 1), nn.Conv2d(8, 12, 1), nn.Conv2d(12, 5, 1)

        def forward(self, x: Tensor) -> Tensor:
            x = self.a(x)
            y = self.b(x)
            return self.c(x + y if x.shape == y.shape else y)

    graph = trace(Skip(), EXAMPLE)
    assert not graph.prunable
    assert any((note.operation, note.reason) == ("eq", "it computes with the number of channels") for note in graph.kept)


@pytest.mark.parametrize("add", [lambda x, y: torch.add(x, other=y), lambda x, y: torch.add(input=x, other=y), lambda x, y: x.add(other=y)])
def test_operands_given_by_name_are_tied(add: Callable[[Tensor, Tensor], Tensor]) -> None:
    class Named(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b, self.c = nn.Conv2d(3, 6, 1), nn.Conv2d(3, 6, 1), nn.Conv2d(6, 4, 1)

        def forward(self, x: Tensor) -> Tensor:
            return self.c(add(self.a(x), self.b(x)))

    graph = trace(Named(), EXAMPLE)
    assert groups(graph)["a"] == (6, ("a", "b"))
    remove_channels(Named(), graph, some_kept(graph, 0))


def test_output_stays_and_says_so(net: nn.Module, graph: ChannelGraph) -> None:
    last = graph.kept[-1]
    assert (last.operation, last.module, last.reason) == ("output", "", "the network's output")
    assert not graph.removable[last.channels].any()
    assert str(last) == f"{len(last.channels)} channels kept by output at the top: the network's output"


class Pair(NamedTuple):
    logits: Tensor
    features: Tensor


@dataclass
class Answer:
    logits: Tensor
    features: Tensor
    name: str = "answer"


ANSWERS: dict[str, Callable[[Tensor, Tensor], Any]] = {
    "a tuple": lambda logits, features: (logits, features),
    "a named tuple": Pair,
    "a dictionary": lambda logits, features: {"logits": logits, "features": features},
    "a dataclass": Answer,
    "a dataclass in a list in a dictionary": lambda logits, features: {"all": [Answer(logits, features)]},
}


@pytest.mark.parametrize("case", list(ANSWERS))
def test_every_output_stays_whatever_holds_it(case: str) -> None:
    class Answering(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.stem, self.conv, self.fc = nn.Conv2d(3, 8, 3), nn.Conv2d(8, 6, 3), nn.Linear(6, 4)

        def forward(self, x: Tensor) -> Any:
            features = self.conv(F.relu(self.stem(x)))
            return ANSWERS[case](self.fc(features.mean((2, 3))), features)

    net = Answering().double().eval()
    graph = trace(net, EXAMPLE)
    assert list(graph.prunable) == ["stem"]
    assert [str(note) for note in graph.kept] == ["10 channels kept by output at the top: the network's output"]
    kept = some_kept(graph, 0)
    small = remove_channels(net, graph, kept)
    x = torch.randn(2, *EXAMPLE.shape[1:], dtype=torch.float64)
    with hooked(net, graph, graph.join(kept, True)), torch.no_grad():
        wanted, found = net(x), small(x)
    assert type(found) is type(wanted)
    if "in a list" in case:
        wanted, found = wanted["all"][0], found["all"][0]
    wanted, found = (list(y.values()) if isinstance(y, dict) else [y.logits, y.features] if isinstance(y, Answer) else list(y) for y in (wanted, found))
    torch.testing.assert_close(found, wanted, rtol=1e-10, atol=1e-10)


# What the labels mean, without trusting them


def test_closed_channels_are_read_by_nobody(net: nn.Module, graph: ChannelGraph) -> None:
    """With the consumers' columns masked, a closed channel may hold anything: no output changes."""
    net = net.double()
    x = torch.randn(2, *EXAMPLE.shape[1:], dtype=torch.float64)
    flat = graph.join(some_kept(graph, 1), True)
    with hooked(net, graph, flat), torch.no_grad():
        wanted = net(x)
        for name, layer in graph.layers.items():
            module = net.get_submodule(name)
            gone = (~flat[layer.outputs]).nonzero().flatten()
            for key in ("weight", "bias"):
                tensor = getattr(module, key, None)
                if tensor is not None and len(gone):
                    axis = 1 if layer.kind == "transposed" and key == "weight" else 0
                    tensor.index_add_(axis, gone, torch.randn_like(tensor.index_select(axis, gone)))
        assert torch.equal(net(x), wanted)


def test_open_channels_are_read(net: nn.Module, graph: ChannelGraph) -> None:
    """The other direction: no removable channel is one that nothing reads."""
    read = torch.zeros(len(graph), dtype=torch.bool)
    for layer in graph.layers.values():
        if layer.mixes:
            read[layer.inputs] = True
    assert read[:-1][graph.removable[:-1]].all()


# The model stays as it was


def test_model_is_left_as_it_was(net: nn.Module) -> None:
    modules = list(net.modules())
    for i, module in enumerate(modules):
        module.training = i % 3 == 0
    before, classes = fingerprint(net), [type(m) for m in modules]
    trace(net, EXAMPLE)
    assert [m.training for m in modules] == [i % 3 == 0 for i in range(len(modules))]
    assert_same_bits(net, before)
    assert list(net.modules()) == modules
    assert [type(m) for m in modules] == classes
    assert all(p.grad is None for p in net.parameters())
    for module in modules:
        assert not module._forward_hooks
        assert not module._forward_pre_hooks
        assert not module._backward_hooks


def test_model_in_train_mode_keeps_its_running_statistics() -> None:
    model = build("vgg").train()
    before = fingerprint(model)
    trace(model, torch.randn(4, 3, 16, 16))
    assert_same_bits(model, before)
    assert all(m.training for m in model.modules())


@pytest.mark.parametrize("numbers", [False, True])
def test_random_numbers_go_on_as_if_nothing_had_been_traced(numbers: bool) -> None:
    """With all numbers as with shapes only."""

    class Noisy(Net):
        def forward(self, x: Tensor) -> Tensor:
            shift = random.random() + np.random.random() + float(torch.rand(1))  # noqa: NPY002 - user code has it
            return super().forward(x + shift + torch.eye(16) if numbers else x + shift)

    def states() -> str:
        with np.printoptions(threshold=1000):
            return f"{random.getstate()} {np.random.get_state()} {torch.get_rng_state().tolist()}"  # noqa: NPY002

    net = Noisy(lambda x: x)
    before = states()
    trace(net, EXAMPLE)
    assert states() == before


def test_mode_comes_back_when_tracing_fails() -> None:
    model = build("vgg").train()
    with pytest.raises(TraceError):
        trace(model, torch.zeros(1, 2, 16, 16))
    assert all(m.training for m in model.modules())


def test_float64_model_is_traced() -> None:
    model = build("resnet-pad").double()
    assert str(trace(model, EXAMPLE)) == str(trace(build("resnet-pad"), EXAMPLE))


def test_graph_does_not_depend_on_the_batch() -> None:
    model = build("mobilenet")
    graph = trace(model, torch.randn(5, 3, 16, 16))
    assert graph.shape == (1, 3, 16, 16)
    assert cost(graph, unit="macs") == cost(trace(model, EXAMPLE), unit="macs")


# Errors


def test_branch_on_data_is_refused() -> None:
    class Branch(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x if x.sum() > 0 else -x

    with pytest.raises(TraceError, match=r"no branch that depends on the data"):
        trace(Branch(), EXAMPLE)


def test_example_that_does_not_fit_is_refused() -> None:
    with pytest.raises(TraceError, match=r"the example of shape \[1, 1, 16, 16\] must run through the model, got: .*channels"):
        trace(build("vgg"), torch.zeros(1, 1, 16, 16))


BATCH = r"a batch of inputs, such as images of shape \[1, channels, height, width\]"


def test_example_that_is_no_batch_is_refused() -> None:
    with pytest.raises(TraceError, match=rf"the example of shape \[3, 16, 16\] must run through the model \(it is {BATCH}\), got: "):
        trace(build("vgg"), torch.zeros(3, 16, 16))
    with pytest.raises(TraceError, match=rf"the example must be a tensor, {BATCH}, got tuple"):
        trace(build("vgg"), (EXAMPLE,))  # type: ignore[arg-type]


@pytest.mark.filterwarnings("ignore:.*torch.jit:DeprecationWarning")
def test_what_is_no_plain_network_is_refused() -> None:
    net = build("vgg")
    wrong: dict[str, Any] = {
        "wrapped in OptimizedModule: give model._orig_mod": torch.compile(net),
        "wrapped in DataParallel: give model.module": nn.DataParallel(net),
        "is a RecursiveScriptModule: give the module that it was made from": torch.jit.script(nn.ReLU()),
        "must be a torch.nn.Module, got str": "vgg",
    }
    for message, model in wrong.items():
        with pytest.raises(ValueError, match=message):
            trace(model, EXAMPLE)
    scripted = torch.jit.script(twice)
    with pytest.raises(TraceError, match=r"but twice is compiled by torch.jit.script: remove the decorator$"):
        trace(Net(lambda x: scripted(x)), EXAMPLE)


def twice(x: Tensor) -> Tensor:
    return 2 * x


def test_model_that_cannot_be_copied_is_refused(tmp_path: Path) -> None:
    net = build("vgg")
    message = r"the model must be one that copy.deepcopy can copy, got: cannot pickle"
    with open(tmp_path / "log", "w") as net.log, pytest.raises(TraceError, match=message):  # type: ignore[assignment]
        trace(net, EXAMPLE)


def test_model_that_has_never_run_is_refused() -> None:
    with pytest.raises(TraceError, match=r"the model must have all its parameters, but these are not there before it is run once: \['0.weight', '0.bias'\]"):
        trace(nn.Sequential(nn.LazyConv2d(8, 1), nn.ReLU()), EXAMPLE)


def test_model_of_two_inputs_is_refused() -> None:
    class Two(nn.Module):
        def forward(self, x: Tensor, y: Tensor) -> Tensor:
            return x + y

    with pytest.raises(TraceError, match=r"must run through the model, got: .*parameter y"):
        trace(Two(), EXAMPLE)


# Dictionaries by group


def test_split_and_join_are_inverse(graph: ChannelGraph, model: nn.Module) -> None:
    flat = torch.rand(len(graph))
    parts = graph.split(flat)
    assert parts.keys() == graph.prunable.keys()
    joined = graph.join(parts, -1.0)
    inside = torch.zeros(len(graph), dtype=torch.bool)
    for group in graph.prunable.values():
        inside[group.start : group.stop] = True
    assert torch.equal(joined, torch.where(inside, flat, torch.tensor(-1.0)))


def test_join_holds_the_numbers_of_every_part() -> None:
    graph = trace(build("resnet-conv"), EXAMPLE)
    whole, *halves = graph.prunable
    parts = {whole: torch.arange(4), **{name: torch.full((len(graph.groups[name]),), 0.5) for name in halves}}
    joined = graph.split(graph.join(parts, 0))
    assert all(torch.equal(joined[name], part.float()) for name, part in parts.items())
    assert graph.join(graph.split(torch.ones(len(graph), dtype=torch.bool)), True).dtype == torch.bool


def test_join_refuses_what_does_not_fit() -> None:
    graph = trace(build("resnet-conv"), EXAMPLE)
    parts = graph.split(torch.rand(len(graph)))
    with pytest.raises(ValueError, match=r"group 'conv1' has 4 channels, got a tensor of shape \[3\]"):
        graph.join({**parts, "conv1": torch.rand(3)}, 0.0)
    with pytest.raises(ValueError, match=r"missing: \[\], unknown: \['fc'\]"):
        graph.join({**parts, "fc": torch.rand(10)}, 0.0)
    with pytest.raises(ValueError, match=r"missing: \['conv1'\], unknown: \[\]"):
        graph.join({k: v for k, v in parts.items() if k != "conv1"}, 0.0)


def test_table_lists_every_group(graph: ChannelGraph, model: nn.Module) -> None:
    lines = str(graph).splitlines()
    for name, group in graph.groups.items():
        line = next(line for line in lines if line.split()[0] == name)
        free = int(graph.removable[group.start : group.stop].sum())
        assert line.split()[1:3] == [str(len(group)), str(free)]


@pytest.mark.parametrize("width", [1, 2])
def test_linear_layer_reads_a_flattened_channel_even_if_it_is_the_only_one(width: int) -> None:
    """Found by fuzzing: all columns of the layer belong to one channel, as they would if it mixed positions."""
    net = nn.Sequential(nn.Conv2d(3, width, 3, padding=1), nn.Flatten(), nn.Linear(width * 16, 5))
    example = torch.zeros(1, 3, 4, 4)
    graph = trace(net, example)
    assert graph.layers["2"].inputs.tolist() == [channel for channel in range(width) for _ in range(16)]
    assert cost(graph, unit="macs") == count_macs(net, example)
    assert cost(graph) == count_params(net)
