"""Folding: the same function with fewer modules, or the copy as it was."""

from __future__ import annotations

import pytest
import torch
from nets import EXAMPLE, NETS, assert_same_bits, build, fingerprint
from torch import Tensor, nn

from sdap_lite.folding import fold_norms


def settled(name: str) -> nn.Module:
    """A network whose batch norms have seen images, and whose scales and shifts are their own."""
    model = build(name).train()
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d) and module.affine:
            nn.init.uniform_(module.weight, 0.5, 2)
            nn.init.normal_(module.bias)
    model(torch.randn(8, *EXAMPLE.shape[1:]))
    return model


def count_norms(model: nn.Module) -> int:
    return sum(isinstance(module, nn.BatchNorm2d) for module in model.modules())


@pytest.mark.parametrize("name", list(NETS))
def test_folded_network_computes_the_same(name: str) -> None:
    model = settled(name)
    before = fingerprint(model)
    folded = fold_norms(model, EXAMPLE)
    assert_same_bits(model, before)
    assert model.training
    assert not folded.training
    x = torch.randn(4, *EXAMPLE.shape[1:])
    with torch.no_grad():
        wanted = model.eval()(x)
        torch.testing.assert_close(folded(x), wanted, rtol=1e-4, atol=1e-4 * float(wanted.abs().max()))


@pytest.mark.parametrize(("name", "left"), [("vgg", 0), ("resnet-pad", 0), ("resnet-conv", 0), ("mobilenet", 0)])
def test_norms_behind_convolutions_go(name: str, left: int) -> None:
    model = settled(name)
    assert count_norms(model) > left
    assert count_norms(fold_norms(model, EXAMPLE)) == left


class ReadTwice(nn.Module):
    """The convolution's output goes around the norm, too."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm = nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)
        nn.init.uniform_(self.norm.weight, 2, 3)

    def forward(self, x: Tensor) -> Tensor:
        y = self.conv(x)
        return (y + self.norm(y)).mean((2, 3))


class CalledTwice(ReadTwice):
    """One norm for two convolutions of the same weight."""

    def forward(self, x: Tensor) -> Tensor:
        return (self.norm(self.conv(x)) + self.norm(self.conv(-x))).mean((2, 3))


@pytest.mark.parametrize("kind", [ReadTwice, CalledTwice])
def test_what_cannot_be_folded_stays(kind: type[nn.Module]) -> None:
    model = kind()
    folded = fold_norms(model, EXAMPLE)
    assert count_norms(folded) == 1
    assert_same_bits(folded, fingerprint(model))


def test_norm_without_running_statistics_stays() -> None:
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4, track_running_stats=False))
    assert count_norms(fold_norms(model, EXAMPLE)) == 1


class FloatsOnly(nn.Module):
    """It makes a tensor of its own, always in float32."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm = nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(self.conv(x)).mean((2, 3)) @ torch.eye(4)


def test_network_that_cannot_run_in_float64_stays() -> None:
    model = FloatsOnly()
    assert_same_bits(fold_norms(model, EXAMPLE), fingerprint(model))
