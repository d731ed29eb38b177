"""Surgery: the small model computes what the masked one computes, and the optimizer goes along."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from nets import EXAMPLE, First, HalfOpen, Named, OwnInput, Partial, SubPixel, Tokens, assert_same_bits, build, fingerprint, hooked, randomize, some_kept
from torch import Tensor, nn

import sdap_lite.surgery
from sdap_lite import ChannelGraph, Gates, SurgeryError, cost, count_params, largest_rate, masked, remove_channels, slice_optimizer, threshold, trace

TOLERANCE = 1e-10


def close(a: Tensor, b: Tensor) -> bool:
    return a.shape == b.shape and float((a - b).detach().abs().max()) <= TOLERANCE * max(1.0, float(b.detach().abs().max()))


def inputs(seed: int = 0, n: int = 3) -> Tensor:
    return torch.randn(n, *EXAMPLE.shape[1:], dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


# The same function


@pytest.mark.parametrize(("seed", "share"), [(0, 0.5), (1, 0.2), (2, 0.9), (3, 0.0)])
def test_small_model_is_the_masked_one(net: nn.Module, graph: ChannelGraph, seed: int, share: float) -> None:
    """Against inputs masked by hooks, in eval and in train mode; share 0 keeps one channel a layer."""
    net = net.double()
    kept = some_kept(graph, seed, share)
    small = remove_channels(net, graph, kept, check=False)
    flat = graph.join(kept, True)
    for training in (False, True):
        for m in (net, small):
            m.train(training)
        with hooked(net, graph, flat), torch.no_grad():
            assert close(small(inputs(seed)), net(inputs(seed)))


def test_masked_model_is_what_hooks_compute(net: nn.Module, graph: ChannelGraph) -> None:
    net = net.double()
    kept = some_kept(graph, 0)
    with torch.no_grad():
        found = masked(net, graph, kept)(inputs())
        with hooked(net, graph, graph.join(kept, True)):
            assert close(found, net(inputs()))


def test_gated_model_is_the_small_one(net: nn.Module, graph: ChannelGraph) -> None:
    net = net.double()
    kept = some_kept(graph, 0)
    with torch.no_grad(), Gates(graph).attach(net) as gates:
        gates.close(kept)
        wanted = net(inputs())
    with torch.no_grad():
        assert close(remove_channels(net, graph, kept)(inputs()), wanted)


def test_gradients_are_those_of_the_masked_model(net: nn.Module, graph: ChannelGraph) -> None:
    net = net.double()
    kept = some_kept(graph, 0)
    small = remove_channels(net, graph, kept)
    small(inputs()).square().sum().backward()
    with hooked(net, graph, graph.join(kept, True)):
        net(inputs()).square().sum().backward()
    with torch.no_grad():
        for p in net.parameters():
            p.copy_(p.grad)  # the gradients, cut as weights are cut
    wanted = remove_channels(net, graph, kept, check=False)
    for (name, p), q in zip(small.named_parameters(), wanted.parameters(), strict=True):
        torch.testing.assert_close(p.grad, q.detach(), rtol=1e-8, atol=1e-9, msg=name)


class Random(nn.Module):
    """A network drawn from a list of numbers: plain, residual, concatenating, depthwise, grouped and squeezing parts."""

    def __init__(self, parts: list[tuple[int, int]]) -> None:
        super().__init__()
        self.kinds: list[str] = []
        self.parts = nn.ModuleList()
        width = 6
        self.stem = nn.Conv2d(3, width, 3, padding=1)
        for kind, size in parts:
            name = ("plain", "residual", "concat", "depthwise", "grouped", "squeeze")[kind]
            part: nn.Module
            if name == "plain":
                part, width = nn.Sequential(nn.Conv2d(width, size, 3, padding=1, bias=size % 2 == 0), nn.BatchNorm2d(size), nn.ReLU()), size
            elif name == "residual":
                part = nn.Sequential(nn.Conv2d(width, size, 1), nn.BatchNorm2d(size), nn.ReLU(), nn.Conv2d(size, width, 3, padding=1))
            elif name == "concat":
                part, width = nn.Sequential(nn.BatchNorm2d(width), nn.ReLU(), nn.Conv2d(width, size, 3, padding=1)), width + size
            elif name == "depthwise":
                part = nn.Sequential(nn.Conv2d(width, width, 3, padding=1, groups=width), nn.BatchNorm2d(width), nn.ReLU6())
            elif name == "grouped":
                inner = 2 * size
                part = nn.Sequential(nn.Conv2d(width, inner, 1), nn.ReLU(), nn.Conv2d(inner, inner, 3, padding=1, groups=2), nn.Conv2d(inner, width, 1))
            else:
                part = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Conv2d(width, size, 1), nn.ReLU(), nn.Conv2d(size, width, 1), nn.Sigmoid())
            self.kinds.append(name)
            self.parts.append(part)
        self.fc = nn.Linear(width * 4, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.stem(x))
        for name, part in zip(self.kinds, self.parts, strict=True):
            y = part(x)
            if name in ("residual", "grouped"):
                x = x + y
            elif name == "concat":
                x = torch.cat([x, y], 1)
            else:
                x = x * y if name == "squeeze" else y
        return self.fc(torch.flatten(F.adaptive_avg_pool2d(x, 2), 1))


@given(parts=st.lists(st.tuples(st.integers(0, 5), st.integers(2, 7)), min_size=1, max_size=6), seed=st.integers(0, 10**6), share=st.floats(0, 1))
def test_surgery_on_random_networks(parts: list[tuple[int, int]], seed: int, share: float) -> None:
    torch.manual_seed(seed)
    net = randomize(Random(parts), seed).double().eval()
    graph = trace(net, EXAMPLE)
    assert [str(note) for note in graph.kept] == ["5 channels kept by output at the top: the network's output"], "everything else may go"
    for kept in (some_kept(graph, seed, share), threshold(graph, graph.split(torch.randn(len(graph))), share * largest_rate(graph))):
        small = remove_channels(net, graph, kept, check=False)
        assert count_params(small) == cost(graph, kept)
        with hooked(net, graph, graph.join(kept, True)), torch.no_grad():
            assert close(small(inputs(seed, 2)), net(inputs(seed, 2)))


# An independent library


def without_by_torch_pruning(model: nn.Module, graph: ChannelGraph, kept: dict[str, Tensor]) -> nn.Module:
    """Torch-Pruning removes the same channels, by groups that it finds on its own."""
    tp = pytest.importorskip("torch_pruning")
    pruning = {nn.Conv2d: tp.prune_conv_out_channels, nn.Linear: tp.prune_linear_out_channels}
    dependencies = tp.DependencyGraph().build_dependency(model, example_inputs=EXAMPLE.to(next(model.parameters()).dtype))
    for name, bits in kept.items():
        gone = (~bits).nonzero().flatten() + graph.groups[name].start
        root = model.get_submodule(name)
        rows = torch.isin(graph.layers[name].outputs, gone).nonzero().flatten().tolist()
        if rows:
            group = dependencies.get_pruning_group(root, pruning[type(root)], idxs=rows)
            assert dependencies.check_pruning_group(group)
            group.prune()
    return model


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::UserWarning")  # Torch-Pruning's own
@pytest.mark.parametrize("name", ["vgg", "resnet-conv", "mobilenet", "densenet", "squeeze-excitation"])
@pytest.mark.parametrize("seed", range(3))
def test_torch_pruning_removes_the_same(name: str, seed: int) -> None:
    """It cannot cut option A's padding; where it is able, both agree to the last weight."""
    net = build(name).double()
    graph = trace(net, EXAMPLE)
    kept = some_kept(graph, seed)
    small = remove_channels(net, graph, kept)
    theirs = without_by_torch_pruning(copy.deepcopy(net), graph, kept).eval()
    assert count_params(small) == count_params(theirs)
    for (key, ours), other in zip(small.state_dict().items(), theirs.state_dict().values(), strict=True):
        assert torch.equal(ours, other), key
    with torch.no_grad():
        assert torch.equal(small(inputs()), theirs(inputs()))


# A new model, and the old one as it was


def test_given_model_stays_bitwise(net: nn.Module, graph: ChannelGraph) -> None:
    net.train()
    before, parameters = fingerprint(net), list(net.parameters())
    widths = str(net)
    small = remove_channels(net, graph, some_kept(graph, 0))
    masked(net, graph, some_kept(graph, 0))
    assert_same_bits(net, before)
    assert all(a is b for a, b in zip(net.parameters(), parameters, strict=True))
    assert str(net) == widths
    assert all(m.training for m in net.modules())
    assert all(m.training for m in small.modules()), "the small model has the mode of the given one"
    shared = {p.data_ptr() for p in [*net.parameters(), *net.buffers()]} & {p.data_ptr() for p in [*small.parameters(), *small.buffers()]}
    assert not shared, "the two share no memory"
    assert not any(m._forward_hooks or m._forward_pre_hooks for n in (net, small) for m in n.modules())


def test_small_model_is_plain(net: nn.Module, graph: ChannelGraph) -> None:
    kept = some_kept(graph, 0)
    small = remove_channels(net, graph, kept)
    assert [(n, type(m)) for n, m in small.named_modules()] == [(n, type(m)) for n, m in net.named_modules()]
    assert list(small.state_dict()) == list(net.state_dict())
    again = trace(small, EXAMPLE)  # what the modules say of themselves is true
    assert cost(again) == cost(graph, kept) == count_params(small)
    flat = graph.join(kept, True)
    for name, layer in graph.layers.items():
        module = small.get_submodule(name)
        width = int(flat[layer.outputs].sum())
        if isinstance(module, nn.Conv2d) and layer.kind == "depthwise":
            assert module.groups == module.in_channels == module.out_channels == width
        elif isinstance(module, (nn.Conv2d, nn.ConvTranspose2d)):
            assert (module.out_channels, module.groups) == (width, layer.parts)


def test_keeping_everything_is_a_copy(net: nn.Module, graph: ChannelGraph) -> None:
    everything = graph.split(torch.ones(len(graph), dtype=torch.bool))
    assert_same_bits(remove_channels(net, graph, everything), fingerprint(net))


def test_pruning_twice_is_pruning_once() -> None:
    net = build("resnet-pad").double()
    graph = trace(net, EXAMPLE)
    first, second = some_kept(graph, 0, 0.7), some_kept(graph, 1, 0.5)
    both = {n: first[n] & second[n] for n in first}
    for name, bits in both.items():
        bits |= first[name] & ~bits.any()  # an empty group takes the first choice
    once = remove_channels(net, graph, both)
    middle = remove_channels(net, graph, first)
    again = trace(middle, EXAMPLE)
    twice = remove_channels(middle, again, {n: both[n][first[n]] for n in first})
    assert_same_bits(twice, fingerprint(once))


def test_model_that_casts_its_input_and_works_on_it_in_place() -> None:
    """The check is in float32 then: both networks get the same input, and what surgery got wrong is found."""
    net = randomize(OwnInput()).eval()
    graph = trace(net, EXAMPLE)
    kept = some_kept(graph, 0)
    small = remove_channels(net, graph, kept)
    x = torch.rand(2, 3, 16, 16)
    assert torch.allclose(small(x.clone()), masked(net, graph, kept)(x.clone()), atol=1e-5)
    stem = graph.layers["conv"]
    wrong = replace(graph, layers={**graph.layers, "conv": replace(stem, inputs=stem.inputs.flip(0))})
    assert graph.join(kept, True)[stem.inputs].tolist() != graph.join(kept, True)[stem.inputs.flip(0)].tolist()
    with pytest.raises(SurgeryError, match="differs first at 'conv'"):
        remove_channels(net, wrong, kept)


def test_frozen_parameters_stay_frozen() -> None:
    net = build("vgg")
    net.features[0].weight.requires_grad_(False)
    graph = trace(net, EXAMPLE)
    small = remove_channels(net, graph, some_kept(graph, 0))
    assert [p.requires_grad for p in small.parameters()] == [p.requires_grad for p in net.parameters()]


def test_layer_of_no_group_stays() -> None:
    net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Conv2d(4, 5, 3), nn.GroupNorm(1, 5), nn.Flatten(), nn.Linear(5 * 144, 3))
    graph = trace(net, EXAMPLE)
    small = remove_channels(net, graph, {"0": torch.tensor([True, False, False, True])})
    assert_same_bits(small[3:], fingerprint(net[3:]))


# Errors


def tampered(graph: ChannelGraph, **layers: dict[str, Tensor]) -> ChannelGraph:
    return replace(graph, layers={n: replace(y, **layers[n.replace(".", "_")]) if n.replace(".", "_") in layers else y for n, y in graph.layers.items()})


def test_wrong_graph_is_found_out_and_the_module_is_named() -> None:
    """Two channels exchanged in what one consumer reads: widths are right, numbers are not."""
    net = build("vgg")
    graph = trace(net, EXAMPLE)
    kept = some_kept(graph, 0)
    kept["features.0"] = torch.tensor([True, False, True, True])
    wrong = tampered(graph, features_4={"inputs": graph.layers["features.4"].inputs[[1, 0, 2, 3]]})
    assert remove_channels(net, wrong, kept, check=False) is not None
    with pytest.raises(SurgeryError, match=r"the small model must compute what the masked one computes, but differs first at 'features.4'"):
        remove_channels(net, wrong, kept)


def test_wrong_width_is_found_out() -> None:
    net = build("resnet-conv")
    graph = trace(net, EXAMPLE)
    kept = some_kept(graph, 0, 0.3)
    wide = torch.arange(len(graph))[graph.join(kept, True)][:1].expand(4)
    wrong = tampered(graph, layer1_0_conv1={"inputs": wide})  # says that all its columns read a channel that stays
    with pytest.raises(SurgeryError, match=r"the small model cannot run, after modules that all agree: .*channels"):
        remove_channels(net, wrong, kept)


def test_wrong_norm_is_found_out() -> None:
    net = build("mobilenet")
    graph = trace(net, EXAMPLE)
    kept = some_kept(graph, 0)
    name = "features.3.layers.1"  # the norm behind the first depthwise convolution
    line = graph.layers[name].outputs
    wrong = replace(graph, layers={**graph.layers, name: replace(graph.layers[name], inputs=line.flip(0), outputs=line.flip(0))})
    flat = graph.join(kept, True)
    assert flat[line].tolist() != flat[line.flip(0)].tolist()
    with pytest.raises(SurgeryError, match=rf"differs first at '{name}'"):
        remove_channels(net, wrong, kept)


@dataclass
class Answer:
    logits: Tensor
    name: str = "answer"


def test_outputs_in_a_dataclass_are_compared_field_by_field() -> None:
    logits, equal = torch.rand(3, dtype=torch.float64), sdap_lite.surgery._equal
    assert equal(Answer(logits), Answer(logits.clone()))
    assert not equal(Answer(logits), Answer(logits + 1e-5))
    assert not equal(Answer(logits), Answer(logits, "another"))


def test_check_can_fail_for_every_layer(monkeypatch: pytest.MonkeyPatch) -> None:
    """A weight that surgery got wrong anywhere is found, and its module named."""
    net = build("resnet-pad")
    graph = trace(net, EXAMPLE)
    kept = some_kept(graph, 0)
    resize = sdap_lite.surgery._resize
    for name in (n for n, y in graph.layers.items() if y.kind != "pad"):

        def spoil(module: nn.Module, layer: object, flat: Tensor, name: str = name) -> None:
            resize(module, layer, flat)
            if layer.name == name:  # type: ignore[attr-defined]
                with torch.no_grad():
                    module.weight.mul_(1 + 1e-5)  # type: ignore[operator, union-attr]

        monkeypatch.setattr(sdap_lite.surgery, "_resize", spoil)
        with pytest.raises(SurgeryError, match=rf"differs first at '{name}'"):
            remove_channels(net, graph, kept)


def test_kept_must_fit() -> None:
    net = build("squeeze-excitation")
    graph = trace(net, EXAMPLE)
    kept = some_kept(graph, 0)
    with pytest.raises(ValueError, match=r"kept must hold bool tensors, got \{'squeeze': 'torch.float32'\}"):
        remove_channels(net, graph, {**kept, "squeeze": torch.ones(4)})
    with pytest.raises(ValueError, match=r"missing: \['squeeze'\], unknown: \[\]"):
        remove_channels(net, graph, {"conv.0": kept["conv.0"]})
    with pytest.raises(ValueError, match=r"group 'squeeze' has 4 channels, got a tensor of shape \[3\]"):
        remove_channels(net, graph, {**kept, "squeeze": torch.ones(3, dtype=torch.bool)})
    with pytest.raises(ValueError, match=r"every layer must keep at least one channel, but 'squeeze' would lose all"):
        masked(net, graph, {**kept, "squeeze": torch.zeros(4, dtype=torch.bool)})


def test_what_must_stay_cannot_be_removed() -> None:
    net = nn.Sequential(nn.Conv2d(3, 4, 1), nn.Conv2d(4, 6, 1), nn.Conv2d(6, 2, 1))
    graph = trace(net, EXAMPLE)
    partly = replace(graph, removable=graph.removable & (torch.arange(len(graph)) != 5))
    with pytest.raises(ValueError, match=r"1 channels must stay but are not kept, the first in group '1': print\(graph\) says why"):
        remove_channels(net, partly, {"0": torch.ones(4, dtype=torch.bool), "1": torch.arange(6) == 2})


def test_graph_of_another_model_is_refused() -> None:
    graph = trace(build("resnet-conv"), EXAMPLE)
    with pytest.raises(ValueError, match=r"the graph must be this model's, but the model has no module 'conv1': trace it again"):
        remove_channels(build("vgg"), graph, some_kept(graph, 0))


def test_gated_model_is_refused() -> None:
    net = build("vgg")
    graph = trace(net, EXAMPLE)
    with Gates(graph).attach(net), pytest.raises(RuntimeError, match=r"the model must have no gates .*: detach\(\) them first"):
        remove_channels(net, graph, some_kept(graph, 0))


# The optimizer


OPTIMIZERS: dict[str, Callable[[Iterator[nn.Parameter]], torch.optim.Optimizer]] = {
    "sgd": lambda p: torch.optim.SGD(p, lr=0.05, momentum=0.9, weight_decay=1e-2, nesterov=True),
    "adam": lambda p: torch.optim.Adam(p, lr=0.01, weight_decay=1e-2),
    "adamw-amsgrad": lambda p: torch.optim.AdamW(p, lr=0.01, amsgrad=True),
    "rmsprop": lambda p: torch.optim.RMSprop(p, lr=0.01, momentum=0.5, centered=True),
}


def step(model: nn.Module, optimizer: torch.optim.Optimizer, seed: int) -> None:
    optimizer.zero_grad()
    model(inputs(seed)).square().mean().backward()
    optimizer.step()


@pytest.mark.parametrize("kind", list(OPTIMIZERS))
def test_optimizer_goes_on_as_on_the_masked_net(model: nn.Module, graph: ChannelGraph, kind: str) -> None:
    """Some steps of the whole net, then the cut; further steps are those of the net that was masked instead."""
    model = model.double()
    optimizer = OPTIMIZERS[kind](model.parameters())
    for seed in range(3):
        step(model, optimizer, seed)
    whole, kept = copy.deepcopy(model), some_kept(graph, 0)
    theirs = OPTIMIZERS[kind](whole.parameters())
    theirs.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    small = remove_channels(model, graph, kept)
    slice_optimizer(optimizer, model, small, graph, kept)
    with hooked(whole, graph, graph.join(kept, True)):
        for seed in range(3, 5):
            step(small, optimizer, seed)
            step(whole, theirs, seed)
    wanted = remove_channels(whole, graph, kept, check=False)
    for (name, p), q in zip(small.named_parameters(), wanted.parameters(), strict=True):
        # Adam divides by the root of a square that may be nearly nothing.
        torch.testing.assert_close(p, q, rtol=1e-7, atol=1e-9, msg=name)


def test_optimizer_holds_the_small_models_parameters() -> None:
    model = build("mobilenet")
    graph = trace(model, EXAMPLE)
    kept = some_kept(graph, 0)
    groups = [{"params": [p for p in model.parameters() if p.ndim > 1]}, {"params": [p for p in model.parameters() if p.ndim <= 1], "lr": 0.5}]
    optimizer = torch.optim.Adam(groups, lr=0.1)
    model(EXAMPLE).sum().backward()
    optimizer.step()
    steps = [s["step"].clone() for s in optimizer.state.values()]
    small = remove_channels(model, graph, kept)
    slice_optimizer(optimizer, model, small, graph, kept)
    held = [p for group in optimizer.param_groups for p in group["params"]]
    assert {id(p) for p in held} == {id(p) for p in small.parameters()}
    assert [group["lr"] for group in optimizer.param_groups] == [0.1, 0.5]
    assert set(optimizer.state) == set(held)
    for p, count in zip(held, steps, strict=True):
        assert optimizer.state[p]["exp_avg"].shape == p.shape
        assert torch.equal(optimizer.state[p]["step"], count), "the step count goes on"


def test_optimizer_that_has_not_stepped_is_cut_too() -> None:
    model = build("vgg")
    graph = trace(model, EXAMPLE)
    kept = some_kept(graph, 0)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    small = remove_channels(model, graph, kept)
    slice_optimizer(optimizer, model, small, graph, kept)
    before = fingerprint(small)
    small(inputs().float()).sum().backward()
    optimizer.step()
    assert not torch.equal(small.features[0].weight, before["features.0.weight"])


def test_optimizer_of_another_model_is_refused() -> None:
    model = build("vgg")
    graph = trace(model, EXAMPLE)
    kept = some_kept(graph, 0)
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(7, 3))], lr=0.1)
    with pytest.raises(ValueError, match=r"the optimizer must hold parameters of this model only, but holds others of shapes \[\[7, 3\]\]"):
        slice_optimizer(optimizer, model, remove_channels(model, graph, kept), graph, kept)


# The graph of what is left


@pytest.mark.parametrize(("seed", "share"), [(0, 0.5), (1, 0.7), (2, 0.9)])
def test_narrowed_graph_is_what_a_new_trace_finds(net: nn.Module, graph: ChannelGraph, seed: int, share: float) -> None:
    """As long as layers are wider than one channel: a trace takes a depthwise layer of one channel for a plain one."""
    kept = some_kept(graph, seed, share)
    found, wanted = graph.narrowed(kept), trace(remove_channels(net, graph, kept), EXAMPLE)
    assert found.groups == wanted.groups
    assert torch.equal(found.removable, wanted.removable)
    assert found.layers.keys() == wanted.layers.keys()
    for name, layer in wanted.layers.items():
        assert torch.equal(found.layers[name].inputs, layer.inputs)
        assert torch.equal(found.layers[name].outputs, layer.outputs)
    for unit in ("params", "macs", "channels"):
        assert cost(found, unit=unit) == cost(wanted, unit=unit) == cost(graph, kept, unit)
    assert [(str(note), note.channels.tolist()) for note in found.kept] == [(str(note), note.channels.tolist()) for note in wanted.kept]


@pytest.mark.parametrize("share", [0.7, 0.3, 0.0])
def test_surgery_in_two_steps_is_surgery_in_one(net: nn.Module, graph: ChannelGraph, share: float) -> None:
    first = some_kept(graph, 0, 0.7)
    smaller = graph.narrowed(first)
    second = some_kept(smaller, 1, share)
    stays = graph.join(first, True)
    stays[stays.clone()] = smaller.join(second, True)
    once = remove_channels(net, graph, graph.split(stays))
    twice = remove_channels(remove_channels(net, graph, first), smaller, second)
    assert_same_bits(twice, fingerprint(once))


# Layers whose own code goes on after the product


def model_of(layer: nn.Module, *rest: nn.Module) -> nn.Module:
    return randomize(nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), layer, *rest, nn.Flatten(), nn.LazyLinear(5))).eval()


SUBCLASSES: dict[str, Callable[[], nn.Module]] = {
    "tokens": lambda: model_of(Tokens(8, 16, 4, 4), nn.Linear(16, 6), nn.GELU()),
    "sub-pixel": lambda: model_of(SubPixel(8, 32, 3, padding=1), nn.Conv2d(8, 4, 3)),
    "tuple": lambda: model_of(First(Partial(8, 16, 3)), nn.Conv2d(16, 4, 3)),
    "dict": lambda: model_of(First(Named(8, 16, 3)), nn.Conv2d(16, 4, 3)),
    "glu": lambda: model_of(HalfOpen(8, 16, 3), nn.Conv2d(8, 4, 3)),
}


@pytest.mark.parametrize("name", SUBCLASSES)
def test_a_subclass_may_give_something_else_than_its_product(name: str) -> None:
    net = SUBCLASSES[name]()
    net(EXAMPLE)
    graph = trace(net, EXAMPLE)
    kept = threshold(graph, graph.split(torch.arange(float(len(graph)))), 0.3)
    small = remove_channels(net, graph, kept)
    assert count_params(small) < count_params(net)
    line = graph.layers["0"].outputs
    flipped = replace(graph, layers={**graph.layers, "0": replace(graph.layers["0"], outputs=line.flip(0))})
    uneven = {**kept, "0": torch.arange(8) < 3}
    assert remove_channels(net, graph, uneven) is not None
    with pytest.raises(SurgeryError, match="differs first at '2'"):
        remove_channels(net, flipped, uneven)


@pytest.mark.parametrize("name", SUBCLASSES)
def test_what_surgery_got_wrong_in_a_subclass_is_found_behind_it(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    net = SUBCLASSES[name]()
    net(EXAMPLE)
    graph, resize = trace(net, EXAMPLE), sdap_lite.surgery._resize

    def spoil(module: nn.Module, layer: object, flat: Tensor) -> None:
        resize(module, layer, flat)
        if type(module).__module__ == Tokens.__module__:
            with torch.no_grad():
                module.weight.mul_(1 + 1e-5)  # type: ignore[operator, union-attr]

    monkeypatch.setattr(sdap_lite.surgery, "_resize", spoil)
    with pytest.raises(SurgeryError, match=r"differs first at '[2-9]'"):
        remove_channels(net, graph, graph.split(torch.ones(len(graph), dtype=torch.bool)))


# What a layer has beside its weight, its bias and its statistics


class InputScaled(nn.Conv2d):
    """It has one number for each channel that comes in."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__(inputs, outputs, 3, padding=1)
        self.in_scale = nn.Parameter(torch.rand(inputs))

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x * self.in_scale.view(1, -1, 1, 1))


class WithTable(nn.GroupNorm):
    def __init__(self, groups: int, channels: int) -> None:
        super().__init__(groups, channels)
        self.table = nn.Parameter(torch.zeros(4, 2))

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x)


def with_extras() -> nn.Module:
    conv = nn.Conv2d(16, 8, 3, padding=1)
    conv.register_buffer("histogram", torch.arange(100.0))
    conv.register_parameter("table", nn.Parameter(torch.rand(20, 3)))
    return conv


@pytest.mark.parametrize("make", [with_extras, lambda: InputScaled(16, 8), lambda: nn.Sequential(nn.Conv2d(16, 8, 1), WithTable(4, 8))])
def test_tensors_that_are_no_rows_stay(make: Callable[[], nn.Module]) -> None:
    model = nn.Sequential(nn.Conv2d(3, 16, 3), nn.ReLU(), make(), nn.Conv2d(8, 8, 3), nn.ReLU(), nn.Flatten(), nn.Linear(1152, 5))
    graph = trace(model, EXAMPLE)
    kept = threshold(graph, graph.split(-torch.arange(float(len(graph)))), 0.65)
    small = remove_channels(model, graph, kept)
    for key, tensor in model[2].state_dict().items():
        if key.rpartition(".")[2] not in ("weight", "bias"):
            assert torch.equal(small[2].state_dict()[key], tensor)
    assert cost(graph, kept) == count_params(small)


def test_a_tensor_that_the_trace_knows_is_cut_as_it_says() -> None:
    """Though it belongs to a module that is a layer itself."""
    model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Flatten(), nn.Linear(8 * 196, 5))
    model[0].register_parameter("scale", nn.Parameter(torch.arange(8.0).view(1, 8, 1, 1)))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    (model(EXAMPLE + 1).sum() + model[0].scale.square().sum()).backward()
    optimizer.step()
    momentum = optimizer.state[model[0].scale]["momentum_buffer"]
    graph = trace(model, EXAMPLE)
    line = graph.layers["0"].outputs
    known = replace(graph.layers["0"], name="0.scale", kind="parameter", inputs=line, outputs=line, pair_params=0, out_params=1)
    graph = replace(graph, layers={**graph.layers, "0.scale": known}, other_params=graph.other_params - 8)
    kept = {"0": torch.arange(8) % 2 == 0}
    small = remove_channels(model, graph, kept)
    assert torch.equal(small[0].scale, model[0].scale[:, ::2])
    assert cost(graph, kept) == count_params(small)
    slice_optimizer(optimizer, model, small, graph, kept)
    assert torch.equal(optimizer.state[small[0].scale]["momentum_buffer"], momentum[:, ::2])
