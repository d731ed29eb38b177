"""What was measured to go wrong in Torch-Pruning 1.6.1, each held here: a net, and that ours is right.

Changed outputs, crashes, channels that silently stay, stale optimizers, files that cannot be loaded.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from nets import EXAMPLE, cut_like_masked, fingerprint, some_kept
from torch import Tensor, nn

import sdap_lite as sdap
from sdap_lite import _torchvision, largest_rate, remove_channels, trace


class Between(nn.Module):
    """Two convolutions with something between them."""

    def __init__(self, between: Callable[[Tensor], Tensor] | nn.Module, width: int = 8) -> None:
        super().__init__()
        self.a, self.b = nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(width, 6, 3, padding=1)
        self.between, self.fc = between, nn.Linear(6, 5)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(F.relu(self.b(self.between(self.a(x)))).mean((2, 3)))


def shuffle(x: Tensor) -> Tensor:
    n, c, h, w = x.shape
    return x.view(n, 2, c // 2, h, w).transpose(1, 2).reshape(n, c, h, w)


def half_twice(x: Tensor) -> Tensor:
    half = x.chunk(2, 1)[0]
    return torch.cat([half, x.chunk(2, 1)[1], half.relu()], 1)


NETS: dict[str, tuple[Callable[[], nn.Module], bool, str]] = {  # the net, whether channels of the first layer may go, else the reason
    "hand-written shuffle (silently wrong)": (lambda: Between(shuffle), True, ""),
    "group norm (silently wrong)": (lambda: Between(nn.GroupNorm(4, 8)), True, ""),
    "softmax over channels (silently wrong)": (lambda: Between(nn.Softmax(1)), False, "it mixes channels"),
    "mean over channels (silently wrong)": (lambda: Between(lambda x: x - x.mean(1, keepdim=True)), False, "it mixes channels"),
    "chunk and cat (crash)": (lambda: Between(lambda x: torch.cat(x.chunk(2, 1)[::-1], 1)), True, ""),
    "chunk used twice (crash)": (lambda: Between(half_twice, 12), True, ""),
    "slice (crash)": (lambda: Between(lambda x: x[:, ::2], 4), True, ""),
    "option A by padding (silently unpruned)": (lambda: Between(lambda x: F.pad(x[:, :, ::2, ::2], (0, 0, 0, 0, 2, 2)), 12), True, ""),
    "cat with zeros (silently unpruned)": (lambda: Between(lambda x: torch.cat([x, torch.zeros_like(x)], 1), 16), True, ""),
    "attention of one channel (silently unpruned)": (lambda: Between(lambda x: x * torch.sigmoid(x.amax((2, 3), keepdim=True))), True, ""),
}


@pytest.mark.parametrize("case", list(NETS))
def test_right_or_kept_with_the_reason(case: str) -> None:
    make, free, reason = NETS[case]
    net = make().double().eval()
    graph = trace(net, EXAMPLE)
    assert ("a" in graph.prunable) == free
    assert free or any(reason in note.reason for note in graph.kept)
    for seed in range(3):
        cut_like_masked(net, graph, some_kept(graph, seed))


@pytest.mark.parametrize("name", ["shufflenet_v2_x1_0", "convnext_tiny"])
def test_torchvision_nets_that_crashed_or_changed(name: str) -> None:
    net = _torchvision.load().models.get_model(name, weights=None).eval()
    graph = trace(net, torch.zeros(1, 3, 64, 64))
    assert largest_rate(graph) > 0.9
    remove_channels(net, graph, some_kept(graph, 0))  # raises where the output would change


def test_frozen_parameters_are_pruned_all_the_same() -> None:
    net = Between(F.relu).requires_grad_(False)
    graph = trace(net, EXAMPLE)
    small = remove_channels(net, graph, some_kept(graph, 0, 0.3))
    assert small.a.out_channels < 8
    assert not any(p.requires_grad for p in small.parameters())


def test_tracing_leaves_the_mode_and_the_numbers() -> None:
    net = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.Conv2d(8, 5, 1)).train()
    before = fingerprint(net)
    trace(net, torch.randn(1, 3, 16, 16))
    assert all(m.training for m in net.modules())
    assert all(torch.equal(a, before[name]) for name, a in net.state_dict().items())


def test_optimizer_goes_along() -> None:
    net = Between(F.relu)
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1, momentum=0.9)
    net(torch.randn(2, *EXAMPLE.shape[1:])).sum().backward()
    optimizer.step()
    graph = trace(net, EXAMPLE)
    kept = some_kept(graph, 0)
    small = remove_channels(net, graph, kept)
    sdap.slice_optimizer(optimizer, net, small, graph, kept)
    held = {p for group in optimizer.param_groups for p in group["params"]}
    assert held == set(small.parameters())


def test_pruned_net_is_loaded_without_pickle(tmp_path: Path) -> None:
    net = Between(nn.GroupNorm(4, 8)).eval()
    graph = trace(net, EXAMPLE)
    small = remove_channels(net, graph, some_kept(graph, 0))
    torch.save(small.state_dict(), tmp_path / "state.pt")
    assert torch.load(tmp_path / "state.pt", weights_only=True).keys() == net.state_dict().keys()
    sdap.save(small, tmp_path / "small")
    x = torch.randn(2, *EXAMPLE.shape[1:])
    assert torch.equal(sdap.load(tmp_path / "small", Between(nn.GroupNorm(4, 8)))(x), small(x))


def test_half_of_the_parameters_is_half() -> None:
    """There, 0.5 takes 72.9 % of ResNet-50's parameters."""
    net = _torchvision.load().models.resnet18(weights=None)
    graph = trace(net, torch.zeros(1, 3, 64, 64))
    kept = sdap.threshold(graph, graph.split(torch.rand(len(graph))), 0.5)
    assert sdap.report(graph, kept).achieved() == pytest.approx(0.5, abs=0.001)
