"""Random CNNs of many kinds of blocks, random kept channels: no difference, ever.

Hypothesis draws a list of blocks; the widths follow. The oracle multiplies the inputs of each
consumer in hooks (``nets.hooked``) and never calls the library's masks.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from hypothesis import example, given, settings
from hypothesis import strategies as st
from nets import hooked, randomize, some_kept
from torch import Tensor, nn

import sdap_lite as sdap
from sdap_lite import cost, count_params, largest_rate, remove_channels, threshold, trace
from sdap_lite.layers import ChannelPad

WIDTH = 12  # divisible by all that the blocks divide by


class Block(nn.Module):
    """From WIDTH channels to WIDTH channels: a function of its modules and the input."""

    def __init__(self, function: Callable[..., Tensor], **modules: nn.Module) -> None:
        super().__init__()
        self.function, self.names = function, list(modules)
        for name, module in modules.items():
            self.add_module(name, module)

    def forward(self, x: Tensor) -> Tensor:
        return self.function(x, *(getattr(self, name) for name in self.names))


class Scale(nn.Module):
    """A layer scale, with an axis for each of the input's."""

    def __init__(self, axes: int) -> None:
        super().__init__()
        self.gamma = nn.Parameter(torch.randn(WIDTH, *[1] * axes))

    def forward(self, x: Tensor) -> Tensor:
        return x * self.gamma


def conv(d: int, inputs: int, outputs: int, kernel: int = 3, **settings: int) -> nn.Module:
    dilation = settings.get("dilation", 1)
    return getattr(nn, f"Conv{d}d")(inputs, outputs, kernel, padding=dilation * (kernel // 2), **settings)


def transposed(d: int, inputs: int, outputs: int, **settings: int) -> nn.Module:
    return getattr(nn, f"ConvTranspose{d}d")(inputs, outputs, 3, padding=1, **settings)


def norm(d: int, width: int) -> nn.Module:
    return getattr(nn, f"BatchNorm{d}d")(width)


def pool(x: Tensor) -> Tensor:
    return x.mean(tuple(range(2, x.ndim)), keepdim=True)


def shuffle(x: Tensor, groups: int) -> Tensor:
    n, c, *size = x.shape
    return x.view(n, groups, c // groups, *size).transpose(1, 2).reshape(n, c, *size)


def heads(x: Tensor) -> Tensor:
    """[batch, channels, ...] -> [batch, 2, places, channels of a head]"""
    return x.flatten(2).unflatten(1, (2, -1)).transpose(2, 3)


W = WIDTH
BLOCKS: dict[str, Callable[[int, int], nn.Module]] = {  # dimensions, inner width (a multiple of 6) -> block
    "plain": lambda d, m: Block(lambda x, a, n, b: b(F.relu(n(a(x)))), a=conv(d, W, m), n=norm(d, m), b=conv(d, m, W)),
    "residual": lambda d, m: Block(lambda x, a, n, b: x + b(F.relu(n(a(x)))), a=conv(d, W, m), n=norm(d, m), b=conv(d, m, W, 1)),
    "pre-activation": lambda d, m: Block(lambda x, n, a, b: x + b(F.relu(a(F.relu(n(x))))), n=norm(d, W), a=conv(d, W, m), b=conv(d, m, W)),
    "dense": lambda d, m: Block(lambda x, a, b: b(torch.cat([x, F.gelu(a(x)), x.relu()], 1)), a=conv(d, W, m), b=conv(d, 2 * W + m, W, 1)),
    "depthwise": lambda d, m: Block(lambda x, a, n: F.silu(n(a(x))), a=conv(d, W, W, groups=W), n=norm(d, W)),
    "multiplier": lambda d, m: Block(lambda x, a, b: b(F.relu(a(x))), a=conv(d, W, 2 * W, groups=W), b=conv(d, 2 * W, W, 1)),
    "grouped": lambda d, m: Block(lambda x, a, b, c: x + c(b(a(x))), a=conv(d, W, m), b=conv(d, m, 2 * m, groups=3, dilation=2), c=conv(d, 2 * m, W)),
    "grouped stream": lambda d, m: Block(lambda x, a: F.relu(a(x)), a=conv(d, W, W, groups=2)),
    "transposed": lambda d, m: Block(lambda x, a, b: b(F.relu(a(x))), a=transposed(d, W, m), b=conv(d, m, W)),
    "transposed with groups": lambda d, m: Block(lambda x, a, b: b(a(x)), a=transposed(d, W, m, groups=2), b=transposed(d, m, W, groups=3)),
    "transposed depthwise": lambda d, m: Block(lambda x, a, b: b(a(x)), a=transposed(d, W, 2 * W, groups=W), b=conv(d, 2 * W, W)),
    "squeeze": lambda d, m: Block(lambda x, a, b: x * torch.sigmoid(b(F.relu(a(pool(x))))), a=conv(d, W, m, 1), b=conv(d, m, W, 1)),
    "squeeze by hand": lambda d, m: Block(
        lambda x, a, b: x * b(F.relu(a(pool(x).flatten(1)))).sigmoid().view(x.size(0), x.size(1), *[1] * d).expand_as(x), a=nn.Linear(W, m), b=nn.Linear(m, W)
    ),
    "layer scale": lambda d, m: Block(lambda x, a, s: x + s(a(x)), a=conv(d, W, W), s=Scale(d)),
    "prelu": lambda d, m: Block(lambda x, a, p, b: b(p(a(x))), a=conv(d, W, m), p=nn.PReLU(m), b=conv(d, m, W)),
    "group norm": lambda d, m: Block(lambda x, a, n, b: b(n(a(x))), a=conv(d, W, m), n=nn.GroupNorm(3, m), b=conv(d, m, W)),
    "layer norm": lambda d, m: Block(
        lambda x, n, a, b: x + b(F.gelu(a(n(x.movedim(1, -1))))).movedim(-1, 1), n=nn.LayerNorm(W), a=nn.Linear(W, m), b=nn.Linear(m, W)
    ),
    "chunk": lambda d, m: Block(lambda x, a, b: torch.cat([x.chunk(2, 1)[0], b(a(x.chunk(2, 1)[1]))], 1), a=conv(d, W // 2, m), b=conv(d, m, W // 2)),
    "gated": lambda d, m: Block(lambda x, a, b: b(a(x).chunk(2, 1)[0] * a(x).chunk(2, 1)[1].sigmoid()), a=conv(d, W, 2 * m), b=conv(d, m, W)),
    "split": lambda d, m: Block(lambda x, a: torch.cat([*torch.split(x, 4, 1)[1:2], a(x[:, 8:]), x[:, :4]], 1), a=conv(d, 4, 4)),
    "half": lambda d, m: Block(lambda x, a: torch.cat([a(x[:, : x.shape[1] // 2]), x[:, x.shape[1] // 2 :]], 1), a=conv(d, W // 2, W // 2)),
    "shuffle": lambda d, m: Block(lambda x, a: shuffle(a(x), 3), a=conv(d, W, W)),
    "shuffled groups": lambda d, m: Block(lambda x, a, b, c: c(b(shuffle(a(x), 2))), a=conv(d, W, m, groups=2), b=conv(d, m, m, groups=2), c=conv(d, m, W, 1)),
    "pixel shuffle": lambda d, m: Block(lambda x, a, b: b(F.pixel_shuffle(a(x), 2)), a=conv(2, W, 4 * m), b=conv(2, m, W, stride=2)),
    "pixel unshuffle": lambda d, m: Block(lambda x, a: F.interpolate(a(F.pixel_unshuffle(x, 2)), scale_factor=2), a=conv(2, 4 * W, W)),
    "shared": lambda d, m: Block(lambda x, a: a(F.relu(a(x))), a=conv(d, W, W)),
    "pad": lambda d, m: Block(lambda x, a, p, b: b(x + p(a(x))), a=conv(d, W, W - 4), p=ChannelPad(2, 2), b=conv(d, W, W)),
    "pad by hand": lambda d, m: Block(lambda x, a: x + F.pad(a(x), (0, 0) * d + (3, 3)), a=conv(d, W, W - 6)),
    "zeros": lambda d, m: Block(lambda x, a: x + torch.cat([a(x), torch.zeros_like(a(x))], 1), a=conv(d, W, W // 2)),
    "attention": lambda d, m: Block(lambda x, a: x * torch.sigmoid(a(x)), a=conv(d, W, 1)),
    "non-local": lambda d, m: Block(
        lambda x, q, v: x + (v(x).flatten(2) @ (q(x).flatten(2).transpose(1, 2) @ q(x).flatten(2)).softmax(-1)).view_as(x),
        q=conv(d, W, m, 1),
        v=conv(d, W, W, 1),
    ),
    "heads": lambda d, m: Block(
        lambda x, q, v, b: x + b(F.scaled_dot_product_attention(heads(q(x)), heads(q(x)), heads(v(x))).transpose(2, 3).reshape(x.shape[0], -1, *x.shape[2:])),
        q=conv(d, W, m, 1),
        v=conv(d, W, m, 1),
        b=conv(d, m, W, 1),
    ),
    "softmax": lambda d, m: Block(lambda x, a, b: b(F.softmax(a(x), 1)), a=conv(d, W, m), b=conv(d, m, W)),
    "mean": lambda d, m: Block(lambda x, a: x * a(x).mean(1, keepdim=True), a=conv(d, W, m)),
    "unknown": lambda d, m: Block(lambda x, a, b: b(torch.cummax(a(x), 1)[0]), a=conv(d, W, m), b=conv(d, m, W)),
    "roll": lambda d, m: Block(lambda x, a: torch.roll(a(x), 1, 1), a=conv(d, W, W)),
}
FLAT_ONLY = {"pixel shuffle", "pixel unshuffle", "pad"}  # in two dimensions only


class Random(nn.Module):
    def __init__(self, d: int, blocks: list[tuple[str, int]], flatten: bool, shape: tuple[int, ...] = ()) -> None:
        super().__init__()
        channels, *size = shape or (3, *[4] * d)
        self.stem = conv(d, channels, WIDTH)
        self.blocks = nn.Sequential(*(BLOCKS[name](d, 6 * inner) for name, inner in blocks))
        self.flatten = flatten
        self.head = nn.Linear(WIDTH * (math.prod(size) if flatten else 1), 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.blocks(self.stem(x))
        return self.head(x.flatten(1) if self.flatten else pool(x).flatten(1))


def build(d: int, blocks: list[tuple[str, int]], flatten: bool, seed: int = 0) -> nn.Module:
    torch.manual_seed(seed)
    return randomize(Random(d, [b for b in blocks if d == 2 or b[0] not in FLAT_ONLY], flatten), seed).double().eval()


def assert_exact(net: nn.Module, kept: dict[str, Tensor], graph: sdap.ChannelGraph, x: Tensor) -> nn.Module:
    small = remove_channels(net, graph, kept, check=False)
    assert count_params(small) == cost(graph, kept)
    with hooked(net, graph, graph.join(kept, True) if kept else torch.ones(len(graph), dtype=torch.bool)), torch.no_grad():
        torch.testing.assert_close(small(x), net(x), rtol=1e-10, atol=1e-10)
    return small


@settings(max_examples=200)
@given(
    d=st.sampled_from([2, 2, 2, 1, 3]),
    blocks=st.lists(st.tuples(st.sampled_from(list(BLOCKS)), st.integers(1, 3)), min_size=1, max_size=5),
    flatten=st.booleans(),
    seed=st.integers(0, 10**6),
    share=st.floats(0, 1),
)
def test_surgery_on_random_cnns(d: int, blocks: list[tuple[str, int]], flatten: bool, seed: int, share: float) -> None:
    net = build(d, blocks, flatten, seed)
    graph = trace(net, torch.zeros(1, 3, *[4] * d))
    x = torch.randn(2, 3, *[4] * d, dtype=torch.float64)
    small = assert_exact(net, some_kept(graph, seed, share), graph, x)
    rate = share * largest_rate(graph)
    assert_exact(net, threshold(graph, graph.split(torch.randn(len(graph))), rate), graph, x)
    again = trace(small, torch.zeros(1, 3, *[4] * d))
    assert cost(again) == count_params(small)
    assert_exact(small, some_kept(again, seed + 1, share), again, x)


@settings(max_examples=200)
@given(
    blocks=st.lists(st.tuples(st.sampled_from(list(BLOCKS)), st.integers(1, 2)), min_size=1, max_size=3),
    unit=st.sampled_from(["params", "macs", "channels"]),
    round_to=st.integers(1, 8),
    seed=st.integers(0, 10**6),
)
@example(blocks=[("pad", 1)], unit="params", round_to=3, seed=0)  # channels of one group that differ in cost
def test_largest_rate_can_be_had_whatever_the_scores(blocks: list[tuple[str, int]], unit: str, round_to: int, seed: int) -> None:
    graph = trace(build(2, blocks, flatten=False), torch.zeros(1, 3, 4, 4))
    most = largest_rate(graph, unit, round_to)
    scores = graph.split(torch.rand(len(graph), generator=torch.Generator().manual_seed(seed)))
    kept = threshold(graph, scores, most, unit=unit, round_to=round_to)
    assert cost(graph, kept, unit) <= (1 - most) * cost(graph, unit=unit) + 1e-6


@pytest.mark.parametrize("name", list(BLOCKS))
@pytest.mark.parametrize("d", [1, 2, 3])
def test_each_block(name: str, d: int, tmp_path: Path) -> None:
    """Alone: exact, saved and loaded, and prunable except where it must not be."""
    if d != 2 and name in FLAT_ONLY:
        pytest.skip("in two dimensions only")
    net = build(d, [(name, 2)], flatten=False)
    graph = trace(net, torch.zeros(1, 3, *[4] * d))
    x = torch.randn(2, 3, *[4] * d, dtype=torch.float64)
    small = assert_exact(net, some_kept(graph, 0), graph, x)
    remove_channels(net, graph, some_kept(graph, 1))
    if name not in ("split", "attention", "layer norm"):
        assert largest_rate(graph) > 0.3, graph
    sdap.save(small, tmp_path / "net")
    loaded = sdap.load(tmp_path / "net", build(d, [(name, 2)], flatten=False, seed=1))
    with torch.no_grad():
        assert torch.equal(loaded(x), small(x))
        assert small(x).isfinite().all()
