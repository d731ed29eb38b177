"""Reshapes by patterns: einops asks what kind of tensor it is given, and a stand-in of ``torch.fx`` is none that it knows."""

from __future__ import annotations

from collections.abc import Callable

import einops
import pytest
import torch
from einops import rearrange, reduce, repeat
from einops.layers.torch import Rearrange, Reduce
from nets import EXAMPLE, QUICK, cut_like_masked, pictures, randomize, some_kept
from torch import Tensor, nn

import sdap_lite as sdap
from sdap_lite import count_macs, trace


class Patterned(nn.Module):
    """Two convolutions, with a pattern between them."""

    def __init__(self, between: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.a, self.b, self.fc = nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(8, 8, 3, padding=1), nn.Linear(8, 4)
        self.between = between

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(self.b(self.between(self.a(x).relu())).relu().mean((2, 3)))


def there_and_back(x: Tensor) -> Tensor:
    return rearrange(rearrange(x, "b c h w -> b (h w) c"), "b (h w) c -> b c h w", h=x.shape[2])


def shuffle(x: Tensor) -> Tensor:
    return einops.rearrange(x, "b (g c) h w -> b (c g) h w", g=2)


def squeeze_and_excite(x: Tensor) -> Tensor:
    return x * torch.sigmoid(reduce(x, "b c h w -> b c 1 1", "mean"))


def pool(x: Tensor) -> Tensor:
    return einops.reduce(x, "b c (h p) (w q) -> b c h w", reduction="max", p=2, q=2)


def spread(x: Tensor) -> Tensor:
    return repeat(x.mean((2, 3)), "b c -> b c h w", h=4, w=x.shape[3])


def windows(x: Tensor) -> Tensor:
    parts = rearrange(x, "b c (h p) (w q) -> (b h w) c p q", p=2, q=2)
    return rearrange(parts, "(b h w) c p q -> b c (h p) (w q)", b=x.shape[0], h=x.shape[2] // 2)


def mean_of_channels(x: Tensor) -> Tensor:
    return x * reduce(x, "b c h w -> b 1 h w", "mean")


def last_channels() -> nn.Module:
    return nn.Sequential(Rearrange("b c h w -> b h w c"), nn.GELU(), Rearrange("b h w c -> b c h w"))


MAY_GO: dict[str, tuple[Callable[[], Callable[[Tensor], Tensor]], int]] = {
    "there and back": (lambda: there_and_back, 8),
    "shuffle": (lambda: shuffle, 4),  # in pairs
    "squeeze and excite": (lambda: squeeze_and_excite, 8),
    "pool": (lambda: pool, 8),
    "spread": (lambda: spread, 8),
    "windows": (lambda: windows, 8),
    "layers": (last_channels, 8),
    "mean of channels": (lambda: mean_of_channels, 0),
    "layer that reduces": (lambda: Reduce("b c (h 2) (w 2) -> b c h w", "max"), 0),
}


@pytest.fixture(params=MAY_GO)
def case(request: pytest.FixtureRequest) -> tuple[nn.Module, int]:
    between, free = MAY_GO[request.param]
    return randomize(Patterned(between()), 0).eval(), free


def test_channels_follow_the_pattern_and_surgery_is_exact(case: tuple[nn.Module, int]) -> None:
    net, free = case
    graph = trace(net, EXAMPLE)
    assert {name: int(graph.removable[g.start : g.stop].sum()) for name, g in graph.groups.items()} == {"a": free, "b": 8, "fc": 0}
    assert sdap.cost(graph, unit="macs") == count_macs(net, EXAMPLE)
    cut_like_masked(net.double(), graph, some_kept(graph, 0))


def test_run_prunes_it(case: tuple[nn.Module, int]) -> None:
    result = sdap.prune(case[0], pictures(), 0.3, **QUICK)
    assert result.report is not None
    assert result.report.achieved() >= 0.3


@pytest.mark.parametrize(
    ("between", "said"),
    [
        (mean_of_channels, "8 channels kept by reduce at the top: it mixes channels"),
        (MAY_GO["layer that reduces"][0](), "8 channels kept by Reduce at between"),
    ],
    ids=["function", "layer"],
)
def test_what_stays_is_told(between: Callable[[Tensor], Tensor], said: str) -> None:
    assert said in str(trace(Patterned(between), EXAMPLE))
