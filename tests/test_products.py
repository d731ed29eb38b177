"""Products of two activations: attention over positions and einsum, whose sums must not run over channels that go."""

from __future__ import annotations

import math
import random
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from nets import EXAMPLE, QUICK, cut_like_masked, pictures, randomize, some_kept
from torch import Tensor, nn

import sdap_lite as sdap
from sdap_lite import count_macs, trace
from sdap_lite.tracing.products import spell


class Around(nn.Module):
    """Two convolutions, with something between them."""

    def __init__(self, between: nn.Module) -> None:
        super().__init__()
        self.a, self.between, self.b, self.fc = nn.Conv2d(3, 8, 3, stride=2, padding=1), between, nn.Conv2d(8, 6, 3, padding=1), nn.Linear(6, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(self.b(self.between(self.a(x).relu())).relu().mean((2, 3)))


class Attention(nn.Module):
    """Queries, keys and values of 8 channels, and a way to put them together."""

    def __init__(self, mix: Callable[[Tensor, Tensor, Tensor], Tensor], residual: bool = True) -> None:
        super().__init__()
        self.q, self.k, self.v, self.out = (nn.Conv2d(8, 8, 1) for _ in range(4))
        self.mix, self.residual = mix, residual

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = (layer(x).flatten(2) for layer in (self.q, self.k, self.v))  # [batch, channels, places]
        seen = self.mix(q, k, v)
        y = self.out(seen.view(x.shape[0], seen.shape[1], x.shape[2], x.shape[3]))
        return x + y if self.residual else y


def by_matmul(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    return v @ (q.transpose(1, 2) @ k).softmax(-1).transpose(1, 2)


def by_bmm(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    return torch.bmm(v, q.transpose(1, 2).bmm(k).softmax(-1).transpose(1, 2))


def by_einsum(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    return torch.einsum("bcm, bnm -> bcn", v, torch.einsum("bcn,bcm->bnm", [q, k]).softmax(-1))


def two_heads(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    q, k, v = (x.view(x.shape[0], 2, x.shape[1] // 2, x.shape[2]) for x in (q, k, v))
    shares = (q.transpose(-2, -1) @ k / math.sqrt(q.shape[2])).softmax(-1)
    return torch.matmul(v, other=shares.transpose(-2, -1)).flatten(1, 2)


def scaled(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    q, k, v = (x.unflatten(1, (2, -1)).transpose(2, 3) for x in (q, k, v))
    return F.scaled_dot_product_attention(q, k, value=v).transpose(2, 3).flatten(1, 2)


def masked(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    mask = q.amax(1, keepdim=True) > k.amax(1).unsqueeze(-1)
    return F.scaled_dot_product_attention(q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2), mask | ~mask).transpose(1, 2)


def linear(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    context = k.softmax(-1) @ v.transpose(1, 2)  # [batch, keys, values]
    return (q.softmax(1).transpose(1, 2) @ context).transpose(1, 2)


def of_channels(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    return (q @ k.transpose(1, 2)).softmax(-1) @ v


def three_factors(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    return torch.einsum("bcn,bnm,bc->bcm", v, (q.transpose(1, 2) @ k).softmax(-1), torch.sigmoid(v.mean(-1)))


class Context(nn.Module):
    """One map of attention over all places, as in GCNet."""

    def __init__(self) -> None:
        super().__init__()
        self.map = nn.Conv2d(8, 1, 1)

    def forward(self, x: Tensor) -> Tensor:
        shares = self.map(x).flatten(2).softmax(-1).unsqueeze(-1)  # [batch, 1, places, 1]
        return x + torch.matmul(x.flatten(2).unsqueeze(1), shares).view(*x.shape[:2], 1, 1)


class Excite(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(8, 8)

    def forward(self, x: Tensor) -> Tensor:
        return torch.einsum("bchw,bc->bchw", x, torch.sigmoid(self.fc(torch.einsum("bchw->bc", x) / 64)))


class Mixer(nn.Module):
    """A matrix of the module's own, over the places or over the channels."""

    def __init__(self, equation: str, size: int) -> None:
        super().__init__()
        self.equation, self.matrix = equation, nn.Parameter(torch.rand(size, size, generator=torch.Generator().manual_seed(0)))

    def forward(self, x: Tensor) -> Tensor:
        return torch.einsum(self.equation, x, self.matrix)


class Summed(nn.Module):
    """The image's places, weighted and summed: a matrix times a vector."""

    def __init__(self) -> None:
        super().__init__()
        self.vector = nn.Parameter(torch.rand(64, generator=torch.Generator().manual_seed(0)))

    def forward(self, x: Tensor) -> Tensor:
        return x + (x.flatten(2) @ self.vector)[..., None, None]


QKV = {"a": 8, "between.q": 0, "between.k": 0, "between.v": 8}  # with a residual the last layer's channels are the first one's
CASES: dict[str, tuple[Callable[[], nn.Module], dict[str, int]]] = {
    "matmul": (lambda: Attention(by_matmul), QKV),
    "bmm": (lambda: Attention(by_bmm), QKV),
    "einsum": (lambda: Attention(by_einsum), QKV),
    "without residual": (lambda: Attention(by_matmul, residual=False), {**QKV, "between.out": 8}),
    "two heads": (lambda: Attention(two_heads), {**QKV, "between.v": 4}),
    "scaled": (lambda: Attention(scaled), {**QKV, "between.v": 4}),
    "masked": (lambda: Attention(masked), QKV),
    "linear": (lambda: Attention(linear), QKV),
    "of channels": (lambda: Attention(of_channels), {**QKV, "between.v": 0}),
    "three factors": (lambda: Attention(three_factors), QKV),
    "context": (Context, {"a": 8}),
    "excite": (Excite, {"a": 8}),
    "mixer of places": (lambda: Mixer("bchw,wv->bchv", 8), {"a": 8}),
    "mixer of channels": (lambda: Mixer("bchw,cd->bdhw", 8), {"a": 0}),
    "per channel": (lambda: Mixer("bchw,cw->bchw", 8), {"a": 0}),  # a number a channel and place: no layer's, so not cut
    "summed": (Summed, {"a": 8}),
}


@pytest.fixture(params=CASES)
def case(request: pytest.FixtureRequest) -> tuple[nn.Module, dict[str, int]]:
    between, free = CASES[request.param]
    torch.manual_seed(0)
    return randomize(Around(between()), 0).eval(), free


def test_channels_go_through_and_surgery_is_exact(case: tuple[nn.Module, dict[str, int]]) -> None:
    net, free = case
    graph = trace(net, EXAMPLE)
    found = {name: int(graph.removable[g.start : g.stop].sum()) for name, g in graph.groups.items()}
    assert {name: count for name, count in found.items() if name in free} == free
    assert sdap.cost(graph, unit="macs") == count_macs(net, EXAMPLE)
    small = cut_like_masked(net.double(), graph, kept := some_kept(graph, 0))
    assert sdap.report(graph, kept).after["macs"] == count_macs(small, EXAMPLE.double())


def test_run_prunes_it(case: tuple[nn.Module, dict[str, int]]) -> None:
    result = sdap.prune(case[0], pictures(), 0.2, **QUICK)
    assert result.report is not None
    assert result.report.achieved() >= 0.2


@pytest.mark.parametrize(
    ("between", "said"),
    [
        (Attention(by_matmul), "8 channels kept by matmul at between: it mixes channels"),
        (Attention(scaled), "8 channels kept by scaled_dot_product_attention at between: it mixes channels"),
        (Mixer("bchw,cd->bdhw", 8), "8 channels kept by einsum at between: it mixes channels"),
        (Mixer("bchw,cw->bchw", 8), "8 channels kept by einsum at between: a tensor that is no layer's meets the channels"),
        (Mixer("bc...,cc->bc...", 8), "8 channels kept by einsum at between: the tracer does not know what it does with channels"),
    ],
    ids=["matmul", "scaled", "mixer of channels", "per channel", "dots"],
)
def test_what_stays_is_told(between: nn.Module, said: str) -> None:
    assert said in str(trace(Around(between), EXAMPLE))


@given(a=st.integers(1, 5), b=st.integers(1, 5), rows=st.integers(1, 3), columns=st.integers(1, 3))
def test_matmul_is_spelled_as_it_computes(a: int, b: int, rows: int, columns: int) -> None:
    """Against einsum itself, for every number of axes."""
    shapes = [
        ([2, 3, 1][3 - (count - 2) :] if count > 2 else []) + (matrix if count > 1 else matrix[place : place + 1])
        for count, matrix, place in ((a, [rows, 4], 1), (b, [4, columns], 0))
    ]
    x, y = (torch.rand(shape) for shape in shapes)
    spelled = spell(torch.matmul, (x, y), {}, lambda tensor: tensor.shape)
    assert spelled is not None
    torch.testing.assert_close(torch.einsum(f"{','.join(spelled.terms)}->{spelled.result}", *spelled.factors), x @ y)


class Two(nn.Module):
    """Two activations of 8 channels and 8 x 8 places, in a product of any letters."""

    def __init__(self, equation: str, tied: bool) -> None:
        super().__init__()
        self.a, self.other = nn.Conv2d(3, 8, 3, stride=2, padding=1), nn.Conv2d(8, 8, 1)
        self.b, self.equation, self.tied = nn.Conv2d(8, 4, 3, padding=1), equation, tied

    def forward(self, x: Tensor) -> Tensor:
        x = self.a(x).relu()
        y = self.other(x) + x if self.tied else self.other(x)
        return self.b(torch.einsum(self.equation, x, y) / 64).mean((2, 3))


@settings(max_examples=150)
@given(
    terms=st.tuples(*(st.permutations("chwd") for _ in range(2))),
    drawn=st.randoms(use_true_random=False),
    tied=st.booleans(),
    seed=st.integers(0, 10**6),
)
def test_any_product_of_two_is_exact(terms: tuple[list[str], list[str]], drawn: random.Random, tied: bool, seed: int) -> None:
    """Whatever meets, is summed over, or ends where the next layer has its places."""
    first, second = ("b" + "".join(term[:3]) for term in terms)
    result = "b" + "".join(drawn.sample(sorted((set(first) | set(second)) - {"b"}), 3))
    torch.manual_seed(seed)
    net = Two(f"{first},{second}->{result}", tied).double()
    graph = trace(net, EXAMPLE)
    assert sdap.cost(graph, unit="macs") == count_macs(net, EXAMPLE.double())
    small = cut_like_masked(net, graph, kept := some_kept(graph, seed))
    assert sdap.report(graph, kept).after["macs"] == count_macs(small, EXAMPLE.double())


@pytest.mark.parametrize("equation", ["bii->b", "bij,bjk", "b...,b->b..."], ids=["diagonal", "no arrow", "dots"])
def test_what_takes_more_than_letters_is_not_spelled(equation: str) -> None:
    factors = [torch.rand(2, 3, 3)] * (equation.count(",") + 1)
    assert spell(torch.einsum, (equation, *factors), {}, lambda tensor: tensor.shape) is None


def test_grouped_heads_are_not_spelled() -> None:
    q, k = torch.rand(1, 4, 5, 2), torch.rand(1, 2, 5, 2)
    assert spell(F.scaled_dot_product_attention, (q, k, k), {"enable_gqa": True}, lambda tensor: tensor.shape) is None
